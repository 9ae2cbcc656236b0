"""Which lines of a kernel's console are complaints."""

from __future__ import annotations

import pytest

from guests.guest import COMPLAINT


@pytest.mark.parametrize(
    "line",
    [
        "[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "[    9.1] WARNING: CPU: 0 PID: 77 at fs/fuse/inode.c:123 fuse_evict_inode+0x1/0x2 [fuse]",
        "[    9.1] WARNING: fs/fuse/inode.c:123 at fuse_evict_inode+0x1/0x2, CPU#0: umount/77",
        "[    9.1] INFO: task cat:81 blocked for more than 60 seconds.",
        "[    9.1] Oops: 0000 [#1] PREEMPT SMP",
        "[    9.1] Unable to handle kernel paging request at virtual address ffff0000",
        "[    9.1] refcount_t: underflow; use-after-free.",
    ],
)
def test_complaint_is_recognised(line: str) -> None:
    assert COMPLAINT.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "[    0.4] WARNING: nvram corruption detected: 0-length partition",  # pseries without an nvram
        "[   30.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",  # the host had no time for it
        "[   30.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "[    0.4] nvram: Failed to find or create lnx,oops-log partition, err -28",
    ],
)
def test_what_an_emulated_machine_says_is_no_complaint(line: str) -> None:
    assert not COMPLAINT.search(line)

"""Which capabilities a serving process keeps, and how it gives up the others.

As root it keeps virtiofsd's set: what it takes to make files as other users and to get past permissions that the peer's
kernel checks. CAP_DAC_READ_SEARCH, which opens file handles, comes with it where handles are used. CAP_SYS_ADMIN, which
passthrough of a kernel mount needs, is only kept on demand. An ordinary user's server keeps nothing, so that it can do
in a user namespace of its own exactly what it could do outside.

The sets are the calling thread's; threads started later inherit them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from transfuse.sandbox import linux

__all__ = ["FILE_HANDLES", "NAMES", "SERVING", "change", "keep_only", "parse_changes"]

NAMES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
"""By number, as in <linux/capability.h>."""
MAX_CAPABILITIES = 64
"""Bits of the sets: as many as the kernel could ever have."""
SERVING = frozenset({"chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap"})
FILE_HANDLES = "dac_read_search"


def parse_changes(text: str) -> tuple[tuple[str, bool], ...]:
    """virtiofsd's --modcaps: `+sys_admin:-chown` as (name, kept) pairs. ValueError for what is no capability."""
    changes = []
    for word in text.split(":"):
        sign, name = word[:1], word[1:].lower().removeprefix("cap_")
        if sign not in ("+", "-"):
            raise ValueError(f"{word!r} begins with neither + nor -")
        if name not in NAMES:
            raise ValueError(f"there is no capability {name!r}")
        changes.append((name, sign == "+"))
    return tuple(changes)


def change(kept: Iterable[str], changes: Iterable[tuple[str, bool]]) -> frozenset[str]:
    """`kept` after `changes`, in their order."""
    result = set(kept)
    for name, keep in changes:
        if keep:
            result.add(name)
        else:
            result.discard(name)
    return frozenset(result)


def keep_only(kept: Iterable[str]) -> tuple[str, ...]:
    """Give up everything but `kept`, in every set and for good; what was really kept, sorted. OSError names the step.

    What the process never had it does not get. The bounding set is only cut by those who may (CAP_SETPCAP): without
    execve() and with no_new_privs it has no say anyway.
    """
    wanted = sum(1 << NAMES.index(name) for name in kept)
    linux.drop_ambient()
    for number in range(MAX_CAPABILITIES):
        if wanted >> number & 1:
            continue
        try:
            linux.drop_bounding(number)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EPERM):  # past the last one; not allowed
                break
            raise
    _, permitted, _ = linux.capget()
    left = permitted & wanted
    linux.capset(left, left, 0)
    return tuple(sorted(name for number, name in enumerate(NAMES) if left >> number & 1))

"""The memory filesystem against the kernel's own tmpfs: the same random operations, step by step."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing.conformance.places import place
from transfuse.testing.direct import DirectVolume
from transfuse.testing.model import ALL_OPERATIONS, XATTRS, RandomOperations
from transfuse.testing.volume import OsVolume

STEPS = 10_000
TMPFS = "/dev/shm"
USERS = ((0, 0, ()), (1001, 1001, (1001, 1002)), (1002, 1002, (1002,)))

# tmpfs clears setgid when a stranger to the group removes an access ACL (simple_set_acl()); Linux's FUSE sends a
# REMOVEXATTR that does not say so (fuse_set_acl()), and ext4 keeps the bit.
UNLIKE_ON_A_MOUNT = ("fallocate", "removexattr")


def on_tmpfs(path):
    with open("/proc/self/mounts") as mounts:
        return any(line.split()[1:3] == [path, "tmpfs"] for line in mounts)


@pytest.fixture
def tmpfs():
    if not on_tmpfs(TMPFS):
        pytest.skip(f"{TMPFS} is no tmpfs")
    umask = os.umask(0)
    folder = tempfile.mkdtemp(dir=TMPFS)
    os.chmod(folder, 0o777)
    yield folder
    shutil.rmtree(folder)
    os.umask(umask)


@pytest.mark.needs("root")
@pytest.mark.parametrize("users", [USERS[:1], USERS], ids=["root", "three-users"])
@pytest.mark.parametrize(
    ("left_out", "exact_holes"),
    [("fallocate", True), ("seek", True), ("seek", False)],
    ids=["holes", "reservations", "copies"],
)
def test_random_operations_give_what_tmpfs_gives(tmpfs, rng, users, left_out, exact_holes):
    fs = MemoryFilesystem(check_permissions=True, root_mode=0o777)
    runner = RandomOperations(
        OsVolume(tmpfs),
        DirectVolume(fs),
        rng,
        users=users,
        operations=[name for name in ALL_OPERATIONS if name != left_out],
        exact_holes=exact_holes,
        # a thread that changes its filesystem ids keeps CAP_SYS_ADMIN
        xattrs=[name for name in XATTRS if len(users) == 1 or not name.startswith("trusted")],
    )
    runner.run(STEPS)
    assert fs.lookup_count() == fs.open_count() == 0
    happened = [name for name, (succeeded, _) in runner.outcomes.items() if succeeded]
    assert len(happened) >= len(runner.operations) - 3


@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.parametrize("users", [USERS[:1], USERS], ids=["root", "three-users"])
def test_random_operations_on_a_kernel_mount_give_what_tmpfs_gives(tmpfs, rng, users):
    folder = tempfile.mkdtemp(prefix="transfuse-")  # other users must get in, which pytest's folders don't allow
    os.chmod(folder, 0o755)
    try:
        with place("dev_fuse", MemoryFilesystem(root_mode=0o777), Path(folder)) as found:
            RandomOperations(
                OsVolume(tmpfs),
                found.volume,
                rng,
                users=users,
                operations=[name for name in ALL_OPERATIONS if name not in UNLIKE_ON_A_MOUNT],
                xattrs=[name for name in XATTRS if not name.startswith("trusted")],
            ).run(STEPS)
        assert found.ledger.problems(lookups=False) == [] and found.bugs == []
    finally:
        os.rmdir(folder)


@pytest.mark.soak
@pytest.mark.needs("root")
def test_a_million_random_operations(tmpfs, rng):
    fs = MemoryFilesystem(check_permissions=True, root_mode=0o777)
    operations = [name for name in ALL_OPERATIONS if name != "fallocate"]
    RandomOperations(OsVolume(tmpfs), DirectVolume(fs), rng, operations=operations).run(1_000_000)
    assert fs.lookup_count() == 0

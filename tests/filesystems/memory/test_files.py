"""What the conformance suite does not ask of open files: ioctl, flags, privileges, limits, sparse giants."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import AttrChanges, Lock
from transfuse.testing.direct import DirectVolume
from transfuse.testing.volume import LOCK_EXCLUSIVE

REQ = Request()
TIB = 1 << 40
GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
IMMUTABLE, APPEND, NODUMP = 0x10, 0x20, 0x40
NEW = os.O_CREAT | os.O_RDWR


def fails(number):
    return pytest.raises(OSError, match=rf"^\[Errno {number}\]")


@pytest.fixture
def fs():
    return MemoryFilesystem(check_permissions=True, root_mode=0o777)


@pytest.fixture
def volume(fs):
    return DirectVolume(fs)


def set_flags(volume, path, flags):
    with volume.open(path, os.O_RDONLY) as file:
        file.ioctl(SETFLAGS, struct.pack("<I", flags))


def test_a_sparse_terabyte_is_read_and_copied_from(volume):
    with volume.open("/f", NEW) as file, volume.open("/g", NEW) as other:
        file.truncate(TIB)
        file.pwrite(b"end", TIB - 3)
        assert file.stat().blocks == 8
        assert file.copy_to(other, 0, 0, TIB) == TIB
        assert other.pread(10, TIB - 3) == b"end" and other.stat().blocks == 8


def test_writing_beyond_the_largest_offset_is_efbig(fs, volume):
    with volume.open("/f", NEW) as file, fails(errno.EFBIG):
        file.pwrite(b"xx", (1 << 63) - 2)


def test_overlapping_copies_within_a_file_are_einval(volume):
    with volume.open("/f", NEW) as file:
        file.pwrite(b"0123456789", 0)
        with fails(errno.EINVAL):
            file.copy_to(file, 0, 5, 6)
        assert file.copy_to(file, 0, 10, 5) == 5 and file.pread(20, 0) == b"012345678901234"


def test_a_copy_that_runs_out_of_space_is_short():
    volume = DirectVolume(MemoryFilesystem(size_bytes=600 * 4096))
    with volume.open("/f", NEW) as file, volume.open("/g", NEW) as other:
        file.pwrite(b"x" * 4096 * 300, 0)
        file.truncate(4096 * 400)
        file.pwrite(b"y" * 4096, 4096 * 350)
        assert file.copy_to(other, 0, 0, 4096 * 400) < 4096 * 400


def test_copy_flags_are_einval(fs, volume):
    with volume.open("/f", NEW) as file, fails(errno.EINVAL):
        fs.copy_file_range(REQ, file.nodeid, file.fh, 0, file.nodeid, file.fh, 100, 1, 1)


def test_writing_by_who_lacks_fsetid_clears_setuid(fs, volume):
    volume.write_bytes("/f", b"", 0o777)
    volume.chmod("/f", 0o6777)
    with volume.open("/f", os.O_RDWR) as file:
        fs.write(REQ, file.nodeid, file.fh, b"x", 0, 0)
        assert file.stat().mode & 0o7777 == 0o6777
        fs.write(Request(uid=1001), file.nodeid, file.fh, b"x", 0, 4)
        assert file.stat().mode & 0o7777 == 0o777


def test_cached_writes_have_their_own_offset_even_with_o_append(fs, volume):
    volume.write_bytes("/f", b"0123456789")
    with volume.open("/f", os.O_RDWR | os.O_APPEND) as file:
        fs.write(REQ, file.nodeid, file.fh, b"xx", 2, 1)
    assert volume.read_bytes("/f") == b"01xx456789"


def test_with_a_write_back_cache_the_peer_reads_through_any_handle(fs, volume):
    class Up:
        order = "<"
        notify = None
        features = type(fs.features)(writeback_cache=True)

    volume.write_bytes("/f", b"x")
    fs.mounted(Up)
    with volume.open("/f", os.O_WRONLY) as file:
        assert file.pread(1, 0) == b"x"


def test_opening_a_link_or_a_directory_for_writing(fs, volume):
    volume.symlink("t", "/l")
    with fails(errno.ELOOP):
        fs.open(REQ, volume.stat("/l").ino, os.O_RDONLY)
    with fails(errno.EISDIR):
        fs.open(REQ, 1, os.O_RDWR)


def test_noatime_is_for_the_owner(volume):
    volume.write_bytes("/f", b"", 0o644)
    with volume.identity(1001, 1001), fails(errno.EPERM):
        volume.open("/f", os.O_RDONLY | os.O_NOATIME)


def test_releasing_twice_is_ebadf(fs, volume):
    file = volume.open("/f", NEW)
    file.close()
    with fails(errno.EBADF):
        fs.release(REQ, 2, file.fh, 0, 0, False)


# ---- file flags


def test_times_kept_over_collected_writes_are_no_change_of_an_append_only_file(fs, volume):
    volume.write_bytes("/f", b"")
    set_flags(volume, "/f", APPEND)
    nodeid = volume.stat("/f").ino
    with fails(errno.EPERM):
        fs.setattr(REQ, nodeid, AttrChanges(mtime_ns=5), None)
    assert fs.setattr(REQ, nodeid, AttrChanges(mtime_ns=5, ctime_ns=6), None).mtime_ns != 5


def test_flags_are_kept_and_shown(fs, volume):
    volume.write_bytes("/f", b"")
    set_flags(volume, "/f", NODUMP | APPEND)
    with volume.open("/f", os.O_RDONLY) as file:
        assert struct.unpack_from("<I", file.ioctl(GETFLAGS, bytes(8)))[0] == NODUMP | APPEND
        xflags = struct.unpack_from("<I", file.ioctl(FSGETXATTR, bytes(28)))[0]
    assert xflags == 0x80 | 0x10 and fs.statx(REQ, volume.stat("/f").ino, None, 0, 0).attributes == 0x60


def test_flags_are_set_by_the_newer_call_too(volume):
    volume.write_bytes("/f", b"")
    with volume.open("/f", os.O_RDONLY) as file:
        file.ioctl(FSSETXATTR, struct.pack("<5I8x", 0x08, 0, 0, 0, 0))
        assert struct.unpack_from("<I", file.ioctl(GETFLAGS, bytes(8)))[0] == IMMUTABLE


def test_ioctl_speaks_the_byte_order_of_the_peer(fs, volume):
    class Up:
        order = ">"
        notify = None
        features = fs.features

    fs.mounted(Up)
    volume.write_bytes("/f", b"")
    with volume.open("/f", os.O_RDONLY) as file:
        file.ioctl(SETFLAGS, struct.pack(">I", NODUMP))
        assert file.ioctl(GETFLAGS, bytes(4)) == b"\0\0\0\x40"


def test_an_immutable_file_can_not_be_changed(volume):
    volume.write_bytes("/f", b"data")
    set_flags(volume, "/f", IMMUTABLE)
    for change in (
        lambda: volume.open("/f", os.O_WRONLY),
        lambda: volume.unlink("/f"),
        lambda: volume.rename("/f", "/g"),
        lambda: volume.link("/f", "/g"),
        lambda: volume.chmod("/f", 0o777),
        lambda: volume.truncate("/f", 0),
        lambda: volume.setxattr("/f", "user.a", b""),
    ):
        with fails(errno.EPERM):
            change()
    assert volume.read_bytes("/f") == b"data"
    set_flags(volume, "/f", 0)
    volume.unlink("/f")


def test_an_append_only_file_is_appended_to_only(volume):
    volume.write_bytes("/f", b"data")
    set_flags(volume, "/f", APPEND)
    for flags in (os.O_WRONLY, os.O_RDWR | os.O_APPEND | os.O_TRUNC):
        with fails(errno.EPERM):
            volume.open("/f", flags)
    with volume.open("/f", os.O_WRONLY | os.O_APPEND) as file:
        file.pwrite(b"+", 0)
    assert volume.read_bytes("/f") == b"data+"


def test_an_append_only_directory_takes_names_and_loses_none(volume):
    volume.mkdir("/d")
    volume.write_bytes("/d/f", b"")
    with volume.open("/d", os.O_RDONLY) as file:
        file.ioctl(SETFLAGS, struct.pack("<I", APPEND))
    volume.write_bytes("/d/g", b"")
    with fails(errno.EPERM):
        volume.unlink("/d/f")


def test_only_root_makes_immutable_and_only_the_owner_sets_flags(volume):
    with volume.identity(1001, 1001):
        volume.write_bytes("/f", b"", 0o666)
        set_flags(volume, "/f", NODUMP)
        with fails(errno.EPERM):
            set_flags(volume, "/f", IMMUTABLE)
    with volume.identity(1002, 1002), fails(errno.EPERM):
        set_flags(volume, "/f", 0)


@pytest.mark.parametrize(
    ("cmd", "data", "number"),
    [
        (SETFLAGS, struct.pack("<I", 1), errno.EOPNOTSUPP),
        (FSSETXATTR, struct.pack("<5I8x", 0, 0, 0, 7, 0), errno.EOPNOTSUPP),
        (0x1234, b"", errno.ENOTTY),
        (SETFLAGS, b"x", errno.ENOTTY),
    ],
)
def test_other_ioctls_are_refused(volume, cmd, data, number):
    with volume.open("/f", NEW) as file, fails(number):
        file.ioctl(cmd, data)


# ---- locks, poll


def test_poll_is_always_ready(fs, volume):
    with volume.open("/f", NEW) as file:
        assert fs.poll(REQ, file.nodeid, file.fh, 0x0001 | 0x0004 | 0x0008, None) == 0x0005


def test_locks_need_a_handle_of_that_mode(fs, volume):
    volume.write_bytes("/f", b"")
    with volume.open("/f", os.O_RDONLY) as file, fails(errno.EBADF):
        file.lock(LOCK_EXCLUSIVE, 0, 0)


def test_a_lock_of_an_open_file_description_ends_with_its_handle(fs, volume):
    """Linux does not FLUSH with its owner: see Files.release."""
    with volume.open("/f", NEW) as other:
        opened = fs.open(REQ, other.nodeid, os.O_RDWR)
        fs.setlk(REQ, other.nodeid, opened.fh, 777, Lock(1, 0, 9), False)
        fs.flush(REQ, other.nodeid, opened.fh, 123)
        with fails(errno.EAGAIN):
            other.lock(LOCK_EXCLUSIVE, 0, 1)
        fs.release(REQ, other.nodeid, opened.fh, 0, 0, False)
        other.lock(LOCK_EXCLUSIVE, 0, 1)


def test_a_lock_taken_again_through_another_handle_survives_a_late_release(fs, volume):
    with volume.open("/f", NEW) as other:
        first, second = (fs.open(REQ, other.nodeid, os.O_RDWR) for _ in range(2))
        fs.setlk(REQ, other.nodeid, first.fh, 777, Lock(1, 0, 9), False)
        fs.flush(REQ, other.nodeid, first.fh, 777)
        fs.setlk(REQ, other.nodeid, second.fh, 777, Lock(1, 0, 9), False)
        fs.release(REQ, other.nodeid, first.fh, 0, 0, False)
        with fails(errno.EAGAIN):
            other.lock(LOCK_EXCLUSIVE, 0, 1)
        fs.release(REQ, other.nodeid, second.fh, 0, 0, False)

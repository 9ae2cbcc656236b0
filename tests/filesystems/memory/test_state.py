"""Accounts, the life of inodes, permissions."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.request import Request
from transfuse.testing.direct import DirectVolume

REQ = Request()


def fails(number):
    return pytest.raises(OSError, match=rf"^\[Errno {number}\]")


@pytest.fixture
def fs():
    return MemoryFilesystem(check_permissions=True)


@pytest.fixture
def volume(fs):
    return DirectVolume(fs)


def as_user(volume):
    return volume.identity(1001, 1001, (1001, 1005))


def test_sizes_that_leave_no_room_are_refused():
    with pytest.raises(ValueError):
        MemoryFilesystem(size_bytes=100)


def test_a_full_filesystem_is_enospc_and_recovers():
    volume = DirectVolume(MemoryFilesystem(size_bytes=10 * 4096))
    with volume.open("/f", os.O_CREAT | os.O_RDWR) as file:
        file.pwrite(b"x" * 40_960, 0)
        with fails(errno.ENOSPC):
            file.pwrite(b"x", 40_960)
    assert volume.statfs().bfree == 0
    volume.unlink("/f")
    volume.write_bytes("/g", b"x" * 40_960)


def test_inodes_are_bounded():
    volume = DirectVolume(MemoryFilesystem(max_inodes=3))
    volume.mkdir("/a")
    volume.mkdir("/b")
    with fails(errno.ENOSPC):
        volume.mkdir("/c")
    volume.rmdir("/a")
    volume.mkdir("/c")


def test_hard_links_count_as_inodes():
    volume = DirectVolume(MemoryFilesystem(max_inodes=3))
    volume.write_bytes("/a", b"")
    volume.link("/a", "/b")
    with fails(errno.ENOSPC):
        volume.link("/a", "/c")
    volume.unlink("/a")
    volume.link("/b", "/c")
    assert volume.statfs().ffree == 0


def test_xattrs_and_link_targets_take_space():
    volume = DirectVolume(MemoryFilesystem(size_bytes=2 * 4096))
    volume.symlink("target", "/l")
    volume.write_bytes("/f", b"")
    volume.setxattr("/f", "user.a", b"x")
    with fails(errno.ENOSPC):
        volume.setxattr("/f", "user.b", b"x" * 4096)
    assert volume.listxattr("/f") == ["user.a"]


def test_everything_removed_is_everything_free(volume, fs):
    volume.mkdir("/d")
    volume.write_bytes("/d/f", b"x" * 100_000)
    volume.setxattr("/d/f", "user.a", b"x")
    volume.link("/d/f", "/g")
    volume.symlink("t", "/l")
    for path in ("/d/f", "/g", "/l"):
        volume.unlink(path)
    volume.rmdir("/d")
    space = volume.statfs()
    assert (space.bfree, space.ffree, fs.inode_count()) == (space.blocks, space.files - 1, 1)


def test_an_unlinked_file_lives_while_it_is_remembered(fs, volume):
    volume.write_bytes("/f", b"x")
    nodeid = fs.lookup(REQ, 1, b"f").nodeid
    volume.unlink("/f")
    assert fs.getattr(REQ, nodeid, None).nlink == 0
    fs.forget(REQ, nodeid, 1)
    with fails(errno.ESTALE):
        fs.getattr(REQ, nodeid, None)


def test_forget_of_more_than_was_given_is_clamped_and_reported(fs, volume, caplog):
    volume.write_bytes("/f", b"x")
    nodeid = fs.lookup(REQ, 1, b"f").nodeid
    with caplog.at_level(logging.WARNING):
        fs.forget(REQ, nodeid, 3)
        fs.forget(REQ, 999, 1)
    assert fs.lookup_count() == 0 and "which has 1" in caplog.text and "unknown nodeid 999" in caplog.text


def test_the_end_of_the_connection_frees_what_only_the_peer_held(fs, volume):
    file = volume.open("/f", os.O_CREAT | os.O_RDWR)
    file.pwrite(b"x", 0)
    volume.unlink("/f")
    fs.lookup(REQ, 1, b".")
    fs.destroyed()
    assert (fs.inode_count(), fs.open_count(), fs.lookup_count()) == (1, 0, 0) and volume.statfs().bfree == 1 << 18


def test_nodeids_are_not_used_again(fs, volume):
    volume.write_bytes("/f", b"")
    first = volume.stat("/f").ino
    volume.unlink("/f")
    volume.write_bytes("/f", b"")
    assert volume.stat("/f").ino > first


def test_a_handle_of_another_file_is_ebadf(fs, volume):
    volume.write_bytes("/g", b"")
    with volume.open("/f", os.O_CREAT | os.O_RDWR) as file, fails(errno.EBADF):
        fs.read(REQ, volume.stat("/g").ino, file.fh, 1, 0)


def test_access_is_there_only_where_permissions_are_checked():
    assert "access" not in MemoryFilesystem().operations()
    assert "access" in MemoryFilesystem(check_permissions=True).operations()


def test_without_checks_anyone_may_do_anything():
    volume = DirectVolume(MemoryFilesystem(root_mode=0o700))
    with volume.identity(1001, 1001):
        volume.write_bytes("/f", b"x", 0)
        assert volume.read_bytes("/f") == b"x"


def test_the_sticky_bit_protects_other_peoples_files(volume):
    volume.mkdir("/tmp", 0o1777)
    volume.write_bytes("/tmp/f", b"")
    with as_user(volume):
        with fails(errno.EPERM):
            volume.unlink("/tmp/f")
        with fails(errno.EPERM):
            volume.rename("/tmp/f", "/tmp/g")
        volume.write_bytes("/tmp/own", b"")
        volume.unlink("/tmp/own")


def test_an_acl_decides_before_the_mode(volume):
    acl = bytes.fromhex("02000000 01000600ffffffff 02000600e9030000 04000000ffffffff 10000600ffffffff 20000000ffffffff")
    volume.write_bytes("/f", b"x", 0o600)
    with as_user(volume):
        with fails(errno.EACCES):
            volume.open("/f", os.O_RDONLY)
    volume.setxattr("/f", "system.posix_acl_access", acl)
    with as_user(volume):
        assert volume.read_bytes("/f") == b"x"


def test_root_executes_only_what_someone_may(volume):
    volume.write_bytes("/f", b"", 0o644)
    assert not volume.access("/f", 1)
    volume.chmod("/f", 0o645)
    assert volume.access("/f", 1)


def test_a_group_member_makes_files_of_the_directorys_group_in_setgid_directories(volume):
    volume.mkdir("/d")
    volume.chown("/d", 0, 1005)
    volume.chmod("/d", 0o2777)
    with as_user(volume):
        volume.write_bytes("/d/f", b"", 0o2755)
    assert (volume.stat("/d/f").gid, volume.stat("/d/f").mode & 0o7777) == (1005, 0o2755)


def test_nobody_makes_setgid_programs_of_a_group_they_are_not_in(volume):
    volume.mkdir("/d")
    volume.chown("/d", 0, 4000)
    volume.chmod("/d", 0o2777)
    with as_user(volume):
        volume.write_bytes("/d/f", b"", 0o2755)
    assert (volume.stat("/d/f").gid, volume.stat("/d/f").mode & 0o7777) == (4000, 0o755)


def test_the_umask_applies_where_there_is_no_default_acl(fs):
    assert fs.mkdir(REQ, 1, b"d", 0o777, 0o027).attr.mode & 0o777 == 0o750


def test_a_default_acl_replaces_the_umask(fs, volume):
    acl = bytes.fromhex("02000000 01000700ffffffff 04000700ffffffff 20000500ffffffff")
    volume.setxattr("/", "system.posix_acl_default", acl)
    entry = fs.mkdir(REQ, 1, b"d", 0o777, 0o077)
    assert entry.attr.mode & 0o777 == 0o775
    with fails(errno.ENODATA):
        fs.getxattr(REQ, entry.nodeid, b"system.posix_acl_access")  # no more than the mode says

from __future__ import annotations

import errno
import os
import time
from typing import Any

import pytest

from transfuse.fs.request import Request
from transfuse.fs.values import AttrChanges

Served = Any


@pytest.mark.parametrize("by_handle", [False, True])
def test_mode_is_changed(served: Served, by_handle: bool) -> None:
    entry, opened = served.create("a", 0o600)
    attr = served.fs.setattr(served.req, entry.nodeid, AttrChanges(mode=0o751), opened.fh if by_handle else None)
    assert attr.mode & 0o7777 == 0o751
    served.release(entry.nodeid, opened.fh)


@pytest.mark.parametrize("by_handle", [False, True])
def test_truncation_and_extension(served: Served, by_handle: bool) -> None:
    entry, opened = served.create("a")
    served.write(entry.nodeid, opened.fh, b"abcdef")
    fh = opened.fh if by_handle else None
    assert served.fs.setattr(served.req, entry.nodeid, AttrChanges(size=3), fh).size == 3
    assert served.fs.setattr(served.req, entry.nodeid, AttrChanges(size=5), fh).size == 5
    assert served.read(opened.fh) == b"abc\0\0"
    served.release(entry.nodeid, opened.fh)


def test_truncation_by_the_open_file_needs_no_permission_any_more(served: Served) -> None:
    entry, opened = served.create("a", 0o400)
    assert served.fs.setattr(served.req, entry.nodeid, AttrChanges(size=9), opened.fh).size == 9
    served.release(entry.nodeid, opened.fh)


def test_truncating_a_fifo_is_einval(served: Served) -> None:
    os.mkfifo(served.path / "fifo")
    with pytest.raises(OSError) as caught:
        served.fs.setattr(served.req, served.look("fifo"), AttrChanges(size=0), None)
    assert caught.value.errno == errno.EINVAL


def test_times_are_set_to_the_nanosecond_and_before_1970(served: Served) -> None:
    entry, opened = served.create("a")
    attr = served.fs.setattr(
        served.req, entry.nodeid, AttrChanges(atime_ns=1_234_567_890_123_456_789, mtime_ns=-1), None
    )
    assert (attr.atime_ns, attr.mtime_ns) == (1_234_567_890_123_456_789, -1)
    served.release(entry.nodeid, opened.fh)


def test_a_time_that_is_not_mentioned_stays(served: Served) -> None:
    entry, opened = served.create("a")
    served.fs.setattr(served.req, entry.nodeid, AttrChanges(atime_ns=5, mtime_ns=6), None)
    attr = served.fs.setattr(served.req, entry.nodeid, AttrChanges(mtime_now=True), None)
    assert attr.atime_ns == 5 and attr.mtime_ns > 10**18
    served.release(entry.nodeid, opened.fh)


def test_times_survive_a_change_of_size_in_the_same_request(served: Served) -> None:
    entry, opened = served.create("a")
    assert served.fs.setattr(served.req, entry.nodeid, AttrChanges(size=10, mtime_ns=77), None).mtime_ns == 77
    served.release(entry.nodeid, opened.fh)


def test_times_of_a_symlink_are_its_own(served: Served) -> None:
    target, opened = served.create("a")
    before = served.fs.getattr(served.req, target.nodeid, None).mtime_ns
    link = served.fs.symlink(served.req, 1, b"l", b"a")
    assert served.fs.setattr(served.req, link.nodeid, AttrChanges(mtime_ns=5), None).mtime_ns == 5
    assert served.fs.getattr(served.req, target.nodeid, None).mtime_ns == before
    served.release(target.nodeid, opened.fh)


@pytest.mark.needs("root")
def test_owner_is_changed_and_setuid_goes(served: Served) -> None:
    (served.path / "a").touch()
    (served.path / "a").chmod(0o6755)
    attr = served.fs.setattr(served.req, served.look("a"), AttrChanges(uid=11, gid=12), None)
    assert (attr.uid, attr.gid, attr.mode & 0o7777) == (11, 12, 0o755)


@pytest.mark.needs("root")
def test_owner_alone_leaves_the_group(served: Served) -> None:
    (served.path / "a").touch()
    os.chown(served.path / "a", 3, 4)
    attr = served.fs.setattr(served.req, served.look("a"), AttrChanges(uid=11), None)
    assert (attr.uid, attr.gid) == (11, 4)


@pytest.mark.needs("root")
def test_owner_of_a_symlink_is_its_own(served: Served) -> None:
    (served.path / "l").symlink_to("/etc/passwd")
    served.fs.setattr(served.req, served.look("l"), AttrChanges(uid=11), None)
    assert (os.lstat(served.path / "l").st_uid, os.stat("/etc/passwd").st_uid) == (11, 0)


@pytest.mark.needs("root")
@pytest.mark.parametrize(("kill", "left"), [(True, 0o777), (False, 0o6777)])
def test_truncation_clears_setuid_when_told(served: Served, kill: bool, left: int) -> None:
    (served.path / "a").write_text("text")
    (served.path / "a").chmod(0o6777)
    attr = served.fs.setattr(served.req, served.look("a"), AttrChanges(size=1, kill_suidgid=kill), None)
    assert attr.mode & 0o7777 == left


@pytest.fixture
def set_ids(served: Served) -> int:
    """Node of "a", which belongs to uid 3 and gid 4, with both bits."""
    path = served.path / "a"
    path.write_text("text")
    os.chown(path, 3, 4)
    path.chmod(0o6777)
    return int(served.look("a"))


def mode_after_nothing(served: Served, node: int, req: Request, changes: AttrChanges | None = None) -> int:
    return int(served.fs.setattr(req, node, changes or AttrChanges(), None).mode & 0o7777)


@pytest.mark.needs("root")
@pytest.mark.parametrize("changes", [AttrChanges(), AttrChanges(ctime_ns=5)])
@pytest.mark.parametrize(("uid", "left"), [(0, 0o777), (3, 0o777), (7, 0o6777)])
def test_changing_nothing_clears_setuid_for_the_owner_and_root(
    served: Served, set_ids: int, uid: int, left: int, changes: AttrChanges
) -> None:
    assert mode_after_nothing(served, set_ids, Request(uid=uid, gid=uid), changes) == left


@pytest.mark.needs("root")
@pytest.mark.parametrize("passed_through", [True, False])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_before_a_write_that_the_kernel_passes_through_setuid_is_cleared_for_anybody(
    served: Served, set_ids: int, passed_through: bool, flags: int
) -> None:
    served.fs.passed_through = passed_through
    fh = served.open(set_ids, flags)
    cleared = passed_through and flags != os.O_RDONLY
    assert mode_after_nothing(served, set_ids, Request(uid=7, gid=7)) == (0o777 if cleared else 0o6777)
    served.release(set_ids, fh)


@pytest.mark.needs("root")
def test_another_open_file_makes_no_write_to_this_one(served: Served, set_ids: int) -> None:
    (served.path / "b").touch()
    node = served.look("b")
    fh = served.open(node, os.O_RDWR)
    assert mode_after_nothing(served, set_ids, Request(uid=7, gid=7)) == 0o6777
    served.release(node, fh)


@pytest.mark.needs("root")
@pytest.mark.parametrize(("gid", "left"), [(4, 0o2666), (7, 0o666)])
def test_before_a_write_setgid_without_group_execution_stays_for_members(
    served: Served, set_ids: int, gid: int, left: int
) -> None:
    (served.path / "a").chmod(0o2666)
    fh = served.open(set_ids, os.O_WRONLY)
    assert mode_after_nothing(served, set_ids, Request(uid=7, gid=gid)) == left
    served.release(set_ids, fh)


@pytest.mark.needs("root")
def test_changing_nothing_of_a_directory_leaves_setgid_and_moves_ctime(served: Served) -> None:
    (served.path / "d").mkdir()
    (served.path / "d").chmod(0o2755)
    before = (served.path / "d").stat().st_ctime_ns
    time.sleep(0.02)  # the kernel's clock for files ticks at least every 10 ms
    attr = served.fs.setattr(served.req, served.look("d"), AttrChanges(), None)
    assert attr.mode & 0o7777 == 0o2755 and attr.ctime_ns > before


def test_changing_nothing_of_a_strangers_file_is_no_error_for_an_unprivileged_server(served: Served) -> None:
    """A write may follow, which clears the bits by itself."""
    (served.path / "a").touch()
    served.fs.setattr(Request(uid=7), served.look("a"), AttrChanges(), None)
    assert (served.path / "a").exists()


def test_readlink_gives_the_target_as_it_is(served: Served) -> None:
    target = b"../\xff/" + b"x" * 3000
    os.symlink(target, os.fsencode(served.path) + b"/l")
    assert served.fs.readlink(served.req, served.look("l")) == target


def test_readlink_of_a_file_fails(served: Served) -> None:
    (served.path / "a").touch()
    with pytest.raises(OSError):
        served.fs.readlink(served.req, served.look("a"))


def test_statfs_is_that_of_the_host(served: Served) -> None:
    found, st = served.fs.statfs(served.req, 1), os.statvfs(served.path)
    assert (found.blocks, found.files, found.namelen, found.frsize) == (
        st.f_blocks, st.f_files, st.f_namemax, st.f_frsize,
    )  # fmt: skip


def test_xattr_round_trip_with_any_bytes(served: Served) -> None:
    (served.path / "a").touch()
    node = served.look("a")
    name, value = b"user.\xfe", bytes(range(256))
    served.fs.setxattr(served.req, node, name, value, 0, False)
    assert served.fs.getxattr(served.req, node, name) == value
    assert name in served.fs.listxattr(served.req, node)
    served.fs.removexattr(served.req, node, name)
    with pytest.raises(OSError) as caught:
        served.fs.getxattr(served.req, node, name)
    assert caught.value.errno == errno.ENODATA


def test_xattr_flags_reach_the_host(served: Served) -> None:
    (served.path / "a").touch()
    node = served.look("a")
    with pytest.raises(OSError) as caught:
        served.fs.setxattr(served.req, node, b"user.a", b"1", os.XATTR_REPLACE, False)
    assert caught.value.errno == errno.ENODATA
    served.fs.setxattr(served.req, node, b"user.a", b"1", os.XATTR_CREATE, False)
    with pytest.raises(FileExistsError):
        served.fs.setxattr(served.req, node, b"user.a", b"1", os.XATTR_CREATE, False)


@pytest.mark.needs("root")
def test_xattr_of_a_symlink_is_its_own(served: Served) -> None:
    (served.path / "a").touch()
    (served.path / "l").symlink_to("a")
    served.fs.setxattr(served.req, served.look("l"), b"trusted.a", b"1", 0, False)
    assert os.listxattr(served.path / "l", follow_symlinks=False) == ["trusted.a"]
    assert os.listxattr(served.path / "a") == []


@pytest.mark.needs("root")
def test_trusted_xattrs_are_listed_for_root_only(served: Served) -> None:
    (served.path / "a").touch()
    os.setxattr(served.path / "a", "trusted.a", b"1")
    node = served.look("a")
    assert served.fs.listxattr(served.req, node) == [b"trusted.a"]
    assert served.fs.listxattr(Request(uid=65534), node) == []


def acl(mode: int) -> bytes:
    """user::rw-, user 4242:rwx, group::r-x, mask::rwx, other::mode."""
    entries = [(1, 6, 0xFFFFFFFF), (2, 7, 4242), (4, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, mode, 0xFFFFFFFF)]
    pack = b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, perm, who in entries
    )
    return (2).to_bytes(4, "little") + pack


def test_acl_is_set_on_the_host(served: Served) -> None:
    (served.path / "a").touch()
    served.fs.setxattr(served.req, served.look("a"), b"system.posix_acl_access", acl(0), 0, False)
    assert os.getxattr(served.path / "a", "system.posix_acl_access") == acl(0)


@pytest.mark.needs("root")
@pytest.mark.parametrize(("kill", "left"), [(True, 0), (False, 0o2000)])
def test_acl_of_a_stranger_clears_setgid(served: Served, kill: bool, left: int) -> None:
    (served.path / "a").touch()
    (served.path / "a").chmod(0o2755)
    served.fs.setxattr(served.req, served.look("a"), b"system.posix_acl_access", acl(0), 0, kill)
    assert (served.path / "a").stat().st_mode & 0o2000 == left


def test_default_acl_takes_the_place_of_the_umask(served: Served) -> None:
    os.setxattr(served.path, "system.posix_acl_default", acl(0))
    served.fs.mkdir(served.req, 1, b"d", 0o777, 0o077)
    assert (served.path / "d").stat().st_mode & 0o777 == 0o670


def test_umask_applies_without_a_default_acl(served: Served) -> None:
    served.fs.mkdir(served.req, 1, b"d", 0o777, 0o027)
    assert (served.path / "d").stat().st_mode & 0o777 == 0o750


def test_without_xattr_there_are_no_such_operations(make: Any) -> None:
    served = make(xattr=False)
    assert not {"getxattr", "setxattr", "listxattr", "removexattr"} & served.fs.operations()
    assert not served.fs.features.posix_acl

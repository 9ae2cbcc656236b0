"""What the conformance suite does not ask of attributes: the injected clock, limits, who may change what."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import AttrChanges
from transfuse.testing.direct import DirectVolume

REQ = Request()
DAY_NS = 86_400 * 10**9


def fails(number):
    return pytest.raises(OSError, match=rf"^\[Errno {number}\]")


class Clock:
    def __init__(self):
        self.now = 1000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fs(clock):
    return MemoryFilesystem(clock=clock, check_permissions=True, root_mode=0o777)


@pytest.fixture
def volume(fs):
    return DirectVolume(fs)


def times(volume, path):
    st = volume.stat(path)
    return st.atime_ns, st.mtime_ns, st.ctime_ns


def test_time_comes_from_the_clock_only(volume, clock):
    volume.write_bytes("/f", b"")
    assert times(volume, "/f") == (1000, 1000, 1000)
    clock.now = 2000
    volume.chmod("/f", 0o600)
    assert times(volume, "/f") == (1000, 1000, 2000)
    clock.now = 3000
    volume.truncate("/f", 5)
    assert times(volume, "/f") == (1000, 3000, 3000)


def test_reading_sets_atime_once_after_a_change(volume, clock):
    volume.write_bytes("/f", b"x")
    clock.now = 2000
    volume.read_bytes("/f")
    clock.now = 3000
    volume.read_bytes("/f")
    assert times(volume, "/f")[0] == 2000


def test_listing_sets_atime_again_after_a_day(volume, clock):
    clock.now = 2000
    volume.listdir("/")
    clock.now = 2000 + DAY_NS
    volume.listdir("/")
    assert times(volume, "/")[0] == 2000 + DAY_NS


def test_birth_time_never_changes(fs, volume, clock):
    volume.write_bytes("/f", b"")
    clock.now = 9000
    volume.utime("/f", (1, 1))
    assert fs.statx(REQ, volume.stat("/f").ino, None, 0, 0).btime_ns == 1000


def test_setattr_changes_only_what_it_is_told(fs, volume):
    volume.write_bytes("/f", b"")
    before = volume.stat("/f")
    fs.setattr(REQ, before.ino, AttrChanges(atime_ns=5), None)
    assert volume.stat("/f")._replace(atime_ns=before.atime_ns) == before


def test_a_refused_setattr_changes_nothing(fs, volume):
    volume.write_bytes("/f", b"data")
    before = volume.stat("/f")
    with fails(errno.EACCES):
        fs.setattr(Request(uid=1001), before.ino, AttrChanges(size=0, mode=0o777, uid=1001), None)
    with fails(errno.EPERM):
        fs.setattr(Request(uid=1001), before.ino, AttrChanges(mode=0o777, atime_ns=1, uid=1001), None)
    assert volume.stat("/f") == before


def test_truncation_by_who_lacks_fsetid_clears_setuid(fs, volume):
    volume.write_bytes("/f", b"data")
    volume.chmod("/f", 0o6777)
    fs.setattr(Request(uid=1001), volume.stat("/f").ino, AttrChanges(size=1, kill_suidgid=True), None)
    assert volume.stat("/f").mode & 0o7777 == 0o777


@pytest.mark.parametrize(("uid", "left"), [(0, 0o777), (1001, 0o777), (1002, 0o6777)])
def test_changing_nothing_clears_setuid_for_the_owner_and_root(fs, volume, uid, left):
    volume.write_bytes("/f", b"data")
    volume.chown("/f", 1001, 1001)
    volume.chmod("/f", 0o6777)
    fs.setattr(Request(uid=uid, gid=uid), volume.stat("/f").ino, AttrChanges(), None)
    assert volume.stat("/f").mode & 0o7777 == left


def test_changing_nothing_of_a_directory_leaves_setgid(fs, volume):
    volume.mkdir("/d")
    volume.chmod("/d", 0o2777)
    fs.setattr(Request(), volume.stat("/d").ino, AttrChanges(), None)
    assert volume.stat("/d").mode & 0o7777 == 0o2777


def test_strangers_may_not_chmod_chown_or_set_times(volume):
    volume.write_bytes("/f", b"")
    with volume.identity(1001, 1001):
        for change in (
            lambda: volume.chmod("/f", 0o777),
            lambda: volume.chown("/f", 1001, -1),
            lambda: volume.utime("/f", (1, 1)),
        ):
            with fails(errno.EPERM):
                change()
        with fails(errno.EACCES):
            volume.utime("/f", None)


def test_an_owner_gives_the_file_to_a_group_of_theirs_only(volume):
    with volume.identity(1001, 1001, (1001, 1005)):
        volume.write_bytes("/f", b"")
        volume.chown("/f", -1, 1005)
        with fails(errno.EPERM):
            volume.chown("/f", -1, 1006)


def test_chown_drops_file_capabilities(volume):
    volume.write_bytes("/f", b"")
    volume.setxattr("/f", "security.capability", b"caps")
    volume.chown("/f", 1, 1)
    assert volume.listxattr("/f") == []


def test_a_value_beyond_64_kib_is_e2big(volume):
    volume.write_bytes("/f", b"")
    volume.setxattr("/f", "user.a", bytes(65_536))
    with fails(errno.E2BIG):
        volume.setxattr("/f", "user.a", bytes(65_537))


def test_all_values_together_are_bounded(volume):
    volume.write_bytes("/f", b"")
    with fails(errno.ENOSPC):
        for number in range(17):
            volume.setxattr("/f", f"user.{number}", bytes(65_536))
    assert len(volume.listxattr("/f")) == 15


def test_names_together_fit_the_largest_list(volume):
    volume.write_bytes("/f", b"")
    with fails(errno.ENOSPC):
        for number in range(1000):
            volume.setxattr("/f", "user." + f"{number:04}" * 60, b"")
    assert sum(len(name) + 1 for name in volume.listxattr("/f")) <= 65_536


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("user." + "n" * 251, errno.ERANGE),
        ("nonsense", errno.EOPNOTSUPP),
        ("system.other", errno.EOPNOTSUPP),
        ("user.", errno.EINVAL),
    ],
)
def test_names_that_can_not_be(volume, name, number):
    volume.write_bytes("/f", b"")
    with fails(number):
        volume.setxattr("/f", name, b"")


def test_user_attributes_are_for_files_and_directories_only(volume):
    volume.symlink("t", "/l")
    with fails(errno.EPERM):
        volume.setxattr("/l", "user.a", b"")
    volume.setxattr("/l", "trusted.a", b"")


def test_trusted_attributes_are_for_root_only(volume):
    volume.write_bytes("/f", b"", 0o666)
    volume.setxattr("/f", "trusted.a", b"")
    with volume.identity(1001, 1001):
        assert volume.listxattr("/f") == []
        with fails(errno.ENODATA):
            volume.getxattr("/f", "trusted.a")
        with fails(errno.EPERM):
            volume.setxattr("/f", "trusted.b", b"")


def test_an_acl_that_a_mode_can_say_is_not_kept(volume):
    volume.write_bytes("/f", b"", 0o600)
    acl = bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000100ffffffff")
    volume.setxattr("/f", "system.posix_acl_access", acl)
    assert volume.stat("/f").mode & 0o777 == 0o751 and volume.listxattr("/f") == []


def test_setting_an_acl_clears_setgid_when_told(fs, volume):
    volume.write_bytes("/f", b"")
    volume.chmod("/f", 0o2755)
    acl = bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000100ffffffff")
    fs.setxattr(REQ, volume.stat("/f").ino, b"system.posix_acl_access", acl, 0, True)
    assert not volume.stat("/f").mode & stat.S_ISGID


def test_a_default_acl_on_a_file_is_eacces(volume):
    volume.write_bytes("/f", b"")
    with fails(errno.EACCES):
        volume.setxattr(
            "/f",
            "system.posix_acl_default",
            bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000100ffffffff"),
        )


def test_ftruncate_needs_a_writable_handle_and_no_permission(volume):
    volume.write_bytes("/f", b"data", 0o444)
    with volume.open("/f", os.O_RDONLY) as file, fails(errno.EINVAL):
        file.truncate(0)
    with volume.identity(1001, 1001):
        with volume.open("/g", os.O_CREAT | os.O_RDWR, 0o444) as file:
            file.truncate(7)
        assert volume.stat("/g").size == 7

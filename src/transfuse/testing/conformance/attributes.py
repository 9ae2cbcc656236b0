"""Cases about attributes: modes, owners, times, extended attributes, ACLs, space."""

from __future__ import annotations

import errno
import os
import stat
import time

from transfuse.fs.acl import ACCESS_XATTR, DEFAULT_XATTR
from transfuse.testing.conformance.suite import Conformance, fails_with, needs
from transfuse.testing.volume import Volume

__all__ = ["AttributeCases"]

CREATE, REPLACE = 1, 2
DAY_NS = 86_400 * 10**9
ACL = bytes.fromhex("02000000 01000700ffffffff 02000600e9030000 04000500ffffffff 10000700ffffffff 20000000ffffffff")
"""u::rwx u:1001:rw- g::r-x m::rwx o::---"""


class AttributeCases(Conformance):
    """Operations on attributes."""

    def _file(self, volume: Volume, mode: int = 0o644) -> None:
        volume.write_bytes("/f", b"data")
        if stat.S_IMODE(volume.stat("/f").mode) != mode:
            volume.chmod("/f", mode)

    # -- modes and owners ----------------------------------------------------------------------------------------------

    @needs("create|mknod", "write", "setattr")
    def test_chmod_sets_the_mode(self, volume: Volume) -> None:
        self._file(volume)
        for mode in (0o600, 0o755, 0o4755, 0o2711, 0o000, 0o644):
            volume.chmod("/f", mode)
            assert volume.stat("/f").mode == stat.S_IFREG | mode

    @needs("mkdir", "setattr")
    def test_chmod_of_a_directory_with_sticky_bit(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.chmod("/d", 0o1777)
        assert volume.stat("/d").mode == stat.S_IFDIR | 0o1777

    @needs("create|mknod", "write", "setattr")
    def test_chmod_leaves_size_and_mtime(self, volume: Volume) -> None:
        self._file(volume)
        before = volume.stat("/f")
        volume.chmod("/f", 0o600)
        after = volume.stat("/f")
        assert (after.size, after.mtime_ns) == (before.size, before.mtime_ns)

    @needs("setattr")
    def test_chmod_of_a_missing_name_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.chmod("/missing", 0o600)

    @needs("create|mknod", "write", "setattr")
    def test_chown_sets_both_ids(self, volume: Volume) -> None:
        self._file(volume)
        volume.chown("/f", 1001, 1002)
        st = volume.stat("/f")
        assert (st.uid, st.gid) == (1001, 1002)

    @needs("create|mknod", "write", "setattr")
    def test_chown_of_one_id_leaves_the_other(self, volume: Volume) -> None:
        self._file(volume)
        volume.chown("/f", 1001, 1002)
        volume.chown("/f", -1, 1003)
        volume.chown("/f", 1004, -1)
        st = volume.stat("/f")
        assert (st.uid, st.gid) == (1004, 1003)

    @needs("create|mknod", "write", "setattr")
    def test_chown_clears_setuid_and_setgid(self, volume: Volume) -> None:
        self._file(volume, 0o6755)
        volume.chown("/f", 1001, 1001)
        assert stat.S_IMODE(volume.stat("/f").mode) == 0o755

    @needs("mkdir", "setattr", "create|mknod", "write")
    def test_a_setgid_directory_gives_its_group(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.chown("/d", 0, 1005)
        volume.chmod("/d", 0o2775)
        volume.write_bytes("/d/f", b"")
        assert volume.stat("/d/f").gid == 1005

    @needs("mkdir", "setattr")
    def test_a_directory_in_a_setgid_directory_is_setgid(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.chown("/d", 0, 1005)
        volume.chmod("/d", 0o2775)
        volume.mkdir("/d/e")
        st = volume.stat("/d/e")
        assert st.gid == 1005 and st.mode & stat.S_ISGID

    # -- times ---------------------------------------------------------------------------------------------------------

    @needs("create|mknod", "write", "setattr")
    def test_utime_sets_both_times(self, volume: Volume) -> None:
        self._file(volume)
        volume.utime("/f", (1_000_000_000, 2_000_000_000 * 10**9))
        st = volume.stat("/f")
        assert (st.atime_ns, st.mtime_ns) == (1_000_000_000, 2_000_000_000 * 10**9)

    @needs("create|mknod", "write", "setattr")
    def test_utime_keeps_nanoseconds(self, volume: Volume) -> None:
        self._file(volume)
        volume.utime("/f", (10**18 + 1, 10**18 + 999_999_999))
        st = volume.stat("/f")
        assert (st.atime_ns, st.mtime_ns) == (10**18 + 1, 10**18 + 999_999_999)

    @needs("create|mknod", "write", "setattr")
    def test_times_before_1970(self, volume: Volume) -> None:
        self._file(volume)
        volume.utime("/f", (-DAY_NS, -DAY_NS - 1))
        st = volume.stat("/f")
        assert (st.atime_ns, st.mtime_ns) == (-DAY_NS, -DAY_NS - 1)

    @needs("create|mknod", "write", "setattr")
    def test_utime_without_times_is_now(self, volume: Volume) -> None:
        self._file(volume)
        volume.utime("/f", (0, 0))
        before = time.time_ns() - 2 * 10**9  # clocks of filesystems may be coarse
        volume.utime("/f", None)
        st = volume.stat("/f")
        assert st.atime_ns >= before and st.mtime_ns >= before

    @needs("create|mknod", "write", "setattr")
    def test_writing_changes_mtime(self, volume: Volume) -> None:
        self._file(volume)
        volume.utime("/f", (0, 0))
        with volume.open("/f", os.O_WRONLY) as file:
            file.pwrite(b"x", 0)
        assert volume.stat("/f").mtime_ns > 0

    @needs("create|mknod", "write", "setattr")
    def test_truncating_changes_mtime(self, volume: Volume) -> None:
        self._file(volume)
        volume.utime("/f", (0, 0))
        volume.truncate("/f", 1)
        assert volume.stat("/f").mtime_ns > 0

    @needs("mkdir", "create|mknod", "write", "setattr", "unlink")
    def test_names_that_come_and_go_change_the_mtime_of_the_directory(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.utime("/d", (0, 0))
        volume.write_bytes("/d/f", b"")
        made = volume.stat("/d").mtime_ns
        volume.utime("/d", (0, 0))
        volume.unlink("/d/f")
        assert made > 0 and volume.stat("/d").mtime_ns > 0

    @needs("create|mknod", "write", "setattr")
    def test_chmod_changes_ctime(self, volume: Volume) -> None:
        self._file(volume)
        before = volume.stat("/f").ctime_ns
        time.sleep(0.02)  # more than a tick of a coarse clock
        volume.chmod("/f", 0o600)
        assert volume.stat("/f").ctime_ns > before

    @needs("create|mknod", "write", "link")
    def test_link_changes_ctime(self, volume: Volume) -> None:
        self._file(volume)
        before = volume.stat("/f").ctime_ns
        time.sleep(0.02)
        volume.link("/f", "/g")
        assert volume.stat("/f").ctime_ns > before

    # -- extended attributes -------------------------------------------------------------------------------------------

    @needs("create|mknod", "write", "setxattr", "getxattr")
    def test_an_attribute_is_set_and_got(self, volume: Volume) -> None:
        self._file(volume)
        volume.setxattr("/f", "user.a", b"value\0with nul")
        assert volume.getxattr("/f", "user.a") == b"value\0with nul"

    @needs("create|mknod", "write", "setxattr", "getxattr")
    def test_an_attribute_may_be_empty(self, volume: Volume) -> None:
        self._file(volume)
        volume.setxattr("/f", "user.a", b"")
        assert volume.getxattr("/f", "user.a") == b""

    @needs("create|mknod", "write", "setxattr", "getxattr")
    def test_an_attribute_is_replaced(self, volume: Volume) -> None:
        self._file(volume)
        volume.setxattr("/f", "user.a", b"a longer first value")
        volume.setxattr("/f", "user.a", b"second")
        assert volume.getxattr("/f", "user.a") == b"second"

    @needs("create|mknod", "write", "setxattr", "listxattr")
    def test_attributes_are_listed(self, volume: Volume) -> None:
        self._file(volume)
        for name in ("user.a", "user.b", "user.a.b"):
            volume.setxattr("/f", name, b"x")
        found = [name for name in volume.listxattr("/f") if name.startswith("user.")]
        assert sorted(found) == ["user.a", "user.a.b", "user.b"]

    @needs("create|mknod", "write", "setxattr", "removexattr")
    def test_a_removed_attribute_is_enodata(self, volume: Volume) -> None:
        self._file(volume)
        volume.setxattr("/f", "user.a", b"x")
        volume.removexattr("/f", "user.a")
        with fails_with(errno.ENODATA):
            volume.getxattr("/f", "user.a")

    @needs("create|mknod", "write", "removexattr")
    def test_removing_a_missing_attribute_is_enodata(self, volume: Volume) -> None:
        self._file(volume)
        with fails_with(errno.ENODATA):
            volume.removexattr("/f", "user.missing")

    @needs("create|mknod", "write", "setxattr")
    def test_xattr_create_of_an_existing_attribute_is_eexist(self, volume: Volume) -> None:
        self._file(volume)
        volume.setxattr("/f", "user.a", b"x")
        with fails_with(errno.EEXIST):
            volume.setxattr("/f", "user.a", b"y", CREATE)

    @needs("create|mknod", "write", "setxattr")
    def test_xattr_replace_of_a_missing_attribute_is_enodata(self, volume: Volume) -> None:
        self._file(volume)
        with fails_with(errno.ENODATA):
            volume.setxattr("/f", "user.a", b"y", REPLACE)

    @needs("mkdir", "setxattr", "getxattr")
    def test_directories_have_attributes(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.setxattr("/d", "user.a", b"x")
        assert volume.getxattr("/d", "user.a") == b"x"

    @needs("create|mknod", "write", "setxattr", "getxattr", "rename")
    def test_attributes_follow_a_rename(self, volume: Volume) -> None:
        self._file(volume)
        volume.setxattr("/f", "user.a", b"x")
        volume.rename("/f", "/g")
        assert volume.getxattr("/g", "user.a") == b"x"

    # -- access control lists ------------------------------------------------------------------------------------------

    def _acl(self, volume: Volume, path: str, name: bytes) -> bool:
        """Set the ACL; False if the filesystem has none."""
        try:
            volume.setxattr(path, name.decode(), ACL)
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP
            return False
        return True

    @needs("create|mknod", "write", "setxattr", "getxattr", "setattr")
    def test_an_access_acl_shows_in_the_mode(self, volume: Volume) -> None:
        self._file(volume)
        if self._acl(volume, "/f", ACCESS_XATTR):
            assert stat.S_IMODE(volume.stat("/f").mode) == 0o770

    @needs("create|mknod", "write", "setxattr", "getxattr", "setattr")
    def test_chmod_changes_the_mask_of_an_acl(self, volume: Volume) -> None:
        self._file(volume)
        if self._acl(volume, "/f", ACCESS_XATTR):
            volume.chmod("/f", 0o740)
            entries = volume.getxattr("/f", ACCESS_XATTR.decode())[4:]
            masks = [entries[at + 2] for at in range(0, len(entries), 8) if entries[at] == 0x10]
            assert masks == [4]

    @needs("mkdir", "setxattr", "getxattr")
    def test_a_default_acl_is_inherited(self, volume: Volume) -> None:
        volume.mkdir("/d")
        if self._acl(volume, "/d", DEFAULT_XATTR):
            volume.mkdir("/d/e", 0o777)
            assert volume.getxattr("/d/e", DEFAULT_XATTR.decode()) == ACL

    # -- space ---------------------------------------------------------------------------------------------------------

    @needs("statfs", "create|mknod", "write")
    def test_statfs_has_names_of_255_bytes(self, volume: Volume) -> None:
        assert volume.statfs("/").namelen >= 255

    @needs("create|mknod", "write")
    def test_blocks_count_what_is_stored(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"x" * 65_536)
        assert volume.stat("/f").blocks > 0

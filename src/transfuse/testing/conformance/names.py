"""Cases about names: making, removing, renaming, linking."""

from __future__ import annotations

import errno
import os
import stat

from transfuse.testing.conformance.suite import Conformance, fails_with, needs
from transfuse.testing.volume import Volume

__all__ = ["NameCases"]

NOREPLACE, EXCHANGE = 1, 2
MANY = 300
"""Names in the listing cases: more than fit in one reply of a page or two."""


class NameCases(Conformance):
    """Operations on names. Cases work in directories of their own making."""

    # -- directories ---------------------------------------------------------------------------------------------------

    @needs("mkdir")
    def test_mkdir_makes_an_empty_directory(self, volume: Volume) -> None:
        volume.mkdir("/d")
        assert stat.S_ISDIR(volume.stat("/d").mode) and volume.listdir("/d") == []

    @needs("mkdir")
    def test_mkdir_sets_the_mode(self, volume: Volume) -> None:
        volume.mkdir("/d", 0o750)
        assert volume.stat("/d").mode == stat.S_IFDIR | 0o750

    @needs("mkdir")
    def test_mkdir_of_an_existing_name_is_eexist(self, volume: Volume) -> None:
        volume.mkdir("/d")
        with fails_with(errno.EEXIST):
            volume.mkdir("/d")

    @needs("mkdir")
    def test_mkdir_in_a_missing_directory_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.mkdir("/missing/d")

    @needs("mkdir")
    def test_mkdir_adds_a_link_to_the_parent(self, volume: Volume) -> None:
        before = volume.stat("/").nlink
        volume.mkdir("/d")
        # 1 is how filesystems say that they do not count subdirectories
        assert volume.stat("/").nlink in (before + 1, 1)

    @needs("mkdir", "rmdir")
    def test_rmdir_removes_the_name(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.rmdir("/d")
        assert not volume.exists("/d")

    @needs("mkdir", "rmdir")
    def test_rmdir_of_a_directory_that_is_not_empty_is_enotempty(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.mkdir("/d/e")
        with fails_with(errno.ENOTEMPTY, errno.EEXIST):
            volume.rmdir("/d")

    @needs("rmdir")
    def test_rmdir_of_a_missing_name_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.rmdir("/missing")

    @needs("rmdir", "create|mknod", "write")
    def test_rmdir_of_a_file_is_enotdir(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"")
        with fails_with(errno.ENOTDIR):
            volume.rmdir("/f")

    @needs("mkdir", "rmdir")
    def test_a_name_is_free_again_after_rmdir(self, volume: Volume) -> None:
        for _ in range(3):
            volume.mkdir("/d")
            volume.rmdir("/d")
        assert not volume.exists("/d")

    @needs("mkdir", "readdir")
    def test_deep_directories(self, volume: Volume) -> None:
        path = ""
        for depth in range(40):
            path += f"/d{depth}"
            volume.mkdir(path)
        assert volume.listdir(path.rpartition("/")[0]) == ["d39"]

    # -- files ---------------------------------------------------------------------------------------------------------

    @needs("create|mknod", "write")
    def test_a_new_file_is_empty(self, volume: Volume) -> None:
        volume.open("/f", os.O_CREAT | os.O_WRONLY).close()
        st = volume.stat("/f")
        assert stat.S_ISREG(st.mode) and st.size == 0 and st.nlink == 1

    @needs("create|mknod", "write")
    def test_create_sets_the_mode(self, volume: Volume) -> None:
        volume.open("/f", os.O_CREAT | os.O_WRONLY, 0o640).close()
        assert volume.stat("/f").mode == stat.S_IFREG | 0o640

    @needs("create|mknod", "write")
    def test_a_file_made_without_write_permission_is_written_by_its_maker(self, volume: Volume) -> None:
        with volume.open("/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444) as file:
            assert file.pwrite(b"once", 0) == 4

    @needs("create|mknod", "write")
    def test_exclusive_create_of_an_existing_name_is_eexist(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"")
        with fails_with(errno.EEXIST):
            volume.open("/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)

    @needs("create|mknod", "write", "read")
    def test_create_of_an_existing_file_opens_it(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"kept")
        with volume.open("/f", os.O_CREAT | os.O_RDWR) as file:
            assert file.pread(10, 0) == b"kept"

    @needs("create|mknod", "write", "unlink")
    def test_unlink_removes_the_name(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"")
        volume.unlink("/f")
        assert not volume.exists("/f")

    @needs("unlink")
    def test_unlink_of_a_missing_name_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.unlink("/missing")

    @needs("unlink", "mkdir")
    def test_unlink_of_a_directory_is_eisdir(self, volume: Volume) -> None:
        volume.mkdir("/d")
        with fails_with(errno.EISDIR, errno.EPERM):
            volume.unlink("/d")

    @needs("create|mknod", "write", "unlink", "read")
    def test_an_unlinked_file_is_read_and_written_while_it_is_open(self, volume: Volume) -> None:
        with volume.open("/f", os.O_CREAT | os.O_RDWR) as file:
            file.pwrite(b"before", 0)
            volume.unlink("/f")
            file.pwrite(b"after", 6)
            assert file.pread(20, 0) == b"beforeafter"

    @needs("create|mknod", "write", "unlink")
    def test_an_unlinked_open_file_has_no_links(self, volume: Volume) -> None:
        with volume.open("/f", os.O_CREAT | os.O_RDWR) as file:
            file.pwrite(b"12345", 0)
            volume.unlink("/f")
            st = file.stat()
            assert st.nlink == 0 and st.size == 5

    @needs("create|mknod", "write", "unlink", "read")
    def test_a_new_file_of_an_unlinked_name_is_another(self, volume: Volume) -> None:
        with volume.open("/f", os.O_CREAT | os.O_RDWR) as old:
            old.pwrite(b"old", 0)
            volume.unlink("/f")
            volume.write_bytes("/f", b"new")
            assert old.pread(10, 0) == b"old" and volume.read_bytes("/f") == b"new"

    @needs("create|mknod", "write")
    def test_names_of_255_bytes_are_allowed(self, volume: Volume) -> None:
        volume.write_bytes("/" + "n" * 255, b"")
        assert volume.exists("/" + "n" * 255)

    @needs("create|mknod", "write")
    def test_names_of_256_bytes_are_enametoolong(self, volume: Volume) -> None:
        with fails_with(errno.ENAMETOOLONG):
            volume.open("/" + "n" * 256, os.O_CREAT | os.O_WRONLY)

    @needs("create|mknod", "write", "readdir")
    def test_names_that_are_not_utf_8(self, volume: Volume) -> None:
        name = os.fsdecode(b"\xff\xfe-\xc3\xa4")
        volume.write_bytes(f"/{name}", b"")
        assert name in volume.listdir("/")

    @needs("create|mknod", "write", "readdir")
    def test_names_are_case_sensitive_and_may_have_odd_characters(self, volume: Volume) -> None:
        names = ["a", "A", " ", "\n", "*", ".hidden", "-rf", "a b", '"', "ä"]
        volume.mkdir("/d")
        for name in names:
            volume.write_bytes(f"/d/{name}", name.encode())
        assert sorted(volume.listdir("/d")) == sorted(names)

    # -- listings under change -----------------------------------------------------------------------------------------

    @needs("create|mknod", "write", "readdir", "mkdir")
    def test_many_names_are_listed_once_each(self, volume: Volume) -> None:
        volume.mkdir("/d")
        want = sorted(f"file-with-a-longer-name-{number}" for number in range(MANY))
        for name in want:
            volume.write_bytes(f"/d/{name}", b"")
        assert sorted(volume.listdir("/d")) == want

    @needs("create|mknod", "write", "readdir", "mkdir", "unlink", "rmdir")
    def test_a_directory_is_emptied_by_what_its_listing_says(self, volume: Volume) -> None:
        volume.mkdir("/d")
        for number in range(MANY):
            volume.write_bytes(f"/d/{number}", b"")
        while names := volume.listdir("/d"):
            for name in names[:100]:
                volume.unlink(f"/d/{name}")
        volume.rmdir("/d")

    # -- rename --------------------------------------------------------------------------------------------------------

    @needs("rename", "create|mknod", "write", "read")
    def test_rename_moves_the_content(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"content")
        ino = volume.stat("/a").ino
        volume.rename("/a", "/b")
        assert not volume.exists("/a") and volume.read_bytes("/b") == b"content" and volume.stat("/b").ino == ino

    @needs("rename", "create|mknod", "write", "mkdir", "read")
    def test_rename_into_another_directory(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.write_bytes("/a", b"content")
        volume.rename("/a", "/d/b")
        assert volume.read_bytes("/d/b") == b"content" and not volume.exists("/a")

    @needs("rename", "create|mknod", "write", "read")
    def test_rename_replaces_a_file(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"new")
        volume.write_bytes("/b", b"old")
        volume.rename("/a", "/b")
        assert volume.read_bytes("/b") == b"new"

    @needs("rename", "create|mknod", "write", "read")
    def test_a_replaced_file_lives_while_it_is_open(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"new")
        volume.write_bytes("/b", b"old")
        with volume.open("/b", os.O_RDONLY) as file:
            volume.rename("/a", "/b")
            assert file.pread(10, 0) == b"old" and volume.read_bytes("/b") == b"new"

    @needs("rename", "create|mknod", "write", "read")
    def test_an_open_file_follows_its_rename(self, volume: Volume) -> None:
        with volume.open("/a", os.O_CREAT | os.O_RDWR) as file:
            volume.rename("/a", "/b")
            file.pwrite(b"through the old handle", 0)
        assert volume.read_bytes("/b") == b"through the old handle"

    @needs("rename", "create|mknod", "write", "mkdir", "read")
    def test_files_below_a_renamed_directory_have_new_paths(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.mkdir("/d/e")
        volume.write_bytes("/d/e/f", b"deep")
        volume.rename("/d", "/new")
        assert volume.read_bytes("/new/e/f") == b"deep" and not volume.exists("/d")

    @needs("rename", "create|mknod", "write", "mkdir")
    def test_a_file_open_below_a_renamed_directory_is_written(self, volume: Volume) -> None:
        volume.mkdir("/d")
        with volume.open("/d/f", os.O_CREAT | os.O_RDWR) as file:
            volume.rename("/d", "/new")
            file.pwrite(b"x", 0)
            assert file.stat().size == 1

    @needs("rename", "mkdir")
    def test_rename_of_a_directory_over_an_empty_one(self, volume: Volume) -> None:
        volume.mkdir("/a")
        volume.mkdir("/a/inside")
        volume.mkdir("/b")
        volume.rename("/a", "/b")
        assert volume.exists("/b/inside") and not volume.exists("/a")

    @needs("rename", "mkdir")
    def test_rename_over_a_directory_that_is_not_empty_is_enotempty(self, volume: Volume) -> None:
        volume.mkdir("/a")
        volume.mkdir("/b")
        volume.mkdir("/b/inside")
        with fails_with(errno.ENOTEMPTY, errno.EEXIST):
            volume.rename("/a", "/b")

    @needs("rename", "mkdir", "create|mknod", "write")
    def test_rename_of_a_file_over_a_directory_is_eisdir(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"")
        volume.mkdir("/b")
        with fails_with(errno.EISDIR):
            volume.rename("/a", "/b")

    @needs("rename", "mkdir", "create|mknod", "write")
    def test_rename_of_a_directory_over_a_file_is_enotdir(self, volume: Volume) -> None:
        volume.mkdir("/a")
        volume.write_bytes("/b", b"")
        with fails_with(errno.ENOTDIR):
            volume.rename("/a", "/b")

    @needs("rename", "mkdir")
    def test_rename_of_a_directory_into_itself_is_einval(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.mkdir("/d/e")
        with fails_with(errno.EINVAL):
            volume.rename("/d", "/d/e/f")

    @needs("rename")
    def test_rename_of_a_missing_name_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.rename("/missing", "/b")

    @needs("rename", "create|mknod", "write", "read")
    def test_rename_to_the_same_name_changes_nothing(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"kept")
        volume.rename("/a", "/a")
        assert volume.read_bytes("/a") == b"kept"

    @needs("rename", "create|mknod", "write", "read")
    def test_rename_noreplace_of_an_existing_name_is_eexist(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"a")
        volume.write_bytes("/b", b"b")
        with fails_with(errno.EEXIST, errno.EINVAL):
            volume.rename("/a", "/b", NOREPLACE)
        assert volume.read_bytes("/b") == b"b"

    @needs("rename", "create|mknod", "write", "mkdir", "read")
    def test_rename_exchange_swaps_a_file_and_a_directory(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"file")
        volume.mkdir("/d")
        volume.mkdir("/d/e")
        try:
            volume.rename("/a", "/d", EXCHANGE)
        except OSError as error:
            assert error.errno == errno.EINVAL  # how a filesystem says that it can't
            assert volume.read_bytes("/a") == b"file"
        else:
            assert volume.read_bytes("/d") == b"file" and volume.exists("/a/e")

    # -- links ---------------------------------------------------------------------------------------------------------

    @needs("link", "create|mknod", "write", "read")
    def test_a_hard_link_is_the_same_file(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"shared")
        volume.link("/a", "/b")
        assert volume.stat("/b").ino == volume.stat("/a").ino and volume.read_bytes("/b") == b"shared"

    @needs("link", "create|mknod", "write")
    def test_link_counts_go_up_and_down(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"")
        volume.link("/a", "/b")
        both = volume.stat("/a").nlink
        volume.unlink("/a")
        assert (both, volume.stat("/b").nlink) == (2, 1)

    @needs("link", "create|mknod", "write", "read")
    def test_what_is_written_by_one_name_is_read_by_the_other(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"first")
        volume.link("/a", "/b")
        with volume.open("/a", os.O_WRONLY) as file:
            file.pwrite(b"SECOND", 0)
        assert volume.read_bytes("/b") == b"SECOND"

    @needs("link", "create|mknod", "write", "unlink", "read")
    def test_a_file_lives_until_its_last_name_goes(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"data")
        volume.link("/a", "/b")
        volume.unlink("/a")
        assert volume.read_bytes("/b") == b"data"

    @needs("link", "rename", "create|mknod", "write")
    def test_rename_between_two_names_of_one_file_changes_nothing(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"")
        volume.link("/a", "/b")
        volume.rename("/a", "/b")
        assert volume.exists("/a") and volume.exists("/b")

    @needs("link", "mkdir")
    def test_link_of_a_directory_is_eperm(self, volume: Volume) -> None:
        volume.mkdir("/d")
        with fails_with(errno.EPERM):
            volume.link("/d", "/e")

    @needs("link", "create|mknod", "write")
    def test_link_to_an_existing_name_is_eexist(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"")
        volume.write_bytes("/b", b"")
        with fails_with(errno.EEXIST):
            volume.link("/a", "/b")

    @needs("symlink", "readlink")
    def test_a_symbolic_link_keeps_its_target(self, volume: Volume) -> None:
        for number, target in enumerate(("a", "../x/y", "/absolute", "t" * 1000, os.fsdecode(b"\xff"))):
            volume.symlink(target, f"/l{number}")
            assert volume.readlink(f"/l{number}") == target

    @needs("symlink")
    def test_symlink_to_an_existing_name_is_eexist(self, volume: Volume) -> None:
        volume.symlink("x", "/l")
        with fails_with(errno.EEXIST):
            volume.symlink("x", "/l")

    @needs("symlink", "mkdir", "create|mknod", "write", "read")
    def test_a_symbolic_link_on_the_way_is_followed(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.write_bytes("/d/f", b"found")
        volume.symlink("d", "/l")
        assert volume.read_bytes("/l/f") == b"found"

    @needs("symlink", "unlink", "mkdir")
    def test_unlink_of_a_symbolic_link_leaves_the_target(self, volume: Volume) -> None:
        volume.mkdir("/d")
        volume.symlink("d", "/l")
        volume.unlink("/l")
        assert volume.exists("/d") and not volume.exists("/l")

    # -- other kinds ---------------------------------------------------------------------------------------------------

    @needs("mknod")
    def test_mknod_of_a_fifo(self, volume: Volume) -> None:
        volume.mknod("/p", stat.S_IFIFO | 0o644)
        assert volume.stat("/p").mode == stat.S_IFIFO | 0o644

    @needs("mknod")
    def test_mknod_of_a_device_keeps_its_number(self, volume: Volume) -> None:
        volume.mknod("/n", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        st = volume.stat("/n")
        assert stat.S_ISCHR(st.mode) and st.rdev == os.makedev(1, 3)

    @needs("tmpfile", "write", "readdir")
    def test_a_tmpfile_has_no_name(self, volume: Volume) -> None:
        with volume.tmpfile("/") as file:
            file.pwrite(b"x", 0)
            assert file.stat().nlink == 0 and sorted(volume.listdir("/")) == sorted(self.expected())

    @needs("tmpfile", "write", "link", "read")
    def test_a_tmpfile_is_given_a_name(self, volume: Volume) -> None:
        with volume.tmpfile("/") as file:
            file.pwrite(b"now visible", 0)
            volume.link_open(file, "/f")
        assert volume.read_bytes("/f") == b"now visible" and volume.stat("/f").nlink == 1

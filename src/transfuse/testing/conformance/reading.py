"""Cases for every filesystem: looking, listing and reading, compared with what expected() says."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Mapping

from transfuse.fs.tree import Symlink
from transfuse.testing.conformance.suite import Conformance, content, fails_with, flatten, needs, target
from transfuse.testing.volume import Volume

__all__ = ["ReadOnly"]

MISSING = "no-such-name-here"


class ReadOnly(Conformance):
    """Looking and reading."""

    def _files(self) -> dict[str, bytes]:
        skipped = (Mapping, Symlink)
        return {path: content(value) for path, value in flatten(self.expected()) if not isinstance(value, skipped)}

    def _static_files(self) -> dict[str, bytes]:
        """Without callables, whose size is not known beforehand."""
        found = flatten(self.expected())
        return {path: content(value) for path, value in found if isinstance(value, (bytes, str))}

    def _dirs(self) -> dict[str, list[str]]:
        found = {"/": sorted(self.expected())}
        found.update((path, sorted(value)) for path, value in flatten(self.expected()) if isinstance(value, dict))
        return found

    def _links(self) -> dict[str, str]:
        return {path: target(value) for path, value in flatten(self.expected()) if isinstance(value, Symlink)}

    # -- the root ------------------------------------------------------------------------------------------------------

    def test_root_is_a_directory(self, volume: Volume) -> None:
        assert stat.S_ISDIR(volume.stat("/").mode)

    def test_root_has_a_link_count(self, volume: Volume) -> None:
        assert volume.stat("/").nlink >= 1

    @needs("statfs")
    def test_statfs_answers(self, volume: Volume) -> None:
        space = volume.statfs("/")
        assert space.frsize > 0 and space.namelen > 0 and space.bfree <= space.blocks

    # -- listings ------------------------------------------------------------------------------------------------------

    @needs("readdir")
    def test_listings_have_exactly_the_expected_names(self, volume: Volume) -> None:
        assert {path: sorted(volume.listdir(path)) for path in self._dirs()} == self._dirs()

    @needs("readdir")
    def test_listing_twice_gives_the_same(self, volume: Volume) -> None:
        assert volume.listdir("/") == volume.listdir("/")

    @needs("readdir")
    def test_listing_has_no_dot_entries(self, volume: Volume) -> None:
        for path in self._dirs():
            assert not {".", ".."} & set(volume.listdir(path))

    @needs("readdir")
    def test_listed_inode_numbers_are_those_of_stat(self, volume: Volume) -> None:
        for path in self._dirs():
            for name, ino, _ in volume.scandir(path):
                unknown = ino in (0, 0xFFFF_FFFF)
                assert unknown or ino == volume.stat(f"{path.rstrip('/')}/{name}").ino

    @needs("readdir")
    def test_listed_kinds_are_those_of_stat(self, volume: Volume) -> None:
        for path in self._dirs():
            for name, _, kind in volume.scandir(path):
                assert kind in (0, stat.S_IFMT(volume.stat(f"{path.rstrip('/')}/{name}").mode) >> 12)

    @needs("readdir")
    def test_listing_a_file_is_enotdir(self, volume: Volume) -> None:
        for path in self._files():
            with fails_with(errno.ENOTDIR):
                volume.scandir(path)

    @needs("readdir")
    def test_listing_a_missing_directory_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.scandir(f"/{MISSING}")

    @needs("readdir")
    def test_threads_list_at_the_same_time(self, volume: Volume) -> None:
        want = sorted(self.expected())
        found: list[list[str]] = []
        threads = [threading.Thread(target=lambda: found.append(sorted(volume.listdir("/")))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [want] * 6

    # -- names ---------------------------------------------------------------------------------------------------------

    def test_lookup_of_missing_name_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.stat(f"/{MISSING}")

    def test_lookup_of_missing_name_stays_enoent(self, volume: Volume) -> None:
        for _ in range(3):
            with fails_with(errno.ENOENT):
                volume.stat(f"/{MISSING}")

    def test_lookup_below_a_missing_directory_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.stat(f"/{MISSING}/{MISSING}")

    def test_lookup_below_a_file_is_enotdir(self, volume: Volume) -> None:
        for path in self._files():
            with fails_with(errno.ENOTDIR):
                volume.stat(f"{path}/{MISSING}")

    def test_a_very_long_name_is_refused(self, volume: Volume) -> None:
        with fails_with(errno.ENAMETOOLONG, errno.ENOENT):
            volume.stat("/" + "n" * 256)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def test_files_are_regular_files(self, volume: Volume) -> None:
        for path in self._files():
            assert stat.S_ISREG(volume.stat(path).mode)

    def test_directories_are_directories(self, volume: Volume) -> None:
        for path in self._dirs():
            assert stat.S_ISDIR(volume.stat(path).mode)

    def test_sizes_are_those_of_the_contents(self, volume: Volume) -> None:
        want = {path: len(data) for path, data in self._static_files().items()}
        assert {path: volume.stat(path).size for path in want} == want

    def test_stat_twice_gives_the_same(self, volume: Volume) -> None:
        for path in (*self._files(), *self._dirs()):
            first, second = volume.stat(path), volume.stat(path)
            assert (first.ino, first.mode, first.nlink, first.size) == (
                second.ino,
                second.mode,
                second.nlink,
                second.size,
            )

    def test_different_files_have_different_inode_numbers(self, volume: Volume) -> None:
        paths = [*self._files(), *self._dirs(), *self._links()]
        numbers = [volume.stat(path).ino for path in paths]
        assert len(set(numbers)) == len(paths)

    # -- contents ------------------------------------------------------------------------------------------------------

    @needs("read")
    def test_files_have_the_expected_contents(self, volume: Volume) -> None:
        assert {path: volume.read_bytes(path) for path in self._static_files()} == self._static_files()

    @needs("read")
    def test_callables_have_contents_although_their_size_is_unknown(self, volume: Volume) -> None:
        for path in self._files().keys() - self._static_files().keys():
            assert volume.read_bytes(path)

    @needs("read")
    def test_read_in_the_middle(self, volume: Volume) -> None:
        for path, data in self._static_files().items():
            with volume.open(path, os.O_RDONLY) as file:
                assert file.pread(7, 3) == data[3:10]

    @needs("read")
    def test_read_over_the_end_is_short(self, volume: Volume) -> None:
        for path, data in self._static_files().items():
            with volume.open(path, os.O_RDONLY) as file:
                assert file.pread(4096, max(0, len(data) - 2)) == data[max(0, len(data) - 2) :]

    @needs("read")
    def test_read_beyond_the_end_is_empty(self, volume: Volume) -> None:
        for path, data in self._static_files().items():
            with volume.open(path, os.O_RDONLY) as file:
                assert file.pread(10, len(data) + 4096) == b""

    @needs("read")
    def test_a_file_is_open_twice(self, volume: Volume) -> None:
        for path, data in self._static_files().items():
            with volume.open(path, os.O_RDONLY) as first, volume.open(path, os.O_RDONLY) as second:
                assert first.pread(5, 0) == second.pread(5, 0) == data[:5]

    @needs("read")
    def test_fstat_is_stat(self, volume: Volume) -> None:
        for path in self._static_files():
            with volume.open(path, os.O_RDONLY) as file:
                assert file.stat()[:7] == volume.stat(path)[:7]

    @needs("read")
    def test_open_of_a_missing_name_is_enoent(self, volume: Volume) -> None:
        with fails_with(errno.ENOENT):
            volume.open(f"/{MISSING}", os.O_RDONLY)

    @needs("read")
    def test_threads_read_at_the_same_time(self, volume: Volume) -> None:
        wrong: list[str] = []

        def read() -> None:
            for path, data in self._static_files().items():
                if volume.read_bytes(path) != data:
                    wrong.append(path)

        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert wrong == []

    # -- symbolic links ------------------------------------------------------------------------------------------------

    @needs("readlink")
    def test_links_have_the_expected_targets(self, volume: Volume) -> None:
        assert {path: volume.readlink(path) for path in self._links()} == self._links()

    @needs("readlink")
    def test_size_of_a_link_is_the_length_of_its_target(self, volume: Volume) -> None:
        for path, to in self._links().items():
            st = volume.stat(path)
            assert stat.S_ISLNK(st.mode) and st.size == len(os.fsencode(to))

    @needs("readlink")
    def test_readlink_of_a_file_is_einval(self, volume: Volume) -> None:
        for path in self._files():
            with fails_with(errno.EINVAL):
                volume.readlink(path)

    @needs("readlink")
    def test_open_of_a_link_itself_is_eloop(self, volume: Volume) -> None:
        for path in self._links():
            with fails_with(errno.ELOOP):
                volume.open(path, os.O_RDONLY)

    # -- extended attributes -------------------------------------------------------------------------------------------

    @needs("getxattr")
    def test_a_missing_attribute_is_enodata(self, volume: Volume) -> None:
        with fails_with(errno.ENODATA, errno.EOPNOTSUPP):
            volume.getxattr("/", "user.no-such-attribute")

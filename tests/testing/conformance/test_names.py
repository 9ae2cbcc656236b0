"""Every kind of case about names finds its defect."""

from __future__ import annotations

import errno

import pytest

from testing.conformance.defects import finds_fault
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing.conformance.names import NameCases


class RenameLeavesTheOldName(MemoryFilesystem):
    def rename(self, req, parent, name, newparent, newname, flags):
        inode = self._child(self._directory(parent), name).inode
        super().rename(req, parent, name, newparent, newname, flags)
        if not inode.is_dir:
            self._enter(self._directory(parent), name, inode)


class RenameIgnoresFlags(MemoryFilesystem):
    def rename(self, req, parent, name, newparent, newname, flags):
        super().rename(req, parent, name, newparent, newname, 0)


class LinksAreCopies(MemoryFilesystem):
    def link(self, req, nodeid, newparent, newname):
        return self.mknod(req, newparent, newname, self._inode(nodeid).mode, 0, 0)


class UnlinkFreesAtOnce(MemoryFilesystem):
    def unlink(self, req, parent, name):
        inode = self._child(self._directory(parent), name).inode
        super().unlink(req, parent, name)
        if inode.data is not None and not inode.nlink:
            inode.data.truncate(0)


class RemovesFullDirectories(MemoryFilesystem):
    def rmdir(self, req, parent, name):
        inode = self._child(self._directory(parent), name).inode
        for child in list(inode.children or ()):
            inode.remove(child)
        super().rmdir(req, parent, name)


class ModesAreFixed(MemoryFilesystem):
    def create(self, req, parent, name, mode, umask, flags):
        return super().create(req, parent, name, 0o600, umask, flags)

    def mkdir(self, req, parent, name, mode, umask):
        return super().mkdir(req, parent, name, 0o700, umask)


class ListingsRepeat(MemoryFilesystem):
    def readdir(self, req, nodeid, fh, offset):
        return super().readdir(req, nodeid, fh, offset - 1 if offset > 50 else offset)


class LinkTargetsAreCut(MemoryFilesystem):
    def symlink(self, req, parent, name, target):
        return super().symlink(req, parent, name, target[:100])


class CreateIsNeverExclusive(MemoryFilesystem):
    def lookup(self, req, parent, name):
        if name == b"f":
            raise FileNotFoundError(errno.ENOENT, "")
        return super().lookup(req, parent, name)

    def create(self, req, parent, name, mode, umask, flags):
        return super().create(req, parent, name, mode, umask, flags & ~0o200)


class NoLimitOfNames(MemoryFilesystem):
    def create(self, req, parent, name, mode, umask, flags):
        return super().create(req, parent, name[:255], mode, umask, flags)

    def lookup(self, req, parent, name):
        return super().lookup(req, parent, name[:255])


DEFECTS = [
    (RenameLeavesTheOldName, "test_rename_moves_the_content"),
    (RenameLeavesTheOldName, "test_rename_into_another_directory"),
    (RenameIgnoresFlags, "test_rename_noreplace_of_an_existing_name_is_eexist"),
    (RenameIgnoresFlags, "test_rename_exchange_swaps_a_file_and_a_directory"),
    (LinksAreCopies, "test_a_hard_link_is_the_same_file"),
    (LinksAreCopies, "test_link_counts_go_up_and_down"),
    (LinksAreCopies, "test_what_is_written_by_one_name_is_read_by_the_other"),
    (UnlinkFreesAtOnce, "test_an_unlinked_file_is_read_and_written_while_it_is_open"),
    (UnlinkFreesAtOnce, "test_an_unlinked_open_file_has_no_links"),
    (RemovesFullDirectories, "test_rmdir_of_a_directory_that_is_not_empty_is_enotempty"),
    (ModesAreFixed, "test_create_sets_the_mode"),
    (ModesAreFixed, "test_mkdir_sets_the_mode"),
    (ListingsRepeat, "test_many_names_are_listed_once_each"),
    (LinkTargetsAreCut, "test_a_symbolic_link_keeps_its_target"),
    (CreateIsNeverExclusive, "test_exclusive_create_of_an_existing_name_is_eexist"),
    (NoLimitOfNames, "test_names_of_256_bytes_are_enametoolong"),
]


@pytest.mark.parametrize(("defect", "case"), DEFECTS, ids=[f"{d.__name__}-{c}" for d, c in DEFECTS])
def test_the_case_finds_the_defect(tmp_path, defect, case):
    assert hasattr(NameCases, case) and finds_fault(case, defect(), tmp_path)


@pytest.mark.parametrize("case", sorted({case for _, case in DEFECTS}))
def test_the_case_passes_without_the_defect(tmp_path, case):
    assert not finds_fault(case, MemoryFilesystem(), tmp_path)

"""The reading cases find what a listing, a size or a content has wrong."""

from __future__ import annotations

import pytest

from testing.conformance.defects import finds_fault
from transfuse.fs.tree import Symlink, TreeFilesystem
from transfuse.fs.values import Attr, DirEntry
from transfuse.testing.conformance import ReadOnly

TREE = {"f": b"0123456789" * 100, "d": {"e": b"x"}, "l": Symlink("d/e")}


class Tree(ReadOnly):
    def expected(self):
        return TREE


class Sound(TreeFilesystem):
    def __init__(self):
        super().__init__(TREE)


class HidesAName(Sound):
    def readdir(self, req, nodeid, fh, offset):
        return list(super().readdir(req, nodeid, fh, offset))[1:]


class WrongNumbers(Sound):
    def readdir(self, req, nodeid, fh, offset):
        return [DirEntry(e.name, e.ino + 1, e.kind) for e in super().readdir(req, nodeid, fh, offset)]


class WrongKinds(Sound):
    def readdir(self, req, nodeid, fh, offset):
        return [DirEntry(e.name, e.ino, 1) for e in super().readdir(req, nodeid, fh, offset)]


class WrongSizes(Sound):
    def getattr(self, req, nodeid, fh):
        attr = super().getattr(req, nodeid, fh)
        return Attr(attr.ino, attr.mode, attr.size + 1)


class IgnoresTheOffset(Sound):
    def read(self, req, nodeid, fh, size, offset):
        return super().read(req, nodeid, fh, size, 0)


class IgnoresTheSize(Sound):
    def read(self, req, nodeid, fh, size, offset):
        return super().read(req, nodeid, fh, 5, offset)


class EverythingExists(Sound):
    def lookup(self, req, parent, name):
        entry = super().lookup(req, parent, name)
        return entry if entry.attr is not None else super().lookup(req, 1, b"f")


class OneNumberForAll(Sound):
    def getattr(self, req, nodeid, fh):
        attr = super().getattr(req, nodeid, fh)
        return Attr(7, attr.mode, attr.size, attr.nlink)


class CutTargets(Sound):
    def readlink(self, req, nodeid):
        return super().readlink(req, nodeid)[:-1]


DEFECTS = [
    (HidesAName, "test_listings_have_exactly_the_expected_names"),
    (HidesAName, "test_threads_list_at_the_same_time"),
    (WrongNumbers, "test_listed_inode_numbers_are_those_of_stat"),
    (WrongKinds, "test_listed_kinds_are_those_of_stat"),
    (WrongSizes, "test_sizes_are_those_of_the_contents"),
    (IgnoresTheOffset, "test_read_in_the_middle"),
    (IgnoresTheOffset, "test_read_over_the_end_is_short"),
    (IgnoresTheOffset, "test_read_beyond_the_end_is_empty"),
    (IgnoresTheSize, "test_read_in_the_middle"),
    (EverythingExists, "test_lookup_of_missing_name_is_enoent"),
    (EverythingExists, "test_lookup_of_missing_name_stays_enoent"),
    (EverythingExists, "test_open_of_a_missing_name_is_enoent"),
    (OneNumberForAll, "test_different_files_have_different_inode_numbers"),
    (CutTargets, "test_links_have_the_expected_targets"),
]


@pytest.mark.parametrize(("defect", "case"), DEFECTS, ids=[f"{d.__name__}-{c}" for d, c in DEFECTS])
def test_the_case_finds_the_defect(tmp_path, defect, case):
    assert finds_fault(case, defect(), tmp_path, Tree)


@pytest.mark.parametrize("case", sorted({case for _, case in DEFECTS}))
def test_the_case_passes_without_the_defect(tmp_path, case):
    assert not finds_fault(case, Sound(), tmp_path, Tree)

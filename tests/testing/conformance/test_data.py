"""Every kind of case about contents finds its defect."""

from __future__ import annotations

import pytest

from testing.conformance.defects import finds_fault
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing.conformance import data
from transfuse.testing.conformance.data import DataCases, pattern


class ReadsAreShort(MemoryFilesystem):
    def read(self, req, nodeid, fh, size, offset):
        return super().read(req, nodeid, fh, min(size, 4096), offset)


class WritesIgnoreTheOffset(MemoryFilesystem):
    def write(self, req, nodeid, fh, data, offset, flags):
        return super().write(req, nodeid, fh, data, 0, flags)


class AppendIsIgnored(MemoryFilesystem):
    def open(self, req, nodeid, flags):
        return super().open(req, nodeid, flags & ~0o2000)


class TruncIsIgnored(MemoryFilesystem):
    def open(self, req, nodeid, flags):
        return super().open(req, nodeid, flags & ~0o1000)


class CutDataComesBack(MemoryFilesystem):
    def _truncate(self, inode, size):
        inode.data.size = size


class PunchesNothing(MemoryFilesystem):
    def fallocate(self, req, nodeid, fh, mode, offset, length):
        if not mode & 2:
            super().fallocate(req, nodeid, fh, mode, offset, length)


class LocksAreGiven(MemoryFilesystem):
    def setlk(self, req, nodeid, fh, owner, lock, wait):
        pass

    def flock(self, req, nodeid, fh, owner, kind, wait):
        pass


class LocksAreKept(MemoryFilesystem):
    def flush(self, req, nodeid, fh, lock_owner):
        pass

    def release(self, req, nodeid, fh, flags, lock_owner, flock_unlock):
        self._handles.get(fh).lock_owners = None
        super().release(req, nodeid, fh, flags, lock_owner, False)


class HandlesAllowEverything(MemoryFilesystem):
    def open(self, req, nodeid, flags):
        return super().open(req, nodeid, flags & ~3 | 2)


class CopiesFromTheStart(MemoryFilesystem):
    def copy_file_range(self, req, nodeid_in, fh_in, offset_in, nodeid_out, fh_out, offset_out, length, flags):
        return super().copy_file_range(req, nodeid_in, fh_in, 0, nodeid_out, fh_out, offset_out, length, flags)


class AllData(MemoryFilesystem):
    def lseek(self, req, nodeid, fh, offset, whence):
        return offset


DEFECTS = [
    (ReadsAreShort, "test_a_read_of_one_mib_is_whole"),
    (WritesIgnoreTheOffset, "test_overwriting_the_middle"),
    (WritesIgnoreTheOffset, "test_writing_beyond_the_end_leaves_zeros"),
    (WritesIgnoreTheOffset, "test_threads_write_different_parts_of_a_file"),
    (AppendIsIgnored, "test_appending_goes_to_the_end"),
    (TruncIsIgnored, "test_opening_with_o_trunc_empties_the_file"),
    (CutDataComesBack, "test_what_was_cut_does_not_come_back"),
    (PunchesNothing, "test_a_punched_hole_reads_as_zeros"),
    (LocksAreGiven, "test_an_exclusive_lock_keeps_others_out"),
    (LocksAreGiven, "test_the_lock_in_the_way_is_shown"),
    (LocksAreGiven, "test_waiting_for_a_lock_ends_when_it_is_free"),
    (LocksAreGiven, "test_an_exclusive_flock_keeps_others_out"),
    (LocksAreKept, "test_closing_drops_the_locks"),
    (LocksAreKept, "test_closing_drops_the_flock"),
    (HandlesAllowEverything, "test_writing_to_a_file_opened_for_reading_is_ebadf"),
    (HandlesAllowEverything, "test_reading_a_file_opened_for_writing_is_ebadf"),
    (CopiesFromTheStart, "test_copy_between_files"),
    (AllData, "test_data_and_holes_are_found"),
]


@pytest.mark.parametrize(("defect", "case"), DEFECTS, ids=[f"{d.__name__}-{c}" for d, c in DEFECTS])
def test_the_case_finds_the_defect(tmp_path, defect, case, monkeypatch):
    monkeypatch.setattr(data, "RELEASE_S", 0.2)
    assert hasattr(DataCases, case) and finds_fault(case, defect(), tmp_path)


@pytest.mark.parametrize("case", sorted({case for _, case in DEFECTS}))
def test_the_case_passes_without_the_defect(tmp_path, case):
    assert not finds_fault(case, MemoryFilesystem(), tmp_path)


def test_the_pattern_differs_everywhere():
    assert len({pattern(4096)[at : at + 4] for at in range(0, 4096, 4)}) == 1024 and len(pattern(17)) == 17

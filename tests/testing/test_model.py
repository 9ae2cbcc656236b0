"""The random comparison finds what differs: each defect planted here must be found."""

from __future__ import annotations

import errno
import random

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing.direct import DirectVolume
from transfuse.testing.model import ALL_OPERATIONS, Difference, RandomOperations


class LosesWrites(MemoryFilesystem):
    def write(self, req, nodeid, fh, data, offset, flags):
        return super().write(req, nodeid, fh, bytes(data)[:-1] + b"?", offset, flags)


class ForgetsLinks(MemoryFilesystem):
    def link(self, req, nodeid, newparent, newname):
        entry = super().link(req, nodeid, newparent, newname)
        self._inodes[nodeid].nlink -= 1
        return entry


class WrongErrno(MemoryFilesystem):
    def rmdir(self, req, parent, name):
        try:
            super().rmdir(req, parent, name)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise OSError(errno.EBUSY, "wrong") from error
            raise


class KeepsSetuid(MemoryFilesystem):
    def _kill_suidgid(self, req, inode):
        pass


class HidesAName(MemoryFilesystem):
    def readdir(self, req, nodeid, fh, offset):
        return (entry for entry in super().readdir(req, nodeid, fh, offset) if entry.name != b"dd")


def compare(trial, seed, steps=5000):
    runner = RandomOperations(DirectVolume(MemoryFilesystem()), DirectVolume(trial), random.Random(seed))
    runner.run(steps)
    return runner


def test_two_of_the_same_agree(seed):
    runner = compare(MemoryFilesystem(), seed)
    assert runner.steps == 5000 and len(runner.outcomes) >= len(ALL_OPERATIONS) - 2


@pytest.mark.parametrize("defect", [LosesWrites, ForgetsLinks, WrongErrno, KeepsSetuid, HidesAName])
def test_a_defect_is_found(seed, defect):
    with pytest.raises(Difference, match=r"step \d+"):
        compare(defect(), seed, steps=30_000)


def test_a_seed_repeats_a_run():
    first, second = compare(MemoryFilesystem(), 5, 1000), compare(MemoryFilesystem(), 5, 1000)
    assert first.outcomes == second.outcomes and first.log == second.log


def test_a_difference_says_what_was_done_last(seed):
    with pytest.raises(Difference) as caught:
        compare(HidesAName(), seed, steps=30_000)
    assert str(caught.value).count("\n") >= 10

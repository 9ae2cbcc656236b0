from __future__ import annotations

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing.conformance import ReadWrite
from transfuse.testing.conformance.suite import flatten
from transfuse.testing.direct import DirectVolume


def test_the_suite_has_more_than_a_hundred_cases():
    assert sum(name.startswith("test_") for name in dir(ReadWrite)) > 100


def test_populate_makes_what_is_expected():
    suite, volume = ReadWrite(), DirectVolume(MemoryFilesystem())
    suite.populate(volume)
    assert all(volume.exists(path) for path, _ in flatten(suite.expected()))

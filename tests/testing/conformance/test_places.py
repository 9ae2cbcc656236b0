from __future__ import annotations

import os

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing.conformance.places import TRANSPORTS, place, why_not


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_filesystem_is_used_over_every_transport(tmp_path, transport):
    if (reason := why_not(transport)) is not None:
        pytest.skip(reason)
    with place(transport, MemoryFilesystem(), tmp_path) as found:
        found.volume.write_bytes("/f", b"hello")
        assert found.volume.read_bytes("/f") == b"hello"
        assert found.ledger.requests > 0
    assert found.ledger.problems(lookups=transport != "dev_fuse") == [] and found.bugs == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("transport", ["memory", "stream"])
def test_bugs_of_the_filesystem_are_kept(tmp_path, transport):
    class Broken(MemoryFilesystem):
        def mkdir(self, req, parent, name, mode, umask):
            raise ZeroDivisionError

    with place(transport, Broken(), tmp_path) as found, pytest.raises(OSError):
        found.volume.mkdir("/d")
    assert [type(bug) for bug in found.bugs] == [ZeroDivisionError]


def test_the_umask_is_put_back(tmp_path):
    before = os.umask(0o027)
    try:
        with place("direct", MemoryFilesystem(), tmp_path):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_what_needs_no_privilege_is_always_possible():
    assert [why_not(name) for name in ("direct", "memory", "stream")] == [None] * 3

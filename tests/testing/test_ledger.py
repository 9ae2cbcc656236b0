from __future__ import annotations

import asyncio

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry, Features, Opened
from transfuse.testing.direct import DirectVolume
from transfuse.testing.ledger import Ledger

REQ = Request()


@pytest.fixture
def ledger():
    fs = MemoryFilesystem()
    DirectVolume(fs).write_bytes("/f", b"x")
    return Ledger(fs)


def test_use_that_ends_leaves_nothing(ledger):
    volume = DirectVolume(ledger)
    volume.mkdir("/d")
    volume.rename("/f", "/d/f")
    volume.read_bytes("/d/f")
    volume.listdir("/d")
    assert ledger.problems() == [] and ledger.requests > 10


def test_a_lookup_that_is_not_given_back_is_reported(ledger):
    entry = ledger.lookup(REQ, 1, b"f")
    assert ledger.problems() == [f"1 lookups of nodeid {entry.nodeid} are not given back"]
    assert ledger.held_lookups() == 1
    assert ledger.problems(lookups=False) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda fs: fs.mkdir(REQ, 1, b"x", 0o755, 0),
        lambda fs: fs.symlink(REQ, 1, b"x", b"t"),
        lambda fs: fs.mknod(REQ, 1, b"x", 0o100644, 0, 0),
        lambda fs: fs.create(REQ, 1, b"x", 0o644, 0, 2),
        lambda fs: fs.tmpfile(REQ, 1, 0o644, 0, 2),
    ],
)
def test_making_counts_as_a_lookup(ledger, make):
    make(ledger)
    assert "1 lookups of nodeid 3 are not given back" in ledger.problems()


def test_files_of_a_peer_that_sends_no_open_are_never_released():
    fs = MemoryFilesystem()
    fs.features = Features(no_open=True)
    ledger = Ledger(fs)
    entry, _ = ledger.create(REQ, 1, b"x", 0o644, 0, 2)
    ledger.forget(REQ, entry.nodeid, 1)
    assert ledger.problems() == [] and ledger.open_handles() == 0


def test_an_open_handle_is_reported(ledger):
    entry = ledger.lookup(REQ, 1, b"f")
    opened = ledger.open(REQ, entry.nodeid, 0)
    directory = ledger.opendir(REQ, 1, 0)
    ledger.forget(REQ, entry.nodeid, 1)
    assert ledger.open_handles() == 2
    assert ledger.problems() == [
        f"file handle {opened.fh} of nodeid {entry.nodeid} is still open",
        f"directory handle {directory.fh} of nodeid 1 is still open",
    ]


def test_use_after_forget_is_reported(ledger):
    entry = ledger.lookup(REQ, 1, b"f")
    ledger.forget(REQ, entry.nodeid, 1)
    ledger.getattr(REQ, entry.nodeid, None)
    assert ledger.problems() == [f"getattr of nodeid {entry.nodeid}, of which the peer holds no lookup"]


def test_forgetting_more_than_was_given_is_reported(ledger):
    entry = ledger.lookup(REQ, 1, b"f")
    ledger.forget(REQ, entry.nodeid, 2)
    assert ledger.problems() == [f"forget of 2 lookups of nodeid {entry.nodeid}: 1 were given"]


def test_releasing_twice_is_reported(ledger):
    entry = ledger.lookup(REQ, 1, b"f")
    opened = ledger.open(REQ, entry.nodeid, 0)
    ledger.release(REQ, entry.nodeid, opened.fh, 0, 0, False)
    with pytest.raises(OSError):
        ledger.release(REQ, entry.nodeid, opened.fh, 0, 0, False)
    assert any("which is not open" in problem for problem in ledger.problems())


def test_a_request_under_way_is_reported():
    class Looking(Filesystem):
        def getattr(self, req, nodeid, fh):
            seen.extend(ledger.problems())
            return Attr.directory(1)

    seen: list[str] = []
    ledger = Ledger(Looking())
    ledger.getattr(REQ, 1, None)
    assert seen == ["1 × getattr is not answered"] and ledger.problems() == []


def test_a_method_that_fails_is_answered(ledger):
    with pytest.raises(FileNotFoundError):
        ledger.lookup(REQ, 1, b"missing")
    assert ledger.problems() == []


def test_negative_entries_and_the_root_count_for_nothing():
    class Some(Filesystem):
        def lookup(self, req, parent, name):
            return Entry.negative() if name == b"n" else Entry(Attr.directory(1))

        def forget(self, req, nodeid, nlookup):
            pass

    ledger = Ledger(Some())
    ledger.lookup(REQ, 1, b"n")
    ledger.lookup(REQ, 1, b".")
    assert ledger.problems() == []


def test_coroutines_are_counted_when_they_end():
    class Later(Filesystem):
        async def lookup(self, req, parent, name):
            await asyncio.sleep(0)
            return Entry(Attr.file(5))

        async def open(self, req, nodeid, flags):
            return Opened(3)

        def forget(self, req, nodeid, nlookup):
            pass

        def release(self, req, nodeid, fh, flags, lock_owner, flock_unlock):
            pass

    ledger = Ledger(Later())

    async def use():
        await ledger.lookup(REQ, 1, b"f")
        await ledger.open(REQ, 5, 0)

    asyncio.run(use())
    assert ledger.problems() == ["file handle 3 of nodeid 5 is still open", "1 lookups of nodeid 5 are not given back"]

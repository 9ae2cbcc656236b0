"""One filesystem, several clients: each one's accounts are its own, and are settled however it leaves."""

from __future__ import annotations

import asyncio
import errno
import threading
from types import SimpleNamespace

import pytest

from transfuse.executor import ThreadedExecutor
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs import shared as module
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.shared import Shared, View
from transfuse.fs.values import ROOT_ID, Attr, AttrChanges, Entry, Features, Lock, Opened
from transfuse.testing import conformance
from transfuse.testing.ledger import Ledger

REQ = Request()
WRITE = Lock(1, 0, 9)
FREE = Lock(2, 0, Lock.MAX_END)


class TestViewConforms(conformance.ReadWrite):
    transports = ("direct", "memory", "stream")

    def make_filesystem(self, tmp_path):
        return Shared(MemoryFilesystem(size_bytes=64 << 20)).view()


def up(view: View, order: str = "<", notify: object = None) -> View:
    view.mounted(SimpleNamespace(order=order, features=Features(), notify=notify))
    return view


@pytest.fixture
def memory() -> MemoryFilesystem:
    return MemoryFilesystem()


@pytest.fixture
def ledger(memory: MemoryFilesystem) -> Ledger:
    return Ledger(memory)


@pytest.fixture
def two(ledger: Ledger) -> tuple[View, View]:
    shared = Shared(ledger)
    return up(shared.view()), up(shared.view())


def make(view: View, name: bytes = b"f") -> tuple[int, int]:
    """A new file of this client: its nodeid and handle."""
    entry, opened = view.create(REQ, ROOT_ID, name, 0o100644, 0, 2)
    return entry.nodeid, opened.fh


def refused(call: object, *args: object) -> str:
    with pytest.raises(OSError) as caught:
        call(*args)  # type: ignore[operator]
    return errno.errorcode[caught.value.errno or 0]


# -- what one client has is there for the others, and stays -----------------------------------------------------------


def test_clients_see_each_others_files(two: tuple[View, View]) -> None:
    a, b = two
    nodeid, fh = make(a)
    a.write(REQ, nodeid, fh, b"from a", 0, 0)
    found = b.lookup(REQ, ROOT_ID, b"f")
    assert found.nodeid == nodeid
    opened = b.open(REQ, nodeid, 0)
    assert bytes(b.read(REQ, nodeid, opened.fh, 99, 0)) == b"from a"  # type: ignore[arg-type]


def test_one_that_leaves_takes_nothing_of_the_others_along(two: tuple[View, View], ledger: Ledger) -> None:
    a, b = two
    nodeid, fh = make(a)
    other = b.open(REQ, b.lookup(REQ, ROOT_ID, b"f").nodeid, 2).fh
    a.unlink(REQ, ROOT_ID, b"f")
    a.destroyed()
    b.write(REQ, nodeid, other, b"still here", 0, 0)
    assert b.getattr(REQ, nodeid, other).size == 10
    assert ledger.lookups[nodeid] == 1 and ledger.open_handles() == 1
    assert refused(a.read, REQ, nodeid, fh, 1, 0) == "EBADF"


def test_all_that_a_client_had_is_given_back(two: tuple[View, View], ledger: Ledger, memory: MemoryFilesystem) -> None:
    a, b = two
    nodeid, fh = make(a)
    a.open(REQ, nodeid, 0)
    a.opendir(REQ, ROOT_ID, 0)
    a.mkdir(REQ, ROOT_ID, b"d", 0o755, 0)
    a.symlink(REQ, ROOT_ID, b"l", b"f")
    a.mknod(REQ, ROOT_ID, b"n", 0o100644, 0, 0)
    a.link(REQ, nodeid, ROOT_ID, b"g")
    a.lookup(REQ, ROOT_ID, b"f")
    a.tmpfile(REQ, ROOT_ID, 0o100600, 0, 2)
    a.setlk(REQ, nodeid, fh, 5, WRITE, False)
    a.flock(REQ, nodeid, fh, 6, 1, False)
    inodes = memory.inode_count()
    a.destroyed()
    assert ledger.problems() == []
    assert (memory.open_count(), memory.lookup_count(), len(memory._locks)) == (0, 0, 0)
    assert memory.inode_count() == inodes - 1  # the one that never had a name
    assert b.lookup(REQ, ROOT_ID, b"d").attr is not None


def test_the_filesystem_sees_one_connection_from_the_first_to_the_last() -> None:
    seen: list[object] = []

    class Life(MemoryFilesystem):
        def mounted(self, connection):
            super().mounted(connection)
            seen.append(connection.notify)

        def destroyed(self):
            super().destroyed()
            seen.append("end")

    shared = Shared(Life())
    a, b = up(shared.view(), notify=object()), up(shared.view())
    a.destroyed()
    assert seen == [None]
    b.destroyed()
    assert seen == [None, "end"]
    assert shared.wait_empty(0)
    up(shared.view()).destroyed()
    assert seen == [None, "end", None, "end"]


def test_a_client_of_another_byte_order_must_wait_until_the_others_are_gone(ledger: Ledger) -> None:
    shared = Shared(ledger)
    a = up(shared.view())
    assert refused(up, shared.view(), ">") == "EPROTO"
    a.destroyed()
    up(shared.view(), ">").destroyed()


def test_writes_are_not_gathered_by_several_clients() -> None:
    inner = MemoryFilesystem(features=Features(writeback_cache=True, entry_timeout_s=7))
    view = Shared(inner).view()
    assert (view.features.writeback_cache, view.features.entry_timeout_s) == (False, 7)
    assert inner.features.writeback_cache


# -- accounts ---------------------------------------------------------------------------------------------------------


def test_no_client_gives_back_more_than_it_has(two: tuple[View, View], ledger: Ledger) -> None:
    a, b = two
    nodeid, _ = make(a)
    b.lookup(REQ, ROOT_ID, b"f")
    b.forget(REQ, nodeid, 1000)
    b.forget(REQ, nodeid, 1)
    b.forget(REQ, 999_999, 1)
    assert ledger.lookups[nodeid] == 1 and ledger.mistakes == []


def test_no_client_closes_what_another_has_open(two: tuple[View, View], ledger: Ledger) -> None:
    a, b = two
    nodeid, fh = make(a)
    assert refused(b.release, REQ, nodeid, fh, 0, 0, False) == "EBADF"
    assert refused(a.releasedir, REQ, nodeid, fh, 0) == "EBADF"
    a.release(REQ, nodeid, fh, 0, 0, False)
    assert refused(a.release, REQ, nodeid, fh, 0, 0, False) == "EBADF"
    assert ledger.open_handles() == 0 and ledger.mistakes == []


def test_a_filesystem_without_handles_is_released_as_often_as_it_was_opened() -> None:
    released: list[int] = []

    class Plain(Filesystem):
        def getattr(self, req, nodeid, fh):
            return Attr.directory(1) if nodeid == 1 else Attr.file(2)

        def lookup(self, req, parent, name):
            return Entry(Attr.file(2))

        def open(self, req, nodeid, flags):
            return Opened()

        def release(self, req, nodeid, fh, flags, lock_owner, flock_unlock):
            released.append(flags)

    view = up(Shared(Plain()).view())
    for _ in range(3):
        view.open(REQ, 2, 0o2000)
    view.release(REQ, 2, 0, 0o2000, 0, False)
    view.destroyed()
    assert released == [0o2000] * 3
    assert "forget" not in view.operations()


def test_open_files_of_one_client_are_bounded(two: tuple[View, View], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    a, b = two
    nodeid, fh = make(a)
    a.opendir(REQ, ROOT_ID, 0)
    for call in (a.open, a.opendir):
        assert refused(call, REQ, ROOT_ID, 0) == "ENFILE"
    assert refused(make, a, b"g") == "ENFILE"
    b.opendir(REQ, ROOT_ID, 0)
    a.release(REQ, nodeid, fh, 0, 0, False)
    a.opendir(REQ, ROOT_ID, 0)


def test_a_negative_entry_is_no_lookup(ledger: Ledger) -> None:
    class Negative(MemoryFilesystem):
        def lookup(self, req, parent, name):
            return Entry.negative()

    view = up(Shared(Negative()).view())
    assert view.lookup(REQ, ROOT_ID, b"x").attr is None
    assert view._lookups == {}


def test_what_comes_after_the_end_is_given_back_at_once(ledger: Ledger) -> None:
    shared = Shared(ledger)
    a, b = up(shared.view()), up(shared.view())
    nodeid, fh = make(b)
    a.destroyed()
    a.lookup(REQ, ROOT_ID, b"f")
    a.open(REQ, nodeid, 0)
    make(a, b"late")
    a.setlk(REQ, nodeid, fh, 5, WRITE, False)
    a.flock(REQ, nodeid, fh, 5, 1, False)
    assert (ledger.lookups.total(), ledger.open_handles()) == (1, 1)
    assert ledger.mistakes == []
    b.setlk(REQ, nodeid, fh, 5, WRITE, False)
    b.flock(REQ, nodeid, fh, 5, 1, False)


def test_accounts_are_settled_although_the_filesystem_fails(caplog: pytest.LogCaptureFixture) -> None:
    forgotten: list[int] = []

    class Failing(MemoryFilesystem):
        def release(self, req, nodeid, fh, flags, lock_owner, flock_unlock):
            raise OSError(errno.EIO, "late error")

        def releasedir(self, req, nodeid, fh, flags):
            raise ZeroDivisionError

        def forget(self, req, nodeid, nlookup):
            forgotten.append(nodeid)
            super().forget(req, nodeid, nlookup)

    shared = Shared(Failing())
    view = up(shared.view())
    view.opendir(REQ, ROOT_ID, 0)
    nodeid, _ = make(view)
    with pytest.raises(ZeroDivisionError):
        view.destroyed()
    assert forgotten == [nodeid] and shared.wait_empty(0)


# -- locks ------------------------------------------------------------------------------------------------------------


def test_the_same_number_from_two_clients_is_two_owners(two: tuple[View, View]) -> None:
    a, b = two
    nodeid, fh = make(a)
    other = b.open(REQ, b.lookup(REQ, ROOT_ID, b"f").nodeid, 2).fh
    a.setlk(REQ, nodeid, fh, 5, WRITE, False)
    assert refused(b.setlk, REQ, nodeid, other, 5, WRITE, False) == "EAGAIN"
    assert b.getlk(REQ, nodeid, other, 5, WRITE) is not None
    assert a.getlk(REQ, nodeid, fh, 5, WRITE) is None
    b.flush(REQ, nodeid, other, 5)
    assert refused(b.setlk, REQ, nodeid, other, 5, WRITE, False) == "EAGAIN"
    a.flush(REQ, nodeid, fh, 5)
    b.setlk(REQ, nodeid, other, 5, WRITE, False)


def test_locks_end_with_their_client(two: tuple[View, View]) -> None:
    a, b = two
    nodeid, fh = make(a)
    other = b.open(REQ, b.lookup(REQ, ROOT_ID, b"f").nodeid, 2).fh
    a.setlk(REQ, nodeid, fh, 5, WRITE, False)
    a.flock(REQ, nodeid, fh, 5, 1, False)
    assert refused(b.flock, REQ, nodeid, other, 5, 1, False) == "EAGAIN"
    a.destroyed()
    b.setlk(REQ, nodeid, other, 5, WRITE, False)
    b.flock(REQ, nodeid, other, 5, 1, False)


def test_a_flock_ends_with_its_release(two: tuple[View, View]) -> None:
    a, b = two
    nodeid, fh = make(a)
    other = b.open(REQ, b.lookup(REQ, ROOT_ID, b"f").nodeid, 2).fh
    a.flock(REQ, nodeid, fh, 5, 1, False)
    a.release(REQ, nodeid, fh, 0, 5, True)
    b.flock(REQ, nodeid, other, 5, 1, False)
    b.flock(REQ, nodeid, other, 5, 2, False)
    assert b._flocked == {}


def test_locked_files_are_bounded(two: tuple[View, View], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOCKED", 1)
    a, _ = two
    nodeid, fh = make(a)
    a.setlk(REQ, nodeid, fh, 5, WRITE, False)
    a.setlk(REQ, nodeid, fh, 5, Lock(0, 20, 29), False)
    assert refused(a.setlk, REQ, nodeid, fh, 6, Lock(1, 50, 59), False) == "ENOLCK"
    a.setlk(REQ, nodeid, fh, 5, FREE, False)
    a.setlk(REQ, nodeid, fh, 6, Lock(1, 50, 59), False)


def test_lock_owners_of_setattr_are_told_apart_too() -> None:
    seen: list[int | None] = []

    class Noting(MemoryFilesystem):
        def setattr(self, req, nodeid, changes, fh):
            seen.append(changes.lock_owner)
            return super().setattr(req, nodeid, changes, fh)

    shared = Shared(Noting())
    a, b = up(shared.view()), up(shared.view())
    for view in (a, b):
        view.setattr(REQ, ROOT_ID, AttrChanges(mode=0o755, lock_owner=5), None)
        view.setattr(REQ, ROOT_ID, AttrChanges(mode=0o755), None)
    assert seen[1] is seen[3] is None and len(set(seen)) == 3


# -- several threads, coroutines --------------------------------------------------------------------------------------


def test_threads_lose_no_account(two: tuple[View, View], ledger: Ledger) -> None:
    a, b = two
    nodeid, fh = make(a)

    def work(view: View) -> None:
        for _ in range(200):
            view.lookup(REQ, ROOT_ID, b"f")
            opened = view.open(REQ, nodeid, 0)
            view.release(REQ, nodeid, opened.fh, 0, 0, False)
            view.forget(REQ, nodeid, 1)

    threads = [threading.Thread(target=work, args=(view,)) for view in (a, b, a, b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    a.release(REQ, nodeid, fh, 0, 0, False)
    a.forget(REQ, nodeid, 1)
    assert ledger.problems() == []
    assert (a._lookups, a._open, a._opened, b._lookups, b._opened) == ({}, {}, 0, {}, 0)


class Async(MemoryFilesystem):
    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    async def open(self, req, nodeid, flags):  # type: ignore[override]
        await asyncio.sleep(0)
        return super().open(req, nodeid, flags)

    async def release(self, req, nodeid, fh, flags, lock_owner, flock_unlock):  # type: ignore[override]
        await asyncio.sleep(0.01)
        super().release(req, nodeid, fh, flags, lock_owner, flock_unlock)

    def destroyed(self):
        self.ended.set()


def test_coroutines_need_one_loop_for_all() -> None:
    with pytest.raises(TypeError, match=r"Async.open\(\) is a coroutine"):
        Shared(Async())


def test_coroutines_are_settled_on_that_loop() -> None:
    inner = Async()
    executor = ThreadedExecutor()
    try:
        shared = Shared(inner, executor.run_coroutine)
        view = up(shared.view())
        nodeid, _ = make(view)
        asyncio.run(view.open(REQ, nodeid, 0))  # type: ignore[arg-type]
        assert inner.open_count() == 2
        view.destroyed()
        assert shared.wait_empty(5) and inner.ended.is_set()
        assert (inner.open_count(), inner.lookup_count()) == (0, 0)
        asyncio.run(view.open(REQ, nodeid, 0))  # type: ignore[arg-type]
        for _ in range(500):
            if not inner.open_count():
                break
            threading.Event().wait(0.01)
        assert inner.open_count() == 0
    finally:
        executor.close()


def test_a_loop_that_takes_no_more_still_lets_the_client_go(caplog: pytest.LogCaptureFixture) -> None:
    inner = Async()

    def full(coroutine: object) -> None:
        coroutine.close()  # type: ignore[attr-defined]
        raise OSError(errno.EAGAIN, "too many")

    shared = Shared(inner, full)
    up(shared.view()).destroyed()
    assert shared.wait_empty(0) and inner.ended.is_set()
    assert "a client's accounts are left open" in caplog.text

"""Answers that come later: coroutines, locks that wait, and the interrupts that end them."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import Any

import pytest

from session.peers import Inline, Peer, Tree, eventually, undelivered
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Lock
from transfuse.session import server as module
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode

# -- coroutines


class Async(Tree):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    async def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:  # type: ignore[override]
        await asyncio.sleep(0)
        if nodeid == 99:
            raise FileNotFoundError(errno.ENOENT, "gone")
        if nodeid == 98:
            raise ZeroDivisionError
        return Attr.directory(nodeid)

    async def write(self, req: Request, nodeid: int, fh: int, data: Any, offset: int, flags: int) -> int:  # type: ignore[override]
        self.kept.append(data)
        await asyncio.sleep(0)
        return len(data)

    async def forget(self, req: Request, nodeid: int, nlookup: int) -> None:  # type: ignore[override]
        self.calls.append(("forget", nodeid, nlookup))


@pytest.mark.parametrize(("nodeid", "number"), [(1, 0), (99, errno.ENOENT), (98, errno.EIO)])
def test_coroutine_is_answered_later(nodeid: int, number: int) -> None:
    peer = Peer(Async())
    peer.tell(Opcode.GETATTR, w.GetattrIn(), nodeid=nodeid)
    assert peer.channel.wait().errno == number
    assert peer.session.inflight == {}
    assert len(peer.bugs) == (number == errno.EIO)


class Deferred(Inline):
    """Keeps coroutines until somebody runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Any] = []

    def run_coroutine(self, coroutine: Any) -> None:
        self.waiting.append(coroutine)


def test_coroutine_keeps_its_data_when_the_buffer_is_used_again() -> None:
    peer = Peer(Async())
    peer.session.executor = deferred = Deferred()
    peer.tell(Opcode.WRITE, w.WriteIn(size=4), b"data", nodeid=2)  # give() overwrites its buffer
    asyncio.run(deferred.waiting.pop())
    assert peer.channel.wait().struct(w.WriteOut).size == 4
    assert peer.fs.kept == [b"data"]  # type: ignore[attr-defined]


def test_sync_write_gets_the_receive_buffer_itself() -> None:
    class Sync(Tree):
        def write(self, req: Request, nodeid: int, fh: int, data: Any, offset: int, flags: int) -> int:
            self.calls.append((type(data), bytes(data)))
            return len(data)

    peer = Peer(Sync())
    peer.ask(Opcode.WRITE, w.WriteIn(size=4), b"data", nodeid=2)
    assert peer.fs.calls == [(memoryview, b"data")]  # type: ignore[attr-defined]


def test_too_many_coroutines_are_eagain() -> None:
    peer = Peer(Async())
    peer.executor.error = OSError(errno.EAGAIN, "too many")
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EAGAIN
    assert peer.session.inflight == {}


def test_cancelled_coroutine_is_eintr() -> None:
    class Cancelled(Tree):
        async def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:  # type: ignore[override]
            raise asyncio.CancelledError

    peer = Peer(Cancelled())
    peer.session.executor = deferred = Deferred()
    peer.tell(Opcode.GETATTR, w.GetattrIn())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(deferred.waiting.pop())
    assert peer.channel.wait().errno == errno.EINTR
    assert peer.session.inflight == {}


def test_coroutine_forgets_are_all_run() -> None:
    peer = Peer(Async())
    peer.tell(Opcode.FORGET, w.ForgetIn(nlookup=3), nodeid=2)
    pairs = b"".join(w.ForgetOne(nodeid=n, nlookup=n).encode("<") for n in (4, 5))
    peer.tell(Opcode.BATCH_FORGET, w.BatchForgetIn(count=2), pairs)
    assert peer.fs.calls == [("forget", 2, 3), ("forget", 4, 4), ("forget", 5, 5)]  # type: ignore[attr-defined]


def test_coroutine_forget_is_run_when_taking_back() -> None:
    peer = Peer(Async())
    undelivered(peer, Opcode.LOOKUP, b"hello.txt\0")
    assert peer.fs.calls == [("forget", 2, 1)]  # type: ignore[attr-defined]


# -- blocking locks and interrupts


class Contended(Tree):
    """A lock that somebody else holds until `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.waiting = threading.Event()

    def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock, wait: bool) -> None:
        self.calls.append(wait)  # type: ignore[arg-type]
        if self.free.is_set():
            return
        if not wait:
            raise BlockingIOError(errno.EAGAIN, "held")
        req.on_interrupt(self.free.set)
        self.waiting.set()
        assert self.free.wait(5)
        if req.interrupted:
            raise InterruptedError(errno.EINTR, "interrupted")

    def getlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        return None


LOCK = w.LkIn(fh=1, owner=2, lk=w.FileLock(type=1, end=9))


def test_free_lock_costs_no_thread() -> None:
    peer = Peer(Contended())
    peer.fs.free.set()  # type: ignore[attr-defined]
    assert peer.ask(Opcode.SETLKW, LOCK).errno == 0
    assert peer.fs.calls == [False]  # type: ignore[attr-defined]
    assert peer.executor.threads == []


def test_held_lock_is_waited_for_on_a_thread_of_its_own() -> None:
    peer = Peer(Contended())
    peer.tell(Opcode.SETLKW, LOCK)
    assert peer.fs.waiting.wait(5)  # type: ignore[attr-defined]
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0
    peer.fs.free.set()  # type: ignore[attr-defined]
    assert peer.channel.wait().errno == 0
    assert peer.session.inflight == {}


def test_held_lock_that_is_not_waited_for_is_eagain() -> None:
    assert Peer(Contended()).ask(Opcode.SETLK, LOCK).errno == errno.EAGAIN


def test_waiting_lock_is_interrupted() -> None:
    peer = Peer(Contended())
    peer.tell(Opcode.SETLKW, LOCK)
    unique = peer.unique
    assert peer.fs.waiting.wait(5)  # type: ignore[attr-defined]
    peer.tell(Opcode.INTERRUPT, w.InterruptIn(unique=unique), unique=unique + 1)
    reply = peer.channel.wait()
    assert (reply.unique, reply.errno) == (unique, errno.EINTR)
    assert peer.session.inflight == {}


def test_too_many_blocked_calls_are_eagain() -> None:
    peer = Peer(Contended())
    peer.executor.error = OSError(errno.EAGAIN, "too many")
    assert peer.ask(Opcode.SETLKW, LOCK).errno == errno.EAGAIN
    assert peer.session.inflight == {}


def test_lock_as_a_coroutine_is_asked_to_wait_at_once() -> None:
    class Async(Contended):
        async def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock, wait: bool) -> None:  # type: ignore[override]
            self.calls.append(wait)  # type: ignore[arg-type]

    peer = Peer(Async())
    peer.tell(Opcode.SETLKW, LOCK)
    assert peer.channel.wait().errno == 0
    assert peer.fs.calls == [True]  # type: ignore[attr-defined]


def test_plain_lock_beside_a_coroutine_lock_does_not_block_the_worker() -> None:
    class Mixed(Contended):
        async def flock(self, req: Request, nodeid: int, fh: int, owner: int, kind: int, wait: bool) -> None:  # type: ignore[override]
            self.calls.append("flock")  # type: ignore[arg-type]

    peer = Peer(Mixed())
    peer.tell(Opcode.SETLKW, LOCK)  # returns although the lock is held
    assert peer.fs.calls[0] is False  # type: ignore[attr-defined]
    peer.fs.free.set()  # type: ignore[attr-defined]
    assert peer.channel.wait().errno == 0


@pytest.mark.parametrize("order", "<>")
def test_interrupt_of_what_is_not_known_is_eagain(order: str) -> None:
    peer = Peer(Tree(), order=order)
    assert peer.ask(Opcode.INTERRUPT, w.InterruptIn(unique=1234)).errno == errno.EAGAIN


def test_interrupt_that_overtakes_its_request_is_kept_for_it() -> None:
    # Another worker read the request and has not registered it; on a cloned device EAGAIN would not be believed.
    class Looking(Tree):
        def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
            self.calls.append(req.interrupted)  # type: ignore[arg-type]
            return Attr.directory(nodeid)

    peer = Peer(Looking())
    peer.ask(Opcode.INTERRUPT, w.InterruptIn(unique=1000), unique=1001)
    peer.ask(Opcode.GETATTR, w.GetattrIn(), unique=1000)
    peer.ask(Opcode.GETATTR, w.GetattrIn(), unique=1002)
    assert peer.fs.calls == [True, False]  # type: ignore[attr-defined]


def test_interrupts_kept_are_bounded() -> None:
    peer = Peer(Tree())
    for unique in range(10_000, 11_000):
        peer.ask(Opcode.INTERRUPT, w.InterruptIn(unique=unique))
    assert len(peer.session._early) == module.MAX_EARLY_INTERRUPTS


@pytest.mark.parametrize("size", [0, 7])
def test_interrupt_without_its_structure_is_refused(size: int) -> None:
    assert Peer(Tree()).ask(Opcode.INTERRUPT, bytes(size)).errno == errno.EINVAL


def test_end_interrupts_what_is_under_way() -> None:
    peer = Peer(Contended())
    peer.tell(Opcode.SETLKW, LOCK)
    assert peer.fs.waiting.wait(5)  # type: ignore[attr-defined]
    peer.session.end()
    eventually(lambda: not peer.session.inflight)

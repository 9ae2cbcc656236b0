"""Forgets, and answers that nobody waits for any more, which are taken back."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from session.peers import Peer, Tree, undelivered
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry, Opened
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode

# -- forgets


def test_forget_has_no_reply() -> None:
    peer = Peer(Tree())
    peer.ask(Opcode.LOOKUP, b"hello.txt\0")
    peer.ask(Opcode.LOOKUP, b"hello.txt\0")
    peer.tell(Opcode.FORGET, w.ForgetIn(nlookup=2), nodeid=2)
    assert peer.fs.lookups == {2: 0}  # type: ignore[attr-defined]
    assert peer.session.inflight == {}


@pytest.mark.parametrize("order", "<>")
def test_batch_forget(order: str) -> None:
    peer = Peer(Tree(), order=order)
    pairs = b"".join(w.ForgetOne(nodeid=n, nlookup=n * 10).encode(order) for n in (2, 3))
    peer.tell(Opcode.BATCH_FORGET, w.BatchForgetIn(count=2), pairs)
    assert peer.fs.lookups == {2: -20, 3: -30}  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [0, 2, 4, 65537, 0xFFFFFFFF])
def test_batch_forget_that_lies_about_its_count_forgets_nothing(count: int) -> None:
    peer = Peer(Tree())
    pairs = b"".join(w.ForgetOne(nodeid=n, nlookup=1).encode("<") for n in (2, 3, 4))
    peer.tell(Opcode.BATCH_FORGET, w.BatchForgetIn(count=count), pairs)
    assert peer.fs.lookups == {}  # type: ignore[attr-defined]


def test_forget_that_fails_does_not_stop_the_batch() -> None:
    class Failing(Tree):
        def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
            if nodeid == 2:
                raise ZeroDivisionError
            super().forget(req, nodeid, nlookup)

    peer = Peer(Failing())
    pairs = b"".join(w.ForgetOne(nodeid=n, nlookup=1).encode("<") for n in (2, 3))
    peer.tell(Opcode.BATCH_FORGET, w.BatchForgetIn(count=2), pairs)
    peer.tell(Opcode.FORGET, w.ForgetIn(nlookup=1), nodeid=2)
    assert peer.fs.lookups == {3: -1}  # type: ignore[attr-defined]
    assert len(peer.bugs) == 2


@pytest.mark.parametrize("size", [0, 7])
def test_forget_without_its_structure_is_dropped(size: int) -> None:
    peer = Peer(Tree())
    peer.tell(Opcode.FORGET, bytes(size), nodeid=2)
    peer.tell(Opcode.BATCH_FORGET, bytes(size))
    assert peer.fs.lookups == {}  # type: ignore[attr-defined]


# -- answers that nobody waits for


def test_lookup_nobody_waits_for_is_forgotten() -> None:
    peer = Peer(Tree())
    undelivered(peer, Opcode.LOOKUP, b"hello.txt\0")
    assert peer.fs.lookups == {2: 0}  # type: ignore[attr-defined]


def test_failed_lookup_nobody_waits_for_is_nothing() -> None:
    peer = Peer(Tree())
    undelivered(peer, Opcode.LOOKUP, b"missing\0")
    assert peer.fs.lookups == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", "<>")
def test_listing_nobody_waits_for_forgets_every_entry(order: str) -> None:
    peer = Peer(Tree(), order=order)
    undelivered(peer, Opcode.READDIRPLUS, w.ReadIn(fh=1, size=4096))
    assert peer.fs.lookups == {2: 0, 3: 0}  # type: ignore[attr-defined]


def test_directory_nobody_waits_for_is_released() -> None:
    class Dirs(Tree):
        def opendir(self, req: Request, nodeid: int, flags: int) -> Opened:
            return Opened(8)

        def releasedir(self, req: Request, nodeid: int, fh: int, flags: int) -> None:
            self.calls.append((nodeid, fh))

    peer = Peer(Dirs())
    undelivered(peer, Opcode.OPENDIR, w.OpenIn(), nodeid=3)
    assert peer.fs.calls == [(3, 8)]  # type: ignore[attr-defined]


def test_created_file_nobody_waits_for_is_released_before_it_is_forgotten() -> None:
    class Creating(Tree):
        def create(self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> Any:
            return Entry(Attr.file(9)), Opened(8)

        def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, unlock: bool) -> None:
            self.calls.append(("release", nodeid, fh))

        def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
            self.calls.append(("forget", nodeid, nlookup))

    peer = Peer(Creating())
    undelivered(peer, Opcode.CREATE, w.CreateIn().encode("<") + b"x\0")
    assert peer.fs.calls == [("release", 9, 8), ("forget", 9, 1)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), ZeroDivisionError(), SystemExit()])
def test_filesystem_that_fails_to_take_back_stops_nobody(error: BaseException) -> None:
    class Failing(Tree):
        def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
            raise error

    peer = Peer(Failing())
    undelivered(peer, Opcode.LOOKUP, b"hello.txt\0")
    assert len(peer.bugs) == (not isinstance(error, OSError))


def test_coroutines_answer_nobody_waits_for_is_taken_back() -> None:
    class Async(Tree):
        async def lookup(self, req: Request, parent: int, name: bytes) -> Entry:  # type: ignore[override]
            return super().lookup(req, parent, name)

    peer = Peer(Async())
    peer.channel.wanted = False
    peer.tell(Opcode.LOOKUP, b"hello.txt\0")
    assert peer.fs.lookups == {2: 0}  # type: ignore[attr-defined]


def test_after_the_end_nothing_is_taken_back() -> None:
    peer = Peer(Tree())
    _, raw = peer.build(Opcode.LOOKUP, b"hello.txt\0")
    message = peer.give(raw)
    assert message is not None
    peer.session.end()
    peer.session.undelivered(raw, 0, message)
    assert peer.fs.lookups == {2: 1}  # type: ignore[attr-defined]


@pytest.mark.parametrize("opcode", [Opcode.GETATTR, Opcode.READ, Opcode.INTERRUPT, Opcode.DESTROY])
def test_other_answers_need_no_taking_back(opcode: Opcode) -> None:
    peer = Peer(Tree())
    body = {Opcode.GETATTR: w.GetattrIn(), Opcode.READ: w.ReadIn(size=600), Opcode.INTERRUPT: w.InterruptIn(unique=5)}
    undelivered(peer, opcode, body.get(opcode, b""), nodeid=2)
    assert peer.bugs == []

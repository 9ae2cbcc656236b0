"""Requests of a hostile peer, at random: every one ends in a reply, in nothing where nothing belongs, or in
RemoteProtocolError. Never in another exception, a hang, or growth.

Requests are made of well-formed ones of every opcode, cut, lengthened, with bits flipped, fields replaced by values
that are known to hurt, and heads and tails of different ones joined; in both byte orders. The seed is in the header of
the run.
"""

from __future__ import annotations

import logging
import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from session.peers import ALL_FLAGS, Peer, Tree, valid_requests
from transfuse.errors import RemoteProtocolError
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, DirEntry, Entry, FileRange, Lock, Opened
from transfuse.transports.base import flatten
from transfuse.wire import structs as w
from transfuse.wire.encode import encode_request
from transfuse.wire.opcodes import OPERATIONS, Opcode

ROUNDS = 200_000
"""Requests for each filesystem: 400,000 in all, besides those of the tests below."""
TIME_LIMIT_S = 60.0
GROWTH_LIMIT = 2 << 20
"""Bytes that the session may hold more after the second half of the rounds than after the first."""
NASTY = (0, 1, 7, 8, 15, 16, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
NO_REPLY = {int(row.opcode) for row in OPERATIONS.values() if not row.replies}


class Small(Tree):
    """A filesystem in which everything that changes something pretends to."""

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        self.attr(nodeid)
        return Opened(1)

    def create(self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> Any:
        return self.lookup(req, 1, b"hello.txt"), Opened(1)

    def write(self, req: Request, nodeid: int, fh: int, data: Any, offset: int, flags: int) -> int:
        return len(data)

    def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock, wait: bool) -> None: ...

    def getlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        return None

    def getxattr(self, req: Request, nodeid: int, name: bytes) -> bytes:
        return b"value"

    def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None: ...

    def ioctl(self, req: Request, *args: Any) -> Any:
        data, out_size = args[4], args[5]
        return data[:out_size]


def seeds(order: str) -> list[bytes]:
    """Well-formed requests of every opcode, some with extension records."""
    made = []
    groups = struct.pack(order + "IIII", 16, 32, 1, 1000)
    for opcode, body in valid_requests(order):
        for nodeid in (1, 2):
            made.append(b"".join(encode_request(order, opcode, 2, nodeid, 0, 0, 1, body)))
        if OPERATIONS[opcode].extensions:
            made.append(b"".join(encode_request(order, opcode, 2, 1, 0, 0, 1, body, b"", groups)))
    return made


def mutations(rng: random.Random, order: str) -> Iterator[bytes]:
    """An endless stream of requests."""
    valid = seeds(order)
    byteorder = "little" if order == "<" else "big"
    unique = 2
    while True:
        unique += 2
        raw = bytearray(rng.choice(valid))
        raw[8:16] = unique.to_bytes(8, byteorder)  # type: ignore[arg-type]
        for _ in range(rng.randrange(4)):
            match rng.randrange(7):
                case 0 if raw:
                    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
                case 1:
                    del raw[rng.randrange(len(raw) + 1) :]
                case 2:
                    raw += rng.randbytes(rng.choice((1, 8, 16, 200)))
                case 3 if len(raw) > 48:
                    at = rng.randrange(40, len(raw) - 7) & ~7
                    raw[at : at + 8] = rng.choice(NASTY).to_bytes(8, byteorder)  # type: ignore[arg-type]
                case 4 if len(raw) > 44:
                    at = rng.randrange(40, len(raw) - 3) & ~3
                    value = rng.choice(NASTY) & 0xFFFFFFFF
                    raw[at : at + 4] = value.to_bytes(4, byteorder)  # type: ignore[arg-type]
                case 5:
                    other = rng.choice(valid)
                    raw = raw[: rng.randrange(len(raw) + 1)] + other[rng.randrange(len(other)) :]
                case 6 if len(raw) >= 40:
                    raw[36:38] = rng.choice((0, 1, 2, 3, 0xFFFF)).to_bytes(2, byteorder)  # type: ignore[arg-type]
        if len(raw) >= 4 and rng.random() < 0.9:  # mostly an honest length, so that what follows is read at all
            raw[:4] = len(raw).to_bytes(4, byteorder)  # type: ignore[arg-type]
        yield bytes(raw)


def is_sound(message: bytes, unique: int, order: str) -> bool:
    """A reply that any client could read: its own length, an error in range or a body, the right unique."""
    length, error, answered = struct.unpack_from(order + "IiQ", message)
    return length == len(message) and answered == unique and -512 < error <= 0 and (error == 0 or length == 16)


def attack(peer: Peer, requests: Iterator[bytes], count: int) -> None:
    """Hand `count` requests over and judge what comes back. A filesystem's own bugs count as failures, too."""
    order, session, channel = peer.order, peer.session, peer.channel
    for _ in range(count):
        raw = next(requests)
        try:
            message = session.handle(raw, 0, len(raw), channel)
        except RemoteProtocolError:
            assert len(raw) < 40, f"{raw.hex()} could have been answered"
            continue
        _, opcode, unique = struct.unpack_from(order + "IIQ", raw)
        if message is None:
            late = opcode == Opcode.SETLKW or (opcode == Opcode.INTERRUPT)
            assert opcode in NO_REPLY or late, f"no reply to {raw.hex()}"
        else:
            assert is_sound(flatten(message), unique, order), f"{raw.hex()} -> {flatten(message).hex()}"
        if opcode == Opcode.DESTROY or session.ended:
            raise AssertionError("a mutated request ended the session")
    for thread in peer.executor.threads:
        thread.join(0.001)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Every refused request is a log line: 100,000 of them are the test's own noise."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(TIME_LIMIT_S + 30)
@pytest.mark.parametrize("make", [Small, MemoryFilesystem], ids=lambda make: make.__name__)
def test_hostile_requests_end_in_replies(make: Callable[[], Filesystem], rng: random.Random) -> None:
    started = time.monotonic()
    for order in "<>":
        peer = Peer(make(), order=order)
        requests = (raw for raw in mutations(rng, order) if raw[4:8] not in ends(order))
        attack(peer, requests, ROUNDS // 2)
        peer.session.interrupt_all()
        for thread in peer.executor.threads:
            thread.join(5)
        assert peer.session.inflight == {}
        assert peer.bugs == []
        assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0
        peer.session.end()
    assert time.monotonic() - started < TIME_LIMIT_S


def ends(order: str) -> set[bytes]:
    """DESTROY, which rightly ends a session, in the bytes of an opcode."""
    return {struct.pack(order + "I", Opcode.DESTROY)}


def test_hostile_requests_make_the_session_no_larger(rng: random.Random) -> None:
    peer = Peer(Small())
    requests = (raw for raw in mutations(rng, "<") if raw[4:8] not in ends("<"))
    attack(peer, requests, 2_000)
    tracemalloc.start()
    try:
        attack(peer, requests, 2_000)
        before = tracemalloc.get_traced_memory()[0]
        attack(peer, requests, 6_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < GROWTH_LIMIT
    assert len(peer.session._early) <= 256


def test_garbage_before_init_is_refused(rng: random.Random) -> None:
    peer = Peer(Tree(), init=False)
    for _ in range(5_000):
        raw = rng.randbytes(rng.randrange(200))
        try:
            message = peer.session.handle(raw, 0, len(raw), peer.channel)
        except RemoteProtocolError:
            assert len(raw) < 40
            continue
        if message is not None:
            assert struct.unpack_from("<i", flatten(message), 4)[0] < 0
    assert peer.session.connection is None


def test_mutated_inits_connect_or_are_refused(rng: random.Random) -> None:
    good = b"".join(
        encode_request(
            "<", Opcode.INIT, 2, 0, 0, 0, 0, w.InitIn(major=7, minor=45, flags=ALL_FLAGS & 0xFFFFFFFF).encode("<")
        )
    )
    connected = 0
    for _ in range(3_000):
        raw = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        if rng.random() < 0.3:
            del raw[rng.randrange(len(raw)) :]
        raw[:4] = len(raw).to_bytes(4, "little") if len(raw) >= 4 else raw[:4]
        peer = Peer(Tree(), init=False)
        try:
            message = peer.session.handle(bytes(raw), 0, len(raw), peer.channel)
        except RemoteProtocolError:
            assert len(raw) < 40
            continue
        assert message is None or len(flatten(message)) in (16, 80)
        assert peer.bugs == []
        connected += peer.session.connection is not None
    assert connected > 100


# -- filesystems that misbehave

ERRORS: tuple[BaseException, ...] = (
    ZeroDivisionError(),
    KeyError("x"),
    RecursionError(),
    SystemExit(1),
    GeneratorExit(),
    StopIteration(),
    struct.error("x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    AssertionError(),
    BaseException(),
)
VALUES: tuple[Any, ...] = (
    None,
    "text",
    b"",
    b"x" * (1 << 21),
    bytearray(b"y" * 4097),
    memoryview(b"z" * 5000),
    -1,
    0,
    1 << 31,
    1 << 63,
    1 << 70,
    1.5,
    True,
    [],
    ["text"],
    [None],
    (),
    (None, None),
    (Entry(Attr.file(2)), None),
    (None, Opened()),
    (Entry(Attr.file(2)), Opened(-1)),
    Attr.file(-1),
    Attr.file(2, size=-5, blocks=0),
    Attr(2, -1),
    Attr.file(2, mtime_ns=1 << 90),
    Attr.file(2, timeout_s=float("nan")),
    Entry(None),
    Entry(None, nodeid=5),
    Entry(Attr.file(2), nodeid=-3),
    Entry(Attr.file(2), timeout_s=float("nan")),
    Entry("attr", nodeid=2),  # type: ignore[arg-type]
    Opened(-1),
    Opened(1 << 64),
    Opened("fh"),  # type: ignore[arg-type]
    Opened(1, backing_fd=-1),
    FileRange(-1, 0, 10),
    FileRange(0, -1, 10),
    FileRange(1 << 40, 1 << 70, 1 << 70),
    FileRange(None, None, None),  # type: ignore[arg-type]
    Lock(1, -1, -1, -1),
    Lock("a", None, 1 << 70),  # type: ignore[arg-type]
    [DirEntry("text", 1)],  # type: ignore[list-item]
    [DirEntry(b"x" * 70_000, 1)],
    [DirEntry(b"x", -1)],
    [DirEntry(b"x", 1, cookie=-1)],
    [DirEntry(b"x", 1, kind=1 << 40, cookie=5)],
    object(),
    Exception,
)


class Mad(Filesystem):
    """Every operation answers with whatever `behave` gives, or raises it."""

    behave: Any = None

    def mounted(self, connection: Any) -> None: ...


def _mad(name: str) -> Callable[..., Any]:
    def method(self: Mad, req: Request, *args: Any) -> Any:
        if isinstance(self.behave, BaseException):
            raise self.behave
        return self.behave

    method.__name__ = name
    return method


for _name in OPERATION_NAMES:
    setattr(Mad, _name, _mad(_name))


@pytest.mark.parametrize("order", "<>")
def test_filesystem_that_raises_anything_is_eio(order: str) -> None:
    peer = Peer(Mad(), order=order)
    for error in ERRORS:
        peer.fs.behave = error  # type: ignore[attr-defined]
        for opcode, body in valid_requests(order):
            if opcode in (Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY):
                continue
            peer.bugs.clear()
            unique, raw = peer.build(opcode, body)
            message = peer.give(raw)
            if opcode in NO_REPLY:
                assert message is None
            else:
                assert message is not None
                assert flatten(message) == struct.pack(order + "IiQ", 16, -5, unique), (error, Opcode(opcode).name)
            assert peer.bugs == [error]
    assert peer.session.inflight == {}


@pytest.mark.parametrize("order", "<>")
def test_filesystem_that_answers_anything_is_answered_soundly(order: str) -> None:
    peer = Peer(Mad(), order=order)
    odd = 0
    for value in VALUES:
        peer.fs.behave = value  # type: ignore[attr-defined]
        for opcode, body in valid_requests(order):
            if opcode in NO_REPLY:
                continue
            peer.bugs.clear()
            unique, raw = peer.build(opcode, body)
            message = peer.give(raw)
            assert message is not None
            answer = flatten(message)
            assert is_sound(answer, unique, order), (value, Opcode(opcode).name)
            error = -struct.unpack_from(order + "i", answer, 4)[0]
            if error == 5:
                odd += 1
                assert len(peer.bugs) == 1, (value, Opcode(opcode).name)
    assert odd > 500
    assert peer.session.inflight == {}

"""The session's state machine: INIT, errors, late answers, interrupts, forgets, and the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import struct
import sys
import threading
from typing import Any

import pytest

from session.peers import ALL_FLAGS, Inline, Later, Peer, Reply, Tree, dirents, eventually, valid_requests
from transfuse.errors import RemoteProtocolError
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, DirEntry, Entry, Features, Lock, Opened
from transfuse.session import server as module
from transfuse.session.negotiate import Limits
from transfuse.session.server import ServerSession
from transfuse.transports.base import flatten
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import encode_request
from transfuse.wire.opcodes import Opcode

# -- INIT


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("minor", [27, 31, 35, 36, 45, 46])
def test_connection_of_every_order_and_minor_serves(order: str, minor: int) -> None:
    peer = Peer(Tree(), order=order, minor=minor)
    entry = peer.ask(Opcode.LOOKUP, b"hello.txt\0").struct(w.EntryOut)
    assert (entry.nodeid, entry.attr.size) == (2, 14)
    assert peer.ask(Opcode.READ, w.ReadIn(offset=7, size=100), nodeid=2).body == b"world!\n"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("minor", "structure"), [(31, 8), (33, 16)])
def test_setxattr_structure_of_older_peers_is_shorter(order: str, minor: int, structure: int) -> None:
    class Attributes(Tree):
        def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
            self.calls.append((name, value, flags))

    peer = Peer(Attributes(), order=order, minor=minor)
    body = struct.pack(order + "II", 3, 1).ljust(structure, b"\0")
    assert peer.ask(Opcode.SETXATTR, body, b"user.a\0abc", nodeid=2).errno == 0
    assert peer.fs.calls == [(b"user.a", b"abc", 1)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", "<>")
def test_init_reply_of_literal_bytes(order: str) -> None:
    class Small(Tree):
        features = Features(max_write=1 << 17, max_readahead=1 << 16, max_background=7, congestion_threshold=5)

    reply = Peer(Small(), order=order, minor=31, flags=f.FUSE_ASYNC_READ | f.FUSE_MAX_PAGES).init_reply
    expected = struct.pack(
        order + "IiQ IIIIHHIIHHIIH 22x",
        80,  # len
        0,  # error
        2,  # unique
        7,  # major
        45,  # minor
        1 << 16,  # max_readahead
        f.FUSE_ASYNC_READ | f.FUSE_MAX_PAGES,
        7,  # max_background
        5,  # congestion_threshold
        1 << 17,  # max_write
        1,  # time_gran
        32,  # max_pages
        0,  # map_alignment
        0,  # flags2
        0,  # max_stack_depth
        0,  # request_timeout
    )
    assert reply.raw == expected


def test_nothing_is_served_before_init() -> None:
    peer = Peer(Tree(), init=False)
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EIO
    peer.tell(Opcode.FORGET, w.ForgetIn(nlookup=1))
    assert peer.fs.lookups == {}  # type: ignore[attr-defined]


def test_second_init_is_eio_and_changes_nothing() -> None:
    peer = Peer(Tree())
    connection = peer.session.connection
    assert peer.init().errno == errno.EIO
    assert peer.session.connection is connection
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_second_init_in_the_other_order_is_not_taken_for_one() -> None:
    peer = Peer(Tree())
    peer.order = ">"
    _, raw = peer.build(Opcode.INIT, w.InitIn(major=7, minor=45), nodeid=0)
    message = peer.give(raw)
    assert message is not None
    assert Reply(message, "<").errno != 0 if len(flatten(message)) >= 16 else False
    peer.order = "<"
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_second_init_starts_over_where_that_is_allowed() -> None:
    class Life(Tree):
        def mounted(self, connection: Any) -> None:
            self.calls.append(("mounted", connection.order))

        def destroyed(self) -> None:
            self.calls.append(("destroyed",))

    peer = Peer(Life(), reinit=True)
    peer.order = ">"
    assert peer.init().errno == 0
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0
    assert peer.fs.calls == [("mounted", "<"), ("destroyed",), ("mounted", ">")]  # type: ignore[attr-defined]


def test_too_old_peer_is_refused_and_may_try_again() -> None:
    peer = Peer(Tree(), init=False)
    peer.minor = 26
    assert peer.init().errno == errno.EPROTO
    assert "7.26" in peer.session.refused
    peer.minor = 27
    assert peer.init().errno == 0
    assert peer.session.refused == ""


def test_newer_major_is_told_ours_and_sends_init_again() -> None:
    peer = Peer(Tree(), init=False)
    reply = peer.ask(Opcode.INIT, w.InitIn(major=8, minor=0), nodeid=0)
    assert (reply.struct(w.InitOut).major, reply.struct(w.InitOut).minor) == (7, 45)
    assert peer.session.connection is None
    assert peer.init().errno == 0


def test_mounted_that_fails_refuses_init() -> None:
    class Failing(Tree):
        def mounted(self, connection: Any) -> None:
            raise ZeroDivisionError("no")

    peer = Peer(Failing())
    assert peer.init_reply.errno == errno.EIO
    assert peer.session.connection is None
    assert peer.session.refused == "ZeroDivisionError: no"
    assert len(peer.bugs) == 1


def test_feature_that_does_not_fit_the_wire_refuses_init() -> None:
    class Huge(Tree):
        features = Features(max_background=1 << 20)

    peer = Peer(Huge())
    assert peer.init_reply.errno == errno.EIO
    assert len(peer.bugs) == 1


@pytest.mark.parametrize("cut", [40, 48, 55])
def test_short_init_is_refused(cut: int) -> None:
    peer = Peer(Tree(), init=False)
    body = w.InitIn(major=7, minor=45).encode("<")[: cut - 40]
    assert peer.ask(Opcode.INIT, body, nodeid=0).errno == errno.EINVAL


def test_filesystem_without_the_least_is_a_type_error() -> None:
    class Nothing(Filesystem):
        pass

    with pytest.raises(TypeError, match="Nothing has no getattr and no lookup"):
        Peer(Nothing())


@pytest.mark.parametrize("name", ["mounted", "destroyed", "operations"])
def test_life_of_the_connection_can_be_no_coroutine(name: str) -> None:
    async def method(self: Any, *args: Any) -> None: ...

    with pytest.raises(TypeError, match=rf"{name}\(\) can't be a coroutine"):
        Peer(type("Waiting", (Tree,), {name: method})())


# -- lengths


@pytest.mark.parametrize("size", [0, 1, 39])
def test_less_than_a_header_cannot_be_answered(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"request of {size} bytes"):
        Peer(Tree()).give(bytes(size))


def test_requests_are_read_where_they_lie() -> None:
    peer = Peer(Tree())
    _, raw = peer.build(Opcode.LOOKUP, b"hello.txt\0")
    message = peer.give(raw, before=17)
    assert message is not None
    assert Reply(message).struct(w.EntryOut).nodeid == 2


@pytest.mark.parametrize("delta", [-1, 1, 1000])
def test_header_that_lies_about_its_length_is_refused(delta: int) -> None:
    peer = Peer(Tree())
    _, raw = peer.build(Opcode.LOOKUP, b"hello.txt\0")
    message = peer.give(struct.pack("<I", len(raw) + delta) + raw[4:])
    assert message is not None
    assert Reply(message).errno == errno.EINVAL


def test_structure_that_is_cut_is_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(Tree())
    assert peer.ask(Opcode.GETATTR, bytes(15)).errno == errno.EINVAL
    assert "GETATTR of 55 bytes, at least 56 belong" in caplog.text
    assert peer.bugs == []


# -- errors of the filesystem


def raising(error: BaseException) -> Peer:
    class Raising(Tree):
        def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
            raise error

    return Peer(Raising())


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOTEMPTY, "not empty"), errno.ENOTEMPTY),
        (FileNotFoundError(errno.ENOENT, "gone"), errno.ENOENT),
        (PermissionError(), errno.EIO),
        (OSError("text only"), errno.EIO),
        (OSError("text", "more text"), errno.EIO),
        (OSError(0, "zero"), errno.EIO),
        (OSError(-2, "negative"), errno.EIO),
        (OSError(512, "too large to travel"), errno.EIO),
        (OSError(1 << 100, "huge"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
    ],
)
def test_os_error_becomes_its_errno(error: Exception, number: int) -> None:
    peer = raising(error)
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == number
    assert peer.bugs == []


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("x"),
        KeyError("x"),
        RecursionError(),
        StopIteration(),
        SystemExit(3),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseException("x"),
        BaseExceptionGroup("several", [SystemExit(1), ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_exception_is_eio_and_the_session_lives_on(error: BaseException) -> None:
    peer = raising(error)
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EIO
    assert peer.bugs == [error]
    assert peer.session.inflight == {}
    assert peer.ask(Opcode.LOOKUP, b"hello.txt\0").errno == 0


def test_keyboard_interrupt_goes_to_whoever_pressed_the_key() -> None:
    peer = raising(KeyboardInterrupt())
    _, raw = peer.build(Opcode.GETATTR, w.GetattrIn())
    with pytest.raises(KeyboardInterrupt):
        peer.give(raw)
    assert peer.session.inflight == {}


def test_bug_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Tree):
        def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
            raise ZeroDivisionError("the reason")

    peer = Peer(Raising())
    peer.session.on_bug = module.log_bug
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=5).errno == errno.EIO
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == "GETATTR of node 5 failed in the filesystem"
    assert record.exc_info is not None
    assert "the reason" in caplog.text


def test_bug_handler_that_raises_leaves_nothing_in_flight() -> None:
    peer = raising(ZeroDivisionError())

    def again(req: Request, error: BaseException) -> None:
        raise error

    peer.session.on_bug = again
    _, raw = peer.build(Opcode.GETATTR, w.GetattrIn())
    with pytest.raises(ZeroDivisionError):
        peer.give(raw)
    assert peer.session.inflight == {}


@pytest.mark.parametrize("answer", [None, "text", 5, b"bytes", object(), [], Entry(Attr.file(1 << 70))])
@pytest.mark.parametrize("name", ["lookup", "getattr", "open", "create", "statfs", "readlink", "write", "lseek"])
def test_answer_of_the_wrong_kind_is_eio(name: str, answer: Any) -> None:
    if (name, answer) in [("readlink", b"bytes"), ("lseek", 5)]:
        return  # right by chance
    peer = Peer(type("Wrong", (Tree,), {name: lambda self, req, *args: answer})())
    opcode = Opcode[name.upper()]
    ((_, body),) = valid_requests("<", [opcode])
    if (name, answer) == ("readlink", []):
        answer = None
    assert peer.ask(opcode, body).errno == errno.EIO
    assert len(peer.bugs) == 1
    assert peer.session.inflight == {}


# -- supplementary groups


def extension(order: str, *gids: int) -> bytes:
    raw = struct.pack(f"{order}I{len(gids)}I", len(gids), *gids)
    raw += bytes(-len(raw) % 8)
    return struct.pack(order + "II", 8 + len(raw), 32) + raw


def security(order: str) -> bytes:
    # size 32, one context: secctx {size 9, padding}, "selinux\0", value padded to 8
    return struct.pack(order + "IIII", 40, 1, 9, 0) + b"security.selinux"[:8] + b"label\0\0\0" + bytes(8)


class Making(Tree):
    def mkdir(self, req: Request, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        self.calls.append((name, req.groups))
        return Entry(Attr.directory(9))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: extension(o, 1001), (1001,)),
        (lambda o: extension(o, 1001, 1002), (1001, 1002)),
        (lambda o: security(o) + extension(o, 1001), (1001,)),
        (lambda o: extension(o, 1001) + security(o), (1001,)),
    ],
)
def test_groups_sent_with_the_request_are_the_callers(order: str, make: Any, expected: tuple[int, ...]) -> None:
    peer = Peer(Making(), order=order)
    assert peer.ask(Opcode.MKDIR, w.MkdirIn(), b"x\0", extensions=make(order)).errno == 0
    assert peer.fs.calls == [(b"x", expected)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("known", "expected"), [((5, 6), (5, 6)), ((), (100,))])
def test_groups_not_sent_are_asked_of_the_transport(known: tuple[int, ...], expected: tuple[int, ...]) -> None:
    peer = Peer(Making())
    peer.host.groups = known
    peer.ask(Opcode.MKDIR, w.MkdirIn(), b"x\0", gid=100)
    assert peer.fs.calls == [(b"x", expected)]  # type: ignore[attr-defined]


def test_security_context_alone_does_not_hide_the_transports_groups() -> None:
    peer = Peer(Making())
    peer.host.groups = (5,)
    assert peer.ask(Opcode.MKDIR, w.MkdirIn(), b"x\0", extensions=security("<")).errno == 0
    assert peer.fs.calls == [(b"x", (5,))]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "records",
    [
        struct.pack("<II", 0, 32),
        struct.pack("<II", 16, 32),
        struct.pack("<IIII", 16, 32, 9, 0),
        struct.pack("<II", 8, 99),
    ],
)
def test_records_that_lie_are_refused_before_the_call(records: bytes) -> None:
    peer = Peer(Making())
    assert peer.ask(Opcode.MKDIR, w.MkdirIn(), b"x\0", extensions=records).errno == errno.EINVAL
    assert peer.fs.calls == []  # type: ignore[attr-defined]


def test_extensions_are_no_part_of_the_name() -> None:
    peer = Peer(Making())
    peer.ask(Opcode.MKDIR, w.MkdirIn(), b"name\0", extensions=extension("<", 1))
    assert peer.fs.calls[0][0] == b"name"  # type: ignore[attr-defined]


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


def undelivered(peer: Peer, opcode: Opcode, body: Any, **header: Any) -> None:
    _, raw = peer.build(opcode, body, **header)
    message = peer.give(raw)
    assert message is not None
    peer.session.undelivered(raw, 0, message)


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


def test_coroutine_forget_is_run_when_taking_back() -> None:
    peer = Peer(Async())
    undelivered(peer, Opcode.LOOKUP, b"hello.txt\0")
    assert peer.fs.calls == [("forget", 2, 1)]  # type: ignore[attr-defined]


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


# -- the end


class Life(Tree):
    def destroyed(self) -> None:
        self.calls.append("destroyed")  # type: ignore[arg-type]


def test_destroy_ends_the_session_once() -> None:
    peer = Peer(Life())
    assert peer.ask(Opcode.DESTROY).errno == 0
    peer.session.end()
    assert peer.fs.calls == ["destroyed"]  # type: ignore[attr-defined]
    assert peer.session.ended


def test_nothing_is_served_after_destroy() -> None:
    peer = Peer(Life())
    peer.ask(Opcode.DESTROY)
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EIO
    assert peer.ask(Opcode.DESTROY).errno == errno.EIO
    assert peer.init().errno == errno.EIO


def test_destroyed_that_fails_is_a_bug_and_destroy_is_answered() -> None:
    class Failing(Tree):
        def destroyed(self) -> None:
            raise ZeroDivisionError

    peer = Peer(Failing())
    assert peer.ask(Opcode.DESTROY).errno == 0
    assert len(peer.bugs) == 1


def test_end_before_init_tells_the_filesystem_nothing() -> None:
    peer = Peer(Life(), init=False)
    peer.session.end()
    assert peer.fs.calls == []  # type: ignore[attr-defined]


def test_end_is_told_once_even_from_many_threads() -> None:
    peer = Peer(Life())
    threads = [threading.Thread(target=peer.session.end) for _ in range(8)]
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    assert peer.fs.calls == ["destroyed"]  # type: ignore[attr-defined]


def test_end_interrupts_what_is_under_way() -> None:
    peer = Peer(Contended())
    peer.tell(Opcode.SETLKW, LOCK)
    assert peer.fs.waiting.wait(5)  # type: ignore[attr-defined]
    peer.session.end()
    eventually(lambda: not peer.session.inflight)


# -- resend


def test_resent_request_is_answered_under_its_marked_unique() -> None:
    peer = Peer(Tree())
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), unique=f.FUSE_UNIQUE_RESEND | 42).errno == 0


# -- several workers


def test_many_threads_use_one_session_at_a_time() -> None:
    fs = Tree()
    peer = Peer(fs)
    count, workers = 300, 4
    failures: list[object] = []

    def work(number: int) -> None:
        channel = Later()
        for turn in range(count):
            unique = (number << 32) + 2 * turn
            body = w.ReadIn(fh=number, size=4096).encode("<")
            raw = b"".join(encode_request("<", Opcode.READDIRPLUS, unique, 1, 0, 0, 0, body))
            message = peer.session.handle(raw, 0, len(raw), channel)
            if message is None or len(dirents(Reply(message).body, plus=True)) != 4:
                failures.append(message)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, workers + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert peer.session.inflight == {}


# -- one session, one filesystem, two connections


def test_two_sessions_of_one_filesystem_share_nothing() -> None:
    fs = Tree()
    little, big = Peer(fs), Peer(fs, order=">", minor=31, flags=ALL_FLAGS & ~f.FUSE_DONT_MASK)
    assert little.ask(Opcode.LOOKUP, b"hello.txt\0").struct(w.EntryOut).nodeid == 2
    assert big.ask(Opcode.LOOKUP, b"hello.txt\0").struct(w.EntryOut).nodeid == 2
    assert little.session.connection is not big.session.connection


def test_defaults_of_the_constructor_are_enough() -> None:
    class Silent:
        def register_backing(self, fd: int) -> int:
            raise OSError(errno.EPERM, "no kernel")

        def unregister_backing(self, backing_id: int) -> None: ...

        def notify(self, message: list[Any]) -> None: ...

        def groups_of(self, pid: int) -> tuple[int, ...]:
            return ()

    session = ServerSession(Tree(), Silent(), Inline())
    assert session.limits == Limits()
    assert session.connection is None
    assert DirEntry(b"x", 1).cookie == 0

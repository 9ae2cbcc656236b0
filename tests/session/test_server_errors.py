"""What becomes of a filesystem's exceptions and of answers of the wrong kind."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any

import pytest

from session.peers import Host, Inline, Peer, Tree, valid_requests
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry
from transfuse.quiet import BURST, LINE_EVERY_S
from transfuse.session import server as module
from transfuse.session.server import ServerSession
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode


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


def test_requests_refused_for_ever_are_a_few_lines_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(Tree())
    for _ in range(300):
        assert peer.ask(Opcode.GETATTR, bytes(15)).errno == errno.EINVAL
    for _ in range(300):
        assert peer.ask(Opcode.INTERRUPT, bytes(7)).errno == errno.EINVAL
    peer.session.end()
    assert len(caplog.messages) == BURST + 1
    assert caplog.messages[-1] == f"{600 - BURST} more refused requests were not logged"


def test_inits_refused_for_ever_are_a_few_lines_even_before_there_is_a_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = Peer(Tree(), init=False)
    peer.minor = 20
    for _ in range(100):
        assert peer.init().errno == errno.EPROTO
    peer.session.end()
    assert len(caplog.messages) == BURST + 1


def test_a_line_about_refusals_comes_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    peer = Peer(Tree(), clock=lambda: now[0])
    for _ in range(1000):
        now[0] += LINE_EVERY_S / 100
        peer.ask(Opcode.GETATTR, bytes(15))
    assert BURST + 8 <= len(caplog.messages) <= BURST + 10
    assert caplog.messages[-1].endswith("(99 refused requests before it were not logged)")


def test_a_filesystem_that_fails_for_ever_is_a_few_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Tree):
        def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
            raise ZeroDivisionError("the reason")

    session = ServerSession(Raising(), Host(), Inline())
    peer = Peer(Tree(), init=False)
    peer.session = session
    peer.init()
    for _ in range(200):
        assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EIO
    session.end()
    assert caplog.text.count("Traceback") == BURST
    assert caplog.messages[-1] == f"{200 - BURST} more failures of the filesystem were not logged"

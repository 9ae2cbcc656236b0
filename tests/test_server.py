"""A server put together: start, the handshake, the end, and what a traced one says. Kernel mounts are in interop/."""

from __future__ import annotations

import errno
import logging
import os
import queue
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from session.peers import ALL_FLAGS, Reply, Tree, eventually
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Lock
from transfuse.server import Server, mount
from transfuse.transports.base import flatten, serve_channel
from transfuse.transports.memory import MemoryTransport
from transfuse.transports.mount.options import MountOptionError
from transfuse.wire import structs as w
from transfuse.wire.encode import encode_request
from transfuse.wire.opcodes import Opcode


class Pipe:
    """A transport whose requests a test puts into a queue; one channel per worker, all on that queue."""

    max_write = 1 << 17
    can_pass_through = False
    can_notify = True

    def __init__(self) -> None:
        self.requests: queue.Queue[bytes | None] = queue.Queue()
        self.replies: queue.Queue[bytes] = queue.Queue()
        self.opened = 0
        self.closed = 0
        self.limit = 100
        self.notified: list[bytes] = []

    def open_channel(self) -> Any:
        if self.opened >= self.limit:
            raise OSError(errno.EMFILE, "no more")
        self.opened += 1
        return PipeChannel(self)

    def bind(self, handle: Any, undelivered: Any) -> None: ...

    def close(self) -> None:
        self.requests.put(None)

    def register_backing(self, fd: int) -> int:
        raise OSError(errno.EPERM, "no kernel")

    def unregister_backing(self, backing_id: int) -> None: ...

    def notify(self, message: list[Any]) -> None:
        self.notified.append(b"".join(message))

    def groups_of(self, pid: int) -> tuple[int, ...]:
        return ()

    def put(self, opcode: int, body: bytes = b"", unique: int = 2, nodeid: int = 1) -> None:
        self.requests.put(b"".join(encode_request("<", opcode, unique, nodeid, 0, 0, 0, body)))

    def init(self, minor: int = 45) -> None:
        flags = ALL_FLAGS
        self.put(
            Opcode.INIT, w.InitIn(major=7, minor=minor, flags=flags & 0xFFFFFFFF, flags2=flags >> 32).encode("<")
        )

    def reply(self) -> Reply:
        return Reply(self.replies.get(timeout=5))


class PipeChannel:
    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe

    def receive(self) -> Any:
        raw = self.pipe.requests.get()
        if raw is None:
            self.pipe.requests.put(None)  # for the others
            return None
        return raw, 0, len(raw)

    def send(self, message: Any) -> bool:
        self.pipe.replies.put(flatten(message))
        return True

    def serve(self, handle: Any, undelivered: Any, worker: Any) -> None:
        serve_channel(self, handle, undelivered, worker)

    def close(self) -> None:
        self.pipe.closed += 1


class Life(Tree):
    def __init__(self) -> None:
        super().__init__()
        self.life: list[str] = []

    def mounted(self, connection: Any) -> None:
        self.life.append("mounted")

    def destroyed(self) -> None:
        self.life.append("destroyed")


def connected(fs: Any, **more: Any) -> tuple[Pipe, Server]:
    pipe = Pipe()
    server = Server(fs, pipe, **more).start()
    pipe.init()
    assert pipe.reply().errno == 0
    assert server.wait_connected(5)
    return pipe, server


# -- start and end


def test_server_connects_serves_and_ends() -> None:
    fs = Life()
    pipe, server = connected(fs)
    assert server.connection is not None
    assert server.connection.max_write == 1 << 17
    assert server.notify is not None
    pipe.put(Opcode.LOOKUP, b"hello.txt\0")
    assert pipe.reply().struct(w.EntryOut).nodeid == 2
    assert server.close() is True
    assert server.wait(0)
    assert fs.life == ["mounted", "destroyed"]
    assert pipe.closed == pipe.opened


def test_peer_that_goes_away_ends_the_server() -> None:
    fs = Life()
    pipe, server = connected(fs)
    pipe.close()
    assert server.wait(5)
    assert fs.life == ["mounted", "destroyed"]
    server.close()


def test_close_twice_is_nothing() -> None:
    fs = Life()
    _, server = connected(fs)
    assert server.close() is True
    assert server.close() is True
    assert fs.life == ["mounted", "destroyed"]


def test_peer_that_never_connects_is_not_waited_for_for_ever() -> None:
    pipe = Pipe()
    server = Server(Life(), pipe).start()
    assert server.wait_connected(0.05) is False
    assert (server.connection, server.notify) == (None, None)
    server.close()


def test_peer_that_goes_away_before_init_is_noticed_at_once() -> None:
    fs = Life()
    pipe = Pipe()
    server = Server(fs, pipe).start()
    pipe.close()
    before = time.monotonic()
    assert server.wait_connected(20) is False
    assert time.monotonic() - before < 5
    assert fs.life == []
    server.close()


def test_refused_init_is_noticed_at_once() -> None:
    pipe = Pipe()
    server = Server(Life(), pipe).start()
    pipe.init(minor=20)
    assert pipe.reply().errno == errno.EPROTO
    before = time.monotonic()
    assert server.wait_connected(20) is False
    assert time.monotonic() - before < 5
    server.close()


def test_garbage_before_init_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    pipe = Pipe()
    server = Server(Life(), pipe).start()
    pipe.requests.put(b"short")
    pipe.init()
    assert pipe.reply().errno == 0
    assert server.wait_connected(5)
    assert "message dropped: request of 5 bytes" in caplog.text
    server.close()


def test_garbage_after_init_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    pipe, server = connected(Life())
    pipe.requests.put(b"short")
    pipe.put(Opcode.GETATTR, bytes(16))
    assert pipe.reply().errno == 0
    assert "message dropped" in caplog.text
    server.close()


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(workers: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Server(Life(), Pipe(), workers=workers)


def test_path_filesystem_is_taken_as_it_is() -> None:
    class Names(PathFilesystem):
        def getattr(self, req: Request, path: str, fh: int | None) -> Attr:
            if path != "/":
                raise FileNotFoundError(errno.ENOENT, path)
            return Attr.directory(1)

    pipe, server = connected(Names())
    pipe.put(Opcode.GETATTR, bytes(16))
    assert pipe.reply().errno == 0
    server.close()


# -- requests that wait


class Waiting(Life):
    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Semaphore(0)
        self.go = threading.Event()

    def statfs(self, req: Request, nodeid: int) -> Any:
        self.waits.release()
        req.on_interrupt(self.go.set)
        assert self.go.wait(10)
        raise InterruptedError(errno.EINTR, "interrupted")

    def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock, wait: bool) -> None:
        if not wait:
            raise BlockingIOError(errno.EAGAIN, "held")
        self.statfs(req, nodeid)

    def getlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        return None


def test_one_that_waits_does_not_stop_the_others() -> None:
    fs = Waiting()
    pipe, server = connected(fs)
    pipe.put(Opcode.STATFS, unique=10)
    assert fs.waits.acquire(timeout=5)
    pipe.put(Opcode.GETATTR, bytes(16), unique=12)
    assert pipe.reply().unique == 12
    assert pipe.opened >= 2
    fs.go.set()
    assert pipe.reply().unique == 10
    server.close()


def test_end_interrupts_requests_that_wait() -> None:
    fs = Waiting()
    pipe, server = connected(fs)
    pipe.put(Opcode.STATFS, unique=10)
    assert fs.waits.acquire(timeout=5)
    before = time.monotonic()
    assert server.close() is True
    assert time.monotonic() - before < 5
    assert fs.life == ["mounted", "destroyed"]


def test_end_interrupts_locks_that_wait() -> None:
    fs = Waiting()
    pipe, server = connected(fs)
    pipe.put(Opcode.SETLKW, w.LkIn(lk=w.FileLock(type=1, end=9)).encode("<"), unique=10)
    assert fs.waits.acquire(timeout=5)
    before = time.monotonic()
    assert server.close() is True
    assert time.monotonic() - before < 5
    assert server.session.inflight == {}


def test_further_channel_that_cannot_be_had_leaves_the_first(caplog: pytest.LogCaptureFixture) -> None:
    fs = Waiting()
    pipe = Pipe()
    pipe.limit = 1
    with caplog.at_level(logging.INFO, "transfuse"):
        server = Server(fs, pipe).start()
        pipe.init()
        assert pipe.reply().errno == 0
        pipe.put(Opcode.STATFS, unique=10)
        assert fs.waits.acquire(timeout=5)
        eventually(lambda: "no further worker" in caplog.text)
        fs.go.set()
        assert pipe.reply().unique == 10
        pipe.put(Opcode.GETATTR, bytes(16), unique=12)
        assert pipe.reply().unique == 12
    server.close()


# -- bugs


def test_bug_handler_hears_of_bugs() -> None:
    class Buggy(Life):
        def statfs(self, req: Request, nodeid: int) -> Any:
            raise ZeroDivisionError

    heard: list[BaseException] = []
    pipe, server = connected(Buggy(), on_bug=lambda req, error: heard.append(error))
    pipe.put(Opcode.STATFS)
    assert pipe.reply().errno == errno.EIO
    assert [type(error) for error in heard] == [ZeroDivisionError]
    server.close()


@pytest.mark.parametrize("make", [ZeroDivisionError, SystemExit])
def test_filesystem_that_fails_in_destroyed_still_ends(make: Callable[[], BaseException]) -> None:
    class Buggy(Life):
        def destroyed(self) -> None:
            raise make()

    heard: list[BaseException] = []
    _, server = connected(Buggy(), on_bug=lambda req, error: heard.append(error))
    assert server.close() is True
    assert len(heard) == 1


# -- over memory


def test_memory_transport_is_served_in_the_clients_thread() -> None:
    seen: list[int] = []

    class Where(Life):
        def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
            seen.append(threading.get_ident())
            return super().getattr(req, nodeid, fh)

    transport = MemoryTransport()
    answers: list[bytes] = []
    with Server(Where(), transport) as server:
        transport.client.start(lambda message: answers.append(bytes(message)), lambda error: None)
        body = w.InitIn(major=7, minor=45).encode("<")
        transport.client.send(encode_request("<", Opcode.INIT, 2, 0, 0, 0, 0, body))
        transport.client.send(encode_request("<", Opcode.GETATTR, 4, 1, 0, 0, 0, bytes(16)))
        assert server.wait_connected(0)
        assert [struct.unpack_from("<q", answer, 8)[0] for answer in answers] == [2, 4]
    assert seen == [threading.get_ident()]
    with pytest.raises(ConnectionError):
        transport.client.send(encode_request("<", Opcode.GETATTR, 6, 1, 0, 0, 0, bytes(16)))


# -- tracing


def test_traced_server_says_what_passes() -> None:
    class Late(Life):
        async def statfs(self, req: Request, nodeid: int) -> Any:
            raise FileNotFoundError(errno.ENOENT, "later")

    lines: list[str] = []
    pipe, server = connected(Late(), trace=lines.append)
    pipe.put(Opcode.LOOKUP, b"hello.txt\0", unique=10)
    pipe.reply()
    pipe.put(Opcode.STATFS, unique=12)
    assert pipe.reply().errno == errno.ENOENT
    assert server.notify is not None
    server.notify.inval_inode(2)
    eventually(lambda: len(lines) == 7)
    server.close()
    assert lines[0].startswith("#2 INIT nodeid 1 7.45 ")
    assert lines[2:4] == [
        '#10 LOOKUP nodeid 1 "hello.txt"',
        "#10 -> entry nodeid 2 gen 0 ttl 1 s REG 0644 14 bytes ino 2",
    ]
    assert set(lines[4:]) == {"#12 STATFS nodeid 1", "#12 -> error ENOENT", "notify INVAL_INODE ino 2"}
    assert len(pipe.notified) == 1


def test_server_without_trace_calls_the_session_directly() -> None:
    server = Server(Life(), Pipe())
    assert server.pool.handle == server.session.handle
    assert server.session.host is server.transport
    server.close()


# -- mount()


def test_option_that_nobody_knows_is_refused_before_the_kernel_is_asked(tmp_path: Path) -> None:
    with pytest.raises(MountOptionError):
        mount(Life(), tmp_path, ["frobnicate"])
    assert not os.path.ismount(tmp_path)


def test_mount_point_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing") as caught:
        mount(Life(), tmp_path / "missing")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.needs("root", "/dev/fuse")
def test_mount_is_a_context_manager(tmp_path: Path) -> None:
    lines: list[str] = []
    fs = Life()
    with mount(fs, tmp_path, trace=lines.append) as made:
        assert made.mountpoint == str(tmp_path)
        assert os.listdir(tmp_path) == ["hello.txt", "sub"]
        assert (tmp_path / "hello.txt").read_bytes() == Tree.DATA
        assert os.path.ismount(tmp_path)
    assert not os.path.ismount(tmp_path)
    assert fs.life == ["mounted", "destroyed"]
    assert any(" READ nodeid 2 " in line for line in lines)


@pytest.mark.needs("root", "/dev/fuse")
def test_mount_with_an_open_file_disappears_and_the_file_is_cut_off(tmp_path: Path) -> None:
    made = mount(Life(), tmp_path)
    fd = os.open(tmp_path / "hello.txt", os.O_RDONLY)
    made.close()
    assert not os.path.ismount(tmp_path)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with pytest.raises(OSError) as caught:
        os.read(fd, 100)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with pytest.raises(OSError):
        os.close(fd)  # FLUSH finds nobody; the descriptor is gone all the same


@pytest.mark.needs("root", "/dev/fuse")
def test_two_mounts_of_one_process(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    fs = Life()
    with mount(fs, first), mount(Life(), second):
        assert (first / "hello.txt").read_bytes() == (second / "hello.txt").read_bytes() == Tree.DATA


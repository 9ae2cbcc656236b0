"""A front-end that cannot connect anew, and servers that come and go behind a relay."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.transports.vhost_user.messages import FrontendRequest, ProtocolFeature, VringState
from transfuse.transports.vhost_user.relay import Relay
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode
from transports.vhost_user.conftest import Serving, open_fds
from transports.vhost_user.raw_frontend import RawFrontend

Serve = Callable[..., Serving]
NO_BOOK = ~ProtocolFeature.INFLIGHT_SHMFD.bit
"""As QEMU's virtio-fs device, which does not know of it."""

SERVER = """
import os, sys, threading, time
from transfuse.filesystems.hostdir import HostDirectory
from transfuse.server import Server
from transfuse.transports.vhost_user.backend import VhostUserTransport

class Slow(HostDirectory):
    def mkdir(self, req, parent, name, mode, umask):
        if name == b"die":
            os._exit(9)
        return super().mkdir(req, parent, name, mode, umask)

share, path, state = sys.argv[1:]
with Server(Slow(share), VhostUserTransport(path, state_path=state)) as server:
    print("ready", flush=True)
    sys.stdin.read()
"""


class Process:
    """A server in a process of its own, which can be killed."""

    def __init__(self, folder: Path) -> None:
        self.arguments = [str(folder / "share"), str(folder / "back"), str(folder / "state")]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *self.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self, how: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.wait()

    def wait(self) -> None:
        process, self.process = self.process, None
        assert process is not None
        process.wait(20)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def stop(self) -> None:
        """In order."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(20)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def server(tmp_path: Path):
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "x").write_bytes(b"data")
    server = Process(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def relay(tmp_path: Path):
    with Relay(tmp_path / "front", tmp_path / "back") as relay:
        yield relay


@pytest.fixture
def frontend(tmp_path: Path, server: Process, relay: Relay):
    with RawFrontend(tmp_path / "front") as frontend:
        frontend.handshake(NO_BOOK)
        frontend.begin()
        frontend.init()
        yield frontend


def revived(relay: Relay, times: int) -> None:
    end = time.monotonic() + 20
    while relay.revived < times:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_messages_and_fds_pass(frontend: RawFrontend) -> None:
    assert frontend.lookup(b"x").struct(w.EntryOut).attr.size == 4
    assert frontend.call(FrontendRequest.GET_QUEUE_NUM) == 2
    assert frontend.call(FrontendRequest.SET_VRING_NUM, VringState(index=9, num=1)) == 1  # refusals, too


def test_a_server_that_is_stopped_and_started_is_not_noticed(
    frontend: RawFrontend, server: Process, relay: Relay, tmp_path: Path
) -> None:
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    server.stop()
    token = frontend.submit(frontend.build(Opcode.WRITE, w.WriteIn(fh=fh, size=4), b"DATA", nodeid=nodeid), 24)
    assert frontend.poll(token, 1, 0.2) is None
    server.start()
    assert frontend.wait(token).struct(w.WriteOut).size == 4
    assert (tmp_path / "share" / "x").read_bytes() == b"DATA"
    assert frontend.read(nodeid, fh, 10).body == b"DATA"
    revived(relay, 1)


def test_a_server_that_is_killed_is_followed_by_one_that_goes_on(
    frontend: RawFrontend, server: Process, relay: Relay
) -> None:
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    for times in (1, 2, 3):
        server.kill()
        server.start()
        revived(relay, times)
        assert frontend.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=nodeid).errno == errno.ESTALE
        again = frontend.lookup(b"x").struct(w.EntryOut)
        assert again.nodeid != nodeid
        nodeid = again.nodeid


def test_requests_under_way_are_served_by_the_next_server(
    frontend: RawFrontend, server: Process, tmp_path: Path
) -> None:
    tokens = [frontend.submit(frontend.build(Opcode.MKDIR, w.MkdirIn(mode=0o755), b"die\0"))]
    server.wait()
    tokens += [frontend.submit(frontend.build(Opcode.MKDIR, w.MkdirIn(mode=0o755), b"d%d\0" % i)) for i in range(5)]
    # The next one dies over the same request; the third has a name for it already.
    server.start()
    server.wait()
    (tmp_path / "share" / "die").touch()
    good = SERVER.replace('b"die"', 'b"other"')
    server.process = subprocess.Popen(
        [sys.executable, "-c", good, *server.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert [frontend.wait(token).errno for token in tokens] == [errno.EEXIST, 0, 0, 0, 0, 0]
    assert {f"d{i}" for i in range(5)} <= set(os.listdir(tmp_path / "share"))


def test_messages_wait_for_the_next_server(frontend: RawFrontend, server: Process, relay: Relay) -> None:
    server.kill()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(frontend.call(FrontendRequest.GET_QUEUE_NUM)))
    thread.start()
    time.sleep(0.2)
    assert answers == []
    server.start()
    thread.join(20)
    assert answers == [2]
    revived(relay, 1)


def test_rings_that_were_stopped_stay_so(frontend: RawFrontend, server: Process, relay: Relay) -> None:
    base = frontend.stop_ring(frontend.rings[1])
    server.kill()
    server.start()
    revived(relay, 1)
    token = frontend.submit(frontend.build(Opcode.GETATTR, w.GetattrIn()))
    assert frontend.poll(token, 1, 0.3) is None
    frontend.start_ring(frontend.rings[1], base)
    assert frontend.wait(token).errno == 0


def test_a_reset_device_is_reset_for_the_next_server(frontend: RawFrontend, server: Process, relay: Relay) -> None:
    for ring in frontend.rings:
        frontend.stop_ring(ring)
    frontend.call(FrontendRequest.RESET_DEVICE)
    server.kill()
    server.start()
    revived(relay, 1)
    frontend.renew()
    frontend.begin()
    frontend.init()
    assert frontend.lookup(b"x").errno == 0


def test_a_front_end_that_goes_makes_room_for_the_next(
    frontend: RawFrontend, server: Process, relay: Relay, tmp_path: Path
) -> None:
    frontend.sock.close()
    with RawFrontend(tmp_path / "front") as second:
        second.handshake()  # one that keeps its book itself
        second.begin()
        second.init()
        nodeid = second.lookup(b"x").struct(w.EntryOut).nodeid
        server.stop()
        server.start()
        revived(relay, 1)
        assert second.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=nodeid).errno == 0


def test_a_front_end_may_come_and_go_while_there_is_no_server(tmp_path: Path) -> None:
    with Relay(tmp_path / "front", tmp_path / "back"):
        for _ in range(3):
            frontend = RawFrontend(tmp_path / "front")
            frontend.send(FrontendRequest.GET_FEATURES)
            frontend.close()


def test_a_server_that_keeps_no_book_is_not_followed(serve: Serve, tmp_path: Path, monkeypatch) -> None:
    from transfuse.transports.vhost_user import backend

    without = backend.protocol_features
    monkeypatch.setattr(backend, "protocol_features", lambda **wanted: without(**wanted) & NO_BOOK)
    serving = serve()
    with Relay(tmp_path / "front", serving.path), RawFrontend(tmp_path / "front") as frontend:
        frontend.handshake()
        frontend.begin()
        frontend.init()
        serving.server.close()
        assert frontend.sock.receive() is None


def test_nothing_is_left_open(serve: Serve, tmp_path: Path) -> None:
    serving = serve()

    def one() -> None:
        with Relay(tmp_path / "front", serving.path), RawFrontend(tmp_path / "front") as frontend:
            frontend.handshake(NO_BOOK)
            frontend.begin()
            frontend.init()
        assert not (tmp_path / "front").exists()

    one()
    before = open_fds(), threading.active_count()
    for _ in range(5):
        one()
    end = time.monotonic() + 10
    while (open_fds(), threading.active_count()) > before:
        assert time.monotonic() < end
        time.sleep(0.02)

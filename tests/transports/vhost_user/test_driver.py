"""The client's wire to a virtio-fs device: many requests under way, servers that come, go and lie."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.client import Client
from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import Filesystem
from transfuse.fs.values import Attr
from transfuse.server import Server
from transfuse.testing import connect
from transfuse.transports.vhost_user.backend import VhostUserTransport
from transfuse.transports.vhost_user.driver import VhostUserClientTransport
from transfuse.wire.opcodes import Opcode

C_VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")


class Device:
    """Servers on one socket, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.server: Server | None = None

    def serve(self, filesystem: Filesystem, **options: object) -> str:
        self.server = Server(filesystem, VhostUserTransport(self.path, **options)).start()  # type: ignore[arg-type]
        return self.path

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "fs.sock")
    yield device
    device.close()


@pytest.mark.parametrize(("queues", "size", "packed"), [(1, 256, False), (3, 4, False), (2, 3, True), (1, 2, False)])
def test_many_threads_read_and_write_what_is_theirs(device: Device, queues: int, size: int, packed: bool) -> None:
    path = device.serve(MemoryFilesystem(), queues=queues)
    failures: list[BaseException] = []

    def work(client: Client, number: int) -> None:
        try:
            mine = random.Random(number)
            for step in range(12):
                data = mine.randbytes(mine.choice((0, 1, 4095, 4097, 200_000, 1_100_000)))
                client.write_bytes(f"/{number}-{step}", data)
                assert client.read_bytes(f"/{number}-{step}") == data
                client.unlink(f"/{number}-{step}")
        except (OSError, AssertionError) as error:
            failures.append(error)

    with Client(VhostUserClientTransport(path, queues=queues, size=size, packed=packed)) as client:
        threads = [threading.Thread(target=work, args=(client, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert client.listdir("/") == []


def test_forgets_go_by_hiprio_and_arrive(device: Device) -> None:
    filesystem = MemoryFilesystem()
    path = device.serve(filesystem)
    with Client(VhostUserClientTransport(path)) as client:
        for number in range(200):
            client.write_bytes(f"/{number}", b"")
        client.drop_caches()
        session = device.server.session if device.server is not None else None
        assert session is not None
        deadline = time.monotonic() + 10
        while filesystem.lookup_count() > 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert filesystem.lookup_count() == 0


def test_a_server_that_goes_away_ends_calls_with_connection_error(device: Device) -> None:
    path = device.serve(MemoryFilesystem())
    with Client(VhostUserClientTransport(path)) as client:
        client.write_bytes("/x", b"x")
        device.close()
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                client.drop_caches()
                client.stat("/x")
                time.sleep(0.01)


def test_a_client_survives_the_restart_of_its_server(device: Device, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_bytes(b"data")
    state = tmp_path / "state"
    device.serve(HostDirectory(source), state_path=state)
    with (
        Client(VhostUserClientTransport(device.path, reconnect_s=20)) as client,
        client.open("/x", "rb", buffering=0) as file,
    ):
        assert file.read(2) == b"da"
        device.close()
        later = threading.Timer(0.3, lambda: device.serve(HostDirectory(source), state_path=state))
        later.start()
        assert file.read(2) == b"ta"
        client.write_bytes("/y", b"new")
        later.join()
    assert (source / "y").read_bytes() == b"new"


class Slow(MemoryFilesystem):
    """Attributes take until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()

    def getattr(self, req, nodeid, fh) -> Attr:  # type: ignore[no-untyped-def]
        self.entered.release()
        self.go.wait(20)
        return super().getattr(req, nodeid, fh)


def test_requests_under_way_do_not_hold_up_others(device: Device) -> None:
    filesystem = Slow()
    path = device.serve(filesystem)
    with Client(VhostUserClientTransport(path, size=64)) as client:
        waiting = [
            threading.Thread(target=lambda: client.exchange.call(Opcode.GETATTR, 1, (0, 0)), daemon=True)
            for _ in range(4)
        ]
        for thread in waiting:
            thread.start()
        for _ in waiting:
            assert filesystem.entered.acquire(timeout=20)
        assert client.exchange.call(Opcode.STATFS, 1).error == 0
        filesystem.go.set()
        for thread in waiting:
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.parametrize("lie", ["short", "length", "unique"])
def test_an_answer_that_is_not_as_it_must_be_is_eio(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    """The device is made to lie where it writes its answers."""
    with connect(MemoryFilesystem(), over="virtio", books=False) as client:
        wire = client.exchange.transport.inner  # type: ignore[attr-defined]
        original = VhostUserClientTransport._answer

        def spoilt(self: VhostUserClientTransport, under, written):  # type: ignore[no-untyped-def]
            view = self.frontend.memory.at_guest(under.answer_at, 16)
            if lie == "short":
                written = 3
            elif lie == "length":
                view[:4] = struct.pack("<I", written + 1)
            else:
                view[8:16] = struct.pack("<Q", 12345)
            return original(self, under, written)

        assert isinstance(wire, VhostUserClientTransport)
        with monkeypatch.context() as patch:
            patch.setattr(VhostUserClientTransport, "_answer", spoilt)
            assert client.exchange.call(Opcode.GETATTR, 1, (0, 0)).error == errno.EIO
        assert client.exchange.call(Opcode.GETATTR, 1, (0, 0)).error == 0


def test_a_device_that_breaks_the_ring_ends_the_connection() -> None:
    filesystem = Slow()
    why: list[BaseException] = []

    def ask(client: Client) -> None:
        try:
            client.exchange.call(Opcode.GETATTR, 1, (0, 0))
        except ConnectionError as error:
            why.append(error)

    with connect(filesystem, over="virtio", books=False) as client:
        asking = threading.Thread(target=ask, args=(client,))
        asking.start()
        assert filesystem.entered.acquire(timeout=20)
        frontend = client.exchange.transport.inner.frontend  # type: ignore[attr-defined]
        ring = frontend.rings[1]
        frontend.memory.at_guest(ring.areas[2] + 2, 2)[:] = struct.pack("<H", 77)
        os.eventfd_write(ring.call, 1)
        asking.join(20)
        filesystem.go.set()
    assert "used index" in str(why[0])


def test_a_request_too_large_for_any_buffer_is_refused_here() -> None:
    with connect(MemoryFilesystem(), over="virtio", books=False) as client:
        head = struct.pack("<IIQQIIII", 40 + (2 << 20), 16, 2, 1, 0, 0, 0, 0)
        with pytest.raises(OSError, match="at most") as raised:
            client.exchange.transport.send([head, bytes(2 << 20)])
        assert raised.value.errno == errno.EMSGSIZE


@pytest.mark.interop
@pytest.mark.skipif(not C_VIRTIOFSD.exists(), reason=f"needs the program {C_VIRTIOFSD}: not found")
@pytest.mark.needs("root")
def test_the_c_virtiofsd_is_driven_like_ours(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "hello").write_bytes(b"hello\n")
    path = tmp_path / "v.sock"
    server = subprocess.Popen(
        [C_VIRTIOFSD, "-f", f"--socket-path={path}", "-o", f"source={source}", "-o", "sandbox=chroot"],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        data = random.Random(1).randbytes(3_000_001)
        with Client(VhostUserClientTransport(path)) as client:
            assert client.read_bytes("/hello") == b"hello\n"
            client.mkdir("/d")
            client.write_bytes("/d/big", data)
            assert client.read_bytes("/d/big") == data
            client.rename("/d/big", "/moved")
            assert sorted(client.listdir("/")) == ["d", "hello", "moved"]
            with pytest.raises(FileNotFoundError):
                client.stat("/d/big")
        assert (source / "moved").read_bytes() == data
    finally:
        server.terminate()
        server.wait(10)



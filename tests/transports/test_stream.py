"""FUSE over SOCK_SEQPACKET: packets, sizes, ends, listeners."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transfuse.client import Client
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.shared import Shared
from transfuse.fs.values import Attr, Entry, FileRange
from transfuse.quiet import BURST
from transfuse.server import Server
from transfuse.transports.stream import StreamClientTransport, StreamListener, StreamTransport
from transfuse.wire.encode import RangeReply

Pair = tuple[StreamTransport, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    transport = StreamTransport(ours)
    yield transport, theirs
    transport.close()
    theirs.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# -- the server's end -------------------------------------------------------------------------------------------------


def test_one_packet_is_one_request(pair: Pair) -> None:
    transport, theirs = pair
    first, second = bytes(40), bytes(39) + b"another"
    theirs.send(first)
    theirs.send(second)
    channel = transport.open_channel()
    for expected in (first, second):
        got = channel.receive()
        assert got is not None
        buffer, start, end = got
        assert bytes(buffer[start:end]) == expected


def test_buffers_of_a_reply_are_one_packet(pair: Pair) -> None:
    transport, theirs = pair
    assert transport.open_channel().send([b"head", b"data"])
    assert theirs.recv(100) == b"headdata"


def test_receive_is_none_when_the_peer_is_gone(pair: Pair) -> None:
    transport, theirs = pair
    theirs.close()
    channel = transport.open_channel()
    assert channel.receive() is None
    assert channel.receive() is None


def test_send_is_false_when_the_peer_is_gone(pair: Pair) -> None:
    transport, theirs = pair
    theirs.close()
    assert not transport.open_channel().send(b"reply")


def test_close_wakes_every_worker(pair: Pair) -> None:
    transport, _ = pair
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(transport.open_channel().receive())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    transport.close()
    for thread in threads:
        thread.join(5)
    assert results == [None] * 3


def test_several_workers_share_one_socket_and_each_request_is_served_once(pair: Pair) -> None:
    transport, theirs = pair
    served: list[bytes] = []

    def work() -> None:
        channel = transport.open_channel()
        while (got := channel.receive()) is not None:
            buffer, start, end = got
            served.append(bytes(buffer[start:end]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(200):
        theirs.send(b"%040d" % number)
    until(lambda: len(served) == 200)
    transport.close()
    for thread in threads:
        thread.join(5)
    assert sorted(served) == [b"%040d" % number for number in range(200)]


@pytest.mark.parametrize("size", [1, 39])
def test_a_packet_that_is_no_request_ends_the_connection(
    pair: Pair, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    transport, theirs = pair
    for _ in range(100):
        theirs.send(bytes(size))
    first, second = transport.open_channel(), transport.open_channel()
    assert first.receive() is None and second.receive() is None
    assert [record.getMessage() for record in caplog.records] == [
        f"a packet of {size} bytes where 40 to 1179648 belong: the connection ends"
    ]
    with pytest.raises(ConnectionError):
        theirs.send(bytes(40))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_reply_that_does_not_fit_becomes_eio(pair: Pair, order: str) -> None:
    transport, theirs = pair
    size = 16 + (8 << 20)
    reply = struct.pack(order + "IiQ", size, 0, 42)
    assert not transport.open_channel().send([reply, bytes(8 << 20)])
    # len 16, error -EIO, unique 42, in the reply's own byte order
    assert theirs.recv(100) == struct.pack(order + "IiQ", 16, -errno.EIO, 42)


def test_a_notification_that_does_not_fit_is_the_callers_error(pair: Pair) -> None:
    with pytest.raises(OSError) as caught:
        pair[0].notify([bytes(8 << 20)])
    assert caught.value.errno == errno.EMSGSIZE


def test_a_request_larger_than_agreed_ends_the_connection(pair: Pair) -> None:
    transport, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    small = StreamTransport(transport._socket.sock.dup(), max_write=4096)
    try:
        theirs.send(bytes(200_000))
        assert small.open_channel().receive() is None
    finally:
        small.close()


def test_a_range_is_read_from_its_file(pair: Pair, tmp_path: Path) -> None:
    transport, theirs = pair
    (tmp_path / "f").write_bytes(b"0123456789")
    with (tmp_path / "f").open("rb") as file:
        transport.open_channel().send(RangeReply(8, "<", file.fileno(), 7, 100))
    assert theirs.recv(100) == struct.pack("<IiQ", 19, 0, 8) + b"789"


def test_a_range_that_can_not_be_read_is_its_error(pair: Pair, tmp_path: Path) -> None:
    transport, theirs = pair
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        transport.open_channel().send(RangeReply(8, "<", fd, 0, 100))
    finally:
        os.close(fd)
    assert theirs.recv(100) == struct.pack("<IiQ", 16, -errno.EISDIR, 8)


def test_the_peer_is_known(pair: Pair) -> None:
    assert pair[0].peer == (os.getpid(), os.getuid(), os.getgid())


def test_max_write_is_whole_pages_that_fit_the_socket(pair: Pair) -> None:
    transport, _ = pair
    room = transport._socket.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert transport.max_write % 4096 == 0 and 4096 <= transport.max_write <= min(room, 1 << 20)


def test_pids_of_the_peer_have_no_groups(pair: Pair) -> None:
    assert pair[0].groups_of(os.getpid()) == ()


def test_backing_files_are_refused(pair: Pair) -> None:
    with pytest.raises(PermissionError):
        pair[0].register_backing(0)


def test_another_kind_of_socket_is_refused() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, pytest.raises(ValueError, match="SOCK_SEQPACKET"):
        StreamTransport(ours)


def test_an_inherited_fd_is_served() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Server(MemoryFilesystem(), StreamTransport.from_fd(ours.detach())), Client(StreamClientTransport(theirs)) as c:
        c.write_bytes("/f", b"hello")
        assert c.read_bytes("/f") == b"hello"


# -- the client's end -------------------------------------------------------------------------------------------------


def test_a_file_larger_than_every_packet_goes_through() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    data = os.urandom(5 << 20)
    with Server(MemoryFilesystem(), StreamTransport(ours)), Client(StreamClientTransport(theirs)) as client:
        client.write_bytes("/f", data)
        assert client.read_bytes("/f") == data


def test_small_sockets_carry_large_files_in_small_pieces() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    data = os.urandom(1 << 20)
    transport = StreamTransport(ours, max_write=64 << 10)
    with Server(MemoryFilesystem(), transport), Client(StreamClientTransport(theirs)) as client:
        assert client.connection.max_write == 64 << 10
        client.write_bytes("/f", data)
        assert client.read_bytes("/f") == data


def test_a_range_of_a_file_reaches_the_client(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789" * 1000)

    class OneFile(Filesystem):
        def __init__(self) -> None:
            self._file = (tmp_path / "f").open("rb")

        def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
            return Entry(self.getattr(req, 2, None))

        def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
            return Attr.directory(1) if nodeid == 1 else Attr.file(2, 10_000)

        def read(self, req: Request, nodeid: int, fh: int, size: int, offset: int) -> FileRange:
            return FileRange(self._file.fileno(), offset, size)

        def destroyed(self) -> None:
            self._file.close()

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Server(OneFile(), StreamTransport(ours)), Client(StreamClientTransport(theirs)) as client:
        assert client.read_bytes("/f") == b"0123456789" * 1000


def test_a_server_that_vanishes_fails_the_waiting_call() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    threading.Timer(0.05, ours.close).start()
    client = Client(StreamClientTransport(theirs))
    with pytest.raises(ConnectionError):
        client.connect()


def test_a_request_to_a_server_that_is_gone_is_no_broken_pipe() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    transport = StreamClientTransport(theirs)
    ours.close()
    with pytest.raises(ConnectionResetError, match="the server is gone"):
        transport.send([bytes(40)])
    transport.close()


def test_a_packet_too_large_for_the_client_ends_the_connection() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)  # SO_SNDBUFFORCE
    client = Client(StreamClientTransport(theirs))
    threading.Timer(0.02, ours.send, (bytes(2 << 20),)).start()
    with pytest.raises(ConnectionError, match="a packet of 2097152 bytes"):
        client.connect()
    ours.close()


def test_the_readers_thread_ends_with_the_client() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    transport = StreamClientTransport(theirs)
    with Server(MemoryFilesystem(), StreamTransport(ours)), Client(transport):
        assert transport._reader is not None and transport._reader.is_alive()
    assert not transport._reader.is_alive() and theirs.fileno() == -1


def test_notifications_reach_the_client() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    events: list[object] = []
    with (
        Server(MemoryFilesystem(), StreamTransport(ours)) as server,
        Client(StreamClientTransport(theirs), on_event=events.append) as client,
    ):
        epoch = client.cache.epoch
        assert server.notify is not None
        server.notify.inc_epoch()
        until(lambda: len(events) == 1)
        assert client.cache.epoch == epoch + 1
        assert server.notify.retrieve(1, 0, 10).result(5) == b""


# -- listeners --------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[StreamListener]:
    one = Shared(MemoryFilesystem())
    with StreamListener(tmp_path / "sock", lambda t: Server(one.view(), t).start(), max_clients=3) as listener:
        yield listener


def test_the_socket_file_is_for_its_owner_only(shared: StreamListener) -> None:
    assert stat.S_IMODE(os.stat(shared.path).st_mode) == 0o600


def test_clients_of_one_filesystem_see_each_others_files(shared: StreamListener) -> None:
    a, b = (Client(StreamClientTransport.connect(shared.path)) for _ in range(2))
    with a, b:
        a.write_bytes("/f", b"from a")
        assert b.read_bytes("/f") == b"from a"


def test_a_client_that_leaves_takes_nothing_of_the_others_along(shared: StreamListener) -> None:
    with Client(StreamClientTransport.connect(shared.path)) as a:
        a.write_bytes("/f", b"text")
        with a.open_raw("/f") as file:
            with Client(StreamClientTransport.connect(shared.path)) as b:
                b.unlink("/f")
            assert file.readall() == b"text"


def test_a_factory_gives_each_client_a_filesystem_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with (
        StreamListener(path, lambda t: Server(MemoryFilesystem(), t).start()),
        Client(StreamClientTransport.connect(path)) as a,
        Client(StreamClientTransport.connect(path)) as b,
    ):
        a.write_bytes("/f", b"from a")
        assert not b.exists("/f")


def test_clients_are_bounded_and_room_is_made_by_those_that_leave(shared: StreamListener) -> None:
    clients = [Client(StreamClientTransport.connect(shared.path)).connect() for _ in range(3)]
    with pytest.raises(ConnectionError):
        Client(StreamClientTransport.connect(shared.path)).connect()
    clients.pop().close()
    until(lambda: shared.clients == 2)
    with Client(StreamClientTransport.connect(shared.path)) as again:
        assert again.listdir("/") == []
    for client in clients:
        client.close()


def test_a_client_that_is_refused_by_its_credentials_is_cut_off(tmp_path: Path) -> None:
    seen: list[int] = []

    def refuse(transport: StreamTransport) -> Server:
        seen.append(transport.peer.uid)
        raise PermissionError("not you")

    with StreamListener(tmp_path / "sock", refuse), pytest.raises(ConnectionError):
        Client(StreamClientTransport.connect(tmp_path / "sock")).connect()
    assert seen == [os.getuid()]


def test_close_ends_connections_and_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listener = StreamListener(path, lambda t: Server(MemoryFilesystem(), t).start()).start()
    with Client(StreamClientTransport.connect(path)) as client:
        listener.close()
        assert not path.exists()
        with pytest.raises(ConnectionError):
            client.statvfs()
    listener.close()


def test_a_crowd_of_refused_connections_is_a_few_lines(
    shared: StreamListener, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [Client(StreamClientTransport.connect(shared.path)).connect() for _ in range(3)]
    for _ in range(5 * BURST):
        StreamClientTransport.connect(shared.path).close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as last:
        last.connect(shared.path)
        assert last.recv(1) == b""  # those before it were seen to
    refused = [message for message in caplog.messages if "3 clients are connected already" in message]
    assert len(refused) == BURST
    for client in kept:
        client.close()
    shared.close()
    assert caplog.messages[-1] == f"{4 * BURST + 1} more refused connections were not logged"


def test_accept_that_fails_is_not_tried_again_at_once(tmp_path: Path) -> None:
    class Full:
        tried = 0

        def __init__(self, real: socket.socket) -> None:
            self.shutdown, self.close = real.shutdown, real.close

        def accept(self) -> None:
            Full.tried += 1
            raise OSError(errno.EMFILE, "Too many open files")

    listener = StreamListener(tmp_path / "sock", lambda t: Server(MemoryFilesystem(), t))
    listener._listening = Full(listener._listening)  # type: ignore[assignment]
    with listener:
        time.sleep(0.35)
    assert 2 <= Full.tried <= 5


def test_wait_ends_when_the_listener_is_closed(tmp_path: Path) -> None:
    with StreamListener(tmp_path / "sock", lambda t: Server(MemoryFilesystem(), t)) as listener:
        waiting = threading.Thread(target=listener.wait)
        waiting.start()
        time.sleep(0.05)
        assert waiting.is_alive()
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_file_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    with StreamListener(path, lambda t: Server(MemoryFilesystem(), t).start()):
        Client(StreamClientTransport.connect(path)).connect().close()


def test_a_living_server_is_not_replaced(shared: StreamListener) -> None:
    with pytest.raises(OSError, match="a server listens there") as caught:
        StreamListener(shared.path, lambda t: Server(MemoryFilesystem(), t))
    assert caught.value.errno == errno.EADDRINUSE and os.path.exists(shared.path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sock").write_text("precious")
    with pytest.raises(OSError, match="exists and is no socket"):
        StreamListener(tmp_path / "sock", lambda t: Server(MemoryFilesystem(), t))
    assert (tmp_path / "sock").read_text() == "precious"


def test_another_servers_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listener = StreamListener(path, lambda t: Server(MemoryFilesystem(), t).start()).start()
    path.unlink()
    path.write_text("somebody else's")
    listener.close()
    assert path.exists()

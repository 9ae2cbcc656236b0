"""Whole messages with their fds over a socket pair."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.transports.vhost_user.messages import MAX_PAYLOAD, NEED_REPLY, REPLY
from transfuse.transports.vhost_user.socket import (
    MessageSocket,
    check_event_fd,
    check_socket_fd,
    connect,
)


@pytest.fixture
def pair():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours = MessageSocket(right)
    yield left, ours
    left.close()
    ours.close()


def header(request: int = 1, flags: int = 1, size: int = 0) -> bytes:
    return struct.pack("=III", request, flags, size)


def send_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_a_message_is_header_and_payload(pair) -> None:
    left, ours = pair
    left.sendall(header(5, 1 | NEED_REPLY, 8) + b"12345678")
    message = ours.receive()
    assert (message.request, message.payload, message.need_reply, len(message.fds)) == (5, b"12345678", True, 0)


def test_what_is_sent_has_version_1(pair) -> None:
    left, ours = pair
    ours.send(44, b"abc", flags=REPLY)
    assert left.recv(100) == header(44, 5, 3) + b"abc"


def test_a_message_may_come_in_pieces(pair) -> None:
    left, ours = pair
    whole = header(5, 1, 8) + b"12345678"

    def trickle() -> None:
        for at in range(len(whole)):
            left.sendall(whole[at : at + 1])

    thread = threading.Thread(target=trickle)
    thread.start()
    assert ours.receive().payload == b"12345678"
    thread.join()


def test_fds_arrive_as_files_of_ours(pair) -> None:
    left, ours = pair
    read, write = os.pipe()
    send_fds(left, header(12, 1, 8) + bytes(8), [write])
    os.close(write)
    message = ours.receive()
    fd = message.fds.take()
    assert not os.get_inheritable(fd)
    os.write(fd, b"x")
    os.close(fd)
    assert os.read(read, 2) == b"x"
    assert os.read(read, 2) == b""
    os.close(read)


def test_fds_that_nobody_takes_are_closed(pair) -> None:
    left, ours = pair
    read, write = os.pipe()
    send_fds(left, header(12, 1, 0), [write, write])
    os.close(write)
    message = ours.receive()
    assert len(message.fds) == 2
    message.fds.close()
    assert os.read(read, 1) == b""  # no writer is left
    os.close(read)


def test_more_fds_than_any_message_has_are_refused_and_closed(pair) -> None:
    left, ours = pair
    read, write = os.pipe()
    send_fds(left, header(12, 1, 0), [write] * 20)
    os.close(write)
    with pytest.raises(RemoteProtocolError, match="more than 8 fds"):
        ours.receive()
    assert os.read(read, 1) == b""
    os.close(read)


def test_fds_in_the_middle_of_a_message_are_closed(pair) -> None:
    left, ours = pair
    read, write = os.pipe()
    left.sendall(header(12, 1, 8) + bytes(4))
    send_fds(left, bytes(4), [write])
    os.close(write)
    assert len(ours.receive().fds) == 0
    assert os.read(read, 1) == b""
    os.close(read)


@pytest.mark.parametrize("flags", [0, 2, 3, 1 | 16, 1 | 1 << 31], ids=hex)
def test_another_version_or_unknown_flags_are_refused(pair, flags: int) -> None:
    left, ours = pair
    left.sendall(header(1, flags))
    with pytest.raises(RemoteProtocolError, match="flags"):
        ours.receive()


def test_a_payload_longer_than_any_is_refused_before_it_is_read(pair) -> None:
    left, ours = pair
    left.sendall(header(1, 1, MAX_PAYLOAD + 1))
    with pytest.raises(RemoteProtocolError, match=f"size {MAX_PAYLOAD + 1}"):
        ours.receive()


def test_the_end_between_messages_is_no_error(pair) -> None:
    left, ours = pair
    left.close()
    assert ours.receive() is None


@pytest.mark.parametrize("part", [header()[:5], header(5, 1, 8) + b"123"], ids=["header", "payload"])
def test_the_end_inside_a_message_is_refused(pair, part: bytes) -> None:
    left, ours = pair
    left.sendall(part)
    left.close()
    with pytest.raises(RemoteProtocolError, match="ended after"):
        ours.receive()


def test_close_wakes_a_receiver_and_only_then_frees_the_fd(pair) -> None:
    _, ours = pair
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(ours.receive()))
    thread.start()
    ours.close()
    thread.join(10)
    assert got == [None]
    assert ours.receive() is None
    with pytest.raises(ConnectionError):
        ours.send(1)
    ours.close()


def test_sending_to_a_peer_that_is_gone_is_a_connection_error(pair) -> None:
    left, ours = pair
    left.close()
    with pytest.raises(ConnectionError):
        ours.send(1)


def test_readable_tells_the_socket_from_other_fds(pair) -> None:
    left, ours = pair
    event = os.eventfd(0)
    assert ours.readable(0, event) == set()
    os.eventfd_write(event, 1)
    assert ours.readable(5, event) == {event}
    left.sendall(header())
    assert ours.readable(5, event) == {event, -1}
    os.close(event)
    ours.close()
    assert ours.readable(0) is None


def test_only_stream_sockets_are_taken() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right, pytest.raises(ValueError, match="SOCK_STREAM"):
        MessageSocket(right)


def test_event_fds_are_eventfds_or_pipes() -> None:
    event = os.eventfd(0)
    check_event_fd(event)
    assert not os.get_blocking(event)
    os.close(event)
    for fd in os.pipe():
        check_event_fd(fd)
        os.close(fd)
    fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(RemoteProtocolError):
        check_event_fd(fd)
    os.close(fd)
    fd = os.memfd_create("file")
    with pytest.raises(RemoteProtocolError):
        check_event_fd(fd)
    os.close(fd)


def test_a_channel_is_a_unix_stream_socket() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right:
        check_socket_fd(left.fileno())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, pytest.raises(RemoteProtocolError):
        check_socket_fd(sock.fileno())
    with socket.socket(socket.AF_INET) as sock, pytest.raises(RemoteProtocolError):
        check_socket_fd(sock.fileno())
    read, write = os.pipe()
    with pytest.raises(RemoteProtocolError):
        check_socket_fd(read)
    os.close(read)
    os.close(write)


def test_connecting_is_to_a_path(tmp_path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(1)
        connected = connect(tmp_path / "s")
        listening.accept()[0].close()
        assert connected.receive() is None
        assert connected.gone()
        connected.close()
    with pytest.raises(ConnectionRefusedError):
        connect(tmp_path / "s")


def test_a_peer_that_has_not_hung_up_is_there(pair) -> None:
    left, ours = pair
    assert not ours.gone()
    left.sendall(b"x")
    left.close()
    assert not ours.gone()  # there is something to read first

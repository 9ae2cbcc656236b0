"""Requests of the back-end to the front-end."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

import pytest

from transfuse.transports.vhost_user.messages import REPLY, U64, BackendRequest, ShmemMapping
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.transports.vhost_user.upcalls import BackendChannel
from transports.vhost_user.window_peer import WindowPeer

UNMAP, CONFIG = BackendRequest.SHMEM_UNMAP, BackendRequest.CONFIG_CHANGE_MSG


@pytest.fixture
def peer():
    peer = WindowPeer()
    yield peer
    peer.close()


def test_a_request_is_done_when_it_is_answered(peer: WindowPeer) -> None:
    peer.channel.call(CONFIG)


def test_a_refusal_is_an_error(peer: WindowPeer) -> None:
    with pytest.raises(OSError, match="refused SHMEM_UNMAP") as caught:
        peer.channel.call(UNMAP, ShmemMapping(length=4096))
    assert caught.value.errno == errno.EIO


def test_without_acknowledgements_nothing_is_waited_for() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = BackendChannel(MessageSocket(left), False)
    channel.call(CONFIG)
    assert right.recv(100)[4] == 1  # version, no need_reply
    channel.close()
    right.close()


def test_a_wait_can_be_given_up_and_its_answer_is_passed_over(peer: WindowPeer) -> None:
    peer.answers.clear()
    errors: list[OSError] = []

    def wait() -> None:
        try:
            peer.channel.call(CONFIG)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not errors:
        peer.channel.interrupt()
        time.sleep(0.005)
    thread.join(10)
    assert isinstance(errors[0], InterruptedError)
    peer.answers.set()
    peer.channel.call(CONFIG)
    with pytest.raises(OSError, match="refused"):  # the answers are still in step
        peer.channel.call(UNMAP, ShmemMapping(length=4096))


def test_an_interrupt_while_nobody_waits_is_nothing(peer: WindowPeer) -> None:
    peer.channel.interrupt()
    peer.channel.call(CONFIG)


def test_a_front_end_that_is_gone_is_a_connection_error(peer: WindowPeer) -> None:
    peer.sock.close()
    with pytest.raises(ConnectionError):
        peer.channel.call(CONFIG)
    with pytest.raises(ConnectionError):
        peer.channel.call(CONFIG)


def test_closing_wakes_who_waits(peer: WindowPeer) -> None:
    peer.answers.clear()
    errors: list[OSError] = []

    def wait() -> None:
        try:
            peer.channel.call(CONFIG)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    peer.channel.close()
    thread.join(10)
    assert isinstance(errors[0], ConnectionError)


@pytest.mark.parametrize(
    ("request_", "flags", "payload"),
    [(UNMAP, REPLY, bytes(8)), (CONFIG, 0, bytes(8)), (CONFIG, REPLY, bytes(4))],
    ids=["another request", "no reply", "too short"],
)
def test_a_wrong_answer_ends_the_channel(request_: int, flags: int, payload: bytes) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel, other = BackendChannel(MessageSocket(left), True), MessageSocket(right)
    other.send(request_, payload, flags=flags)
    with pytest.raises(ConnectionError):
        channel.call(CONFIG)
    with pytest.raises(ConnectionError):
        channel.call(CONFIG)
    channel.close()
    other.close()


def test_fds_in_an_answer_are_closed() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel, other = BackendChannel(MessageSocket(left), True), MessageSocket(right)
    read, write = os.pipe()
    other.send(CONFIG, U64(value=0).encode(), [write], REPLY)
    os.close(write)
    channel.call(CONFIG)
    assert os.read(read, 1) == b""
    os.close(read)
    channel.close()
    other.close()

"""The reconnecting front-end, between two sockets of the test: what a second back-end is told."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from guests import relay
from guests.relay import Message, Relay, receive, send

USED_INDEX = 7
USER, USED = 0x7F0000000000, 0x3000


@pytest.fixture
def backs(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "back"))
        listener.listen()
        listener.settimeout(10)
        yield listener


@pytest.fixture
def between(tmp_path: Path, backs: socket.socket) -> Iterator[Relay]:
    with Relay(tmp_path / "back", tmp_path) as found:
        yield found


def _connected(between: Relay, backs: socket.socket) -> tuple[socket.socket, socket.socket]:
    front = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    front.settimeout(10)
    front.connect(str(between.socket))
    back = backs.accept()[0]
    back.settimeout(10)
    return front, back


def _closed(message: Message) -> Message:
    for fd in message.fds:
        os.close(fd)
    return message


def test_messages_answers_and_fds_pass_both_ways(between: Relay, backs: socket.socket) -> None:
    front, back = _connected(between, backs)
    reading, writing = os.pipe()
    with front, back:
        send(front, Message(relay.SET_VRING_CALL, 1, struct.pack("=Q", 0), [writing]))
        os.close(writing)
        got = receive(back)
        os.write(got.fds[0], b"through")
        assert os.read(reading, 10) == b"through"
        assert _closed(got).payload == struct.pack("=Q", 0)
        send(front, Message(relay.GET_FEATURES, 1, b""))
        assert receive(back).request == relay.GET_FEATURES
        send(back, Message(relay.GET_FEATURES, 5, struct.pack("=Q", 1 << 32)))
        assert receive(front).payload == struct.pack("=Q", 1 << 32)
    os.close(reading)


def _start(front: socket.socket, memory: int, kick: int) -> list[Message]:
    """What QEMU says until a ring runs; nothing of it is answered without REPLY_ACK."""
    region = relay.REGION.pack(0, 1 << 16, USER, 0)
    address = struct.pack("=IIQQQQ", 0, 0, USER, USER + USED, USER + 0x2000, 0)
    said = [
        Message(relay.SET_OWNER, 1, b""),
        Message(relay.SET_FEATURES, 1, struct.pack("=Q", 1 << 32)),
        Message(relay.SET_MEM_TABLE, 1, struct.pack("=II", 1, 0) + region, [memory]),
        Message(relay.SET_VRING_NUM, 1, struct.pack("=II", 0, 128)),
        Message(relay.SET_VRING_BASE, 1, struct.pack("=II", 0, 0)),
        Message(relay.SET_VRING_ADDR, 1, address),
        Message(relay.SET_VRING_KICK, 1, struct.pack("=Q", 0), [kick]),
    ]
    for message in said:
        send(front, message)
    return said


def test_next_back_end_is_told_all_and_goes_on_from_the_used_index(between: Relay, backs: socket.socket) -> None:
    front, back = _connected(between, backs)
    memory, kick = os.memfd_create("guest"), os.eventfd(0, os.EFD_NONBLOCK)
    os.ftruncate(memory, 1 << 16)
    os.pwrite(memory, struct.pack("<HH", 0, USED_INDEX), USED)
    with front:
        with back:
            said = _start(front, memory, kick)
            assert [_closed(receive(back)).request for _ in said] == [message.request for message in said]
        after = backs.accept()[0]
        with after:
            after.settimeout(10)
            assert receive(after).request == relay.GET_FEATURES
            send(after, Message(relay.GET_FEATURES, 5, struct.pack("=Q", 1 << 32)))
            told = {message.request: message for message in (_closed(receive(after)) for _ in said)}
            between.wait_for(2)
            assert set(told) == {message.request for message in said}
            assert told[relay.SET_VRING_BASE].payload == struct.pack("=II", 0, USED_INDEX)
            assert told[relay.SET_VRING_ADDR].payload == said[5].payload
            assert os.eventfd_read(kick) == 1, "what was in the ring already must be looked at"
    os.close(memory)
    os.close(kick)


def test_inflight_area_is_asked_for_once_and_given_to_the_next_back_end(between: Relay, backs: socket.socket) -> None:
    front, back = _connected(between, backs)
    memory, kick, area = os.memfd_create("guest"), os.eventfd(0, os.EFD_NONBLOCK), os.memfd_create("area")
    os.ftruncate(memory, 1 << 16)
    with front:
        with back:
            send(front, Message(relay.SET_PROTOCOL_FEATURES, 1, struct.pack("=Q", relay.INFLIGHT_SHMFD)))
            # a second ring of which nothing is known but this
            send(front, Message(relay.SET_VRING_CALL, 1, struct.pack("=Q", 1 | relay.NO_FD)))
            said = _start(front, memory, kick)
            for _ in range(len(said) + 1):
                _closed(receive(back))
            asked = receive(back)
            assert (asked.request, asked.payload) == (relay.GET_INFLIGHT_FD, relay.INFLIGHT.pack(0, 0, 2, 128))
            send(back, Message(relay.GET_INFLIGHT_FD, 5, relay.INFLIGHT.pack(4096, 0, 2, 128), [area]))
            assert [_closed(receive(back)).request for _ in range(2)] == [relay.SET_INFLIGHT_FD, relay.SET_VRING_KICK]
        after = backs.accept()[0]
        with after:
            after.settimeout(10)
            for features in (relay.GET_FEATURES, relay.GET_PROTOCOL_FEATURES):
                assert receive(after).request == features
                send(after, Message(features, 5, struct.pack("=Q", 1 << 32)))
            told = {}
            while relay.SET_VRING_KICK not in told:
                message = receive(after)
                if message.request == relay.SET_INFLIGHT_FD:
                    assert os.fstat(message.fds[0]).st_ino == os.fstat(area).st_ino
                told[message.request] = _closed(message)
            assert told[relay.SET_INFLIGHT_FD].payload == relay.INFLIGHT.pack(4096, 0, 2, 128)
    for fd in (memory, kick, area):
        os.close(fd)


def test_stopped_ring_is_not_started_by_the_next_back_end(between: Relay, backs: socket.socket) -> None:
    front, back = _connected(between, backs)
    memory, kick = os.memfd_create("guest"), os.eventfd(0, os.EFD_NONBLOCK)
    os.ftruncate(memory, 1 << 16)
    with front:
        with back:
            said = _start(front, memory, kick)
            for _ in said:
                _closed(receive(back))
            send(front, Message(relay.GET_VRING_BASE, 1, struct.pack("=II", 0, 0)))
            assert receive(back).request == relay.GET_VRING_BASE
        # unanswered when the back-end went away: the relay knows the answer itself
        answer = None
        after = backs.accept()[0]
        with after:
            after.settimeout(10)
            assert receive(after).request == relay.GET_FEATURES
            send(after, Message(relay.GET_FEATURES, 5, struct.pack("=Q", 1 << 32)))
            told = [_closed(receive(after)).request for _ in range(3)]
            answer = receive(front)
        assert told == [relay.SET_OWNER, relay.SET_FEATURES, relay.SET_MEM_TABLE]
        assert answer.request == relay.GET_VRING_BASE
        assert answer.payload == struct.pack("=II", 0, 0)
    os.close(memory)
    os.close(kick)

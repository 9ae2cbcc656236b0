"""What all transports share: the plain loop of a worker, and flattening a message."""

from __future__ import annotations

import errno
import os
from array import array

from transfuse.errors import RemoteProtocolError
from transfuse.transports.base import flatten, serve_channel
from transfuse.wire.encode import RangeReply


class Worker:
    """A worker that can be asked to rest."""

    step_at, park_at = 1, 2

    def __init__(self) -> None:
        self.counters = array("Q", bytes(24))
        self.woken = 0
        self.parked = 0
        self.stays = True

    def wake(self) -> None:
        self.woken += 1
        self.counters[0] = 0

    def park(self) -> bool:
        self.parked += 1
        self.counters[2] = 0
        return self.stays


class Channel:
    """Requests from a list; replies into another."""

    def __init__(self, requests: list[bytes], wanted: bool = True) -> None:
        self.requests = requests
        self.sent: list[bytes] = []
        self.wanted = wanted

    def receive(self):
        return (self.requests[0], 0, len(self.requests.pop(0))) if self.requests else None

    def send(self, message) -> bool:
        self.sent.append(message)
        return self.wanted


def serve(channel: Channel, handle, worker: Worker | None = None) -> list[tuple[bytes, int, bytes]]:
    lost: list[tuple[bytes, int, bytes]] = []
    serve_channel(channel, handle, lambda *what: lost.append(what), worker or Worker())
    return lost


def test_every_request_is_answered_in_turn():
    channel = Channel([b"a", b"b"])
    assert serve(channel, lambda buffer, start, end, where: buffer[start:end] * 2) == []
    assert channel.sent == [b"aa", b"bb"]


def test_a_request_without_a_reply_sends_nothing():
    channel = Channel([b"a"])
    serve(channel, lambda *_: None)
    assert channel.sent == []


def test_a_reply_that_nobody_wants_is_reported_with_its_request():
    assert serve(Channel([b"a"], wanted=False), lambda *_: b"late") == [(b"a", 0, b"late")]


def test_a_message_that_cannot_be_answered_is_dropped_and_the_next_is_served(caplog):
    def handle(buffer, *_):
        if buffer == b"bad":
            raise RemoteProtocolError("no header")
        return b"fine"

    channel = Channel([b"bad", b"good"])
    serve(channel, handle)
    assert channel.sent == [b"fine"]
    assert "no header" in caplog.text


def test_steps_are_counted_before_and_after_each_request():
    worker = Worker()
    seen: list[int] = []
    serve(Channel([b"a", b"b"]), lambda *_: seen.append(worker.counters[1]), worker)
    assert seen == [1, 3]
    assert worker.counters[1] == 4


def test_a_sleeping_monitor_is_woken_by_a_request():
    worker = Worker()
    worker.counters[0] = 1
    serve(Channel([b"a", b"b"]), lambda *_: None, worker)
    assert worker.woken == 1


def test_a_worker_asked_to_rest_rests_after_its_request():
    worker = Worker()
    worker.counters[2] = 1
    channel = Channel([b"a", b"b"])
    serve(channel, lambda *_: b"x", worker)
    assert worker.parked == 1
    assert channel.sent == [b"x", b"x"]


def test_a_worker_sent_home_leaves_the_next_request():
    worker = Worker()
    worker.counters[2] = 1
    worker.stays = False
    channel = Channel([b"a", b"b"])
    serve(channel, lambda *_: b"x", worker)
    assert channel.requests == [b"b"]


def test_buffers_of_a_message_are_joined():
    assert flatten([b"ab", bytearray(b"cd"), memoryview(b"ef")]) == b"abcdef"


def test_a_range_is_read_behind_its_header(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    try:
        whole = flatten(RangeReply(8, "<", fd, 7, 100))
    finally:
        os.close(fd)
    assert whole == (19).to_bytes(4, "little") + bytes(4) + (8).to_bytes(8, "little") + b"789"


def test_a_range_that_cannot_be_read_becomes_an_error_reply(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        whole = flatten(RangeReply(8, ">", fd, 0, 10))
    finally:
        os.close(fd)
    assert whole == (16).to_bytes(4, "big") + (-errno.EISDIR).to_bytes(4, "big", signed=True) + (8).to_bytes(8, "big")

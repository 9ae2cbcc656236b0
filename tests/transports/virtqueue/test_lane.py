"""The loop between a device queue and a session, with a driver on the other side of the eventfds."""

from __future__ import annotations

import errno
import os
import select
import struct
import threading
import time
from array import array

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.transports.virtqueue.layout import (
    DESC_INDIRECT,
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
)
from transfuse.wire.encode import RangeReply, RangeWrite
from transports.virtqueue.rings import FEATURES, Rings

GETATTR, FORGET, READ, WRITE, INTERRUPT, BATCH_FORGET = 3, 2, 15, 16, 36, 42
ROOM = 8192
FULL = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX


def header(opcode, size, unique=1, order="<", extlen=0):
    return struct.pack(order + "IIQQIIIHH", size, opcode, unique, 1, 0, 0, 0, extlen, 0)


def reply_header(size, unique=1, error=0, order="<"):
    return struct.pack(order + "IiQ", size, error, unique)


class Worker:
    """What transfuse.workers gives a loop."""

    def __init__(self) -> None:
        self.counters = array("Q", bytes(8 * 3))
        self.step_at, self.park_at = 1, 2
        self.woken = 0
        self.stay = False

    def wake(self) -> None:
        self.woken += 1
        self.counters[0] = 0

    def park(self) -> bool:
        self.counters[self.park_at] = 0
        return self.stay


class Wire:
    """A lane with workers, and a driver that sends one request at a time."""

    def __init__(self, arena, features=FULL, size=8, *, detached=False, kick=True, room=ROOM):
        self.arena = arena
        self.rings = Rings(arena, features, size, table_entries=32)
        self.kick, self.call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        self.complaints: list[str] = []
        self.broken: list[Exception] = []
        self.lost: list[bytes] = []
        self.lane = arena.form.Lane(
            self.rings.device,
            room,
            kick=self.kick if kick else None,
            call=self.call,
            complain=lambda text, *values: self.complaints.append(text % values),
            on_broken=self.broken.append,
        )
        self.detached = detached
        self.workers: list[Worker] = []
        self.threads: list[threading.Thread] = []
        self.ended: list[str] = []

    def start(self, workers=1):
        for _ in range(workers):
            worker = Worker()
            thread = threading.Thread(target=self._serve, args=(worker,))
            self.workers.append(worker)
            self.threads.append(thread)
            thread.start()

    def _serve(self, worker):
        handle_detached = self.handle_detached if self.detached else None
        self.ended.append(self.lane.serve(self.handle, handle_detached, self.undelivered, worker))

    def join(self):
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()
        self.threads = []

    def close(self):
        self.lane.stop(10)
        self.join()
        self.lane.close()
        os.close(self.kick)
        os.close(self.call)
        self.__dict__.clear()  # the fixture would keep the memory

    # -- what a session does; tests replace it

    def handle(self, buffer, start, end, chain):
        return reply_header(16 + end - start) + bytes(buffer[start:end])

    def handle_detached(self, buffer, start, end, chain, payload_size):
        raise AssertionError("no detached WRITE was expected")

    def undelivered(self, buffer, start, message):
        self.lost.append(message)

    # -- the driver

    def send(self, request, room=ROOM, token=None, pieces=3):
        cuts = sorted({0, len(request), *(len(request) * i // pieces for i in range(1, pieces))})
        ins = []
        for start, end in zip(cuts, cuts[1:], strict=False):
            at = self.arena.room(end - start, 1)
            self.arena.write(at, request[start:end])
            ins.append((at, end - start))
        outs = [(self.arena.room(min(room, 16)), min(room, 16))] if room else []
        if room > 16:
            outs.append((self.arena.room(room - 16), room - 16))
        assert self.rings.driver.add(ins, outs, outs)
        self.rings.driver.publish()
        if self.rings.driver.needs_kick():
            os.eventfd_write(self.kick, 1)

    def receive(self, timeout=10.0):
        """The bytes of the next answer, once the call eventfd said that there is one."""
        deadline = time.monotonic() + timeout
        while True:
            got = self.rings.driver.take_used()
            if got is not None:
                outs, written = got
                return b"".join(self.arena.read(at, n) for at, n in outs)[:written]
            if self.rings.driver.arm():
                continue
            assert select.select([self.call], [], [], max(0, deadline - time.monotonic()))[0], "no answer"
            os.eventfd_read(self.call)

    def ask(self, request, room=ROOM):
        self.send(request, room)
        return self.receive()


@pytest.fixture
def wires(arena):
    made = []

    def make(**options):
        wire = Wire(arena, **options)
        made.append(wire)
        return wire

    yield make
    for wire in made:
        wire.close()


@pytest.fixture
def wire(wires):
    return wires()


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(range(250)) * 20)
    yield fd
    os.close(fd)


# -- answers


@pytest.mark.parametrize("features", FEATURES)
def test_a_request_is_answered(wires, features):
    wire = wires(features=features)
    wire.start()
    for n in range(50):
        request = header(GETATTR, 56, unique=n) + bytes([n]) * 16
        assert wire.ask(request) == reply_header(72) + request


def test_an_answer_in_parts_follows_one_another(wire):
    wire.handle = lambda buffer, start, end, chain: [reply_header(24), b"", memoryview(b"abcd"), bytearray(b"efgh")]
    wire.start()
    assert wire.ask(header(GETATTR, 56) + bytes(16)) == reply_header(24) + b"abcdefgh"


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_bytes_of_a_range_come_from_the_file(wire, file, order):
    wire.handle = lambda buffer, start, end, chain: RangeReply(7, order, file, 100, 300)
    wire.start()
    data = (bytes(range(250)) * 20)[100:400]
    assert wire.ask(header(READ, 80, order=order) + bytes(40)) == reply_header(316, 7, order=order) + data


def test_a_range_at_the_end_of_a_file_is_short(wire, file):
    wire.handle = lambda buffer, start, end, chain: RangeReply(7, "<", file, 4998, 300)
    wire.start()
    assert wire.ask(header(READ, 80) + bytes(40)) == reply_header(18, 7) + b"\xf8\xf9"


def test_a_range_that_cannot_be_read_is_an_error(wire):
    wire.handle = lambda buffer, start, end, chain: RangeReply(7, "<", -1, 0, 300)
    wire.start()
    assert wire.ask(header(READ, 80) + bytes(40)) == reply_header(16, 7, -errno.EBADF)
    assert wire.lost == []


def test_a_later_answer_comes_from_another_thread(wire):
    def handle(buffer, start, end, chain):
        threading.Timer(0.02, lambda: results.append(chain.send(b"late" * 4))).start()

    results: list[bool] = []
    wire.handle = handle
    wire.start()
    assert wire.ask(header(GETATTR, 56) + bytes(16)) == b"late" * 4
    deadline = time.monotonic() + 5
    while not results and time.monotonic() < deadline:
        time.sleep(0.001)
    assert results == [True]


def test_a_request_is_answered_once(wire):
    def handle(buffer, start, end, chain):
        assert chain.send(b"first" * 4)
        return b"second" * 3

    wire.handle = handle
    wire.start()
    assert wire.ask(header(GETATTR, 56) + bytes(16)) == b"first" * 4
    wire.lane.halt()
    wire.join()
    assert wire.lost == [b"second" * 3]


@pytest.mark.parametrize("opcode", [FORGET, INTERRUPT, BATCH_FORGET])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("room", [0, 16])
def test_what_gets_no_answer_is_given_back_at_once(wire, opcode, order, room):
    wire.handle = lambda buffer, start, end, chain: None
    wire.start()
    assert wire.ask(header(opcode, 48, order=order) + bytes(8), room) == b""


def test_an_answer_to_a_request_without_room_is_not_lost_in_silence(wire):
    wire.start()
    assert wire.ask(header(GETATTR, 56) + bytes(16), room=0) == b""
    wire.lane.halt()
    wire.join()
    assert len(wire.lost) == 1
    assert "do not fit" in wire.complaints[0]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("parts", [False, True])
def test_an_answer_longer_than_the_room_becomes_eio(wire, order, parts):
    answer = reply_header(40, 9, order=order) + bytes(24)
    message = [answer[:16], answer[16:]] if parts else answer
    wire.handle = lambda buffer, start, end, chain: message
    wire.start()
    assert wire.ask(header(GETATTR, 56) + bytes(16), room=39) == reply_header(16, 9, -errno.EIO, order)
    assert wire.ask(header(GETATTR, 56) + bytes(16), room=40) == answer
    wire.lane.halt()
    wire.join()
    assert wire.lost == [message]
    assert len(wire.complaints) == 1


def test_a_range_longer_than_the_room_becomes_eio(wire, file):
    wire.handle = lambda buffer, start, end, chain: RangeReply(7, "<", file, 0, 300)
    wire.start()
    assert wire.ask(header(READ, 80) + bytes(40), room=315) == reply_header(16, 7, -errno.EIO)
    assert len(wire.ask(header(READ, 80) + bytes(40), room=316)) == 316


# -- requests that are not taken


@pytest.mark.parametrize("size", [1, 39, ROOM + 1])
def test_a_request_of_no_possible_length_is_given_back_empty(wire, size):
    wire.start()
    assert wire.ask((header(GETATTR, size) + bytes(size))[:size]) == b""
    assert str(size) in wire.complaints[0]
    request = header(GETATTR, ROOM - 16) + bytes(ROOM - 56)
    assert wire.ask(request)[16:] == request


def test_a_request_the_session_cannot_answer_is_given_back_empty(wire):
    def handle(buffer, start, end, chain):
        raise RemoteProtocolError("no sense")

    wire.handle = handle
    wire.start()
    assert wire.ask(header(GETATTR, 56) + bytes(16)) == b""
    assert wire.complaints == ["request dropped: no sense"]


# -- detached writes


def write_request(payload, order="<", extlen=0):
    return header(WRITE, 80 + len(payload), 5, order, extlen) + bytes(40) + payload


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_payload_of_a_write_goes_straight_to_the_file(wires, file, order):
    def handle_detached(buffer, start, end, chain, payload_size):
        seen.append(bytes(buffer[start:end]))
        return RangeWrite(5, order, file, 10, payload_size)

    seen: list[bytes] = []
    wire = wires(detached=True)
    wire.handle_detached = handle_detached
    wire.start()
    payload = bytes(range(256)) * 100  # more than the lane's buffer has room for
    request = write_request(payload, order)
    assert wire.ask(request) == struct.pack(order + "IiQII", 24, 0, 5, len(payload), 0)
    assert seen == [request[:80]]
    assert os.pread(file, len(payload) + 20, 10) == payload
    assert wire.ask(write_request(b"", order)) == struct.pack(order + "IiQII", 24, 0, 5, 0, 0)


def test_the_payload_of_a_write_can_be_gathered(wires):
    wire = wires(detached=True)
    wire.handle_detached = lambda buffer, start, end, chain, size: chain.gather(80, size)
    wire.start()
    assert wire.ask(write_request(b"payload")) == b"payload"


def test_a_write_that_fails_is_an_error(wires):
    wire = wires(detached=True)
    wire.handle_detached = lambda buffer, start, end, chain, size: RangeWrite(5, "<", -1, 0, size)
    wire.start()
    assert wire.ask(write_request(b"payload")) == reply_header(16, 5, -errno.EBADF)


def test_a_write_of_more_than_there_is_becomes_eio(wires, file):
    wire = wires(detached=True)
    wire.handle_detached = lambda buffer, start, end, chain, size: RangeWrite(5, "<", file, 0, size + 1)
    wire.start()
    assert wire.ask(write_request(b"payload")) == reply_header(16, 5, -errno.EIO)
    assert os.pread(file, 3, 0) == b"\0\1\2"


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(write_request(b"12345678", extlen=1), id="extensions"),
        pytest.param(write_request(b"")[:79], id="short"),
        pytest.param(header(GETATTR, 88) + bytes(48), id="no write"),
    ],
)
def test_other_requests_come_whole(wires, request_bytes):
    wire = wires(detached=True)
    wire.start()
    assert wire.ask(request_bytes)[16:] == request_bytes


def test_writes_come_whole_to_who_wants_them_so(wire):
    wire.start()
    assert wire.ask(write_request(b"payload"))[16:] == write_request(b"payload")


# -- the life of a lane


def test_a_halted_lane_serves_no_more_until_it_is_resumed(wire):
    wire.start(2)
    wire.ask(header(GETATTR, 56) + bytes(16))
    wire.lane.halt()
    wire.join()
    assert wire.ended == ["halted", "halted"]
    wire.start()
    wire.join()
    assert wire.ended == ["halted"] * 3
    wire.send(header(GETATTR, 56) + bytes(16))
    wire.lane.resume()
    wire.start()
    assert len(wire.receive()) == 72


def test_a_late_answer_gets_through_while_the_lane_is_halted(wire):
    chains = []
    wire.handle = lambda buffer, start, end, chain: chains.append(chain)
    wire.start()
    wire.send(header(GETATTR, 56) + bytes(16))
    while not chains:
        time.sleep(0.001)
    wire.lane.halt()
    wire.join()
    assert chains.pop().send(b"late" * 4)
    assert wire.receive() == b"late" * 4


def test_nothing_is_answered_after_the_lane_was_stopped(wire):
    chains = []
    wire.handle = lambda buffer, start, end, chain: chains.append(chain)
    wire.start()
    wire.send(header(GETATTR, 56) + bytes(16))
    while not chains:
        time.sleep(0.001)
    assert wire.lane.stop(10)
    wire.join()
    before = wire.arena.bytes[:]
    assert chains.pop().send(b"late" * 4) is False
    assert wire.arena.bytes[:] == before


def test_an_answer_that_comes_too_late_is_undelivered(wire):
    def handle(buffer, start, end, chain):
        wire.lane.stop(10)
        return b"too late" * 2

    wire.handle = handle
    wire.start()
    wire.send(header(GETATTR, 56) + bytes(16))
    wire.join()
    assert wire.lost == [b"too late" * 2]
    assert wire.ended == ["halted"]


def test_a_broken_ring_ends_all_workers_and_is_told_once(wire):
    wire.start(3)
    wire.ask(header(GETATTR, 56) + bytes(16))
    at = wire.arena.room(16)
    assert wire.rings.driver.add([(at, 8)], [], None)
    wire.rings.describe(1, at, 17, DESC_INDIRECT, 0)
    for slot in range(8):
        wire.rings.describe(slot, at, 17, DESC_INDIRECT, 0)
    wire.rings.driver.publish()
    os.eventfd_write(wire.kick, 1)
    wire.join()
    assert wire.ended == ["broken"] + ["halted"] * 2 or sorted(wire.ended) == ["broken"] * 3 or "broken" in wire.ended
    assert [str(error) for error in wire.broken] == ["indirect table of 17 bytes"]


def test_kicks_and_calls_may_come_to_use_other_eventfds(wire):
    wire.start()
    wire.ask(header(GETATTR, 56) + bytes(16))
    old = wire.kick, wire.call
    wire.kick, wire.call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
    wire.lane.set_kick(wire.kick)
    wire.lane.set_call(wire.call)
    assert os.eventfd_read(wire.call) == 1  # what the old one told may be lost
    for fd in old:
        os.close(fd)
    for _ in range(20):
        assert len(wire.ask(header(GETATTR, 56) + bytes(16))) == 72


def test_a_request_whose_kick_went_to_the_old_eventfd_is_seen(wire):
    wire.start()
    wire.ask(header(GETATTR, 56) + bytes(16))
    old = wire.kick
    wire.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    deaf = wire.kick
    real, wire.kick = wire.kick, os.eventfd(0, os.EFD_CLOEXEC)
    wire.send(header(GETATTR, 56) + bytes(16))
    os.close(wire.kick)
    wire.kick = real
    wire.lane.set_kick(deaf)
    os.close(old)
    assert len(wire.receive()) == 72


def test_without_a_kick_eventfd_the_ring_is_looked_at(wires):
    wire = wires(kick=False)
    wire.start()
    for _ in range(5):
        assert len(wire.ask(header(GETATTR, 56) + bytes(16))) == 72


def test_without_a_call_eventfd_answers_still_come(wire):
    wire.lane.set_call(None)
    wire.start()
    wire.send(header(GETATTR, 56) + bytes(16))
    deadline = time.monotonic() + 10
    while (got := wire.rings.driver.take_used()) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert got is not None


# -- workers


def test_steps_are_counted_around_each_handler(wire):
    def handle(buffer, start, end, chain):
        inside.append(wire.workers[0].counters[1])
        return bytes(16)

    inside: list[int] = []
    wire.handle = handle
    wire.start()
    for _ in range(3):
        wire.ask(header(GETATTR, 56) + bytes(16))
    wire.lane.halt()
    wire.join()
    assert inside == [1, 3, 5]
    assert wire.workers[0].counters[1] == 6


def test_the_monitor_is_woken_by_a_request(wire):
    wire.start()
    wire.workers[0].counters[0] = 1
    wire.ask(header(GETATTR, 56) + bytes(16))
    assert wire.workers[0].woken == 1


def test_a_worker_rests_after_the_request_it_serves(wire):
    wire.start()
    wire.workers[0].counters[2] = 1
    wire.workers[0].stay = True
    assert len(wire.ask(header(GETATTR, 56) + bytes(16))) == 72
    assert len(wire.ask(header(GETATTR, 56) + bytes(16))) == 72
    assert wire.workers[0].counters[2] == 0
    wire.workers[0].stay = False
    wire.workers[0].counters[2] = 1
    assert len(wire.ask(header(GETATTR, 56) + bytes(16))) == 72
    wire.join()
    assert wire.ended == ["home"]


@pytest.mark.parametrize("features", [F_VERSION_1, FULL, FULL | F_RING_PACKED, F_VERSION_1 | F_RING_PACKED])
def test_a_handler_that_waits_does_not_stop_the_other_worker(wires, features):
    def handle(buffer, start, end, chain):
        if buffer[start + 8] == 1:
            gate.wait(10)
            return b"slow" * 4
        return b"fast" * 4

    gate = threading.Event()
    wire = wires(features=features)
    wire.handle = handle
    wire.start(2)
    for _ in range(3):
        wire.send(header(GETATTR, 56, unique=1) + bytes(16), room=16)
        for _ in range(10):
            wire.send(header(GETATTR, 56, unique=2) + bytes(16), room=16)
            assert wire.receive() == b"fast" * 4
        gate.set()
        assert wire.receive() == b"slow" * 4
        gate.clear()


@pytest.mark.parametrize("order", [0, F_IN_ORDER])
@pytest.mark.parametrize("kind", [0, F_RING_PACKED])
@pytest.mark.parametrize("event", [0, F_EVENT_IDX])
@pytest.mark.parametrize("workers", [1, 2])
def test_no_kick_and_no_call_is_lost(wires, order, kind, event, workers):
    wire = wires(features=F_VERSION_1 | F_INDIRECT_DESC | kind | order | event, size=16)
    wire.start(workers)
    at = wire.arena.room(16)
    request = header(GETATTR, 40)
    source = wire.arena.room(40)
    wire.arena.write(source, request)
    wire.handle = lambda buffer, start, end, chain: bytes(16)
    driver = wire.rings.driver
    sent = done = 0
    while done < 3000:
        while sent < 3000 and sent - done < 1 + sent % 7 and driver.add([(source, 40)], [(at, 16)], sent):
            sent += 1
        driver.publish()
        if driver.needs_kick():
            os.eventfd_write(wire.kick, 1)
        while driver.take_used() is not None:
            done += 1
        if done < sent and not driver.arm():
            assert select.select([wire.call], [], [], 10)[0], f"{sent - done} requests stay unanswered"
            os.eventfd_read(wire.call)


@pytest.mark.parametrize("features", [F_VERSION_1, FULL, FULL | F_RING_PACKED])
def test_an_answer_is_told_before_the_next_request_is_served(wires, features):
    """Whoever waits for it may be the one that the next handler waits for."""

    def handle(buffer, start, end, chain):
        if buffer[start + 8] == 2:
            assert gate.wait(10)
        return bytes(16)

    gate = threading.Event()
    wire = wires(features=features)
    wire.handle = handle
    wire.rings.driver.arm()
    wire.send(header(GETATTR, 56, unique=1) + bytes(16), room=16, pieces=1)
    wire.send(header(GETATTR, 56, unique=2) + bytes(16), room=16, pieces=1)
    while select.select([wire.call], [], [], 0)[0]:
        os.eventfd_read(wire.call)
    wire.start()
    assert wire.receive() == bytes(16)
    gate.set()
    assert wire.receive() == bytes(16)

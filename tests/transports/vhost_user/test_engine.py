"""The engine by itself: queues and lanes over memory, with a session that answers everything the same way."""

from __future__ import annotations

import errno
import os
import struct
import threading
from typing import Any

import pytest

from transfuse.transports.vhost_user import config
from transfuse.transports.vhost_user.device import Device, Identity
from transfuse.transports.vhost_user.engine import QueueEngine
from transfuse.transports.vhost_user.messages import VringAddress
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.transports.virtqueue import DirtyLog, GuestMemory, Mapping, Region
from transfuse.transports.virtqueue.layout import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1
from transfuse.wire.opcodes import Opcode
from transports.vhost_user.raw_frontend import GUEST_BASE, MEMORY, USER_BASE, RawFrontend


class Session:
    """Says "done" to every request; to one named in `late`, when asked to."""

    def __init__(self) -> None:
        self.ended = 0
        self.interrupted = threading.Event()
        self.late: list[Any] = []
        self.undelivered_: list[bytes] = []

    def handle(self, buffer: Any, start: int, end: int, channel: Any) -> bytes | None:
        unique = struct.unpack_from("<Q", buffer, start + 8)[0]
        if struct.unpack_from("<I", buffer, start + 4)[0] == Opcode.SETLKW:
            self.late.append((channel, unique))
            return None
        return done(unique)

    def handle_detached(self, buffer: Any, start: int, end: int, channel: Any, size: int) -> bytes:
        return done(struct.unpack_from("<Q", buffer, start + 8)[0])

    def undelivered(self, buffer: Any, start: int, message: Any) -> None:
        self.undelivered_.append(message)

    def interrupt_all(self) -> None:
        self.interrupted.set()
        late, self.late = self.late, []
        for channel, unique in late:
            channel.send(struct.pack("<IiQ", 16, -errno.EINTR, unique))

    def end(self) -> None:
        self.ended += 1


def done(unique: int) -> bytes:
    return struct.pack("<IiQ", 16, 0, unique)


class Bench(RawFrontend):
    """The rings of a raw front-end, served by an engine without a connection."""

    def __init__(self, packed: bool = False) -> None:
        import socket

        left, self.unused = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        super().__init__(MessageSocket(left), size=16, packed=packed)
        self.session = Session()
        self.complaints: list[str] = []
        self.engine = QueueEngine(2, 0, 1 << 20, 2, lambda text, *args: self.complaints.append(text % args))
        self.engine.session = self.session  # type: ignore[assignment]
        self.engine.handle = self.session.handle
        self.engine.undelivered = self.session.undelivered
        self.device = Device(Identity(config.virtio_features(log=True), 0, 2, b"", 0), self.engine)
        self.features = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | (F_RING_PACKED if packed else 0)
        self.device.features = self.features
        self.engine.connected(self.device)
        self.device.memory = GuestMemory([Region(GUEST_BASE, USER_BASE, MEMORY, self.memory_fd)])
        for ring in self.rings:
            self.make_driver(ring)
            self.engine.set_kick(ring.index, ring.kick)
            self.engine.set_call(ring.index, ring.call)
            self.engine.set_err(ring.index, ring.err)

    def run(self, index: int = 1, flags: int = 0, log: int = 0) -> None:
        state = self.device.rings[index]
        desc, driver, device = map(self.user, self.rings[index].areas)
        state.size = self.size
        state.base = state.base or (0x8000_8000 if self.packed else 0)
        state.address = VringAddress(index=index, descriptor=desc, available=driver, used=device, flags=flags, log=log)
        self.engine.start(state, self.device)
        state.running = True

    def halt(self, index: int = 1) -> int:
        self.device._stop(self.device.rings[index])
        return self.device.rings[index].base

    def close(self) -> None:
        self.device.close()
        self.engine.disconnected()
        self.engine.close()
        self.unused.close()
        super().close()


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(request: pytest.FixtureRequest):
    with Bench(request.param) as bench:
        yield bench


def test_requests_are_served_until_the_ring_is_stopped(bench: Bench) -> None:
    bench.run()
    assert [bench.ask(Opcode.GETATTR).errno for _ in range(40)] == [0] * 40
    base = bench.halt()
    assert base & 0x7FFF == 40 % (16 if bench.packed else 1 << 16)
    token = bench.submit(bench.build(Opcode.GETATTR))
    assert bench.poll(token, 1, 0.1) is None
    bench.run()
    assert bench.wait(token).errno == 0


def test_a_ring_that_never_ran_stops_where_it_was_told_to(bench: Bench) -> None:
    bench.device.rings[1].base = 77
    assert bench.engine.stop(bench.device.rings[1]) == 77


def test_late_answers_are_waited_for_then_interrupted(bench: Bench) -> None:
    bench.run()
    token = bench.submit(bench.build(Opcode.SETLKW))
    while not bench.session.late:
        pass
    bench.halt()
    assert bench.session.interrupted.is_set()
    assert bench.wait(token).errno == errno.EINTR


def test_waiting_is_for_less_than_half_of_a_ring(bench: Bench) -> None:
    bench.run()
    for _ in range(9):
        bench.submit(bench.build(Opcode.SETLKW))
    while len(bench.session.late) < 9:
        pass
    channel = bench.session.late[0][0]
    assert not bench.engine.may_wait(channel)
    first, unique = bench.session.late.pop()
    assert first.send(done(unique))
    assert bench.engine.may_wait(channel)


def test_a_late_answer_to_a_stopped_ring_goes_nowhere(bench: Bench) -> None:
    bench.run()
    bench.submit(bench.build(Opcode.SETLKW))
    while not bench.session.late:
        pass
    channel, unique = bench.session.late[0]
    bench.halt()
    assert not channel.send(done(unique))


def test_another_eventfd_takes_over(bench: Bench) -> None:
    bench.run()
    ring = bench.rings[1]
    for name, give in (("call", bench.engine.set_call), ("kick", bench.engine.set_kick)):
        fresh = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        os.close(getattr(ring, name))
        setattr(ring, name, fresh)
        give(1, fresh)
        assert bench.ask(Opcode.GETATTR).errno == 0


def test_a_broken_ring_is_said_to_be_one(bench: Bench) -> None:
    bench.run()
    ring = bench.rings[1]
    if bench.packed:
        bench.poke(ring.areas[0], struct.pack("<QIHH", 1 << 60, 64, 0, 0x80))
    else:
        bench.poke(ring.areas[0], struct.pack("<QIHH", 1 << 60, 64, 0, 0))
        bench.poke(ring.areas[1] + 2, b"\1\0")
    os.eventfd_write(ring.kick, 1)
    assert os.read(ring.err, 8) if _readable(ring.err) else False
    assert bench.device.rings[1].broken
    assert len(bench.complaints) == 1
    bench.halt()


def _readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 10)[0])


def test_memory_without_the_rings_breaks_them(bench: Bench) -> None:
    bench.run()
    bench.engine.memory_changed(GuestMemory())
    assert bench.device.rings[1].broken
    bench.halt()


def test_writes_are_logged_while_logging_is_on(bench: Bench) -> None:
    fd = os.memfd_create("log")
    os.ftruncate(fd, 1 << 16)
    bench.run()
    bench.device.dirty = DirtyLog(Mapping(fd, 0, 1 << 16))
    bench.device.features |= config.F_LOG_ALL
    bench.engine.log_changed(bench.device)
    before = bench._free
    assert bench.ask(Opcode.GETATTR).errno == 0
    page = (before + 64) // 4096
    log = os.pread(fd, 1 << 16, 0)
    assert log[page >> 3] >> (page & 7) & 1
    assert sum(map(int.bit_count, log)) <= 2  # the answer, and no ring
    bench.device.features &= ~config.F_LOG_ALL
    bench.engine.log_changed(bench.device)
    os.pwrite(fd, bytes(1 << 16), 0)
    assert bench.ask(Opcode.GETATTR).errno == 0
    assert not any(os.pread(fd, 1 << 16, 0))
    bench.device.dirty = None
    os.close(fd)


def test_a_reset_ends_the_session(bench: Bench) -> None:
    bench.engine.reset()
    assert bench.session.ended == 1


def test_state_is_not_moved_where_none_is_kept(bench: Bench) -> None:
    read, write = os.pipe()
    with pytest.raises(OSError, match="keeps no state"):
        bench.engine.transfer_state(False, write)
    assert os.read(read, 1) == b""
    os.close(read)
    assert not bench.engine.check_transfer()


def test_a_write_may_come_without_its_payload(bench: Bench) -> None:
    bench.run()
    assert bench.write(2, 1, b"x" * 5000).errno == 0

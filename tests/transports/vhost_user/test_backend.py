"""The back-end against a raw front-end: requests by rings, and everything that may happen to a connection."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import Filesystem
from transfuse.fs.values import Attr, Entry, Opened
from transfuse.server import Server
from transfuse.transports.base import SelfServing
from transfuse.transports.vhost_user import config
from transfuse.transports.vhost_user.backend import VhostUserTransport
from transfuse.transports.vhost_user.device import NEEDS_RESET
from transfuse.transports.vhost_user.messages import (
    NOT_AN_FD,
    U64,
    ConfigAccess,
    DeviceStateTransfer,
    FrontendRequest,
    MemoryRegion,
    ProtocolFeature,
    SingleRegion,
    VringState,
)
from transfuse.transports.vhost_user.socket import MessageSocket, connect
from transfuse.transports.virtqueue import DirtyLog
from transfuse.transports.virtqueue.layout import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode
from transports.vhost_user.conftest import Serving, open_fds
from transports.vhost_user.raw_frontend import GUEST_BASE, MEMORY, USER_BASE, RawFrontend

Serve = Callable[..., Serving]

RINGS = [
    pytest.param({"packed": packed, "without": without}, id=f"{'packed' if packed else 'split'}-{name}")
    for packed in (False, True)
    for name, without in (("plain", F_INDIRECT_DESC | F_EVENT_IDX), ("indirect-event", 0))
]


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rings", RINGS)
def test_a_file_is_found_read_and_written(serving: Serving, rings: dict) -> None:
    path = serving.file("hello", b"Hello, world!\n")
    frontend = serving.connect(size=1024, **rings)
    entry = frontend.lookup(b"hello").struct(w.EntryOut)
    assert entry.attr.size == 14
    fh = frontend.open(entry.nodeid)
    assert frontend.read(entry.nodeid, fh, 4096).body == b"Hello, world!\n"
    data = random.Random(1).randbytes(1 << 20)
    assert frontend.write(entry.nodeid, fh, data).struct(w.WriteOut).size == 1 << 20
    assert path.read_bytes() == data
    assert frontend.read(entry.nodeid, fh, 1 << 20).body == data
    assert frontend.read(entry.nodeid, fh, 1 << 20, offset=(1 << 20) - 10).body == data[-10:]
    frontend.forget(entry.nodeid)
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=entry.nodeid).errno == errno.ESTALE


def test_a_request_in_one_segment_is_served_as_well(serving: Serving) -> None:
    serving.file("x", b"12345")
    frontend = serving.connect()
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    assert frontend.write(nodeid, fh, b"abc", offset=1, pieces=0).struct(w.WriteOut).size == 3
    assert frontend.read(nodeid, fh, 100, pieces=0).body == b"1abc5"


@pytest.mark.parametrize("pieces", [1, 7, 16, 4096])
def test_segments_may_be_cut_anywhere(serving: Serving, pieces: int) -> None:
    path = serving.file("x")
    frontend = serving.connect(size=512)
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    data = bytes(range(200))
    assert frontend.write(nodeid, fh, data, pieces=pieces).struct(w.WriteOut).size == 200
    assert path.read_bytes() == data
    assert frontend.read(nodeid, fh, 200, pieces=pieces).body == data


def test_a_filesystem_that_takes_bytes_gets_them(serve: Serve) -> None:
    serving = serve(lambda: MemoryFilesystem())
    frontend = serving.connect()
    created = frontend.ask(Opcode.CREATE, w.CreateIn(flags=os.O_RDWR, mode=0o100644), b"x\0")
    nodeid, fh = created.struct(w.EntryOut).nodeid, created.struct(w.OpenOut, w.EntryOut.SIZE).fh
    data = random.Random(2).randbytes(300_000)
    assert frontend.write(nodeid, fh, data).struct(w.WriteOut).size == len(data)
    assert frontend.read(nodeid, fh, len(data)).body == data


def test_appending_goes_to_the_end_and_a_cached_page_to_its_place(serving: Serving) -> None:
    path = serving.file("log", b"0123456789")
    frontend = serving.connect()
    nodeid = frontend.lookup(b"log").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid, os.O_WRONLY | os.O_APPEND)
    frontend.write(nodeid, fh, b"end", offset=0)
    frontend.write(nodeid, fh, b"AB", offset=4, flags=f.FUSE_WRITE_CACHE)
    assert path.read_bytes() == b"0123AB6789end"


def test_errors_of_reading_and_writing_reach_the_guest(serving: Serving) -> None:
    serving.file("x", b"data")
    frontend = serving.connect()
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    assert frontend.write(nodeid, 99, b"x").errno == errno.EBADF
    read_only, write_only = frontend.open(nodeid, os.O_RDONLY), frontend.open(nodeid, os.O_WRONLY)
    assert frontend.write(nodeid, read_only, b"x").errno == errno.EBADF
    assert frontend.read(nodeid, write_only, 10).errno == errno.EBADF


@pytest.mark.needs("root")
def test_a_write_that_kills_set_id_bits_is_done_by_the_filesystem(serving: Serving) -> None:
    path = serving.file("x", b"data")
    path.chmod(0o6755)
    frontend = serving.connect()
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    body = w.WriteIn(fh=fh, offset=0, size=3, write_flags=f.FUSE_WRITE_KILL_SUIDGID)
    raw = frontend.build(Opcode.WRITE, body, b"new", nodeid=nodeid, uid=1000)
    assert frontend.wait(frontend.submit(raw, 24)).struct(w.WriteOut).size == 3
    assert path.stat().st_mode & 0o7777 == 0o755
    assert path.read_bytes() == b"newa"


def test_write_that_lies_about_its_size_is_refused(frontend: RawFrontend, serving: Serving) -> None:
    path = serving.file("x", b"data")
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    for size in (2, 4, 2**32 - 1):
        body = w.WriteIn(fh=fh, offset=0, size=size)
        assert frontend.ask(Opcode.WRITE, body, b"abc", nodeid=nodeid).errno == errno.EINVAL
    beyond = w.WriteIn(fh=fh, offset=2**63 - 1, size=3)
    assert frontend.ask(Opcode.WRITE, beyond, b"abc", nodeid=nodeid).errno == errno.EINVAL
    assert path.read_bytes() == b"data"


def test_many_requests_under_way_on_several_rings(serve: Serve) -> None:
    serving = serve(queues=3)
    for i in range(100):
        serving.file(f"f{i}", b"x" * i)
    frontend = serving.connect(queues=3)
    tokens = []
    for i in range(100):
        ring = 1 + i % 3
        tokens.append((i, ring, frontend.submit(frontend.build(Opcode.LOOKUP, None, b"f%d\0" % i), 256, ring)))
    for i, ring, token in tokens:
        assert frontend.wait(token, ring).struct(w.EntryOut).attr.size == i


def test_queues_are_what_was_asked_for(serve: Serve) -> None:
    serving = serve(queues=4, tag="share")
    frontend = serving.connect(begin=False)
    assert frontend.call(FrontendRequest.GET_QUEUE_NUM) == 5
    space = frontend.call(FrontendRequest.GET_CONFIG, ConfigAccess(0, bytes(44))).data
    assert space[:36].rstrip(b"\0") == b"share"
    assert struct.unpack("<II", space[36:]) == (4, 0)


def test_without_a_tag_there_is_no_configuration_space(serving: Serving) -> None:
    frontend = serving.connect(begin=False)
    assert not frontend.protocol_features & ProtocolFeature.CONFIG.bit


def test_the_driver_may_have_no_eventfd_for_answers(serving: Serving) -> None:
    frontend = serving.connect()
    frontend.no_call(frontend.rings[1])
    token = frontend.submit(frontend.build(Opcode.GETATTR, w.GetattrIn()))
    end = time.monotonic() + 10
    while (answer := frontend.poll(token)) is None:
        assert time.monotonic() < end
    assert answer.errno == 0


def test_an_eventfd_may_be_replaced_while_requests_are_served(serving: Serving) -> None:
    frontend = serving.connect()
    for _ in range(20):
        frontend.send(FrontendRequest.SET_VRING_CALL, U64(value=1), [frontend.rings[1].call])
        assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


@pytest.mark.parametrize("in_order", [False, True])
def test_answers_leave_in_order_only_if_agreed(serve: Serve, in_order: bool) -> None:
    frontend = serve(in_order=in_order).connect()
    assert bool(frontend.features & F_IN_ORDER) is in_order
    tokens = [frontend.submit(frontend.build(Opcode.GETATTR, w.GetattrIn()), 256) for _ in range(50)]
    assert [frontend.wait(token).errno for token in tokens] == [0] * 50


def test_a_reply_that_does_not_fit_is_eio(frontend: RawFrontend) -> None:
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn(), room=60).errno == errno.EIO
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_a_request_without_a_header_is_given_back_empty(frontend: RawFrontend) -> None:
    assert frontend.wait(frontend.submit(b"x" * 39)).written == 0
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_a_request_that_is_longer_than_any_is_given_back_empty(frontend: RawFrontend) -> None:
    raw = frontend.build(Opcode.SETXATTR, w.SetxattrIn(), bytes(3 << 20))
    assert frontend.wait(frontend.submit(raw)).written == 0
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


# -- handlers that wait -----------------------------------------------------------------------------------------------


class Waiting(Filesystem):
    """A root; lookup() of "wait" waits until it may go on."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)

    def getattr(self, req, nodeid, fh):
        return Attr.directory(1)

    def lookup(self, req, parent, name):
        if name == b"wait":
            self.entered.release()
            self.go.wait(20)
        return Entry(Attr.directory(2))

    def open(self, req, nodeid, flags):
        return Opened(1)

    def flock(self, req, nodeid, fh, owner, kind, wait):
        if not wait:
            raise BlockingIOError(errno.EAGAIN, "taken")
        end = threading.Event()
        req.on_interrupt(end.set)
        self.entered.release()
        if end.wait(20):
            raise InterruptedError(errno.EINTR, "interrupted")


def lock() -> w.LkIn:
    return w.LkIn(fh=1, owner=7, lk=w.FileLock(start=0, end=2**63 - 1, type=1), lk_flags=f.FUSE_LK_FLOCK)


def test_a_handler_that_waits_does_not_hold_up_its_ring(serve: Serve) -> None:
    filesystem = Waiting()
    frontend = serve(lambda: filesystem).connect()
    tokens = [frontend.submit(frontend.build(Opcode.LOOKUP, None, b"wait\0")) for _ in range(3)]
    for _ in tokens:
        assert filesystem.entered.acquire(timeout=10)
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0
    filesystem.go.set()
    assert [frontend.wait(token).errno for token in tokens] == [0, 0, 0]


def test_a_lock_that_is_waited_for_answers_late(serve: Serve) -> None:
    filesystem = Waiting()
    serving = serve(lambda: filesystem)
    frontend = serving.connect()
    token = frontend.submit(frontend.build(Opcode.SETLKW, lock()))
    assert filesystem.entered.acquire(timeout=10)
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0
    serving.server.session.interrupt_all()
    assert frontend.wait(token).errno == errno.EINTR


def test_waiting_locks_leave_room_in_the_ring_for_what_ends_them(serve: Serve) -> None:
    filesystem = Waiting()
    serving = serve(lambda: filesystem)
    frontend = serving.connect(size=8)
    tokens = [frontend.submit(frontend.build(Opcode.SETLKW, lock())) for _ in range(6)]
    refused = [token for token in tokens if (answer := frontend.poll(token, 1, 0.5)) and answer.errno == errno.ENOLCK]
    assert 0 < len(refused) < 6
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0
    serving.server.session.interrupt_all()


def test_a_stopped_ring_answers_what_is_under_way(serve: Serve) -> None:
    filesystem = Waiting()
    frontend = serve(lambda: filesystem).connect()
    token = frontend.submit(frontend.build(Opcode.LOOKUP, None, b"wait\0"))
    assert filesystem.entered.acquire(timeout=10)
    threading.Timer(0.2, filesystem.go.set).start()
    assert frontend.stop_ring(frontend.rings[1]) == 2  # INIT and LOOKUP
    answer = frontend.poll(token)
    assert answer is not None
    assert answer.errno == 0


def test_a_stopped_ring_interrupts_locks_that_are_waited_for(serve: Serve) -> None:
    filesystem = Waiting()
    frontend = serve(lambda: filesystem).connect()
    token = frontend.submit(frontend.build(Opcode.SETLKW, lock()))
    assert filesystem.entered.acquire(timeout=10)
    frontend.stop_ring(frontend.rings[1])
    assert frontend.wait(token).errno == errno.EINTR


def test_a_ring_goes_on_where_it_was_stopped(frontend: RawFrontend) -> None:
    for ring in frontend.rings:
        base = frontend.stop_ring(ring)
        frontend.start_ring(ring, base)
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_a_packed_ring_goes_on_where_it_was_stopped(serving: Serving) -> None:
    frontend = serving.connect(packed=True, size=5)
    for _ in range(12):
        ring = frontend.rings[1]
        frontend.start_ring(ring, frontend.stop_ring(ring))
        assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_a_disabled_ring_serves_nothing_until_it_is_enabled(frontend: RawFrontend) -> None:
    frontend.call(FrontendRequest.SET_VRING_ENABLE, VringState(index=1, num=0))
    token = frontend.submit(frontend.build(Opcode.GETATTR, w.GetattrIn()))
    assert frontend.poll(token, 1, 0.2) is None
    frontend.call(FrontendRequest.SET_VRING_ENABLE, VringState(index=1, num=1))
    assert frontend.wait(token).errno == 0


# -- sessions that end and begin --------------------------------------------------------------------------------------


def test_a_second_init_starts_over(serving: Serving, frontend: RawFrontend) -> None:
    serving.file("x")
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    frontend.init()
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=nodeid).errno == errno.ESTALE
    assert frontend.lookup(b"x").errno == 0


def test_destroy_and_init_is_a_remount(serving: Serving, frontend: RawFrontend) -> None:
    serving.file("x")
    assert frontend.ask(Opcode.DESTROY).errno == 0
    assert frontend.lookup(b"x").errno == errno.EIO
    frontend.init()
    assert frontend.lookup(b"x").errno == 0


def test_a_reset_of_the_device_ends_the_session(serving: Serving, frontend: RawFrontend) -> None:
    serving.file("x")
    for ring in frontend.rings:
        frontend.stop_ring(ring)
    frontend.call(FrontendRequest.RESET_DEVICE)
    assert serving.server.session.ended
    frontend.renew()
    frontend.begin()
    assert frontend.lookup(b"x").errno == errno.EIO  # nobody said INIT
    frontend.init()
    assert frontend.lookup(b"x").errno == 0


def test_a_guest_reboots_without_a_word(serving: Serving) -> None:
    """As QEMU 7.2 has it: rings are stopped, then started at new places."""
    serving.file("x")
    frontend = serving.connect(protocol=~ProtocolFeature.INFLIGHT_SHMFD.bit)
    frontend.lookup(b"x")
    for ring in frontend.rings:
        frontend.stop_ring(ring)
        frontend.make_driver(ring)
        frontend.start_ring(ring)
    frontend.init()
    assert frontend.lookup(b"x").errno == 0


def test_big_endian_guests_are_told_by_their_init(frontend: RawFrontend) -> None:
    raw = struct.pack(">IIQQIIIHH", 104, int(Opcode.INIT), 2, 0, 0, 0, 0, 0, 0)
    raw += w.InitIn(major=7, minor=38, flags=f.FUSE_MAX_PAGES).encode(">")
    answer = frontend.rings[1]
    token = frontend.submit(raw)
    while (used := answer.driver.take_used()) is None:
        time.sleep(0.001)
    (number, at, _), written = used
    assert number == token
    assert struct.unpack_from(">IiQ", frontend.peek(at, 16)) == (written, 0, 2)


def test_a_front_end_that_goes_away_leaves_the_session(serving: Serving, frontend: RawFrontend) -> None:
    serving.file("x", b"data")
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    frontend.connect_again(serving.path)
    frontend.handshake()
    frontend.begin(base=3)
    assert frontend.read(nodeid, fh, 10).body == b"data"


def test_a_new_guest_starts_over(serving: Serving) -> None:
    serving.file("x", b"data")
    first = serving.connect()
    nodeid = first.lookup(b"x").struct(w.EntryOut).nodeid
    first.sock.close()
    second = serving.connect()
    assert second.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=nodeid).errno == errno.ESTALE
    assert second.lookup(b"x").errno == 0


def test_requests_under_way_when_the_connection_breaks_are_answered_in_memory(serve: Serve) -> None:
    filesystem = Waiting()
    serving = serve(lambda: filesystem)
    frontend = serving.connect()
    token = frontend.submit(frontend.build(Opcode.LOOKUP, None, b"wait\0"))
    assert filesystem.entered.acquire(timeout=10)
    frontend.sock.close()
    filesystem.go.set()
    assert frontend.wait(token).errno == 0


def test_a_second_front_end_waits_for_the_first_to_go(serving: Serving, frontend: RawFrontend) -> None:
    second = RawFrontend(serving.path)
    serving.frontends.append(second)
    second.send(FrontendRequest.GET_FEATURES)
    assert second.sock.readable(0.2) == set()
    frontend.sock.close()
    assert second.sock.readable(10) == {-1}


def test_a_front_end_that_talks_nonsense_is_hung_up_on_and_the_next_is_served(serving: Serving) -> None:
    for garbage in (b"\xff" * 64, struct.pack("=III", 5, 1, 8) + bytes(8), struct.pack("=III", 1, 1, 1 << 30)):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(serving.path)
        sock.sendall(garbage)
        sock.settimeout(10)
        with sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    assert serving.connect().ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_fds_and_threads_do_not_pile_up_over_connections(serving: Serving) -> None:
    def one() -> None:
        frontend = serving.connect()
        frontend.lookup(b"nothing")
        frontend.close()
        serving.frontends.remove(frontend)

    one()
    deadline = time.monotonic() + 10
    before = open_fds(), threading.active_count()
    for _ in range(10):
        one()
    while (open_fds(), threading.active_count()) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- hostile rings ----------------------------------------------------------------------------------------------------


def test_a_malformed_chain_breaks_one_ring_and_asks_for_a_reset(serve: Serve) -> None:
    serving = serve(queues=2)
    frontend = serving.connect(queues=2)
    ring = frontend.rings[1]
    frontend.poke(ring.areas[0], struct.pack("<QIHH", 1 << 60, 4096, 0, 0) * 128)  # descriptors at no memory
    frontend.poke(ring.areas[1] + 2, struct.pack("<H", 2))  # available index: one more than before
    os.eventfd_write(ring.kick, 1)
    end = time.monotonic() + 10
    while not frontend.status() & NEEDS_RESET:
        assert time.monotonic() < end
    assert os.eventfd_read(ring.err)
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn(), ring=2).errno == 0
    frontend.call(FrontendRequest.RESET_DEVICE)
    assert not frontend.status() & NEEDS_RESET
    frontend.renew()
    frontend.begin()
    frontend.init()
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_a_ring_outside_of_memory_is_refused_and_the_others_live(serve: Serve) -> None:
    serving = serve(queues=2)
    frontend = serving.connect(queues=2)
    ring = frontend.rings[1]
    frontend.stop_ring(ring)
    ring.areas = (GUEST_BASE + MEMORY - 16, *ring.areas[1:])
    frontend.start_ring(ring)
    assert frontend.status() & NEEDS_RESET
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn(), ring=2).errno == 0


def test_memory_that_holds_the_rings_is_taken_away(frontend: RawFrontend, serving: Serving) -> None:
    frontend.call(FrontendRequest.REM_MEM_REG, frontend.region())
    assert frontend.status() & NEEDS_RESET
    frontend.sock.close()
    assert serving.connect().ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_memory_that_is_added_later_is_used(frontend: RawFrontend) -> None:
    fd = os.memfd_create("more")
    os.ftruncate(fd, 1 << 16)
    region = MemoryRegion(guest_address=GUEST_BASE + MEMORY, size=1 << 16, user_address=USER_BASE + MEMORY)
    assert frontend.call(FrontendRequest.ADD_MEM_REG, SingleRegion(region=region), [fd]) == 0
    raw = frontend.build(Opcode.GETATTR, w.GetattrIn())
    os.pwrite(fd, raw, 0)
    at = GUEST_BASE + MEMORY
    driver = frontend.rings[1].driver
    driver.add([(at, len(raw))], [(at + 4096, 256)], 1)
    frontend.kick()
    end = time.monotonic() + 10
    while (used := driver.take_used()) is None:
        assert time.monotonic() < end
    assert used == (1, 120)
    assert struct.unpack_from("<Ii", os.pread(fd, 16, 4096)) == (120, 0)
    os.close(fd)


def test_random_rings_break_nothing_but_themselves(serving: Serving, request: pytest.FixtureRequest) -> None:
    rng = random.Random(request.config.option.seed)
    serving.file("x", b"data")
    for _ in range(15):
        frontend = serving.connect(size=16)
        ring = frontend.rings[1]
        for _ in range(20):
            for _ in range(rng.randrange(1, 6)):
                area = rng.choice(ring.areas[:2])
                frontend.poke(area + rng.randrange(64), rng.choice([rng.randbytes(2), b"\xff\xff", bytes(2)]))
            os.eventfd_write(ring.kick, 1)
        for one in frontend.rings:
            frontend.call(FrontendRequest.GET_VRING_BASE, VringState(index=one.index))
        frontend.close()
        serving.frontends.remove(frontend)
    assert serving.connect().lookup(b"x").errno == 0


# -- in-flight requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_requests_a_server_left_are_served_by_the_next(serve: Serve, packed: bool) -> None:
    """The first server takes requests and dies (its lanes stop without an answer)."""
    filesystems = [Waiting(), Waiting()]
    filesystems[1].go.set()
    left = iter(filesystems)
    serving = serve(lambda: next(left), workers=4)
    frontend = serving.connect(packed=packed)
    tokens = [frontend.submit(frontend.build(Opcode.LOOKUP, None, b"wait\0")) for _ in range(3)]
    for _ in tokens:
        assert filesystems[0].entered.acquire(timeout=10)
    # As a crash leaves it: nothing is written any more.
    for slot in serving.server.transport._engine._slots:
        slot.lane.queue.stop()
    filesystems[0].go.set()
    frontend.sock.close()
    serving.server.close()
    serving.start()
    frontend.connect_again(serving.path)
    frontend.handshake()
    frontend.begin(base=None if packed else 1)
    answers = [frontend.wait(token) for token in tokens]
    assert [answer.errno for answer in answers] == [errno.EIO] * 3  # this server was not told of a session
    frontend.init()
    assert frontend.lookup(b"wait").errno == 0


# -- servers that come and go -----------------------------------------------------------------------------------------


def test_a_server_that_is_stopped_is_followed_by_one_that_knows_all(serve: Serve, tmp_path: Path) -> None:
    serving = serve(state_path=tmp_path / "state")
    serving.file("x", b"data")
    (serving.folder / "d").mkdir()
    frontend = serving.connect()
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    directory = frontend.lookup(b"d").struct(w.EntryOut).nodeid
    serving.server.close()
    serving.start()
    assert serving.server.wait_connected(0)
    frontend.connect_again(serving.path)
    frontend.handshake()
    frontend.begin(base=4)
    assert frontend.read(nodeid, fh, 10).body == b"data"
    assert frontend.write(nodeid, fh, b"more").struct(w.WriteOut).size == 4
    assert frontend.ask(Opcode.MKDIR, w.MkdirIn(mode=0o755), b"e\0", nodeid=directory).errno == 0
    assert (serving.folder / "d" / "e").is_dir()
    new = frontend.lookup(b"d").struct(w.EntryOut).nodeid
    assert new == directory


def test_a_server_that_died_is_followed_by_one_that_never_mistakes_a_node(serve: Serve, tmp_path: Path) -> None:
    state = tmp_path / "state"
    serving = serve(state_path=state)
    serving.file("x", b"data")
    serving.file("y", b"other")
    frontend = serving.connect()
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    as_left = state.read_bytes()  # a dead server writes nothing at its end
    serving.server.close()
    state.write_bytes(as_left)
    serving.start()
    frontend.connect_again(serving.path)
    frontend.handshake()
    frontend.begin(base=3)
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=nodeid).errno == errno.ESTALE
    assert frontend.ask(Opcode.READ, w.ReadIn(fh=fh, size=10), nodeid=nodeid).errno in (errno.EBADF, errno.ESTALE)
    other = frontend.lookup(b"y").struct(w.EntryOut).nodeid
    again = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    assert len({nodeid, other, again}) == 3
    assert frontend.open(again) != fh


def test_a_session_that_has_ended_is_not_gone_on_with(serve: Serve, tmp_path: Path) -> None:
    serving = serve(state_path=tmp_path / "state")
    frontend = serving.connect()
    frontend.ask(Opcode.DESTROY)
    serving.server.close()
    serving.start()
    frontend.connect_again(serving.path)
    frontend.handshake()
    frontend.begin(base=2)
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EIO
    frontend.init()
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_a_server_with_other_options_does_not_go_on(serve: Serve, tmp_path: Path) -> None:
    serving = serve(state_path=tmp_path / "state")
    frontend = RawFrontend(serving.path)
    serving.frontends.append(frontend)
    frontend.handshake()
    frontend.begin()
    frontend.init(flags=f.FUSE_POSIX_ACL | f.FUSE_MAX_PAGES)
    serving.server.close()
    serving.make = lambda: HostDirectory(serving.folder, posix_acl=False)
    serving.start()
    assert not serving.server.wait_connected(0)
    frontend.connect_again(serving.path)
    frontend.handshake()
    frontend.begin(base=1)
    assert frontend.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EIO


def test_a_file_that_is_no_state_is_left_alone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("precious contents")
    filesystem = HostDirectory(tmp_path)
    server = Server(filesystem, VhostUserTransport(tmp_path / "socket", state_path=state))
    with pytest.raises(OSError, match="no state"):
        server.start()
    server.close()
    filesystem.close()
    assert state.read_text() == "precious contents"


def test_a_filesystem_that_keeps_no_state_is_refused(tmp_path: Path) -> None:
    transport = VhostUserTransport(tmp_path / "socket", state_path=tmp_path / "state")
    server = Server(MemoryFilesystem(), transport)
    with pytest.raises(TypeError, match="keeps no state"):
        server.start()
    server.close()


# -- guests that move -------------------------------------------------------------------------------------------------


@pytest.fixture
def moves(serve: Serve) -> tuple[Serving, Serving]:
    """Two machines with the same files."""
    if not DirtyLog.ATOMIC:
        pytest.skip("the plain form has no atomic dirty log, so no guest moves")
    servings = serve(), serve()
    for serving in servings:
        serving.file("x", b"data")
        (serving.folder / "d").mkdir()
        serving.file("d/y", b"more")
    return servings


def save(frontend: RawFrontend) -> bytes:
    read, write = os.pipe()
    transfer = DeviceStateTransfer(direction=0)
    assert frontend.call(FrontendRequest.SET_DEVICE_STATE_FD, transfer, [write]) == NOT_AN_FD
    os.close(write)
    with open(read, "rb") as file:
        state = file.read()
    assert frontend.call(FrontendRequest.CHECK_DEVICE_STATE) == 0
    return state


def load(frontend: RawFrontend, state: bytes) -> int:
    read, write = os.pipe()
    transfer = DeviceStateTransfer(direction=1)
    assert frontend.call(FrontendRequest.SET_DEVICE_STATE_FD, transfer, [read]) == NOT_AN_FD
    os.close(read)
    with contextlib.suppress(BrokenPipeError), open(write, "wb") as file:
        file.write(state)
    failed: int = frontend.call(FrontendRequest.CHECK_DEVICE_STATE)
    return failed


def test_a_guest_goes_on_on_another_machine(moves: tuple[Serving, Serving]) -> None:
    source, target = moves
    frontend = source.connect()
    nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
    directory = frontend.lookup(b"d").struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid)
    bases = [frontend.stop_ring(ring) for ring in frontend.rings]
    state = save(frontend)
    frontend.connect_again(target.path)
    frontend.handshake()
    assert load(frontend, state) == 0
    frontend.send(FrontendRequest.SET_FEATURES, U64(value=frontend.features))
    frontend.add_memory()
    for ring, base in zip(frontend.rings, bases, strict=True):
        frontend.start_ring(ring, base)
    assert frontend.read(nodeid, fh, 10).body == b"data"
    assert frontend.write(nodeid, fh, b"DATA").struct(w.WriteOut).size == 4
    assert (target.folder / "x").read_bytes() == b"DATA"
    assert (source.folder / "x").read_bytes() == b"data"
    inner = frontend.lookup(b"y", directory).struct(w.EntryOut)
    assert inner.attr.size == 4
    assert inner.nodeid not in (nodeid, directory)


def test_a_state_that_cannot_be_read_is_no_success_and_a_new_guest_is_served(moves: tuple[Serving, Serving]) -> None:
    source, target = moves
    frontend = source.connect()
    for ring in frontend.rings:
        frontend.stop_ring(ring)
    state = save(frontend)
    for damaged in (b"", state[:-1], state[:30] + b"\xff" + state[31:], b"nonsense" * 1000):
        other = target.connect(begin=False)
        assert load(other, damaged) != 0
        other.sock.close()
    assert target.connect().lookup(b"x").errno == 0


def test_a_guest_whose_move_failed_goes_on_where_it_was(moves: tuple[Serving, Serving]) -> None:
    source, _ = moves
    frontend = source.connect(protocol=~ProtocolFeature.INFLIGHT_SHMFD.bit)
    nodeid = frontend.lookup(b"d").struct(w.EntryOut).nodeid
    bases = [frontend.stop_ring(ring) for ring in frontend.rings]
    save(frontend)
    for ring, base in zip(frontend.rings, bases, strict=True):
        frontend.start_ring(ring, base)
    assert frontend.lookup(b"y", nodeid).errno == 0


def test_a_guest_that_has_mounted_nothing_moves_as_well(moves: tuple[Serving, Serving]) -> None:
    source, target = moves
    state = save(source.connect(begin=False))
    frontend = target.connect(begin=False)
    assert load(frontend, state) == 0
    frontend.begin()
    frontend.init()
    assert frontend.lookup(b"x").errno == 0


# -- the transport itself ---------------------------------------------------------------------------------------------


def test_it_is_a_transport_of_its_own_kind(tmp_path: Path) -> None:
    transport = VhostUserTransport(tmp_path / "socket")
    assert isinstance(transport, SelfServing)
    assert transport.open_channel() is None
    assert transport.groups_of(1) == ()
    with pytest.raises(OSError):
        transport.register_backing(0)
    with pytest.raises(OSError):
        transport.notify([b""])
    transport.close()
    transport.close()
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize(
    "options", [{"queues": 0}, {"queues": 65}, {"window": 4096}, {"window": -1}, {"tag": "x" * 37}], ids=str
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(ValueError):
        VhostUserTransport(tmp_path / "socket", **options)
    assert not (tmp_path / "socket").exists()


def test_an_inherited_listening_socket_is_served(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(1)
    (tmp_path / "share").mkdir()
    with Server(HostDirectory(tmp_path / "share"), VhostUserTransport.from_fd(listening.detach())):
        with RawFrontend(path) as frontend:
            frontend.handshake()
            frontend.begin()
            frontend.init()
    assert Path(path).exists()  # whoever made it keeps it


def test_a_connected_socket_is_served_once(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with Server(HostDirectory(tmp_path), VhostUserTransport.from_fd(ours.detach())) as server:
        with RawFrontend(MessageSocket(theirs)) as frontend:
            frontend.handshake()
            frontend.begin()
            frontend.init()
            assert server.wait_connected(10)
            assert not server.wait(0)
        assert server.wait(10)


def test_a_server_may_end_with_its_first_front_end(serve: Serve) -> None:
    serving = serve(once=True)
    serving.connect().sock.close()
    assert serving.server.wait(10)


def test_another_kind_of_socket_is_refused() -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with pytest.raises(ValueError, match="SOCK_STREAM"):
        VhostUserTransport(sock)
    sock.close()


def test_closing_cuts_the_front_end_off(serving: Serving, frontend: RawFrontend) -> None:
    serving.server.close()
    assert frontend.sock.receive() is None
    with pytest.raises(OSError):
        connect(serving.path)


def test_requests_and_replies_can_be_traced(tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "x").write_bytes(b"")
    with Server(HostDirectory(tmp_path), VhostUserTransport(tmp_path / "s"), trace=lines.append):
        with RawFrontend(tmp_path / "s") as frontend:
            frontend.handshake()
            frontend.begin()
            frontend.init()
            nodeid = frontend.lookup(b"x").struct(w.EntryOut).nodeid
            fh = frontend.open(nodeid)
            assert frontend.write(nodeid, fh, b"abc").struct(w.WriteOut).size == 3
    assert (tmp_path / "x").read_bytes() == b"abc"
    assert any("WRITE" in line for line in lines)


def test_protocol_features_that_are_not_done_are_not_offered(serving: Serving) -> None:
    frontend = serving.connect(begin=False)
    for feature in (ProtocolFeature.XEN_MMAP, ProtocolFeature.GPA_ADDRESSES, ProtocolFeature.SHMEM):
        assert not frontend.protocol_features & feature.bit
    assert config.F_PROTOCOL_FEATURES & frontend.features
    assert F_RING_PACKED & frontend.call(FrontendRequest.GET_FEATURES)

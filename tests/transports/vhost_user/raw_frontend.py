"""A front-end as small as it can be: it says what QEMU says, in QEMU's order, and puts raw FUSE requests into rings.

`RawFrontend(path)` connects; `handshake()` agrees on features, `begin()` gives memory and starts the rings, `ask()`
sends one request and waits for its answer. For tests of the back-end: nothing is hidden, and every message, ring and
byte of memory can be had to do it wrong. One thread.
"""

from __future__ import annotations

import itertools
import os
import select
import struct
from collections.abc import Sequence
from typing import Any

from transfuse.transports.vhost_user import config
from transfuse.transports.vhost_user.messages import (
    FRONTEND_REQUESTS,
    NEED_REPLY,
    NOT_AN_FD,
    U64,
    FrontendRequest,
    InflightArea,
    MemoryRegion,
    ProtocolFeature,
    SingleRegion,
    VringAddress,
    VringState,
    decode_reply,
)
from transfuse.transports.vhost_user.socket import Fds, MessageSocket, connect
from transfuse.transports.virtqueue import GuestMemory, PackedDriver, Region, SplitDriver
from transfuse.transports.virtqueue.layout import F_RING_PACKED, area_sizes
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import encode_request
from transfuse.wire.layout import WireStruct
from transfuse.wire.opcodes import Opcode

GUEST_BASE = 0x10_0000
USER_BASE = 0x7F00_0000_0000
MEMORY = 16 << 20
WAIT_S = 20.0


class Answer:
    """The reply to one request."""

    def __init__(self, raw: bytes, written: int) -> None:
        self.raw = raw[:written]
        self.written = written
        self.errno = 0
        self.body = b""
        if written >= 16:
            length, error, self.unique = struct.unpack_from("<IiQ", raw)
            assert length == written, f"out_header.len {length}, {written} bytes used"
            self.errno = -error
            self.body = raw[16:written]

    def struct(self, kind: type[WireStruct], at: int = 0) -> Any:
        """The structure at `at` of the body."""
        assert self.errno == 0, f"errno {self.errno}"
        return kind.decode(self.body, at, "<")


class Ring:
    """One ring with its eventfds."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.driver: Any = None
        self.areas: tuple[int, int, int] = (0, 0, 0)
        """Guest addresses of the descriptor, driver and device areas."""


class RawFrontend:
    """One connection. `packed` and `size` are of the rings, `queues` of the requests."""

    def __init__(
        self,
        where: str | os.PathLike[str] | MessageSocket,
        *,
        queues: int = 1,
        size: int = 128,
        packed: bool = False,
        without: int = 0,
    ) -> None:
        self.sock = where if isinstance(where, MessageSocket) else connect(where)
        self.size = size
        self.packed = packed
        self.without = without
        """Virtio features not to agree to."""
        self.rings = [Ring(index) for index in range(queues + 1)]
        self.features = 0
        self.protocol_features = 0
        self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, MEMORY)
        self.memory = GuestMemory([Region(GUEST_BASE, USER_BASE, MEMORY, self.memory_fd)])
        self.inflight_fd: int | None = None
        self.inflight_area: InflightArea | None = None
        self._free = GUEST_BASE
        self._uniques = itertools.count(2, 2)
        self._done: dict[int, Answer] = {}

    # -- messages -----------------------------------------------------------------------------------------------------

    def send(self, request: FrontendRequest, body: Any = None, fds: Sequence[int] = (), flags: int = 0) -> None:
        self.sock.send(request, body.encode() if body is not None else b"", fds, flags)

    def call(self, request: FrontendRequest, body: Any = None, fds: Sequence[int] = ()) -> Any:
        """A request and its answer, or whether it was done (0) if it has none."""
        answer, left = self.call_with_fds(request, body, fds)
        left.close()
        return answer

    def call_with_fds(self, request: FrontendRequest, body: Any = None, fds: Sequence[int] = ()) -> tuple[Any, Fds]:
        row = FRONTEND_REQUESTS[request]
        self.send(request, body, fds, 0 if row.reply else NEED_REPLY)
        message = self.sock.receive()
        assert message is not None, f"the back-end hung up on {request.name}"
        assert message.request == request
        answer = decode_reply(row, message.payload)
        return (answer.value if isinstance(answer, U64) else answer), message.fds

    def handshake(self, protocol: int | None = None) -> None:
        """What is said when the device is made."""
        offered = self.call(FrontendRequest.GET_FEATURES)
        wanted = self.call(FrontendRequest.GET_PROTOCOL_FEATURES)
        self.protocol_features = wanted if protocol is None else wanted & protocol
        self.send(FrontendRequest.SET_PROTOCOL_FEATURES, U64(value=self.protocol_features))
        self.send(FrontendRequest.SET_OWNER)
        self.features = offered & ~self.without & ~config.F_LOG_ALL
        if not self.packed:
            self.features &= ~F_RING_PACKED
        for ring in self.rings:
            self.send(FrontendRequest.SET_VRING_CALL, U64(value=ring.index), [ring.call])
            self.send(FrontendRequest.SET_VRING_ERR, U64(value=ring.index), [ring.err])

    def begin(self, base: int | None = None) -> None:
        """What is said when the driver is ready."""
        self.send(FrontendRequest.SET_FEATURES, U64(value=self.features))
        self.add_memory()
        if self.protocol_features & ProtocolFeature.INFLIGHT_SHMFD.bit:
            self.share_inflight()
        for ring in self.rings:
            if ring.driver is None:
                self.make_driver(ring)
            self.start_ring(ring, base)

    def region(self) -> SingleRegion:
        region = MemoryRegion(guest_address=GUEST_BASE, size=MEMORY, user_address=USER_BASE, mmap_offset=0)
        return SingleRegion(region=region)

    def add_memory(self) -> None:
        assert self.call(FrontendRequest.ADD_MEM_REG, self.region(), [self.memory_fd]) == 0

    def share_inflight(self) -> None:
        """Have a new in-flight region made, or give back the one that we have."""
        area = InflightArea(num_queues=len(self.rings), queue_size=self.size)
        if self.inflight_fd is None:
            self.inflight_area, fds = self.call_with_fds(FrontendRequest.GET_INFLIGHT_FD, area)
            self.inflight_fd = fds.take()
        else:
            assert self.call(FrontendRequest.SET_INFLIGHT_FD, self.inflight_area, [self.inflight_fd]) == 0

    def renew(self) -> None:
        """The guest starts anew: rings at other places, no requests under way."""
        if self.inflight_fd is not None:
            os.close(self.inflight_fd)
            self.inflight_fd = None
        for ring in self.rings:
            self.make_driver(ring)

    def make_driver(self, ring: Ring) -> None:
        areas = [self.allocate(size, 64) for size in area_sizes(self.size, self.packed)]
        ring.areas = (areas[0], areas[1], areas[2])
        kind = PackedDriver if self.packed else SplitDriver
        tables = self.allocate(self.size * 16 * 300, 16)
        ring.driver = kind(
            self.memory, self.size, *ring.areas, self.features, tables=tables, table_entries=300, guest_physical=True
        )

    def user(self, guest: int) -> int:
        return guest - GUEST_BASE + USER_BASE

    def start_ring(self, ring: Ring, base: int | None = None) -> None:
        index = ring.index
        self.send(FrontendRequest.SET_VRING_NUM, VringState(index=index, num=self.size))
        first = (0x8000_8000 if self.packed else 0) if base is None else base
        self.send(FrontendRequest.SET_VRING_BASE, VringState(index=index, num=first))
        desc, driver, device = map(self.user, ring.areas)
        address = VringAddress(index=index, descriptor=desc, available=driver, used=device)
        self.send(FrontendRequest.SET_VRING_ADDR, address)
        self.send(FrontendRequest.SET_VRING_KICK, U64(value=index), [ring.kick])
        assert self.call(FrontendRequest.SET_VRING_ENABLE, VringState(index=index, num=1)) == 0

    def stop_ring(self, ring: Ring) -> int:
        base: int = self.call(FrontendRequest.GET_VRING_BASE, VringState(index=ring.index)).num
        return base

    def status(self) -> int:
        status: int = self.call(FrontendRequest.GET_STATUS)
        return status

    def no_call(self, ring: Ring) -> None:
        self.send(FrontendRequest.SET_VRING_CALL, U64(value=ring.index | NOT_AN_FD))

    # -- memory -------------------------------------------------------------------------------------------------------

    def allocate(self, size: int, alignment: int = 8) -> int:
        """Room in the guest's memory, by its guest address; never given back."""
        at = -(-self._free // alignment) * alignment
        self._free = at + size
        assert self._free <= GUEST_BASE + MEMORY, "out of guest memory"
        return at

    def poke(self, at: int, data: bytes) -> None:
        for piece in self.memory.at(at, len(data)):
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]

    def peek(self, at: int, size: int) -> bytes:
        return b"".join(bytes(piece) for piece in self.memory.at(at, size))

    # -- requests -----------------------------------------------------------------------------------------------------

    def build(
        self, opcode: int, body: WireStruct | None = None, tail: bytes = b"", nodeid: int = 1, uid: int = 0
    ) -> bytes:
        parts = encode_request(
            "<", opcode, next(self._uniques), nodeid, uid, 0, 1, (body.encode("<") if body else b"") + tail
        )
        return b"".join(bytes(part) for part in parts)

    def submit(self, raw: bytes, room: int = 4096, ring: int = 1, pieces: int = 0) -> int:
        """Put a request into a ring and kick; the number to `wait` for. `pieces`: data behind the first 80 bytes, and
        room behind the first 16, lie in segments of this size, as pages do."""
        token = self.add(raw, room, ring, pieces)
        self.kick(ring)
        return token

    def add(self, raw: bytes, room: int = 4096, ring: int = 1, pieces: int = 0) -> int:
        token = next(self._uniques)
        at = self.allocate(len(raw) + room, 8)
        self.poke(at, raw)
        readable = _cut(at, len(raw), 80, pieces)
        out = at + len(raw)
        writable = _cut(out, room, 16, pieces) if room else []
        assert self.rings[ring].driver.add(readable, writable, (token, out, room)), "the ring is full"
        return token

    def kick(self, ring: int = 1) -> None:
        driver = self.rings[ring].driver
        driver.publish()
        if driver.needs_kick():
            os.eventfd_write(self.rings[ring].kick, 1)

    def wait(self, token: int, ring: int = 1, timeout_s: float = WAIT_S) -> Answer:
        """The answer to a submitted request."""
        answer = self.poll(token, ring, timeout_s)
        assert answer is not None, f"no answer within {timeout_s} s"
        return answer

    def poll(self, token: int, ring: int = 1, timeout_s: float = 0.0) -> Answer | None:
        one = self.rings[ring]
        while token not in self._done:
            used = one.driver.take_used()
            if used is not None:
                (number, at, room), written = used
                self._done[number] = Answer(self.peek(at, room), written)
                continue
            if one.driver.arm():
                continue
            if not select.select([one.call], [], [], timeout_s)[0]:
                return None
            os.eventfd_read(one.call)
        return self._done.pop(token)

    def ask(
        self, opcode: int, body: WireStruct | None = None, tail: bytes = b"", nodeid: int = 1, ring: int = 1,
        room: int = 4096, pieces: int = 0, uid: int = 0,
    ) -> Answer:  # fmt: skip
        """One request and its answer."""
        return self.wait(self.submit(self.build(opcode, body, tail, nodeid, uid=uid), room, ring, pieces), ring)

    def init(self, flags: int = f.FUSE_MAX_PAGES | f.FUSE_BIG_WRITES | f.FUSE_INIT_EXT, flags2: int = 0) -> Any:
        """INIT as Linux sends it."""
        body = w.InitIn(major=7, minor=38, max_readahead=1 << 17, flags=flags & 0xFFFF_FFFF, flags2=flags2)
        return self.ask(Opcode.INIT, body).struct(w.InitOut)

    def lookup(self, name: bytes, parent: int = 1) -> Answer:
        return self.ask(Opcode.LOOKUP, None, name + b"\0", parent)

    def forget(self, nodeid: int, nlookup: int = 1) -> None:
        """By hiprio, where it has no room for an answer."""
        token = self.submit(self.build(Opcode.FORGET, w.ForgetIn(nlookup=nlookup), nodeid=nodeid), 0, 0)
        assert self.wait(token, 0).written == 0

    def open(self, nodeid: int, flags: int = os.O_RDWR) -> int:
        fh: int = self.ask(Opcode.OPEN, w.OpenIn(flags=flags), nodeid=nodeid).struct(w.OpenOut).fh
        return fh

    def read(self, nodeid: int, fh: int, size: int, offset: int = 0, pieces: int = 4096) -> Answer:
        body = w.ReadIn(fh=fh, offset=offset, size=size)
        return self.ask(Opcode.READ, body, nodeid=nodeid, room=16 + size, pieces=pieces)

    def write(self, nodeid: int, fh: int, data: bytes, offset: int = 0, flags: int = 0, pieces: int = 4096) -> Answer:
        body = w.WriteIn(fh=fh, offset=offset, size=len(data), write_flags=flags)
        return self.ask(Opcode.WRITE, body, data, nodeid=nodeid, room=24, pieces=pieces)

    def connect_again(self, where: str | os.PathLike[str]) -> None:
        """As the same machine with a new connection, and the same memory, rings and requests under way."""
        self.sock.close()
        self.sock = connect(where)

    def close(self) -> None:
        self.sock.close()
        for ring in self.rings:
            ring.driver = None
            for fd in (ring.kick, ring.call, ring.err):
                os.close(fd)
        self.memory = GuestMemory()
        os.close(self.memory_fd)
        if self.inflight_fd is not None:
            os.close(self.inflight_fd)

    def __enter__(self) -> RawFrontend:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _cut(at: int, size: int, first: int, pieces: int) -> list[tuple[int, int]]:
    if not pieces:
        return [(at, size)]
    segments = []
    step = first
    while size:
        part = min(size, step)
        segments.append((at, part))
        at += part
        size -= part
        step = pieces
    return segments

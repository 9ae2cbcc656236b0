"""Every vhost-user message that concerns a filesystem device, in both directions, as bytes and as values. No I/O.

A message is a 12-byte header {u32 request, u32 flags, u32 size} and `size` bytes of payload; fds ride on the first byte
of the header. One table for each direction says what a request carries: the structure of its payload, how many fds,
what is answered, and which protocol feature has to be agreed before. `decode_request` checks all of that and the values
that are wrong whatever the device's state is (sizes of zero, ranges that wrap, unknown flag bits); what depends on the
state (is there such a ring?) is for `device`.

All integers are in the order of the machine that both sides run on, as the protocol has it: this is the one wire format
of the project that says so. Source: QEMU 11.1, docs/interop/vhost-user; sizes of structures as QEMU and rust-vmm send
them (an inflight description has 4 bytes of padding behind what the document lists).
"""

# The annotations of structures are read by wire.layout, where pad(4) and chars(36) are calls and not types.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Self

from transfuse.errors import RemoteProtocolError
from transfuse.wire.layout import Buffer, ByteOrder, WireStruct, fixed, pad, u8, u16, u32, u64

__all__ = [
    "BACKEND_REQUESTS",
    "FRONTEND_REQUESTS",
    "HEADER_SIZE",
    "MAX_CONFIG",
    "MAX_FDS",
    "MAX_PAYLOAD",
    "MAX_TABLE",
    "NEED_REPLY",
    "NOT_AN_FD",
    "REPLY",
    "VERSION",
    "BackendRequest",
    "ConfigAccess",
    "DeviceStateTransfer",
    "FrontendRequest",
    "Header",
    "InflightArea",
    "LogArea",
    "MemoryRegion",
    "MemoryTable",
    "ProtocolFeature",
    "RequestRow",
    "ShmemConfig",
    "ShmemMapping",
    "SingleRegion",
    "U64",
    "VringAddress",
    "VringState",
    "decode_reply",
    "decode_request",
]

NATIVE: ByteOrder = "<" if sys.byteorder == "little" else ">"

VERSION = 1
"""Lower two bits of a header's flags."""
REPLY = 1 << 2
NEED_REPLY = 1 << 3
MAX_FDS = 8
"""Most fds of one message: one for each region of a memory table."""
MAX_TABLE = 8
"""Most regions of one SET_MEM_TABLE."""
MAX_CONFIG = 256
"""Most bytes of configuration space that are carried at a time: QEMU's VHOST_USER_MAX_CONFIG_SIZE."""
MAX_PAYLOAD = 4096
"""Longest payload taken; the longest that exists is the 2056 bytes of a ShmemConfig."""
NOT_AN_FD = 1 << 8
"""In the u64 of SET_VRING_KICK and the like: no fd comes with it. Bits 0 to 7 are the ring's index."""
U64_MAX = 0xFFFF_FFFF_FFFF_FFFF


class ProtocolFeature(IntEnum):
    """Numbers of the bits of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    """Makes memory regions longer. QEMU agrees to whatever is offered, this too, so it never may be."""
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20
    GPA_ADDRESSES = 21
    """Ring addresses are guest-physical. rust-vmm's vhost 0.16 meant SHMEM by this bit; QEMU 11.1 does not."""
    SHMEM = 22

    @property
    def bit(self) -> int:
        """The bit itself."""
        return 1 << self


class FrontendRequest(IntEnum):
    """What a front-end asks of a back-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """What a back-end asks of a front-end, over the socket that came with SET_BACKEND_REQ_FD."""

    CONFIG_CHANGE_MSG = 2
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class Header(WireStruct, order=NATIVE):
    """In front of every message, 12 bytes."""

    request: u32
    flags: u32
    size: u32


HEADER_SIZE = Header.SIZE


class U64(WireStruct, order=NATIVE):
    """A single integer: feature bits, a status, an index with flags, an answer (0: done)."""

    value: u64


class VringState(WireStruct, order=NATIVE):
    """struct vhost_vring_state, 8 bytes: a ring, and its size, its base or a switch."""

    index: u32
    num: u32


class VringAddress(WireStruct, order=NATIVE):
    """struct vhost_vring_addr, 40 bytes. Addresses are the front-end's own, or guest-physical with GPA_ADDRESSES."""

    LOG: ClassVar[int] = 1

    index: u32
    flags: u32
    descriptor: u64
    used: u64
    """Used ring, or the device's event area of a packed ring."""
    available: u64
    """Available ring, or the driver's event area of a packed ring."""
    log: u64
    """Guest-physical address under which writes to the used ring are logged; counts with the flag LOG."""


class MemoryRegion(WireStruct, order=NATIVE):
    """32 bytes: memory of the guest, `size` bytes of an fd from `mmap_offset`."""

    guest_address: u64
    size: u64
    user_address: u64
    mmap_offset: u64


class SingleRegion(WireStruct, order=NATIVE):
    """ADD_MEM_REG and REM_MEM_REG, 40 bytes."""

    padding: pad(8)
    region: MemoryRegion


class LogArea(WireStruct, order=NATIVE):
    """Where the dirty log lies in the fd of SET_LOG_BASE, 16 bytes."""

    size: u64
    offset: u64


class InflightArea(WireStruct, order=NATIVE):
    """Where the book of requests under way lies in its fd, 24 bytes."""

    mmap_size: u64
    mmap_offset: u64
    num_queues: u16
    queue_size: u16
    padding: pad(4)


class ConfigHead(WireStruct, order=NATIVE):
    """In front of the bytes of GET_CONFIG and SET_CONFIG, 12 bytes."""

    offset: u32
    size: u32
    flags: u32


class DeviceStateTransfer(WireStruct, order=NATIVE):
    """SET_DEVICE_STATE_FD, 8 bytes. direction: 0 save, 1 load; phase: 0, the guest is stopped."""

    direction: u32
    phase: u32


class ShmemConfig(WireStruct, order=NATIVE):
    """GET_SHMEM_CONFIG's answer, 2056 bytes: sizes of the shared memory regions by their ids."""

    count: u32
    padding: pad(4)
    sizes: fixed(u64, 256)


class ShmemMapping(WireStruct, order=NATIVE):
    """SHMEM_MAP and SHMEM_UNMAP, 40 bytes. flags: 0 read-only, 1 read and write."""

    shmid: u8
    padding: pad(7)
    fd_offset: u64
    shm_offset: u64
    length: u64
    flags: u64


class TableHead(WireStruct, order=NATIVE):
    """In front of the regions of SET_MEM_TABLE, 8 bytes."""

    count: u32
    padding: pad(4)


class MemoryTable:
    """SET_MEM_TABLE: up to 8 regions, as many as there are fds."""

    SIZE = TableHead.SIZE

    def __init__(self, regions: tuple[MemoryRegion, ...]) -> None:
        self.regions = regions

    @classmethod
    def decode(cls, payload: Buffer) -> Self:
        """The table. Front-ends may send room for all 8 regions; what lies behind the last one is not read."""
        count = TableHead.decode(payload).count
        end = TableHead.SIZE + count * MemoryRegion.SIZE
        if not 0 < count <= MAX_TABLE or end > len(payload):
            raise RemoteProtocolError(f"memory table: {count} regions in {len(payload)} bytes, 1 to {MAX_TABLE} belong")
        return cls(tuple(MemoryRegion.decode(payload, at) for at in range(TableHead.SIZE, end, MemoryRegion.SIZE)))

    def encode(self) -> bytes:
        """The payload."""
        return TableHead(count=len(self.regions)).encode() + b"".join(region.encode() for region in self.regions)


class ConfigAccess:
    """GET_CONFIG, its answer, and SET_CONFIG: bytes of the configuration space. No bytes in an answer mean failure."""

    SIZE = ConfigHead.SIZE

    def __init__(self, offset: int, data: bytes, flags: int = 0) -> None:
        self.offset = offset
        self.data = data
        self.flags = flags

    @property
    def size(self) -> int:
        """How many bytes are read or written."""
        return len(self.data)

    @classmethod
    def decode(cls, payload: Buffer) -> Self:
        """The access; exactly as many bytes must follow the head as it says."""
        head = ConfigHead.decode(payload)
        data = bytes(payload[ConfigHead.SIZE :])
        if len(data) != head.size or head.size > MAX_CONFIG:
            raise RemoteProtocolError(f"config access: size {head.size}, {len(data)} bytes follow")
        return cls(head.offset, data, head.flags)

    def encode(self) -> bytes:
        """The payload."""
        return ConfigHead(offset=self.offset, size=len(self.data), flags=self.flags).encode() + self.data


Body = WireStruct | MemoryTable | ConfigAccess


class RequestRow(NamedTuple):
    """What belongs to one request."""

    request: IntEnum
    body: type[Any] | None = None
    """Structure of the payload; None: there is none."""
    reply: type[Any] | None = None
    """Structure of the answer it always gets; None: at most a success or failure, where NEED_REPLY asks for it."""
    least_fds: int = 0
    most_fds: int = 0
    feature: ProtocolFeature | None = None
    """Has to be agreed before."""


def _rows(*rows: RequestRow) -> dict[int, RequestRow]:
    return {int(row.request): row for row in rows}


_F, _P, _R = FrontendRequest, ProtocolFeature, RequestRow

FRONTEND_REQUESTS: dict[int, RequestRow] = _rows(
    _R(_F.GET_FEATURES, None, U64),
    _R(_F.SET_FEATURES, U64),
    _R(_F.SET_OWNER),
    _R(_F.RESET_OWNER),
    _R(_F.SET_MEM_TABLE, MemoryTable, None, 1, MAX_TABLE),
    _R(_F.SET_LOG_BASE, LogArea, U64, 1, 1, _P.LOG_SHMFD),
    _R(_F.SET_LOG_FD, None, None, 1, 1),
    _R(_F.SET_VRING_NUM, VringState),
    _R(_F.SET_VRING_ADDR, VringAddress),
    _R(_F.SET_VRING_BASE, VringState),
    _R(_F.GET_VRING_BASE, VringState, VringState),
    _R(_F.SET_VRING_KICK, U64, None, 0, 1),
    _R(_F.SET_VRING_CALL, U64, None, 0, 1),
    _R(_F.SET_VRING_ERR, U64, None, 0, 1),
    _R(_F.GET_PROTOCOL_FEATURES, None, U64),
    _R(_F.SET_PROTOCOL_FEATURES, U64),
    _R(_F.GET_QUEUE_NUM, None, U64, feature=_P.MQ),
    _R(_F.SET_VRING_ENABLE, VringState),
    _R(_F.SET_BACKEND_REQ_FD, None, None, 1, 1, _P.BACKEND_REQ),
    _R(_F.GET_CONFIG, ConfigAccess, ConfigAccess, feature=_P.CONFIG),
    _R(_F.SET_CONFIG, ConfigAccess, feature=_P.CONFIG),
    _R(_F.GET_INFLIGHT_FD, InflightArea, InflightArea, feature=_P.INFLIGHT_SHMFD),
    _R(_F.SET_INFLIGHT_FD, InflightArea, None, 1, 1, _P.INFLIGHT_SHMFD),
    _R(_F.RESET_DEVICE, feature=_P.RESET_DEVICE),
    _R(_F.GET_MAX_MEM_SLOTS, None, U64, feature=_P.CONFIGURE_MEM_SLOTS),
    _R(_F.ADD_MEM_REG, SingleRegion, None, 1, 1, _P.CONFIGURE_MEM_SLOTS),
    # An fd does not belong here, but some front-ends send one; it is closed.
    _R(_F.REM_MEM_REG, SingleRegion, None, 0, 1, _P.CONFIGURE_MEM_SLOTS),
    _R(_F.SET_STATUS, U64, feature=_P.STATUS),
    _R(_F.GET_STATUS, None, U64, feature=_P.STATUS),
    _R(_F.SET_DEVICE_STATE_FD, DeviceStateTransfer, U64, 1, 1, _P.DEVICE_STATE),
    _R(_F.CHECK_DEVICE_STATE, None, U64, feature=_P.DEVICE_STATE),
    _R(_F.GET_SHMEM_CONFIG, None, ShmemConfig, feature=_P.SHMEM),
)

BACKEND_REQUESTS: dict[int, RequestRow] = _rows(
    _R(BackendRequest.CONFIG_CHANGE_MSG, feature=_P.CONFIG),
    _R(BackendRequest.SHMEM_MAP, ShmemMapping, None, 1, 1, _P.SHMEM),
    _R(BackendRequest.SHMEM_UNMAP, ShmemMapping, None, feature=_P.SHMEM),
)


def decode_request(row: RequestRow, payload: Buffer, fds: int) -> Any:
    """The payload of a request as its structure (None where it has none), checked. `fds`: how many came with it."""
    name = row.request.name
    if not row.least_fds <= fds <= row.most_fds:
        raise RemoteProtocolError(f"{name}: {fds} fds, {row.least_fds} to {row.most_fds} belong")
    if row.body is None:
        # Some front-ends send a u64 that means nothing with requests that carry only an fd.
        if len(payload) not in (0, U64.SIZE):
            raise RemoteProtocolError(f"{name}: {len(payload)} bytes of payload, none belong")
        return None
    body = _decode(name, row.body, payload)
    check = _CHECKS.get(row.body)
    if check is not None:
        check(name, body)
    if row.body is MemoryTable and fds != len(body.regions):
        raise RemoteProtocolError(f"{name}: {fds} fds for {len(body.regions)} regions")
    if row.body is U64 and row.most_fds:
        _check_vring_fd(name, body.value, fds)
    return body


def decode_reply(row: RequestRow, payload: Buffer) -> Any:
    """The payload of an answer; U64 where the request has no answer of its own and an acknowledgement was asked for."""
    return _decode(row.request.name, row.reply or U64, payload)


def _decode(name: str, body: type[Any], payload: Buffer) -> Any:
    if body is InflightArea and len(payload) == InflightArea.SIZE - 4:
        payload = bytes(payload) + bytes(4)  # without the padding that C puts behind it
    variable = body is MemoryTable or body is ConfigAccess
    if len(payload) < body.SIZE or (len(payload) > body.SIZE and not variable):
        raise RemoteProtocolError(f"{name}: {len(payload)} bytes of payload where {body.SIZE} belong")
    return body.decode(payload)


def _check_range(name: str, what: str, start: int, size: int) -> None:
    if not size or start + size > U64_MAX:
        raise RemoteProtocolError(f"{name}: {what} {start:#x} + {size:#x} is empty or wraps")


def _check_region(name: str, region: MemoryRegion) -> None:
    _check_range(name, "guest address", region.guest_address, region.size)
    _check_range(name, "user address", region.user_address, region.size)
    _check_range(name, "mmap offset", region.mmap_offset, region.size)


def _check_table(name: str, table: MemoryTable) -> None:
    for region in table.regions:
        _check_region(name, region)


def _check_single(name: str, single: SingleRegion) -> None:
    _check_region(name, single.region)


def _check_address(name: str, address: VringAddress) -> None:
    if address.flags & ~VringAddress.LOG:
        raise RemoteProtocolError(f"{name}: flags {address.flags:#x} are not known")


def _check_log(name: str, area: LogArea) -> None:
    _check_range(name, "log at", area.offset, area.size)


def _check_mapping(name: str, mapping: ShmemMapping) -> None:
    if mapping.flags > 1:
        raise RemoteProtocolError(f"{name}: flags {mapping.flags:#x} are not known")
    _check_range(name, "fd offset", mapping.fd_offset, mapping.length)
    _check_range(name, "window offset", mapping.shm_offset, mapping.length)


def _check_transfer(name: str, transfer: DeviceStateTransfer) -> None:
    if transfer.direction > 1 or transfer.phase:
        raise RemoteProtocolError(f"{name}: direction {transfer.direction}, phase {transfer.phase} are not known")


def _check_vring_fd(name: str, value: int, fds: int) -> None:
    if value & ~(NOT_AN_FD | 0xFF):
        raise RemoteProtocolError(f"{name}: {value:#x} has unknown bits")
    if fds != (0 if value & NOT_AN_FD else 1):
        raise RemoteProtocolError(f"{name}: {value:#x} with {fds} fds")


_CHECKS: dict[type[Any], Any] = {
    MemoryTable: _check_table,
    SingleRegion: _check_single,
    VringAddress: _check_address,
    LogArea: _check_log,
    ShmemMapping: _check_mapping,
    DeviceStateTransfer: _check_transfer,
}

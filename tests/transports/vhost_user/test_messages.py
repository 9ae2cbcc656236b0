"""Every message: its bytes, and what is refused."""

from __future__ import annotations

import random
import struct

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.transports.vhost_user import messages as m
from transfuse.transports.vhost_user.messages import FrontendRequest, decode_reply, decode_request

SIZES = {
    "Header": 12,
    "U64": 8,
    "VringState": 8,
    "VringAddress": 40,
    "MemoryRegion": 32,
    "SingleRegion": 40,
    "LogArea": 16,
    "InflightArea": 24,
    "ConfigHead": 12,
    "DeviceStateTransfer": 8,
    "ShmemConfig": 2056,
    "ShmemMapping": 40,
}


def decode(request: FrontendRequest, payload: bytes, fds: int = 0):
    return decode_request(m.FRONTEND_REQUESTS[request], payload, fds)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_structures_have_the_sizes_that_qemu_sends(name: str, size: int) -> None:
    assert getattr(m, name).SIZE == size


def test_numbers_of_requests_and_features_are_those_of_the_document() -> None:
    assert FrontendRequest.SET_BACKEND_REQ_FD == 21
    assert FrontendRequest.GET_INFLIGHT_FD == 31
    assert FrontendRequest.RESET_DEVICE == 34
    assert FrontendRequest.ADD_MEM_REG == 37
    assert FrontendRequest.CHECK_DEVICE_STATE == 43
    assert FrontendRequest.GET_SHMEM_CONFIG == 44
    assert m.BackendRequest.SHMEM_MAP == 9
    assert m.BackendRequest.SHMEM_UNMAP == 10
    assert m.ProtocolFeature.SHMEM.bit == 1 << 22
    assert m.ProtocolFeature.XEN_MMAP.bit == 1 << 17


def test_every_request_has_a_row() -> None:
    assert m.FRONTEND_REQUESTS.keys() == set(FrontendRequest)
    assert m.BACKEND_REQUESTS.keys() == set(m.BackendRequest)


def test_vring_state_in_bytes() -> None:
    raw = struct.pack("=II", 1, 128)  # index, num
    state = decode(FrontendRequest.SET_VRING_NUM, raw)
    assert (state.index, state.num) == (1, 128)
    assert state.encode() == raw


def test_vring_address_in_bytes() -> None:
    raw = struct.pack("=IIQQQQ", 1, 1, 0x1000, 0x3000, 0x2000, 0x4000)  # index, flags, descriptor, used, available, log
    address = decode(FrontendRequest.SET_VRING_ADDR, raw)
    assert (address.index, address.flags) == (1, m.VringAddress.LOG)
    assert (address.descriptor, address.used, address.available, address.log) == (0x1000, 0x3000, 0x2000, 0x4000)


def test_unknown_flags_of_a_vring_address_are_refused() -> None:
    raw = m.VringAddress(index=0, flags=2).encode()
    with pytest.raises(RemoteProtocolError, match="flags 0x2"):
        decode(FrontendRequest.SET_VRING_ADDR, raw)


def test_memory_table_takes_as_many_fds_as_regions() -> None:
    table = m.MemoryTable((m.MemoryRegion(size=4096), m.MemoryRegion(guest_address=8192, size=4096)))
    assert len(decode(FrontendRequest.SET_MEM_TABLE, table.encode(), 2).regions) == 2
    with pytest.raises(RemoteProtocolError, match="1 fds for 2 regions"):
        decode(FrontendRequest.SET_MEM_TABLE, table.encode(), 1)


def test_memory_table_with_room_for_all_regions_is_read_to_its_count() -> None:
    raw = m.MemoryTable((m.MemoryRegion(size=4096),)).encode() + bytes(7 * 32)
    assert len(decode(FrontendRequest.SET_MEM_TABLE, raw, 1).regions) == 1


@pytest.mark.parametrize("count", [0, 9, 2**32 - 1])
def test_memory_table_of_a_wrong_count_is_refused(count: int) -> None:
    raw = struct.pack("=II", count, 0) + m.MemoryRegion(size=4096).encode() * 8
    with pytest.raises(RemoteProtocolError, match="memory table"):
        decode(FrontendRequest.SET_MEM_TABLE, raw, min(count, 8) or 1)


@pytest.mark.parametrize("field", ["guest_address", "user_address", "mmap_offset"])
def test_region_that_wraps_is_refused(field: str) -> None:
    region = m.MemoryRegion(size=8192, **{field: 2**64 - 4096})
    with pytest.raises(RemoteProtocolError, match="wraps"):
        decode(FrontendRequest.ADD_MEM_REG, m.SingleRegion(region=region).encode(), 1)


def test_region_of_no_bytes_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="empty"):
        decode(FrontendRequest.ADD_MEM_REG, m.SingleRegion(region=m.MemoryRegion()).encode(), 1)


def test_removal_of_a_region_tolerates_an_fd() -> None:
    raw = m.SingleRegion(region=m.MemoryRegion(size=4096)).encode()
    assert decode(FrontendRequest.REM_MEM_REG, raw, 0).region.size == 4096
    assert decode(FrontendRequest.REM_MEM_REG, raw, 1).region.size == 4096


def test_config_access_carries_its_bytes() -> None:
    raw = struct.pack("=III", 36, 4, 0) + bytes(4)  # offset, size, flags
    access = decode(FrontendRequest.GET_CONFIG, raw)
    assert (access.offset, access.size, access.flags) == (36, 4, 0)
    assert access.encode() == raw


@pytest.mark.parametrize("raw", [struct.pack("=III", 0, 8, 0) + bytes(4), struct.pack("=III", 0, 257, 0) + bytes(257)])
def test_config_access_of_a_wrong_size_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="config access"):
        decode(FrontendRequest.GET_CONFIG, raw)


def test_inflight_area_is_read_with_and_without_padding() -> None:
    raw = struct.pack("=QQHH", 4096, 0, 2, 128)  # mmap_size, mmap_offset, num_queues, queue_size
    for padding in (b"", bytes(4)):
        area = decode(FrontendRequest.GET_INFLIGHT_FD, raw + padding)
        assert (area.mmap_size, area.num_queues, area.queue_size) == (4096, 2, 128)


@pytest.mark.parametrize(
    ("value", "fds"),
    [(0x200, 1), (1 << 63, 1), (0, 0), (m.NOT_AN_FD, 1)],
    ids=["bit 9", "bit 63", "an fd is missing", "an fd too many"],
)
def test_vring_fd_that_contradicts_itself_is_refused(value: int, fds: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(FrontendRequest.SET_VRING_CALL, m.U64(value=value).encode(), fds)


def test_vring_fd_may_be_none() -> None:
    assert decode(FrontendRequest.SET_VRING_CALL, m.U64(value=m.NOT_AN_FD | 1).encode(), 0).value == 0x101


@pytest.mark.parametrize(("direction", "phase"), [(2, 0), (0, 1)])
def test_unknown_state_transfer_is_refused(direction: int, phase: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(FrontendRequest.SET_DEVICE_STATE_FD, m.DeviceStateTransfer(direction=direction, phase=phase).encode(), 1)


def test_fds_are_counted() -> None:
    with pytest.raises(RemoteProtocolError, match="1 fds, 0 to 0 belong"):
        decode(FrontendRequest.GET_FEATURES, b"", 1)
    with pytest.raises(RemoteProtocolError, match="0 fds, 1 to 1 belong"):
        decode(FrontendRequest.SET_BACKEND_REQ_FD, b"", 0)


def test_reply_without_a_structure_of_its_own_is_a_number() -> None:
    row = m.FRONTEND_REQUESTS[FrontendRequest.SET_MEM_TABLE]
    assert decode_reply(row, m.U64(value=1).encode()).value == 1
    with pytest.raises(RemoteProtocolError):
        decode_reply(row, b"")


def test_shmem_mapping_in_bytes() -> None:
    raw = bytes([0] * 8) + struct.pack("=QQQQ", 4096, 1 << 21, 8192, 1)  # shmid, fd_offset, shm_offset, length, flags
    mapping = decode_request(m.BACKEND_REQUESTS[m.BackendRequest.SHMEM_MAP], raw, 1)
    assert (mapping.shmid, mapping.fd_offset, mapping.shm_offset) == (0, 4096, 1 << 21)
    assert (mapping.length, mapping.flags) == (8192, 1)
    with pytest.raises(RemoteProtocolError, match="flags 0x2"):
        decode_request(m.BACKEND_REQUESTS[m.BackendRequest.SHMEM_MAP], raw[:-8] + struct.pack("=Q", 2), 1)


def test_any_payload_is_decoded_or_refused(request: pytest.FixtureRequest) -> None:
    rng = random.Random(request.config.option.seed)
    rows = list(m.FRONTEND_REQUESTS.values()) + list(m.BACKEND_REQUESTS.values())
    for _ in range(4000):
        row = rng.choice(rows)
        size = rng.choice([0, 4, 8, 12, 16, 20, 24, 32, 40, 64, 264, rng.randrange(400)])
        payload = rng.choice([rng.randbytes(size), bytes(size), b"\xff" * size])
        try:
            decode_request(row, payload, rng.randrange(4))
        except RemoteProtocolError:
            continue

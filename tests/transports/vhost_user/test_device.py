"""The device as a state machine: messages in, answers out, and what the engine is told."""

from __future__ import annotations

import os
import random
import socket
import struct
from typing import Any

import pytest

from transfuse.errors import RemoteProtocolError, RingError
from transfuse.transports.vhost_user import config
from transfuse.transports.vhost_user import messages as m
from transfuse.transports.vhost_user.device import MAX_SLOTS, NEEDS_RESET, Device, Identity
from transfuse.transports.vhost_user.messages import FrontendRequest as F
from transfuse.transports.vhost_user.messages import ProtocolFeature as P
from transfuse.transports.vhost_user.socket import Fds, Received
from transfuse.transports.virtqueue.layout import F_RING_PACKED, F_VERSION_1

FEATURES = config.virtio_features(log=True)
PROTOCOL = config.protocol_features(tag=True, log=True, window=True, device_state=True)
SIZE = 1 << 20


class Engine:
    """Takes notes."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.base = 7
        self.error: Exception | None = None
        self.whole = True

    def start(self, ring, device) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("start", ring.index))

    def stop(self, ring) -> int:
        self.calls.append(("stop", ring.index))
        return self.base

    def memory_changed(self, memory) -> None:
        self.calls.append(("memory", len(memory.regions)))

    def log_changed(self, device) -> None:
        self.calls.append(("log", device.logging is not None))

    def set_kick(self, index, fd) -> None:
        self.calls.append(("kick", index))

    def set_call(self, index, fd) -> None:
        self.calls.append(("call", index, fd is not None))

    def set_err(self, index, fd) -> None:
        self.calls.append(("err", index, fd is not None))

    def signal_error(self, index) -> None:
        self.calls.append(("error", index))

    def set_backend_channel(self, fd) -> None:
        os.close(fd)
        self.calls.append(("channel",))

    def reset(self) -> None:
        self.calls.append(("reset",))

    def transfer_state(self, load, fd) -> None:
        os.close(fd)
        if self.error is not None:
            raise self.error
        self.calls.append(("transfer", load))

    def check_transfer(self) -> bool:
        return self.whole


class Talk:
    """A front-end's side, without a socket."""

    def __init__(self, protocol: int = PROTOCOL, window: int = 1 << 21) -> None:
        self.engine = Engine()
        space = config.config_space(b"tag", 2)
        self.device = Device(Identity(FEATURES, PROTOCOL, 3, space, window), self.engine)
        self.tell(F.SET_PROTOCOL_FEATURES, m.U64(value=protocol))

    def give(self, request: int, body: Any = None, fds=(), need_reply: bool = False) -> Any:
        payload = body if isinstance(body, bytes) else body.encode() if body is not None else b""
        flags = 1 | (m.NEED_REPLY if need_reply else 0)
        return self.device.handle(Received(request, flags, payload, Fds([os.dup(fd) for fd in fds])))

    def tell(self, request: int, body: Any = None, fds=()) -> None:
        assert self.give(request, body, fds) is None

    def ask(self, request: int, body: Any = None, fds=()) -> Any:
        answer = self.give(request, body, fds)
        assert answer is not None
        answer.fds.close()
        found = m.decode_reply(m.FRONTEND_REQUESTS[request], answer.payload)
        return found.value if isinstance(found, m.U64) else found

    def try_(self, request: int, body: Any = None, fds=()) -> int:
        """With an acknowledgement."""
        answer = self.give(request, body, fds, need_reply=True)
        return int(m.U64.decode(answer.payload).value)

    def refused(self, request: int, body: Any = None, fds=(), match: str | None = None) -> None:
        """Nobody asked for an acknowledgement, so the connection ends."""
        with pytest.raises(RemoteProtocolError, match=match):
            self.give(request, body, fds)

    @property
    def calls(self) -> list[tuple[Any, ...]]:
        calls, self.engine.calls = self.engine.calls, []
        return calls


@pytest.fixture
def talk():
    talk = Talk()
    talk.tell(F.SET_FEATURES, m.U64(value=FEATURES & ~config.F_LOG_ALL & ~F_RING_PACKED))
    yield talk
    talk.device.close()


@pytest.fixture
def memory():
    fd = os.memfd_create("memory")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def event():
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def region(guest: int = 0x1000, size: int = SIZE, user: int = 0x7000_0000) -> m.SingleRegion:
    return m.SingleRegion(region=m.MemoryRegion(guest_address=guest, size=size, user_address=user))


def set_up(talk: Talk, memory: int, event: int, index: int = 1, start: bool = True) -> None:
    talk.tell(F.ADD_MEM_REG, region(), [memory])
    talk.tell(F.SET_VRING_NUM, m.VringState(index=index, num=128))
    talk.tell(F.SET_VRING_BASE, m.VringState(index=index, num=5))
    address = m.VringAddress(index=index, descriptor=0x7000_0000, available=0x7000_0800, used=0x7000_1000)
    talk.tell(F.SET_VRING_ADDR, address)
    if start:
        talk.tell(F.SET_VRING_KICK, m.U64(value=index), [event])
        talk.tell(F.SET_VRING_ENABLE, m.VringState(index=index, num=1))


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_identity(talk: Talk) -> None:
    assert talk.ask(F.GET_FEATURES) == FEATURES
    assert talk.ask(F.GET_PROTOCOL_FEATURES) == PROTOCOL
    assert talk.ask(F.GET_QUEUE_NUM) == 3


def test_features_that_were_not_offered_are_refused(talk: Talk) -> None:
    talk.refused(F.SET_FEATURES, m.U64(value=1 << 33), match="not offered")
    talk.refused(F.SET_PROTOCOL_FEATURES, m.U64(value=P.XEN_MMAP.bit), match="not offered")


def test_a_request_whose_feature_is_not_agreed_is_refused() -> None:
    talk = Talk(protocol=P.REPLY_ACK.bit)
    assert talk.try_(F.RESET_DEVICE) == 1
    assert talk.try_(F.SET_STATUS, m.U64(value=1)) == 1
    assert talk.calls == []


def test_what_is_offered_may_be_asked_before_it_is_agreed() -> None:
    device = Device(Identity(FEATURES, PROTOCOL, 2, b"", 0), Engine())
    answer = device.handle(Received(F.GET_QUEUE_NUM, 1, b"", Fds()))
    assert answer is not None


def test_acknowledgements_come_only_where_they_were_agreed() -> None:
    talk = Talk(protocol=0)
    assert talk.give(F.SET_OWNER, need_reply=True) is None
    talk = Talk(protocol=P.REPLY_ACK.bit)
    assert talk.try_(F.SET_OWNER) == 0


def test_an_unknown_request_is_passed_over_or_denied(talk: Talk) -> None:
    talk.tell(19, bytes(8))
    assert talk.try_(19, bytes(8)) == 1


def test_a_failure_that_cannot_be_told_ends_the_connection(talk: Talk) -> None:
    talk.refused(F.SET_VRING_NUM, m.VringState(index=9, num=128), match="SET_VRING_NUM: ring 9 of 3")
    assert talk.try_(F.SET_VRING_NUM, m.VringState(index=9, num=128)) == 1


def test_a_request_with_an_answer_of_its_own_never_gets_an_acknowledgement(talk: Talk) -> None:
    with pytest.raises(RemoteProtocolError):
        talk.give(F.GET_VRING_BASE, m.VringState(index=9), need_reply=True)


def test_owner_messages_change_nothing(talk: Talk) -> None:
    talk.tell(F.SET_OWNER)
    talk.tell(F.RESET_OWNER)
    assert talk.calls == []


# -- configuration space and status ------------------------------------------------------------------------------------


def test_configuration_space_is_read_in_parts(talk: Talk) -> None:
    access = talk.ask(F.GET_CONFIG, m.ConfigAccess(0, bytes(44)))
    assert access.data[:36].rstrip(b"\0") == b"tag"
    assert struct.unpack("<I", talk.ask(F.GET_CONFIG, m.ConfigAccess(36, bytes(4))).data) == (2,)


def test_beyond_the_configuration_space_is_an_answer_of_no_bytes(talk: Talk) -> None:
    assert talk.ask(F.GET_CONFIG, m.ConfigAccess(250, bytes(20))).data == b""
    assert talk.ask(F.GET_CONFIG, m.ConfigAccess(2**32 - 1, bytes(1))).data == b""


def test_configuration_space_cannot_be_written(talk: Talk) -> None:
    assert talk.try_(F.SET_CONFIG, m.ConfigAccess(0, b"other")) == 1


def test_status_is_kept(talk: Talk) -> None:
    talk.tell(F.SET_STATUS, m.U64(value=0xF))
    assert talk.ask(F.GET_STATUS) == 0xF
    assert talk.try_(F.SET_STATUS, m.U64(value=0x100)) == 1


def test_status_0_leaves_the_session_alone(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    talk.calls.clear()
    talk.tell(F.SET_STATUS, m.U64(value=0))
    assert talk.calls == [] or ("reset",) not in talk.calls
    assert talk.device.rings[1].running


# -- memory -----------------------------------------------------------------------------------------------------------


def test_regions_are_added_and_removed(talk: Talk, memory: int) -> None:
    talk.tell(F.ADD_MEM_REG, region(), [memory])
    talk.tell(F.ADD_MEM_REG, region(0x100_0000, user=0x8000_0000), [memory])
    assert [r.guest_address for r in talk.device.memory.regions] == [0x1000, 0x100_0000]
    talk.tell(F.REM_MEM_REG, region(), [])
    assert [r.guest_address for r in talk.device.memory.regions] == [0x100_0000]
    assert talk.calls == [("memory", 1), ("memory", 2), ("memory", 1)]


def test_removal_ignores_the_offset_in_the_file_and_closes_an_fd(talk: Talk, memory: int) -> None:
    talk.tell(F.ADD_MEM_REG, region(), [memory])
    asked = region()
    asked.region.mmap_offset = 4096
    assert talk.try_(F.REM_MEM_REG, asked, [memory]) == 0


def test_removal_of_an_unknown_region_fails(talk: Talk, memory: int) -> None:
    talk.tell(F.ADD_MEM_REG, region(), [memory])
    assert talk.try_(F.REM_MEM_REG, region(size=4096)) == 1


def test_the_same_region_again_takes_the_place_of_the_first(talk: Talk, memory: int) -> None:
    talk.tell(F.ADD_MEM_REG, region(), [memory])
    assert talk.try_(F.ADD_MEM_REG, region(), [memory]) == 0
    assert len(talk.device.memory.regions) == 1


def test_overlapping_regions_are_refused(talk: Talk, memory: int) -> None:
    talk.tell(F.ADD_MEM_REG, region(), [memory])
    assert talk.try_(F.ADD_MEM_REG, region(0x2000, user=0x9000_0000), [memory]) == 1
    assert talk.try_(F.ADD_MEM_REG, region(0x100_0000, user=0x7000_1000), [memory]) == 1
    assert len(talk.device.memory.regions) == 1


def test_region_beyond_its_file_is_refused(talk: Talk, memory: int) -> None:
    assert talk.try_(F.ADD_MEM_REG, region(size=SIZE + 1), [memory]) == 1


def test_memory_that_is_no_file_is_refused(talk: Talk, event: int) -> None:
    assert talk.try_(F.ADD_MEM_REG, region(), [event]) == 1


def test_memory_table_replaces_everything(talk: Talk, memory: int) -> None:
    talk.tell(F.ADD_MEM_REG, region(0x100_0000, user=0x9000_0000), [memory])
    talk.tell(F.SET_MEM_TABLE, m.MemoryTable((region().region,)), [memory])
    assert [r.guest_address for r in talk.device.memory.regions] == [0x1000]


def test_slots_are_bounded(talk: Talk, memory: int) -> None:
    assert talk.ask(F.GET_MAX_MEM_SLOTS) == MAX_SLOTS
    for i in range(MAX_SLOTS):
        talk.tell(F.ADD_MEM_REG, region(0x1000 * (i + 1), 0x1000, 0x7000_0000 + 0x1000 * i), [memory])
    assert talk.try_(F.ADD_MEM_REG, region(0x1000_0000, 0x1000, 0x1000_0000), [memory]) == 1
    assert len(talk.device.memory.regions) == MAX_SLOTS


# -- rings ------------------------------------------------------------------------------------------------------------


def test_a_ring_runs_when_it_is_started_and_enabled(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event, start=False)
    talk.tell(F.SET_VRING_KICK, m.U64(value=1), [event])
    assert not talk.device.rings[1].running
    talk.tell(F.SET_VRING_ENABLE, m.VringState(index=1, num=1))
    assert talk.device.rings[1].running
    assert ("start", 1) in talk.calls


def test_a_ring_may_be_enabled_before_it_is_started(talk: Talk, memory: int, event: int) -> None:
    talk.tell(F.SET_VRING_ENABLE, m.VringState(index=1, num=1))
    set_up(talk, memory, event)
    assert talk.device.rings[1].running


def test_memory_may_come_last(talk: Talk, memory: int, event: int) -> None:
    talk.tell(F.SET_VRING_NUM, m.VringState(index=1, num=128))
    talk.tell(F.SET_VRING_ADDR, m.VringAddress(index=1, descriptor=0x7000_0000))
    talk.tell(F.SET_VRING_KICK, m.U64(value=1), [event])
    talk.tell(F.SET_VRING_ENABLE, m.VringState(index=1, num=1))
    assert not talk.device.rings[1].running
    talk.tell(F.ADD_MEM_REG, region(), [memory])
    assert talk.device.rings[1].running


def test_without_protocol_features_all_rings_are_enabled(memory: int, event: int) -> None:
    talk = Talk()
    talk.tell(F.SET_FEATURES, m.U64(value=F_VERSION_1))
    set_up(talk, memory, event, start=False)
    talk.tell(F.SET_VRING_KICK, m.U64(value=1), [event])
    assert talk.device.rings[1].running
    talk.device.close()


def test_a_disabled_ring_pauses_and_goes_on_from_where_it_was(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    talk.tell(F.SET_VRING_ENABLE, m.VringState(index=1, num=0))
    assert ("stop", 1) in talk.calls
    assert talk.device.rings[1].base == 7
    talk.tell(F.SET_VRING_ENABLE, m.VringState(index=1, num=1))
    assert talk.calls == [("start", 1)]


def test_base_is_what_the_engine_stopped_at(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    state = talk.ask(F.GET_VRING_BASE, m.VringState(index=1))
    assert (state.index, state.num) == (1, 7)
    assert not talk.device.rings[1].running


def test_base_of_a_ring_that_never_ran_is_what_was_set(talk: Talk) -> None:
    talk.tell(F.SET_VRING_BASE, m.VringState(index=2, num=11))
    assert talk.ask(F.GET_VRING_BASE, m.VringState(index=2)).num == 11


def test_a_stopped_ring_starts_again_by_a_kick(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    talk.ask(F.GET_VRING_BASE, m.VringState(index=1))
    talk.calls.clear()
    talk.tell(F.SET_VRING_KICK, m.U64(value=1), [event])
    assert talk.device.rings[1].running


def test_a_running_ring_is_not_changed(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    assert talk.try_(F.SET_VRING_NUM, m.VringState(index=1, num=64)) == 1
    assert talk.try_(F.SET_VRING_BASE, m.VringState(index=1, num=0)) == 1
    assert talk.try_(F.SET_VRING_ADDR, m.VringAddress(index=1, descriptor=0x7000_2000)) == 1
    assert talk.try_(F.SET_FEATURES, m.U64(value=F_VERSION_1)) == 1


@pytest.mark.parametrize("num", [0, 32769, 2**32 - 1])
def test_ring_sizes_are_bounded(talk: Talk, num: int) -> None:
    assert talk.try_(F.SET_VRING_NUM, m.VringState(index=1, num=num)) == 1


def test_enable_is_0_or_1(talk: Talk) -> None:
    assert talk.try_(F.SET_VRING_ENABLE, m.VringState(index=1, num=2)) == 1


@pytest.mark.parametrize("request_", [F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR])
def test_ring_of_an_eventfd_is_checked(talk: Talk, event: int, request_: F) -> None:
    assert talk.try_(request_, m.U64(value=3), [event]) == 1


@pytest.mark.parametrize("request_", [F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR])
def test_an_eventfd_is_one(talk: Talk, memory: int, request_: F) -> None:
    assert talk.try_(request_, m.U64(value=1), [memory]) == 1


def test_nobody_need_be_called(talk: Talk, event: int) -> None:
    talk.tell(F.SET_VRING_CALL, m.U64(value=1), [event])
    talk.tell(F.SET_VRING_CALL, m.U64(value=1 | m.NOT_AN_FD))
    talk.tell(F.SET_VRING_ERR, m.U64(value=1 | m.NOT_AN_FD))
    assert talk.calls == [("call", 1, True), ("call", 1, False), ("err", 1, False)]


def test_rings_are_not_polled(talk: Talk) -> None:
    assert talk.try_(F.SET_VRING_KICK, m.U64(value=1 | m.NOT_AN_FD)) == 1


def test_a_ring_outside_of_memory_is_broken_and_asks_for_a_reset(talk: Talk, memory: int, event: int) -> None:
    talk.engine.error = RingError("no memory there")
    set_up(talk, memory, event)
    assert not talk.device.rings[1].running
    assert ("error", 1) in talk.calls
    assert talk.ask(F.GET_STATUS) & NEEDS_RESET


def test_a_broken_ring_runs_again_after_a_reset(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    talk.device.ring_broken(1)
    assert talk.ask(F.GET_STATUS) & NEEDS_RESET
    talk.tell(F.RESET_DEVICE)
    assert not talk.ask(F.GET_STATUS) & NEEDS_RESET
    talk.tell(F.SET_FEATURES, m.U64(value=FEATURES & ~config.F_LOG_ALL))
    set_up(talk, memory, event)
    assert talk.device.rings[1].running


def test_reset_ends_the_session_and_keeps_memory(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    talk.calls.clear()
    talk.tell(F.RESET_DEVICE)
    calls = talk.calls
    assert calls.index(("stop", 1)) < calls.index(("reset",))
    assert len(talk.device.memory.regions) == 1
    assert talk.device.features == 0
    ring = talk.device.rings[1]
    assert (ring.size, ring.base, ring.address, ring.started, ring.enabled) == (0, 0, None, False, False)


def test_the_end_of_the_connection_stops_rings_and_not_the_session(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    talk.calls.clear()
    talk.device.close()
    assert ("stop", 1) in (calls := talk.calls)
    assert ("reset",) not in calls


# -- dirty log --------------------------------------------------------------------------------------------------------


def test_logging_needs_a_log_and_the_feature(talk: Talk, memory: int) -> None:
    talk.ask(F.SET_LOG_BASE, m.LogArea(size=4096), [memory])
    assert talk.device.logging is None
    talk.tell(F.SET_FEATURES, m.U64(value=talk.device.features | config.F_LOG_ALL))
    assert talk.device.logging is not None
    talk.tell(F.SET_FEATURES, m.U64(value=talk.device.features & ~config.F_LOG_ALL))
    assert talk.device.logging is None
    assert talk.calls == [("log", False), ("log", True), ("log", False)]


def test_logging_is_switched_while_rings_run(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    talk.ask(F.SET_LOG_BASE, m.LogArea(size=4096), [memory])
    talk.tell(F.SET_FEATURES, m.U64(value=talk.device.features | config.F_LOG_ALL))
    address = talk.device.rings[1].address
    again = m.VringAddress(
        index=1, flags=1, descriptor=address.descriptor, used=address.used, available=address.available, log=0x1000
    )
    talk.tell(F.SET_VRING_ADDR, again)
    assert talk.device.rings[1].running
    assert talk.device.rings[1].address.flags == 1


@pytest.mark.parametrize(("size", "offset"), [(SIZE + 1, 0), (4096, SIZE), (1 << 40, 0)])
def test_a_log_that_does_not_fit_ends_the_connection(talk: Talk, memory: int, size: int, offset: int) -> None:
    talk.refused(F.SET_LOG_BASE, m.LogArea(size=size, offset=offset), [memory])


def test_a_log_eventfd_is_taken_and_closed(talk: Talk, event: int) -> None:
    talk.tell(F.SET_LOG_FD, None, [event])


# -- in-flight region, channel, window, state -------------------------------------------------------------------------


def test_inflight_region_is_made_and_given_back(talk: Talk) -> None:
    answer = talk.give(F.GET_INFLIGHT_FD, m.InflightArea(num_queues=3, queue_size=128))
    area = m.InflightArea.decode(answer.payload)
    fd = answer.fds.take()
    assert (area.num_queues, area.queue_size, area.mmap_offset) == (3, 128, 0)
    assert os.fstat(fd).st_size == area.mmap_size
    other = Talk()
    other.tell(F.SET_FEATURES, m.U64(value=talk.device.features))
    other.tell(F.SET_INFLIGHT_FD, area, [fd])
    assert other.device.inflight.queues == 3
    os.close(fd)


@pytest.mark.parametrize(("queues", "size"), [(0, 128), (4, 128), (3, 0)])
def test_inflight_region_of_wrong_numbers_is_refused(talk: Talk, memory: int, queues: int, size: int) -> None:
    area = {"num_queues": queues, "queue_size": size}
    talk.refused(F.GET_INFLIGHT_FD, m.InflightArea(**area))
    assert talk.try_(F.SET_INFLIGHT_FD, m.InflightArea(mmap_size=SIZE, **area), [memory]) == 1


def test_inflight_region_that_is_too_small_is_refused(talk: Talk, memory: int) -> None:
    assert talk.try_(F.SET_INFLIGHT_FD, m.InflightArea(mmap_size=64, num_queues=3, queue_size=128), [memory]) == 1
    large = m.InflightArea(mmap_size=1 << 40, mmap_offset=SIZE, num_queues=3, queue_size=128)
    assert talk.try_(F.SET_INFLIGHT_FD, large, [memory]) == 1


def test_inflight_region_does_not_change_under_running_rings(talk: Talk, memory: int, event: int) -> None:
    set_up(talk, memory, event)
    talk.refused(F.GET_INFLIGHT_FD, m.InflightArea(num_queues=3, queue_size=128), match="while rings run")


def test_backend_channel_is_a_socket(talk: Talk, event: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right:
        talk.tell(F.SET_BACKEND_REQ_FD, None, [left.fileno()])
    assert talk.calls == [("channel",)]
    assert talk.try_(F.SET_BACKEND_REQ_FD, None, [event]) == 1


def test_window_is_shared_memory_region_0(talk: Talk) -> None:
    found = talk.ask(F.GET_SHMEM_CONFIG)
    assert found.count == 1
    assert found.sizes == (1 << 21,) + (0,) * 255


def test_without_a_window_there_is_no_region() -> None:
    found = Talk(window=0).ask(F.GET_SHMEM_CONFIG)
    assert (found.count, found.sizes) == (0, (0,) * 256)


def test_state_is_moved_while_rings_are_stopped(talk: Talk, memory: int, event: int) -> None:
    read, write = os.pipe()
    assert talk.ask(F.SET_DEVICE_STATE_FD, m.DeviceStateTransfer(direction=1), [read]) == m.NOT_AN_FD
    assert talk.calls == [("transfer", True)]
    assert talk.ask(F.CHECK_DEVICE_STATE) == 0
    talk.engine.whole = False
    assert talk.ask(F.CHECK_DEVICE_STATE) == 1
    talk.engine.error = OSError(16, "busy")
    assert talk.ask(F.SET_DEVICE_STATE_FD, m.DeviceStateTransfer(), [write]) & 0xFF
    talk.engine.error = None
    set_up(talk, memory, event)
    talk.refused(F.SET_DEVICE_STATE_FD, m.DeviceStateTransfer(), [write], match="rings are started")
    os.close(read)
    os.close(write)


def test_any_message_is_answered_or_refused(request: pytest.FixtureRequest, memory: int, event: int) -> None:
    rng = random.Random(request.config.option.seed)
    number = [0, 1, 2, 3, 127, 128, 129, 255, 256, 0x101, 4096, 0x7000_0000, 0x7000_1000, 2**32 - 1, 2**63, 2**64 - 1]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        talk = Talk()
        for _ in range(150):
            request_ = rng.choice([*F, 0, 19, 99])
            row = m.FRONTEND_REQUESTS.get(request_)
            payload = b""
            if row is not None and row.body is not None and row.body.SIZE:
                words = (row.body.SIZE + 7) // 8
                payload = b"".join(struct.pack("=Q", rng.choice(number)) for _ in range(words))[: row.body.SIZE]
                if rng.random() < 0.1:
                    payload = payload[: rng.randrange(len(payload) + 1)]
            fds = [rng.choice([memory, event]) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
            try:
                answer = talk.give(request_, payload, fds, rng.random() < 0.5)
            except RemoteProtocolError:
                continue
            if answer is not None:
                answer.fds.close()
        talk.device.close()
    assert len(os.listdir("/proc/self/fd")) == before

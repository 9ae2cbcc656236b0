"""The back-end of one connection as a state machine: a message in, an answer out. No threads, no sockets.

`Device` keeps what the front-end has said (features, memory, rings) and decides when a ring runs: it was started by
SET_VRING_KICK, it is enabled, and size, addresses and memory are known. What running means is the business of the
`Engine`, which serves requests; the device tells it to start and stop rings and hands it every fd.

Rings are stopped by GET_VRING_BASE, by RESET_DEVICE, and when the connection ends. A status of 0 does not end the
session: QEMU's vhost_user_reset_status() is part of every stop of a device, and a guest that was only paused goes on
and has forgotten nothing. A driver that really starts over sends a new INIT.

Errors: what a message may not say raises RemoteProtocolError. `handle` turns that into a failure the front-end can see:
a non-zero acknowledgement if it asked for one, otherwise the exception goes on and the connection ends, since the
front-end would wait for, or rely on, what did not happen. A ring whose addresses lie outside of the memory is the
guest's fault and not the front-end's: it is marked broken, and the guest is told to reset the device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import NamedTuple, Protocol

from transfuse.errors import RemoteProtocolError, RingError
from transfuse.transports.vhost_user.config import F_LOG_ALL, F_PROTOCOL_FEATURES, feature_names
from transfuse.transports.vhost_user.messages import (
    FRONTEND_REQUESTS,
    NOT_AN_FD,
    U64,
    ConfigAccess,
    DeviceStateTransfer,
    FrontendRequest,
    InflightArea,
    LogArea,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    ShmemConfig,
    SingleRegion,
    VringAddress,
    VringState,
    decode_request,
)
from transfuse.transports.vhost_user.socket import Fds, Received, check_event_fd, check_socket_fd
from transfuse.transports.virtqueue import DirtyLog, GuestMemory, Mapping, Region
from transfuse.transports.virtqueue.inflight import Inflight, create, queue_bytes
from transfuse.transports.virtqueue.layout import F_IN_ORDER, F_RING_PACKED, MAX_QUEUE_SIZE, check_size

__all__ = ["MAX_SLOTS", "Answer", "Device", "Engine", "Identity", "Ring"]

log = logging.getLogger("transfuse.vhost_user")

MAX_SLOTS = 509
"""Most memory regions: what the kernel's vhost has, and what QEMU takes for no limit. A DAX window needs many."""
NEEDS_RESET = 0x40
"""DEVICE_NEEDS_RESET in the device status."""
MAX_LOG = 1 << 35
"""Longest dirty log in bytes: one bit for each page of 1 PiB."""


class Ring:
    """What is known of one ring."""

    __slots__ = ("address", "base", "broken", "enabled", "index", "running", "size", "started")

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.base = 0
        """Where the device goes on: see SET_VRING_BASE. Not up to date while the ring runs."""
        self.address: VringAddress | None = None
        self.started = False
        self.enabled = False
        self.running = False
        """The engine serves it."""
        self.broken = False
        """The driver broke the rules of rings; nothing is served until it resets the device."""


class Engine(Protocol):
    """What serves the rings. Called by one thread, the one that reads messages."""

    def start(self, ring: Ring, device: Device) -> None:
        """Begin to serve. RingError: its addresses or sizes are wrong."""
        ...

    def stop(self, ring: Ring) -> int:
        """Finish what is under way, take nothing more, write nothing more to memory; the base to go on from."""
        ...

    def memory_changed(self, memory: GuestMemory) -> None:
        """The running rings' requests from now on lie in `memory`."""
        ...

    def log_changed(self, device: Device) -> None:
        """Dirty logging was switched on or off, or goes to another log."""
        ...

    def set_kick(self, index: int, fd: int) -> None:
        """An eventfd that says there are requests; the fd stays the caller's."""
        ...

    def set_call(self, index: int, fd: int | None) -> None:
        """An eventfd to say there are answers by; None: nobody wants to hear."""
        ...

    def set_err(self, index: int, fd: int | None) -> None:
        """An eventfd to say that the ring is broken by."""
        ...

    def signal_error(self, index: int) -> None:
        """Do so."""
        ...

    def set_backend_channel(self, fd: int) -> None:
        """A socket for requests to the front-end; it is the engine's from now on."""
        ...

    def reset(self) -> None:
        """The driver is gone and takes everything with it that it knew: end the session."""
        ...

    def transfer_state(self, load: bool, fd: int) -> None:
        """Begin to write the session's state to `fd`, or to read it; the fd is the engine's. OSError: not now."""
        ...

    def check_transfer(self) -> bool:
        """Wait for the end of the transfer: was it whole?"""
        ...


class Answer(NamedTuple):
    """What goes back. The fds are closed once they are sent."""

    payload: bytes
    fds: Fds


class Identity(NamedTuple):
    """What the device says of itself, the same for every connection."""

    features: int
    protocol_features: int
    rings: int
    """Number of rings, hiprio included."""
    config: bytes
    """256 bytes of configuration space."""
    window: int
    """Size of the DAX window in bytes; 0: none."""


_METHODS = {int(request): f"_{request.name.lower()}" for request in FrontendRequest}


class Device:
    """One connection's device. `complain` gets log lines that the front-end can cause."""

    def __init__(self, identity: Identity, engine: Engine, complain: Callable[..., None] = log.warning) -> None:
        self.identity = identity
        self.engine = engine
        self.features = 0
        """Agreed virtio features."""
        self.protocol_features: int | None = None
        """Agreed protocol features; None before SET_PROTOCOL_FEATURES."""
        self.rings = [Ring(index) for index in range(identity.rings)]
        self.memory = GuestMemory()
        self.inflight: Inflight | None = None
        self.dirty: DirtyLog | None = None
        """The log of SET_LOG_BASE."""
        self.status = 0
        self._complain = complain

    def agreed(self, feature: ProtocolFeature) -> bool:
        """Is this protocol feature in force?"""
        return bool((self.protocol_features or 0) & feature.bit)

    @property
    def packed(self) -> bool:
        """The rings are packed ones."""
        return bool(self.features & F_RING_PACKED)

    @property
    def in_order(self) -> bool:
        """Answers leave in the order of their requests."""
        return bool(self.features & F_IN_ORDER)

    @property
    def logging(self) -> DirtyLog | None:
        """Where writes to guest memory are to be marked now, if at all."""
        return self.dirty if self.features & F_LOG_ALL else None

    def handle(self, message: Received) -> Answer | None:
        """Do what `message` asks; the answer, if one is due. Its fds are taken or closed.

        Raises RemoteProtocolError when the front-end cannot be told that it failed, which ends the connection.
        """
        row = FRONTEND_REQUESTS.get(message.request)
        acknowledge = message.need_reply and self.agreed(ProtocolFeature.REPLY_ACK)
        try:
            if row is None:
                if not acknowledge:
                    self._complain("request %d is not known, and passed over", message.request)
                    return None
                raise RemoteProtocolError(f"request {message.request} is not known")
            self._check_feature(row.feature)
            body = decode_request(row, message.payload, len(message.fds))
            answer: Answer | None = getattr(self, _METHODS[message.request])(body, message.fds)
        except (RemoteProtocolError, RingError, OSError) as error:
            if not acknowledge or (row is not None and row.reply is not None):
                name = row.request.name if row is not None else message.request
                raise RemoteProtocolError(f"{name}: {error}") from error
            self._complain("%s failed: %s", row.request.name if row is not None else message.request, str(error))
            return Answer(U64(value=1).encode(), Fds())
        finally:
            message.fds.close()
        if answer is None and message.need_reply and self.agreed(ProtocolFeature.REPLY_ACK):
            return Answer(U64(value=0).encode(), Fds())
        return answer

    def close(self) -> None:
        """The connection is over: every ring stops. The session goes on, for the next connection of the same guest."""
        for ring in self.rings:
            self._stop(ring)
        self.memory = GuestMemory()
        self.inflight = self.dirty = None

    def ring_broken(self, index: int) -> None:
        """The engine found the driver breaking the rules; called by the engine's thread in `stop`'s stead."""
        self.rings[index].broken = True
        self.engine.signal_error(index)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _check_feature(self, feature: ProtocolFeature | None) -> None:
        if feature is None:
            return
        # Until the front-end has said what it agrees to, what was offered may be asked about.
        allowed = self.identity.protocol_features if self.protocol_features is None else self.protocol_features
        if not allowed & feature.bit:
            raise RemoteProtocolError(f"protocol feature {feature.name} is not agreed")

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise RemoteProtocolError(f"ring {index} of {len(self.rings)}")
        return self.rings[index]

    def _resting(self, index: int) -> Ring:
        ring = self._ring(index)
        if ring.running:
            raise RemoteProtocolError(f"ring {index} is changed while it runs")
        return ring

    def _settle(self, ring: Ring) -> None:
        """Start or stop the ring if what was just said makes that due."""
        wanted = ring.started and ring.enabled and not ring.broken
        if wanted and not ring.running:
            if ring.size and ring.address is not None and self.memory.regions:
                try:
                    self.engine.start(ring, self)
                except RingError as error:
                    self._complain("ring %d cannot be served: %s", ring.index, str(error))
                    self.ring_broken(ring.index)
                else:
                    ring.running = True
        elif ring.running and not wanted:
            self._stop(ring)

    def _settle_all(self) -> None:
        for ring in self.rings:
            self._settle(ring)

    def _stop(self, ring: Ring) -> None:
        if ring.running:
            ring.running = False
            ring.base = self.engine.stop(ring)

    # -- what the device is -------------------------------------------------------------------------------------------

    def _get_features(self, body: None, fds: Fds) -> Answer:
        return _number(self.identity.features)

    def _set_features(self, body: U64, fds: Fds) -> None:
        unknown = body.value & ~self.identity.features
        if unknown:
            raise RemoteProtocolError(f"features {unknown:#x} were not offered")
        before, changed = self.features, self.features ^ body.value
        if changed & ~F_LOG_ALL and any(ring.running for ring in self.rings):
            raise RemoteProtocolError(f"features {changed:#x} are changed while rings run")
        self.features = body.value
        if before != body.value:
            log.info("features agreed: %s", feature_names(body.value))
        if not body.value & F_PROTOCOL_FEATURES:
            for ring in self.rings:
                ring.enabled = True
        if changed & F_LOG_ALL:
            self.engine.log_changed(self)
        self._settle_all()

    def _get_protocol_features(self, body: None, fds: Fds) -> Answer:
        return _number(self.identity.protocol_features)

    def _set_protocol_features(self, body: U64, fds: Fds) -> None:
        unknown = body.value & ~self.identity.protocol_features
        if unknown:
            raise RemoteProtocolError(f"protocol features {unknown:#x} were not offered")
        self.protocol_features = body.value

    def _set_owner(self, body: None, fds: Fds) -> None:
        """A front-end begins. There is nothing to prepare."""

    def _reset_owner(self, body: None, fds: Fds) -> None:
        """Deprecated, and best ignored: some front-ends mean less by it than others."""

    def _get_queue_num(self, body: None, fds: Fds) -> Answer:
        return _number(len(self.rings))

    def _get_config(self, body: ConfigAccess, fds: Fds) -> Answer:
        end = body.offset + body.size
        if end > len(self.identity.config):
            return Answer(ConfigAccess(body.offset, b"").encode(), Fds())
        return Answer(ConfigAccess(body.offset, self.identity.config[body.offset : end], body.flags).encode(), Fds())

    def _set_config(self, body: ConfigAccess, fds: Fds) -> None:
        raise RemoteProtocolError("no field of the configuration space can be written")

    def _get_status(self, body: None, fds: Fds) -> Answer:
        broken = any(ring.broken for ring in self.rings)
        return _number(self.status | (NEEDS_RESET if broken else 0))

    def _set_status(self, body: U64, fds: Fds) -> None:
        if body.value > 0xFF:
            raise RemoteProtocolError(f"device status {body.value:#x}")
        self.status = body.value

    def _reset_device(self, body: None, fds: Fds) -> None:
        """Rings and features as they were in the beginning. Memory stays, which front-ends do not send again, and so
        do call and error fds."""
        for ring in self.rings:
            self._stop(ring)
            ring.size = ring.base = 0
            ring.address = None
            ring.started = ring.enabled = ring.broken = False
        self.features = self.status = 0
        self.inflight = None
        self.engine.log_changed(self)
        self.engine.reset()

    # -- memory -------------------------------------------------------------------------------------------------------

    def _use(self, regions: list[Region]) -> None:
        self.memory = GuestMemory(regions)
        self.engine.memory_changed(self.memory)
        self._settle_all()

    def _set_mem_table(self, body: MemoryTable, fds: Fds) -> None:
        self._use([_map(region, fds.take()) for region in body.regions])

    def _add_mem_reg(self, body: SingleRegion, fds: Fds) -> None:
        # One that is there already is replaced: after a reset some front-ends send all of them again.
        regions = [region for region in self.memory.regions if not _same(region, body.region)]
        if len(regions) >= MAX_SLOTS:
            raise RemoteProtocolError(f"more than {MAX_SLOTS} memory regions")
        self._use([*regions, _map(body.region, fds.take())])

    def _rem_mem_reg(self, body: SingleRegion, fds: Fds) -> None:
        regions = [region for region in self.memory.regions if not _same(region, body.region)]
        if len(regions) == len(self.memory.regions):
            asked = body.region
            raise RemoteProtocolError(f"no region of {asked.size:#x} bytes at guest address {asked.guest_address:#x}")
        self._use(regions)

    def _get_max_mem_slots(self, body: None, fds: Fds) -> Answer:
        return _number(MAX_SLOTS)

    def _set_log_base(self, body: LogArea, fds: Fds) -> Answer:
        if body.size > MAX_LOG:
            raise RemoteProtocolError(f"dirty log of {body.size:#x} bytes")
        fd = fds.take()
        try:
            self.dirty = DirtyLog(Mapping(fd, body.offset, body.size))
        finally:
            os.close(fd)
        self.engine.log_changed(self)
        return _number(0)

    def _set_log_fd(self, body: None, fds: Fds) -> None:
        """An eventfd to tell of changes of the log by. Nobody has ever waited for one; it is closed."""

    # -- rings --------------------------------------------------------------------------------------------------------

    def _set_vring_num(self, body: VringState, fds: Fds) -> None:
        if not 0 < body.num <= MAX_QUEUE_SIZE:
            raise RemoteProtocolError(f"ring {body.index} of {body.num} entries, at most {MAX_QUEUE_SIZE}")
        self._resting(body.index).size = body.num

    def _set_vring_addr(self, body: VringAddress, fds: Fds) -> None:
        ring = self._ring(body.index)
        if ring.running and ring.address is not None:
            before = ring.address
            same = (before.descriptor, before.used, before.available) == (body.descriptor, body.used, body.available)
            if not same:
                raise RemoteProtocolError(f"ring {body.index} is moved while it runs")
            ring.address = body
            self.engine.log_changed(self)
            return
        ring.address = body
        self._settle(ring)

    def _set_vring_base(self, body: VringState, fds: Fds) -> None:
        self._resting(body.index).base = body.num

    def _get_vring_base(self, body: VringState, fds: Fds) -> Answer:
        ring = self._ring(body.index)
        self._stop(ring)
        ring.started = False
        return Answer(VringState(index=ring.index, num=ring.base).encode(), Fds())

    def _set_vring_kick(self, body: U64, fds: Fds) -> None:
        ring = self._ring(body.value & 0xFF)
        if body.value & NOT_AN_FD:
            raise RemoteProtocolError(f"ring {ring.index} without an eventfd: rings are not polled")
        fd = self._event_fd(fds)
        try:
            self.engine.set_kick(ring.index, fd)
        finally:
            os.close(fd)
        ring.started = True
        ring.broken = False
        self._settle(ring)

    def _set_vring_call(self, body: U64, fds: Fds) -> None:
        self._give_event(body, fds, self.engine.set_call)

    def _set_vring_err(self, body: U64, fds: Fds) -> None:
        self._give_event(body, fds, self.engine.set_err)

    def _give_event(self, body: U64, fds: Fds, give: Callable[[int, int | None], None]) -> None:
        ring = self._ring(body.value & 0xFF)
        if body.value & NOT_AN_FD:
            give(ring.index, None)
            return
        fd = self._event_fd(fds)
        try:
            give(ring.index, fd)
        finally:
            os.close(fd)

    @staticmethod
    def _event_fd(fds: Fds) -> int:
        fd = fds.take()
        try:
            check_event_fd(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _set_vring_enable(self, body: VringState, fds: Fds) -> None:
        ring = self._ring(body.index)
        if body.num > 1:
            raise RemoteProtocolError(f"ring {body.index}: enable {body.num}")
        ring.enabled = bool(body.num)
        self._settle(ring)

    # -- requests under way, the other channel, shared memory, state --------------------------------------------------

    def _get_inflight_fd(self, body: InflightArea, fds: Fds) -> Answer:
        self._check_inflight(body)
        fd, size = create(body.num_queues, body.queue_size, self.packed)
        given = Fds([fd])
        self.inflight = Inflight(Mapping(fd, 0, size), body.num_queues, body.queue_size, self.packed)
        area = InflightArea(mmap_size=size, num_queues=body.num_queues, queue_size=body.queue_size)
        return Answer(area.encode(), given)

    def _set_inflight_fd(self, body: InflightArea, fds: Fds) -> None:
        self._check_inflight(body)
        needed = body.num_queues * queue_bytes(body.queue_size, self.packed)
        if body.mmap_size < needed:
            raise RemoteProtocolError(f"in-flight region of {body.mmap_size} bytes, {needed} are needed")
        fd = fds.take()
        try:
            mapping = Mapping(fd, body.mmap_offset, needed)
        finally:
            os.close(fd)
        self.inflight = Inflight(mapping, body.num_queues, body.queue_size, self.packed)

    def _check_inflight(self, area: InflightArea) -> None:
        if any(ring.running for ring in self.rings):
            raise RemoteProtocolError("the in-flight region is changed while rings run")
        if area.num_queues > len(self.rings):
            raise RemoteProtocolError(f"in-flight region for {area.num_queues} rings of {len(self.rings)}")
        check_size(area.queue_size, self.packed)

    def _set_backend_req_fd(self, body: None, fds: Fds) -> None:
        fd = fds.take()
        try:
            check_socket_fd(fd)
        except BaseException:
            os.close(fd)
            raise
        self.engine.set_backend_channel(fd)

    def _get_shmem_config(self, body: None, fds: Fds) -> Answer:
        sizes = [self.identity.window] + [0] * 255
        return Answer(ShmemConfig(count=1 if self.identity.window else 0, sizes=tuple(sizes)).encode(), Fds())

    def _set_device_state_fd(self, body: DeviceStateTransfer, fds: Fds) -> Answer:
        if any(ring.started for ring in self.rings):
            raise RemoteProtocolError("the state is transferred while rings are started")
        try:
            self.engine.transfer_state(bool(body.direction), fds.take())
        except OSError as error:
            self._complain("device state: %s", str(error))
            return _number(1 | NOT_AN_FD)
        return _number(NOT_AN_FD)  # done by the fd that came

    def _check_device_state(self, body: None, fds: Fds) -> Answer:
        return _number(0 if self.engine.check_transfer() else 1)


def _number(value: int) -> Answer:
    return Answer(U64(value=value).encode(), Fds())


def _map(asked: MemoryRegion, fd: int) -> Region:
    try:
        return Region(asked.guest_address, asked.user_address, asked.size, fd, asked.mmap_offset)
    finally:
        os.close(fd)


def _same(region: Region, asked: MemoryRegion) -> bool:
    """REM_MEM_REG names a region by all but its offset in the file."""
    return (region.guest_address, region.user_address, region.size) == (
        asked.guest_address,
        asked.user_address,
        asked.size,
    )

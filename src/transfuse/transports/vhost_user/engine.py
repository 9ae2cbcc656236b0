"""What runs behind a device: its rings' queues and lanes, the threads that serve them, eventfds, the DAX window.

One engine serves one connection after the other with the same session. The control thread (which reads messages) calls
everything that `device.Engine` lists; a lane's workers call the session and, if their ring breaks, `_broke`.

Stopping a ring: its workers take nothing more; what is under way is waited for, first with patience, then interrupted
(a lock that somebody waits for, for one); what still does not end is given up, since the front-end waits for us and
with it the guest. Such a request's answer goes nowhere, unless the in-flight region has it served again later.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

from transfuse.errors import RingError
from transfuse.transports.base import Worker
from transfuse.transports.vhost_user.crew import Crew, Team
from transfuse.transports.vhost_user.device import Device, Ring
from transfuse.transports.vhost_user.messages import ProtocolFeature, VringAddress
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.transports.vhost_user.transfer import StateTransfer
from transfuse.transports.vhost_user.upcalls import BackendChannel
from transfuse.transports.vhost_user.window import Window
from transfuse.transports.virtqueue import GuestMemory, Lane, PackedDevice, SplitDevice

__all__ = ["QueueEngine", "ServedSession"]

log = logging.getLogger("transfuse.vhost_user")

LARGEST_NAMES = 128 << 10
"""Room for the largest requests that carry no payload of max_write: forgets, an attribute of 64 KiB."""
PATIENCE_S = 1.0
"""How long requests under way may take when their ring is stopped, before those that can be are interrupted."""
GIVE_UP_S = 20.0
"""How long altogether, before the ring is stopped without their answers."""


class ServedSession(Protocol):
    """What is needed of a session besides its handler."""

    def handle_detached(self, buffer: Any, start: int, end: int, channel: Any, size: int) -> Any:
        """Serve a WRITE that comes without its payload."""
        ...

    def interrupt_all(self) -> None:
        """Interrupt what is under way."""
        ...

    def end(self) -> None:
        """The driver is gone: forget everything it knew."""
        ...


class _Slot:
    """One ring's threads, queue and eventfds."""

    def __init__(self) -> None:
        self.kick: int | None = None
        self.call: int | None = None
        self.err: int | None = None
        self.lane: Lane | None = None
        self.team: Team | None = None
        self.last: _Last | None = None


class _Last:
    """Whoever of `count` leaves last does something."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._count = count
        self._then = then
        self._lock = threading.Lock()

    def leave(self) -> None:
        """One leaves."""
        with self._lock:
            self._count -= 1
            last = not self._count
        if last:
            self._then()


class QueueEngine:
    """The engine of a virtio-fs device.

    `max_write`: largest payload of a request; `workers`: most threads for each ring; `complain` gets log lines that the
    driver can cause.
    """

    def __init__(
        self, rings: int, window: int, max_write: int, workers: int, complain: Callable[..., None] = log.warning
    ) -> None:
        self.max_write = max_write
        self.window = Window(window)
        self.device: Device | None = None
        """The device of the present connection."""
        self.crew = Crew(workers, rings)
        self.session: ServedSession | None = None
        self.handle: Any = None
        """transports.base.Handler, of the session."""
        self.undelivered: Any = None
        """transports.base.Undelivered."""
        self.detached = True
        """WRITEs may be handed over without their payload, where the session takes them so."""
        self.transfer: StateTransfer | None = None
        self._complain = complain
        self._slots = [_Slot() for _ in range(rings)]
        self._lock = threading.Lock()
        """Held to signal err eventfds, which workers do, and to change them."""

    # -- rings --------------------------------------------------------------------------------------------------------

    def start(self, ring: Ring, device: Device) -> None:
        """Make the ring's queue and begin to serve it."""
        slot = self._slots[ring.index]
        address = ring.address
        assert address is not None
        book = device.inflight
        kind = PackedDevice if device.packed else SplitDevice
        queue = kind(
            device.memory,
            ring.size,
            address.descriptor,
            address.available,
            address.used,
            device.features,
            ring.base,
            inflight=book.queue(ring.index) if book is not None and ring.index < book.queues else None,
            log=device.logging,
            log_rings=bool(address.flags & VringAddress.LOG),
            guest_physical=device.agreed(ProtocolFeature.GPA_ADDRESSES),
        )
        lane = Lane(
            queue,
            self.max_write + LARGEST_NAMES,
            kick=slot.kick,
            call=slot.call,
            complain=self._complain,
            on_broken=lambda error: self._broke(device, ring, error),
        )
        slot.lane = lane
        slot.last = _Last(2, lambda: _close_lane(lane))  # the control thread and the last worker, in whatever order
        slot.team = self.crew.engage(lambda worker: self._serve(lane, worker), slot.last.leave)

    def _serve(self, lane: Lane, worker: Worker) -> None:
        session = self.session
        assert session is not None
        lane.serve(self.handle, session.handle_detached if self.detached else None, self.undelivered, worker)

    def _broke(self, device: Device, ring: Ring, error: RingError) -> None:
        self._complain("ring %d is broken: %s", ring.index, str(error))
        device.ring_broken(ring.index)

    def stop(self, ring: Ring) -> int:
        """Finish what is under way."""
        slot = self._slots[ring.index]
        lane, team, last = slot.lane, slot.team, slot.last
        slot.lane = slot.team = slot.last = None
        if lane is None or team is None or last is None:
            return ring.base
        queue = lane.queue
        lane.halt()
        channel = self.window.channel
        if channel is not None:
            channel.interrupt()
        if not queue.drain(PATIENCE_S):
            if self.session is not None:
                self.session.interrupt_all()
            if not queue.drain(GIVE_UP_S - PATIENCE_S):
                log.error("ring %d is stopped with %d requests under way", ring.index, queue.in_flight)
        base = queue.base
        if not lane.stop(GIVE_UP_S):
            log.error("ring %d: a request still writes to memory", ring.index)
        if not team.dismiss(PATIENCE_S):
            log.warning("ring %d: a request does not end; its thread is left to itself", ring.index)
        last.leave()
        return base

    def may_wait(self, chain: Any) -> bool:
        """May the request in `chain` wait for long? Not if the answer has to leave in order, nor if half of the ring is
        under way: what would end the wait has to come by the same ring."""
        device = self.device
        queue = chain.queue
        in_order = device is not None and device.in_order
        return not in_order and bool(queue.in_flight * 2 <= queue.size)

    def memory_changed(self, memory: GuestMemory) -> None:
        """Rings that are not in the new memory are broken."""
        device = self.device
        for index, slot in enumerate(self._slots):
            if slot.lane is not None:
                try:
                    slot.lane.queue.set_memory(memory)
                except RingError as error:
                    if device is not None:
                        self._broke(device, device.rings[index], error)

    def log_changed(self, device: Device) -> None:
        """Tell the running queues."""
        for ring, slot in zip(device.rings, self._slots, strict=True):
            if slot.lane is not None and ring.address is not None:
                slot.lane.queue.set_log(device.logging, bool(ring.address.flags & VringAddress.LOG))

    # -- eventfds -----------------------------------------------------------------------------------------------------

    def set_kick(self, index: int, fd: int) -> None:
        """Ours is a duplicate."""
        slot = self._slots[index]
        before, slot.kick = slot.kick, os.dup(fd)
        if slot.lane is not None:
            slot.lane.set_kick(slot.kick)
        _close(before)

    def set_call(self, index: int, fd: int | None) -> None:
        """Ours is a duplicate."""
        slot = self._slots[index]
        before, slot.call = slot.call, None if fd is None else os.dup(fd)
        if slot.lane is not None:
            slot.lane.set_call(slot.call)
        _close(before)

    def set_err(self, index: int, fd: int | None) -> None:
        """Ours is a duplicate."""
        slot = self._slots[index]
        with self._lock:
            before, slot.err = slot.err, None if fd is None else os.dup(fd)
        _close(before)

    def signal_error(self, index: int) -> None:
        """Tell the front-end that the ring is broken."""
        with self._lock:
            fd = self._slots[index].err
            if fd is not None:
                try:
                    os.eventfd_write(fd, 1)
                except BlockingIOError:
                    return  # it has been told more often than it can count

    # -- the session --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The driver is gone; the front-end has dropped the window's mappings."""
        self.window.forget()
        if self.session is not None:
            self.session.end()

    def set_backend_channel(self, fd: int) -> None:
        """For the DAX window."""
        device = self.device
        acknowledged = device is not None and device.agreed(ProtocolFeature.REPLY_ACK)
        self._drop_channel()
        self.window.channel = BackendChannel(MessageSocket.from_fd(fd), acknowledged)

    def transfer_state(self, load: bool, fd: int) -> None:
        """Save or load the session, on a thread of its own."""
        if self.transfer is None:
            os.close(fd)
            raise OSError("the filesystem keeps no state")
        self.transfer.begin(load, fd)

    def check_transfer(self) -> bool:
        """Was all of it moved?"""
        return self.transfer is not None and self.transfer.end()

    def _drop_channel(self) -> None:
        channel, self.window.channel = self.window.channel, None
        if channel is not None:
            channel.close()

    def connected(self, device: Device) -> None:
        """A front-end has connected."""
        self.device = device

    def disconnecting(self) -> None:
        """The front-end is gone: nobody answers on the back-end channel."""
        self._drop_channel()

    def disconnected(self) -> None:
        """Every ring is stopped: let go of what belonged to the connection."""
        self.device = None
        self.window.forget()
        for index, slot in enumerate(self._slots):
            self.set_err(index, None)
            self.set_call(index, None)
            before, slot.kick = slot.kick, None
            _close(before)

    def close(self) -> None:
        """The end; no connection is up."""
        self.crew.close(PATIENCE_S)


def _close_lane(lane: Lane) -> None:
    lane.close()
    lane.queue.answer = _too_late


def _too_late(chain: Any, message: Any) -> bool:
    """For answers to requests that were given up."""
    return False


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)

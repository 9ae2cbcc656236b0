"""What both kinds of virtqueues have in common on the device's side.

A queue is *running* → *broken* (the driver put something into the ring that the specification forbids; pop() raises
RingError from then on) or → *stopped* (`stop()`: the driver gets its ring back, nothing of its memory is written any
more). Neither ends but by making a new queue.

Requests may be popped by several threads and pushed by any thread in any order; a lock of the queue's own covers each
step. With IN_ORDER, answers that come early are held back until their turn, at most as many as the ring has entries.

The order of memory accesses matters, because the driver runs on another CPU: descriptors are read after the index that
publishes them, an index is written after what it publishes. Python's loads and stores are hundreds of instructions
apart, which keeps these orders on every CPU Python runs on in practice. What no distance helps against is a store
followed by a load of what the other side writes (each side could miss the other): where that matters, this form makes
the system call sched_yield in between, whose schedule() is a full barrier (Linux memory-barriers.txt, "Miscellaneous
functions"), or, to tell the driver, does not read its wish at all but always tells.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from transfuse.errors import QueueStopped, RingError
from transfuse.transports.virtqueue import layout
from transfuse.transports.virtqueue.chain import Chain
from transfuse.transports.virtqueue.layout import DESC_WRITE
from transfuse.transports.virtqueue.memory import DirtyLog, GuestMemory

__all__ = ["DeviceQueue"]

NOWHERE = (0, 0, memoryview(b""))


class DeviceQueue:
    """The device's side of one queue; SplitDevice and PackedDevice are the two kinds.

    `desc`, `driver_area` and `device_area` are the front-end's user addresses of the three areas (guest addresses if
    `guest_physical`), `features` the virtio features agreed on, `base` what SET_VRING_BASE carries. `inflight` is the
    queue's part of an inflight region (inflight.Inflight.queue), out of which pop() first gives what a predecessor left
    under way. RingError where these do not fit the memory or each other.
    """

    PACKED = False

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc: int,
        driver_area: int,
        device_area: int,
        features: int,
        base: int,
        *,
        inflight: memoryview | None = None,
        log: DirtyLog | None = None,
        log_rings: bool = False,
        guest_physical: bool = False,
    ) -> None:
        layout.check_size(size, self.PACKED)
        for what, address, alignment in zip(
            ("desc", "driver", "device"),
            (desc, driver_area, device_area),
            layout.area_alignments(self.PACKED),
            strict=True,
        ):
            if address % alignment:
                raise RingError(f"{what} area at {address:#x}, not a multiple of {alignment}")
        self.size = size
        self.features = features
        self.answer: Callable[[Chain, Any], bool] = no_answer
        """Sends a reply to a chain (`Chain.send`); whoever serves the queue sets it."""
        self.in_flight = 0
        """Chains popped and not pushed yet."""
        self.stopped = False
        self.broken: str | None = None
        """What the driver did wrong."""
        self._indirect = bool(features & layout.F_INDIRECT_DESC)
        self._event_idx = bool(features & layout.F_EVENT_IDX)
        self._in_order = bool(features & layout.F_IN_ORDER)
        self._areas = (desc, driver_area, device_area)
        self._guest_physical = guest_physical
        self._log: DirtyLog | None = log
        self._log_rings = log_rings
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waited_for = 0
        """Threads in stop() or drain()."""
        self._writing = 0
        self._armed = True
        self._pushed = 0  # ring entries given back since should_notify() was asked
        self._popped = 0
        self._next_out = 0
        self._early: dict[int, tuple[Chain, int]] = {}
        self._resubmit: list[int] = []
        self.memory = memory
        self._recent = NOWHERE
        """Guest address, size and bytes of the region that was used last."""
        self._resolve(memory)
        self._start(base, inflight)

    # -- requests -----------------------------------------------------------------------------------------------------

    def pop(self) -> Chain | None:
        """The next request, None if there is none at the moment or the queue was stopped. Kicks are off from now on
        until `arm`. RingError: the queue is broken."""
        with self._lock:
            if self.stopped:
                return None
            if self.broken is not None:
                raise RingError(self.broken)
            try:
                chain = self._again() if self._resubmit else self._take()
            except RingError as error:
                self.broken = str(error)
                raise
            if chain is None:
                return None
            if self._armed:
                self._armed = False
                if not self._event_idx:
                    self._kicks_off()
            self.in_flight += 1
            chain.sequence = self._popped
            self._popped += 1
            return chain

    def push(self, chain: Chain, written: int) -> bool:
        """Give a request back with the first `written` bytes of its writable part filled. False, and nothing is done:
        the queue was stopped, or the request given back before."""
        if not 0 <= written <= chain.writable:
            raise ValueError(f"{written} bytes written of a chain with room for {chain.writable}")
        with self._lock:
            return not (self.stopped or chain.done) and self._give_back(chain, written)

    def answer_with(self, chain: Chain, data: bytes) -> bool:
        """Write `data`, for which there is room, to the writable part of `chain`, and push it: one step instead of two.
        False, as push(), and nothing is done."""
        with self._lock:
            if self.stopped or chain.done:
                return False
            at = 0
            left = len(data)
            for segment in chain.outputs:
                size = len(segment)
                if left <= size:
                    segment[:left] = data[at:] if at else data
                    break
                segment[:] = data[at : at + size]
                at += size
                left -= size
            return self._give_back(chain, len(data))

    def _give_back(self, chain: Chain, written: int) -> bool:
        chain.done = True
        if self._log is not None:
            self._log_chain(self._log, chain, written)
        try:
            if not self._in_order:
                self._publish(chain, written)
                self._pushed += chain.slots
                self.in_flight -= 1
            else:
                self._early[chain.sequence] = (chain, written)
                while (ready := self._early.pop(self._next_out, None)) is not None:
                    self._next_out += 1
                    self._publish(*ready)
                    self._pushed += ready[0].slots
                    self.in_flight -= 1
        except RingError as error:  # the inflight region
            self.broken = str(error)
            return False
        if self._waited_for and not self.in_flight:
            self._changed.notify_all()
        return True

    def should_notify(self) -> bool:
        """Whether the driver wants to be told of what was pushed since this was asked last. This form does not read the
        driver's wish (see above): True if anything was pushed."""
        if not self._pushed:
            return False
        with self._lock:
            pushed, self._pushed = self._pushed, 0
            return pushed > 0 and not self.stopped

    def arm(self) -> bool:
        """Ask the driver for a kick with its next request. True: one is there already, do not sleep."""
        with self._lock:
            if self.stopped or self.broken is not None:
                return False
            self._armed = True
            self._kicks_on()
            if self._resubmit:
                return True
            os.sched_yield()
            return self._available()

    # -- the life of the queue ----------------------------------------------------------------------------------------

    def stop(self, timeout_s: float | None = None) -> bool:
        """From now on nothing of the driver's memory is written: push() returns False, what would write raises
        QueueStopped. Waits for writers that are at it; False if some still are after `timeout_s`."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
            return self._wait_for(lambda: not self._writing, timeout_s)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until every popped request was pushed (or the queue stopped); False if that takes longer."""
        with self._changed:
            return self._wait_for(lambda: not self.in_flight or self.stopped, timeout_s)

    def _wait_for(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        self._waited_for += 1
        try:
            return self._changed.wait_for(condition, timeout_s)
        finally:
            self._waited_for -= 1

    def set_memory(self, memory: GuestMemory) -> None:
        """Use another memory from now on; requests under way keep theirs. RingError: the rings are not in it, and the
        queue is broken."""
        with self._lock:
            try:
                self._resolve(memory)
            except RingError as error:
                self.broken = str(error)
                raise
            self.memory = memory
            self._recent = NOWHERE

    def set_log(self, log: DirtyLog | None, rings: bool) -> None:
        """Begin or end to note what is written: to the segments of requests and, if `rings`, to the rings."""
        with self._lock:
            self._log = log
            self._log_rings = rings and log is not None

    def begin_writing(self) -> None:
        """For `Chain`: between this and `end_writing`, stop() waits. QueueStopped after it."""
        with self._lock:
            if self.stopped:
                raise QueueStopped("the driver has taken its ring back")
            self._writing += 1

    def end_writing(self) -> None:
        """The reverse of `begin_writing`."""
        with self._lock:
            self._writing -= 1
            if self._waited_for and not self._writing:
                self._changed.notify_all()

    def _log_chain(self, log: DirtyLog, chain: Chain, written: int) -> None:
        left = max(written, chain.touched)
        for place, segment in zip(chain.places, chain.outputs, strict=True):
            if left <= 0:
                break
            log.mark(place, min(left, len(segment)))
            left -= len(segment)

    # -- descriptors --------------------------------------------------------------------------------------------------

    def _collect(self, head: int, slots: int, found: Sequence[tuple[int, int, int, int]]) -> Chain:
        """The chain of descriptors {address, length, flags, anything}, of which there are at most MAX_SEGMENTS."""
        inputs: list[memoryview] = []
        outputs: list[memoryview] = []
        places: list[int] = []
        readable = writable = 0
        # Nearly always all of them are in the region that was used last: then a slice of it is all that is to be done.
        start, size, view = self._recent
        for address, length, flags, _ in found:
            skip = address - start
            if 0 <= skip and skip + length <= size and length:
                if flags & DESC_WRITE:
                    places.append(address)
                    outputs.append(view[skip : skip + length])
                    writable += length
                    continue
                inputs.append(view[skip : skip + length])
            else:
                if not length:
                    raise RingError(f"descriptor of no bytes at {address:#x}")
                pieces = self.memory.at(address, length)
                if len(pieces) == 1:
                    start, size, view = self._recent = self.memory.region_at(address)
                if flags & DESC_WRITE:
                    writable += length
                    for piece in pieces:
                        places.append(address)
                        outputs.append(piece)
                        address += len(piece)
                    continue
                inputs += pieces
            readable += length
            if outputs:
                raise RingError("readable descriptor after a writable one")
        if readable + writable > layout.MAX_CHAIN_BYTES:
            raise RingError(f"chain of more than {layout.MAX_CHAIN_BYTES} bytes")
        if len(inputs) + len(outputs) > layout.MAX_PIECES:
            raise RingError(f"chain in more than {layout.MAX_PIECES} pieces of memory")
        return Chain(self, head, slots, readable, writable, inputs, outputs, places)

    def _table(self, address: int, length: int, flags: int) -> bytes:
        """A copy of the indirect table that a descriptor refers to."""
        if not self._indirect:
            raise RingError("indirect descriptor, which was not agreed on")
        if flags & layout.DESC_NEXT:
            raise RingError("indirect descriptor with a next one")
        if not length or length % layout.DESC_SIZE or length > layout.DESC_SIZE * layout.MAX_TABLE_ENTRIES:
            raise RingError(f"indirect table of {length} bytes")
        start, size, view = self._recent
        skip = address - start
        if 0 <= skip and skip + length <= size:
            return bytes(view[skip : skip + length])
        return b"".join(self.memory.at(address, length))

    # -- what the two kinds do their own way --------------------------------------------------------------------------

    @property
    def base(self) -> int:
        """What GET_VRING_BASE answers."""
        raise NotImplementedError

    def _resolve(self, memory: GuestMemory) -> None:
        raise NotImplementedError

    def _find(self, memory: GuestMemory) -> tuple[list[memoryview], list[int]]:
        """The three areas in `memory`, and their guest addresses."""
        views, places = [], []
        for address, length in zip(self._areas, layout.area_sizes(self.size, self.PACKED), strict=True):
            if self._guest_physical:
                views.append(memory.at_guest(address, length))
                places.append(address)
            else:
                views.append(memory.at_user(address, length))
                places.append(memory.guest_of_user(address))
        return views, places

    def _start(self, base: int, inflight: memoryview | None) -> None:
        raise NotImplementedError

    def _available(self) -> bool:
        raise NotImplementedError

    def _take(self) -> Chain | None:
        raise NotImplementedError

    def _again(self) -> Chain:
        raise NotImplementedError

    def _publish(self, chain: Chain, written: int) -> None:
        raise NotImplementedError

    def _kicks_on(self) -> None:
        raise NotImplementedError

    def _kicks_off(self) -> None:
        raise NotImplementedError


def no_answer(chain: Chain, message: Any) -> bool:
    """Nobody serves the queue."""
    raise RuntimeError("nobody serves the queue of this chain")

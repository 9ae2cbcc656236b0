"""Packed virtqueues, both sides: one ring of descriptors that the driver makes available and the device overwrites.

Which of both a descriptor is at the moment says its pair of bits AVAIL and USED against a wrap counter, which each side
keeps for each of its positions and flips whenever it passes the end of the ring: available is AVAIL = wrap, USED ≠
wrap; used is both = wrap. The device writes one used descriptor for a whole chain, at its own position, and skips as
many slots as the chain has.

What each side wants to be told of stands in two event structures {off_wrap u16, flags u16}.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from transfuse.errors import RingError
from transfuse.transports.virtqueue.chain import Chain
from transfuse.transports.virtqueue.device import DeviceQueue
from transfuse.transports.virtqueue.driver import DriverQueue, Segments, Under, checked, room_of
from transfuse.transports.virtqueue.inflight import PackedInflight
from transfuse.transports.virtqueue.layout import (
    DESC_AVAIL,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_SIZE,
    DESC_USED,
    DESC_WRITE,
    EVENT_DESC,
    EVENT_DISABLE,
    EVENT_ENABLE,
    MAX_SEGMENTS,
    WRAP,
    le16,
    packed_base,
    split_packed_base,
)
from transfuse.transports.virtqueue.memory import GuestMemory

__all__ = ["PackedDevice", "PackedDriver"]

DESC = struct.Struct("<QIHH")
"""addr, len, id, flags."""
TAIL = struct.Struct("<IH")
"""len and id of a used descriptor, at its byte 8."""
BITS = DESC_AVAIL | DESC_USED

Descriptor = tuple[int, int, int, int]


class PackedDevice(DeviceQueue):
    """The device's side."""

    PACKED = True

    def _resolve(self, memory: GuestMemory) -> None:
        (self._desc, _, device), (self._desc_at, _, self._event_at) = self._find(memory)
        self._half = self._desc.cast("H")
        self._event = device.cast("H")

    def _start(self, base: int, inflight: memoryview | None) -> None:
        if not 0 <= base <= 0xFFFFFFFF:
            raise RingError(f"packed queue begins at {base}, which has more than 32 bits")
        self._at, self._wrap, self._used, self._used_wrap = split_packed_base(base)
        if self._at >= self.size or self._used >= self.size:
            raise RingError(f"packed queue of {self.size} entries begins at {self._at} and {self._used}")
        self._out = 0  # ring slots of chains under way
        self._inflight: PackedInflight | None = None
        self._again_list: list[list[Descriptor]] = []
        if inflight is not None:
            self._inflight = PackedInflight(inflight, self.size)
            fresh = self._inflight.fresh
            self._used, self._used_wrap, self._resubmit = self._inflight.recover(
                self._used, self._used_wrap, lambda slot: le16(self._half[8 * slot + 7])
            )
            if not fresh:
                slots = sum(len(self._inflight.descriptors(entry)) for entry in self._resubmit)
                if slots > self.size:
                    raise RingError(f"inflight region: {slots} slots under way in a queue of {self.size}")
                self._at, self._wrap = self._after(self._used, self._used_wrap, slots)
                self._resubmit.reverse()

    @property
    def base(self) -> int:
        """Next available and next used position."""
        return packed_base(self._at, self._wrap, self._used, self._used_wrap)

    def _after(self, at: int, wrap: int, slots: int) -> tuple[int, int]:
        at += slots
        return (at - self.size, wrap ^ 1) if at >= self.size else (at, wrap)

    def _available(self) -> bool:
        return le16(self._half[8 * self._at + 7]) & BITS == (DESC_AVAIL if self._wrap else DESC_USED)

    def _take(self) -> Chain | None:
        flags = le16(self._half[8 * self._at + 7])
        if flags & BITS != (DESC_AVAIL if self._wrap else DESC_USED):
            return None
        found: list[Descriptor] = []
        at = self._at
        while True:
            if self._out + len(found) >= self.size:
                raise RingError(f"more than {self.size} descriptors under way")
            address, length, buffer_id, later = DESC.unpack_from(self._desc, DESC_SIZE * at)
            if found:
                flags = later
            found.append((address, length, buffer_id, flags))
            at = at + 1 if at + 1 < self.size else 0
            if not flags & DESC_NEXT:
                break
        chain = self._chain(found)
        self._at, self._wrap = self._after(self._at, self._wrap, chain.slots)
        self._out += chain.slots
        if self._inflight is not None:
            chain.entry = self._inflight.take(found)
        return chain

    def _again(self) -> Chain:
        if self._inflight is None:
            raise AssertionError("requests to serve again come from an inflight region")
        entry = self._resubmit[-1]
        chain = self._chain(self._inflight.descriptors(entry))
        chain.entry = entry
        self._out += chain.slots
        self._resubmit.pop()
        return chain

    def _chain(self, found: list[Descriptor]) -> Chain:
        segments: list[tuple[int, int, int, int]] = []
        for address, length, _, flags in found:
            if not flags & DESC_INDIRECT:
                segments.append((address, length, flags, 0))
                continue
            for inner_address, inner_length, _, inner in DESC.iter_unpack(self._table(address, length, flags)):
                if inner & DESC_INDIRECT:
                    raise RingError("indirect descriptor in an indirect table")
                segments.append((inner_address, inner_length, inner, 0))
                if len(segments) > MAX_SEGMENTS:
                    break
        if len(segments) > MAX_SEGMENTS:
            raise RingError(f"chain of more than {MAX_SEGMENTS} segments")
        return self._collect(found[-1][2], len(found), segments)

    def _publish(self, chain: Chain, written: int) -> None:
        slot, wrap = self._used, self._used_wrap
        self._used, self._used_wrap = self._after(slot, wrap, chain.slots)
        if self._inflight is not None:
            self._inflight.giving(chain.entry, self._used, self._used_wrap)
        TAIL.pack_into(self._desc, DESC_SIZE * slot + 8, written, chain.head)
        self._half[8 * slot + 7] = le16((BITS if wrap else 0) | (DESC_WRITE if written else 0))
        self._out -= chain.slots
        if self._inflight is not None:
            self._inflight.given(chain.entry)
        if self._log_rings and self._log is not None:
            self._log.mark(self._desc_at + DESC_SIZE * slot, DESC_SIZE)

    def _kicks_on(self) -> None:
        if self._event_idx:
            self._event[0] = le16(self._at | (WRAP if self._wrap else 0))
            self._event[1] = le16(EVENT_DESC)
        else:
            self._event[1] = le16(EVENT_ENABLE)
        if self._log_rings and self._log is not None:
            self._log.mark(self._event_at, 4)

    def _kicks_off(self) -> None:
        self._event[1] = le16(EVENT_DISABLE)
        if self._log_rings and self._log is not None:
            self._log.mark(self._event_at, 4)


class PackedDriver(DriverQueue):
    """The driver's side. `base` is as for PackedDevice, with nothing under way."""

    PACKED = True

    def _start(self, areas: list[memoryview], base: int | None) -> None:
        begin = packed_base(0, 1, 0, 1) if base is None else base
        self._at, self._wrap, used, used_wrap = split_packed_base(begin)
        if self._at >= self.size or (used, used_wrap) != (self._at, self._wrap):
            raise ValueError(f"a packed queue of {self.size} entries cannot begin at {begin:#x}")
        for area in areas:
            area[:] = bytes(len(area))
        self._desc = areas[0]
        self._half = areas[0].cast("H")
        self._event = areas[1].cast("H")
        for slot in range(self.size):
            before = self._wrap if slot < self._at else self._wrap ^ 1  # of the pass that used this slot last
            self._half[8 * slot + 7] = le16(BITS if before else 0)
        self._used, self._used_wrap = self._at, self._wrap
        self._ids = list(range(self.size - 1, -1, -1))
        self._under: dict[int, Under] = {}
        self._order: deque[Under] = deque()
        self._batch: tuple[int, int] | None = None
        """The used descriptor of a batch whose earlier requests are being given back."""
        self._hidden: tuple[int, int] | None = None
        """Slot and flags of the first descriptor that is not published: the device sees none behind it."""
        self._calls_on()

    def _place(self, readable: Segments, writable: Segments, token: Any, indirect: bool, needed: int) -> None:
        buffer_id = self._ids.pop()
        segments = [*((a, n, 0) for a, n in readable), *((a, n, DESC_WRITE) for a, n in writable)]
        if indirect and self._tables is not None:
            start = buffer_id * self._table_entries * DESC_SIZE
            for i, (address, length, flags) in enumerate(segments):
                DESC.pack_into(self._tables, start + DESC_SIZE * i, address, length, 0, flags)
            segments = [(self._tables_at + start, DESC_SIZE * len(segments), DESC_INDIRECT)]
        head = self._at
        head_flags = 0
        last = len(segments) - 1
        for i, (address, length, flags) in enumerate(segments):
            at = self._at
            flags |= (DESC_NEXT if i < last else 0) | (DESC_AVAIL if self._wrap else DESC_USED)
            if i:
                DESC.pack_into(self._desc, DESC_SIZE * at, address, length, buffer_id, flags)
            else:
                # Its flags are what makes the chain available: they are written last.
                head_flags = flags
                DESC.pack_into(self._desc, DESC_SIZE * at, address, length, buffer_id, le16(self._half[8 * at + 7]))
            self._at += 1
            if self._at == self.size:
                self._at = 0
                self._wrap ^= 1
        under = self._under[buffer_id] = Under(buffer_id, needed, room_of(writable), token)
        if self._in_order:
            self._order.append(under)
        if self._hidden is None:
            self._hidden = (head, head_flags)
        else:
            self._half[8 * head + 7] = le16(head_flags)

    def _show(self) -> None:
        if self._hidden is not None:
            head, flags = self._hidden
            self._hidden = None
            self._half[8 * head + 7] = le16(flags)

    def _used_waits(self) -> bool:
        if self._batch is not None:
            return True
        return le16(self._half[8 * self._used + 7]) & BITS == (BITS if self._used_wrap else 0)

    def _next_used(self) -> tuple[Under, int] | None:
        if not self._under or not self._used_waits():
            return None
        if self._batch is not None:
            buffer_id, written = self._batch
        else:
            written, buffer_id = TAIL.unpack_from(self._desc, DESC_SIZE * self._used + 8)
        if self._in_order and self._order[0].head != buffer_id:
            # One descriptor may stand for a batch; those before the one it names were filled whole.
            checked(self._under.get(buffer_id), written, buffer_id)
            self._batch = (buffer_id, written)
            under = self._order.popleft()
            written = under.room
            del self._under[under.head]
        else:
            under = checked(self._under.pop(buffer_id, None), written, buffer_id)
            self._batch = None
            if self._in_order:
                self._order.popleft()
        self._ids.append(under.head)
        self._used += under.count
        if self._used >= self.size:
            self._used -= self.size
            self._used_wrap ^= 1
        return under, written

    def _calls_on(self) -> None:
        if self._event_idx:
            self._event[0] = le16(self._used | (WRAP if self._used_wrap else 0))
            self._event[1] = le16(EVENT_DESC)
        else:
            self._event[1] = le16(EVENT_ENABLE)

    def _calls_off(self) -> None:
        self._event[1] = le16(EVENT_DISABLE)

"""Split virtqueues, both sides: a descriptor table, a ring of available heads, a ring of used ones.

Each ring has a 16-bit index that counts for ever and is taken modulo the size, a power of two. With EVENT_IDX, the
driver writes behind its ring at which used index it wants to be called, and the device behind its own at which
available index it wants to be kicked.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from transfuse.errors import RingError
from transfuse.transports.virtqueue.chain import Chain
from transfuse.transports.virtqueue.device import DeviceQueue
from transfuse.transports.virtqueue.driver import DriverQueue, Segments, Under, checked, room_of
from transfuse.transports.virtqueue.inflight import SplitInflight
from transfuse.transports.virtqueue.layout import (
    AVAIL_NO_INTERRUPT,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_SIZE,
    DESC_WRITE,
    MAX_SEGMENTS,
    USED_NO_NOTIFY,
    le16,
    le32,
)
from transfuse.transports.virtqueue.memory import GuestMemory

__all__ = ["SplitDevice", "SplitDriver"]

DESC = struct.Struct("<QIHH")
"""addr, len, flags, next."""


class SplitDevice(DeviceQueue):
    """The device's side."""

    def _resolve(self, memory: GuestMemory) -> None:
        (self._desc, avail, used), (_, _, self._used_at) = self._find(memory)
        self._avail = avail.cast("H")
        self._used = used[: len(used) - 2].cast("I")  # flags and index are cell 0, then ids and lengths
        self._used_half = used.cast("H")

    def _start(self, base: int, inflight: memoryview | None) -> None:
        if not 0 <= base <= 0xFFFF:
            raise RingError(f"split queue begins at {base}, an index has 16 bits")
        self._next = base
        self._used_idx = le16(self._used_half[1])
        self._inflight: SplitInflight | None = None
        if inflight is not None:
            self._inflight = SplitInflight(inflight, self.size)
            if not self._inflight.fresh:
                self._resubmit = self._inflight.recover(self._used_idx)
                self._next = (self._used_idx + len(self._resubmit)) & 0xFFFF
                self._resubmit.reverse()
            else:
                self._inflight.recover(self._used_idx)

    @property
    def base(self) -> int:
        """The next available index."""
        return self._next

    def _available(self) -> bool:
        return le16(self._avail[1]) != self._next

    def _take(self) -> Chain | None:
        count = (le16(self._avail[1]) - self._next) & 0xFFFF
        if not count:
            return None
        if count > self.size:
            raise RingError(f"available index is {count} ahead in a queue of {self.size}")
        if self.in_flight >= self.size:
            raise RingError(f"more than {self.size} requests under way")
        head = le16(self._avail[2 + (self._next & (self.size - 1))])
        chain = self._chain(head)
        self._next = (self._next + 1) & 0xFFFF
        if self._inflight is not None:
            self._inflight.take(head)
        return chain

    def _again(self) -> Chain:
        chain = self._chain(self._resubmit[-1])
        self._resubmit.pop()
        return chain

    def _chain(self, head: int) -> Chain:
        table: memoryview | bytes = self._desc
        entries = left = self.size
        at, indirect = head, False
        found: list[tuple[int, int, int, int]] = []
        while True:
            if at >= entries:
                raise RingError(f"descriptor {at} in a table of {entries}")
            descriptor = DESC.unpack_from(table, DESC_SIZE * at)
            flags = descriptor[2]
            if flags & DESC_INDIRECT:
                if indirect:
                    raise RingError("indirect descriptor in an indirect table")
                indirect = True
                table = self._table(descriptor[0], descriptor[1], flags)
                left = entries = descriptor[1] // DESC_SIZE
                at = 0
                continue
            if not left:
                raise RingError(f"chain that does not end within a table of {entries}")
            left -= 1
            if len(found) == MAX_SEGMENTS:
                raise RingError(f"chain of more than {MAX_SEGMENTS} segments")
            found.append(descriptor)
            if not flags & DESC_NEXT:
                return self._collect(head, 1, found)
            at = descriptor[3]

    def _publish(self, chain: Chain, written: int) -> None:
        slot = self._used_idx & (self.size - 1)
        inflight = self._inflight
        self._used[1 + 2 * slot] = le32(chain.head)
        self._used[2 + 2 * slot] = le32(written)
        if inflight is not None:
            inflight.giving(chain.head)
        self._used_idx = (self._used_idx + 1) & 0xFFFF
        self._used_half[1] = le16(self._used_idx)
        if inflight is not None:
            inflight.given(chain.head, self._used_idx)
        if self._log_rings and self._log is not None:
            self._log.mark(self._used_at + 4 + 8 * slot, 8)
            self._log.mark(self._used_at + 2, 2)

    def _kicks_on(self) -> None:
        if self._event_idx:
            self._used_half[2 + 4 * self.size] = le16(self._next)
            where = 4 + 8 * self.size
        else:
            self._used_half[0] = 0
            where = 0
        if self._log_rings and self._log is not None:
            self._log.mark(self._used_at + where, 2)

    def _kicks_off(self) -> None:
        self._used_half[0] = le16(USED_NO_NOTIFY)
        if self._log_rings and self._log is not None:
            self._log.mark(self._used_at, 2)


class SplitDriver(DriverQueue):
    """The driver's side. `base` is the index that both rings begin with."""

    def _start(self, areas: list[memoryview], base: int | None) -> None:
        for area in areas:
            area[:] = bytes(len(area))
        self._desc = areas[0]
        self._avail = areas[1].cast("H")
        self._used = areas[2][: len(areas[2]) - 2].cast("I")
        self._used_half = areas[2].cast("H")
        self._next = self._seen = base or 0
        self._avail[1] = self._used_half[1] = le16(self._next)
        self._under: dict[int, Under] = {}
        self._links = list(range(1, self.size + 1))
        self._head = 0
        """First free descriptor; with IN_ORDER descriptors are taken in ring order and this is the next one."""
        self._order: deque[Under] = deque()
        self._batch: tuple[int, int] | None = None
        """The used entry of a batch whose earlier requests are being given back."""
        self._calls_on()

    def _place(self, readable: Segments, writable: Segments, token: Any, indirect: bool, needed: int) -> None:
        head = self._head
        segments = [*((a, n, 0) for a, n in readable), *((a, n, DESC_WRITE) for a, n in writable)]
        last = len(segments) - 1
        if indirect and self._tables is not None:
            start = head * self._table_entries * DESC_SIZE
            for i, (address, length, flags) in enumerate(segments):
                more = flags | DESC_NEXT if i < last else flags
                DESC.pack_into(self._tables, start + DESC_SIZE * i, address, length, more, i + 1 if i < last else 0)
            DESC.pack_into(
                self._desc, DESC_SIZE * head, self._tables_at + start, DESC_SIZE * len(segments), DESC_INDIRECT, 0
            )
            at = self._after(head)
        else:
            at = head
            for i, (address, length, flags) in enumerate(segments):
                following = self._after(at)
                if i < last:
                    DESC.pack_into(self._desc, DESC_SIZE * at, address, length, flags | DESC_NEXT, following)
                else:
                    DESC.pack_into(self._desc, DESC_SIZE * at, address, length, flags, 0)
                at = following
        self._head = at
        under = self._under[head] = Under(head, needed, room_of(writable), token)
        if self._in_order:
            self._order.append(under)
        self._avail[2 + (self._next & (self.size - 1))] = le16(head)
        self._next = (self._next + 1) & 0xFFFF

    def _after(self, at: int) -> int:
        return (at + 1) % self.size if self._in_order else self._links[at]

    def _show(self) -> None:
        self._avail[1] = le16(self._next)

    def _used_waits(self) -> bool:
        return le16(self._used_half[1]) != self._seen

    def _next_used(self) -> tuple[Under, int] | None:
        count = (le16(self._used_half[1]) - self._seen) & 0xFFFF
        if not count:
            return None
        if count > len(self._under):
            raise RingError(f"used index is {count} ahead with {len(self._under)} requests under way")
        if self._batch is not None:
            head, written = self._batch
        else:
            slot = self._seen & (self.size - 1)
            head = le32(self._used[1 + 2 * slot])
            written = le32(self._used[2 + 2 * slot])
        if self._in_order and self._order[0].head != head:
            # One entry may stand for a batch; those before the one it names were filled whole.
            checked(self._under.get(head), written, head)
            self._batch = (head, written)
            under = self._order.popleft()
            written = under.room
            del self._under[under.head]
        else:
            under = checked(self._under.pop(head, None), written, head)
            self._batch = None
            if self._in_order:
                self._order.popleft()
            else:
                self._release(under)
        self._seen = (self._seen + 1) & 0xFFFF
        return under, written

    def _release(self, under: Under) -> None:
        at = under.head
        for _ in range(under.count - 1):
            at = self._links[at]
        self._links[at] = self._head
        self._head = under.head

    def _calls_on(self) -> None:
        if self._event_idx:
            self._avail[2 + self.size] = le16(self._seen)
        else:
            self._avail[0] = 0

    def _calls_off(self) -> None:
        self._avail[0] = le16(AVAIL_NO_INTERRUPT)

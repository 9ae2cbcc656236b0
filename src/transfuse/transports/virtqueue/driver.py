"""What both kinds of virtqueues have in common on the driver's side.

The driver owns the memory and trusts its own copies only: which descriptors belong to a request, and how many bytes it
may get, is kept here, because the device can write to the rings, too. A used id that is not under way or a length
beyond the room is RingError, and the queue is broken then.

add() puts a request into the ring, publish() shows all added ones to the device, needs_kick() says whether it must be
told. take_used() gives back what is done, arm() asks for a call with the next. Used by one thread at a time.

On memory ordering see device.py: this form always kicks, and arm() makes a system call between its store and its load.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from transfuse.errors import RingError
from transfuse.transports.virtqueue import layout
from transfuse.transports.virtqueue.memory import GuestMemory

__all__ = ["DriverQueue", "Segments"]

Segments = Sequence[tuple[int, int]]
"""(guest address, length) of each segment; lengths are positive."""


class Under:
    """A request under way."""

    __slots__ = ("count", "head", "room", "token")

    def __init__(self, head: int, count: int, room: int, token: Any) -> None:
        self.head = head
        self.count = count
        self.room = room
        self.token = token


class DriverQueue:
    """The driver's side of one queue; SplitDriver and PackedDriver are the two kinds.

    Addresses are as for DeviceQueue. The three areas are initialised for a queue that begins at `base`
    (None: a new one). `tables`, with
    INDIRECT_DESC, is the guest address of room for `size` indirect tables of `table_entries` entries each: a request of
    several segments then takes one entry of the ring.
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
        base: int | None = None,
        *,
        tables: int | None = None,
        table_entries: int = 0,
        guest_physical: bool = False,
    ) -> None:
        layout.check_size(size, self.PACKED)
        self.memory = memory
        self.size = size
        self.features = features
        self.free = size
        """Entries of the ring that are free."""
        self.broken: str | None = None
        """What the device did wrong."""
        self._event_idx = bool(features & layout.F_EVENT_IDX)
        self._in_order = bool(features & layout.F_IN_ORDER)
        self._armed = True
        self._added = 0  # ring entries that are not published yet
        self._shown = 0  # those published since needs_kick() was asked
        areas = [
            memory.at_guest(address, length) if guest_physical else memory.at_user(address, length)
            for address, length in zip(
                (desc, driver_area, device_area), layout.area_sizes(size, self.PACKED), strict=True
            )
        ]
        self._tables: memoryview | None = None
        self._tables_at = 0
        self._table_entries = 0
        if tables is not None and table_entries > 0 and features & layout.F_INDIRECT_DESC:
            self._tables = memory.at_guest(tables, size * table_entries * layout.DESC_SIZE)
            self._tables_at = tables
            self._table_entries = table_entries
        self._start(areas, base)

    def add(self, readable: Segments, writable: Segments, token: Any) -> bool:
        """Put a request into the ring: the device reads `readable` and fills `writable`. False: no room at the moment.
        ValueError if it has no segment, or more than the ring can ever hold."""
        count = len(readable) + len(writable)
        if not count:
            raise ValueError("a request of no segments")
        indirect = 1 < count <= self._table_entries
        if count > self.size and not indirect:
            raise ValueError(f"a request of {count} segments in a queue of {self.size}")
        needed = 1 if indirect else count
        if needed > self.free:
            return False
        self._place(readable, writable, token, indirect, needed)
        self.free -= needed
        self._added += needed
        return True

    def needs_kick(self) -> bool:
        """Whether the device wants to be told of what was published since this was asked last. This form does not read
        its wish: True if anything was."""
        shown, self._shown = self._shown, 0
        return shown > 0

    def take_used(self) -> tuple[Any, int] | None:
        """The token of a request that is done and the number of bytes written, None if there is none. Calls are off
        from now on until `arm`. RingError: the queue is broken."""
        if self.broken is not None:
            raise RingError(self.broken)
        try:
            done = self._next_used()
        except RingError as error:
            self.broken = str(error)
            raise
        if done is None:
            return None
        if self._armed:
            self._armed = False
            if not self._event_idx:
                self._calls_off()
        under, written = done
        self.free += under.count
        return under.token, written

    def arm(self) -> bool:
        """Ask the device for a call when it is done with the next request. True: one is done already, do not sleep."""
        if self.broken is not None:
            return False
        self._armed = True
        self._calls_on()
        os.sched_yield()
        return self._used_waits()

    def publish(self) -> None:
        """Show the device all requests that were added."""
        if self._added:
            self._show()
            self._shown += self._added
            self._added = 0

    def _show(self) -> None:
        raise NotImplementedError

    def _start(self, areas: list[memoryview], base: int | None) -> None:
        raise NotImplementedError

    def _place(self, readable: Segments, writable: Segments, token: Any, indirect: bool, needed: int) -> None:
        raise NotImplementedError

    def _next_used(self) -> tuple[Under, int] | None:
        raise NotImplementedError

    def _used_waits(self) -> bool:
        raise NotImplementedError

    def _calls_on(self) -> None:
        raise NotImplementedError

    def _calls_off(self) -> None:
        raise NotImplementedError


def room_of(writable: Segments) -> int:
    """Bytes that the device may write at most."""
    return sum(length for _, length in writable)


def checked(under: Under | None, written: int, what: int) -> Under:
    """`under`, if the device may say of it that it wrote so much."""
    if under is None:
        raise RingError(f"used id {what} is not under way")
    if written > under.room:
        raise RingError(f"used length {written} of a request with room for {under.room}")
    return under

"""Which requests a device is working on, kept where they survive the device: the INFLIGHT_SHMFD region.

The region is a file that the front-end keeps. A back-end notes in it every chain that it takes and gives back, so that
after a crash its successor serves exactly those again that were under way, in the order in which they had come. Layouts
and the order of steps are those of QEMU's docs/interop/vhost-user.rst, "Inflight I/O tracking"; a crash between any two
of the steps must leave a state that `recover` understands.

Split, for each queue: features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16, then for each
descriptor {inflight u8, 5 bytes, next u16, counter u64}. Packed: features u64, version u16, desc_num u16, free_head
u16, old_free_head u16, used_idx u16, old_used_idx u16, used_wrap_counter u8, old_used_wrap_counter u8, 10 bytes (7
named in the document, 3 of alignment), then for each ring slot {inflight u8, 1 byte, next u16, last u16, num u16,
counter u64, id u16, flags u16, len u32, addr u64}. Numbers are in the host's order: both sides are one host.

The front-end can write here, too: an index out of range or a list that does not end is a RingError.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Callable

from transfuse.errors import RingError
from transfuse.transports.virtqueue.layout import DESC_AVAIL, DESC_USED, check_size
from transfuse.transports.virtqueue.memory import Mapping

__all__ = ["Inflight", "PackedInflight", "SplitInflight", "create", "queue_bytes"]

VERSION = 1
ALIGNMENT = 64
"""Each queue's part begins on a cache line of its own, as in QEMU."""
SPLIT_HEADER, SPLIT_ENTRY = 16, 16
PACKED_HEADER, PACKED_ENTRY = 32, 32
MAX_QUEUES = 1024


def queue_bytes(size: int, packed: bool) -> int:
    """Bytes of one queue's part, aligned."""
    header, entry = (PACKED_HEADER, PACKED_ENTRY) if packed else (SPLIT_HEADER, SPLIT_ENTRY)
    return -(-(header + entry * size) // ALIGNMENT) * ALIGNMENT


def create(queues: int, queue_size: int, packed: bool) -> tuple[int, int]:
    """A new region, zeroed and never to shrink: its fd, which the caller owns, and its size."""
    if not 0 < queues <= MAX_QUEUES:
        raise RingError(f"an inflight region for {queues} queues, at most {MAX_QUEUES}")
    check_size(queue_size, packed)
    size = queues * queue_bytes(queue_size, packed)
    fd = os.memfd_create("transfuse-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd, size


class Inflight:
    """A region that the front-end gave (SET_INFLIGHT_FD). Any mapping does, also one of the compiled form."""

    def __init__(self, mapping: Mapping, queues: int, queue_size: int, packed: bool) -> None:
        check_size(queue_size, packed)
        self._bytes = queue_bytes(queue_size, packed)
        if not 0 < queues <= MAX_QUEUES or queues * self._bytes > mapping.size:
            raise RingError(
                f"an inflight region of {mapping.size} bytes for {queues} queues of {queue_size} entries, "
                f"{self._bytes} bytes each"
            )
        self.mapping = mapping
        self.queues = queues
        self.queue_size = queue_size

    def queue(self, number: int) -> memoryview:
        """One queue's part; it keeps the mapping alive."""
        if not 0 <= number < self.queues:
            raise RingError(f"queue {number} has no part in an inflight region for {self.queues} queues")
        return memoryview(self.mapping.view)[number * self._bytes : (number + 1) * self._bytes]


class _Part:
    """What both kinds share: features and version in front, cells by width."""

    HEADER = 0
    ENTRY = 0

    def __init__(self, part: memoryview, size: int) -> None:
        if len(part) < self.HEADER + self.ENTRY * size:
            raise RingError(f"an inflight region of {len(part)} bytes for a queue of {size} entries")
        part = part[: self.HEADER + self.ENTRY * size]
        self.size = size
        self._bytes = part
        self._half = part.cast("H")
        self._long = part.cast("Q")
        self.fresh = self._half[4] == 0
        """Nothing was noted here before."""
        if not self.fresh and (self._half[4] != VERSION or self._half[5] != size):
            raise RingError(
                f"inflight region of version {self._half[4]} for {self._half[5]} entries, not {VERSION} for {size}"
            )
        self.counter = 0
        """What the next chain is counted as."""

    def _under_way(self) -> list[int]:
        """Indices of entries marked as under way, oldest first; new ones will be counted as later."""
        starts = range(self.HEADER, self.HEADER + self.ENTRY * self.size, self.ENTRY)
        counters = sorted((self._long[at // 8 + 1], i) for i, at in enumerate(starts) if self._bytes[at])
        self.counter = counters[-1][0] + 1 if counters else 0
        return [i for _, i in counters]


class SplitInflight(_Part):
    """The part of a split queue."""

    HEADER = SPLIT_HEADER
    ENTRY = SPLIT_ENTRY
    _LAST_BATCH, _USED = 6, 7

    def recover(self, used_idx: int) -> list[int]:
        """Heads of the chains to serve again, in order; `used_idx` is what stands in the used ring."""
        half = self._half
        if self.fresh:
            half[5] = self.size
            half[self._USED] = used_idx
            half[4] = VERSION
            return []
        batch = (used_idx - half[self._USED]) & 0xFFFF
        if batch > self.size:
            raise RingError(f"inflight region: used index {half[self._USED]}, the ring's is {used_idx}")
        at = half[self._LAST_BATCH]
        for _ in range(batch):
            if at >= self.size:
                raise RingError(f"inflight region: descriptor {at} in a queue of {self.size}")
            self._bytes[SPLIT_HEADER + SPLIT_ENTRY * at] = 0
            at = half[SPLIT_HEADER // 2 + 8 * at + 3]
        half[self._USED] = used_idx
        return self._under_way()

    def take(self, head: int) -> None:
        """A chain was taken from the available ring."""
        self._long[2 + 2 * head + 1] = self.counter
        self.counter += 1
        self._bytes[SPLIT_HEADER + SPLIT_ENTRY * head] = 1

    def giving(self, head: int) -> None:
        """A chain stands in the used ring, whose index does not count it yet."""
        half = self._half
        half[SPLIT_HEADER // 2 + 8 * head + 3] = half[self._LAST_BATCH]
        half[self._LAST_BATCH] = head

    def given(self, head: int, used_idx: int) -> None:
        """The used ring's index is now `used_idx`."""
        self._bytes[SPLIT_HEADER + SPLIT_ENTRY * head] = 0
        self._half[self._USED] = used_idx


class PackedInflight(_Part):
    """The part of a packed queue. Its entries hold copies of descriptors, since used ones overwrite the ring."""

    HEADER = PACKED_HEADER
    ENTRY = PACKED_ENTRY
    _FREE, _OLD_FREE = 6, 7
    _POSITIONS = struct.Struct("=HHBB2x")
    """used_idx, old_used_idx, used_wrap_counter, old_used_wrap_counter: one aligned u64 at byte 16.

    They are written by one store. In the document's order, old index before old wrap counter, a crash in between is
    taken for one before the step when a chain was as long as the ring, or ended with it.
    """
    _TAIL = struct.Struct("=HHIQ")
    """id, flags, len, addr at byte 16 of an entry."""

    def recover(self, used: int, wrap: int, flags_at: Callable[[int], int]) -> tuple[int, int, list[int]]:
        """Used index and wrap counter to go on with (those given, if the region is fresh), and the entries of the
        chains to serve again, in order. `flags_at` gives the flags of a ring slot."""
        half, size = self._half, self.size
        if self.fresh:
            for i in range(size):
                half[PACKED_HEADER // 2 + 16 * i + 1] = i + 1
            half[5] = size
            self._position(used, used, wrap, wrap)
            half[4] = VERSION
            return used, wrap, []
        used, old_used, wrap, old_wrap = self._POSITIONS.unpack_from(self._bytes, 16)
        if used >= size or old_used >= size or wrap > 1 or old_wrap > 1:
            raise RingError(f"inflight region: used {used}, {wrap}, before {old_used}, {old_wrap} in a queue of {size}")
        if (used, wrap) != (old_used, old_wrap):
            unseen = DESC_AVAIL if old_wrap else DESC_USED
            if flags_at(old_used) & (DESC_AVAIL | DESC_USED) != unseen:
                # The slot has been given back, and the driver may even have used it anew: that step is made.
                half[self._OLD_FREE] = half[self._FREE]
                old_used, old_wrap = used, wrap
        half[self._FREE] = half[self._OLD_FREE]
        self._position(old_used, old_used, old_wrap, old_wrap)
        at = half[self._FREE]
        for _ in range(size + 1):
            if at >= size:
                break
            self._bytes[PACKED_HEADER + PACKED_ENTRY * at] = 0
            at = half[PACKED_HEADER // 2 + 16 * at + 1]
        else:
            raise RingError("inflight region: the list of free entries does not end")
        return old_used, old_wrap, self._under_way()

    def _position(self, used: int, old_used: int, wrap: int, old_wrap: int) -> None:
        self._used = used, wrap
        self._long[2] = int.from_bytes(self._POSITIONS.pack(used, old_used, wrap, old_wrap), sys.byteorder)

    def take(self, descriptors: list[tuple[int, int, int, int]]) -> int:
        """A chain was taken: its ring slots as (addr, len, id, flags). Returns its entry."""
        half = self._half
        entry = at = half[self._OLD_FREE]
        for n, (address, length, buffer_id, flags) in enumerate(descriptors):
            if at >= self.size:
                raise RingError("inflight region: no free entry for what the ring holds")
            base = PACKED_HEADER + PACKED_ENTRY * entry
            if n == 0:
                half[base // 2 + 3] = 0
                self._long[base // 8 + 1] = self.counter
                self.counter += 1
                self._bytes[base] = 1
            if n == len(descriptors) - 1:
                half[base // 2 + 2] = at
            half[base // 2 + 3] += 1
            self._TAIL.pack_into(self._bytes, PACKED_HEADER + PACKED_ENTRY * at + 16, buffer_id, flags, length, address)
            at = half[PACKED_HEADER // 2 + 16 * at + 1]
            half[self._FREE] = at
        half[self._OLD_FREE] = at
        return entry

    def descriptors(self, entry: int) -> list[tuple[int, int, int, int]]:
        """The ring slots of a chain that was under way, as `take` got them."""
        half = self._half
        found = []
        at = entry
        count = half[(PACKED_HEADER + PACKED_ENTRY * entry) // 2 + 3]
        if not 0 < count <= self.size:
            raise RingError(f"inflight region: a chain of {count} descriptors in a queue of {self.size}")
        for _ in range(count):
            if at >= self.size:
                raise RingError(f"inflight region: entry {at} in a queue of {self.size}")
            buffer_id, flags, length, address = self._TAIL.unpack_from(
                self._bytes, PACKED_HEADER + PACKED_ENTRY * at + 16
            )
            found.append((address, length, buffer_id, flags))
            at = half[PACKED_HEADER // 2 + 16 * at + 1]
        return found

    def giving(self, entry: int, used: int, wrap: int) -> None:
        """A chain will be given back by the ring slot before `used`, which is where the next will go."""
        half = self._half
        last = half[(PACKED_HEADER + PACKED_ENTRY * entry) // 2 + 2]
        if last >= self.size:
            raise RingError(f"inflight region: entry {last} in a queue of {self.size}")
        half[PACKED_HEADER // 2 + 16 * last + 1] = half[self._FREE]
        half[self._FREE] = entry
        old_used, old_wrap = self._used
        self._position(used, old_used, wrap, old_wrap)

    def given(self, entry: int) -> None:
        """The ring slot is written."""
        half = self._half
        self._bytes[PACKED_HEADER + PACKED_ENTRY * entry] = 0
        half[self._OLD_FREE] = half[self._FREE]
        used, wrap = self._used
        self._position(used, used, wrap, wrap)

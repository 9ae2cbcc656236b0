"""Where things lie in the two kinds of virtqueues, and the numbers in them.

Source: Virtual I/O Device (VIRTIO) Version 1.3, sections 2.7 (split) and 2.8 (packed); Linux names in virtio_ring.h and
virtio_config.h. Only VERSION_1 devices: everything is little-endian, on any host.

A *split* queue of n entries has three areas: a table of n descriptors, the driver's area (flags, index, ring of n
heads, event index) and the device's (flags, index, ring of n × {id, length}, event index). A *packed* queue has one
ring of n descriptors that both sides write, and two event structures of 4 bytes. In the terms of vhost-user the areas
are called desc, avail and used.

A descriptor is 16 bytes in both: address u64, length u32, then flags u16 and next u16 (split), or id u16 and flags u16
(packed).
"""

from __future__ import annotations

import sys

from transfuse.errors import RingError

__all__ = [
    "F_EVENT_IDX",
    "F_INDIRECT_DESC",
    "F_IN_ORDER",
    "F_RING_PACKED",
    "F_RING_RESET",
    "F_VERSION_1",
    "MAX_CHAIN_BYTES",
    "MAX_PIECES",
    "MAX_QUEUE_SIZE",
    "MAX_SEGMENTS",
    "MAX_TABLE_ENTRIES",
    "area_sizes",
    "check_size",
    "le16",
    "le32",
    "need_event",
    "packed_base",
    "split_packed_base",
]

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
F_RING_PACKED = 1 << 34
F_IN_ORDER = 1 << 35
F_RING_RESET = 1 << 40

DESC_SIZE = 16
DESC_NEXT = 1
DESC_WRITE = 2
DESC_INDIRECT = 4
DESC_AVAIL = 1 << 7
"""Packed only: equal to the driver's wrap counter when the descriptor is available."""
DESC_USED = 1 << 15
"""Packed only: equal to AVAIL when the descriptor is used."""

AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1

EVENT_ENABLE = 0
EVENT_DISABLE = 1
EVENT_DESC = 2
"""Flags of a packed queue's event structures; DESC only with EVENT_IDX."""
WRAP = 1 << 15
"""The wrap counter beside a packed queue's 15-bit index."""

MAX_QUEUE_SIZE = 32768
"""The specification's limit for both kinds."""
MAX_SEGMENTS = 1024
"""Most descriptors of one chain: a request of 1 MiB in pages of 4 KiB takes some 260, and IOV_MAX is 1024."""
MAX_PIECES = 2 * MAX_SEGMENTS
"""Most pieces of memory of one chain: a descriptor across regions has several."""
MAX_TABLE_ENTRIES = 32768
"""Most entries of an indirect table."""
MAX_CHAIN_BYTES = 1 << 32
"""The specification's limit for all segments of a chain together."""


def check_size(size: int, packed: bool) -> None:
    """RingError unless a queue may have `size` entries."""
    if not 0 < size <= MAX_QUEUE_SIZE or (not packed and size & (size - 1)):
        kind = "packed" if packed else "split"
        raise RingError(f"{kind} queue of {size} entries: 1 to {MAX_QUEUE_SIZE}{'' if packed else ', a power of two'}")


def area_sizes(size: int, packed: bool) -> tuple[int, int, int]:
    """Bytes of the descriptor, driver and device areas of a queue of `size` entries."""
    if packed:
        return DESC_SIZE * size, 4, 4
    return DESC_SIZE * size, 6 + 2 * size, 6 + 8 * size


def area_alignments(packed: bool) -> tuple[int, int, int]:
    """What the three areas' addresses are multiples of."""
    return (16, 4, 4) if packed else (16, 2, 4)


def need_event(event: int, new: int, old: int) -> bool:
    """Whether a 16-bit index that goes from `old` to `new` passes `event`, so that the other side wants to be told."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


def packed_base(avail: int, avail_wrap: int, used: int, used_wrap: int) -> int:
    """The state of a packed queue as vhost-user's SET_VRING_BASE carries it."""
    return avail | avail_wrap << 15 | used << 16 | used_wrap << 31


def split_packed_base(base: int) -> tuple[int, int, int, int]:
    """The reverse: avail index, its wrap counter, used index, its wrap counter."""
    return base & 0x7FFF, base >> 15 & 1, base >> 16 & 0x7FFF, base >> 31 & 1


# Indices are read and written through memoryviews cast to "H" or "I": one load or store of the right width, where the
# struct module would go byte by byte, and an index half written by the other side would be read. Such a cast knows only
# the host's order.

if sys.byteorder == "little":

    def le16(value: int) -> int:
        """A u16 between the host's order and the ring's."""
        return value

    def le32(value: int) -> int:
        """A u32 between the host's order and the ring's."""
        return value

else:

    def le16(value: int) -> int:
        """A u16 between the host's order and the ring's."""
        return (value & 0xFF) << 8 | value >> 8

    def le32(value: int) -> int:
        """A u32 between the host's order and the ring's."""
        return int.from_bytes(value.to_bytes(4, "little"), "big")

"""The driver's memory as the device sees it: files of the other process, mapped here.

A front-end names its memory by two kinds of addresses: *guest* addresses are in descriptors, *user* addresses (where
the front-end has mapped it itself) are those of the rings. A `Region` is one piece, a `GuestMemory` a set of regions
that never changes: who changes the memory makes a new one out of the old one's regions, and whoever still works with
the old one keeps it alive. A region is unmapped when nobody holds it any more.

Addresses come from the other side, so every one is looked up, and what is found outside raises RingError. The other
side can also change the bytes at any time: what has to be checked is copied first.

This is the plain form. It checks the size of each file when it maps it, but a front-end that truncates the file later
kills this process by SIGBUS; the compiled form survives that (`broken`). And the plain form has no atomic "or", which
the dirty log of a migration needs, because other devices write to the same log: `DirtyLog.ATOMIC` says so, and a device
must not offer LOG_ALL then.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable

from transfuse.errors import RingError

__all__ = ["LOG_PAGE", "MAX_REGIONS", "DirtyLog", "GuestMemory", "Mapping", "Region"]

MAX_REGIONS = 512
"""Most regions of one memory; QEMU has at most 509 slots."""
LOG_PAGE = 4096
"""One bit of the dirty log stands for so many bytes of guest memory, whatever pages guest and host have."""
_END = 1 << 64


class Mapping:
    """`size` bytes of `fd` from `offset`, shared and writable. The fd may be closed afterwards.

    RingError when the file is too short, OSError when it cannot be mapped.
    """

    __slots__ = ("__weakref__", "_map", "size", "view")

    ATOMIC = False

    def __init__(self, fd: int, offset: int, size: int) -> None:
        start, length = mapped_range(fd, offset, size)
        if sys.version_info >= (3, 13):
            self._map = mmap.mmap(fd, length, offset=start, trackfd=False)
        else:
            self._map = mmap.mmap(fd, length, offset=start)
        self.size = size
        self.view = memoryview(self._map)[offset - start : offset - start + size]
        """All of it, as bytes."""

    @property
    def broken(self) -> bool:
        """The file was truncated under us, and zeros took its place."""
        return False


def mapped_range(fd: int, offset: int, size: int) -> tuple[int, int]:
    """Start and length of what is to be mapped so that `size` bytes from `offset` are in it: a file on hugetlbfs is
    mapped in its own large pages only."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise RingError(f"memory in a file of type {stat.S_IFMT(status.st_mode):o}, not a regular one")
    if size <= 0 or offset < 0 or offset + size > status.st_size:
        raise RingError(f"{size} bytes of memory at offset {offset} of a file of {status.st_size} bytes")
    page = os.fstatvfs(fd).f_bsize
    if page < mmap.ALLOCATIONGRANULARITY or page & (page - 1):
        page = mmap.ALLOCATIONGRANULARITY
    start = offset - offset % page
    end = min(-(-(offset + size) // page) * page, status.st_size)
    return start, end - start


class Region(Mapping):
    """One region of a driver's memory; `mmap_offset` is where it begins in the file."""

    __slots__ = ("guest_address", "user_address")

    def __init__(self, guest_address: int, user_address: int, size: int, fd: int, mmap_offset: int = 0) -> None:
        for address in (guest_address, user_address):
            if address < 0 or size <= 0 or address + size > _END:
                raise RingError(f"region of {size} bytes at {address:#x}")
        super().__init__(fd, mmap_offset, size)
        self.guest_address = guest_address
        self.user_address = user_address


class GuestMemory:
    """Regions that do not overlap, by either kind of address."""

    __slots__ = ("_by_guest", "_by_user", "_guest_starts", "_user_starts", "regions")

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        self.regions = tuple(regions)
        if len(self.regions) > MAX_REGIONS:
            raise RingError(f"{len(self.regions)} regions of memory, at most {MAX_REGIONS} are taken")
        self._by_guest = sorted(self.regions, key=lambda region: region.guest_address)
        self._by_user = sorted(self.regions, key=lambda region: region.user_address)
        self._guest_starts = [region.guest_address for region in self._by_guest]
        self._user_starts = [region.user_address for region in self._by_user]
        for starts, sizes in (
            (self._guest_starts, [region.size for region in self._by_guest]),
            (self._user_starts, [region.size for region in self._by_user]),
        ):
            for start, size, following in zip(starts, sizes, starts[1:], strict=False):
                if start + size > following:
                    raise RingError(f"regions of memory overlap: {size} bytes at {start:#x} and one at {following:#x}")

    @property
    def broken(self) -> bool:
        """A region's file was truncated under us."""
        return any(region.broken for region in self.regions)

    def at(self, guest_address: int, length: int) -> list[memoryview]:
        """The bytes at a guest address: one piece for each region they lie in, none for no bytes."""
        i = bisect_right(self._guest_starts, guest_address) - 1
        if i >= 0:
            region = self._by_guest[i]
            skip = guest_address - region.guest_address
            if skip + length <= region.size:
                return [region.view[skip : skip + length]] if length else []
        return self._pieces(i, guest_address, length)

    def region_at(self, guest_address: int) -> tuple[int, int, memoryview]:
        """Guest address, size and bytes of the region in which there is something at a guest address."""
        region = self._by_guest[bisect_right(self._guest_starts, guest_address) - 1]
        return region.guest_address, region.size, region.view

    def _pieces(self, i: int, address: int, length: int) -> list[memoryview]:
        pieces = []
        left = length
        while left:
            region = self._by_guest[i] if 0 <= i < len(self._by_guest) else None
            if region is None or not 0 <= address - region.guest_address < region.size:
                raise RingError(f"no memory at guest address {address:#x} ({length} bytes were to be there)")
            skip = address - region.guest_address
            piece = region.view[skip : skip + left]
            pieces.append(piece)
            address += len(piece)
            left -= len(piece)
            i += 1
        return pieces

    def at_guest(self, guest_address: int, length: int) -> memoryview:
        """The same where the bytes must lie in one region: a ring."""
        pieces = self.at(guest_address, length)
        if len(pieces) != 1:
            raise RingError(f"{length} bytes at guest address {guest_address:#x} are not in one region")
        return pieces[0]

    def at_user(self, user_address: int, length: int) -> memoryview:
        """The bytes at a user address, which must lie in one region."""
        region = self._of_user(user_address)
        skip = user_address - region.user_address
        if length <= 0 or skip + length > region.size:
            raise RingError(f"{length} bytes at user address {user_address:#x} are not in one region")
        return region.view[skip : skip + length]

    def guest_of_user(self, user_address: int) -> int:
        """The guest address of a byte named by its user address."""
        region = self._of_user(user_address)
        return region.guest_address + user_address - region.user_address

    def _of_user(self, address: int) -> Region:
        i = bisect_right(self._user_starts, address) - 1
        if i >= 0:
            region = self._by_user[i]
            if address - region.user_address < region.size:
                return region
        raise RingError(f"no memory at user address {address:#x}")


class DirtyLog:
    """The bitmap in which a device notes what it wrote to guest memory while the guest is being migrated.

    Bit n is the page of 4096 bytes at guest address 4096 × n; whoever migrates clears bits meanwhile.
    """

    __slots__ = ("_bits", "_lock", "mapping")

    ATOMIC = False
    """Bits are set by an atomic "or"; without it a log that others write to as well loses bits."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self._bits = mapping.view
        self._lock = threading.Lock()

    def mark(self, guest_address: int, length: int) -> None:
        """Note that `length` bytes were written. What lies beyond the log has no bit and is passed over."""
        if length <= 0:
            return
        first, last = guest_address // LOG_PAGE, (guest_address + length - 1) // LOG_PAGE
        bits = self._bits
        with self._lock:
            for page in range(first, min(last, len(bits) * 8 - 1) + 1):
                bits[page >> 3] |= 1 << (page & 7)

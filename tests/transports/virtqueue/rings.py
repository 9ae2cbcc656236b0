"""A driver's memory in a memfd, and pairs of a driver and a device over it, in either form."""

from __future__ import annotations

import importlib
import itertools
import mmap
import os
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from transfuse.transports.virtqueue import layout
from transfuse.transports.virtqueue.layout import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1

NAMES = (
    "Chain",
    "DirtyLog",
    "GuestMemory",
    "Lane",
    "Mapping",
    "PackedDevice",
    "PackedDriver",
    "Region",
    "SplitDevice",
    "SplitDriver",
)
COMPILED = ("guestmem", "virtqueue", "virtdevice", "virtdriver", "lane")
PLAIN = ("chain", "memory", "lane", "packed", "split")

GUEST = 0x4000_0000
USER = 0x7F00_0000_0000
FEATURES = [
    pytest.param(
        F_VERSION_1 | indirect | event_idx | in_order | packed,
        id="-".join(
            name
            for bit, name in (
                (packed, "packed"),
                (packed ^ F_RING_PACKED, "split"),
                (indirect, "indirect"),
                (event_idx, "event"),
                (in_order, "ordered"),
            )
            if bit
        ),
    )
    for packed, indirect, event_idx, in_order in itertools.product(
        (0, F_RING_PACKED), (0, F_INDIRECT_DESC), (0, F_EVENT_IDX), (0, F_IN_ORDER)
    )
]
KINDS = [pytest.param(F_VERSION_1, id="split"), pytest.param(F_VERSION_1 | F_RING_PACKED, id="packed")]


def form_named(name: str) -> SimpleNamespace:
    """All the classes of one form."""
    if name == "plain":
        modules = [importlib.import_module(f"transfuse.transports.virtqueue.{module}") for module in PLAIN]
    else:
        modules = [pytest.importorskip(f"transfuse._native.{m}", reason="the plain form runs") for m in COMPILED]
    found = {item: getattr(module, item) for item in NAMES for module in modules if hasattr(module, item)}
    return SimpleNamespace(name=name, **found)


class Arena:
    """Guest memory in a memfd: one region, a bump allocator, and a mapping of the test's own for tampering."""

    def __init__(self, form: SimpleNamespace, size: int = 1 << 22, fd: int | None = None) -> None:
        self.form = form
        self.size = size
        if fd is None:
            fd = os.memfd_create("guest", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        self.fd = fd
        self.bytes = mmap.mmap(fd, size)
        self.memory: Any = form.GuestMemory([form.Region(GUEST, USER, size, fd, 0)])
        self._top = 0

    def room(self, size: int, alignment: int = 16) -> int:
        """Guest address of `size` new bytes."""
        at = -(-self._top // alignment) * alignment
        assert at + size <= self.size
        self._top = at + size
        return GUEST + at

    def user(self, guest: int) -> int:
        return guest - GUEST + USER

    def read(self, guest: int, size: int) -> bytes:
        return self.bytes[guest - GUEST : guest - GUEST + size]

    def write(self, guest: int, data: bytes) -> None:
        self.bytes[guest - GUEST : guest - GUEST + len(data)] = data

    def clear(self) -> None:
        """Forget what was allocated, and zero it."""
        self.bytes[:] = bytes(self.size)
        self._top = 0

    def close(self) -> None:
        self.memory = None  # which holds mappings, and those, before Python 3.13, an fd each
        self.bytes.close()
        os.close(self.fd)


class Rings:
    """The three areas of one queue, its tables, and both sides."""

    def __init__(
        self,
        arena: Arena,
        features: int,
        size: int,
        *,
        base: int | None = None,
        table_entries: int = 32,
        driver: bool = True,
        device: bool = True,
        areas: tuple[int, int, int] | None = None,
        **options: Any,
    ) -> None:
        self.arena = arena
        self.features = features
        self.packed = bool(features & F_RING_PACKED)
        self.size = size
        if areas is None:
            first, second, third = (arena.room(n) for n in layout.area_sizes(size, self.packed))
            areas = first, second, third
        self.areas = areas
        self.users = tuple(map(arena.user, areas))
        self.tables = None
        if features & F_INDIRECT_DESC and table_entries:
            self.tables = arena.room(16 * size * table_entries)
        form = arena.form
        if base is None:
            base = 0x8000_8000 if self.packed else 0
        self.base = base
        self.driver: Any = None
        if driver:
            kind = form.PackedDriver if self.packed else form.SplitDriver
            self.driver = kind(
                arena.memory, size, *self.users, features, base, tables=self.tables, table_entries=table_entries
            )
        self.device: Any = None
        if device:
            self.attach(**options)

    def attach(self, base: int | None = None, **options: Any) -> Any:
        """A new device over the ring as it is."""
        kind = self.arena.form.PackedDevice if self.packed else self.arena.form.SplitDevice
        self.device = kind(
            self.arena.memory,
            self.size,
            *self.users,
            self.features,
            self.base if base is None else base,
            **options,
        )
        return self.device

    # -- a driver by hand, for what no driver would do ----------------------------------------------------------------

    def describe(self, at: int, address: int, length: int, flags: int, following: int) -> None:
        """One descriptor: `following` is next (split) or the buffer id (packed)."""
        where = self.areas[0] + 16 * at
        if self.packed:
            self.arena.write(where, struct.pack("<QIHH", address, length, following, flags))
        else:
            self.arena.write(where, struct.pack("<QIHH", address, length, flags, following))

    def table(self, entries: list[tuple[int, int, int, int]]) -> int:
        """An indirect table of (address, length, flags, next or id); its guest address."""
        if self.packed:
            data = b"".join(struct.pack("<QIHH", a, n, i, f) for a, n, f, i in entries)
        else:
            data = b"".join(struct.pack("<QIHH", a, n, f, i) for a, n, f, i in entries)
        at = self.arena.room(len(data))
        self.arena.write(at, data)
        return at

    def offer(self, *heads: int) -> None:
        """Split: put heads on the available ring and count them."""
        avail = self.areas[1]
        (index,) = struct.unpack("<H", self.arena.read(avail + 2, 2))
        for head in heads:
            self.arena.write(avail + 4 + 2 * (index % self.size), struct.pack("<H", head))
            index = (index + 1) & 0xFFFF
        self.arena.write(avail + 2, struct.pack("<H", index))

    def chain(self, descriptors: list[tuple[int, int, int]]) -> None:
        """A chain of (address, length, flags without NEXT) from slot 0 of a fresh ring, shown to the device."""
        last = len(descriptors) - 1
        for i, (address, length, flags) in enumerate(descriptors):
            more = layout.DESC_NEXT if i < last else 0
            if self.packed:
                self.describe(i, address, length, flags | more | layout.DESC_AVAIL, 0)
            else:
                self.describe(i, address, length, flags | more, i + 1)
        if not self.packed:
            self.offer(0)

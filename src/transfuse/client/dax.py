"""Reading files through a virtio-fs device's DAX window: the server maps them, and no READ is sent.

The window is divided into ranges of 2 MiB, as Linux divides it (fs/fuse/dax.c). A range that is needed is mapped by
SETUPMAPPING and stays until another one needs its place; the one that was used longest ago goes first, by
REMOVEMAPPING. Which files can be read so is the server's to say (FUSE_ATTR_DAX). How long a file is, is known from its
attributes alone: bytes behind that are not looked at, since the last page of a mapping may have some.
"""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from transfuse.wire import flags as f
from transfuse.wire.layout import Buffer
from transfuse.wire.opcodes import Opcode
from transfuse.wire.structs import RemovemappingOne

__all__ = ["RANGE", "DaxRanges", "Window"]

RANGE = 2 << 20
NO_FH = 0xFFFF_FFFF_FFFF_FFFF
"""Linux maps inodes, not open files."""


class Window(Protocol):
    """What a transport has of a window."""

    size: int

    def at(self, at: int, length: int, writable: bool = False) -> memoryview:
        """Up to `length` mapped bytes; OSError (ENXIO) where nothing is mapped."""
        ...


class DaxRanges:
    """The ranges of one connection. `ask(opcode, nodeid, args, payload)` makes a request and raises its OSError."""

    def __init__(self, window: Window, ask: Callable[[int, int, tuple[Any, ...], Buffer], Any], order: str) -> None:
        self._window = window
        self._ask = ask
        self._pack = RemovemappingOne.codec("<" if order == "<" else ">").pack
        self._lock = threading.Lock()
        self._ranges: OrderedDict[tuple[int, int], int] = OrderedDict()
        """(nodeid, number of the range in the file) → place in the window; used longest ago first."""
        self._free = list(range(0, window.size // RANGE * RANGE, RANGE))

    def read(self, nodeid: int, size: int, offset: int, file_size: int) -> bytes:
        """Up to `size` bytes from `offset` of a file that has `file_size`. OSError when the server maps nothing."""
        end = min(offset + size, file_size)
        parts: list[Buffer] = []
        while offset < end:
            number, skip = divmod(offset, RANGE)
            length = min(end - offset, RANGE - skip)
            part = self._part(nodeid, number, skip, length)
            parts.append(part)
            offset += len(part)
            if len(part) < length:
                break  # the file was cut meanwhile
        return b"".join(parts)

    def _part(self, nodeid: int, number: int, skip: int, length: int) -> bytes:
        with self._lock:
            place = self._ranges.get((nodeid, number))
            if place is not None:
                self._ranges.move_to_end((nodeid, number))
                view = self._window.at(place + skip, length)
                if len(view) == length:
                    return bytes(view)
                # The file has grown since; mapping it anew replaces what is there.
            else:
                place = self._place()
            try:
                flags = f.FUSE_SETUPMAPPING_FLAG_READ
                args = (NO_FH, number * RANGE, RANGE, flags, place)
                self._ask(Opcode.SETUPMAPPING, nodeid, args, b"")
            except BaseException:
                self._ranges.pop((nodeid, number), None)
                self._free.append(place)
                raise
            self._ranges[nodeid, number] = place
            return bytes(self._window.at(place + skip, length))

    def _place(self) -> int:
        if self._free:
            return self._free.pop()
        if not self._ranges:
            raise OSError(errno.ENOSPC, f"a window of {self._window.size} bytes has no room for {RANGE}")
        (nodeid, _), place = self._ranges.popitem(last=False)
        self._ask(Opcode.REMOVEMAPPING, nodeid, (1,), self._pack(place, RANGE))
        return place

    def forget(self, nodeid: int) -> None:
        """The file will not be read any more: give its ranges back."""
        with self._lock:
            keys = [key for key in self._ranges if key[0] == nodeid]
            places = [self._ranges.pop(key) for key in keys]
            if places:
                self._ask(
                    Opcode.REMOVEMAPPING, nodeid, (len(places),), b"".join(self._pack(at, RANGE) for at in places)
                )
                self._free += places

    @property
    def mapped(self) -> int:
        """Ranges in use."""
        return len(self._ranges)

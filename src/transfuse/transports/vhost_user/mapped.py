"""The DAX window, seen from the front-end: pieces of the server's files, mapped where the server said.

QEMU maps them into a guest's address space. Here each piece is a mapping of its own, found by its place in the window:
nothing has to lie at a fixed address, and a piece that the server takes back lives on for whoever still reads it.

The server is not trusted. What it wants mapped must lie inside the window, over nothing that is mapped, and in a file.
A file may be shorter than the piece, as with Linux's ranges of 2 MiB; bytes behind its end, which in a mapping would be
a SIGBUS, are not in what `read` gives. A file that is truncated after it was mapped is survived only in the compiled
form (see virtqueue.memory).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from bisect import bisect_left, bisect_right
from typing import NamedTuple

__all__ = ["MAX_PIECES", "WindowView"]

MAX_PIECES = 4096
"""Most pieces mapped at a time: a window of 8 GiB in Linux's ranges of 2 MiB."""
PAGE = mmap.ALLOCATIONGRANULARITY


class _Piece(NamedTuple):
    at: int
    length: int
    writable: bool
    view: memoryview
    """What of it the file has; shorter than `length` at the file's end."""

    @property
    def end(self) -> int:
        return self.at + self.length


class WindowView:
    """The window of `size` bytes. Methods may be called from any thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._pieces: list[_Piece] = []

    # -- what the server asks for -------------------------------------------------------------------------------------

    def map(self, at: int, length: int, fd: int, offset: int, writable: bool) -> None:
        """SHMEM_MAP. The fd stays the caller's. OSError says why not."""
        if at % PAGE or length % PAGE or offset % PAGE or length <= 0 or at + length > self.size:
            raise OSError(errno.EINVAL, f"{length} bytes at {at:#x} of a window of {self.size}, from {offset:#x}")
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"a file of type {stat.S_IFMT(status.st_mode):o} in the window")
        there = max(0, min(length, status.st_size - offset))
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        view = memoryview(mmap.mmap(fd, there, access=access, offset=offset) if there else b"")
        piece = _Piece(at, length, writable, view)
        with self._lock:
            i = bisect_left(self._starts, at)
            if (i < len(self._pieces) and self._pieces[i].at < piece.end) or (i and self._pieces[i - 1].end > at):
                raise OSError(errno.EEXIST, f"{length} bytes at {at:#x} of the window overlap what is mapped")
            if len(self._pieces) >= MAX_PIECES:
                raise OSError(errno.ENOSPC, f"{MAX_PIECES} pieces are mapped")
            self._starts.insert(i, at)
            self._pieces.insert(i, piece)

    def unmap(self, at: int, length: int) -> None:
        """SHMEM_UNMAP: exactly one whole piece."""
        with self._lock:
            i = bisect_left(self._starts, at)
            if i >= len(self._pieces) or self._pieces[i][:2] != (at, length):
                raise OSError(errno.EINVAL, f"{length} bytes at {at:#x} of the window are no piece that is mapped")
            del self._starts[i], self._pieces[i]

    def clear(self) -> None:
        """The device was reset, or is gone."""
        with self._lock:
            self._starts.clear()
            self._pieces.clear()

    # -- what is in it ------------------------------------------------------------------------------------------------

    def at(self, at: int, length: int, writable: bool = False) -> memoryview:
        """Up to `length` bytes at `at`, from one piece: empty behind the end of the file. OSError if nothing is mapped
        there, or not for writing. Good for as long as it is held, whatever becomes of the window."""
        with self._lock:
            i = bisect_right(self._starts, at) - 1
            piece = self._pieces[i] if i >= 0 else None
            if piece is None or at >= piece.end:
                raise OSError(errno.ENXIO, f"nothing is mapped at {at:#x} of the window")
            if writable and not piece.writable:
                raise OSError(errno.EACCES, f"{at:#x} of the window is mapped for reading")
            skip = at - piece.at
            return piece.view[skip : skip + length]

    @property
    def mapped(self) -> int:
        """Bytes of the window that are mapped."""
        with self._lock:
            return sum(piece.length for piece in self._pieces)

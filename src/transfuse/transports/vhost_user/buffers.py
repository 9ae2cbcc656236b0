"""Room for requests and their answers in the memory that a driver shares with the device.

Three sizes of buffers, each a row of equal pieces: most requests and answers fit a page, listings and moderate reads
128 KiB, the rest holds the largest there can be. Who wants one while all are lent waits for one to come back; a larger
one does as well. What is lent for a request that is never answered stays lent, since the device may still write to it.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["SIZES", "BufferPool", "Lent", "memory_needed"]

SIZES: tuple[tuple[int, int], ...] = ((4096, 1024), (136 << 10, 64), ((1 << 20) + (128 << 10), 32))
"""(bytes, how many). The largest request has 1 MiB of payload; the largest answer likewise; never both."""


class Lent(NamedTuple):
    """A buffer: `size` bytes at a guest address."""

    at: int
    size: int
    kind: int


def memory_needed(sizes: Sequence[tuple[int, int]] = SIZES) -> int:
    """Bytes of memory that a pool takes."""
    return sum(size * count for size, count in sizes)


class BufferPool:
    """The buffers in [start, start + memory_needed()) of the guest's addresses."""

    def __init__(self, start: int, sizes: Sequence[tuple[int, int]] = SIZES) -> None:
        self._sizes = [size for size, _ in sizes]
        self._free: list[list[int]] = []
        for size, count in sizes:
            self._free.append([start + size * i for i in reversed(range(count))])
            start += size * count
        self._back = threading.Condition()
        self._closed = False

    def take(self, size: int, timeout_s: float) -> Lent:
        """A buffer of at least `size` bytes. OSError: EMSGSIZE if there never is one; ConnectionError: ETIMEDOUT when
        none came back in time, ENOTCONN once the pool is closed."""
        with self._back:
            lent = self._take(size)
            if lent is not None:
                return lent
            if size > self._sizes[-1]:
                raise OSError(errno.EMSGSIZE, f"{size} bytes for a request and its answer, at most {self._sizes[-1]}")
            deadline = time.monotonic() + timeout_s
            while (lent := self._take(size)) is None:
                if self._closed:
                    raise ConnectionError(errno.ENOTCONN, "the connection is closed")
                if not self._back.wait(max(0.0, deadline - time.monotonic())):
                    raise ConnectionAbortedError(errno.ETIMEDOUT, "the server answers nothing")
            return lent

    def _take(self, size: int) -> Lent | None:
        for kind, (room, free) in enumerate(zip(self._sizes, self._free, strict=True)):
            if room >= size and free and not self._closed:
                return Lent(free.pop(), room, kind)
        return None

    def give(self, lent: Lent) -> None:
        """Give a buffer back; the device is done with it."""
        with self._back:
            self._free[lent.kind].append(lent.at)
            self._back.notify_all()  # who waits may want another size

    def close(self) -> None:
        """Whoever waits gets ConnectionError."""
        with self._back:
            self._closed = True
            self._back.notify_all()

"""A backing file for `Opened.backing_fd` that minds with whose rights it is registered.

The kernel notes the credentials of the thread that registers a backing file, and does all passthrough I/O with them,
whoever reads or writes (Linux fs/fuse/backing.c, fuse_backing_open). A filesystem to which these rights matter gives
an object of this class instead of a plain fd; the session registers it by `registering`.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BackingFile"]

Register = Callable[[int], int]


class BackingFile(int):
    """An fd, and what has to be done around its registration: `around(register, fd)` calls register(fd) and returns
    the backing id."""

    around: Callable[[Register, int], int]

    def __new__(cls, fd: int, around: Callable[[Register, int], int]) -> BackingFile:
        self = super().__new__(cls, fd)
        self.around = around
        return self

    def registering(self, register: Register) -> int:
        """The backing id; raises what register() raises."""
        return self.around(register, int(self))

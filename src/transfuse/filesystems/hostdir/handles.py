"""What an fh stands for: an open file, or an open directory with the rest of what was read from it.

Handles are found by number in one table; a number is never used twice. The fd of a handle is an object (`HeldFd`), so
that a request which is still at work on a handle that another one releases keeps its file.
"""

from __future__ import annotations

import os
import threading

from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.hostdir.nodes import HeldFd, Node
from transfuse.fs.values import DirEntry

__all__ = ["OpenDirectory", "OpenFile"]


class OpenFile:
    """An open regular file."""

    __slots__ = ("appending", "flocked", "lock_owners", "node", "ref", "unappending")

    def __init__(self, ref: HeldFd, node: Node, appending: bool = False) -> None:
        self.ref = ref
        self.node = node
        self.appending = appending
        """Every write to `ref` goes to the end of the file."""
        self.unappending: HeldFd | None = None
        """The same without O_APPEND, once a page has to be written back in place."""
        self.flocked = False
        """A BSD lock was taken on this open file."""
        self.lock_owners: set[int] | None = None
        """Who took POSIX or OFD locks through this open file."""


class OpenDirectory:
    """An open directory: the position of its fd, and entries that were read but not yet asked for.

    What is kept is one getdents64() worth at most (32 KiB), so a directory of any size costs the same.
    """

    __slots__ = ("entries", "index", "lock", "node", "position", "ref")

    def __init__(self, ref: HeldFd, node: Node) -> None:
        self.ref = ref
        self.node = node
        self.lock = threading.Lock()
        self.entries: list[DirEntry] = []
        self.index: dict[int, int] | None = None
        self.position = 0
        """The offset after the last of `entries`."""

    def read(self, offset: int) -> list[DirEntry]:
        """Entries after `offset` (a cookie of an entry, or 0), as many as are at hand; empty at the end."""
        with self.lock:
            if offset and self.entries and offset != self.position:
                # The reply had no room for all: go on in the middle of what was read.
                index = self.index
                if index is None:
                    index = self.index = {entry.cookie: i for i, entry in enumerate(self.entries, 1)}
                at = index.get(offset)
                if at is not None:
                    return self.entries[at:]
            if offset != self.position or (not offset and self.entries):
                os.lseek(self.ref.fd, offset, os.SEEK_SET)
            entries = self.entries = syscalls.list_directory(self.ref.fd)
            self.index = None
            self.position = entries[-1].cookie if entries else offset
            return entries

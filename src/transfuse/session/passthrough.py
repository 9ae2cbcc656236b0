"""Which open files the kernel reads and writes by itself (FUSE passthrough), and when that must not be.

Linux allows an inode either cached opens or opens with one backing file, never both at a time (fs/fuse/iomode.c): a
passthrough open of an inode with cached opens fails with ETXTBSY, a cached open of one with a backing file with EINVAL,
and both reach the application as EIO. So the session remembers how each node is open and answers every further open the
same way. Our counts are never below the kernel's, since it lets go of a file before it sends RELEASE.

All opens of a node share one backing id, taken at the first and given back after the last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from transfuse.fs.backing import BackingFile

__all__ = ["PassthroughTable"]


class _OpenNode:
    __slots__ = ("backing_id", "opens")

    def __init__(self, backing_id: int) -> None:
        self.backing_id = backing_id
        """0: cached opens."""
        self.opens = 1


class PassthroughTable:
    """How every open regular file of one connection is open.

    `register(fd)` gives a backing id or raises OSError (ELOOP: stacked too deep, EPERM, EINVAL: not a regular file);
    `unregister(id)` gives it back.
    """

    def __init__(self, register: Callable[[int], int], unregister: Callable[[int], None]) -> None:
        self._register = register
        self._unregister = unregister
        self._nodes: dict[int, _OpenNode] = {}
        self._lock = threading.Lock()
        self.refused = 0
        """How often the kernel would not take a file; for statistics."""

    def opened(self, nodeid: int, backing_fd: int | None) -> int:
        """Count an open of `nodeid` and say by which backing id: 0 means through the server.

        The answer follows what the node already is; only the first open chooses.
        """
        with self._lock:
            node = self._nodes.get(nodeid)
            if node is not None:
                node.opens += 1
                return node.backing_id
            backing_id = 0
            if backing_fd is not None:
                try:
                    if isinstance(backing_fd, BackingFile):
                        backing_id = backing_fd.registering(self._register)
                    else:
                        backing_id = self._register(backing_fd)
                except OSError:
                    self.refused += 1
            self._nodes[nodeid] = _OpenNode(backing_id)
            return backing_id

    def released(self, nodeid: int) -> None:
        """Count a release; after the last one the backing id is given back."""
        with self._lock:
            node = self._nodes.get(nodeid)
            if node is None:
                return
            node.opens -= 1
            if node.opens:
                return
            del self._nodes[nodeid]
        if node.backing_id:
            self._unregister(node.backing_id)

    def clear(self) -> None:
        """Give everything back: the connection is over."""
        with self._lock:
            nodes = list(self._nodes.values())
            self._nodes.clear()
        for node in nodes:
            if node.backing_id:
                self._unregister(node.backing_id)

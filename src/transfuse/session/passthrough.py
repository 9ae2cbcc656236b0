"""Which open files the kernel reads and writes by itself (FUSE passthrough), and when that must not be.

Linux allows an inode either cached opens or opens with one backing file, never both at a time (fs/fuse/iomode.c): a
passthrough open of an inode with cached opens fails with ETXTBSY, a cached open of one with a backing file with EINVAL,
and both reach the application as EIO. So the session remembers how each node is open and answers every further open the
same way. Our counts are never below the kernel's, since it lets go of a file before it sends RELEASE.

All opens of a node share one backing id, taken at the first and given back after the last. It is not kept beyond that:
taking and giving back cost 4 µs together, and a file that was opened for writing could not be executed meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from transfuse.fs.backing import BackingFile

__all__ = ["PassthroughTable"]


class PassthroughTable:
    """How every open regular file of one connection is open.

    `register(fd)` gives a backing id or raises OSError (ELOOP: stacked too deep, EPERM, EINVAL: not a regular file);
    `unregister(id)` gives it back.
    """

    def __init__(self, register: Callable[[int], int], unregister: Callable[[int], None]) -> None:
        self._register = register
        self._unregister = unregister
        self._opens: dict[int, int] = {}
        """Open files by node."""
        self._backing: dict[int, int] = {}
        """Backing ids of the nodes that have one."""
        self._lock = threading.Lock()
        self.refused = 0
        """How often the kernel would not take a file; for statistics."""

    def opened(self, nodeid: int, backing_fd: int | None) -> int:
        """Count an open of `nodeid` and say by which backing id: 0 means through the server.

        The answer follows what the node already is; only the first open chooses.
        """
        with self._lock:
            opens = self._opens.get(nodeid, 0)
            if not opens and backing_fd is not None:
                self._take(nodeid, backing_fd)
            self._opens[nodeid] = opens + 1
            return self._backing.get(nodeid, 0)

    def _take(self, nodeid: int, backing_fd: int) -> None:
        try:
            if isinstance(backing_fd, BackingFile):
                self._backing[nodeid] = backing_fd.registering(self._register)
            else:
                self._backing[nodeid] = self._register(backing_fd)
        except OSError:
            self.refused += 1

    def released(self, nodeid: int) -> None:
        """Count a release; after the last one the backing id is given back."""
        with self._lock:
            opens = self._opens.get(nodeid, 0)
            if opens > 1:
                self._opens[nodeid] = opens - 1
                return
            self._opens.pop(nodeid, None)
            backing_id = self._backing.pop(nodeid, 0)
        if backing_id:
            self._unregister(backing_id)

    def clear(self) -> None:
        """Give everything back: the connection is over."""
        with self._lock:
            ids = list(self._backing.values())
            self._backing.clear()
            self._opens.clear()
        for backing_id in ids:
            self._unregister(backing_id)

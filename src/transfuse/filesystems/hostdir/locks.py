"""Locks of the peer's processes on files of the host, seen by the host's processes too.

A POSIX lock belongs to (file, owner). Each such pair gets an open file description of its own with OFD locks on it:
they conflict between descriptions, with POSIX locks of host processes, and merge and split as POSIX wants, all in the
kernel. Closing the description drops them all. What is recorded here is only who holds which range, to name a pid.

A waiting lock tries again whenever one of ours on the file was dropped, and every now and then because a host process
may have dropped its own: there is no blocking call that an interruption from the peer could end reliably.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable

from transfuse.filesystems.hostdir.nodes import HeldFd
from transfuse.fs.request import Request
from transfuse.fs.values import Lock

__all__ = ["PosixLocks", "Waiters", "flock"]

READ, WRITE, UNLOCK = 0, 1, 2
"""Lock.kind, as on the wire."""
_KINDS = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
_FLOCKS = (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)
_FLOCK_STRUCT = struct.Struct("@hhqqi4x")
FIRST_WAIT_S = 0.001
LONGEST_WAIT_S = 0.05
MAX_RANGES = 1 << 16
"""Most separate ranges one owner may hold in a file."""

Range = tuple[int, int, int, int]
"""kind, start, end, pid."""


class Waiters:
    """Who waits for a lock on which node."""

    def __init__(self) -> None:
        self._events: dict[int, set[threading.Event]] = {}
        self._lock = threading.Lock()

    def wake(self, nodeid: int) -> None:
        """A lock on the node was dropped."""
        if nodeid in self._events:
            with self._lock:
                for event in self._events.get(nodeid, ()):
                    event.set()

    def wait(self, req: Request, nodeid: int, attempt: Callable[[], None]) -> None:
        """Call `attempt` until it does not raise BlockingIOError. InterruptedError when the peer gives up."""
        event = threading.Event()
        with self._lock:
            self._events.setdefault(nodeid, set()).add(event)
        req.on_interrupt(event.set)
        pause_s = FIRST_WAIT_S
        try:
            while True:
                event.clear()
                if req.interrupted:
                    raise InterruptedError(errno.EINTR, "interrupted while waiting for a lock")
                try:
                    return attempt()
                except BlockingIOError:
                    if event.wait(pause_s):
                        pause_s = FIRST_WAIT_S
                    else:
                        pause_s = min(2 * pause_s, LONGEST_WAIT_S)
        finally:
            req.on_interrupt(None)
            with self._lock:
                events = self._events[nodeid]
                events.discard(event)
                if not events:
                    del self._events[nodeid]


class _Held:
    """The locks of one owner on one node."""

    __slots__ = ("ranges", "ref")

    def __init__(self, ref: HeldFd) -> None:
        self.ref = ref
        self.ranges: list[Range] = []

    def note(self, lock: Lock) -> None:
        """Record what the kernel just did: the new lock replaces what it overlaps."""
        kept: list[Range] = []
        for kind, start, end, pid in self.ranges:
            if end < lock.start or start > lock.end:
                kept.append((kind, start, end, pid))
                continue
            if start < lock.start:
                kept.append((kind, start, lock.start - 1, pid))
            if end > lock.end:
                kept.append((kind, lock.end + 1, end, pid))
        if lock.kind != UNLOCK:
            kept.append((lock.kind, lock.start, lock.end, lock.pid))
        self.ranges = kept


class PosixLocks:
    """All POSIX locks. `open_fd(nodeid, writable)` gives a new open file description of a node."""

    def __init__(self, open_fd: Callable[[int, bool], HeldFd], waiters: Waiters, limit: int) -> None:
        self._open_fd = open_fd
        self._waiters = waiters
        self._limit = limit
        self._nodes: dict[int, dict[int, _Held]] = {}
        self._count = 0
        self._lock = threading.Lock()

    def set(self, nodeid: int, owner: int, lock: Lock) -> None:
        """Take or drop a lock. BlockingIOError when it is in another's way, ENOLCK when there are too many."""
        with self._lock:
            owners = self._nodes.get(nodeid)
            held = owners.get(owner) if owners is not None else None
            if held is None:
                if lock.kind == UNLOCK:
                    return
                if self._count >= self._limit:
                    raise OSError(errno.ENOLCK, f"{self._limit} owners hold locks")
                held = _Held(self._open_fd(nodeid, lock.kind == WRITE))
                self._nodes.setdefault(nodeid, {})[owner] = held
                self._count += 1
            try:
                if len(held.ranges) >= MAX_RANGES and lock.kind != UNLOCK:
                    raise OSError(errno.ENOLCK, f"{MAX_RANGES} ranges are locked")
                fcntl.fcntl(held.ref.fd, fcntl.F_OFD_SETLK, _pack(lock))
                held.note(lock)
            except PermissionError as error:  # fcntl(2) allows EACCES for a conflict
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
            finally:
                if not held.ranges:
                    self._remove(nodeid, owner)
        if lock.kind != WRITE:  # a downgrade may let others in as well
            self._waiters.wake(nodeid)

    def _remove(self, nodeid: int, owner: int) -> None:
        owners = self._nodes[nodeid]
        del owners[owner]
        self._count -= 1
        if not owners:
            del self._nodes[nodeid]

    def get(self, nodeid: int, owner: int, lock: Lock) -> Lock | None:
        """What keeps `owner` from `lock`. The pid is 0 when a host process holds it by an OFD lock."""
        with self._lock:
            owners = self._nodes.get(nodeid, {})
            held = owners.get(owner)
            ref = held.ref if held is not None else self._open_fd(nodeid, lock.kind == WRITE)
            answer = fcntl.fcntl(ref.fd, fcntl.F_OFD_GETLK, _pack(lock))
            kind, _, start, length, pid = _FLOCK_STRUCT.unpack(answer)
            if kind == fcntl.F_UNLCK:
                return None
            end = start + length - 1 if length else Lock.MAX_END
            found = READ if kind == fcntl.F_RDLCK else WRITE
            if pid < 0:
                pid = next(
                    (
                        r[3]
                        for other, theirs in owners.items()
                        if other != owner
                        for r in theirs.ranges
                        if r[0] == found and r[1] <= end and r[2] >= start
                    ),
                    0,
                )
            return Lock(found, start, end, pid)

    def drop(self, nodeid: int, owner: int) -> None:
        """`owner` closed the file: all its locks on it are gone."""
        if nodeid not in self._nodes:
            return
        with self._lock:
            if owner not in self._nodes.get(nodeid, ()):
                return
            self._remove(nodeid, owner)
        self._waiters.wake(nodeid)

    def drop_node(self, nodeid: int) -> None:
        """The peer forgot the node."""
        if nodeid in self._nodes:
            with self._lock:
                self._count -= len(self._nodes.pop(nodeid, ()))

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._nodes.clear()
            self._count = 0


def _pack(lock: Lock) -> bytes:
    length = 0 if lock.end >= Lock.MAX_END else lock.end - lock.start + 1
    return _FLOCK_STRUCT.pack(_KINDS[lock.kind], os.SEEK_SET, lock.start, length, 0)


def flock(fd: int, kind: int) -> None:
    """flock(2) without waiting: BlockingIOError when it would."""
    fcntl.flock(fd, _FLOCKS[kind] | fcntl.LOCK_NB)

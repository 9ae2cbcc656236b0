"""Locks of the peer's processes on files of the host, seen by the host's processes too.

A POSIX lock belongs to (file, owner). Each such pair gets an open file description of its own with OFD locks on it:
they conflict between descriptions, with POSIX locks of host processes, and merge and split as POSIX wants, all in the
kernel. Closing the description drops them all. What is recorded here is only who holds which range, to name a pid.

A waiting lock tries again whenever one of ours on the file was dropped, and every now and then because a host process
may have dropped its own: there is no blocking call that an interruption from the peer could end reliably.

For OFD locks the kernel looks for no deadlocks (fs/locks.c, posix_locks_deadlock), so that is done here: who waits for
what is recorded beside who holds what, and a wait that would close a circle of this mount's owners is EDEADLK, as
fcntl(2) has it. Processes of the host are not seen in that. The peer's own OFD locks arrive as locks of one more owner
and take part, which they would not natively: FUSE does not tell the two kinds apart.
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
MAX_SEARCH = 1 << 14
"""Most ranges looked at in search of a deadlock, a millisecond's worth; beyond that a lock waits and nobody is told."""

Range = tuple[int, int, int, int]
"""kind, start, end, pid."""
Wait = tuple[int, Lock]
"""A node, and the lock that is wanted there."""


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
        """Record what the kernel just did: the new lock replaces what it overlaps and grows by what it touches."""
        start, end = lock.start, lock.end
        kept: list[Range] = []
        for held in self.ranges:
            kind, first, last, pid = held
            if last < lock.start - 1 or first > lock.end + 1:
                kept.append(held)
            elif kind == lock.kind and pid == lock.pid:
                start, end = min(start, first), max(end, last)
            else:
                if first < lock.start:
                    kept.append((kind, first, min(last, lock.start - 1), pid))
                if last > lock.end:
                    kept.append((kind, max(first, lock.end + 1), last, pid))
        if lock.kind != UNLOCK:
            kept.append((lock.kind, start, end, lock.pid))
        self.ranges = kept

    def bars(self, lock: Lock) -> bool:
        """Is one of these locks in the way of `lock` of another owner?"""
        return any(
            start <= lock.end and end >= lock.start and (kind == WRITE or lock.kind == WRITE)
            for kind, start, end, _ in self.ranges
        )


class PosixLocks:
    """All POSIX locks. `open_fd(nodeid, writable)` gives a new open file description of a node."""

    def __init__(self, open_fd: Callable[[int, bool], HeldFd], waiters: Waiters, limit: int) -> None:
        self._open_fd = open_fd
        self._waiters = waiters
        self._limit = limit
        self._nodes: dict[int, dict[int, _Held]] = {}
        self._waits: dict[int, list[Wait]] = {}
        """What each owner waits for: more than one thing if it has threads. Each wait has a thread of the server's,
        which bounds them."""
        self._count = 0
        self._lock = threading.Lock()

    def wait(self, req: Request, nodeid: int, owner: int, lock: Lock) -> None:
        """As set(), but wait for those in the way. EDEADLK when they wait for `owner` themselves; InterruptedError."""
        wait = (nodeid, lock)
        try:
            self._waiters.wait(req, nodeid, lambda: self._set_or_wait(owner, wait))
        finally:
            if owner in self._waits:
                with self._lock:
                    self._end_wait(owner, wait)

    def _set_or_wait(self, owner: int, wait: Wait) -> None:
        nodeid, lock = wait
        with self._lock:
            try:
                self._set(nodeid, owner, lock)
            except BlockingIOError:
                # Asked at every attempt, as those in the way change while a lock waits; and in one step with recording
                # the wait, so that of those who make a circle only the last is told.
                stuck = self._closes_circle(owner, wait)
                if not stuck:
                    waits = self._waits.setdefault(owner, [])
                    if not any(known is wait for known in waits):
                        waits.append(wait)
                    raise
                self._end_wait(owner, wait)
            else:
                stuck = False
        if stuck:  # raised here, where it does not keep the other error's frames and with them the fd of the locks
            raise OSError(errno.EDEADLK, "waiting for the lock would be a deadlock")
        if lock.kind != WRITE:
            self._waiters.wake(nodeid)

    def _end_wait(self, owner: int, wait: Wait) -> None:
        waits = [known for known in self._waits.get(owner, ()) if known is not wait]
        if waits:
            self._waits[owner] = waits
        else:
            self._waits.pop(owner, None)

    def _closes_circle(self, owner: int, wait: Wait) -> bool:
        """Does one of those in the way of `wait` wait for `owner`, directly or by way of others?"""
        seen = {owner}
        ahead = [(owner, wait)]
        looked_at = 0
        while ahead:
            waiting, (nodeid, wanted) = ahead.pop()
            for other, held in self._nodes.get(nodeid, {}).items():
                looked_at += len(held.ranges)
                if looked_at > MAX_SEARCH:
                    return False
                if other == waiting or not held.bars(wanted):
                    continue
                if other == owner:
                    return True
                if other not in seen:
                    seen.add(other)
                    ahead += [(other, theirs) for theirs in self._waits.get(other, ())]
        return False

    def set(self, nodeid: int, owner: int, lock: Lock) -> None:
        """Take or drop a lock. BlockingIOError when it is in another's way, ENOLCK when there are too many."""
        with self._lock:
            self._set(nodeid, owner, lock)
        if lock.kind != WRITE:  # a downgrade may let others in as well
            self._waiters.wake(nodeid)

    def _set(self, nodeid: int, owner: int, lock: Lock) -> None:
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
        """Drop everything held. Who waits is interrupted by the session."""
        with self._lock:
            self._nodes.clear()
            self._count = 0


def _pack(lock: Lock) -> bytes:
    length = 0 if lock.end >= Lock.MAX_END else lock.end - lock.start + 1
    return _FLOCK_STRUCT.pack(_KINDS[lock.kind], os.SEEK_SET, lock.start, length, 0)


def flock(fd: int, kind: int) -> None:
    """flock(2) without waiting: BlockingIOError when it would."""
    fcntl.flock(fd, _FLOCKS[kind] | fcntl.LOCK_NB)

"""Advisory locks: POSIX byte ranges with split and merge, BSD locks of whole files, waiting, and deadlock detection.

An owner is whatever number the peer names it by (a process for POSIX locks, an open file for BSD locks); the two kinds
never meet. A waiter sleeps on one condition variable that every release wakes, and leaves when its request is
interrupted. Before it sleeps its place in the waits-for graph is looked at: a circle is EDEADLK (fcntl(2)), for POSIX
locks only, as in Linux.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from transfuse.fs.request import Request
from transfuse.fs.values import Lock

__all__ = ["F_RDLCK", "F_UNLCK", "F_WRLCK", "MAX_LOCKS", "LockTable"]

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2

MAX_LOCKS = 1 << 16
"""Most locks of one filesystem (ENOLCK beyond)."""
MAX_WAITERS = 1 << 10
"""Most requests that may wait at a time (ENOLCK beyond): each of them holds a thread."""
WAKE_S = 5.0
"""A waiter looks again at least this often, so that a lost wake-up is a delay and never a hang."""


class _Held:
    """One lock in force: `owner` holds `kind` on the bytes from `start` to `end`, both included."""

    __slots__ = ("end", "kind", "owner", "pid", "start")

    def __init__(self, owner: int, kind: int, start: int, end: int, pid: int) -> None:
        self.owner = owner
        self.kind = kind
        self.start = start
        self.end = end
        self.pid = pid


class LockTable:
    """All locks of one filesystem, by inode number."""

    def __init__(self, max_locks: int = MAX_LOCKS) -> None:
        self._changed = threading.Condition()
        self._ranges: dict[int, list[_Held]] = {}
        self._whole: dict[int, dict[int, int]] = {}
        self._waits: dict[int, list[set[int]]] = {}
        """Waiting POSIX owner -> the owners in its way, once for each of its threads that wait."""
        self._waiters = 0
        self._count = 0
        self._max = max_locks
        self._epoch = 0

    def __len__(self) -> int:
        return self._count

    # -- POSIX ---------------------------------------------------------------------------------------------------------

    def conflict(self, ino: int, owner: int, lock: Lock) -> Lock | None:
        """The first lock that keeps `owner` from `lock`."""
        with self._changed:
            for held in self._ranges.get(ino, ()):
                if self._conflict(held, owner, lock):
                    return Lock(held.kind, held.start, held.end, held.pid)
            return None

    @staticmethod
    def _conflict(held: _Held, owner: int, lock: Lock) -> bool:
        return (
            held.owner != owner
            and held.start <= lock.end
            and lock.start <= held.end
            and (held.kind == F_WRLCK or lock.kind == F_WRLCK)
        )

    def acquire(self, req: Request, ino: int, owner: int, lock: Lock, wait: bool) -> None:
        """Take, change or drop (F_UNLCK) a range. EAGAIN when it is taken and `wait` is False; waiting ends with
        EDEADLK or InterruptedError."""
        if lock.kind not in (F_RDLCK, F_WRLCK, F_UNLCK) or not 0 <= lock.start <= lock.end:
            raise OSError(errno.EINVAL, f"lock {lock!r}")
        with self._changed:
            if lock.kind != F_UNLCK:

                def blockers() -> set[int]:
                    return {held.owner for held in self._ranges.get(ino, ()) if self._conflict(held, owner, lock)}

                self._wait_for(req, blockers, owner if wait else None)
            self._put(ino, owner, lock)

    def _put(self, ino: int, owner: int, lock: Lock) -> None:
        """Replace what `owner` holds in the range; neighbours of the same kind become one."""
        ranges = self._ranges.get(ino, [])
        start, end, kind = lock.start, lock.end, lock.kind
        kept: list[_Held] = []
        for held in ranges:
            if held.owner != owner or held.end < start - 1 or held.start > end + 1:
                kept.append(held)
            elif held.kind == kind:
                start, end = min(start, held.start), max(end, held.end)
            else:
                if held.start < start:
                    kept.append(_Held(owner, held.kind, held.start, min(held.end, start - 1), held.pid))
                if held.end > end:
                    kept.append(_Held(owner, held.kind, max(held.start, end + 1), held.end, held.pid))
        if kind != F_UNLCK:
            kept.append(_Held(owner, kind, start, end, lock.pid))
        kept.sort(key=lambda held: held.start)
        count = self._count + len(kept) - len(ranges)
        if count > self._max and count > self._count:
            raise OSError(errno.ENOLCK, f"{self._count} locks are held")
        self._count = count
        if kept:
            self._ranges[ino] = kept
        else:
            self._ranges.pop(ino, None)
        self._changed.notify_all()

    def drop_owner(self, ino: int, owner: int) -> None:
        """close(2): the POSIX locks of `owner` on this file end."""
        if ino in self._ranges:  # no lock is taken for files that have none: this is on the way of every close
            with self._changed:
                self._put(ino, owner, Lock(F_UNLCK, 0, Lock.MAX_END))

    # -- BSD -----------------------------------------------------------------------------------------------------------

    def flock(self, req: Request, ino: int, owner: int, kind: int, wait: bool) -> None:
        """Take, change or drop the lock on the whole file. Changing first gives up the old one, as flock(2) warns."""
        if kind not in (F_RDLCK, F_WRLCK, F_UNLCK):
            raise OSError(errno.EINVAL, f"lock kind {kind}")
        with self._changed:
            old = self._whole.get(ino, {}).get(owner)
            if old == kind:
                return
            if old is not None:
                self._drop_whole(ino, owner)
            if kind == F_UNLCK:
                return

            def blockers() -> set[int]:
                held = self._whole.get(ino, {})
                return {other for other, k in held.items() if other != owner and F_WRLCK in (k, kind)}

            self._wait_for(req, blockers, None, wait=wait)
            if self._count >= self._max:
                raise OSError(errno.ENOLCK, f"{self._count} locks are held")
            self._whole.setdefault(ino, {})[owner] = kind
            self._count += 1

    def drop_flock(self, ino: int, owner: int) -> None:
        """The open file `owner` was closed."""
        if ino in self._whole:
            with self._changed:
                self._drop_whole(ino, owner)

    def _drop_whole(self, ino: int, owner: int) -> None:
        held = self._whole.get(ino, {})
        if held.pop(owner, None) is not None:
            self._count -= 1
            if not held:
                del self._whole[ino]
            self._changed.notify_all()

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _wait_for(
        self, req: Request, blockers: Callable[[], set[int]], owner: int | None, wait: bool | None = None
    ) -> None:
        """Return once nobody is in the way. `owner` takes part in deadlock detection; None does not."""
        may_wait = owner is not None if wait is None else wait
        in_way = blockers()
        if not in_way:
            return
        if not may_wait:
            raise BlockingIOError(errno.EAGAIN, "the lock is taken")
        if self._waiters >= MAX_WAITERS:
            raise OSError(errno.ENOLCK, f"{self._waiters} requests wait for locks")
        epoch = self._epoch
        self._waiters += 1
        mine: set[int] = set()
        if owner is not None:
            self._waits.setdefault(owner, []).append(mine)
        try:
            while in_way:
                mine.clear()
                mine |= in_way
                if owner is not None and self._closes_circle(owner, in_way):
                    raise OSError(errno.EDEADLK, "waiting would be a deadlock")
                self._sleep(req)
                if req.interrupted or epoch != self._epoch:
                    raise InterruptedError(errno.EINTR, "gave up waiting for the lock")
                in_way = blockers()
        finally:
            self._waiters -= 1
            if owner is not None:
                self._waits[owner] = [other for other in self._waits[owner] if other is not mine]
                if not self._waits[owner]:
                    del self._waits[owner]

    def _sleep(self, req: Request) -> None:
        req.on_interrupt(self._wake)
        try:
            # Interrupted before the callback was in place: nobody will notify.
            if not req.interrupted:
                self._changed.wait(WAKE_S)
        finally:
            req.on_interrupt(None)

    def _wake(self) -> None:
        with self._changed:  # reentrant: on_interrupt calls at once, in this thread, if the request is interrupted
            self._changed.notify_all()

    def _closes_circle(self, owner: int, in_way: set[int]) -> bool:
        """Does one of those in the way wait for `owner`, directly or by way of others? No more steps than waiters."""
        seen: set[int] = set()
        ahead = list(in_way)
        while ahead:
            other = ahead.pop()
            if other == owner:
                return True
            if other not in seen:
                seen.add(other)
                for theirs in self._waits.get(other, ()):
                    ahead.extend(theirs)
        return False

    def clear(self) -> None:
        """The peer is gone: no lock is held, whoever waits gives up."""
        with self._changed:
            self._ranges.clear()
            self._whole.clear()
            self._count = 0
            self._epoch += 1
            self._changed.notify_all()

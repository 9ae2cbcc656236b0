"""One filesystem for several connections at a time.

A filesystem counts for one peer: when its connection ends, `destroyed()` drops every lookup and every open file there
is. Where several clients come and go, each gets a view of its own (`Shared.view`), which keeps that client's accounts
and settles them when it leaves, however it leaves: locks are dropped, files closed, lookups given back. The filesystem
itself sees one connection, from the first client's coming to the last one's going.

Lock owners are numbers that each client makes up by itself, so they are told apart by the view's number in the bits
above the 64 of the wire. Nodes and handles are the filesystem's own and mean the same to all; the accounts keep one
client from giving back what another holds, they do not hide one's files from the other.

What needs a single peer is not offered: write-back caching (the size of a file would be the other client's to know) and
notifications (a client that does not read would hold up the others), so `connection.notify` is None. What a client
remembers of another's doings ends with its timeouts.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from copy import copy
from dataclasses import replace
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Protocol, TypeVar

from transfuse.fs.base import Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import AttrChanges, Entry, Lock, Opened
from transfuse.fs.wrap import Wrapper, then

__all__ = ["Shared", "View"]

log = logging.getLogger("transfuse.fs")

MAX_OPEN = 1 << 20
"""Most files and directories one client may have open (ENFILE): filesystems without handles count none themselves."""
MAX_LOCKED = 1 << 16
"""Most files of one client with POSIX locks, counted for each owner (ENOLCK)."""
F_UNLCK = 2

T = TypeVar("T")
U = TypeVar("U")
Run = Callable[[Coroutine[Any, Any, None]], None]
Settlement = Iterator[Callable[[], Any]]


class _Then(Protocol):
    def __call__(self, found: T | Awaitable[T], use: Callable[[T], U]) -> U: ...


def _now(found: T | Awaitable[T], use: Callable[[T], U]) -> U:
    """`then` where nothing is a coroutine: asking that of every result takes a microsecond or two."""
    return use(found)  # type: ignore[arg-type]


class Shared:
    """`inner`, for as many connections as there are views.

    `run` schedules a coroutine (an executor's run_coroutine). It must be given, and be the one by which all the
    connections' requests run, if a method of `inner` is a coroutine function (TypeError): there is one event loop then.
    """

    def __init__(self, inner: Filesystem | PathFilesystem, run: Run | None = None) -> None:
        self.inner = inner if isinstance(inner, Filesystem) else inner.as_filesystem()
        later = sorted(name for name in self.inner.operations() if iscoroutinefunction(getattr(self.inner, name)))
        if later and run is None:
            raise TypeError(f"{type(self.inner).__name__}.{later[0]}() is a coroutine: all connections need one loop")
        self.run = run if later else None
        self._lock = threading.Condition()
        self._count = 0
        self._order = ""
        self._up: set[View] = set()

    def view(self) -> View:
        """The filesystem as one connection serves it."""
        with self._lock:
            self._count += 1
            return View(self, self._count)

    def enter(self, view: View, connection: Any) -> None:
        """A client has come. OSError when its byte order is not that of those who are here."""
        with self._lock:
            if not self._up:
                joint = copy(connection)
                joint.notify = None
                self.inner.mounted(joint)
                self._order = connection.order
            elif connection.order != self._order:
                raise OSError(errno.EPROTO, "the other clients have another byte order")
            self._up.add(view)

    def leave(self, view: View) -> None:
        """A client's accounts are settled."""
        with self._lock:
            if view in self._up:
                self._up.discard(view)
                try:
                    if not self._up:
                        self.inner.destroyed()
                finally:
                    self._lock.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until every client's accounts are settled; False when the time is up. Only coroutines take time."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._up, timeout_s)


class View(Wrapper):
    """A filesystem as one of several clients has it. Made by `Shared.view`."""

    def __init__(self, shared: Shared, number: int) -> None:
        super().__init__(shared.inner)
        self.features = replace(self.features, writeback_cache=False)
        self.keeps_state = False
        self._shared = shared
        self._then: _Then = then if shared.run is not None else _now
        self._owners = number << 64
        self._accounts = threading.Lock()
        self._gone = False
        self._lookups: dict[int, int] = {}
        """nodeid -> lookups this client holds."""
        self._open: dict[tuple[int, int, bool], tuple[int, int]] = {}
        """(nodeid, fh, is a directory) -> how often it is open, and its flags."""
        self._opened = 0
        self._locked: dict[tuple[int, int], int] = {}
        """(nodeid, owner) -> a handle that POSIX locks were taken through."""
        self._flocked: dict[tuple[int, int], int] = {}
        """(nodeid, fh) -> the owner of its BSD lock."""
        has = self.operations()
        self._forgets = "forget" in has
        self._releases = {False: "release" in has, True: "releasedir" in has}

    # -- life ---------------------------------------------------------------------------------------------------------

    def mounted(self, connection: Any) -> None:
        """One more client."""
        with self._accounts:
            self._gone = False
        self._shared.enter(self, connection)

    def destroyed(self) -> None:
        """Settle this client's accounts."""
        with self._accounts:
            self._gone = True
            accounts = self._lookups, self._open, self._locked, self._flocked
            self._lookups, self._open, self._locked, self._flocked = {}, {}, {}, {}
            self._opened = 0
        settlement = self._settlement(*accounts)
        run = self._shared.run
        if run is None:
            failure = self._settle(settlement)
            self._shared.leave(self)
            if failure is not None:
                raise failure
            return

        async def settle_and_leave() -> None:
            try:
                await self._settle_later(settlement)
            finally:
                self._shared.leave(self)

        try:
            run(settle_and_leave())
        except OSError as error:
            log.error("a client's accounts are left open: %s", error)
            self._shared.leave(self)

    def _settlement(
        self,
        lookups: dict[int, int],
        opens: dict[tuple[int, int, bool], tuple[int, int]],
        locked: dict[tuple[int, int], int],
        flocked: dict[tuple[int, int], int],
    ) -> Settlement:
        """The calls that give back what these accounts say, locks first and lookups last."""
        inner, req = self.inner, Request()
        for (nodeid, owner), fh in locked.items():
            yield partial(inner.setlk, req, nodeid, fh, owner, Lock(F_UNLCK, 0, Lock.MAX_END), False)
        for (nodeid, fh, directory), (count, flags) in opens.items():
            locker = flocked.get((nodeid, fh))
            for _ in range(count if self._releases[directory] else 0):
                if directory:
                    yield partial(inner.releasedir, req, nodeid, fh, flags)
                else:
                    yield partial(inner.release, req, nodeid, fh, flags, locker or 0, locker is not None)
        for nodeid, nlookup in lookups.items() if self._forgets else ():
            yield partial(inner.forget, req, nodeid, nlookup)

    @staticmethod
    def _settle(settlement: Settlement) -> Exception | None:
        """Make all calls, whatever becomes of each; the first failure that is the filesystem's bug is returned."""
        failure = None
        for call in settlement:
            try:
                call()
            except OSError as error:
                log.debug("settling a client's accounts: %s", error)
            except Exception as error:  # noqa: BLE001  the other accounts are settled all the same
                failure = failure or error
        return failure

    @staticmethod
    async def _settle_later(settlement: Settlement) -> None:
        for call in settlement:
            try:
                found = call()
                if isawaitable(found):
                    await found
            except OSError as error:
                log.debug("settling a client's accounts: %s", error)
            except Exception as error:
                log.error("settling a client's accounts", exc_info=error)

    # -- accounts -----------------------------------------------------------------------------------------------------

    def _late(self, settlement: Settlement) -> None:
        """What came of a request that outlived its client is given back at once."""
        run = self._shared.run
        if run is None:
            failure = self._settle(settlement)
            if failure is not None:
                raise failure
        else:
            run(self._settle_later(settlement))

    def _entered(self, entry: Entry) -> Entry:
        nodeid = entry.nodeid
        if entry.attr is None or not nodeid:
            return entry
        with self._accounts:
            if not self._gone:
                self._lookups[nodeid] = self._lookups.get(nodeid, 0) + 1
                return entry
        self._late(self._settlement({nodeid: 1}, {}, {}, {}))
        return entry

    def _opens(self, nodeid: int, flags: int, directory: bool, opened: Opened) -> Opened:
        key = nodeid, opened.fh, directory
        with self._accounts:
            if not self._gone:
                count, first = self._open.get(key, (0, flags))
                self._open[key] = count + 1, first
                self._opened += 1
                return opened
        self._late(self._settlement({}, {key: (1, flags)}, {}, {}))
        return opened

    def _room_to_open(self) -> None:
        if self._opened >= MAX_OPEN:
            raise OSError(errno.ENFILE, f"{MAX_OPEN} files are open")

    def _closes(self, nodeid: int, fh: int, directory: bool) -> None:
        key = nodeid, fh, directory
        with self._accounts:
            count, flags = self._open.get(key, (0, 0))
            if not count:
                raise OSError(errno.EBADF, f"handle {fh} of node {nodeid} is not open")
            self._opened -= 1
            if count > 1:
                self._open[key] = count - 1, flags
            else:
                del self._open[key]

    # -- names --------------------------------------------------------------------------------------------------------

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        return self._then(self.inner.lookup(req, parent, name), self._entered)

    def symlink(self, req: Request, parent: int, name: bytes, target: bytes) -> Entry:
        return self._then(self.inner.symlink(req, parent, name, target), self._entered)

    def mknod(self, req: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        return self._then(self.inner.mknod(req, parent, name, mode, rdev, umask), self._entered)

    def mkdir(self, req: Request, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        return self._then(self.inner.mkdir(req, parent, name, mode, umask), self._entered)

    def link(self, req: Request, nodeid: int, newparent: int, newname: bytes) -> Entry:
        return self._then(self.inner.link(req, nodeid, newparent, newname), self._entered)

    def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        """At most what this client was given."""
        with self._accounts:
            held = self._lookups.get(nodeid, 0)
            nlookup = min(nlookup, held)
            if nlookup < held:
                self._lookups[nodeid] = held - nlookup
            else:
                self._lookups.pop(nodeid, None)
        if nlookup:
            return self.inner.forget(req, nodeid, nlookup)
        return None

    # -- open files ---------------------------------------------------------------------------------------------------

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        self._room_to_open()
        opened = self.inner.open(req, nodeid, flags)
        return self._then(opened, lambda opened: self._opens(nodeid, flags, False, opened))

    def opendir(self, req: Request, nodeid: int, flags: int) -> Opened:
        self._room_to_open()
        opened = self.inner.opendir(req, nodeid, flags)
        return self._then(opened, lambda opened: self._opens(nodeid, flags, True, opened))

    def _created(self, flags: int, made: tuple[Entry, Opened]) -> tuple[Entry, Opened]:
        entry, opened = made
        # In this order: who comes too late closes the file before it is forgotten.
        self._opens(entry.nodeid, flags, False, opened)
        self._entered(entry)
        return made

    def create(
        self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int
    ) -> tuple[Entry, Opened]:
        self._room_to_open()
        made = self.inner.create(req, parent, name, mode, umask, flags)
        return self._then(made, lambda made: self._created(flags, made))

    def tmpfile(self, req: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        self._room_to_open()
        return self._then(self.inner.tmpfile(req, parent, mode, umask, flags), lambda made: self._created(flags, made))

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """EBADF for what this client has not open."""
        self._closes(nodeid, fh, False)
        owner = self._flocked.pop((nodeid, fh), None)
        if owner is None:
            owner = self._owners | lock_owner
        return self.inner.release(req, nodeid, fh, flags, owner, flock_unlock)

    def releasedir(self, req: Request, nodeid: int, fh: int, flags: int) -> None:
        """EBADF for what this client has not open."""
        self._closes(nodeid, fh, True)
        return self.inner.releasedir(req, nodeid, fh, flags)

    # -- lock owners --------------------------------------------------------------------------------------------------

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Any:
        if changes.lock_owner is not None:
            changes = replace(changes, lock_owner=self._owners | changes.lock_owner)
        return self.inner.setattr(req, nodeid, changes, fh)

    def flush(self, req: Request, nodeid: int, fh: int, lock_owner: int) -> None:
        owner = self._owners | lock_owner
        self._locked.pop((nodeid, owner), None)
        return self.inner.flush(req, nodeid, fh, owner)

    def getlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        return self.inner.getlk(req, nodeid, fh, self._owners | owner, lock)

    def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock, wait: bool) -> None:
        owner |= self._owners
        key = nodeid, owner
        if lock.kind != F_UNLCK and len(self._locked) >= MAX_LOCKED and key not in self._locked:
            raise OSError(errno.ENOLCK, f"{MAX_LOCKED} files are locked")

        def noted(found: None) -> None:
            with self._accounts:
                if not self._gone:
                    if lock.kind != F_UNLCK:
                        self._locked[key] = fh
                    elif not lock.start and lock.end >= Lock.MAX_END:
                        self._locked.pop(key, None)
                    return
            if lock.kind != F_UNLCK:
                self._late(self._settlement({}, {}, {key: fh}, {}))

        call: Callable[..., Any] = self.inner.setlk
        return self._then(call(req, nodeid, fh, owner, lock, wait), noted)

    def flock(self, req: Request, nodeid: int, fh: int, owner: int, kind: int, wait: bool) -> None:
        owner |= self._owners

        def noted(found: None) -> None:
            with self._accounts:
                if kind == F_UNLCK:
                    self._flocked.pop((nodeid, fh), None)
                    return
                if (nodeid, fh, False) in self._open:
                    self._flocked[nodeid, fh] = owner
                    return
            # It would end with its handle, which was closed meanwhile.
            self._late(iter([partial(self.inner.flock, req, nodeid, fh, owner, F_UNLCK, False)]))

        call: Callable[..., Any] = self.inner.flock
        return self._then(call(req, nodeid, fh, owner, kind, wait), noted)

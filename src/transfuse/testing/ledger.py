"""Ledger: a wrapper that keeps the books of what a peer owes, and reports what is still open at the end.

Lookups given and forgotten, files and directories opened and released, requests begun and ended. A request about a node
that the peer has given back already, a forget of more than was given, and a handle released twice are noted as they
happen. Only the books are checked: what a filesystem does with its nodes is its own affair.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import ROOT_ID, Entry, Opened
from transfuse.fs.wrap import CREATE_RESULTS, ENTRY_RESULTS, NODE_ARGUMENTS, Wrapper, then

__all__ = ["Ledger"]

MAX_MISTAKES = 100
"""Mistakes noted in words; beyond it they are only counted by nobody, the test has failed anyway."""


class Ledger(Wrapper):
    """Counts what goes through to `inner`. Thread-safe."""

    def __init__(self, inner: Filesystem | PathFilesystem) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.lookups: Counter[int] = Counter()
        """nodeid -> lookups the peer holds."""
        self.handles: Counter[tuple[str, int, int]] = Counter()
        """("file" or "directory", nodeid, fh) -> how often it is open."""
        self.running: Counter[str] = Counter()
        """Operation -> requests under way."""
        self.mistakes: list[str] = []
        self.requests = 0

    def _mistake(self, text: str) -> None:
        if len(self.mistakes) < MAX_MISTAKES:
            self.mistakes.append(text)

    def begin(self, name: str, nodeids: Iterable[int]) -> None:
        """A request comes in."""
        with self._lock:
            self.requests += 1
            self.running[name] += 1
            for nodeid in nodeids:
                if nodeid != ROOT_ID and not self.lookups[nodeid]:
                    self._mistake(f"{name} of nodeid {nodeid}, of which the peer holds no lookup")

    def end(self, name: str) -> None:
        """A request is answered."""
        with self._lock:
            self.running[name] -= 1

    def entered(self, entry: Entry) -> Entry:
        """An Entry goes out."""
        if entry.attr is not None and entry.nodeid != ROOT_ID:
            with self._lock:
                self.lookups[entry.nodeid] += 1
        return entry

    def opened(self, kind: str, nodeid: int, opened: Opened) -> Opened:
        """A handle goes out."""
        with self._lock:
            self.handles[kind, nodeid, opened.fh] += 1
        return opened

    def _released(self, kind: str, nodeid: int, fh: int) -> None:
        with self._lock:
            if not self.handles[kind, nodeid, fh]:
                self._mistake(f"release of {kind} handle {fh} of nodeid {nodeid}, which is not open")
            self.handles[kind, nodeid, fh] -= 1

    def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        """Paid back."""
        with self._lock:
            if nodeid != ROOT_ID:
                if nlookup > self.lookups[nodeid]:
                    self._mistake(f"forget of {nlookup} lookups of nodeid {nodeid}: {self.lookups[nodeid]} were given")
                self.lookups[nodeid] = max(0, self.lookups[nodeid] - nlookup)
        self.inner.forget(req, nodeid, nlookup)

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """The file is closed."""
        self._released("file", nodeid, fh)
        return self.inner.release(req, nodeid, fh, flags, lock_owner, flock_unlock)

    def releasedir(self, req: Request, nodeid: int, fh: int, flags: int) -> None:
        """The directory is closed."""
        self._released("directory", nodeid, fh)
        return self.inner.releasedir(req, nodeid, fh, flags)

    def _open(self) -> list[tuple[str, int, int]]:
        """Handles that are open, of the kinds whose end the filesystem hears of."""
        has = self.operations()
        heard = {kind for kind, name in (("file", "release"), ("directory", "releasedir")) if name in has}
        if self.features.no_open:  # no RELEASE either, not even after CREATE
            heard -= {"file"}
        return [handle for handle, count in self.handles.items() if count > 0 and handle[0] in heard]

    def open_handles(self) -> int:
        """How many files and directories are open."""
        with self._lock:
            return len(self._open())

    def held_lookups(self) -> int:
        """How many lookups the peer has not given back; 0 if the filesystem does not want them back."""
        if "forget" not in self.operations():
            return 0  # nobody counts them down
        with self._lock:
            return self.lookups.total()

    def problems(self, *, lookups: bool = True) -> list[str]:
        """What is wrong now that everything should be over. `lookups` False: the peer need not give them back (Linux
        does not when it unmounts)."""
        with self._lock:
            found = list(self.mistakes)
            found += [f"{count} × {name} is not answered" for name, count in self.running.items() if count]
            found += [f"{kind} handle {fh} of nodeid {nodeid} is still open" for kind, nodeid, fh in self._open()]
            if lookups and "forget" in self.operations():
                held = self.lookups.items()
                found += [f"{count} lookups of nodeid {nodeid} are not given back" for nodeid, count in held if count]
        return found


def _counted(name: str) -> Callable[..., Any]:
    positions = [position - 2 for position in NODE_ARGUMENTS[name]]

    def call(self: Ledger, req: Request, *args: Any) -> Any:
        self.begin(name, [args[position] for position in positions])
        try:
            found = getattr(self.inner, name)(req, *args)
            if name in ENTRY_RESULTS:
                return then(found, self.entered)
            if name in CREATE_RESULTS:
                return then(found, lambda made: (self.entered(made[0]), self.opened("file", made[0].nodeid, made[1])))
            if name in ("open", "opendir"):
                kind = "file" if name == "open" else "directory"
                return then(found, lambda opened: self.opened(kind, args[0], opened))
            return found
        finally:
            self.end(name)

    call.__name__ = name
    call.__doc__ = getattr(Filesystem, name).__doc__
    return call


for _name in OPERATION_NAMES - vars(Ledger).keys():
    setattr(Ledger, _name, _counted(_name))

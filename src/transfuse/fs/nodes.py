"""Numbers for objects that a peer keeps: nodeids with their lookup counts, and file handles.

A peer is told a nodeid in every Entry and owes one forget for each. Until it has paid them all the number must keep
naming the same object, whatever happens to the object's names: a rename, an unlink while open and a second hard link
change nothing here, because no name is known here. The tables own the bookkeeping only; what an object is, and when it
may be thrown away for good, is its filesystem's business.

Numbers are never reused within the life of a table, so a request that was on its way while its node was forgotten gets
ESTALE (EBADF for a handle) and never another file.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from transfuse.fs.values import ROOT_ID

__all__ = ["MAX_HANDLES", "MAX_NODES", "HandleTable", "NodeTable"]

_log = logging.getLogger(__name__)

MAX_NODES = 1 << 24
"""Most nodes that one peer may hold (ENFILE beyond). Linux keeps as many as its dentry cache does."""
MAX_HANDLES = 1 << 20
"""Most files and directories that one peer may have open (ENFILE beyond): Linux's fs.nr_open."""

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)


class _Node(Generic[T]):
    __slots__ = ("generation", "nlookup", "object")

    def __init__(self, obj: T, generation: int, nlookup: int) -> None:
        self.object = obj
        self.generation = generation
        self.nlookup = nlookup


class NodeTable(Generic[H]):
    """nodeid <-> object, and how many lookups of it the peer holds.

    The same object (by ==) is always the same node. nodeids are numbered from 2 unless `remember` is told one, such as
    an inode number. The root is node 1 from the start and can't be forgotten.
    """

    def __init__(self, root: H, max_nodes: int = MAX_NODES) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[int, _Node[H]] = {ROOT_ID: _Node(root, 0, 1)}
        self._ids: dict[H, int] = {root: ROOT_ID}
        self._root = root
        self._last = int(ROOT_ID)
        self._births = 0
        self._max = max_nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._nodes

    def get(self, nodeid: int) -> H:
        """The object of `nodeid`; ESTALE if the peer never got it or has forgotten it."""
        try:
            return self._nodes[nodeid].object
        except KeyError:
            raise OSError(errno.ESTALE, f"nodeid {nodeid} is not known") from None

    def find(self, obj: H) -> int | None:
        """The nodeid of an object that the peer knows, or None."""
        return self._ids.get(obj)

    def nlookup(self, nodeid: int) -> int:
        """How many lookups the peer still has to give back (0: not known)."""
        node = self._nodes.get(nodeid)
        return node.nlookup if node is not None else 0

    def remember(self, obj: H, nodeid: int | None = None) -> tuple[int, int]:
        """Count one lookup of `obj`: (nodeid, generation) for the Entry.

        `nodeid` fixes the number of an object that is not known yet. If it was someone else's in the past, the
        generation tells the two apart. A number that someone else has now is EEXIST; a full table is ENFILE.
        """
        with self._lock:
            known = self._ids.get(obj)
            if known is not None:
                node = self._nodes[known]
                node.nlookup += 1
                return known, node.generation
            if len(self._nodes) >= self._max:
                raise OSError(errno.ENFILE, f"the peer holds {len(self._nodes)} nodes")
            if nodeid is None:
                self._last += 1
                while self._last in self._nodes:
                    self._last += 1
                nodeid = self._last
            elif nodeid in self._nodes:
                raise OSError(errno.EEXIST, f"nodeid {nodeid} is another object")
            # Counting births needs no memory of the dead: a number that comes back has another generation for sure.
            self._births += 1
            self._nodes[nodeid] = _Node(obj, self._births, 1)
            self._ids[obj] = nodeid
            return nodeid, self._births

    def forget(self, nodeid: int, nlookup: int) -> H | None:
        """Take `nlookup` lookups back; the object if those were the last, and it is no longer known.

        More than the peer was given, or an unknown nodeid, is the peer's mistake: it is logged and does no harm.
        """
        with self._lock:
            node = self._nodes.get(nodeid)
            if node is None:
                _log.warning("forget of %d lookups of unknown nodeid %d", nlookup, nodeid)
                return None
            if nlookup > node.nlookup:
                _log.warning("forget of %d lookups of nodeid %d, which has %d", nlookup, nodeid, node.nlookup)
                nlookup = node.nlookup
            node.nlookup -= nlookup
            if node.nlookup > 0 or nodeid == ROOT_ID:
                node.nlookup = max(node.nlookup, 1 if nodeid == ROOT_ID else 0)
                return None
            del self._nodes[nodeid]
            del self._ids[node.object]
            return node.object

    def forget_all(self) -> list[H]:
        """The peer is gone: the objects it still held (without the root), which is all that is left."""
        with self._lock:
            left = [node.object for nodeid, node in self._nodes.items() if nodeid != ROOT_ID]
            root = self._nodes[ROOT_ID]
            root.nlookup = 1
            self._nodes = {int(ROOT_ID): root}
            self._ids = {self._root: int(ROOT_ID)}
            return left


class HandleTable(Generic[T]):
    """fh <-> what is open. Numbers start at 1, so that 0 can mean "no handle"."""

    def __init__(self, max_handles: int = MAX_HANDLES) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, T] = {}
        self._last = 0
        self._max = max_handles

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[T]:
        with self._lock:
            return iter(list(self._open.values()))

    def add(self, obj: T) -> int:
        """A new fh for `obj`; ENFILE when too many are open."""
        with self._lock:
            if len(self._open) >= self._max:
                raise OSError(errno.ENFILE, f"{len(self._open)} handles are open")
            self._last += 1
            self._open[self._last] = obj
            return self._last

    def get(self, fh: int) -> T:
        """What `fh` is; EBADF if it is not open."""
        try:
            return self._open[fh]
        except KeyError:
            raise OSError(errno.EBADF, f"handle {fh} is not open") from None

    def remove(self, fh: int) -> T:
        """Close `fh` and return what it was; EBADF if it is not open."""
        with self._lock:
            try:
                return self._open.pop(fh)
            except KeyError:
                raise OSError(errno.EBADF, f"handle {fh} is not open") from None

    def clear(self) -> list[T]:
        """Close all and return what was open."""
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
            return left

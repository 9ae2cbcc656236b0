"""Every inode the peer knows: its nodeid, its identity, and the cheapest way back to it.

A node is found again by one of three things:
- `ref`, an fd held open (O_PATH, or the fd of an open file), of which at most `bound` are kept;
- a file handle (`place` while `parent` is None), where the server may open those;
- a hint (`parent` and the name in it in `place`).
Whatever hint or handle leads to is compared with the node's identity before it is used, so a stale one can only fail.
A node with neither place nor ref is lost (ESTALE), and so is one whose hint fails in all of its directory, unless it is
open; one without place keeps its ref ("pinned"), as the name is gone. Being looked up by another name finds it again.

An fd is an object, closed when the last reference to it goes: a thread that has taken `node.ref` may use its number
until it lets go, whatever other threads close, evict or forget meanwhile.

Nodeids are counted up and never used twice, so the generation is always 0. The root is not found by identity: a bind
mount of the source inside itself is another node.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import threading
from collections import OrderedDict

from transfuse.filesystems.hostdir.syscalls import KIND_SHIFT, Key, take_handle
from transfuse.fs.values import ROOT_ID, Attr

__all__ = ["HeldFd", "Node", "NodeTable", "default_bound", "stale"]

MAX_HELD = 1000
"""Most O_PATH fds held for nodes, however many the process may open."""
MIN_HELD = 16
DIRECTORY = 4
"""S_IFDIR >> 12."""


def default_bound() -> int:
    """How many fds to hold for nodes: a quarter of what the process may open, within limits."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_HELD if soft == resource.RLIM_INFINITY else max(MIN_HELD, min(MAX_HELD, soft // 4))


def stale(nodeid: int) -> OSError:
    """The node cannot be found (any more)."""
    return OSError(errno.ESTALE, f"node {nodeid} is not known, or no longer there")


class HeldFd:
    """An open fd that is closed when nobody holds this object any more."""

    __slots__ = ("fd", "used")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.used = True
        """Used since eviction last passed by."""

    def __del__(self) -> None:
        os.close(self.fd)


class Node:
    """One inode. 80 bytes, beside nodeid (32), key (48), name or handle (48 to 64) and its share of two dicts (84)."""

    __slots__ = ("key", "nlookup", "nodeid", "parent", "place", "ref")

    def __init__(self, nodeid: int, key: Key, parent: Node | None, place: bytes | None) -> None:
        self.nodeid = nodeid
        self.key = key
        self.nlookup = 1
        self.parent = parent
        self.place = place
        self.ref: HeldFd | None = None

    @property
    def kind(self) -> int:
        """File type, st_mode >> 12."""
        key = self.key
        return ((key[1] if isinstance(key, tuple) else key) >> KIND_SHIFT) & 15


class NodeTable:
    """The nodes of one served directory. Every method may be called from any thread.

    `handles`: file handles work here. `trust_names`: nobody else renames in the source, so hints are as good.
    """

    def __init__(self, root: HeldFd, bound: int, handles: bool, trust_names: bool) -> None:
        self.bound = bound
        self.handles = handles
        self.keep_handles = handles and not trust_names
        self.root = Node(ROOT_ID, DIRECTORY << KIND_SHIFT, None, None)
        self.root.ref = root
        self.by_id: dict[int, Node] = {ROOT_ID: self.root}
        self.by_key: dict[Key, Node] = {}
        self.held: OrderedDict[Node, None] = OrderedDict()
        """Nodes with an O_PATH fd that may be evicted, oldest first."""
        self.pinned: OrderedDict[Node, None] = OrderedDict()
        """Nodes that only their fd leads to."""
        self.seen: dict[int, int] = {}
        """By nodeid: what a file looked like when it was last opened."""
        self.lock = threading.Lock()
        self._ids = itertools.count(ROOT_ID + 1)

    def remember(self, attr: Attr, key: Key, parent: Node, name: bytes, parent_fd: int) -> Node:
        """Count one more lookup of the inode that was just seen as `name` in `parent`, making the node if it is new.

        A new directory gets its file handle at once, so that a rename on the host does not lose it; files live on
        their hint until an fd of theirs is evicted.
        """
        with self.lock:
            node = self.by_key.get(key)
            if node is not None:
                node.nlookup += 1
                if node.parent is not None:
                    node.parent = parent
                    node.place = name
                elif node.place is None:
                    self._found_again(node, parent, name)
                return node
            node = Node(next(self._ids), key, parent, name)
            self.by_id[node.nodeid] = node
            self.by_key[key] = node
        if attr.mode >> 12 == DIRECTORY and self.keep_handles and key.__class__ is int:
            handle = take_handle(parent_fd, name)
            if handle is not None:
                with self.lock:
                    node.place, node.parent = handle, None
        return node

    def _found_again(self, node: Node, parent: Node, name: bytes) -> None:
        node.parent, node.place = parent, name
        if node in self.pinned:
            del self.pinned[node]
            self.held[node] = None
            self._shrink()

    def add_nameless(self, key: Key, ref: HeldFd) -> Node:
        """A node for an inode that has no name yet (O_TMPFILE); `ref` leads to it."""
        with self.lock:
            node = Node(next(self._ids), key, None, None)
            node.ref = ref
            self.by_id[node.nodeid] = node
            self.by_key[key] = node
        return node

    def forget(self, nodeid: int, nlookup: int) -> Node | None:
        """Take back `nlookup` lookups; the node, when that was all of them."""
        with self.lock:
            node = self.by_id.get(nodeid)
            if node is None or node is self.root:
                return None
            node.nlookup -= nlookup
            if node.nlookup > 0:
                return None
            del self.by_id[nodeid]
            if self.by_key.get(node.key) is node:
                del self.by_key[node.key]
            self.seen.pop(nodeid, None)
            if node.ref is not None:
                self.held.pop(node, None)
                self.pinned.pop(node, None)
                node.ref = None
        return node

    def hold(self, node: Node, ref: HeldFd) -> HeldFd:
        """Keep `ref` as the node's fd, unless it has one by now; the one that is kept."""
        with self.lock:
            if node.ref is not None:
                return node.ref
            node.ref = ref
            self.held[node] = None
            if len(self.held) > self.bound:
                self._shrink()
        return ref

    def lend(self, node: Node, ref: HeldFd) -> None:
        """Let the fd of an open file serve as the node's, as long as it has no other."""
        if node.ref is None:
            with self.lock:
                if node.ref is None:
                    node.ref = ref

    def take_back(self, node: Node, ref: HeldFd) -> bool:
        """The open file with `ref` is closed. False when nothing else leads to the node: then `pin` another fd."""
        with self.lock:
            if node.ref is ref:
                if node.place is None and self.by_id.get(node.nodeid) is node:
                    return False
                node.ref = None
        return True

    def pin(self, node: Node, ref: HeldFd, gone: bool) -> None:
        """The name that led to the node is removed: only `ref` does now. `gone`: it was the last name."""
        with self.lock:
            if self.by_id.get(node.nodeid) is not node:
                return
            node.ref = ref
            node.parent = node.place = None
            self.held.pop(node, None)
            self.pinned[node] = None
            if gone and self.by_key.get(node.key) is node:
                del self.by_key[node.key]
            while len(self.pinned) > self.bound:
                lost, _ = self.pinned.popitem(last=False)
                lost.ref = None

    def place_by_handle(self, node: Node, handle: bytes) -> None:
        """From now on `handle` leads to the node."""
        with self.lock:
            node.parent, node.place = None, handle

    def moved(self, key: Key, parent: Node, name: bytes) -> None:
        """The inode has this name now."""
        with self.lock:
            node = self.by_key.get(key)
            if node is not None and node.parent is not None:
                node.parent, node.place = parent, name

    def make_room(self) -> bool:
        """The process ran out of fds: give up most of those held. False when there was nothing to give up."""
        with self.lock:
            before, self.bound = self.bound, min(self.bound, len(self.held) // 4)
            count = len(self.held)
            self._shrink()
            self.bound = before
            return len(self.held) < count

    def _shrink(self) -> None:
        """Close the fds that were not used for longest (second chance), down to the bound."""
        held = self.held
        chances = len(held)
        while len(held) > self.bound:
            node, _ = held.popitem(last=False)
            ref = node.ref
            if ref is None:
                continue
            if ref.used and chances > 0:
                chances -= 1
                ref.used = False
                held[node] = None
                continue
            if self.keep_handles and node.parent is not None and node.key.__class__ is int:
                handle = take_handle(ref.fd, b"")
                if handle is not None:
                    node.parent, node.place = None, handle
            node.ref = None

    def clear(self) -> None:
        """Forget everything but the root."""
        with self.lock:
            for node in self.by_id.values():
                if node is not self.root:
                    node.ref = None
            for node in self.held:
                node.ref = None
            self.by_id = {ROOT_ID: self.root}
            self.by_key.clear()
            self.seen.clear()
            self.held.clear()
            self.pinned.clear()

"""What the client may believe: nodes with attributes, names in directories, and the lookups owed back to the server.

The rules are Linux's (fs/fuse/dir.c, inode.c). A name is valid until its timeout, unless the epoch moved on; attributes
until theirs, unless something was done to the file since. An answer that was on its way while the file changed is not
believed (`version`). Negative names are kept only where the server gave them a timeout.

Lifetime: a `Node` lives while anything holds it: a cached name, an open file, an operation under way. When the last of
them lets go, CPython's reference counting ends it, and its lookups go to the forget queue. That is the kernel's rule
(inode eviction) with nothing to keep by hand. `__del__` may run anywhere, so it only appends to a deque.

Names are in one least-recently-used list of `max_names`; a cached name holds its directory, as a dentry does.
"""

from __future__ import annotations

import stat as stat_bits
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from transfuse.errors import RemoteProtocolError
from transfuse.session.answers import ENTRY_ATTR, check_attr
from transfuse.wire.flags import FUSE_ROOT_ID

__all__ = ["DEFAULT_MAX_NAMES", "Cache", "Name", "Node"]

DEFAULT_MAX_NAMES = 65_536
"""Most names remembered; each is some 400 bytes with its node."""
NS = 1_000_000_000
NEVER = float("-inf")
"""An expiry that has passed, whatever the clock."""
_MODE = 9


class Node:
    """One inode of the server's."""

    __slots__ = (
        "__weakref__",
        "_forgets",
        "advise_plus",
        "attr",
        "attr_expiry",
        "from_plus",
        "generation",
        "link_target",
        "names",
        "nlookup",
        "nodeid",
        "version",
    )

    def __init__(self, nodeid: int, generation: int, attr: tuple[Any, ...], forgets: deque[tuple[int, int]]) -> None:
        self.nodeid = nodeid
        self.generation = generation
        self.attr = attr
        """The sixteen values of fuse_attr, as last seen."""
        self.attr_expiry = NEVER
        self.version = 0
        """Cache.version when attributes were last applied or made invalid."""
        self.nlookup = 0
        self.names: dict[bytes, Name] = {}
        """Cached names, of a directory."""
        self.link_target: bytes | None = None
        self.advise_plus = False
        """A listing of this directory had better be READDIRPLUS: its names are being looked up."""
        self.from_plus = False
        """Came from READDIRPLUS and was not asked for since."""
        self._forgets = forgets

    @property
    def mode(self) -> int:
        """st_mode as last seen; its file type never changes."""
        mode: int = self.attr[_MODE]
        return mode

    @property
    def is_dir(self) -> bool:
        """Is this a directory?"""
        return bool(self.attr[_MODE] & 0o170000 == stat_bits.S_IFDIR)

    @property
    def is_symlink(self) -> bool:
        """Is this a symbolic link?"""
        return bool(self.attr[_MODE] & 0o170000 == stat_bits.S_IFLNK)

    def __del__(self) -> None:
        if self.nlookup:
            self._forgets.append((self.nodeid, self.nlookup))

    def __repr__(self) -> str:
        return f"Node({self.nodeid}, nlookup={self.nlookup})"


class Name:
    """One remembered name of a directory: a node, or that there is none."""

    __slots__ = ("epoch", "expiry", "name", "node", "parent")

    def __init__(self, parent: Node, name: bytes, node: Node | None, expiry: float, epoch: int) -> None:
        self.parent = parent
        self.name = name
        self.node = node
        self.expiry = expiry
        self.epoch = epoch


class Cache:
    """The caches of one connection, shared by all its users."""

    def __init__(self, clock: Callable[[], float], max_names: int = DEFAULT_MAX_NAMES) -> None:
        self.clock = clock
        self.max_names = max_names
        self.epoch = 0
        self.version = 1
        """Moves with every change of an attribute; sampled before a request whose answer brings attributes."""
        self.forgets: deque[tuple[int, int]] = deque()
        """Lookups to give back: (nodeid, nlookup)."""
        self.lock = threading.RLock()
        self._nodes: WeakValueDictionary[int, Node] = WeakValueDictionary()
        self._lru: OrderedDict[Name, None] = OrderedDict()
        # The root is known without a lookup and owes none.
        self.root = Node(FUSE_ROOT_ID, 0, (FUSE_ROOT_ID, *(0,) * 8, stat_bits.S_IFDIR, *(0,) * 6), self.forgets)
        self._nodes[FUSE_ROOT_ID] = self.root

    # -- nodes --------------------------------------------------------------------------------------------------------

    def node(self, nodeid: int) -> Node | None:
        """The node of this number, if it is known."""
        return self._nodes.get(nodeid)

    @property
    def known_nodes(self) -> int:
        """How many nodes are alive."""
        return len(self._nodes)

    def instantiate(self, entry: tuple[Any, ...], sample: int, kind: int | None = None) -> Node:
        """The node of an entry_out (flattened), counting one lookup.

        `sample` is `version` from before the request. `kind`: the only file type allowed (S_IFDIR for MKDIR). An entry
        that can't be raises RemoteProtocolError, and its lookup is given back.
        """
        nodeid, generation = entry[0], entry[1]
        try:
            if nodeid in (0, FUSE_ROOT_ID):
                raise RemoteProtocolError(f"entry_out.nodeid at offset 16: {nodeid}")
            check_attr(entry, ENTRY_ATTR, "entry_out.attr")
            mode = entry[ENTRY_ATTR + _MODE]
            if kind is not None and mode & 0o170000 != kind:
                raise RemoteProtocolError(f"entry_out.attr.mode: {mode:#o} where type {kind:#o} was made")
        except RemoteProtocolError:
            if nodeid not in (0, FUSE_ROOT_ID):
                self.forgets.append((nodeid, 1))
            raise
        attr = entry[ENTRY_ATTR : ENTRY_ATTR + 16]
        with self.lock:
            node = self._nodes.get(nodeid)
            if node is None or node.generation != generation or (node.mode ^ mode) & 0o170000:
                # A number that names another file now: whoever holds the old node keeps it, with its own lookups.
                node = Node(nodeid, generation, attr, self.forgets)
                node.version = sample
                self._nodes[nodeid] = node
            node.nlookup += 1
        self.apply_attr(node, attr, entry[3], entry[5], sample)
        return node

    def apply_attr(self, node: Node, attr: tuple[Any, ...], valid: int, valid_nsec: int, sample: int) -> None:
        """Believe `attr` of `node` for valid seconds, unless something happened to it since `sample`."""
        with self.lock:
            if node.version > sample:
                return
            # A change of size or time means another target, too: links are cached like file data.
            if node.link_target is not None and attr[1:9] != node.attr[1:9]:
                node.link_target = None
            node.attr = attr
            node.attr_expiry = self.clock() + valid + min(valid_nsec, NS - 1) / NS
            self.version += 1
            node.version = self.version

    def attr_is_valid(self, node: Node) -> bool:
        """May the attributes be shown without asking?"""
        return self.clock() < node.attr_expiry

    def invalidate_attr(self, node: Node) -> None:
        """Something happened to the file: ask before its attributes are shown again."""
        with self.lock:
            node.attr_expiry = NEVER
            self.version += 1
            node.version = self.version

    # -- names --------------------------------------------------------------------------------------------------------

    def find(self, parent: Node, name: bytes) -> Name | None:
        """A remembered name that is still valid."""
        found = parent.names.get(name)
        if found is None or found.epoch < self.epoch or self.clock() >= found.expiry:
            return None
        try:
            self._lru.move_to_end(found)
        except KeyError:
            pass  # evicted by another thread just now; it was valid when it was found
        return found

    def remember(self, parent: Node, name: bytes, node: Node | None, valid: int, valid_nsec: int) -> None:
        """Remember a name (None: that there is none) for valid seconds. 0 seconds remember a node just as well: it
        stays alive, and the next use asks whether it is still the same, as with Linux."""
        if node is None and not valid and not valid_nsec:
            self.drop(parent, name)
        else:
            self.remember_until(parent, name, node, self.clock() + valid + min(valid_nsec, NS - 1) / NS)

    def remember_until(self, parent: Node, name: bytes, node: Node | None, expiry: float | None) -> None:
        """Remember a name until a time of the clock; None: ask at its next use."""
        if expiry is None:
            expiry = NEVER
        with self.lock:
            found = parent.names.get(name)
            if found is not None and found.node is node is not None:
                found.expiry, found.epoch = expiry, self.epoch
                self._lru.move_to_end(found)
                return
            self._drop(found)
            made = Name(parent, name, node, expiry, self.epoch)
            parent.names[name] = made
            self._lru[made] = None
            while len(self._lru) > self.max_names:
                self._drop(next(iter(self._lru)))

    def _drop(self, name: Name | None) -> None:
        if name is not None:
            self._lru.pop(name, None)
            if name.parent.names.get(name.name) is name:
                del name.parent.names[name.name]

    def drop(self, parent: Node, name: bytes) -> bool:
        """Forget a name; False if it was not remembered."""
        with self.lock:
            found = parent.names.get(name)
            self._drop(found)
            return found is not None

    def expire(self, parent: Node, name: bytes) -> bool:
        """End a name's timeout: the next use asks again. False if it was not remembered."""
        with self.lock:
            found = parent.names.get(name)
            if found is not None:
                found.expiry = NEVER
            return found is not None

    def drop_children(self, node: Node) -> None:
        """Forget every name in a directory (it was removed)."""
        with self.lock:
            for name in list(node.names.values()):
                self._drop(name)

    def drop_aliases(self, nodeids: frozenset[int]) -> None:
        """Forget every name of these nodes (PRUNE), with all that is below them."""
        with self.lock:
            for name in [name for name in self._lru if name.node is not None and name.node.nodeid in nodeids]:
                if name.node is not None:
                    self.drop_children(name.node)
                self._drop(name)

    def clear(self) -> None:
        """Forget everything; nodes that nobody uses go to the forget queue."""
        with self.lock:
            for name in list(self._lru):
                self._drop(name)
            self.root.attr_expiry = NEVER

    def surrender(self) -> None:
        """Forget everything and give back every lookup, even of nodes that somebody still holds."""
        self.clear()
        with self.lock:
            for node in list(self._nodes.values()):
                nlookup, node.nlookup = node.nlookup, 0
                if nlookup:
                    self.forgets.append((node.nodeid, nlookup))

    def __len__(self) -> int:
        """How many names are remembered."""
        return len(self._lru)

"""Which path a node has: the tree of names behind PathFilesystem's adapter.

A node may have several names (hard links), one, or none (unlinked, but still open or remembered). A name belongs to a
directory node, so a renamed directory takes everything below it along without a word. A node stays while the peer holds
lookups of it, while it is open, or while it has children in the table, in whichever order these end.

The table knows only what the peer was told. It is not thread-safe by itself: the adapter holds one lock around it.
"""

from __future__ import annotations

import errno
import logging

from transfuse.fs.nodes import MAX_NODES
from transfuse.fs.values import ROOT_ID

__all__ = ["PathNode", "PathNodes"]

_log = logging.getLogger(__name__)

MAX_DEPTH = 4096
"""Most components of a path: more than PATH_MAX allows, and an end to any loop of our own making."""


class PathNode:
    """A file or directory that the peer knows."""

    __slots__ = ("children", "handles", "ino", "is_dir", "last_path", "names", "nlookup", "nodeid")

    def __init__(self, nodeid: int, ino: int, is_dir: bool) -> None:
        self.nodeid = nodeid
        self.ino = ino
        self.is_dir = is_dir
        self.nlookup = 0
        self.names: list[tuple[PathNode, str]] = []
        self.children: dict[str, PathNode] = {}
        self.handles: dict[int, tuple[int, int]] = {}
        """Open handles: how often each was given out, and the flags of its (last) open."""
        self.last_path = "/"


class PathNodes:
    """nodeid -> node, and the names of nodes."""

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self._max = max_nodes
        self.root = PathNode(int(ROOT_ID), 0, True)
        self._nodes: dict[int, PathNode] = {self.root.nodeid: self.root}
        self._by_ino: dict[int, PathNode] = {}
        self._last = self.root.nodeid

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, nodeid: int) -> PathNode:
        """ESTALE if the peer never got it or has forgotten it."""
        try:
            return self._nodes[nodeid]
        except KeyError:
            raise OSError(errno.ESTALE, f"nodeid {nodeid} is not known") from None

    def path(self, node: PathNode) -> str | None:
        """Where the node is; None if it, or a directory above it, has no name any more."""
        parts: list[str] = []
        at = node
        while at is not self.root:
            if not at.names or len(parts) >= MAX_DEPTH:
                return None
            at, name = at.names[0]
            parts.append(name)
        found = node.last_path = "/" + "/".join(reversed(parts))
        return found

    def child(self, parent: PathNode, name: str) -> str:
        """The path of a name in a directory; ENOENT if the directory is gone."""
        above = self.path(parent)
        if above is None:
            raise FileNotFoundError(errno.ENOENT, "the directory was removed")
        return above + name if parent is self.root else f"{above}/{name}"

    def remember(self, parent: PathNode, name: str, ino: int, is_dir: bool) -> PathNode:
        """The node of a name that was found or made, with one more lookup.

        `ino` 0: not known, and every name is a node of its own. Else files with the same number are one node; a name
        that now has another number, or kind, is another node than before.
        """
        there = parent.children.get(name)
        if there is not None and (there.is_dir != is_dir or (ino and there.ino and there.ino != ino)):
            self.detach(parent, name)
            there = None
        if there is None:
            if ino and not is_dir:
                there = self._by_ino.get(ino)
            if there is None:
                there = self._new(ino, is_dir)
            parent.children[name] = there
            there.names.append((parent, name))
        there.nlookup += 1
        return there

    def _new(self, ino: int, is_dir: bool) -> PathNode:
        if len(self._nodes) >= self._max:
            raise OSError(errno.ENFILE, f"the peer holds {len(self._nodes)} nodes")
        self._last += 1
        node = PathNode(self._last, ino, is_dir)
        self._nodes[node.nodeid] = node
        if ino and not is_dir:
            self._by_ino[ino] = node
        return node

    def add_nameless(self, ino: int, path: str) -> PathNode:
        """A node, with one lookup, for a file that has no name yet. It shows `path` until it gets one."""
        node = self._new(0, False)
        node.ino = ino  # not found by its number: with its last handle that may be someone else's
        node.nlookup = 1
        node.last_path = path
        return node

    def attach(self, node: PathNode, parent: PathNode, name: str) -> None:
        """A node without a name gets one, and one more lookup; whatever had the name loses it."""
        self.detach(parent, name)
        parent.children[name] = node
        node.names.append((parent, name))
        node.nlookup += 1
        if node.ino:
            self._by_ino.setdefault(node.ino, node)

    def opened(self, node: PathNode, fh: int, flags: int) -> None:
        """The node is open by this handle."""
        count, _ = node.handles.get(fh, (0, 0))
        node.handles[fh] = count + 1, flags

    def closed(self, node: PathNode, fh: int) -> None:
        """A handle is closed; one that is not known is nothing to us."""
        count, flags = node.handles.pop(fh, (0, 0))
        if count > 1:
            node.handles[fh] = count - 1, flags
        self._settle(node)

    def open_handles(self) -> list[tuple[PathNode, int, int]]:
        """Node, handle and flags of every open there is."""
        return [
            (node, fh, flags)
            for node in self._nodes.values()
            for fh, (count, flags) in node.handles.items()
            for _ in range(count)
        ]

    def detach(self, parent: PathNode, name: str) -> None:
        """The name is gone. The node lives on as long as the peer holds it."""
        node = parent.children.pop(name, None)
        if node is not None:
            self.path(node)  # notes last_path
            node.names.remove((parent, name))
            if not node.names and node.ino and self._by_ino.get(node.ino) is node:
                # The inode number may be someone else's tomorrow.
                del self._by_ino[node.ino]
            self._settle(node)
            self._settle(parent)

    def move(self, parent: PathNode, name: str, newparent: PathNode, newname: str) -> None:
        """Follow a rename; whatever had the new name loses it."""
        node = parent.children.get(name)
        if node is not None and newparent.children.get(newname) is node:
            return  # two names of one file: rename(2) does nothing
        self.detach(newparent, newname)
        if node is not None:
            del parent.children[name]
            node.names[node.names.index((parent, name))] = (newparent, newname)
            newparent.children[newname] = node
            self._settle(parent)

    def exchange(self, parent: PathNode, name: str, newparent: PathNode, newname: str) -> None:
        """Follow a RENAME_EXCHANGE."""
        first, second = parent.children.pop(name, None), newparent.children.pop(newname, None)
        # Both are looked up before either changes: with one file under both names, either list has both entries.
        moves = [
            (node, was, becomes)
            for node, was, becomes in (
                (first, (parent, name), (newparent, newname)),
                (second, (newparent, newname), (parent, name)),
            )
            if node is not None
        ]
        for node, was, _ in moves:
            node.names.remove(was)
        for node, _, becomes in moves:
            node.names.append(becomes)
            becomes[0].children[becomes[1]] = node

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Take lookups back; more than there are is the peer's mistake, logged and harmless."""
        node = self._nodes.get(nodeid)
        if node is self.root:
            return
        if node is None or nlookup > node.nlookup:
            held = node.nlookup if node is not None else 0
            _log.warning("forget of %d lookups of nodeid %d, which has %d", nlookup, nodeid, held)
        if node is not None:
            node.nlookup = max(0, node.nlookup - nlookup)
            self._settle(node)

    def _settle(self, node: PathNode) -> None:
        """Drop the node if nothing holds it, and then its parents likewise."""
        ahead = [node]
        while ahead:
            node = ahead.pop()
            if node.nlookup or node.children or node.handles or node is self.root or node.nodeid not in self._nodes:
                continue
            del self._nodes[node.nodeid]
            if node.ino and self._by_ino.get(node.ino) is node:
                del self._by_ino[node.ino]
            for parent, name in node.names:
                del parent.children[name]
                ahead.append(parent)
            node.names = []

    def clear(self) -> None:
        """The peer is gone."""
        self.root.children.clear()
        self.root.handles.clear()
        self._nodes = {self.root.nodeid: self.root}
        self._by_ino.clear()

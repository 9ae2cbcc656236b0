"""What the peer knows of a host directory, written down and read back by the next server.

For the same machine a node is written with its identity and the way to it (file handle, or name in its directory), and
nothing is looked at when it is read back: identity is compared when the node is first used, as always. What only an fd
led to (a removed file that is still open, for one) is lost with the process that held it.

For another machine (`portable`) nodes are written as names only, since inode numbers, times of birth and handles mean
nothing there, and handles from elsewhere could open any file of the host. Each name is then looked up from the source
down, with the rules of every other step, and must be of the same type.

Records, little-endian, in pieces of up to 64 KiB: nodes (kind 1 or 2), each after its directory, then open files (kind
3), then one of kind 0. A directory that the peer has forgotten, but that still leads to a node, is one with no lookups
and a number of its own.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import struct
from collections.abc import Iterable, Iterator

from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.hostdir.core import DIRECTORY, REGULAR, Core
from transfuse.filesystems.hostdir.handles import OpenDirectory, OpenFile
from transfuse.filesystems.hostdir.nodes import HeldFd, Node
from transfuse.filesystems.hostdir.syscalls import KIND_SHIFT, PROC_FD, Key, take_handle
from transfuse.fs.values import ROOT_ID

__all__ = ["EPOCH_SHIFT", "MAX_EPOCH", "State"]

EPOCH_SHIFT = 48
"""Numbers of one epoch: more than any server gives out."""
MAX_EPOCH = 0xFFFF
PIECE = 1 << 16
MAX_DEPTH = 4096
"""Most directories above one another that are followed; hints that went stale can form a circle."""
END, NODE, NODE_BY_HANDLE, OPEN = 0, 1, 2, 3
FORGOTTEN = 1 << 63
"""In a nodeid: a directory that the peer does not know (any more)."""
LOST = 0
"""As directory of a node: nothing leads to it."""
MAX_NODEID = FORGOTTEN - 1

_NODE = struct.Struct("<BQQQQHH")
"""kind, nodeid, lookups, directory, device + 1 (0: the source's own), lengths of identity and of name or handle."""
_OPEN = struct.Struct("<BQQI")
"""kind, fh, nodeid, open flags."""
KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_NOATIME | os.O_DIRECTORY


class State(Core):
    """Saving and loading."""

    keeps_state = True

    def renumber(self, epoch: int) -> None:
        """Count from a number that is larger than all of earlier epochs."""
        if not 0 <= epoch <= MAX_EPOCH:
            raise ValueError(f"epoch {epoch}, at most {MAX_EPOCH}")
        self.nodes._ids = itertools.count((epoch << EPOCH_SHIFT) + ROOT_ID + 1)
        self.fhs = itertools.count((epoch << EPOCH_SHIFT) + 1)

    # -- out ----------------------------------------------------------------------------------------------------------

    def export_state(self, portable: bool) -> Iterable[bytes]:
        """The node table and the open files."""
        piece = bytearray()
        for record in itertools.chain(self._node_records(portable), self._open_records(), (bytes([END]),)):
            if len(piece) + len(record) > PIECE:
                yield bytes(piece)
                piece.clear()
            piece += record
        yield bytes(piece)

    def _node_records(self, portable: bool) -> Iterator[bytes]:
        numbers: dict[Node, int] = {self.nodes.root: int(ROOT_ID)}
        forgotten = itertools.count(FORGOTTEN + 1)
        for node in list(self.nodes.by_id.values()):
            way = [node]  # up to a directory that has been written
            while way[-1] not in numbers and len(way) < MAX_DEPTH:
                above = self._directory_of(way[-1], portable)
                if above is None:
                    break
                way.append(above)
            for at in reversed(way):
                if at not in numbers:
                    known = self.nodes.by_id.get(at.nodeid) is at
                    numbers[at] = at.nodeid if known else next(forgotten)
                    yield self._node_record(at, numbers, known, portable)

    def _directory_of(self, node: Node, portable: bool) -> Node | None:
        if portable and node.parent is None:
            self._find_name(node)
        return node.parent

    def _find_name(self, node: Node) -> None:
        """Give a node that a handle or only an fd leads to its name, step by step from the source; it stays as it is if
        it has none there."""
        try:
            ref = self._ref(node.nodeid) if self.nodes.by_id.get(node.nodeid) is node else self._hold(node)
            path = os.readlink(PROC_FD % ref.fd)
            top = os.readlink(PROC_FD % self.root.fd).rstrip(b"/") + b"/"
        except OSError:
            return
        if not path.startswith(top):
            return
        parent = self.nodes.root
        names = path[len(top) :].split(b"/")
        for name in names[:-1]:
            held = parent.ref or self._hold(parent)
            try:
                found = self.probe(held.fd, name)
            except OSError:
                return
            if found is None or found[0].mode >> 12 != DIRECTORY:
                return
            known = self.nodes.by_key.get(found[1])
            if known is None:
                known = Node(0, found[1], parent, name)
            parent = known
        held = parent.ref or self._hold(parent)
        found = self.probe(held.fd, names[-1])
        if found is not None and found[1] == node.key:  # " (deleted)" behind the path of a removed file is no name
            node.parent, node.place = parent, names[-1]

    def _node_record(self, node: Node, numbers: dict[Node, int], known: bool, portable: bool) -> bytes:
        kind, place = NODE, node.place
        parent = LOST if node.parent is None else numbers.get(node.parent, LOST)
        if parent == LOST:
            kind = NODE_BY_HANDLE
            if portable or node.parent is not None:
                place = None
            elif place is None and self.nodes.handles and node.ref is not None:
                place = take_handle(node.ref.fd, b"")
        device, number = node.key if isinstance(node.key, tuple) else (-1, node.key)
        if portable:
            device, number = -1, node.kind << KIND_SHIFT
        identity = number.to_bytes((number.bit_length() + 7) // 8, "little")
        place = place or b""
        head = _NODE.pack(
            kind, numbers[node], node.nlookup if known else 0, parent, device + 1, len(identity), len(place)
        )
        return head + identity + place

    def _open_records(self) -> Iterator[bytes]:
        for fh, opened in list(self.opened.items()):
            flags = fcntl.fcntl(opened.ref.fd, fcntl.F_GETFL) & KEPT_FLAGS
            yield _OPEN.pack(OPEN, fh, opened.node.nodeid, flags)

    # -- in -----------------------------------------------------------------------------------------------------------

    def import_state(self, state: Iterable[bytes], portable: bool) -> None:
        """Fill the node table and open the files again."""
        source = _Records(state)
        numbers: dict[int, Node] = {int(ROOT_ID): self.nodes.root}
        while (kind := source.byte()) != END:
            if kind in (NODE, NODE_BY_HANDLE):
                self._take_node(kind, source, numbers, portable)
            elif kind == OPEN:
                self._take_open(source, numbers)
            else:
                raise ValueError(f"record of kind {kind}")
        source.end()
        # Without an epoch of its own this server counts on from where the other one was.
        last = max((nodeid for nodeid in numbers if nodeid <= MAX_NODEID), default=0)
        self.nodes._ids = itertools.count(max(next(self.nodes._ids), last + 1))
        self.fhs = itertools.count(max(next(self.fhs), max(self.opened, default=0) + 1))

    def _take_node(self, kind: int, source: _Records, numbers: dict[int, Node], portable: bool) -> None:
        nodeid, nlookup, above, device, identity_size, place_size = source.unpack(_NODE)
        number = int.from_bytes(source.read(identity_size), "little")
        key: Key = (device - 1, number) if device else number
        place = source.read(place_size) or None
        if nodeid in numbers or not (0 < nodeid <= MAX_NODEID and nlookup or nodeid > FORGOTTEN and not nlookup):
            raise ValueError(f"node {nodeid:#x} with {nlookup} lookups")
        parent = numbers.get(above)
        if (parent is None) != (above == LOST) or (kind == NODE and parent is None):
            raise ValueError(f"node {nodeid:#x} in directory {above:#x}, which is not known")
        if portable and kind == NODE_BY_HANDLE and place is not None:
            raise ValueError(f"node {nodeid:#x}: a file handle from elsewhere")
        if kind == NODE:
            self._check_name(place)
        if portable:
            found = self._look_up(parent, place, Node(0, key, None, None).kind)
            if found is None:
                parent, place = None, None
            else:
                key = found
        elif kind == NODE_BY_HANDLE:
            parent = None
        node = Node(nodeid, key, parent, place)
        node.nlookup = nlookup
        numbers[nodeid] = node
        if nlookup:
            self.nodes.by_id[nodeid] = node
            if place is not None:
                self.nodes.by_key.setdefault(key, node)

    @staticmethod
    def _check_name(place: bytes | None) -> None:
        if place is not None and (b"/" in place or b"\0" in place or place in (b".", b"..") or len(place) > 255):
            raise ValueError(f"{place[:64]!r} is not a name")

    def _look_up(self, parent: Node | None, place: bytes | None, kind: int) -> Key | None:
        """The identity of what the name leads to here; None if it is not there, or something else."""
        if parent is None or place is None or parent is not self.nodes.root and parent.place is None:
            return None
        try:
            found = self.probe((parent.ref or self._hold(parent)).fd, place)
        except OSError:
            return None
        return found[1] if found is not None and found[0].mode >> 12 == kind else None

    def _take_open(self, source: _Records, numbers: dict[int, Node]) -> None:
        fh, nodeid, flags = source.unpack(_OPEN)
        node = numbers.get(nodeid)
        if node is None or not fh or fh in self.opened or flags & ~KEPT_FLAGS:
            raise ValueError(f"fh {fh:#x} of node {nodeid:#x}, flags {flags:#o}")
        try:
            base = node.ref or self._hold(node)
            if node.kind == DIRECTORY:
                fd = self._open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, base.fd)
                self.opened[fh] = OpenDirectory(HeldFd(fd), node)
            elif node.kind == REGULAR:
                ref = HeldFd(self._with_room(syscalls.reopen, base.fd, flags | os.O_CLOEXEC))
                self.opened[fh] = OpenFile(ref, node, bool(flags & os.O_APPEND))
                self.nodes.lend(node, ref)
            else:
                raise ValueError(f"fh {fh:#x} of a node of type {node.kind}")
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # better no session than one with holes


class _Records:
    """Records out of pieces that are cut anywhere."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._buffer = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        while len(self._buffer) - self._at < size:
            piece = next(self._pieces, None)
            if piece is None:
                raise ValueError("the state ends in the middle of a record")
            self._buffer = self._buffer[self._at :] + piece
            self._at = 0
        self._at += size
        return self._buffer[self._at - size : self._at]

    def byte(self) -> int:
        """The kind of the next record, which stays unread."""
        kind = self.read(1)[0]
        if kind != END:
            self._at -= 1
        return kind

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The fixed part of a record, without its kind."""
        return tuple(layout.unpack(self.read(layout.size))[1:])

    def end(self) -> None:
        """ValueError unless everything was read."""
        if self._at != len(self._buffer) or next(self._pieces, None) is not None:
            raise ValueError("there is more behind the end of the state")

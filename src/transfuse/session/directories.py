"""Listings: from what readdir() yields to the dirent and direntplus records of one reply.

A filesystem whose entries carry cookies is asked again at each offset. One whose entries carry none is asked once per
open directory: the session keeps that listing, numbers it 1…n, adds "." and ".." where they are missing, and serves the
rest from it until the directory is released or read from the start again.

READDIRPLUS needs no method of its own: each entry that still fits gets lookup(), so that only lookups which reach the
peer are counted.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from transfuse.fs.request import Request
from transfuse.fs.values import DirEntry, Entry
from transfuse.session.replies import Replies
from transfuse.wire.encode import padded
from transfuse.wire.layout import Buffer, ByteOrder
from transfuse.wire.structs import Dirent, EntryOut

__all__ = ["Listings", "listed_nodes"]

MAX_KEPT = 4096
"""Most listings remembered at a time; beyond it the oldest is dropped and made again if it is asked for."""

_DIRENT_SIZE = Dirent.SIZE
_PLUS_SIZE = EntryOut.SIZE + Dirent.SIZE

ReadDir = Callable[[Request, int, int, int], Iterable[DirEntry]]
Lookup = Callable[[Request, int, bytes], Entry]


def listed_nodes(listing: Buffer, order: ByteOrder) -> Iterator[int]:
    """The nodeid of every looked-up entry in a READDIRPLUS reply of our own making."""
    nodeid, namelen = struct.Struct(order + "Q"), struct.Struct(order + "I")
    at = 0
    while at + _PLUS_SIZE <= len(listing):
        (found,) = nodeid.unpack_from(listing, at)
        if found:
            yield found
        at += padded(_PLUS_SIZE + namelen.unpack_from(listing, at + EntryOut.SIZE + 16)[0])


class Listings:
    """The listings of one connection."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._kept: dict[tuple[int, int], list[DirEntry]] = {}
        self._lock = threading.Lock()
        self._pack_dirent_into = Dirent.codec(replies.order).pack_into

    def drop(self, nodeid: int, fh: int) -> None:
        """The directory was released."""
        self._kept.pop((nodeid, fh), None)

    def clear(self) -> None:
        """The connection is over."""
        self._kept.clear()

    def entries(self, readdir: ReadDir, req: Request, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        """The entries after `offset`, each with a cookie."""
        if offset:
            kept = self._kept.get((nodeid, fh))
            if kept is not None:
                return self._rest(kept, nodeid, fh, offset)
        return self.number(readdir(req, nodeid, fh, offset), nodeid, fh, offset)

    def number(self, found: Iterable[DirEntry], nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        """What readdir() gave for `offset`, with cookies."""
        stream = iter(found)
        first = next(stream, None)
        if first is None:
            if offset:
                return ()
        elif first.cookie:
            return chain((first,), stream)
        listing = [] if first is None else [first, *stream]
        names = {entry.name for entry in listing[:2]}
        if b"." not in names:
            # ".." has no inode number here that we could know; the kernel shows the parent's own.
            listing[:0] = [DirEntry(b".", nodeid, 4), DirEntry(b"..", nodeid, 4)]
        # Copies: the entries are the filesystem's, which may give out the same objects again, still without cookies.
        listing = [DirEntry(entry.name, entry.ino, entry.kind, place) for place, entry in enumerate(listing, 1)]
        with self._lock:
            if len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[(nodeid, fh)] = listing
        return self._rest(listing, nodeid, fh, offset)

    def _rest(self, listing: list[DirEntry], nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        if offset < len(listing):
            return islice(listing, offset, None)
        if not fh:
            # Read to its end, and with handle 0 there may never be a release (no-opendir).
            self.drop(nodeid, fh)
        return ()

    def pack(self, entries: Iterable[DirEntry], size: int) -> bytearray:
        """As many whole dirent records as fit in `size` bytes."""
        size &= ~7  # a record that lacks its padding would be taken for one that is cut off
        out = bytearray(size)
        at = 0
        pack_into = self._pack_dirent_into
        for entry in entries:
            name = entry.name
            used = _DIRENT_SIZE + len(name)
            if at + used > size:
                break
            pack_into(out, at, entry.ino, entry.cookie, len(name), entry.kind)
            out[at + _DIRENT_SIZE : at + used] = name
            at += padded(used)
        del out[at:]
        return out

    def pack_plus(
        self, entries: Iterable[DirEntry], size: int, lookup: Lookup, req: Request, nodeid: int
    ) -> bytearray:
        """As many whole direntplus records as fit; each name but "." and ".." is looked up once it is sure to fit."""
        size &= ~7
        out = bytearray(size)
        at = 0
        pack_dirent, pack_entry = self._pack_dirent_into, self._replies.entry_into
        for entry in entries:
            name = entry.name
            used = _PLUS_SIZE + len(name)
            if at + used > size:
                break
            ino, kind = entry.ino, entry.kind
            if name != b"." and name != b"..":
                try:
                    found = lookup(req, nodeid, name)
                except OSError:
                    found = None  # vanished meanwhile, or not to be looked at: listed without attributes
                if found is not None and found.attr is not None:
                    pack_entry(out, at, found)
                    ino, kind = found.attr.ino, found.attr.mode >> 12
            pack_dirent(out, at + EntryOut.SIZE, ino, entry.cookie, len(name), kind)
            out[at + _PLUS_SIZE : at + used] = name
            at += padded(used)
        del out[at:]
        return out

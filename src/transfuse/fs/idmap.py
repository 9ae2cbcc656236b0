"""IdMapped: the same filesystem with other user and group ids, as seen from the peer.

An `IdMap` is a list of ranges (peer's first id, filesystem's first id, count), as in /proc/PID/uid_map. Everything that
carries an id goes through it: the caller of each request (so files are made with the right owner), attributes, chown,
and the ids inside POSIX ACLs.

What has no mapping: an owner shows as the overflow id (65534, nobody); a caller acts as the overflow id, except where
something new would belong to them: that, and a chown or an ACL to an id without mapping, is EOVERFLOW, as in Linux's
idmapped mounts.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from transfuse.fs.acl import ACCESS_XATTR, DEFAULT_XATTR, map_acl_ids
from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, AttrChanges, Entry, Opened
from transfuse.fs.wrap import CREATE_RESULTS, ENTRY_RESULTS, Wrapper, then

__all__ = ["OVERFLOW_ID", "IdMap", "IdMapped"]

OVERFLOW_ID = 65_534
MAX_RANGES = 340
"""Most ranges of one map, as in Linux."""
MAX_ID = 0xFFFF_FFFE
CREATING = frozenset({"symlink", "mknod", "mkdir", "create", "tmpfile"})
ATTR_RESULTS = frozenset({"getattr", "statx", "setattr"})


class IdMap:
    """Ranges of ids in two worlds; each id has at most one counterpart in either direction (ValueError else)."""

    def __init__(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        self.ranges = tuple(ranges)
        if len(self.ranges) > MAX_RANGES:
            raise ValueError(f"{len(self.ranges)} ranges, {MAX_RANGES} at most")
        for side in (0, 1):
            last = -1
            for entry in sorted(self.ranges, key=lambda r: r[side]):
                start, count = entry[side], entry[2]
                if count < 1 or start <= last or start < 0 or start + count - 1 > MAX_ID:
                    raise ValueError(f"range {entry} is empty, out of bounds, or overlaps another")
                last = start + count - 1

    def _map(self, number: int, source: int, target: int) -> int | None:
        for entry in self.ranges:
            if entry[source] <= number < entry[source] + entry[2]:
                return number - entry[source] + entry[target]
        return None

    def to_filesystem(self, number: int) -> int | None:
        """The filesystem's id for the peer's, or None."""
        return self._map(number, 0, 1)

    def to_peer(self, number: int) -> int | None:
        """The peer's id for the filesystem's, or None."""
        return self._map(number, 1, 0)


class _MappedRequest(Request):
    """A request with other ids; everything else, interruption included, is the original's."""

    __slots__ = ("_map", "_original")

    def __init__(self, original: Request, uids: IdMap, gids: IdMap) -> None:
        self._original = original
        self._map = gids
        self.unique = original.unique
        self.opcode = original.opcode
        self.nodeid = original.nodeid
        self.pid = original.pid
        self.argument = original.argument
        uid, gid = uids.to_filesystem(original.uid), gids.to_filesystem(original.gid)
        self.uid = OVERFLOW_ID if uid is None else uid
        self.gid = OVERFLOW_ID if gid is None else gid

    @property
    def interrupted(self) -> bool:  # type: ignore[override]  # a slot in the base, of which this one has no use
        return self._original.interrupted

    @property
    def groups(self) -> tuple[int, ...]:
        mapped = (self._map.to_filesystem(group) for group in self._original.groups)
        return tuple(OVERFLOW_ID if group is None else group for group in mapped)

    def on_interrupt(self, callback: Callable[[], None] | None) -> None:
        self._original.on_interrupt(callback)

    def interrupt(self) -> None:
        self._original.interrupt()


def _overflow(what: str, number: int) -> OSError:
    return OSError(errno.EOVERFLOW, f"{what} {number} has no counterpart in the filesystem")


class IdMapped(Wrapper):
    """`inner` with ids mapped by `uids` and `gids` (default: the same map)."""

    def __init__(self, inner: Filesystem | PathFilesystem, uids: IdMap, gids: IdMap | None = None) -> None:
        super().__init__(inner)
        self.uids = uids
        self.gids = gids if gids is not None else uids

    def _request(self, req: Request) -> Request:
        return _MappedRequest(req, self.uids, self.gids)

    def _creator(self, req: Request) -> Request:
        for ids, number, what in ((self.uids, req.uid, "uid"), (self.gids, req.gid, "gid")):
            if ids.to_filesystem(number) is None:
                raise _overflow(what, number)
        return self._request(req)

    def _attr(self, attr: Attr) -> Attr:
        uid, gid = self.uids.to_peer(attr.uid), self.gids.to_peer(attr.gid)
        attr = copy.copy(attr)  # it may be the filesystem's own object
        attr.uid = OVERFLOW_ID if uid is None else uid
        attr.gid = OVERFLOW_ID if gid is None else gid
        return attr

    def _entry(self, entry: Entry) -> Entry:
        if entry.attr is None:
            return entry
        return Entry(self._attr(entry.attr), entry.nodeid, entry.generation, entry.timeout_s)

    def _created(self, found: tuple[Entry, Opened]) -> tuple[Entry, Opened]:
        return self._entry(found[0]), found[1]

    def _id_inside(self, ids: IdMap, number: int | None, what: str) -> int | None:
        if number is None:
            return None
        mapped = ids.to_filesystem(number)
        if mapped is None:
            raise _overflow(what, number)
        return mapped

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        """chown to an id without a counterpart is EOVERFLOW."""
        if changes.uid is not None or changes.gid is not None:
            uid, gid = self._id_inside(self.uids, changes.uid, "uid"), self._id_inside(self.gids, changes.gid, "gid")
            changes = replace(changes, uid=uid, gid=gid)
        return then(self.inner.setattr(self._request(req), nodeid, changes, fh), self._attr)

    def getxattr(self, req: Request, nodeid: int, name: bytes) -> bytes:
        """ACLs show the peer's ids."""
        found = self.inner.getxattr(self._request(req), nodeid, name)
        return then(found, self._acl_to_peer) if name in (ACCESS_XATTR, DEFAULT_XATTR) else found

    def _acl_to_peer(self, value: bytes) -> bytes:
        def peer(ids: IdMap) -> Callable[[int], int]:
            return lambda number: OVERFLOW_ID if (found := ids.to_peer(number)) is None else found

        return map_acl_ids(value, peer(self.uids), peer(self.gids))

    def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """ACLs get the filesystem's ids; one without a counterpart is EOVERFLOW."""
        if name in (ACCESS_XATTR, DEFAULT_XATTR):

            def inside(ids: IdMap) -> Callable[[int], int]:
                return lambda number: self._id_inside(ids, number, "id in an ACL") or 0

            value = map_acl_ids(bytes(value), inside(self.uids), inside(self.gids))
        return self.inner.setxattr(self._request(req), nodeid, name, value, flags, kill_sgid)


def _mapped(name: str) -> Callable[..., Any]:
    """An operation of IdMapped: the caller in, owners out."""

    def call(self: IdMapped, req: Request, *args: Any) -> Any:
        caller = self._creator(req) if name in CREATING else self._request(req)
        found = getattr(self.inner, name)(caller, *args)
        if name in ATTR_RESULTS:
            return then(found, self._attr)
        if name in ENTRY_RESULTS:
            return then(found, self._entry)
        return then(found, self._created) if name in CREATE_RESULTS else found

    call.__name__ = name
    call.__doc__ = getattr(Filesystem, name).__doc__
    return call


for _name in OPERATION_NAMES - vars(IdMapped).keys() - {"forget"}:
    setattr(IdMapped, _name, _mapped(_name))

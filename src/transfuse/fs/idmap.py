"""IdMapped: the same filesystem with other user and group ids, as seen from the peer.

An `IdMap` is a list of ranges (peer's first id, filesystem's first id, count), as in /proc/PID/uid_map; a `Translation`
is made of virtiofsd's rules, where each direction is on its own and other ids stay as they are. Everything that carries
an id goes through it: the caller of each request (so files are made with the right owner), attributes, chown, and the
ids inside POSIX ACLs. These need a map that goes back the way it came, which a Translation need not be.

What has no mapping: an owner shows as the overflow id (65534, nobody); a caller acts as the overflow id, except where
something new would belong to them: that, and a chown or an ACL to an id without mapping, is refused, with EOVERFLOW as
in Linux's idmapped mounts, or with EPERM where a Translation forbids it.
"""

from __future__ import annotations

import copy
import errno
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from transfuse.fs.acl import ACCESS_XATTR, DEFAULT_XATTR, map_acl_ids
from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, AttrChanges, Entry, Opened
from transfuse.fs.wrap import CREATE_RESULTS, ENTRY_RESULTS, Wrapper, then

__all__ = ["OVERFLOW_ID", "IdMap", "IdMapped", "Ids", "Translation"]

OVERFLOW_ID = 65_534
MAX_RANGES = 340
"""Most ranges of one map, as in Linux."""
MAX_ID = 0xFFFF_FFFE
CREATING = frozenset({"symlink", "mknod", "mkdir", "create", "tmpfile"})
ATTR_RESULTS = frozenset({"getattr", "statx", "setattr"})


class Ids(Protocol):
    """What ids become; either method gives None for one that may not be used."""

    @property
    def refusal(self) -> int:
        """The errno for an id of the peer's that may not be used."""
        ...

    def to_filesystem(self, number: int) -> int | None: ...

    def to_peer(self, number: int) -> int | None: ...


class IdMap:
    """Ranges of ids in two worlds; each id has at most one counterpart in either direction (ValueError else)."""

    refusal = errno.EOVERFLOW

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


class _Range(NamedTuple):
    """Ids from `start` to before `end` become `target` and those that follow it, all `target` (`squash`), or nothing
    (None)."""

    start: int
    end: int
    target: int | None
    squash: bool


class _Direction:
    """What ids become on one way. ValueError for ranges that overlap."""

    def __init__(self, ranges: Iterable[_Range]) -> None:
        self._ranges = sorted(ranges)
        self._starts = [entry.start for entry in self._ranges]
        for before, after in zip(self._ranges, self._ranges[1:], strict=False):
            if after.start < before.end:
                raise ValueError(f"ids {before.start} to {before.end - 1} and {after.start} to {after.end - 1} overlap")

    def __call__(self, number: int) -> int | None:
        at = bisect_right(self._starts, number) - 1
        if at < 0:
            return number
        start, end, target, squash = self._ranges[at]
        if number >= end:
            return number
        return target if squash or target is None else target + number - start


_RULES = {
    "guest": "GUEST:HOST:COUNT",
    "host": "HOST:GUEST:COUNT",
    "squash-guest": "GUEST:HOST:COUNT",
    "squash-host": "HOST:GUEST:COUNT",
    "forbid-guest": "GUEST:COUNT",
    "map": "GUEST:HOST:COUNT",
}


class Translation:
    """Ids by rules of virtiofsd's --translate-uid, one text each; the guest is the peer, the host the filesystem.

    guest:GUEST:HOST:COUNT maps on the way in, host:HOST:GUEST:COUNT on the way out, map:GUEST:HOST:COUNT both;
    squash-guest and squash-host map all COUNT ids to one; forbid-guest:GUEST:COUNT refuses ids. Ids without a rule stay
    as they are. ValueError for what is no rule, and for source ranges that overlap.
    """

    refusal = errno.EPERM

    def __init__(self, rules: Iterable[str]) -> None:
        inward: list[_Range] = []
        outward: list[_Range] = []
        for number, text in enumerate(rules, 1):
            if number > MAX_RANGES:
                raise ValueError(f"more than {MAX_RANGES} rules")
            kind, start, target, count = _read_rule(text)
            if kind in ("guest", "squash-guest", "forbid-guest", "map"):
                inward.append(_Range(start, start + count, target, kind == "squash-guest"))
            if kind in ("host", "squash-host"):
                outward.append(_Range(start, start + count, target, kind == "squash-host"))
            if kind == "map":
                assert target is not None  # only forbid-guest has none
                outward.append(_Range(target, target + count, start, False))
        self.to_filesystem = _Direction(inward)
        self.to_peer = _Direction(outward)


def _read_rule(text: str) -> tuple[str, int, int | None, int]:
    """Kind, first source id, first target id, count."""
    kind, *fields = text.split(":")
    if kind not in _RULES:
        raise ValueError(f"{text}: {kind!r} is none of {', '.join(_RULES)}")
    names = _RULES[kind].split(":")
    numbers = [int(field) for field in fields if field.isascii() and field.isdigit() and len(field) <= 10]
    if len(numbers) != len(names) or len(fields) != len(names):
        raise ValueError(f"{text}: {kind}:{_RULES[kind]} belongs there, in numbers")
    start, count = numbers[0], numbers[-1]
    target = numbers[1] if len(names) == 3 else None
    if count < 1 or start + count - 1 > MAX_ID:
        raise ValueError(f"{text}: {count} ids from {start} are not within 0 to {MAX_ID}")
    if target is not None and target + (1 if kind.startswith("squash") else count) - 1 > MAX_ID:
        raise ValueError(f"{text}: ids from {target} are not within 0 to {MAX_ID}")
    return kind, start, target, count


class _MappedRequest(Request):
    """A request with other ids; everything else, interruption included, is the original's."""

    __slots__ = ("_map", "_original")

    def __init__(self, original: Request, uids: Ids, gids: Ids) -> None:
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


def _refused(ids: Ids, what: str, number: int) -> OSError:
    return OSError(ids.refusal, f"{what} {number} has no counterpart in the filesystem")


class IdMapped(Wrapper):
    """`inner` with ids mapped by `uids` and `gids` (default: the same map)."""

    def __init__(self, inner: Filesystem | PathFilesystem, uids: Ids, gids: Ids | None = None) -> None:
        super().__init__(inner)
        self.uids = uids
        self.gids = gids if gids is not None else uids

    def _request(self, req: Request) -> Request:
        return _MappedRequest(req, self.uids, self.gids)

    def _creator(self, req: Request) -> Request:
        for ids, number, what in ((self.uids, req.uid, "uid"), (self.gids, req.gid, "gid")):
            if ids.to_filesystem(number) is None:
                raise _refused(ids, what, number)
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

    def _id_inside(self, ids: Ids, number: int | None, what: str) -> int | None:
        if number is None:
            return None
        mapped = ids.to_filesystem(number)
        if mapped is None:
            raise _refused(ids, what, number)
        return mapped

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        """chown to an id without a counterpart is refused."""
        if changes.uid is not None or changes.gid is not None:
            uid, gid = self._id_inside(self.uids, changes.uid, "uid"), self._id_inside(self.gids, changes.gid, "gid")
            changes = replace(changes, uid=uid, gid=gid)
        return then(self.inner.setattr(self._request(req), nodeid, changes, fh), self._attr)

    def getxattr(self, req: Request, nodeid: int, name: bytes) -> bytes:
        """ACLs show the peer's ids."""
        found = self.inner.getxattr(self._request(req), nodeid, name)
        return then(found, self._acl_to_peer) if name in (ACCESS_XATTR, DEFAULT_XATTR) else found

    def _acl_to_peer(self, value: bytes) -> bytes:
        def peer(ids: Ids) -> Callable[[int], int]:
            return lambda number: OVERFLOW_ID if (found := ids.to_peer(number)) is None else found

        return map_acl_ids(value, peer(self.uids), peer(self.gids))

    def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """ACLs get the filesystem's ids; one without a counterpart is refused."""
        if name in (ACCESS_XATTR, DEFAULT_XATTR):

            def inside(ids: Ids) -> Callable[[int], int]:
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

"""Extended attributes under other names on the inside: the rule language of virtiofsd, over any filesystem.

A rule is `:type:scope:key:prepend:` with any character in the place of the colon (the first of the rule that is no
white space, see doc/xattr-mapping.md of virtiofsd). The first rule that matches a name decides. Names that the peer
uses (*client* names) are matched by `key`, names that the filesystem lists (*server* names) by `prepend`, each as a
prefix; `scope` says which of the two a rule is for.

    type         a client name                   a server name
    prefix       gets `prepend` in front         loses `prepend`
    ok           passes                          passes
    bad          EPERM, ENODATA when read        is not listed
    unsupported  ENOTSUP                         is not listed

`:map:key:prepend:`, as the last rule, stands for the rules that keep a prefix safe: see `_expanded`. A set of rules has
to decide every name in both directions, or it is refused; an empty name would be left of a server name that is nothing
but the prefix, so that is not listed.
"""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transfuse.fs.acl import ACCESS_XATTR, DEFAULT_XATTR
from transfuse.fs.base import Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import MAP_WRITE, Attr, AttrChanges, Entry, FileRange, Opened
from transfuse.fs.wrap import O_TRUNC, Wrapper, then

__all__ = ["CAPABILITY_XATTR", "HIDDEN_ACLS", "Rule", "XattrMap", "XattrMapped", "map_xattrs", "parse_rules"]

TYPES = ("prefix", "ok", "bad", "unsupported")
SCOPES = ("client", "server", "all")
MAX_RULES = 256
"""Most rules of a set: each name is compared with all of them."""
MAX_NAME = 255
"""Longest name of an attribute (XATTR_NAME_MAX)."""
CAPABILITY_XATTR = b"security.capability"
S_IFREG = 8
"""S_IFREG >> 12."""
NOTHING_THERE = frozenset({errno.ENODATA, errno.ENOTSUP, errno.ENOSYS})
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; `kind` is of TYPES, `scope` of SCOPES."""

    kind: str
    scope: str
    key: bytes
    prepend: bytes


def _expanded(key: bytes, prepend: bytes) -> list[Rule]:
    """What `:map:key:prepend:` stands for: the prefix, and that nobody gets around it.

    Without a key everything is prefixed, and what has no prefix inside does not exist. With a key also what the peer
    calls `prepend...` is refused, and what is `key...` inside is not listed; all else passes.
    """
    first = Rule("prefix", "all", key, prepend)
    if not key:
        return [first, Rule("bad", "all", b"", b"")]
    return [first, Rule("bad", "all", prepend, key), Rule("ok", "all", b"", b"")]


HIDDEN_ACLS = [Rule("unsupported", "all", name, name) for name in (ACCESS_XATTR, DEFAULT_XATTR)]
"""Rules in front of others for a filesystem whose peer is not to use POSIX ACLs."""


class _Text:
    """A set of rules being read; errors say which rule, and at which character (counted from 1)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.number = 0

    def begin(self) -> str | None:
        """The separator of the next rule, None at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        if self.at == len(self.text):
            return None
        self.number += 1
        self.at += 1
        return self.text[self.at - 1]

    def error(self, at: int, what: str) -> ValueError:
        return ValueError(f"rule {self.number}, character {at + 1}: {what}")

    def field(self, separator: str, what: str, choices: Sequence[str] = ()) -> str:
        start = self.at
        end = self.text.find(separator, start)
        if end < 0:
            raise self.error(start, f"no {separator!r} behind the {what}")
        self.at = end + 1
        found = self.text[start:end]
        if choices and found not in choices:
            raise self.error(start, f"{what} {found!r} is none of {', '.join(choices)}")
        if "\0" in found:
            raise self.error(start, f"a NUL in the {what}")
        return found

    def name(self, separator: str, what: str) -> bytes:
        start = self.at
        raw = os.fsencode(self.field(separator, what))
        if len(raw) > MAX_NAME:
            raise self.error(start, f"the {what} has {len(raw)} bytes, {MAX_NAME} at most")
        return raw


def parse_rules(text: str) -> list[Rule]:
    """The rules of `text`, `map` expanded. ValueError names rule and position."""
    reader = _Text(text)
    rules: list[Rule] = []
    mapped = False
    while (separator := reader.begin()) is not None:
        if mapped:
            raise reader.error(reader.at - 1, "nothing may follow the map rule")
        if reader.number > MAX_RULES:
            raise reader.error(reader.at - 1, f"{MAX_RULES} rules at most")
        kind = reader.field(separator, "type", (*TYPES, "map"))
        mapped = kind == "map"
        scope = "all" if mapped else reader.field(separator, "scope", SCOPES)
        key, prepend = reader.name(separator, "key"), reader.name(separator, "prepend")
        rules += _expanded(key, prepend) if mapped else [Rule(kind, scope, key, prepend)]
    if not rules:
        raise ValueError("there is no rule; :ok:all::: lets everything through")
    return rules


class XattrMap:
    """Rules in force. ValueError if there are names that no rule decides."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._client = [rule for rule in self.rules if rule.scope != "server"]
        self._server = [rule for rule in self.rules if rule.scope != "client"]
        for of, what, undecided in (
            ([rule.key for rule in self._client], "the client", "client"),
            ([rule.prepend for rule in self._server], "the server", "server"),
        ):
            if b"" not in of:
                raise ValueError(f"no rule decides all other names of {what}; end with :ok:{undecided}::: or bad")

    @classmethod
    def parse(cls, text: str) -> XattrMap:
        """From virtiofsd's language; ValueError says what is wrong, where."""
        return cls(parse_rules(text))

    def to_server(self, name: bytes) -> bytes:
        """The filesystem's name for the client's. OSError: EPERM (bad), ENOTSUP (unsupported), ERANGE (too long)."""
        rule = next(rule for rule in self._client if name.startswith(rule.key))
        if rule.kind == "ok":
            return name
        if rule.kind == "bad":
            raise PermissionError(errno.EPERM, f"{name!r} may not be used")
        if rule.kind == "unsupported":
            raise OSError(errno.ENOTSUP, f"{name!r} is not supported")
        mapped = rule.prepend + name
        if len(mapped) > MAX_NAME:
            raise OSError(errno.ERANGE, f"{name!r} has no room for the prefix {rule.prepend!r}")
        return mapped

    def to_client(self, name: bytes) -> bytes | None:
        """The client's name for the filesystem's, None if it is not shown."""
        rule = next(rule for rule in self._server if name.startswith(rule.prepend))
        if rule.kind == "prefix":
            return name[len(rule.prepend) :] or None
        return name if rule.kind == "ok" else None

    def passes(self, name: bytes) -> bool:
        """Is `name` the same on both sides?"""
        try:
            return self.to_server(name) == name == self.to_client(name)
        except OSError:
            return False


class XattrMapped(Wrapper):
    """`inner` with attributes named by `rules`. POSIX ACLs that do not pass unchanged are ENOTSUP: under another name
    they would say nothing to the filesystem, and be accepted without any effect. See `map_xattrs`."""

    def __init__(self, inner: Filesystem | PathFilesystem, rules: XattrMap) -> None:
        super().__init__(inner)
        if not (rules.passes(ACCESS_XATTR) and rules.passes(DEFAULT_XATTR)):
            rules = XattrMap([*HIDDEN_ACLS, *rules.rules])
            self.features = replace(self.features, posix_acl=False)
        self.rules = rules

    def getxattr(self, req: Request, nodeid: int, name: bytes) -> bytes:
        """ENODATA for a name that may not be used."""
        try:
            mapped = self.rules.to_server(name)
        except PermissionError as error:
            raise OSError(errno.ENODATA, str(error.strerror)) from error
        return self.inner.getxattr(req, nodeid, mapped)

    def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """Under its name inside."""
        return self.inner.setxattr(req, nodeid, self.rules.to_server(name), value, flags, kill_sgid)

    def removexattr(self, req: Request, nodeid: int, name: bytes) -> None:
        """Under its name inside."""
        return self.inner.removexattr(req, nodeid, self.rules.to_server(name))

    def listxattr(self, req: Request, nodeid: int) -> Sequence[bytes]:
        """Names that are shown, each once."""
        return then(self.inner.listxattr(req, nodeid), self._listed)

    def _listed(self, names: Sequence[bytes]) -> Sequence[bytes]:
        shown = (self.rules.to_client(name) for name in names)
        return list(dict.fromkeys(name for name in shown if name is not None))


class _CapabilityMapped(XattrMapped):
    """XattrMapped where security.capability has another name inside: whoever changes a file's data or owner takes its
    capabilities away, which the filesystem does not do for a name that means nothing to it.

    What the kernel writes without asking would escape this, so passthrough is not offered. A page that is mapped for
    writing counts as a write when it is mapped.
    """

    def __init__(self, inner: Filesystem | PathFilesystem, rules: XattrMap) -> None:
        super().__init__(inner, rules)
        for name in ("removexattr", "getattr"):
            if inspect.iscoroutinefunction(getattr(self.inner, name)):
                raise TypeError(f"security.capability can't be mapped over a filesystem whose {name}() is a coroutine")
        self._capability = rules.to_server(CAPABILITY_XATTR)
        self.features = replace(self.features, passthrough=False)

    def _drop(self, req: Request, nodeid: int) -> None:
        try:
            self.inner.removexattr(req, nodeid, self._capability)
        except OSError as error:
            if error.errno not in NOTHING_THERE:
                raise

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        """A new owner or size takes capabilities away from a regular file."""
        if (changes.uid is not None or changes.gid is not None or changes.size is not None) and (
            self.inner.getattr(req, nodeid, fh).mode >> 12 == S_IFREG
        ):
            self._drop(req, nodeid)
        return self.inner.setattr(req, nodeid, changes, fh)

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        """O_TRUNC is a change."""
        if flags & O_TRUNC:
            self._drop(req, nodeid)
        return self.inner.open(req, nodeid, flags)

    def create(self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        """What is opened with O_TRUNC may have existed."""

        def made(found: tuple[Entry, Opened]) -> tuple[Entry, Opened]:
            if flags & O_TRUNC:
                self._drop(req, found[0].nodeid)
            return found

        return then(self.inner.create(req, parent, name, mode, umask, flags), made)

    def write(self, req: Request, nodeid: int, fh: int, data: Buffer, offset: int, flags: int) -> int:
        """A change."""
        self._drop(req, nodeid)
        return self.inner.write(req, nodeid, fh, data, offset, flags)

    def map(
        self, req: Request, nodeid: int, fh: int | None, offset: int, length: int, intent: int
    ) -> FileRange | None:
        """A change, with MAP_WRITE."""
        if intent & MAP_WRITE:
            self._drop(req, nodeid)
        return self.inner.map(req, nodeid, fh, offset, length, intent)

    def fallocate(self, req: Request, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None:
        """A change."""
        self._drop(req, nodeid)
        return self.inner.fallocate(req, nodeid, fh, mode, offset, length)

    def copy_file_range(
        self, req: Request, nodeid_in: int, fh_in: int, offset_in: int,
        nodeid_out: int, fh_out: int, offset_out: int, length: int, flags: int,
    ) -> int:  # fmt: skip
        """A change of what is copied to."""
        self._drop(req, nodeid_out)
        return self.inner.copy_file_range(
            req, nodeid_in, fh_in, offset_in, nodeid_out, fh_out, offset_out, length, flags
        )


def map_xattrs(inner: Filesystem | PathFilesystem, rules: XattrMap) -> XattrMapped:
    """`inner` with attributes named by `rules`; with the work that a mapped security.capability makes if it is one."""
    try:
        mapped = rules.to_server(CAPABILITY_XATTR) != CAPABILITY_XATTR
    except OSError:
        mapped = False
    return _CapabilityMapped(inner, rules) if mapped else XattrMapped(inner, rules)

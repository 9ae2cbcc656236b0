"""What is put around the source before it is served: other names of extended attributes, other ids, no changes.

The rules are virtiofsd's (--xattrmap, --translate-uid, --translate-gid). From the inside out: ids, attributes (so that
ACLs which are not to be used are refused before their ids are looked at), read-only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from transfuse.cli.errors import USAGE, CommandError
from transfuse.cli.sources import AnyFilesystem
from transfuse.fs.base import Filesystem
from transfuse.fs.idmap import IdMapped, Translation
from transfuse.fs.path import PathFilesystem
from transfuse.fs.wrap import ReadOnly, Wrapper
from transfuse.fs.xattrmap import HIDDEN_ACLS, Rule, XattrMap, map_xattrs

__all__ = ["Layers", "add_flags", "read_layers"]

T = TypeVar("T")
EVERYTHING = Rule("ok", "all", b"", b"")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--xattrmap, --translate-uid and --translate-gid; None means that one was not given."""
    group = parser.add_argument_group("what the other side sees (docs/virtiofsd.md)")
    group.add_argument("--xattrmap", metavar="RULES", help="other names for extended attributes: :map::user.virtiofs.:")
    for name in ("uid", "gid"):
        group.add_argument(
            f"--translate-{name}", metavar="TYPE:...", action="append",
            help=f"other {name}s: map:GUEST:HOST:COUNT, guest:, host:, squash-guest:, squash-host:, forbid-guest:",
        )  # fmt: skip
    group.add_argument(
        "--require-acl", action="store_const", const=True, help="refuse a peer whose kernel does not mind POSIX ACLs"
    )


class _AclRequired(Wrapper):
    """No connection without POSIX ACLs."""

    def __init__(self, inner: Filesystem | PathFilesystem) -> None:
        super().__init__(inner)
        if not self.features.posix_acl:
            raise CommandError(
                "option --require-acl", "the source has no POSIX ACLs for the other side", "leave it out", USAGE
            )

    def mounted(self, connection: Any) -> None:
        """OSError for a peer that does not support them, which then gets an error for its INIT."""
        if not connection.features.posix_acl:
            raise OSError("the peer's kernel does not support POSIX ACLs, which --require-acl asks for")
        super().mounted(connection)


@dataclass(frozen=True, slots=True)
class Layers:
    """What is wanted."""

    xattrs: XattrMap | None
    uids: Translation | None
    gids: Translation | None
    require_acl: bool
    read_only: bool

    def around(self, filesystem: AnyFilesystem) -> AnyFilesystem:
        """`filesystem` with all that around it."""
        rules = self.xattrs
        if self.uids is not None or self.gids is not None:
            # Ids in ACLs would have to come back as they went, which rules for each direction need not do.
            rules = XattrMap([*HIDDEN_ACLS, *(rules.rules if rules is not None else [EVERYTHING])])
            filesystem = IdMapped(filesystem, self.uids or Translation([]), self.gids or Translation([]))
        try:
            if rules is not None:
                filesystem = map_xattrs(filesystem, rules)
        except TypeError as error:
            raise CommandError("option --xattrmap", str(error), "let security.capability pass", USAGE) from error
        if self.require_acl:
            filesystem = _AclRequired(filesystem)
        return ReadOnly(filesystem) if self.read_only else filesystem


def read_layers(args: argparse.Namespace, *, read_only: bool) -> Layers:
    """The layers that `args` ask for. CommandError names the rule that is none, and where it goes wrong."""
    return Layers(
        _read("--xattrmap", XattrMap.parse, args.xattrmap),
        _read("--translate-uid", Translation, args.translate_uid),
        _read("--translate-gid", Translation, args.translate_gid),
        bool(args.require_acl),
        read_only,
    )


def _read(option: str, read: Callable[[Any], T], value: Any) -> T | None:
    if value is None:
        return None
    try:
        return read(value)
    except ValueError as error:
        raise CommandError(f"option {option}", str(error), "docs/virtiofsd.md has the rules", USAGE) from error

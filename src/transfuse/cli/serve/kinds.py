"""What a kind of address is to `transfuse serve`: one module, with its options, its checks and its way of serving.

A kind is a module with what `AddressKind` asks for, listed in KINDS. ADDRESS is `scheme:rest`; a kind may also have
options that stand for an address (`implied`), for programs that are written for another server's command line.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transfuse.cli.daemon import Ready
from transfuse.cli.errors import USAGE, CommandError
from transfuse.cli.options import Settings
from transfuse.cli.serve import unix, vhost_user
from transfuse.cli.serve.contain import Inside
from transfuse.cli.sources import Source

__all__ = ["KINDS", "AddressKind", "Service", "add_kinds", "choose"]


@dataclass(frozen=True, slots=True)
class Service:
    """What is to be served where."""

    source: Source
    place: str
    """What belongs to the scheme, as `AddressKind.check` gave it."""
    args: argparse.Namespace
    settings: Settings


class AddressKind(Protocol):
    """One kind of address; all of it is at the module's top level."""

    SCHEME: str
    """What stands before the colon."""
    FORM: str
    """How an address of this kind is written, for messages."""
    PEERS: str
    """Who reads it, for --help."""

    def add_flags(self, group: Any) -> None:
        """Add its own flags to an argparse group; None must mean that one was not given."""
        ...

    def implied(self, args: argparse.Namespace) -> str | None:
        """The address (without the scheme) that its own flags stand for, or None."""
        ...

    def check(self, rest: str, args: argparse.Namespace, settings: Settings) -> str:
        """`rest` in the form in which it is still right from another directory. CommandError for what can't be."""
        ...

    def serve(self, inside: Inside, service: Service, ready: Ready) -> int:
        """Make the sockets, enter the containment, announce when it can be used, serve until a signal comes, leave
        nothing behind; the exit code."""
        ...


KINDS: tuple[AddressKind, ...] = (unix, vhost_user)


def add_kinds(parser: argparse.ArgumentParser, kinds: Sequence[AddressKind] = KINDS) -> None:
    """The flags of every kind, each in a group of its own."""
    for kind in kinds:
        kind.add_flags(parser.add_argument_group(f"options for {kind.FORM}"))


def choose(args: argparse.Namespace, kinds: Sequence[AddressKind] = KINDS) -> tuple[AddressKind, str]:
    """The kind that ADDRESS, or the flags in its place, name, and what belongs to the scheme. CommandError for none,
    for two, for one that does not exist, and for flags of another kind."""
    forms = ", ".join(kind.FORM for kind in kinds)
    found = [(kind, rest) for kind in kinds if (rest := kind.implied(args)) is not None]
    if args.address is not None:
        scheme, colon, rest = args.address.partition(":")
        named = [kind for kind in kinds if colon and kind.SCHEME == scheme]
        if not named:
            raise CommandError(args.address, "is no address", _meant(args.address, scheme, kinds), USAGE)
        found.append((named[0], rest))
    if not found:
        raise CommandError("serve", "ADDRESS is missing", f"say where: {forms}", USAGE)
    if len(found) > 1:
        raise CommandError("serve", "there are two addresses", "give one of them", USAGE)
    chosen = found[0]
    for kind in kinds:
        if kind is not chosen[0]:
            _refuse_flags(kind, chosen[0], args)
    return chosen


def _meant(address: str, scheme: str, kinds: Sequence[AddressKind]) -> str:
    if "/" in address and ":" not in address:
        return f"did you mean {kinds[0].SCHEME}:{address}?"
    near = difflib.get_close_matches(scheme, [kind.SCHEME for kind in kinds], n=1)
    return f"did you mean {near[0]}:?" if near else f"it can be {', '.join(kind.FORM for kind in kinds)}"


def _refuse_flags(kind: AddressKind, chosen: AddressKind, args: argparse.Namespace) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    kind.add_flags(parser)
    for action in parser._actions:
        if getattr(args, action.dest, None) is not None:
            raise CommandError(
                f"option {action.option_strings[0]}", f"is for {kind.FORM}", f"leave it out with {chosen.FORM}", USAGE
            )

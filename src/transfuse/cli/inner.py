"""What the looking commands have in common: paths inside a source, and its tree in a fixed order.

Paths inside are meant from the source's root, with or without a leading slash. Trees are walked with a stack of our
own and to a bounded depth: a source is not trusted, and a directory can be made to contain itself.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfuse.cli.errors import FAILED, report
from transfuse.cli.options import Settings, add_source_flags, read_settings, refuse_mount_options

if TYPE_CHECKING:
    from transfuse.client import Client

__all__ = ["Child", "Errors", "add_common", "check_name", "children", "inside", "settings_of", "walk"]

MAX_DEPTH = 1024
"""Deepest directory that is walked into: a path of one-letter names of 4096 bytes (PATH_MAX) has 2048 of them."""

OnError = Callable[[str, OSError], None]


@dataclass(frozen=True, slots=True)
class Child:
    """One name in a directory; `path` is from the source's root, `depth` is 0 for what was asked about."""

    name: str
    path: str
    st: os.stat_result
    depth: int = 0

    @property
    def is_dir(self) -> bool:
        """A directory, not a link to one."""
        return stat.S_ISDIR(self.st.st_mode)


def add_common(parser: argparse.ArgumentParser) -> None:
    """SOURCE, -o and --debug."""
    parser.add_argument("source", metavar="SOURCE", help="a directory, memory:, python:MODULE:CLASS or unix:SOCKET")
    add_source_flags(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def settings_of(args: argparse.Namespace) -> Settings:
    """The options given with -o. Those of a mount have no meaning here and are refused."""
    settings = read_settings(args.o)
    refuse_mount_options(settings, args.o, ("source",))
    return settings


def inside(path: str) -> str:
    """A path inside a source, from its root."""
    return "/" + path.lstrip("/")


def check_name(name: str) -> str:
    """Refuse a name that is none: what a source calls a file must not lead out of a directory."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EIO, f"the source lists {name!r}, which is no file's name")
    return name


def children(client: Client, path: str, depth: int = 0) -> list[Child]:
    """What is in a directory, by name, "." and ".." left out. A name that vanishes meanwhile is left out too."""
    found = []
    base = path.rstrip("/")
    with client.scandir(path) as entries:
        for entry in entries:
            name = check_name(entry.name)
            try:
                st = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append(Child(name, f"{base}/{name}", st, depth))
    found.sort(key=lambda child: os.fsencode(child.name))
    return found


def walk(client: Client, top: str, on_error: OnError, max_depth: int = MAX_DEPTH) -> Iterator[tuple[str, list[Child]]]:
    """Each directory below `top` (included) with what is in it, parents first, in order of names."""
    waiting = [(top, 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            here = children(client, path, depth + 1)
        except OSError as error:
            on_error(path, error)
            continue
        yield path, here
        deeper = [(child.path, depth + 1) for child in reversed(here) if child.is_dir]
        if depth + 1 < max_depth:
            waiting += deeper
        elif deeper and max_depth == MAX_DEPTH:
            on_error(path, OSError(errno.ELOOP, f"more than {MAX_DEPTH} directories deep; not followed further"))


class Errors:
    """Counts what went wrong with single files, each with its line, so that the others are still done."""

    def __init__(self, debug: bool) -> None:
        self.debug = debug
        self.count = 0

    def __call__(self, path: str, error: OSError) -> None:
        self.count += 1
        if not error.filename:
            error.filename = path
        report(error, failed=FAILED, debug=self.debug)

    @property
    def code(self) -> int:
        """The exit code."""
        return FAILED if self.count else 0

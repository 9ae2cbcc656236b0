"""How much of the machine a server keeps: the options, and the moment at which it gives up the rest.

A kind of address makes its sockets, calls `Inside.enter`, and serves what that returns. A directory is opened in
there. What a class of one's own needs is not known, so it is contained only as far as is asked for.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transfuse.cli.daemon import Ready, notify_service_manager
from transfuse.cli.errors import CommandError, one_line
from transfuse.cli.mount import environment
from transfuse.cli.sources import AnyFilesystem, Source
from transfuse.sandbox import plan
from transfuse.sandbox.capabilities import parse_changes
from transfuse.sandbox.seccomp import MODES
from transfuse.sandbox.supervise import SocketFiles

__all__ = ["Inside", "add_flags", "read_flags"]

log = logging.getLogger("transfuse.cli")

LEAST_FILES, MOST_FILES = 64, 1 << 30
"""For --rlimit-nofile: what Python and the sockets take, and the largest that fs.nr_open could be."""


def _files(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not LEAST_FILES <= int(text) <= MOST_FILES:
        raise argparse.ArgumentTypeError(f"takes a number of files, {LEAST_FILES} to {MOST_FILES}")
    return int(text)


def _changes(text: str) -> tuple[tuple[str, bool], ...]:
    try:
        return parse_changes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write +sys_admin:-chown") from error


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--sandbox, --seccomp, --modcaps and --rlimit-nofile; None means that one was not given."""
    group: Any = parser.add_argument_group("containment (docs/containment.md)")
    group.add_argument(
        "--sandbox", choices=plan.SANDBOXES, help="what the server can still reach (default: auto, the best there is)"
    )
    group.add_argument(
        "--seccomp", choices=MODES, help="what becomes of system calls it has no use for (default: kill)"
    )
    group.add_argument(
        "--modcaps", metavar="CHANGES", type=_changes, help="capabilities it keeps or not: --modcaps=+sys_admin:-chown"
    )
    group.add_argument(
        "--rlimit-nofile", metavar="N", type=_files, help="files it may have open (default: a million, or what one may)"
    )


def read_flags(args: argparse.Namespace, source: Source, *, read_only: bool) -> plan.Containment | None:
    """What is wanted for `source`; None: nothing at all."""
    given = args.sandbox, args.seccomp, args.modcaps, args.rlimit_nofile
    wanted = plan.Containment(modcaps=args.modcaps or (), nofile=args.rlimit_nofile)
    if source.kind == "python":
        if given == (None, None, None, None):
            return None
        return replace(
            wanted, sandbox=args.sandbox or "none", seccomp=args.seccomp or "none", keep_capabilities=not args.modcaps
        )
    wanted = replace(wanted, sandbox=args.sandbox or "auto", seccomp=args.seccomp)
    if source.kind == "path":
        return replace(wanted, sources=(plan.Source(os.path.abspath(source.rest), read_only),))
    return wanted


class Inside:
    """A filesystem, and the containment in which it is served.

    `make` makes the filesystem from SOURCE. The order: the sockets are made, `enter`, serving, `leave`.
    """

    def __init__(
        self, source: Source, wanted: plan.Containment | None, make: Callable[[Source], AnyFilesystem]
    ) -> None:
        self._wanted = wanted
        self._make = make
        self._source = replace(source, rest=os.path.abspath(source.rest)) if source.kind == "path" else source
        # A class is found from where the caller stands, and has nothing that must be opened inside.
        self._made = make(source) if source.kind != "path" else None
        self._where: Callable[[str], str] = str
        self._sockets = SocketFiles(())
        self.line = "not contained: what a class of one's own needs is not known"
        """What is in force, once entered."""
        self.supervised = False
        """Another process, outside, removes the sockets."""

    def enter(self, ready: Ready, sockets: Sequence[str], state: str | None = None) -> AnyFilesystem:
        """Give up what is not needed; the filesystem. `sockets` are removed at the end: by `leave`, if not
        `supervised`. `state` is an absolute path of a directory where the server may write. CommandError for what was
        asked for and can't be had."""
        self._sockets = SocketFiles(sockets)
        wanted = self._wanted
        if wanted is None:
            return self._prepare(str)
        sources = (*wanted.sources, *([plan.Source(state)] if state else []))
        wanted = replace(wanted, sockets=tuple(sockets), readable=self._readable(), sources=sources)
        variables = environment()
        try:
            contained = plan.contain(wanted, self._prepare, notify=lambda text: notify_service_manager(text, variables))
        except plan.ContainmentError as error:
            raise CommandError("", one_line(str(error)), "leave the option out for what can be had here") from error
        ready.outside = contained.outside
        self.supervised = contained.outside is not None
        self.line = contained.report.line()
        log.info("containment: %s", contained.report.as_json())
        return contained.value

    def where(self, path: str) -> str:
        """Where the directory `state` is now."""
        return self._where(path)

    def leave(self) -> None:
        """Remove the sockets, unless somebody else does."""
        if not self.supervised:
            self._sockets.remove()

    def _prepare(self, where: Callable[[str], str]) -> AnyFilesystem:
        self._where = where
        if self._made is not None:
            return self._made
        return self._make(replace(self._source, rest=where(self._source.rest)))

    def _readable(self) -> tuple[str, ...]:
        """The file of a class of one's own, for tracebacks."""
        module = sys.modules.get(type(self._made).__module__)
        file = getattr(module, "__file__", None)
        return (os.path.abspath(file),) if self._made is not None and file else ()

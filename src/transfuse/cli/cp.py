"""`transfuse cp`: files and trees out of a source, into one, or between two; which is which is said by name."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from contextlib import ExitStack

from transfuse.cli import inner
from transfuse.cli.copy import Copier
from transfuse.cli.errors import OK, USAGE, CommandError, one_line
from transfuse.cli.options import Settings, read_settings
from transfuse.cli.output import human, plural, progress
from transfuse.cli.sides import Local, Remote, Side, join
from transfuse.cli.sources import connected

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  transfuse cp --from unix:/run/files.sock notes.txt docs/a.txt ./here
  transfuse cp -a --from ~/data / ./copy           all of it, as it is
  transfuse cp --to unix:/run/files.sock ./a.txt docs
  transfuse cp -r --from python:hello.py:Hello --to ~/data / hello

PATHs and DEST inside a source are meant from its root. If DEST is a directory, copies get their names in it. Holes stay
holes. Links are copied as links with -r and followed without it. Hard links become separate files without -H, and
beyond 131,072 of them that wait for their other names. Owners that may not be given are left out."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `cp`."""
    parser = commands.add_parser(
        "cp", help="copy out of a source, into one, or between two",
        description="Copy PATHs to DEST; --from names the source of PATHs, --to that of DEST. Nothing is mounted.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--from", dest="source", metavar="SOURCE", help="where PATHs are (default: this machine)")
    parser.add_argument("--to", dest="target", metavar="SOURCE", help="where DEST is (default: this machine)")
    parser.add_argument("-r", "-R", "--recursive", action="store_true", help="directories with what is in them")
    parser.add_argument("-p", "--preserve", action="store_true", help="keep mode, owner and times")
    parser.add_argument("-H", "--hard-links", action="store_true", help="names of one file stay names of one file")
    parser.add_argument("-X", "--xattrs", action="store_true", help="keep extended attributes and ACLs")
    parser.add_argument("-a", "--archive", action="store_true", help="all of these: -r -p -H -X")
    parser.add_argument("-o", action="append", default=[], metavar="OPTION[,...]", help="options of the source(s)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no summary")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="what to copy")
    parser.add_argument("dest", metavar="DEST", help="where to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Copy; goes on after a file that can't be copied."""
    if args.source is None and args.target is None:
        raise CommandError("cp", "neither side is a source", "name one: --from SOURCE or --to SOURCE", USAGE)
    errors = inner.Errors(args.debug)
    started = time.monotonic()
    with ExitStack() as stack:
        settings = inner.settings_of(args)
        source = _side(stack, args.source, settings)
        target = _side(stack, args.target, read_settings(args.o) if args.source else settings)
        paths = [inner.inside(path) for path in args.paths] if args.source else args.paths
        dest = inner.inside(args.dest) if args.target else args.dest
        into = _is_directory(target, dest)
        if len(paths) > 1 and not into:
            raise CommandError(args.dest, "is no directory", "several files need a directory to go to", USAGE)
        copier = Copier(
            source, target, args.recursive or args.archive, args.preserve or args.archive, errors,
            xattrs=args.xattrs or args.archive, hard_links=args.hard_links or args.archive,
        )  # fmt: skip
        wanted = False if args.quiet else None
        shown = sys.stderr.isatty() and not args.quiet
        total = sum(copier.total(path) for path in paths) if shown else 0
        with progress("copying", total, wanted) as advance:
            copier.advance = advance
            for path in paths:
                name = os.path.basename(path.rstrip("/"))
                copier.copy(path, join(dest, name) if into and name else dest)
    if copier.lost_count and not args.quiet:
        many = plural(copier.lost_count, "thing")
        more = "" if copier.lost_count == len(copier.lost) else "; ..."
        print(f"transfuse: {many} could not be kept: {one_line('; '.join(copier.lost))}{more}", file=sys.stderr)
    if shown:
        seconds = max(time.monotonic() - started, 1e-6)
        rate = human(copier.written / seconds)
        what = f"{plural(copier.files, 'file')}, {plural(copier.directories, 'directory', 'directories')}"
        if copier.linked:
            what += f", {plural(copier.linked, 'hard link')}"
        print(f"{what}, {human(copier.bytes)} in {seconds:.1f} s ({rate}/s)", file=sys.stderr)
    return errors.code or OK


def _side(stack: ExitStack, name: str | None, settings: Settings) -> Side:
    return Local() if name is None else Remote(stack.enter_context(connected(name, settings)))


def _is_directory(side: Side, path: str) -> bool:
    try:
        return stat.S_ISDIR(side.stat(path).st_mode)
    except FileNotFoundError:
        return False

"""`transfuse cat`: the bytes of files in a source, on standard output."""

from __future__ import annotations

import argparse
import sys

from transfuse.cli import inner
from transfuse.cli.errors import OK
from transfuse.cli.sources import connected

__all__ = ["add", "run"]

CHUNK = 1 << 20
"""Bytes of one read: what one request carries."""

EXAMPLES = """\
examples:
  transfuse cat ~/data notes.txt
  transfuse cat python:hello.py:Hello hello.txt
  transfuse cat unix:/run/files.sock logs/a.log logs/b.log | sort"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `cat`."""
    parser = commands.add_parser(
        "cat", help="print files of SOURCE", description="Print files of SOURCE. Nothing is mounted.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    inner.add_common(parser)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="inside SOURCE, from its root")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one after the other; goes on after one that can't be read."""
    errors = inner.Errors(args.debug)
    out = sys.stdout.buffer
    with connected(args.source, inner.settings_of(args)) as client:
        for path in map(inner.inside, args.paths):
            try:
                with client.open(path, "rb") as file:
                    while data := file.read(CHUNK):
                        out.write(data)
            except BrokenPipeError:
                raise
            except OSError as error:
                errors(path, error)
    out.flush()
    return errors.code or OK

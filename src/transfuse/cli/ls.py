"""`transfuse ls`: what is in a source, with no mount and no kernel."""

from __future__ import annotations

import argparse
import functools
import grp
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transfuse.cli import inner
from transfuse.cli.errors import OK
from transfuse.cli.inner import Child
from transfuse.cli.output import columns, human, kind_of, mode_text, shown, time_text, write_json
from transfuse.cli.sources import connected

if TYPE_CHECKING:
    from transfuse.client import Client

__all__ = ["add", "as_json", "group_name", "run", "user_name"]

EXAMPLES = """\
examples:
  transfuse ls ~/data
  transfuse ls -l ~/data reports/2025
  transfuse ls -R --json python:hello.py:Hello
  transfuse ls -la unix:/run/files.sock"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `ls`."""
    parser = commands.add_parser(
        "ls", help="list what is in SOURCE",
        description="List what is in SOURCE, or at PATHs in it. Nothing is mounted.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    inner.add_common(parser)
    parser.add_argument("paths", metavar="PATH", nargs="*", help="inside SOURCE, from its root (default: the root)")
    parser.add_argument("-l", action="store_true", help="mode, links, owner, group, size and time as well")
    parser.add_argument("-a", "--all", action="store_true", help="names that begin with a dot too")
    parser.add_argument("-R", "--recursive", action="store_true", help="directories below as well")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List; goes on after a path that can't be read."""
    errors = inner.Errors(args.debug)
    collected: list[dict[str, Any]] = []
    with connected(args.source, inner.settings_of(args)) as client:
        paths = [inner.inside(path) for path in args.paths or ["/"]]
        sections = len(paths) > 1 or args.recursive
        first = True
        for path in paths:
            try:
                st = client.stat(path)
            except OSError as error:
                errors(path, error)
                continue
            if not stat.S_ISDIR(st.st_mode):
                here = [Child(path, path, client.lstat(path))]
                collected += [as_json(client, child) for child in here] if args.json else []
                if not args.json:
                    _print(client, here, args.l)
                continue
            for directory, found in inner.walk(client, path, errors, inner.MAX_DEPTH if args.recursive else 1):
                listed = [child for child in found if args.all or not child.name.startswith(".")]
                if args.json:
                    collected += [as_json(client, child) for child in listed]
                    continue
                if sections:
                    print(f"{'' if first else chr(10)}{shown(directory)}:")
                first = False
                _print(client, listed, args.l)
    if args.json:
        write_json(collected)
    return errors.code or OK


def as_json(client: Client, child: Child) -> dict[str, Any]:
    """Everything about one name. Times are nanoseconds since 1970, the mode is octal text."""
    st = child.st
    return {
        "path": child.path,
        "type": kind_of(st.st_mode),
        "mode": f"{stat.S_IMODE(st.st_mode):04o}",
        "size": st.st_size,
        "uid": st.st_uid,
        "gid": st.st_gid,
        "nlink": st.st_nlink,
        "ino": st.st_ino,
        "mtime_ns": st.st_mtime_ns,
        "target": os.fsdecode(client.readlink(child.path)) if stat.S_ISLNK(st.st_mode) else None,
    }


def _print(client: Client, listed: Sequence[Child], long: bool) -> None:
    if not long:
        _print_names([shown(child.name) for child in listed])
        return
    rows = []
    for child in listed:
        st = child.st
        device = stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode)
        size = f"{os.major(st.st_rdev)}, {os.minor(st.st_rdev)}" if device else human(st.st_size)
        name = shown(child.name)
        if stat.S_ISLNK(st.st_mode):
            name += f" -> {shown(os.fsdecode(client.readlink(child.path)))}"
        owner, group = user_name(st.st_uid), group_name(st.st_gid)
        rows.append([mode_text(st.st_mode), str(st.st_nlink), owner, group, size, time_text(st.st_mtime_ns), name])
    for line in columns(rows, frozenset({1, 4})):
        print(line)


def _print_names(names: Sequence[str]) -> None:
    """One to a line, or on a terminal in as many columns as fit."""
    if not names or not sys.stdout.isatty():
        for name in names:
            print(name)
        return
    cell = max(map(len, names)) + 2
    per_line = max(1, shutil.get_terminal_size().columns // cell)
    lines = -(-len(names) // per_line)
    for i in range(lines):
        print("".join(name.ljust(cell) for name in names[i::lines]).rstrip())


@functools.cache
def user_name(uid: int) -> str:
    """The user's name here, or the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


@functools.cache
def group_name(gid: int) -> str:
    """The group's name here, or the number."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)

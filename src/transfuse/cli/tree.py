"""`transfuse tree`: a source as a drawing, with sizes and a sum."""

from __future__ import annotations

import argparse
import os
import stat
from typing import TYPE_CHECKING, Any

from transfuse.cli import inner
from transfuse.cli.errors import OK, USAGE, CommandError
from transfuse.cli.inner import Child
from transfuse.cli.ls import as_json
from transfuse.cli.output import human, plural, shown, write_json
from transfuse.cli.sources import connected

if TYPE_CHECKING:
    from transfuse.client import Client

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  transfuse tree ~/data
  transfuse tree -L 2 ~/data reports
  transfuse tree --json memory:"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `tree`."""
    parser = commands.add_parser(
        "tree", help="draw the tree in SOURCE",
        description="Draw the tree in SOURCE, or below PATH. Nothing is mounted.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    inner.add_common(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="inside SOURCE, from its root")
    parser.add_argument("-L", metavar="N", type=int, default=inner.MAX_DEPTH, help="at most N levels deep")
    parser.add_argument("-a", "--all", action="store_true", help="names that begin with a dot too")
    parser.add_argument("--json", action="store_true", help="machine-readable output: nested objects with children")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw; goes on after a directory that can't be read."""
    if args.L < 1:
        raise CommandError(f"-L {args.L}", "takes a number of levels, 1 or more", code=USAGE)
    errors = inner.Errors(args.debug)
    top = inner.inside(args.path)
    with connected(args.source, inner.settings_of(args)) as client:
        st = client.stat(top)
        if not stat.S_ISDIR(st.st_mode):
            raise CommandError(top, "is no directory", "use ls or cat", USAGE)
        depth = min(args.L, inner.MAX_DEPTH)
        found = {
            path: [child for child in here if args.all or not child.name.startswith(".")]
            for path, here in inner.walk(client, top, errors, depth)
        }
        if args.json:
            write_json(_nested(client, Child(top, top, st), found))
        else:
            print(shown(top))
            _draw(client, top, found)
    return errors.code or OK


def _draw(client: Client, top: str, found: dict[str, list[Child]]) -> None:
    directories = files = size = 0
    waiting: list[tuple[Child, str, bool]] = []

    def below(path: str, indent: str) -> None:
        here = found.get(path, [])
        waiting.extend((child, indent, child is here[-1]) for child in reversed(here))

    below(top, "")
    while waiting:
        child, indent, last = waiting.pop()
        text = shown(child.name)
        if child.is_dir:
            directories += 1
        else:
            files += 1
            if stat.S_ISREG(child.st.st_mode):
                size += child.st.st_size
                text += f"  ({human(child.st.st_size)})"
            elif stat.S_ISLNK(child.st.st_mode):
                text += f" -> {shown(os.fsdecode(client.readlink(child.path)))}"
        print(f"{indent}{'└── ' if last else '├── '}{text}")
        if child.is_dir:
            below(child.path, indent + ("    " if last else "│   "))
    print(f"\n{plural(directories, 'directory', 'directories')}, {plural(files, 'file')}, {human(size)}")


def _nested(client: Client, top: Child, found: dict[str, list[Child]]) -> dict[str, Any]:
    made: dict[str, dict[str, Any]] = {top.path: as_json(client, top)}
    for path, here in found.items():  # parents come before what is in them
        made[path]["children"] = []
        for child in here:
            made[child.path] = as_json(client, child)
            made[path]["children"].append(made[child.path])
    return made[top.path]

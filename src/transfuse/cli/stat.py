"""`transfuse stat`: everything that is known about a name in a source."""

from __future__ import annotations

import argparse
import os
import stat as bits
from typing import TYPE_CHECKING, Any

from transfuse.cli import inner
from transfuse.cli.errors import OK
from transfuse.cli.ls import group_name, user_name
from transfuse.cli.output import human, kind_of, mode_text, plural, shown, time_text, write_json
from transfuse.cli.sources import connected

if TYPE_CHECKING:
    from transfuse.client import Client

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  transfuse stat ~/data notes.txt
  transfuse stat --json ~/data / notes.txt
  transfuse stat -L ~/data link              what the link leads to"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `stat`."""
    parser = commands.add_parser(
        "stat", help="show all attributes of a name in SOURCE", description="Show all attributes of names in SOURCE.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    inner.add_common(parser)
    parser.add_argument("paths", metavar="PATH", nargs="*", help="inside SOURCE, from its root (default: the root)")
    parser.add_argument("-L", "--dereference", action="store_true", help="follow links")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show one after the other; goes on after one that can't be looked at."""
    errors = inner.Errors(args.debug)
    found: list[dict[str, Any]] = []
    with connected(args.source, inner.settings_of(args)) as client:
        for path in map(inner.inside, args.paths or ["/"]):
            try:
                found.append(facts(client, path, args.dereference))
            except OSError as error:
                errors(path, error)
    if args.json:
        write_json(found)
    else:
        print("\n\n".join(_text(about) for about in found))
    return errors.code or OK


def facts(client: Client, path: str, follow: bool) -> dict[str, Any]:
    """The attributes under their names; times in nanoseconds since 1970, btime_ns None where there is none."""
    st = client.stat(path, follow_symlinks=follow)
    return {
        "path": path,
        "type": kind_of(st.st_mode),
        "mode": f"{bits.S_IMODE(st.st_mode):04o}",
        "permissions": mode_text(st.st_mode),
        "size": st.st_size,
        "blocks": st.st_blocks,
        "blksize": st.st_blksize,
        "ino": st.st_ino,
        "nlink": st.st_nlink,
        "uid": st.st_uid,
        "gid": st.st_gid,
        "rdev": [os.major(st.st_rdev), os.minor(st.st_rdev)] if st.st_rdev else None,
        "atime_ns": st.st_atime_ns,
        "mtime_ns": st.st_mtime_ns,
        "ctime_ns": st.st_ctime_ns,
        "btime_ns": client.statx(path, follow_symlinks=follow).btime_ns,
        "target": os.fsdecode(client.readlink(path)) if bits.S_ISLNK(st.st_mode) else None,
    }


def _text(about: dict[str, Any]) -> str:
    size = about["size"]
    exact = f" ({size:,} bytes)" if size >= 1024 else ""
    what = about["type"]
    if about["target"] is not None:
        what += f" to {shown(about['target'])}"
    elif about["rdev"] is not None:
        what += f" {about['rdev'][0]}, {about['rdev'][1]}"
    lines = [
        shown(about["path"]),
        f"  type      {what}",
        f"  size      {human(size)}{exact}, {plural(about['blocks'], 'block')} of 512 bytes",
        f"  mode      {about['permissions']} ({about['mode']})",
        f"  owner     {user_name(about['uid'])} ({about['uid']}), group {group_name(about['gid'])} ({about['gid']})",
        f"  inode     {about['ino']}, {plural(about['nlink'], 'link')}",
        f"  accessed  {time_text(about['atime_ns'], exact=True)}",
        f"  modified  {time_text(about['mtime_ns'], exact=True)}",
        f"  changed   {time_text(about['ctime_ns'], exact=True)}",
    ]
    if about["btime_ns"] is not None:
        lines.append(f"  born      {time_text(about['btime_ns'], exact=True)}")
    return "\n".join(lines)

"""`transfuse umount`: end a FUSE mount, also one whose server is dead or hangs. Exit codes are those of umount(8)."""

from __future__ import annotations

import argparse

from transfuse.cli.errors import MOUNT_FAILED, OK, report
from transfuse.transports.mount.umount import umount

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  transfuse umount /mnt/data
  transfuse umount --lazy /mnt/data     files still open there stay usable until they are closed
  transfuse umount --force /mnt/data    whoever waits for the server gets an error; unwritten data is lost

Mounts whose server was killed ("Transport endpoint is not connected") are cleared too."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `umount`."""
    parser = commands.add_parser(
        "umount", help="unmount DIR, dead or alive", description="Unmount the FUSE filesystem on DIR, dead or alive.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("dirs", metavar="DIR", nargs="+", help="mount points")
    parser.add_argument(
        "-l", "--lazy", action="store_true", help="take it away now, clean up when it is not used any more"
    )
    parser.add_argument("-f", "--force", action="store_true", help="abort what is waiting for the server first")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=run, failed=MOUNT_FAILED)


def run(args: argparse.Namespace) -> int:
    """Unmount each; goes on after a failure and returns the last code that was not 0."""
    code = OK
    for name in args.dirs:
        try:
            umount(name, lazy=args.lazy, force=args.force)
        except OSError as error:
            code = report(error, failed=MOUNT_FAILED, debug=args.debug)
    return code

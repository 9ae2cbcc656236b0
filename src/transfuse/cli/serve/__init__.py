"""`transfuse serve`: a filesystem behind an address that other programs read, with no mount.

What SOURCE and the options say is as with `mount`; ADDRESS says to whom it is served, and each kind of address is one
module of this package (see `kinds`). In the foreground unless told otherwise: service managers, containers and scripts
want it so, and those who start a server for a virtual machine do, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from transfuse.cli.daemon import Ready, run_service
from transfuse.cli.errors import FAILED
from transfuse.cli.options import add_flags, read_settings, refuse_mount_options
from transfuse.cli.serve import contain, layers
from transfuse.cli.serve.contain import Inside, read_flags
from transfuse.cli.serve.kinds import KINDS, Service, add_kinds, choose
from transfuse.cli.sources import AnyFilesystem, Source, make_filesystem, parse_source

__all__ = ["add", "run"]

DESCRIPTION = """\
Serve SOURCE on ADDRESS until SIGTERM, SIGINT or SIGHUP comes; nothing is mounted. One line is printed when it can be
used. ADDRESS is one of:
"""
EXAMPLES = """\
examples:
  transfuse serve ~/data unix:/run/user/1000/files.sock
  transfuse serve ~/data unix:files.sock --read-only --background
  transfuse serve memory: unix:/tmp/scratch.sock -o size_bytes=64M
  transfuse serve python:hello.py:Hello unix:hello.sock -o greeting=Servus
  transfuse serve ~/data --socket-path /run/user/1000/vm.sock --tag data --queues 4

and from elsewhere:
  transfuse ls -l unix:/run/user/1000/files.sock
  transfuse cp -a --from unix:/run/user/1000/files.sock / ./copy

The file of a socket has mode 0600, and whoever may connect has the rights of the server: it is for one user.
docs/serving.md says what the clients share, and how a virtual machine comes by its device."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `serve`."""
    listed = "\n".join(f"  {kind.FORM:<16} {kind.PEERS}" for kind in KINDS)
    parser = commands.add_parser(
        "serve", help="serve SOURCE on a socket", description=f"{DESCRIPTION}{listed}", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("source", metavar="SOURCE", help="a directory, memory:, or python:MODULE:CLASS")
    forms = ", ".join(kind.FORM for kind in KINDS)
    parser.add_argument("address", metavar="ADDRESS", nargs="?", help=f"where: {forms}")
    parser.add_argument("-b", "--background", action="store_true", help="go to the background once it can be used")
    add_flags(parser, mount=False)
    layers.add_flags(parser)
    contain.add_flags(parser)
    add_kinds(parser)
    parser.set_defaults(run=run, failed=FAILED)


def run(args: argparse.Namespace, *, log_is_ready: Callable[[], None] = lambda: None) -> int:
    """Serve; in the foreground until a signal comes. `log_is_ready` is called when the log has been set up."""
    settings = read_settings(args.o)
    refuse_mount_options(settings, args.o, ("source", "program"), read_only=True)
    source = parse_source(args.source)
    kind, rest = choose(args)
    service = Service(source, kind.check(rest, args, settings), args, settings)
    wanted = read_flags(args, source, read_only=settings.mount.read_only)
    around = layers.read_layers(args, read_only=settings.mount.read_only)

    def make(source: Source) -> AnyFilesystem:
        return around.around(make_filesystem(source, settings))

    def serve(inside: Inside, ready: Ready) -> int:
        return kind.serve(inside, service, ready)

    def start() -> Inside:
        log_is_ready()
        return Inside(source, wanted, make)

    return run_service(
        start, serve, background=args.background, debug=bool(settings.get("debug")),
        log_file=settings.get("log_file"), failed=FAILED,
    )  # fmt: skip

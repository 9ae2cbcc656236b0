"""`transfuse relay`: keeps a virtual machine's connection while the server behind it is replaced or crashes.

A machine's process (QEMU, for one) gives a virtio-fs device up when its server goes away. So it connects to the relay,
which has nothing to do but to remember; see transports.vhost_user.relay.
"""

from __future__ import annotations

import argparse
import os

from transfuse.cli.daemon import StopSignals, notify_service_manager
from transfuse.cli.errors import OK, USAGE, CommandError
from transfuse.cli.mount import environment

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  transfuse serve ~/data vhost-user:/run/user/1000/server.sock --state-file /run/user/1000/state
  transfuse relay /run/user/1000/vm.sock /run/user/1000/server.sock
  qemu-system-x86_64 ... -chardev socket,id=fs,path=/run/user/1000/vm.sock ...

The server may now be stopped and started again, or crash, while the guest has its files open: the machine waits. The
server must keep a state file, or the guest has to mount anew."""

SCHEME = "vhost-user:"
MAX_PATH = 107
"""Longest path of a socket: sun_path in unix(7), less its NUL."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `relay`."""
    parser = commands.add_parser(
        "relay", help="keep a virtual machine's connection while its server is replaced",
        description="Listen on FRONT for a virtual machine, and pass on to the virtio-fs server that listens on BACK.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("front", metavar="FRONT", help="the socket that the machine connects to; made here")
    parser.add_argument("back", metavar="BACK", help="the server's socket, which need not be there yet")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=run)


def _path(text: str) -> str:
    path = os.path.abspath(text.removeprefix(SCHEME))
    if not text.removeprefix(SCHEME):
        raise CommandError(text or "a socket", "is no path", "write the path of a socket", USAGE)
    if len(os.fsencode(path)) > MAX_PATH:
        raise CommandError(path, f"is longer than {MAX_PATH} bytes", "choose a shorter path", USAGE)
    return path


def run(args: argparse.Namespace) -> int:
    """Relay until a signal comes."""
    from transfuse.transports.vhost_user.relay import Relay

    front, back = _path(args.front), _path(args.back)
    if front == back:
        raise CommandError(front, "is both sockets", "name two", USAGE)
    with StopSignals().caught() as signals:
        try:
            relay = Relay(front, back)
        except OSError as error:
            why = error.strerror or str(error)
            raise CommandError(front, why, "name a path where a socket can be made") from error
        with relay:
            line = f"{front} leads to {back}"
            print(line, flush=True)
            notify_service_manager(f"READY=1\nSTATUS={line}", environment())
            signals.wait(relay.wait)
            notify_service_manager("STOPPING=1", environment())
    return OK

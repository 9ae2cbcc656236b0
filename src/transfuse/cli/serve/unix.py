"""`unix:/path.sock`: a Unix socket (SOCK_SEQPACKET) that any number of clients may come to and leave.

They all see one filesystem, each with its own accounts (`fs.shared`), so that a client that is killed leaves nothing
behind. The socket's file is for this user alone, since whoever may connect may claim to be anybody; it is removed at
the end, and one that a dead server left is replaced.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from transfuse.cli.daemon import Ready, StopSignals
from transfuse.cli.errors import OK, USAGE, CommandError
from transfuse.cli.mount import environment, form, tracer
from transfuse.cli.options import Settings
from transfuse.cli.output import plural

if TYPE_CHECKING:
    from transfuse.cli.serve.contain import Inside
    from transfuse.cli.serve.kinds import Service

__all__ = ["FORM", "PEERS", "SCHEME", "add_flags", "check", "implied", "serve"]

SCHEME = "unix"
FORM = "unix:SOCKET"
PEERS = "transfuse's own client (ls, cat, cp, ..., and transfuse.client)"

MAX_PATH = 107
"""Longest path of a socket: sun_path in unix(7), less its NUL."""
LARGEST_CLIENTS = 1024
"""Most clients that can be asked for; each has a thread or more."""
SETTLE_S = 10.0
"""How long the end waits for coroutines that close what the clients had open."""


def _clients(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= LARGEST_CLIENTS:
        raise argparse.ArgumentTypeError(f"takes a number of clients, 1 to {LARGEST_CLIENTS}")
    return int(text)


def add_flags(group: Any) -> None:
    """--max-clients."""
    group.add_argument(
        "--max-clients", metavar="N", type=_clients, help="most clients at a time; others are turned away (default: 64)"
    )


def implied(args: argparse.Namespace) -> str | None:
    """No flag stands for a socket of this kind."""
    return None


def check(rest: str, args: argparse.Namespace, settings: Settings) -> str:
    """The socket's absolute path."""
    if not rest:
        raise CommandError("ADDRESS unix:", "names no socket", "write unix:/path.sock", USAGE)
    path = os.path.abspath(rest)
    if len(os.fsencode(path)) > MAX_PATH:
        raise CommandError(f"unix:{path}", f"is longer than {MAX_PATH} bytes", "choose a shorter path", USAGE)
    if settings.get("writeback"):
        raise CommandError(
            "option writeback", "can't be with several clients", "leave it out: each would own a file's size", USAGE
        )
    return path


def serve(inside: Inside, service: Service, ready: Ready) -> int:
    """Listen, enter the containment, announce, and serve until a signal comes."""
    from transfuse.executor import ThreadedExecutor
    from transfuse.fs.shared import Shared
    from transfuse.server import DEFAULT_WORKERS, Server
    from transfuse.session.server import check_filesystem
    from transfuse.transports.stream import MAX_CLIENTS, StreamListener, StreamTransport

    executor: ThreadedExecutor
    shared: Shared
    workers, trace = service.settings.get("workers", DEFAULT_WORKERS), tracer(service.settings)
    most = service.args.max_clients or MAX_CLIENTS

    def serve_one(transport: StreamTransport) -> Server:
        return Server(shared.view(), transport, workers=workers, trace=trace, executor=executor).start()

    with StopSignals().caught() as signals:
        try:
            listener = StreamListener(service.place, serve_one, max_clients=most)
        except OSError as error:
            why = error.strerror or str(error)
            raise CommandError(f"unix:{service.place}", why, "name a path where a socket can be made") from error
        try:
            filesystem = inside.enter(ready, [service.place])
            if inside.supervised:
                listener.leave_file()
            executor = ThreadedExecutor()
            shared = Shared(filesystem, executor.run_coroutine)
            check_filesystem(shared.inner)
        except BaseException:
            listener.close()
            raise
        try:
            with listener:
                if not signals.number:
                    clients = plural(most, "client")
                    served = f"{service.source.text} served on unix:{service.place}"
                    ready.announce(f"{served} (up to {clients}, {form()}; {inside.line})", environment())
                signals.wait(listener.wait)
                ready.stopping(environment())
        finally:
            shared.wait_empty(SETTLE_S)
            executor.close()
    return OK

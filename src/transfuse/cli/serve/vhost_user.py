"""`vhost-user:/path.sock`: a virtio-fs device for one virtual machine.

The options that stand for this address are named as virtiofsd's are, so that whoever starts that one can start this.
The server outlives the machine: when the front-end goes away the next one is waited for, and with --state-file a guest
may even go on after the server itself was replaced (see transports.vhost_user). The socket's file is for this user
alone, or also for --socket-group: whoever may connect acts as root of the guest.
"""

from __future__ import annotations

import argparse
import grp
import os
import re
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transfuse.cli.daemon import Ready, StopSignals
from transfuse.cli.errors import OK, USAGE, CommandError
from transfuse.cli.mount import environment, form, tracer
from transfuse.cli.options import Settings
from transfuse.cli.output import plural
from transfuse.transports.vhost_user.config import MAX_QUEUES, check_tag

if TYPE_CHECKING:
    from transfuse.cli.serve.contain import Inside
    from transfuse.cli.serve.kinds import Service
    from transfuse.transports.vhost_user.backend import VhostUserTransport

__all__ = ["FORM", "PEERS", "SCHEME", "add_flags", "check", "implied", "serve"]

SCHEME = "vhost-user"
FORM = "vhost-user:SOCKET"
PEERS = "a virtual machine (QEMU, cloud-hypervisor, crosvm), as a virtio-fs device"

MAX_PATH = 107
"""Longest path of a socket: sun_path in unix(7), less its NUL."""
WINDOW_PAGE = 1 << 21
MAX_WINDOW = 1 << 46
"""Largest DAX window; no guest has more address space for it."""
INHERITED = "fd="
"""How an address of an inherited socket begins, for `check`; no path does, since those are made absolute."""
_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _number(what: str, low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"takes {what}, {low} to {high}")
        return int(text)

    return read


def _tag(text: str) -> str:
    try:
        check_tag(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _window(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([kmgt]?)(i?b)?", text.lower())
    size = int(match[1]) * _SUFFIXES[match[2]] if match else 0
    if not 0 < size <= MAX_WINDOW or size % WINDOW_PAGE:
        raise argparse.ArgumentTypeError("takes a size that is a multiple of 2M, as 512M or 8G")
    return size


def add_flags(group: Any) -> None:
    """Where to listen, what the device is, and what outlives the server."""
    group.add_argument("--socket-path", metavar="PATH", help="listen there; stands for ADDRESS")
    group.add_argument(
        "--fd", metavar="N", type=_number("a descriptor", 0, 1 << 20),
        help="an inherited Unix socket, listening or connected; stands for ADDRESS",
    )  # fmt: skip
    group.add_argument("--socket-group", metavar="GROUP", help="this group may connect, too (mode 0660)")
    group.add_argument("--tag", metavar="TAG", type=_tag, help="the device's name, where the machine gives it none")
    group.add_argument(
        "--queues", metavar="N", type=_number("a number of request queues", 1, MAX_QUEUES),
        help="most request queues (default: 1); Linux 6.12 and later use one for each CPU",
    )  # fmt: skip
    group.add_argument("--dax", metavar="SIZE", type=_window, help="a DAX window: the guest maps files, without a copy")
    group.add_argument(
        "--state-file", metavar="FILE", help="kept there: a guest goes on when this server is replaced by another"
    )
    group.add_argument(
        "--remote-locks", action="store_const", const=True,
        help="locks of guests and host see each other; a Linux guest can't kill who waits for one",
    )  # fmt: skip
    group.add_argument("--once", action="store_const", const=True, help="end when the machine disconnects")


def implied(args: argparse.Namespace) -> str | None:
    """--socket-path or --fd."""
    if args.socket_path is not None and args.fd is not None:
        raise CommandError("options --socket-path and --fd", "name two sockets", "give one of them", USAGE)
    if args.fd is not None:
        return f"{INHERITED}{args.fd}"
    return args.socket_path  # type: ignore[no-any-return]


def check(rest: str, args: argparse.Namespace, settings: Settings) -> str:
    """The socket's absolute path, or "fd=N"."""
    inherited = args.fd is not None
    if not rest:
        raise CommandError("ADDRESS vhost-user:", "names no socket", "write vhost-user:/path.sock", USAGE)
    if args.state_file is not None:
        args.state_file = os.path.abspath(args.state_file)
        try:
            os.stat(os.path.dirname(args.state_file))
        except OSError as error:
            raise _state_error(args, error) from error
    if args.socket_group is not None:
        if inherited:
            raise CommandError(
                "option --socket-group", "is for a socket that is made here", "leave it out with --fd", USAGE
            )
        _group(args.socket_group)
    if inherited:
        _check_socket(args.fd)
        return rest
    path = os.path.abspath(rest)
    if len(os.fsencode(path)) > MAX_PATH:
        raise CommandError(f"vhost-user:{path}", f"is longer than {MAX_PATH} bytes", "choose a shorter path", USAGE)
    return path


def _group(name: str) -> int:
    """The number of a group, by name or number."""
    if name.isascii() and name.isdigit() and int(name) < 0xFFFF_FFFF:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise CommandError(f"--socket-group {name}", "no such group", "name a group of this machine", USAGE) from error


def _check_socket(fd: int) -> None:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise CommandError(f"--fd {fd}", "is no socket", "pass on a Unix socket of type SOCK_STREAM", USAGE)
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
                raise CommandError(f"--fd {fd}", "is another kind of socket", "pass on a Unix stream socket", USAGE)
    except OSError as error:
        why = error.strerror or str(error)
        raise CommandError(f"--fd {fd}", why, "pass on an open Unix socket of type SOCK_STREAM", USAGE) from error


def make_socket(service: Service) -> socket.socket:
    """The socket, listening unless it was inherited connected. CommandError if it cannot be had."""
    from transfuse.transports.listening import listen

    args = service.args
    if service.place.startswith(INHERITED):
        return socket.socket(fileno=args.fd)
    try:
        sock = listen(service.place, socket.SOCK_STREAM)
    except OSError as error:
        why = error.strerror or str(error)
        raise CommandError(f"vhost-user:{service.place}", why, "name a path where a socket can be made") from error
    if args.socket_group:
        try:
            os.chown(service.place, -1, _group(args.socket_group))
            os.chmod(service.place, 0o660)  # not before: it was another group's
        except OSError as error:
            sock.close()
            os.unlink(service.place)
            why = error.strerror or str(error)
            raise CommandError(f"--socket-group {args.socket_group}", why, "be a member of it, or root") from error
    return sock


def make_transport(sock: socket.socket, service: Service, state_path: str | None) -> VhostUserTransport:
    """The device. CommandError if the state file cannot be had."""
    from transfuse.transports.vhost_user.backend import VhostUserTransport

    args = service.args
    workers = service.settings.get("workers")
    try:
        return VhostUserTransport(
            sock, tag=args.tag or "", queues=args.queues or 1, window=args.dax or 0, once=bool(args.once),
            state_path=state_path, remote_locks=bool(args.remote_locks),
            **({} if workers is None else {"workers": workers}),
        )  # fmt: skip
    except OSError as error:
        raise _state_error(args, error) from error


def _state_error(args: argparse.Namespace, error: OSError) -> CommandError:
    why = error.strerror or str(error)
    return CommandError(f"--state-file {args.state_file}", why, "name a file for this server alone")


def serve(inside: Inside, service: Service, ready: Ready) -> int:
    """Listen, enter the containment, announce, and serve one machine after the other until a signal comes."""
    with StopSignals().caught() as signals, make_socket(service) as sock:
        sockets = [] if service.place.startswith(INHERITED) else [service.place]
        try:
            return _serve(inside, service, ready, signals, sock, sockets)
        finally:
            inside.leave()


def _serve(
    inside: Inside, service: Service, ready: Ready, signals: StopSignals, sock: socket.socket, sockets: list[str]
) -> int:
    from transfuse.server import Server

    args = service.args
    folder, name = os.path.split(args.state_file or "")
    filesystem = inside.enter(ready, sockets, folder or None)
    state_path = os.path.join(inside.where(folder), name) if folder else None
    transport = make_transport(sock, service, state_path)
    server = Server(filesystem, transport, trace=tracer(service.settings))
    try:
        if args.state_file and not server.filesystem.keeps_state:
            raise CommandError(
                "option --state-file", f"{service.source.text} keeps no state", "only directories do", USAGE
            )
        try:
            server.start()
        except OSError as error:
            raise _state_error(args, error) from error
        if not signals.number:
            ready.announce(_announcement(service, inside.line), environment())
        signals.wait(server.wait)
        ready.stopping(environment())
    finally:
        server.close()
    return OK


def _announcement(service: Service, contained: str) -> str:
    args = service.args
    place = f"socket {args.fd}" if service.place.startswith(INHERITED) else service.place
    tag = f"tag {args.tag}, " if args.tag else ""
    window = f"DAX window {args.dax >> 20} MiB, " if args.dax else ""
    queues = plural(args.queues or 1, "queue")
    return f"{service.source.text} served on vhost-user:{place} ({tag}{queues}, {window}{form()}; {contained})"

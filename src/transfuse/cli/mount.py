"""`transfuse mount`: a filesystem under a directory, in the background once it answers.

Order of events: options and SOURCE are read → the process goes to the background (unless --foreground) → the
filesystem is made (its class may start threads, so not before the fork) → mounted and answering → announced → served
until somebody unmounts it or a signal asks to stop. Exit codes are those of mount(8).
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import transfuse
from transfuse.cli import remount
from transfuse.cli.daemon import Ready, StopSignals, run_service
from transfuse.cli.errors import MOUNT_FAILED, OK, USAGE, CommandError
from transfuse.cli.options import Settings, add_flags, read_settings
from transfuse.cli.sources import AnyFilesystem, Source, check_extra, make_filesystem, parse_source
from transfuse.session.negotiate import Connection
from transfuse.transports.base import ServerTransport
from transfuse.transports.mount.inherit import from_fd, parse_dev_fd
from transfuse.transports.mount.options import MountOptions
from transfuse.wire import flags as f

__all__ = ["add", "effective_options", "environment", "form", "run", "tracer"]

SUBTYPE = "transfuse"
"""What /proc/mounts and `mount -t` call our mounts: fuse.transfuse."""
INHERITED_CONNECT_TIMEOUT_S = 60.0
"""How long whoever handed us a descriptor may take to mount it."""

EXAMPLES = """\
examples:
  transfuse mount /srv/data /mnt/data
  transfuse mount /srv/data /mnt/data --cache always --read-only -f
  transfuse mount memory: /mnt/scratch -o size_bytes=64M
  transfuse mount python:hello.py:Hello /mnt/hello -o greeting=Servus
  transfuse mount /srv/data /dev/fd/5          a descriptor that is mounted already

It goes to the background once the mount answers. SIGTERM, SIGINT and SIGHUP unmount. A directory is mounted with
default_permissions, and by root with allow_other (no_allow_other: root only).

Each flag is an -o option too: --entry-timeout 5 is -o entry_timeout=5. Of -o alone: allow_root, max_read=N, user_id=N,
group_id=N, fsname=NAME, subtype=NAME, remount, rw, suid, dev, noexec, noatime, strictatime, nodiratime, sync, dirsync,
lazytime, nosymfollow; and the arguments of a class, as name=value. docs/options.md has the rules."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `mount`."""
    parser = commands.add_parser(
        "mount", help="mount SOURCE on DIR", description="Mount SOURCE on DIR through this machine's kernel.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("source", metavar="SOURCE", help="a directory, memory:, or python:MODULE:CLASS")
    parser.add_argument(
        "dir", metavar="DIR", nargs="?", help="where; /dev/fd/N is a descriptor that is mounted already"
    )
    parser.add_argument("--fd", metavar="N", help="use this /dev/fuse descriptor; without DIR it is mounted already")
    add_flags(parser)
    parser.add_argument("--called-by-mount", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sloppy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fake", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run, failed=MOUNT_FAILED)


def run(args: argparse.Namespace) -> int:
    """Mount and, in the foreground, serve until unmounted."""
    settings = read_settings(args.o, sloppy=args.sloppy)
    inherited = _inherited_fd(args, settings)
    source = parse_source(args.source)
    if settings.mount.remount:
        # Options of the source and the program may come along from fstab; the process that serves has its own already.
        check_extra(source, settings)
        return remount.run(args.dir, settings.mount, fake=args.fake)
    options = effective_options(settings, source, root=os.geteuid() == 0)
    place = "" if args.dir is None else os.path.abspath(args.dir)

    def make() -> AnyFilesystem:
        return make_filesystem(source, settings, search_here=not args.called_by_mount)

    def serve(filesystem: AnyFilesystem, ready: Ready) -> int:
        if inherited is not None:
            return serve_inherited(filesystem, source, inherited, settings, options, ready)
        return serve_mount(filesystem, source, place, settings, options, ready)

    if args.fake:
        make()
        return OK
    return run_service(
        make, serve, background=not settings.get("foreground"), debug=bool(settings.get("debug")),
        log_file=settings.get("log_file"), failed=MOUNT_FAILED,
    )  # fmt: skip


def _inherited_fd(args: argparse.Namespace, settings: Settings) -> int | None:
    """The descriptor that is connected already, or None for a mount of our own; puts --fd with DIR into the options."""
    number: int | None = None
    if args.fd is not None:
        if not args.fd.isascii() or not args.fd.isdigit() or len(args.fd) > 9:
            raise CommandError(f"--fd {args.fd}", "takes the number of an open descriptor", code=USAGE)
        number = int(args.fd)
    if args.dir is None:
        if number is None:
            raise CommandError(
                "mount", "DIR is missing", "say where to mount, or --fd N for a descriptor mounted already", USAGE
            )
        return number
    in_place = parse_dev_fd(args.dir)
    if in_place is not None and number is not None:
        raise CommandError("mount", f"--fd {number} and {args.dir} are two descriptors", "give one of the two", USAGE)
    if in_place is None and number is not None:
        if settings.mount.fd not in (None, number):
            raise CommandError(
                "mount", f"--fd {number} and -o fd={settings.mount.fd} differ", "give one of the two", USAGE
            )
        settings.mount.fd = number
    return in_place


def effective_options(settings: Settings, source: Source, *, root: bool) -> MountOptions:
    """The mount options with our defaults filled in.

    A directory and memory: keep POSIX permissions, so the kernel is told to check them (default_permissions). Root's
    mount of a directory is for everybody, like a bind mount (allow_other); other mounts are for their owner.
    """
    given = settings.mount
    posix = source.kind in ("path", "memory")
    return replace(
        given,
        source=given.source or source.text,
        subtype=given.subtype or SUBTYPE,
        default_permissions=given.default_permissions or (posix and not settings.get("no_default_permissions", False)),
        allow_other=given.allow_other
        or (source.kind == "path" and root and not given.allow_root and not settings.get("no_allow_other", False)),
        rest=[],  # read_settings and make_filesystem took or refused each of them
    )


def form() -> str:
    """Which form of the hot modules runs."""
    return "compiled" if transfuse.COMPILED else "plain"


def announcement(source: str, place: str, method: str, connection: Connection) -> str:
    """The line that says what was mounted how."""
    passthrough = "passthrough" if connection.features.passthrough else "no passthrough"
    ring = "io_uring, " if connection.has(f.FUSE_OVER_IO_URING) else ""
    return f"{source} mounted on {place} ({method}, FUSE 7.{connection.minor}, {ring}{passthrough}, {form()})"


def serve_mount(
    filesystem: AnyFilesystem, source: Source, place: str, settings: Settings, options: MountOptions, ready: Ready
) -> int:
    """Mount, announce, and serve until unmounted from outside or stopped by a signal."""
    from transfuse.server import DEFAULT_WORKERS, mount

    with StopSignals().caught() as signals:
        mounted = mount(
            filesystem, place, options,
            workers=settings.get("workers", DEFAULT_WORKERS), method=settings.get("method", "auto"),
            io_uring=bool(settings.get("io_uring")),
            trace=tracer(settings),
        )  # fmt: skip
        with mounted:
            if not signals.number:
                line = announcement(source.text, place, mounted.mounted.method, mounted.connection)
                ready.announce(line, environment())
            signals.wait(mounted.wait)
    return OK


def serve_inherited(
    filesystem: AnyFilesystem, source: Source, fd: int, settings: Settings, options: MountOptions, ready: Ready
) -> int:
    """Serve a connection that somebody else made."""
    from transfuse.fs.wrap import ReadOnly
    from transfuse.server import DEFAULT_WORKERS, Server
    from transfuse.transports.dev_fuse import DevFuse
    from transfuse.transports.stream import StreamTransport

    if options.read_only:
        filesystem = ReadOnly(filesystem)  # the mount's flags are not ours to set
    device = from_fd(fd) == "dev_fuse"
    transport: ServerTransport = DevFuse(fd, wakeable=True) if device else StreamTransport.from_fd(fd)
    server = Server(
        filesystem, transport,
        workers=settings.get("workers", DEFAULT_WORKERS), default_permissions=options.default_permissions,
        owner=(os.getuid() if options.user_id is None else options.user_id) if options.allow_root else None,
        trace=tracer(settings),
    )  # fmt: skip
    with StopSignals().caught() as signals:
        try:
            server.start()
            if signals.wait(lambda: server.wait_connected(INHERITED_CONNECT_TIMEOUT_S)):
                return OK
            connection = server.connection
            if connection is None:
                raise CommandError(
                    f"descriptor {fd}", "no INIT came", "mount it, or connect a client, first", MOUNT_FAILED
                )
            ready.announce(announcement(source.text, f"descriptor {fd}", "inherited", connection), environment())
            signals.wait(server.wait)
        finally:
            if server.close() and isinstance(transport, DevFuse):
                transport.dispose()
    return OK


def tracer(settings: Settings) -> Callable[[str], None] | None:
    """With debug: where each request, reply and notification is shown, a line each."""
    return logging.getLogger("transfuse.trace").debug if settings.get("debug") else None


def environment() -> Mapping[str, str]:
    """The environment, read here and nowhere below the command line."""
    return os.environ

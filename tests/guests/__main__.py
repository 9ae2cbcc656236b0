"""Guests by hand: `PYTHONPATH=tests python -m guests prepare|list|run ...`.

    prepare [MACHINE...]                    fetch kernels and Python (all that `make test` uses, if none is named)
    list                                    the machines, and what is there
    run MACHINE SCRIPT [--source DIR]       boot, run a shell script of the guest's busybox ("-": stdin), power off

With --source the directory is served by --kind (transfuse, virtiofsd, virtiofsd-c; behind "--" come its options)
and mounted on /mnt by the guest before the script runs; --socket takes a back-end that listens already. The exit
status is the script's; 124: time-out, 125: the guest or what it needs broke down.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from pathlib import Path

from guests import images, servers
from guests.guest import Guest, GuestError, ScriptTimeout
from guests.machine import MACHINES, Filesystem
from guests.packages import Missing, cache

USED_BY_TESTS = ("amd64", "amd64-6.12", "arm64", "arm64-16k", "ppc64el", "s390x")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guests", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare")
    prepare.add_argument("machine", nargs="*", metavar="MACHINE")
    commands.add_parser("list")
    run = commands.add_parser("run")
    run.add_argument("machine", choices=MACHINES)
    run.add_argument("script")
    run.add_argument("--source", type=Path)
    run.add_argument("--socket", type=Path)
    run.add_argument("--kind", default="transfuse")
    run.add_argument("--options", default="", help="mount options")
    run.add_argument("--python", action="store_true", help="with Python, this package and tests/guests/inside")
    run.add_argument("--host-tools", action="store_true", help="with this machine's / on /host")
    run.add_argument("--put", action="append", default=[], metavar="HERE:THERE")
    run.add_argument("--queues", type=int, default=1)
    run.add_argument("--queue-size", type=int, default=128)
    run.add_argument("--cpus", type=int, default=1)
    run.add_argument("--memory", type=int, default=512, metavar="MIB")
    run.add_argument("--newer", action="store_true", help="with QEMU of Debian sid")
    run.add_argument("--timeout", type=float, default=600)
    run.add_argument("-v", "--verbose", action="store_true")
    return parser


def _list() -> None:
    for machine in MACHINES.values():
        release = cache() / "kernels" / machine.name / "release"
        state = release.read_text().strip() if release.exists() else "not prepared"
        qemu = f"qemu-system-{machine.qemu}"
        there = "" if shutil.which(qemu) else " (not installed)"
        print(f"{machine.name:12} {machine.suite} {machine.kernel}, pages of {machine.page_size >> 10} KiB, "
              f"{qemu}{there}: {state}")  # fmt: skip


def _prepare(names: list[str]) -> int:
    status = 0
    for name in names:
        started = time.monotonic()
        try:
            release = images.kernel(MACHINES[name]).release
            images.interpreter(MACHINES[name])
            print(f"{name}: {release}, {time.monotonic() - started:.0f} s", flush=True)
        except Missing as why:
            print(f"{name}: {why}", file=sys.stderr)
            status = 125
    return status


def _run(options: argparse.Namespace, backend_options: list[str]) -> int:
    script = sys.stdin.read() if options.script == "-" else Path(options.script).read_text()
    with contextlib.ExitStack() as stack:
        filesystems = []
        if options.source is not None:
            backend = stack.enter_context(servers.serving(options.kind, options.source, backend_options))
            filesystems.append(backend.filesystem(queues=options.queues, queue_size=options.queue_size))
        elif options.socket is not None:
            filesystems.append(Filesystem(options.socket, queues=options.queues, queue_size=options.queue_size))
        mounted = bool(filesystems)
        if options.host_tools:
            filesystems.append(stack.enter_context(servers.host_tools()))
        guest = stack.enter_context(
            Guest(
                options.machine,
                filesystems,
                python=options.python,
                memory_mib=options.memory,
                cpus=options.cpus,
                qemu=images.qemu_of_sid(MACHINES[options.machine].qemu).qemu(MACHINES[options.machine].qemu)
                if options.newer
                else None,
            )
        )
        if options.verbose:
            print(f"guests: {guest} after {guest.boot_s:.1f} s", file=sys.stderr)
        for spec in options.put:
            here, _, there = spec.partition(":")
            guest.put(there, Path(here))
        if mounted:
            guest.run(f"mount -t virtiofs {f'-o {options.options}' if options.options else ''} fs /mnt")
        if options.host_tools:
            guest.run(servers.HOST_TOOLS)
        outcome = guest.run(script, timeout_s=options.timeout, check=False)
        sys.stdout.buffer.write(outcome.output)
        sys.stdout.flush()
        if options.verbose:
            print(f"guests: status {outcome.status} after {outcome.elapsed_s:.1f} s", file=sys.stderr)
            print(guest.console(), file=sys.stderr)
        if mounted:
            guest.run("umount /mnt", check=False)
        return outcome.status


def main() -> int:
    """See the module."""
    arguments, backend_options = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, backend_options = arguments[:cut], arguments[cut + 1 :]
    options = _parser().parse_args(arguments)
    if options.command == "list":
        _list()
        return 0
    try:
        if options.command == "prepare":
            if unknown := set(options.machine) - set(MACHINES):
                print(f"guests: no machine is called {' '.join(sorted(unknown))}", file=sys.stderr)
                return 2
            return _prepare(options.machine or list(USED_BY_TESTS))
        return _run(options, backend_options)
    except ScriptTimeout as error:
        print(f"guests: {error}", file=sys.stderr)
        return 124
    except (GuestError, Missing, AssertionError) as error:
        print(f"guests: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())

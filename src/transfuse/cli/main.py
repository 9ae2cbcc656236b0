"""The `transfuse` command: reads its arguments, runs one of the commands, and turns whatever goes wrong into one line.

A command is a module of this package with `add(commands)`, which adds its parser, and `run(args)`, which returns the
exit code. Beside the commands there is the form in which mount(8) calls: `transfuse SOURCE DIR -o options` (see
`helper`).
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence

import transfuse
from transfuse.cli import (
    cat,
    completion,
    cp,
    demo,
    doctor,
    helper,
    ls,
    mount,
    relay,
    serve,
    stat,
    tree,
    umount,
    virtiofsd,
)
from transfuse.cli.errors import FAILED, USAGE, CommandError, Parser, report

__all__ = ["build_parser", "main"]

COMMANDS = (mount, umount, serve, virtiofsd, relay, ls, tree, cat, stat, cp, doctor, demo, completion)
PIPE_CLOSED = 141
"""128 + SIGPIPE: whoever read our output has enough."""

DESCRIPTION = """\
Filesystems in user space, with both ends of the protocol: mount a directory or a Python class through the kernel,
or look into it with no kernel at all.

SOURCE is a directory, memory: (empty, in memory), python:package.module:Class, or unix:/path.sock (a server)."""
EXAMPLES = """\
examples:
  transfuse mount ~/data /mnt/data             mount a directory
  transfuse mount python:hello.py:Hello /mnt   mount your own class
  transfuse ls -l ~/data                       read the same without a mount
  transfuse umount /mnt/data
  transfuse serve ~/data unix:files.sock       for programs that read it over a socket
  transfuse serve ~/data --socket-path vm.sock for a virtual machine
  transfuse doctor                             what this machine allows

In /etc/fstab:  /srv/data  /mnt/data  fuse.transfuse  cache=always,ro  0  0"""


def build_parser() -> argparse.ArgumentParser:
    """The whole tree of commands and flags; `completion` and the documentation's tests read it too."""
    parser = Parser(
        prog="transfuse",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    form = f"compiled ({len(transfuse.COMPILED)} modules)" if transfuse.COMPILED else "plain"
    parser.add_argument("--version", action="version", version=f"transfuse {transfuse.__version__} ({form})")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for module in COMMANDS:
        module.add(commands)
    for command in commands.choices.values():
        command.set_defaults(failed=command.get_default("failed") or FAILED)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Arguments are those of the process unless given."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # Names that are no UTF-8 leave as they came; messages must never fail to print.
            reconfigure(errors="surrogateescape" if stream is sys.stdout else "backslashreplace")
    debug, failed = False, FAILED
    try:
        parser = build_parser()
        names = command_names(parser)
        if argv is None and helper.is_helper_name(sys.argv[0]) or helper.is_call(arguments, names):
            arguments = helper.as_mount(arguments)
        elif arguments and not arguments[0].startswith("-") and arguments[0] not in names:
            raise unknown_command(arguments[0], names)
        elif not arguments:
            parser.print_help()
            return USAGE
        args = parser.parse_args(arguments)
        debug, failed = wants_debug(args), args.failed
        code = args.run(args)
        sys.stdout.flush()
        return int(code)
    except BrokenPipeError:
        # Python would complain again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except SystemExit as error:  # --help and --version
        return error.code if isinstance(error.code, int) else 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the outermost level: whatever it is becomes one line
        return report(error, failed=failed, debug=debug)


def wants_debug(args: argparse.Namespace) -> bool:
    """--debug, or -o debug among other options."""
    return bool(getattr(args, "debug", False)) or any("debug" in text.split(",") for text in getattr(args, "o", []))


def command_names(parser: argparse.ArgumentParser) -> list[str]:
    """Names of all commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return list(action.choices)
    raise AssertionError("the parser has no commands")


def unknown_command(word: str, names: Sequence[str]) -> CommandError:
    """The error for a first word that is no command, naming the nearest."""
    near = difflib.get_close_matches(word, names, n=1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return CommandError(word, "no such command", meant, USAGE)

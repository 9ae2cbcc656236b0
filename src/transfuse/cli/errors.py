"""One line for everything that goes wrong: `transfuse: what: why; way out`, and the exit code that belongs to it.

Commands raise CommandError, or let OSError, ProtocolError and the like pass; `main` turns each into its line with
`describe`. Only what is a bug of ours (any other exception) is shown differently, and with --debug everything is shown
as a traceback. Exit codes of mount and umount are those of mount(8); the other commands use OK, FAILED and USAGE.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from typing import NoReturn

from transfuse.errors import ProtocolError
from transfuse.transports.mount.errors import MountOptionError

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "MOUNT_FAILED",
    "OK",
    "SYSTEM_ERROR",
    "USAGE",
    "CommandError",
    "Parser",
    "describe",
    "exit_code",
    "one_line",
    "report",
]

OK = 0
USAGE = 1
"""mount(8): incorrect invocation or permissions. All commands use it for arguments that make no sense."""
FAILED = 1
"""ls, cat, cp, ...: something could not be read or written."""
SYSTEM_ERROR = 2
"""mount(8): system error (out of memory, cannot fork, ...)."""
MOUNT_FAILED = 32
"""mount(8): mount failure; umount uses it too."""
INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""


class CommandError(Exception):
    """What did not work, why, and what to do about it; `code` is the exit code."""

    def __init__(self, what: str, why: str, way_out: str = "", code: int = FAILED) -> None:
        super().__init__(what, why, way_out)
        self.what = what
        self.why = why
        self.way_out = way_out
        self.code = code

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}" if self.what else self.why
        return f"{text}; {self.way_out}" if self.way_out else text


class Parser(argparse.ArgumentParser):
    """argparse with our one-line errors and exit code."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        command = self.prog.removeprefix("transfuse").strip()
        raise CommandError(command, message, f"see {self.prog} --help", USAGE)


def one_line(text: str) -> str:
    """`text` with line breaks and control characters made harmless, so that a message stays one line on a terminal."""
    joined = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in joined)
    return shown or "no reason was given"


def describe(error: BaseException) -> str:
    """The line for an exception, without the leading "transfuse: "."""
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.errno:
        why = os.strerror(error.errno)
        # An OSError made by hand says more in its text than strerror does; one from a system call says the same.
        if error.strerror and error.strerror != why:
            why = f"{error.strerror} ({why})"
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        return one_line(": ".join([" -> ".join(names), why] if names else [why]))
    if isinstance(error, ProtocolError):
        return one_line(f"the other side does not keep to the protocol: {error}")
    if isinstance(error, (CommandError, MountOptionError, OSError)):
        return one_line(str(error))
    return one_line(f"internal error: {type(error).__name__}: {error}; run again with --debug to see where")


def exit_code(error: BaseException, failed: int) -> int:
    """The exit code for an exception; `failed` is the command's own for something that was tried and did not work."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, MountOptionError):
        return USAGE
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SYSTEM):
        return SYSTEM_ERROR if failed == MOUNT_FAILED else failed
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return failed


_SYSTEM = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def report(error: BaseException, *, failed: int, debug: bool) -> int:
    """Print the line on standard error (with `debug` after the traceback) and return the exit code."""
    if debug:
        traceback.print_exception(error)
    if not isinstance(error, KeyboardInterrupt):
        print(f"transfuse: {describe(error)}", file=sys.stderr, flush=True)
    return exit_code(error, failed)

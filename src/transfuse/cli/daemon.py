"""Living in the background: fork, tell the caller when the mount answers, write logs somewhere, stop on a signal.

Order of a start in the background: the parent forks and waits on a pipe; the child leaves the terminal's session,
mounts, and calls `Ready.announce`, which writes to the pipe and lets go of the caller's standard streams. The parent
then exits with 0. If the child ends before, it has printed its line on the caller's standard error itself, and the
parent exits with the child's code. mount(8) thus returns when the tree can be used, never earlier.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from transfuse.cli.errors import INTERRUPTED, SYSTEM_ERROR, CommandError, describe, report
from transfuse.sandbox.supervise import Outside

__all__ = ["Ready", "StopSignals", "in_background", "notify_service_manager", "run_service", "set_up_logging"]

T = TypeVar("T")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SYSLOG_SOCKET = "/dev/log"
_READY = b"R"


class Ready:
    """How the outside learns that the mount answers: a line on standard output in the foreground, the pipe's byte in
    the background, and the service manager in both."""

    def __init__(self, pipe_fd: int | None = None) -> None:
        self._pipe_fd = pipe_fd
        self.outside: Outside | None = None
        """The way to the process that does outside what a contained one can't."""

    def announce(self, line: str, environment: Mapping[str, str]) -> None:
        """Say it, once."""
        self._notify(f"READY=1\nSTATUS={line}", environment)
        if self._pipe_fd is None:
            print(line, flush=True)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        if self.outside is not None:
            self.outside.detach()
        os.write(self._pipe_fd, _READY)
        os.close(self._pipe_fd)
        self._pipe_fd = None

    def stopping(self, environment: Mapping[str, str]) -> None:
        """Tell the service manager that the end has begun."""
        self._notify("STOPPING=1", environment)

    def _notify(self, text: str, environment: Mapping[str, str]) -> None:
        if self.outside is None:
            notify_service_manager(text, environment)
        else:
            self.outside.notify(text)


def in_background(work: Callable[[Ready], int]) -> int:
    """Fork, run `work` in the child, and return in the parent when the child is ready (0) or ended (its exit code).

    The child never returns from here. Must be called while the process has a single thread.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        child = os.fork()
    except OSError as error:
        raise CommandError(
            "can't go to the background", str(error.strerror), "use --foreground", SYSTEM_ERROR
        ) from error
    if child == 0:
        code = SYSTEM_ERROR
        try:
            os.close(reader)
            os.setsid()
            os.chdir("/")  # else the directory the caller stood in could never be unmounted
            code = work(Ready(writer))
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(code)  # the parent's own clean-up (atexit, buffers) is not the child's
    os.close(writer)
    try:
        ready = os.read(reader, 1) == _READY
        if ready:
            return 0
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else SYSTEM_ERROR
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        return INTERRUPTED
    finally:
        os.close(reader)


def run_service(
    make: Callable[[], T],
    serve: Callable[[T, Ready], int],
    *,
    background: bool,
    debug: bool,
    log_file: str | None,
    failed: int,
) -> int:
    """Run `serve` on what `make` makes, in the foreground or in the background; returns the exit code.

    `make` runs in the directory the caller stands in, but behind the fork, since it may start threads. Whatever goes
    wrong becomes one line on standard error, and in the background also one in the log: once the service was ready,
    its standard error is nobody's.
    """
    here = os.getcwd()
    if log_file:
        log_file = os.path.abspath(log_file)  # going to the background changes to /

    def run(ready: Ready) -> int:
        try:
            set_up_logging(debug=debug, log_file=log_file, background=background)
        except CommandError as error:
            return report(error, failed=failed, debug=debug)
        try:
            if background:
                os.chdir(here)
            made = make()
            if background:
                os.chdir("/")
            return serve(made, ready)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  in the background nobody else would say it
            if background:
                logging.getLogger("transfuse.cli").error("%s", describe(error))
            return report(error, failed=failed, debug=debug)

    return in_background(run) if background else run(Ready())


def notify_service_manager(text: str, environment: Mapping[str, str]) -> bool:
    """Send `text` to $NOTIFY_SOCKET as sd_notify(3) does. False where there is none or it does not listen."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(text.encode(), address)
    except OSError as error:
        logging.getLogger("transfuse.cli").warning("NOTIFY_SOCKET %s: %s", address, error.strerror)
        return False
    return True


class _Stop(BaseException):
    """A stop signal arrived where it may break off what runs."""


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP as a request to stop cleanly.

    While the mount is being made a first signal is only remembered (a half-made mount would be left behind); a second
    one breaks it off. `wait` runs something that blocks and comes back early when a signal arrives or has arrived.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that came; 0 when none did."""
        self._breaks = False

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        again = self.number != 0
        self.number = number
        if self._breaks:
            self._breaks = False
            raise _Stop
        if again:
            raise KeyboardInterrupt

    @contextmanager
    def caught(self) -> Iterator[StopSignals]:
        """Handle the signals for the length of the block (main thread only)."""
        before = {number: signal.signal(number, self._arrived) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, blocking: Callable[[], object]) -> bool:
        """Run `blocking`; True when a signal ended it, False when it came to its own end."""
        try:
            self._breaks = True
            if self.number:
                return True
            blocking()
            self._breaks = False
            return False
        except _Stop:
            return True
        finally:
            self._breaks = False


def set_up_logging(*, debug: bool, log_file: str | None, background: bool) -> None:
    """Send the package's log somewhere: a file, standard error in the foreground, syslog in the background."""
    log = logging.getLogger("transfuse")
    for old in list(log.handlers):
        log.removeHandler(old)
        old.close()
    log.setLevel(logging.DEBUG if debug else logging.INFO if log_file else logging.WARNING)
    log.propagate = False
    handler: logging.Handler
    if log_file:
        try:
            handler = logging.FileHandler(log_file)
        except OSError as error:
            why = error.strerror or str(error)
            raise CommandError(f"--log-file {log_file}", why, "name a file that can be written") from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    elif background:
        handler = logging.NullHandler()
        if os.path.exists(SYSLOG_SOCKET):
            try:
                handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_DAEMON)
                handler.setFormatter(logging.Formatter(f"transfuse[{os.getpid()}]: %(name)s: %(message)s"))
            except OSError:
                handler = logging.NullHandler()
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter("transfuse: %(name)s: %(message)s" if debug else "transfuse: %(message)s")
        )
    log.addHandler(handler)

"""The process that stays outside while its child serves in the sandbox.

It does for the child what only can be done outside: pass on signals, tell the service manager that the child is ready
or ends, remove the socket's file at the end, and say why the child died. It reads nothing of what peers send; the
child's words to it are two, and a line of text.

The child leads a process group of its own, so that a Ctrl-C at the terminal reaches it once, by way of this process. It
is killed when this process is.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import stat
from collections.abc import Callable, Sequence
from types import FrameType

from transfuse.sandbox import linux

__all__ = ["FORWARDED", "Outside", "SocketFiles", "fork"]

log = logging.getLogger("transfuse.sandbox")

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MAX_WORD = 4096
"""Bytes of one message of the child."""
NOTIFY, DETACH = b"N", b"D"
READY, STOPPING = b"READY=1\n", b"STOPPING=1"


class SocketFiles:
    """Files of sockets, as they are now: only those are removed, and not what has taken their place since."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._made = {path: identity for path in paths if (identity := _identity(path)) is not None}

    def remove(self) -> None:
        """Remove those that are still there. Idempotent."""
        made, self._made = self._made, {}
        for path, identity in made.items():
            if _identity(path) == identity:
                os.unlink(path)


class Outside:
    """The child's way to its supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def die_with(self) -> None:
        """Be killed when the supervisor ends. The kernel forgets this when the calling thread takes on other ids
        (prctl(2)), as hostdir does to find out whether it may: so once more after that."""
        linux.set_death_signal(signal.SIGKILL)
        waiting = select.poll()
        waiting.register(self._sock, 0)  # POLLHUP comes unasked
        if waiting.poll(0):
            os._exit(1)

    def notify(self, text: str) -> None:
        """Have the service manager told `text`, which must begin with READY=1."""
        self._sock.send((NOTIFY + text.encode())[:MAX_WORD])

    def detach(self) -> None:
        """The supervisor lets go of the caller's standard streams."""
        self._sock.send(DETACH)


def fork(begin: Callable[[], None], remove: Sequence[str], notify: Callable[[str], object]) -> Outside:
    """Return in a new child; the caller becomes its supervisor, and ends when it ends, with its exit code.

    `begin` is called before the fork, and `notify` in the supervisor with each text for the service manager; the
    sockets `remove` are removed in the end. OSError only from `begin` and from the fork.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sockets = SocketFiles(remove)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        begin()
        child = os.fork()
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        ours.close()
        theirs.close()
        raise
    if child == 0:
        ours.close()
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        outside = Outside(theirs)
        outside.die_with()
        return outside
    code = 1
    try:
        theirs.close()

        def forward(number: int, frame: FrameType | None) -> None:
            try:
                os.kill(child, number)
            except ProcessLookupError:  # it is gone: what follows finds out
                pass

        for number in FORWARDED:
            signal.signal(number, forward)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _listen(ours, notify)
        code = _exit_code(os.waitpid(child, 0)[1])
        sockets.remove()
    except Exception:  # whatever it is, it must not go on as if it were the server
        log.exception("the supervisor failed")
    finally:
        logging.shutdown()
        os._exit(code)


def _listen(sock: socket.socket, notify: Callable[[str], object]) -> None:
    """Until the child is gone: its end of the socket is then closed."""
    while True:
        try:
            word = sock.recv(MAX_WORD)
        except ConnectionResetError:
            return
        if not word:
            return
        if word[:1] == NOTIFY and word[1:].startswith(READY):
            notify(_ready_text(word[1:]))
        elif word == NOTIFY + STOPPING:
            notify(STOPPING.decode())
        elif word[:1] == DETACH:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.close(null)


def _ready_text(word: bytes) -> str:
    """READY=1 and a status, and no other assignment: the child has no say in, for one, MAINPID."""
    status = word.removeprefix(READY).decode(errors="replace")
    if not status.startswith("STATUS="):
        return READY.decode().strip()
    return READY.decode() + status.partition("\n")[0]


def _identity(path: str) -> tuple[int, int] | None:
    """Which socket it is, so that only ours is removed."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code == signal.SIGSYS:
        log.error("the server was killed (SIGSYS): it made a system call that it may not make; --seccomp log shows it")
    else:
        log.error("the server was killed by signal %d", -code)
    return 128 - code

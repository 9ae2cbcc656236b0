"""A socket file to listen on: made with the right mode, not over a living server, removed only if it is still ours."""

from __future__ import annotations

import errno
import os
import socket
import stat

__all__ = ["BACKLOG", "Identity", "identity", "listen"]

BACKLOG = 16

Identity = tuple[int, int] | None


def identity(path: str) -> Identity:
    """Which file it is, so that only our own is removed; None if there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def listen(path: str, kind: socket.SocketKind, mode: int = 0o600) -> socket.socket:
    """A listening Unix socket of this type at `path`. A file left by a dead server is replaced, any other is
    EADDRINUSE. `mode` is that of the file, less the umask."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        os.fchmod(sock.fileno(), mode)  # bind() makes the file with the socket's own mode
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.EADDRINUSE, "exists and is no socket", path)
    # A socket of a type that nobody listens with: it is refused as such by a living server, which hears nothing of it.
    # A real connection would be the only one that some servers take.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    raise OSError(errno.EADDRINUSE, "a server listens there", path)

"""A Unix stream socket that carries whole vhost-user messages with their fds, for both roles and both channels.

`receive` is for one thread at a time, `send` for any. Every fd that arrives is in somebody's hands at once: it lies in
the message's `Fds` until it is taken out, and what nobody took is closed with it. A peer that sends anything but whole,
well-framed messages raises RemoteProtocolError; there is no way to go on behind that, so the connection ends.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import stat
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from transfuse.errors import RemoteProtocolError
from transfuse.transports.vhost_user.messages import (
    HEADER_SIZE,
    MAX_FDS,
    MAX_PAYLOAD,
    NEED_REPLY,
    REPLY,
    VERSION,
    Header,
)

__all__ = ["Fds", "MessageSocket", "Received", "check_event_fd", "check_socket_fd", "connect"]

_FD_ROOM = socket.CMSG_SPACE((MAX_FDS + 1) * array.array("i").itemsize)
"""For one fd more than belongs, so that too many are told from enough."""
KNOWN_FLAGS = 3 | REPLY | NEED_REPLY


class Fds:
    """File descriptors that came with a message. `take` them one by one; `close` closes those that were not taken."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    @property
    def numbers(self) -> list[int]:
        """Those that are left, in order; they stay here."""
        return list(self._fds)

    def take(self) -> int:
        """The first one left, which is the caller's from now on."""
        return self._fds.pop(0)

    def close(self) -> None:
        """Close the rest."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Received(NamedTuple):
    """One message."""

    request: int
    flags: int
    payload: bytes
    fds: Fds

    @property
    def need_reply(self) -> bool:
        """The sender wants to hear how it went."""
        return bool(self.flags & NEED_REPLY)


class MessageSocket:
    """One end of a connected socket, which is closed when both `close` was called and nobody uses it any more."""

    def __init__(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"{sock!r} is no Unix socket of type SOCK_STREAM")
        sock.setblocking(True)
        self._sock = sock
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False
        self._sending = threading.Lock()

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Over an fd, which is ours from now on, even if it turns out to be no such socket."""
        return cls(socket.socket(fileno=fd))

    def _enter(self) -> None:
        with self._lock:
            if self._closing:
                raise ConnectionError(errno.ENOTCONN, "the socket is closed")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closing and not self._users
        if last:
            self._sock.close()

    def receive(self) -> Received | None:
        """The next message; None when the peer is gone or the socket closed. RemoteProtocolError: bad framing."""
        try:
            self._enter()
        except ConnectionError:
            return None
        try:
            return self._receive()
        except ConnectionError:
            return None
        finally:
            self._leave()

    def _receive(self) -> Received | None:
        raw = bytearray(HEADER_SIZE)
        view = memoryview(raw)
        fds = Fds()
        at = 0
        while at < HEADER_SIZE:
            count, came, flags, _ = self._sock.recvmsg_into((view[at:],), _FD_ROOM, socket.MSG_CMSG_CLOEXEC)
            for level, kind, data in came:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                    fds._fds += numbers
            if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
                raise RemoteProtocolError(f"more than {MAX_FDS} fds came with a message")
            if not count:
                if at:
                    raise RemoteProtocolError(f"the connection ended after {at} of the {HEADER_SIZE} bytes of a header")
                return None
            at += count
        request, flags, size = Header.codec().unpack(raw)
        if flags & 3 != VERSION or flags & ~KNOWN_FLAGS:
            raise RemoteProtocolError(f"request {request}: flags {flags:#x} at offset 4, not version {VERSION}")
        if size > MAX_PAYLOAD:
            raise RemoteProtocolError(f"request {request}: size {size} at offset 8, at most {MAX_PAYLOAD}")
        payload = bytearray(size)
        view = memoryview(payload)
        at = 0
        while at < size:
            # Plain recv: the kernel closes fds that come here, where none belong.
            count = self._sock.recv_into(view[at:])
            if not count:
                raise RemoteProtocolError(f"request {request}: the connection ended after {at} of {size} bytes")
            at += count
        return Received(request, flags, bytes(payload), fds)

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """Send one message, with `flags` beside the version. The fds stay the caller's. ConnectionError: the peer is
        gone."""
        message = Header(request=request, flags=VERSION | flags, size=len(payload)).encode() + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._enter()
        try:
            with self._sending:
                sent = self._sock.sendmsg((message,), rights, socket.MSG_NOSIGNAL)
                if sent < len(message):
                    self._sock.sendall(message[sent:], socket.MSG_NOSIGNAL)
        finally:
            self._leave()

    def readable(self, timeout_s: float | None, *others: int) -> set[int] | None:
        """Wait until a message or the end of the connection is there, or one of the other fds is readable: those that
        are, with -1 for the socket; empty when the time is up, None when the socket is closed."""
        try:
            self._enter()
        except ConnectionError:
            return None
        try:
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            for fd in others:
                poll.register(fd, select.POLLIN)
            own = self._sock.fileno()
            ready = poll.poll(None if timeout_s is None else max(0, round(timeout_s * 1000)))
            return {-1 if fd == own else fd for fd, _ in ready}
        finally:
            self._leave()

    def dup_for_poll(self) -> int:
        """Another fd of the socket, which is the caller's: to wait for the end of the connection among other things.
        ConnectionError when the socket is closed."""
        self._enter()
        try:
            return os.dup(self._sock.fileno())
        finally:
            self._leave()

    def fileno(self) -> int:
        """For poll(), as long as nobody closes it; -1 afterwards."""
        return self._sock.fileno()

    def gone(self) -> bool:
        """The peer has hung up and left nothing to read."""
        try:
            self._enter()
        except ConnectionError:
            return True
        try:
            return not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        finally:
            self._leave()

    def close(self) -> None:
        """End the connection: receive() returns None everywhere. Idempotent, from any thread."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            last = not self._users
            if not last:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except OSError as error:
                    if error.errno != errno.ENOTCONN:
                        raise
        if last:
            self._sock.close()


def check_event_fd(fd: int) -> None:
    """Refuse what is neither an eventfd nor a pipe (QEMU's stand-in), and make it non-blocking, as it was made by its
    owner in all known front-ends: a thread must not be caught in reading or writing it."""
    mode = os.fstat(fd).st_mode
    # Anonymous inodes have no file type; there is no other way to tell that does not need /proc.
    if stat.S_IFMT(mode) and not stat.S_ISFIFO(mode):
        raise RemoteProtocolError(f"an fd of type {stat.S_IFMT(mode):#o} where an eventfd belongs")
    os.set_blocking(fd, False)


def check_socket_fd(fd: int) -> None:
    """Refuse what is no Unix stream socket."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise RemoteProtocolError("an fd that is no socket where one for requests of the back-end belongs")
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise RemoteProtocolError(f"a socket of family {sock.family}, type {sock.type} where a Unix stream belongs")


def connect(path: str | bytes | os.PathLike[str]) -> MessageSocket:
    """Connect to whoever listens on `path`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.fspath(path))
        return MessageSocket(sock)
    except BaseException:
        sock.close()
        raise

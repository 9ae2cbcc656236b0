"""FUSE over a Unix socket of type SOCK_SEQPACKET: one packet is one message, with nothing around it.

It joins two processes without a kernel mount, and is what gVisor's sandboxes read their fd mounts from. Several workers
may receive from one socket, each takes a whole request; replies and notifications go out the same way from any thread.

A packet must fit the sender's socket buffer, so both ends enlarge theirs (past net.core.wmem_max where privileges
allow) and say what they can carry as `max_write`. A reply that does not fit all the same becomes EIO for its request.

The file of a listening socket has mode 0600: whoever may connect may claim any uid, as with /dev/fuse.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from transfuse.quiet import QuietLog
from transfuse.transports.base import Channel, Handler, Received, Undelivered, Worker, serve_channel
from transfuse.transports.listening import identity, listen
from transfuse.wire.decode import IN_HEADER_SIZE
from transfuse.wire.encode import Message, RangeReply, encode_error
from transfuse.wire.layout import Buffer

__all__ = ["PeerCredentials", "StreamClientTransport", "StreamListener", "StreamTransport"]

log = logging.getLogger("transfuse.transports")

PAGE = 4096
MAX_WRITE = 1 << 20
"""Largest payload wanted: as over /dev/fuse."""
OVERHEAD = 4096
"""Room for headers, structures and names around a payload."""
SKB_OVERHEAD = 32
"""A packet must be this much smaller than the send buffer (net/unix/af_unix.c)."""
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
LARGEST_NAMES = 128 << 10
"""Room for the largest messages that carry no payload of max_write: forgets, an attribute of 64 KiB."""
SEND_TIMEOUT_S = 60
"""How long a client waits for room in the socket before it takes the server for dead."""
MAX_CLIENTS = 64
"""Most connections of one listener; further ones are closed at once."""
ACCEPT_AGAIN_S = 0.1
"""How soon accept() is tried again after it failed."""


class PeerCredentials(NamedTuple):
    """Who is at the other end of a socket (SO_PEERCRED), as of its connect()."""

    pid: int
    uid: int
    gid: int


class _Socket:
    """A connected SEQPACKET socket that may be closed while other threads use it: the last to leave closes the fd,
    so that no one ever reads or writes a number that meanwhile is another file."""

    def __init__(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            raise ValueError(f"{sock!r} is no Unix socket of type SOCK_SEQPACKET")
        sock.setblocking(True)
        self.sock = sock
        self.max_write = self._enlarge()
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False

    def _enlarge(self) -> int:
        """Make room for the largest message; returns the payload that fits, in whole pages."""
        wanted = MAX_WRITE + OVERHEAD + SKB_OVERHEAD
        for force, plain in ((SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, force, wanted)
            except PermissionError:
                self.sock.setsockopt(socket.SOL_SOCKET, plain, wanted)  # clamped to net.core.[rw]mem_max
        room = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - SKB_OVERHEAD - OVERHEAD
        return max(PAGE, min(MAX_WRITE, room // PAGE * PAGE))

    def enter(self) -> bool:
        """Begin to use the fd; False when it is closed."""
        with self._lock:
            if self._closing:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        """Done using it."""
        with self._lock:
            self._users -= 1
            last = self._closing and not self._users
        if last:
            self.sock.close()

    def receive_into(self, room: memoryview) -> int:
        """Bytes of the next packet, which may be more than `room` holds; 0 when the peer is gone."""
        if not self.enter():
            return 0
        try:
            return self.sock.recv_into(room, 0, socket.MSG_TRUNC)
        except ConnectionError:
            return 0
        finally:
            self.leave()

    def send(self, message: list[Buffer]) -> None:
        """Send one packet. ConnectionError when the socket is closed."""
        if not self.enter():
            raise ConnectionError(errno.ENOTCONN, "the socket is closed")
        try:
            self.sock.sendmsg(message, (), socket.MSG_NOSIGNAL)
        finally:
            self.leave()

    def close(self) -> None:
        """Wake everybody; the last closes the fd."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            last = not self._users
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("shutdown: %s", error)
        if last:
            self.sock.close()


class _StreamChannel:
    """One worker's share of a connection: a receive buffer of its own."""

    def __init__(self, transport: StreamTransport) -> None:
        self._socket = transport._socket
        self._complaints = transport._complaints
        self._room = memoryview(bytearray(transport.max_write + LARGEST_NAMES))
        self._buffer = self._room.obj

    def receive(self) -> Received | None:
        """The next request. A packet that can be none ends the connection: there is nobody to send an error to."""
        size = self._socket.receive_into(self._room)
        if size and not IN_HEADER_SIZE <= size <= len(self._room):
            log.error(
                "a packet of %d bytes where %d to %d belong: the connection ends", size, IN_HEADER_SIZE, len(self._room)
            )
            size = 0
        if not size:
            self._socket.close()
            return None
        return self._room, 0, size

    def send(self, message: Message) -> bool:
        """Send one reply; False when the peer is gone."""
        if isinstance(message, RangeReply):
            parts = _fetch(message)
        else:
            parts = [message] if isinstance(message, bytes) else message
        try:
            self._socket.send(parts)
        except OSError as error:
            if error.errno in (errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM):
                return self._send_error(parts, error.errno)
            if isinstance(error, ConnectionError) or error.errno in (errno.EBADF, errno.ENOTCONN):
                return False
            raise
        return True

    def _send_error(self, parts: list[Buffer], number: int) -> bool:
        """The reply did not fit: its request fails instead. The byte order is the one in which its length is right."""
        head = bytes(parts[0][:16])
        size = sum(len(part) for part in parts)
        order = "<" if struct.unpack_from("<I", head)[0] == size else ">"
        (unique,) = struct.unpack_from(order + "Q", head, 8)
        self._complaints.error("a message of %d bytes does not fit the socket: %s", size, os.strerror(number))
        if not unique:
            raise OSError(number, f"a notification of {size} bytes: {os.strerror(number)}")
        self.send(encode_error("<" if order == "<" else ">", unique, errno.EIO))
        return False

    def serve(self, handle: Handler, undelivered: Undelivered, worker: Worker) -> None:
        """Carry requests until the peer is gone or `worker` is sent home."""
        serve_channel(self, handle, undelivered, worker)

    def close(self) -> None:
        """The socket is the transport's."""


def _fetch(message: RangeReply) -> list[Buffer]:
    data = bytearray(message.length)
    try:
        count = os.preadv(message.fd, (data,), message.offset)
    except OSError as error:
        return [message.error(error.errno or errno.EIO)]
    return [message.header(count), memoryview(data)[:count]]


class StreamTransport:
    """The server's end of a connected socket: accepted by a StreamListener, or inherited as an fd (`from_fd`)."""

    can_pass_through = False
    can_notify = True

    def __init__(self, sock: socket.socket, *, max_write: int | None = None) -> None:
        self._socket = _Socket(sock)
        self._complaints = QuietLog(log, "messages too large", time.monotonic)
        self.max_write = min(self._socket.max_write, max_write or MAX_WRITE)
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.peer = PeerCredentials(pid, uid & 0xFFFF_FFFF, gid & 0xFFFF_FFFF)
        """Who connected; (0, -1, -1) as unsigned numbers where the kernel does not say."""

    @classmethod
    def from_fd(cls, fd: int, *, max_write: int | None = None) -> StreamTransport:
        """Over an fd that somebody else connected; it is ours from now on."""
        return cls(socket.socket(fileno=fd), max_write=max_write)

    def open_channel(self) -> Channel:
        """One for each worker: they all receive from the one socket."""
        return _StreamChannel(self)

    def bind(self, handle: Handler, undelivered: Undelivered) -> None:
        """Channels carry everything."""

    def notify(self, message: list[Buffer]) -> None:
        """Send a notification. The peer's opinion of it does not come back on this wire."""
        self._socket.send(message)

    def register_backing(self, fd: int) -> int:
        """No kernel at the other end."""
        raise OSError(errno.EPERM, "a socket takes no backing files")

    def unregister_backing(self, backing_id: int) -> None:
        """No kernel at the other end."""

    def groups_of(self, pid: int) -> tuple[int, ...]:
        """Unknown: a pid on this wire is what the peer claims, and looking up its groups would let it borrow those of
        any process here."""
        return ()

    def close(self) -> None:
        """End the connection: every receive returns None."""
        self._socket.close()
        self._complaints.end()


class StreamClientTransport:
    """The client's end: requests from any thread, one thread that reads what comes."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = _Socket(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self.max_write = self._socket.max_write
        self._reader: threading.Thread | None = None

    @classmethod
    def connect(cls, path: str | bytes | os.PathLike[str]) -> StreamClientTransport:
        """Connect to a server that listens on `path`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(os.fspath(path))
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    def start(self, on_message: Callable[[Buffer], None], on_closed: Callable[[BaseException | None], None]) -> None:
        """Begin to read. Both callbacks come from the reader thread."""
        self._reader = threading.Thread(
            target=self._read, args=(on_message, on_closed), name="transfuse-client-reader", daemon=True
        )
        self._reader.start()

    def _read(self, on_message: Callable[[Buffer], None], on_closed: Callable[[BaseException | None], None]) -> None:
        room = memoryview(bytearray(MAX_WRITE + LARGEST_NAMES))
        why: BaseException | None = None
        try:
            while size := self._socket.receive_into(room):
                if size > len(room):
                    raise ConnectionError(errno.EMSGSIZE, f"a packet of {size} bytes, at most {len(room)} fit")
                try:
                    on_message(room[:size])
                except OSError as error:
                    # What a notification came to has no way back on this wire.
                    log.debug("message from the server: %s", error)
        except Exception as error:
            log.exception("the client's reader ends")
            why = error
        finally:
            on_closed(why)
            self._socket.close()

    def send(self, message: list[Buffer]) -> None:
        """Send one request. ConnectionError when the server is gone or takes nothing for SEND_TIMEOUT_S."""
        try:
            self._socket.send(message)
        except BlockingIOError:
            raise ConnectionAbortedError(errno.ETIMEDOUT, "the server does not read") from None
        except ConnectionError:
            # Not as it is: BrokenPipeError tells a command that whoever read its output has gone.
            raise ConnectionResetError(errno.ECONNRESET, "the server is gone") from None
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTCONN):
                raise ConnectionError(error.errno, "the server is gone") from None
            raise

    def close(self) -> None:
        """End the connection and wait for the reader."""
        self._socket.close()
        reader = self._reader
        if reader is not None and reader is not threading.current_thread():
            reader.join(10)


class Served(Protocol):
    """What a listener makes of each connection: a Server, for one."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Is the peer gone (within the time)?"""
        ...

    def close(self) -> object:
        """Stop serving."""
        ...


class StreamListener:
    """Accepts connections on a socket file and has each one served; a context manager.

    `serve` makes and starts a server for a transport, for instance ``lambda t: Server(Hello(), t).start()`` with a
    filesystem for each, or ``Server(shared.view(), t)`` with one for all (transfuse.fs.shared). It may look at
    `transport.peer` and refuse by raising OSError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        serve: Callable[[StreamTransport], Served],
        *,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        self.path = os.fspath(path)
        self._serve = serve
        self._max_clients = max_clients
        self._servers: list[Served] = []
        self._lock = threading.Lock()
        self._closing = False
        self._leave = False
        self._complaints = QuietLog(log, "refused connections", time.monotonic)
        self._woken = threading.Event()
        self._listening = listen(self.path, socket.SOCK_SEQPACKET)
        self._made = identity(self.path)
        self._thread = threading.Thread(target=self._accept, name="transfuse-listener", daemon=True)

    def leave_file(self) -> None:
        """Somebody else removes the socket's file: this process may not."""
        self._leave = True

    def start(self) -> Self:
        """Begin to accept, on a thread of its own."""
        self._thread.start()
        return self

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._listening.accept()
            except OSError as error:
                if self._closing or error.errno in (errno.EINVAL, errno.EBADF):
                    return
                # Mostly EMFILE or ENFILE, which last: the next accept() would fail as fast as this one did.
                self._complaints.error("accept on %s: %s", self.path, error)
                self._woken.wait(ACCEPT_AGAIN_S)
                continue
            try:
                self._take(sock)
            except Exception as error:  # noqa: BLE001  what one connection's maker raises must not end the others
                self._complaints.error("connection on %s refused: %s", self.path, error)
                sock.close()

    def _take(self, sock: socket.socket) -> None:
        self._reap()
        if len(self._servers) >= self._max_clients:
            raise OSError(errno.EMFILE, f"{self._max_clients} clients are connected already")
        server = self._serve(StreamTransport(sock))
        with self._lock:
            if not self._closing:
                self._servers.append(server)
                return
        server.close()

    def _reap(self) -> None:
        """Close servers whose peer is gone."""
        with self._lock:
            gone = [server for server in self._servers if server.wait(0)]
            self._servers = [server for server in self._servers if server not in gone]
        for server in gone:
            server.close()

    def wait(self) -> None:
        """Wait until no more connections are accepted."""
        self._thread.join()

    @property
    def clients(self) -> int:
        """How many connections are being served."""
        self._reap()
        return len(self._servers)

    def close(self) -> None:
        """Stop accepting, end every connection, remove the socket file. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._woken.set()
            servers, self._servers = self._servers, []
        try:
            self._listening.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("shutdown: %s", error)
        if self._thread.is_alive():
            self._thread.join(10)
        self._listening.close()
        if not self._leave and identity(self.path) == self._made:
            os.unlink(self.path)
        # All at a time: each may have to wait for a filesystem that is at work.
        closing = [threading.Thread(target=server.close) for server in servers]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        self._complaints.end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

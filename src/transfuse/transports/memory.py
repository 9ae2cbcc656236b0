"""A wire inside one process: the client's send() runs the server's handler in the caller's own thread.

No thread, no copy but the joining of a request's buffers, and no scheduler: 2 to 5 µs per request. It is what tests,
the command line's `ls`, and a filesystem used as a library run on.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from transfuse.transports.base import Channel, Handler, Undelivered, Worker, flatten
from transfuse.wire.encode import Message
from transfuse.wire.layout import Buffer

__all__ = ["MemoryTransport"]


class MemoryTransport:
    """The server's end, which is its own only channel; `client` is the other end."""

    max_write = 1 << 20
    can_pass_through = False
    can_notify = True

    def __init__(self) -> None:
        self.client = MemoryClientTransport(self)
        self._handle: Handler | None = None
        self._undelivered: Undelivered | None = None
        self._closed = False

    def open_channel(self) -> Channel | None:
        """None: the client's threads do the work."""
        return None

    def bind(self, handle: Handler, undelivered: Undelivered) -> None:
        """Take the session's handler."""
        self._handle = handle
        self._undelivered = undelivered

    def request(self, message: bytes) -> None:
        """The client's request, served in the client's thread."""
        if self._closed or self._handle is None or self._undelivered is None:
            raise ConnectionError(errno.ENOTCONN, "the server is gone")
        answer = self._handle(message, 0, len(message), self)
        if answer is not None and not self.send(answer):
            self._undelivered(message, 0, answer)

    def receive(self) -> None:
        """A memory wire has no loop: there is never anything to wait for."""
        return None

    def serve(self, handle: Handler, undelivered: Undelivered, worker: Worker) -> None:
        """Nothing to carry."""

    def send(self, message: Message) -> bool:
        """Hand a reply to the client."""
        return not self._closed and self.client.deliver(flatten(message))

    def notify(self, message: list[Buffer]) -> None:
        """Hand a notification to the client."""
        if not self.send(message):
            raise ConnectionError(errno.ENOTCONN, "the client is gone")

    def register_backing(self, fd: int) -> int:
        """No kernel here."""
        raise OSError(errno.EPERM, "a memory connection takes no backing files")

    def unregister_backing(self, backing_id: int) -> None:
        """No kernel here."""

    def groups_of(self, pid: int) -> tuple[int, ...]:
        """The client is this process: it knows no groups of others."""
        return ()

    def close(self) -> None:
        """End both sides."""
        if not self._closed:
            self._closed = True
            self.client.closed()


class MemoryClientTransport:
    """The client's end."""

    max_write = MemoryTransport.max_write

    def __init__(self, server: MemoryTransport) -> None:
        self._server = server
        self._on_message: Callable[[Buffer], None] | None = None
        self._on_closed: Callable[[BaseException | None], None] | None = None

    def start(self, on_message: Callable[[Buffer], None], on_closed: Callable[[BaseException | None], None]) -> None:
        """Begin: replies come inside send(), late ones from the thread that made them."""
        self._on_message = on_message
        self._on_closed = on_closed

    def send(self, message: list[Buffer]) -> None:
        """Serve one request, in this thread."""
        self._server.request(message[0] if len(message) == 1 else b"".join(message))  # type: ignore[arg-type]

    def deliver(self, message: bytes) -> bool:
        """The server's side: one reply or notification."""
        if self._on_message is None:
            return False
        self._on_message(message)
        return True

    def closed(self) -> None:
        """The server's side: no more will come."""
        if self._on_closed is not None:
            self._on_closed(None)

    def close(self) -> None:
        """End the connection."""
        self._server.close()

"""What a server and a client need of a wire. Transports are the only owners of file descriptors.

A server transport gives `Channel`s, each carried by one thread: `receive` a request, hand it to the session, `send` the
answer. It also is the session's host: backing files, notifications, groups of a process. A client transport carries
messages the other way and calls back for what arrives.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from transfuse.errors import RemoteProtocolError
from transfuse.wire.encode import Message, RangeReply
from transfuse.wire.layout import Buffer

__all__ = [
    "Channel",
    "ClientTransport",
    "Handler",
    "SelfServing",
    "ServerTransport",
    "Undelivered",
    "Worker",
    "flatten",
    "serve_channel",
]

log = logging.getLogger("transfuse.transports")

Received = tuple[Buffer, int, int]
"""Where a request lies: buffer, start, end."""


class Channel(Protocol):
    """One way in and out, used by one thread; only `send` may be called from others too."""

    def receive(self) -> Received | None:
        """Wait for a request. The buffer is valid until the next call. None: the peer is gone."""
        ...

    def send(self, message: Message) -> bool:
        """Send one message whole. False: the peer does not wait for it (any more)."""
        ...

    def serve(self, handle: Handler, undelivered: Undelivered, worker: Worker) -> None:
        """Carry requests until the peer is gone or `worker` is sent home."""
        ...

    def close(self) -> None:
        """Free what belongs to this channel alone."""
        ...


class Worker(Protocol):
    """The thread that serves a channel, as its loop sees it (see transfuse.workers)."""

    counters: array[int]
    """Shared by all workers: counters[0] is 1 when somebody wants to be woken by the next request."""
    step_at: int
    """Index of the counter to step before and after each request."""
    park_at: int
    """Index of the flag that asks this worker to rest after the request it serves."""

    def wake(self) -> None:
        """Called when counters[0] was found set."""
        ...

    def park(self) -> bool:
        """Rest; False: go home."""
        ...


Handler = Callable[[Buffer, int, int, Channel], "Message | None"]
Undelivered = Callable[[Buffer, int, Message], None]


class ServerTransport(Protocol):
    """A wire to one peer, seen from the server."""

    max_write: int
    """Largest payload of one request in bytes."""
    can_pass_through: bool
    """The peer is a kernel that may be given backing files."""
    can_notify: bool
    """Notifications reach the peer."""

    def open_channel(self) -> Channel | None:
        """The first channel, or a further one (which may be had only once INIT is answered; OSError before). None for a
        wire whose peer calls `bind`'s handler itself."""
        ...

    def bind(self, handle: Handler, undelivered: Undelivered) -> None:
        """Called before any channel is served."""
        ...

    def close(self) -> None:
        """Make every receive() return None soon, and free all fds once they have."""
        ...

    def register_backing(self, fd: int) -> int: ...

    def unregister_backing(self, backing_id: int) -> None: ...

    def notify(self, message: list[Buffer]) -> None: ...

    def groups_of(self, pid: int) -> tuple[int, ...]: ...


@runtime_checkable
class SelfServing(ServerTransport, Protocol):
    """A wire with threads of its own, over which one peer may come after another, or start over by a second INIT."""

    window: int
    """Bytes of its DAX window; 0: none."""
    checks_permissions: bool
    """The peer's kernel checks mode bits."""
    remote_locks: bool
    """Locks are the server's affair, not the peer's alone."""

    def attach(
        self,
        session: Any,
        handle: Handler,
        undelivered: Undelivered,
        connected: Callable[[], None],
        gone: Callable[[], None],
        *,
        detached: bool,
    ) -> None:
        """Begin to serve. `session` is the ServerSession, whose handler may be wrapped in `handle`; `connected` is
        called when an INIT was answered, `gone` when no peer will come any more. `detached`: WRITEs may go to
        session.handle_detached."""
        ...


class ClientTransport(Protocol):
    """A wire to one server, seen from the client."""

    max_write: int
    """Largest payload of one message in bytes."""

    def start(self, on_message: Callable[[Buffer], None], on_closed: Callable[[BaseException | None], None]) -> None:
        """Begin. `on_message` is called with each whole reply or notification (valid during the call), `on_closed`
        once, when no more can come; both possibly from another thread, `on_message` possibly inside `send`."""
        ...

    def send(self, message: list[Buffer]) -> None:
        """Send one request. ConnectionError when the server is gone."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


def serve_channel(channel: Channel, handle: Handler, undelivered: Undelivered, worker: Worker) -> None:
    """The loop of one worker in its plain form: one thread takes a request all the way down and its answer back up."""
    receive, send = channel.receive, channel.send
    counters, step, park = worker.counters, worker.step_at, worker.park_at
    while (got := receive()) is not None:
        counters[step] += 1
        if counters[0]:
            worker.wake()
        buffer, start, end = got
        try:
            message = handle(buffer, start, end, channel)
        except RemoteProtocolError as error:
            log.error("message dropped: %s", error)
            message = None
        if message is not None and not send(message):
            undelivered(buffer, start, message)
        counters[step] += 1
        if counters[park] and not worker.park():
            return


def flatten(message: Message) -> bytes:
    """A message as one bytes object; a range is read from its file."""
    if isinstance(message, bytes):
        return message
    if isinstance(message, RangeReply):
        try:
            data = os.pread(message.fd, message.length, message.offset)
        except OSError as error:
            return message.error(error.errno or 5)
        return message.header(len(data)) + data
    return b"".join(message)

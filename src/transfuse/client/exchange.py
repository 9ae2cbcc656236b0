"""Requests out, answers in: the part of the client that waits.

Any number of threads may be in `call` at a time. Whoever waits owns its request; when it gives up (timeout, Ctrl-C) it
sends INTERRUPT, waits a little for the answer, and then leaves the request behind as *abandoned*. The answer to one
that was abandoned is still read, because a lookup or an open file in it must be given back.

No call waits for ever: a transport that closes, and a server that breaks the protocol in a way no single request is to
blame for, end all waiting calls with ConnectionError.

On a memory wire the answer comes inside send(), in the caller's own thread. `on_message` may also run in a transport's
reader thread, which never waits for an answer itself.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from transfuse.client.caches import Cache
from transfuse.errors import RemoteProtocolError
from transfuse.quiet import QuietLog
from transfuse.session.client import NOBODY, BadNotification, BadReply, ClientSession, Credentials, Pending, Reply
from transfuse.session.events import Event
from transfuse.transports.base import ClientTransport
from transfuse.wire.layout import Buffer
from transfuse.wire.opcodes import Opcode, opcode_name

__all__ = ["Exchange"]

log = logging.getLogger("transfuse.client")

FORGET_BATCH = 64
"""Lookups are given back when this many nodes were dropped (or the caches are emptied)."""
INTERRUPT_GRACE_S = 1.0
"""How long an interrupted request may still answer before it is left behind."""
INTERRUPT_AGAIN_S = 0.02
"""How soon INTERRUPT is sent once more while the request goes on: the server may not have begun it at the first."""
NOT_CONNECTED_TRIES = 3
"""Most INITs: one for each major that two peers could have to step down."""

_OPEN_LIKE = {int(Opcode.OPEN): Opcode.RELEASE, int(Opcode.OPENDIR): Opcode.RELEASEDIR}
_CREATE_LIKE = frozenset((int(Opcode.CREATE), int(Opcode.TMPFILE)))
_ENTRY_LIKE = _CREATE_LIKE | frozenset(
    int(o) for o in (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK)
)


class Exchange:
    """One connection: session, transport and cache together."""

    def __init__(
        self,
        transport: ClientTransport,
        session: ClientSession,
        cache: Cache,
        on_event: Callable[[Event], None],
        timeout_s: float | None,
    ) -> None:
        self.transport = transport
        self.session = session
        self.cache = cache
        self.timeout_s = timeout_s
        """How long a call waits for its answer; None: for ever."""
        self.ended: Exception | None = None
        """Why nothing can be asked any more."""
        self.orphans: deque[tuple[Opcode, int, int, int]] = deque()
        """Open files whose owner vanished without close: (release opcode, nodeid, fh, flags)."""
        self._on_event = on_event
        self._closing = False
        self._complaints = QuietLog(log, "malformed notifications", cache.clock)

    # -- life ---------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Start the transport and agree on a protocol. ConnectionError when the server refuses."""
        self.transport.start(self._on_message, self._on_closed)
        for _ in range(NOT_CONNECTED_TRIES):
            reply = self._exchange(self.session.init(), self.timeout_s)
            if reply.error:
                raise ConnectionRefusedError(
                    errno.ECONNREFUSED, f"the server refused INIT: {os.strerror(reply.error)}"
                )
            if self.session.connection is not None:
                return
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the server agrees to no protocol version")

    def close(self, timeout_s: float = 5.0) -> None:
        """DESTROY and the end. Linux sends no forgets before it; neither do we. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self.session.connection is not None and self.ended is None:
            try:
                self._release_orphans()
                self._exchange(self.session.request(Opcode.DESTROY, 0), timeout_s)
            except (OSError, RemoteProtocolError) as error:
                log.debug("DESTROY: %s", error)
        self.transport.close()
        self.end(ConnectionError(errno.ENOTCONN, "the client is closed"))

    def end(self, why: Exception) -> None:
        """Nothing more will come: every waiting call fails with `why`."""
        if self.ended is None:
            self.ended = why
            self._complaints.end()
        for pending in list(self.session.in_flight.values()):
            self.session.drop(pending)
            self._finish(pending, None, self.ended)

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(
        self,
        opcode: int,
        nodeid: int,
        args: Sequence[int] = (),
        names: Sequence[bytes] = (),
        payload: Buffer = b"",
        creds: Credentials = NOBODY,
        extensions: bytes = b"",
        timeout_s: float | None = -1,
    ) -> Reply:
        """One request and its answer, without a look at the answer's errno.

        `timeout_s` -1 is the connection's own. Raises TimeoutError, ConnectionError, RemoteProtocolError.
        """
        if self.cache.forgets and len(self.cache.forgets) >= FORGET_BATCH:
            self.flush_forgets()
        if self.orphans:
            self._release_orphans()
        absent = self.session.without(opcode)
        if absent is not None:
            return Reply(Pending(0, opcode, nodeid, 0), absent)
        pending = self.session.request(opcode, nodeid, args, names, payload, creds, extensions)
        return self._exchange(pending, self.timeout_s if timeout_s == -1 else timeout_s)

    def _exchange(self, pending: Pending, timeout_s: float | None) -> Reply:
        try:
            if self.ended is not None:
                raise _again(self.ended)
            self.transport.send(pending.message)
        except BaseException as error:
            self._abandon(pending)
            if isinstance(error, Exception):
                self.session.drop(pending)  # it never left; after Ctrl-C an answer may still come
            raise
        # The answer may come between the two looks, but whoever brings it looks at `event` after it is written.
        if pending.reply is None and pending.failure is None:
            event = pending.event = threading.Event()
            if pending.reply is None and pending.failure is None and not self._wait(pending, event, timeout_s):
                raise TimeoutError(errno.ETIMEDOUT, f"{opcode_name(pending.opcode)}: no answer within {timeout_s} s")
        if pending.failure is not None:
            raise _again(pending.failure)
        assert pending.reply is not None  # one of the two is set before the event is
        return pending.reply

    def _wait(self, pending: Pending, event: threading.Event, timeout_s: float | None) -> bool:
        """Wait for the answer; False when there was none in time."""
        if self.ended is not None:  # it ended after the look before send(), and did not see this request
            self.session.drop(pending)
            pending.failure = pending.failure or self.ended
            return True
        try:
            if event.wait(timeout_s):
                return True
            answered = self._give_up(pending, event)
        except BaseException:
            self._give_up(pending, event)
            self._abandon(pending)
            raise
        if answered and (pending.reply is None or pending.reply.error != errno.EINTR):
            return True
        self._abandon(pending)
        return False

    def _give_up(self, pending: Pending, event: threading.Event) -> bool:
        """Interrupt a request; True if it was answered after all."""
        left, pause = INTERRUPT_GRACE_S, INTERRUPT_AGAIN_S
        try:
            while left > 0 and self.ended is None:
                message = self.session.interrupt(pending)
                if message is None:
                    return event.is_set()
                self.transport.send(message)
                if event.wait(min(pause, left)):
                    return True
                left -= pause
                pause *= 2
        except OSError as error:
            log.debug("INTERRUPT: %s", error)
        return event.is_set()

    def _abandon(self, pending: Pending) -> None:
        """Nobody waits for the answer any more: what it brings, or has brought, is given back."""
        with self.cache.lock:
            if pending.abandoned:
                return
            pending.abandoned = True
            reply = pending.reply
        if reply is not None:
            self._give_back(reply)

    # -- messages in --------------------------------------------------------------------------------------------------

    def _on_message(self, buffer: Buffer) -> None:
        """One message of the server's. Raises OSError for a notification: ENOENT when it is about what is not known
        here, EINVAL when it is malformed. A wire that can, tells the server so."""
        try:
            received = self.session.receive(buffer)
        except BadReply as error:
            log.debug("%s", error)  # the caller gets it
            self._finish(error.pending, None, error)
            return
        except BadNotification as error:
            self._complaints.warning("%s", error)
            raise OSError(errno.EINVAL, str(error)) from error
        except RemoteProtocolError as error:
            log.error("the connection ends: %s", error)
            self.end(error)
            self.transport.close()
            return
        if isinstance(received, Reply):
            self._finish(received.pending, received, None)
        elif received is not None:
            self._on_event(received)

    def _finish(self, pending: Pending, reply: Reply | None, failure: Exception | None) -> None:
        with self.cache.lock:
            pending.reply, pending.failure = reply, failure
            abandoned = pending.abandoned
        if abandoned and reply is not None:
            self._give_back(reply)
        event = pending.event
        if event is not None:
            event.set()

    def _on_closed(self, why: BaseException | None) -> None:
        text = f"the server is gone: {why}" if why is not None else "the server is gone"
        error = ConnectionResetError(errno.ECONNRESET, text)
        self.end(error)

    # -- giving back --------------------------------------------------------------------------------------------------

    def _give_back(self, reply: Reply) -> None:
        """An answer that nobody waits for: undo the lookup and the open that it stands for."""
        opcode, nodeid, values = reply.pending.opcode, reply.pending.nodeid, reply.values
        if reply.error or not values:
            return
        if opcode in _ENTRY_LIKE and values[0] > 1:
            nodeid = values[0]
            self.cache.forgets.append((nodeid, 1))
        if opcode in _OPEN_LIKE:
            self.orphans.append((_OPEN_LIKE[opcode], nodeid, values[0], 0))
        elif opcode in _CREATE_LIKE:
            self.orphans.append((Opcode.RELEASE, nodeid, values[22], 0))

    def _release_orphans(self) -> None:
        while self.orphans:
            try:
                opcode, nodeid, fh, flags = self.orphans.popleft()
            except IndexError:
                return  # another thread was quicker
            if self.session.without(Opcode.OPEN if opcode == Opcode.RELEASE else Opcode.OPENDIR) is None:
                self._exchange(self.session.request(opcode, nodeid, (fh, flags, 0, 0)), self.timeout_s)

    def flush_forgets(self) -> None:
        """Send every lookup that is to be given back."""
        forgets: dict[int, int] = {}
        while True:
            try:
                nodeid, nlookup = self.cache.forgets.popleft()
            except IndexError:
                break
            forgets[nodeid] = forgets.get(nodeid, 0) + nlookup
        if forgets and self.ended is None:
            for message in self.session.forget(list(forgets.items())):
                self.transport.send(message)

    def send(self, message: list[Buffer]) -> None:
        """A message that has no answer."""
        self.transport.send(message)


def _again(error: Exception) -> Exception:
    """An exception of the same kind and text that can be raised in another thread with a traceback of its own."""
    if isinstance(error, BadReply):
        return RemoteProtocolError(str(error), error.errno)
    if isinstance(error, RemoteProtocolError):
        return ConnectionAbortedError(errno.ECONNABORTED, str(error))
    copy: Any = type(error)(*error.args)
    return copy if isinstance(copy, Exception) else error

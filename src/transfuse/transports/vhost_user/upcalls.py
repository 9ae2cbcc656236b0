"""What the back-end asks of the front-end, over the socket that came with SET_BACKEND_REQ_FD.

One request is under way at a time, and whoever makes it waits for the answer. Nobody may wait here while the front-end
waits for us on the main channel: it does one thing at a time, and answers here only afterwards. So `interrupt` gives up
the wait when a ring is to be stopped; the answer that comes later is passed over.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Sequence

from transfuse.errors import RemoteProtocolError
from transfuse.transports.vhost_user.messages import (
    BACKEND_REQUESTS,
    NEED_REPLY,
    REPLY,
    BackendRequest,
    Body,
    decode_reply,
)
from transfuse.transports.vhost_user.socket import MessageSocket, Received

__all__ = ["BackendChannel"]

log = logging.getLogger("transfuse.vhost_user")

ANSWER_TIMEOUT_S = 30.0
"""How long the front-end may take for one request before it is taken for dead on this channel."""
MAX_LATE = 64
"""Most answers that may still come to requests given up before."""


class BackendChannel:
    """One such socket. `acknowledged`: the front-end answers (REPLY_ACK was agreed); else every request counts as done
    when it is sent."""

    def __init__(self, sock: MessageSocket, acknowledged: bool) -> None:
        self._socket = sock
        self._acknowledged = acknowledged
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._late = 0
        """Answers to requests that were given up, still to come."""

    def call(self, request: BackendRequest, body: Body | None = None, fds: Sequence[int] = ()) -> None:
        """Make a request and wait until it is done.

        OSError: EIO if the front-end says that it failed, EINTR if the wait was given up, ConnectionError if the
        channel is gone.
        """
        payload = body.encode() if body is not None else b""
        with self._lock:
            if self._late >= MAX_LATE:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the front-end does not answer")
            self._socket.send(request, payload, fds, NEED_REPLY if self._acknowledged else 0)
            if not self._acknowledged:
                return
            for _ in range(self._late):
                self._next()
                self._late -= 1
            answer = self._next()
            if answer.request != request or not answer.flags & REPLY:
                self._socket.close()
                raise ConnectionAbortedError(errno.ECONNABORTED, f"{request.name} was answered by {answer.request}")
            try:
                failed = decode_reply(BACKEND_REQUESTS[request], answer.payload).value
            except RemoteProtocolError as error:
                self._socket.close()
                raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error
        if failed:
            raise OSError(errno.EIO, f"the front-end refused {request.name}")

    def _next(self) -> Received:
        ready = self._socket.readable(ANSWER_TIMEOUT_S, self._wake)
        if ready is not None and -1 not in ready and ready:
            os.eventfd_read(self._wake)
            self._late += 1
            raise InterruptedError(errno.EINTR, "given up, since the ring is stopped")
        try:
            answer = self._socket.receive() if ready else None
        except RemoteProtocolError as error:
            log.error("back-end channel: %s", error)
            answer = None
        if answer is None:
            self._socket.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "the front-end does not answer")
        answer.fds.close()
        return answer

    def interrupt(self) -> None:
        """Whoever waits gives up."""
        if self._lock.locked():
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the channel: everybody who waits gets ConnectionError. The object may be used, in vain, afterwards."""
        self._socket.close()
        with self._lock:
            fd, self._wake = self._wake, -1
        if fd >= 0:
            os.close(fd)

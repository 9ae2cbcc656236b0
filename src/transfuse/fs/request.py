"""Who asks: the first argument of every filesystem method."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

__all__ = ["Request"]


class Request:
    """One request as a filesystem sees it.

    `uid`, `gid`, `pid` identify the calling process as the peer's kernel named it (pid 0: not known here, or none).
    `interrupted` becomes True when the peer gave up waiting; a method that can take long looks at it, or waits with
    `wait_interrupted`, and then raises InterruptedError.
    """

    __slots__ = (
        "_callback",
        "_groups",
        "_resolve_groups",
        "argument",
        "gid",
        "interrupted",
        "nodeid",
        "opcode",
        "pid",
        "uid",
        "unique",
    )

    def __init__(
        self, unique: int = 0, opcode: int = 0, nodeid: int = 0, uid: int = 0, gid: int = 0, pid: int = 0
    ) -> None:
        self.unique = unique
        self.opcode = opcode
        self.nodeid = nodeid
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.interrupted = False
        self.argument: object = None
        """What the reply will need of the request (a size, a handle): the session's own."""
        self._groups: tuple[int, ...] | None = None
        self._resolve_groups: Callable[[int], tuple[int, ...]] | None = None
        self._callback: Callable[[], None] | None = None

    @property
    def groups(self) -> tuple[int, ...]:
        """Supplementary groups of the caller, as far as they can be known: sent with the request, or asked of the
        transport on first use (/dev/fuse reads /proc/PID/status); else only `gid`."""
        if self._groups is None:
            found = self._resolve_groups(self.pid) if self._resolve_groups is not None and self.pid else ()
            self._groups = found or (self.gid,)
        return self._groups

    def on_interrupt(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` from another thread when the request is interrupted (at once if it already was)."""
        self._callback = callback
        if callback is not None and self.interrupted:
            callback()

    def interrupt(self) -> None:
        """The session's side: mark the request and wake whoever waits."""
        self.interrupted = True
        callback = self._callback
        if callback is not None:
            callback()

    def wait_interrupted(self, timeout_s: float) -> None:
        """Sleep for `timeout_s`, or raise InterruptedError as soon as the request is interrupted."""
        event = threading.Event()
        self.on_interrupt(event.set)
        try:
            event.wait(timeout_s)
        finally:
            self.on_interrupt(None)
        if self.interrupted:
            raise InterruptedError(errno.EINTR, "request interrupted by the peer")

    def __repr__(self) -> str:
        return f"Request(unique={self.unique}, opcode={self.opcode}, uid={self.uid}, gid={self.gid}, pid={self.pid})"

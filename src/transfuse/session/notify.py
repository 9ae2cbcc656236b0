"""Messages from server to client that answer nothing: invalidation, storing and fetching cached pages, poll wake-ups.

`Notifier` builds them, refuses what was not negotiated, and keeps the books of RETRIEVE, whose answer comes back as a
NOTIFY_REPLY request. Where the wire cannot carry notifications (virtio-fs without its notification queue) there is no
Notifier at all.

Deadlock: a notification takes locks in the peer's kernel. Never send one from inside a filesystem method about the
directory or file that the request being served is about (see docs/concepts.md).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from transfuse.errors import LocalProtocolError
from transfuse.session.negotiate import Connection
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import message_struct
from transfuse.wire.layout import Buffer, WireStruct
from transfuse.wire.opcodes import NOTIFICATIONS, NotifyCode

__all__ = ["Notifier"]

MAX_RETRIEVES = 256
"""Most RETRIEVEs waiting for their answer."""
FIRST_RETRIEVE = 1 << 62
"""RETRIEVEs are numbered from here, by even numbers: over io_uring their answers share a table with the peer's own
requests, which count from 2, and odd is the INTERRUPT of the one before (fs/fuse/dev_uring.c)."""
MAX_PRUNE = 4096
"""Most nodeids in one PRUNE."""

Send = Callable[[list[Buffer]], None]


class Notifier:
    """Sends notifications to one peer, from any thread.

    Each method returns False when the peer does not know the node or name (ENOENT), which is no error: nothing was
    cached. Other failures raise OSError; what the peer's minor does not have raises LocalProtocolError.
    """

    def __init__(self, connection: Connection, send: Send) -> None:
        self.connection = connection
        self._send = send
        self._lock = threading.Lock()
        self._retrieves: dict[int, Future[bytes]] = {}
        self._next_unique = FIRST_RETRIEVE

    def poll(self, handle: int) -> bool:
        """Wake whoever polls the file that came with this handle."""
        return self._notify(NotifyCode.POLL, w.NotifyPollWakeupOut(kh=handle))

    def inval_inode(self, nodeid: int, offset: int = 0, length: int = 0) -> bool:
        """Drop cached attributes, and cached data from `offset` (length 0: to the end; offset < 0: attributes only)."""
        return self._notify(NotifyCode.INVAL_INODE, w.NotifyInvalInodeOut(ino=nodeid, off=offset, len=length))

    def inval_entry(self, parent: int, name: bytes, *, expire_only: bool = False) -> bool:
        """Forget a name; with `expire_only` only its timeout ends, and the next use asks again."""
        if expire_only and not self.connection.has(f.FUSE_HAS_EXPIRE_ONLY):
            raise LocalProtocolError("the peer does not know expire-only invalidation (FUSE_HAS_EXPIRE_ONLY)")
        body = w.NotifyInvalEntryOut(parent=parent, namelen=len(name), flags=f.FUSE_EXPIRE_ONLY if expire_only else 0)
        return self._notify(NotifyCode.INVAL_ENTRY, body, name + b"\0")

    def delete(self, parent: int, child: int, name: bytes) -> bool:
        """`name` was removed: forget it and tell inotify watchers. Raises EBUSY and ENOTEMPTY as the peer finds."""
        body = w.NotifyDeleteOut(parent=parent, child=child, namelen=len(name))
        return self._notify(NotifyCode.DELETE, body, name + b"\0")

    def store(self, nodeid: int, offset: int, data: Buffer) -> bool:
        """Put `data` into the peer's page cache; the file grows if it must."""
        if len(data) > self.connection.max_write:
            raise LocalProtocolError(f"{len(data)} bytes to store, at most {self.connection.max_write}")
        return self._notify(NotifyCode.STORE, w.NotifyStoreOut(nodeid=nodeid, offset=offset, size=len(data)), data)

    def retrieve(self, nodeid: int, offset: int, size: int) -> Future[bytes]:
        """Ask for cached pages. The future gives the bytes that were cached from `offset` on, maybe fewer or none."""
        future: Future[bytes] = Future()
        with self._lock:
            if len(self._retrieves) >= MAX_RETRIEVES:
                raise OSError(errno.EAGAIN, f"{MAX_RETRIEVES} retrieves are waiting for their answers")
            unique = self._next_unique
            self._next_unique += 2
            self._retrieves[unique] = future
        body = w.NotifyRetrieveOut(notify_unique=unique, nodeid=nodeid, offset=offset, size=size)
        sent = False
        try:
            sent = self._notify(NotifyCode.RETRIEVE, body)
        finally:
            if not sent:
                self._retrieves.pop(unique, None)
        if not sent:
            raise FileNotFoundError(errno.ENOENT, f"the peer does not know node {nodeid}")
        return future

    def retrieved(self, unique: int, data: bytes) -> None:
        """The session's side: the answer to a RETRIEVE. One that nobody asked for is dropped."""
        future = self._retrieves.pop(unique, None)
        # A future that its owner has cancelled takes no result.
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(data)

    def resend(self) -> bool:
        """Have every request that was read but not answered sent again (after taking over a connection)."""
        if not self.connection.has(f.FUSE_HAS_RESEND):
            raise LocalProtocolError("the peer does not know RESEND (FUSE_HAS_RESEND)")
        return self._notify(NotifyCode.RESEND)

    def inc_epoch(self) -> bool:
        """Make every cached name and listing invalid at once."""
        return self._notify(NotifyCode.INC_EPOCH)

    def prune(self, nodeids: Sequence[int]) -> bool:
        """Ask the peer to drop unused names of these nodes, so that it forgets them."""
        if len(nodeids) > MAX_PRUNE:
            raise LocalProtocolError(f"{len(nodeids)} nodes to prune, at most {MAX_PRUNE}")
        order = "little" if self.connection.order == "<" else "big"
        payload = b"".join(nodeid.to_bytes(8, order) for nodeid in nodeids)  # type: ignore[arg-type]
        return self._notify(NotifyCode.PRUNE, w.NotifyPruneOut(count=len(nodeids)), payload)

    def cancel(self) -> None:
        """The connection is over: nobody will answer."""
        with self._lock:
            waiting = list(self._retrieves.values())
            self._retrieves.clear()
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(ConnectionAbortedError(errno.ECONNABORTED, "the connection ended"))

    def _notify(self, code: NotifyCode, body: WireStruct | None = None, tail: Buffer = b"") -> bool:
        since = NOTIFICATIONS[code].since
        if self.connection.minor < since:
            raise LocalProtocolError(f"{code.name} needs 7.{since}, the peer speaks 7.{self.connection.minor}")
        order = self.connection.order
        inside = body.encode(order) if body is not None else b""
        head = message_struct(order).pack(16 + len(inside) + len(tail), int(code), 0) + inside
        try:
            self._send([head, tail] if len(tail) else [head])
        except FileNotFoundError:
            return False
        return True

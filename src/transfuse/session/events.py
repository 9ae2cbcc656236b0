"""Notifications as the client's side reads them: messages with unique 0, whose error field is the code.

Each becomes one small value with the fields of its structure, host-order integers and bytes. The body must have exactly
the length its structure, name or payload make; Linux answers EINVAL to anything else, and so do we
(RemoteProtocolError).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from transfuse.errors import RemoteProtocolError
from transfuse.wire.decode import MAX_NAME
from transfuse.wire.layout import Buffer, ByteOrder
from transfuse.wire.opcodes import NOTIFICATIONS, NotifyCode

__all__ = ["Event", "decode_notification"]

MAX_PRUNE = 1 << 16
"""Most nodeids in one PRUNE."""


@dataclass(slots=True)
class Event:
    """One notification. Fields that its code does not have are zero or empty."""

    code: NotifyCode
    nodeid: int = 0
    """INVAL_INODE, STORE, RETRIEVE: the node; INVAL_ENTRY, DELETE: the parent directory."""
    child: int = 0
    """DELETE: the node that was removed."""
    name: bytes = b""
    flags: int = 0
    offset: int = 0
    length: int = 0
    data: bytes = b""
    unique: int = 0
    """RETRIEVE: the number its NOTIFY_REPLY carries."""
    handle: int = 0
    """POLL: the number the poller gave."""
    nodeids: tuple[int, ...] = field(default=())
    """PRUNE."""


def _name(buffer: Buffer, at: int, namelen: int) -> bytes:
    """The name that fills the rest of the message, with its NUL."""
    if namelen > MAX_NAME or len(buffer) - at != namelen + 1:
        raise RemoteProtocolError(f"notification: namelen {namelen}, {len(buffer) - at} bytes follow")
    raw = bytes(buffer[at:])
    if raw[-1] or b"\0" in raw[:-1] or b"/" in raw or not namelen:
        raise RemoteProtocolError(f"notification: name at offset {at}: {raw[:64]!r} is not a name")
    return raw[:-1]


def decode_notification(code: int, buffer: Buffer, order: ByteOrder, minor: int) -> Event:
    """The notification in `buffer`, header included (its length was checked).

    Raises RemoteProtocolError for codes that a server of this minor does not have.
    """
    row = NOTIFICATIONS.get(code)
    if row is None or row.since > minor:
        raise RemoteProtocolError(f"notification code {code} does not exist in 7.{minor}")
    at = 16 + (row.body.SIZE if row.body is not None else 0)
    if len(buffer) < at or (len(buffer) > at and not row.names and not row.payload):
        raise RemoteProtocolError(f"{row.code.name} notification of {len(buffer)} bytes where {at} belong")
    values = row.body.codec(order).unpack_from(buffer, 16) if row.body is not None else ()
    event = Event(row.code)
    match row.code:
        case NotifyCode.POLL:
            (event.handle,) = values
        case NotifyCode.INVAL_INODE:
            event.nodeid, event.offset, event.length = values
        case NotifyCode.INVAL_ENTRY:
            event.nodeid, namelen, event.flags = values
            event.name = _name(buffer, at, namelen)
        case NotifyCode.DELETE:
            event.nodeid, event.child, namelen = values
            event.name = _name(buffer, at, namelen)
        case NotifyCode.STORE:
            event.nodeid, event.offset, event.length = values
            if len(buffer) - at != event.length:
                raise RemoteProtocolError(f"notify_store.size: {event.length}, {len(buffer) - at} bytes follow")
            event.data = bytes(buffer[at:])
        case NotifyCode.RETRIEVE:
            event.unique, event.nodeid, event.offset, event.length = values
        case NotifyCode.PRUNE:
            (count,) = values
            if count > MAX_PRUNE or len(buffer) - at != 8 * count:
                raise RemoteProtocolError(f"notify_prune.count: {count}, {len(buffer) - at} bytes follow")
            event.nodeids = struct.unpack_from(f"{order}{count}Q", buffer, at)
    return event

"""Notifications in bytes, as the client reads them."""

from __future__ import annotations

import struct

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.session.events import Event, decode_notification
from transfuse.wire.layout import ByteOrder
from transfuse.wire.opcodes import NotifyCode

ORDERS = ["<", ">"]


def message(order: str, code: int, body: bytes) -> bytes:
    return struct.pack(order + "IiQ", 16 + len(body), code, 0) + body


def decode(order: ByteOrder, code: int, body: bytes, minor: int = 45) -> Event:
    return decode_notification(code, message(order, code, body), order, minor)


@pytest.mark.parametrize("order", ORDERS)
def test_inval_inode(order: ByteOrder) -> None:
    # ino, off, len
    event = decode(order, 2, struct.pack(order + "Qqq", 5, -1, 10))
    assert (event.nodeid, event.offset, event.length) == (5, -1, 10)


@pytest.mark.parametrize("order", ORDERS)
def test_inval_entry(order: ByteOrder) -> None:
    # parent, namelen, flags, name, NUL
    event = decode(order, 3, struct.pack(order + "QII", 1, 2, 1) + b"ab\0")
    assert (event.nodeid, event.name, event.flags) == (1, b"ab", 1)


@pytest.mark.parametrize("order", ORDERS)
def test_delete(order: ByteOrder) -> None:
    # parent, child, namelen, padding, name, NUL
    event = decode(order, 6, struct.pack(order + "QQII", 1, 9, 2, 0) + b"ab\0")
    assert (event.nodeid, event.child, event.name) == (1, 9, b"ab")


@pytest.mark.parametrize("order", ORDERS)
def test_store(order: ByteOrder) -> None:
    # nodeid, offset, size, padding, data
    event = decode(order, 4, struct.pack(order + "QQII", 5, 4096, 3, 0) + b"abc")
    assert (event.nodeid, event.offset, event.data) == (5, 4096, b"abc")


@pytest.mark.parametrize("order", ORDERS)
def test_retrieve(order: ByteOrder) -> None:
    # notify_unique, nodeid, offset, size, padding
    event = decode(order, 5, struct.pack(order + "QQQII", 7, 5, 4096, 100, 0))
    assert (event.unique, event.nodeid, event.offset, event.length) == (7, 5, 4096, 100)


@pytest.mark.parametrize("order", ORDERS)
def test_prune(order: ByteOrder) -> None:
    # count, padding, spare, nodeids
    event = decode(order, 9, struct.pack(order + "IIQQQ", 2, 0, 0, 5, 6))
    assert event.nodeids == (5, 6)


@pytest.mark.parametrize("order", ORDERS)
def test_poll(order: ByteOrder) -> None:
    assert decode(order, 1, struct.pack(order + "Q", 99)).handle == 99


@pytest.mark.parametrize("code", [NotifyCode.RESEND, NotifyCode.INC_EPOCH])
def test_codes_without_a_body(code: NotifyCode) -> None:
    assert decode("<", code, b"") == Event(code)


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (0, b""),
        (10, b""),
        (-1, b""),
        (1, bytes(7)),
        (1, bytes(9)),
        (2, bytes(23)),
        (2, bytes(25)),
        (3, struct.pack("<QII", 1, 2, 0) + b"ab"),
        (3, struct.pack("<QII", 1, 2, 0) + b"abc"),
        (3, struct.pack("<QII", 1, 2, 0) + b"a/\0"),
        (3, struct.pack("<QII", 1, 0, 0) + b"\0"),
        (3, struct.pack("<QII", 1, 3, 0) + b"ab\0"),
        (3, struct.pack("<QII", 1, 0xFFFFFFFF, 0) + b"ab\0"),
        (4, struct.pack("<QQII", 5, 0, 4, 0) + b"abc"),
        (6, struct.pack("<QQII", 5, 0, 4, 0) + b"a\0b\0\0"),
        (7, b"x"),
        (8, bytes(8)),
        (9, struct.pack("<IIQ", 1, 0, 0)),
        (9, struct.pack("<IIQ", 0xFFFFFFFF, 0, 0)),
    ],
)
def test_a_notification_that_can_not_be_is_refused(code: int, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="notif"):
        decode("<", code, body)


def test_a_code_newer_than_the_minor_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"code 9 does not exist in 7\.44"):
        decode("<", 9, struct.pack("<IIQ", 0, 0, 0), minor=44)

"""Messages to the peer, down to the byte."""

from __future__ import annotations

import errno

import pytest

from transfuse.wire.encode import (
    MAX_ERRNO,
    RangeReply,
    encode_error,
    encode_request,
    message_struct,
    pack_dirent,
    padded,
)
from transfuse.wire.structs import EntryOut, OpenOut


@pytest.mark.parametrize(
    ("order", "raw"),
    [
        # len 16, error -ENOENT, unique 42
        ("<", b"\x10\0\0\0\xfe\xff\xff\xff\x2a\0\0\0\0\0\0\0"),
        (">", b"\0\0\0\x10\xff\xff\xff\xfe\0\0\0\0\0\0\0\x2a"),
    ],
)
def test_error_of_literal_bytes(order: str, raw: bytes) -> None:
    assert encode_error(order, 42, errno.ENOENT) == raw


@pytest.mark.parametrize("number", [0, -2, 512, 1133, 1 << 40])
def test_errno_that_cannot_travel_becomes_eio(number: int) -> None:
    assert encode_error("<", 1, number) == encode_error("<", 1, errno.EIO)


def test_largest_errno_that_linux_takes() -> None:
    assert encode_error("<", 1, MAX_ERRNO)[4:8] == (-511).to_bytes(4, "little", signed=True)


@pytest.mark.parametrize(
    ("order", "raw"),
    [
        (
            "<",
            b"\x2e\0\0\0"  # len 46
            b"\x01\0\0\0"  # LOOKUP
            b"\x2a\0\0\0\0\0\0\0"  # unique 42
            b"\x01\0\0\0\0\0\0\0"  # nodeid 1
            b"\xe8\x03\0\0\x64\0\0\0\x07\0\0\0"  # uid 1000, gid 100, pid 7
            b"\0\0\0\0"  # total_extlen, padding
            b"hello\0",
        ),
        (
            ">",
            b"\0\0\0\x2e"  # len 46
            b"\0\0\0\x01"  # LOOKUP
            b"\0\0\0\0\0\0\0\x2a"  # unique 42
            b"\0\0\0\0\0\0\0\x01"  # nodeid 1
            b"\0\0\x03\xe8\0\0\0\x64\0\0\0\x07"  # uid 1000, gid 100, pid 7
            b"\0\0\0\0"  # total_extlen, padding
            b"hello\0",
        ),
    ],
)
def test_request_of_literal_bytes(order: str, raw: bytes) -> None:
    assert b"".join(encode_request(order, 1, 42, 1, 1000, 100, 7, b"hello\0")) == raw


def test_request_with_payload_and_extensions() -> None:
    parts = encode_request("<", 16, 1, 2, 0, 0, 0, b"body", b"payload!", bytes(16))
    raw = b"".join(parts)
    assert raw[:4] == (40 + 4 + 8 + 16).to_bytes(4, "little")
    assert raw[36:38] == (2).to_bytes(2, "little")  # total_extlen, in eights
    assert raw[40:] == b"bodypayload!" + bytes(16)


def test_payload_is_not_copied_into_the_header() -> None:
    payload = memoryview(bytearray(10))
    assert encode_request("<", 16, 1, 2, 0, 0, 0, b"", payload)[1] is payload


def test_extensions_that_are_no_multiple_of_eight_are_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes of extensions"):
        encode_request("<", 9, 1, 1, 0, 0, 0, b"", b"", bytes(9))


def test_message_struct_covers_header_and_parts() -> None:
    assert message_struct("<").size == 16
    assert message_struct("<", EntryOut, OpenOut).size == 160
    assert message_struct(">", EntryOut) is message_struct(">", EntryOut)


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 8), (7, 8), (8, 8), (9, 16), (25, 32)])
def test_padded_rounds_up_to_eight(size: int, expected: int) -> None:
    assert padded(size) == expected


@pytest.mark.parametrize(
    ("order", "raw"),
    [
        # ino 5, off 3, namelen 3, type DIR, name, padding
        ("<", b"\x05\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x03\0\0\0\x04\0\0\0abc\0\0\0\0\0"),
        (">", b"\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x03\0\0\0\x03\0\0\0\x04abc\0\0\0\0\0"),
    ],
)
def test_dirent_of_literal_bytes(order: str, raw: bytes) -> None:
    assert pack_dirent(order, 5, 3, 4, b"abc") == raw


def test_dirent_of_whole_eights_has_no_padding() -> None:
    assert len(pack_dirent("<", 1, 1, 8, b"12345678")) == 32


@pytest.mark.parametrize("order", "<>")
def test_range_reply_packs_its_header_when_the_count_is_known(order: str) -> None:
    reply = RangeReply(7, order, 3, 0, 4096)
    byteorder = "little" if order == "<" else "big"
    head = reply.header(100)
    assert int.from_bytes(head[:4], byteorder) == 116
    assert int.from_bytes(head[8:], byteorder) == 7
    assert reply.error(errno.EIO) == encode_error(order, 7, errno.EIO)

"""Bodies of replies: literal bytes, and everything that must not be believed."""

from __future__ import annotations

import struct

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.session.answers import (
    check_attr,
    decode_init_reply,
    parse_direntplus,
    parse_dirents,
    parse_names,
    reply_shapes,
)
from transfuse.wire.layout import ByteOrder
from transfuse.wire.opcodes import OPERATIONS, Opcode
from transfuse.wire.structs import Attr, EntryOut


def dirent(order: str, name: bytes, namelen: int | None = None) -> bytes:
    # ino, off, namelen, type, name, padding to 8
    raw = struct.pack(order + "QQII", 11, 22, len(name) if namelen is None else namelen, 8) + name
    return raw + bytes(-len(raw) % 8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_dirents_in_bytes(order: ByteOrder) -> None:
    records = list(parse_dirents(dirent(order, b"abc") + dirent(order, b"12345678"), order))
    assert [(r.name, r.ino, r.off, r.kind, r.entry) for r in records] == [
        (b"abc", 11, 22, 8, None),
        (b"12345678", 11, 22, 8, None),
    ]


def test_the_last_record_needs_no_padding() -> None:
    assert [record.name for record in parse_dirents(dirent("<", b"abc")[:27], "<")] == [b"abc"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (dirent("<", b"")[:24], "namelen at offset 32: 0"),
        (dirent("<", b"abc", 5000), "namelen at offset 32: 5000"),
        (dirent("<", b"abc", 9), "namelen at offset 32: 9"),
        (dirent("<", b"a/b"), "dirent.name at offset 40"),
        (dirent("<", b"a\0b"), "dirent.name at offset 40"),
        (dirent("<", b"abc") + b"x" * 23, "dirent at offset 48: 23 bytes"),
    ],
)
def test_a_dirent_that_can_not_be_is_refused_with_its_offset(data: bytes, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        list(parse_dirents(data, "<"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_direntplus_gives_the_entry(order: ByteOrder) -> None:
    entry = EntryOut(nodeid=5, attr=Attr(ino=5, mode=0o100644)).encode(order)
    (record,) = parse_direntplus(entry + dirent(order, b"abc"), order)
    assert record.name == b"abc" and record.entry is not None and record.entry[0] == 5


def test_direntplus_with_nodeid_0_was_no_lookup() -> None:
    (record,) = parse_direntplus(bytes(128) + dirent("<", b"."), "<")
    assert record.entry is None


def test_direntplus_yields_what_is_right_before_what_is_wrong() -> None:
    entry = EntryOut(nodeid=5).encode("<")
    records = parse_direntplus(entry + dirent("<", b"good") + entry + dirent("<", b"", 0), "<")
    assert next(records).name == b"good"
    with pytest.raises(RemoteProtocolError, match="namelen"):
        next(records)


def test_names_of_attributes() -> None:
    assert parse_names(b"user.a\0user.b\0") == [b"user.a", b"user.b"]
    assert parse_names(b"") == []


@pytest.mark.parametrize("data", [b"user.a", b"user.a\0\0", b"\0"])
def test_a_list_of_names_that_can_not_be_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="listxattr"):
        parse_names(data)


@pytest.mark.parametrize("mode", [0, 0o644, 0o170644, 0o30644])
def test_attributes_without_a_file_type_are_refused(mode: int) -> None:
    with pytest.raises(RemoteProtocolError, match="no known file type"):
        check_attr(Attr(ino=2, mode=mode).values(), 0, "attr")


def test_a_size_beyond_every_file_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="attr.size: 0x8000000000000000"):
        check_attr(Attr(ino=2, mode=0o100644, size=1 << 63).values(), 0, "attr")


@pytest.mark.parametrize("size", [8, 24, 64])
def test_init_replies_have_had_three_lengths(size: int) -> None:
    assert decode_init_reply(struct.pack("<II", 7, 31).ljust(size, b"\0"), "<").minor == 31


def test_every_operation_with_a_reply_has_a_shape() -> None:
    shapes = reply_shapes("<")
    assert {opcode for opcode, row in OPERATIONS.items() if row.replies} <= shapes.keys()
    assert shapes[Opcode.CREATE].size == 128 + 16

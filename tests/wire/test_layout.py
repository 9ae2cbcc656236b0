"""Declaring structures: what each feature of a declaration makes of the bytes."""

from __future__ import annotations

import struct

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.wire.layout import WireStruct, chars, fixed, i16, i32, i64, pad, since, u8, u16, u32, u64


class Widths(WireStruct):
    a: u8
    b: u16
    c: u32
    d: u64
    e: i16
    f: i32
    g: i64


class Inner(WireStruct):
    x: u16
    gap: pad(2)
    y: u32


class Outer(WireStruct):
    head: u32
    one: Inner
    many: fixed(Inner, 2)
    numbers: fixed(u16, 3)
    tag: chars(4)
    tail: pad(2)


class Growing(WireStruct):
    old: u32
    newer: since(u32, 9)
    newest: since(pad(8), 12)


class LittleOnly(WireStruct, order="<"):
    value: u32


class WithConstant(WireStruct):
    LIMIT: ClassVar[int] = 7  # noqa: F821  read as text only
    value: u16


def test_fields_follow_one_another_without_gaps() -> None:
    assert [(f.name, f.offset, f.size) for f in Widths.FIELDS] == [
        ("a", 0, 1),
        ("b", 1, 2),
        ("c", 3, 4),
        ("d", 7, 8),
        ("e", 15, 2),
        ("f", 17, 4),
        ("g", 21, 8),
    ]
    assert Widths.SIZE == 29


@pytest.mark.parametrize(
    ("order", "raw"),
    [
        ("<", b"\x01\x02\x00\x03\0\0\0\x04\0\0\0\0\0\0\0\xff\xff\xfe\xff\xff\xff\xfd\xff\xff\xff\xff\xff\xff\xff"),
        (">", b"\x01\x00\x02\0\0\0\x03\0\0\0\0\0\0\0\x04\xff\xff\xff\xff\xff\xfe\xff\xff\xff\xff\xff\xff\xff\xfd"),
    ],
)
def test_integers_of_every_width_in_both_orders(order: str, raw: bytes) -> None:
    value = Widths(a=1, b=2, c=3, d=4, e=-1, f=-2, g=-3)
    assert value.encode(order) == raw
    assert Widths.decode(raw, 0, order) == value


def test_nested_structures_arrays_and_characters() -> None:
    value = Outer(
        head=1, one=Inner(x=2, y=3), many=(Inner(x=4, y=5), Inner(x=6, y=7)), numbers=(8, 9, 10), tag=b"abcd"
    )
    raw = value.encode(">")
    assert raw.hex(" ") == (
        "00 00 00 01 00 02 00 00 00 00 00 03 00 04 00 00 00 00 00 05 00 06 00 00 00 00 00 07 "
        "00 08 00 09 00 0a 61 62 63 64 00 00"
    )
    back = Outer.decode(raw, 0, ">")
    assert back == value
    assert back.many[1].y == 7


def test_padding_is_written_as_zero_and_not_read() -> None:
    assert Inner(x=0xFFFF, y=0xFFFFFFFF).encode("<") == b"\xff\xff\0\0\xff\xff\xff\xff"
    assert Inner.decode(b"\x01\0\xaa\xbb\x02\0\0\0") == Inner(x=1, y=2)


def test_padding_has_no_attribute() -> None:
    assert not hasattr(Inner(), "gap")


def test_unnamed_fields_are_zero() -> None:
    value = Outer()
    assert (value.head, value.one, value.numbers, value.tag) == (0, Inner(), (0, 0, 0), bytes(4))


def test_unknown_field_is_type_error() -> None:
    with pytest.raises(TypeError, match="Inner has no field 'z'"):
        Inner(z=1)


def test_size_at_ends_before_the_first_newer_field() -> None:
    assert [Growing.size_at(minor) for minor in (0, 8, 9, 11, 12, 45)] == [4, 4, 8, 8, 16, 16]


def test_size_at_without_newer_fields_is_size() -> None:
    assert Inner.size_at(0) == Inner.SIZE == 8


def test_decode_at_an_offset() -> None:
    assert Inner.decode(b"....\x01\0\0\0\x02\0\0\0....", 4) == Inner(x=1, y=2)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_decode_takes_every_kind_of_buffer(wrap: type) -> None:
    assert Inner.decode(wrap(b"\x01\0\0\0\x02\0\0\0")) == Inner(x=1, y=2)


@pytest.mark.parametrize(("length", "offset", "has"), [(7, 0, 7), (8, 1, 7), (0, 0, 0), (8, 20, 0)])
def test_too_few_bytes_name_structure_and_offset(length: int, offset: int, has: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"Inner at {offset:#x}: {has} bytes where 8 belong"):
        Inner.decode(bytes(length), offset)


def test_negative_offset_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        Inner.decode(bytes(100), -8)


def test_value_too_wide_for_its_field_is_struct_error() -> None:
    with pytest.raises(struct.error):
        Inner(x=0x10000).encode()


def test_characters_of_another_length_are_refused() -> None:
    for tag in (b"abc", b"abcde"):
        with pytest.raises(ValueError, match="where 4 belong"):
            Outer(tag=tag).encode()


def test_array_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 items where 3 belong"):
        Outer(numbers=(1, 2)).encode()


def test_fixed_order_wins_over_the_argument() -> None:
    assert LittleOnly(value=1).encode(">") == b"\x01\0\0\0"
    assert LittleOnly.decode(b"\x01\0\0\0", 0, ">").value == 1


def test_fixed_order_inside_another_order_is_refused() -> None:
    with pytest.raises(TypeError, match="in order '<' inside one in"):
        type(WireStruct)(
            "Mixed", (WireStruct,), {"__module__": __name__, "__annotations__": {"inner": "LittleOnly"}}, order=">"
        )


def test_a_field_that_is_no_field_type_is_refused() -> None:
    with pytest.raises(TypeError, match="is not a field type"):
        type(WireStruct)("Bad", (WireStruct,), {"__module__": __name__, "__annotations__": {"a": "int"}})


def test_class_variables_are_no_fields() -> None:
    assert [f.name for f in WithConstant.FIELDS] == ["value"]


def test_instances_have_slots_only() -> None:
    with pytest.raises(AttributeError):
        Inner().other = 1


def test_equality_is_by_class_and_values() -> None:
    assert Inner(x=1) == Inner(x=1)
    assert Inner(x=1) != Inner(x=2)
    assert Inner() != LittleOnly()
    assert hash(Inner(x=1)) == hash(Inner(x=1))


def test_repr_shows_every_field() -> None:
    assert repr(Inner(x=1, y=2)) == "Inner(x=1, y=2)"


def test_codec_is_made_once_per_order() -> None:
    assert Inner.codec("<") is Inner.codec("<")
    assert Inner.codec("<") is not Inner.codec(">")


def test_match_statement_sees_fields_in_order() -> None:
    match Inner(x=1, y=2):
        case Inner(x, y):
            assert (x, y) == (1, 2)

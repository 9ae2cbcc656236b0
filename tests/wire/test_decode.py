"""Requests from outside: literal bytes with a comment per field, and everything that a liar may send."""

from __future__ import annotations

import errno
import struct

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.wire.decode import (
    IN_HEADER,
    MAX_GROUPS,
    MAX_NAME,
    byte_order_of_init,
    check_component,
    check_header,
    decode_init,
    decode_name,
    decode_name_and_value,
    decode_supplementary_groups,
    decode_two_names,
    minimum_length,
)
from transfuse.wire.opcodes import Opcode
from transfuse.wire.structs import GetattrIn, SetattrIn

LOOKUP = {
    "<": (
        b"\x2e\x00\x00\x00"  # len 46
        b"\x01\x00\x00\x00"  # opcode LOOKUP
        b"\x2a\x00\x00\x00\x00\x00\x00\x00"  # unique 42
        b"\x01\x00\x00\x00\x00\x00\x00\x00"  # nodeid 1
        b"\xe8\x03\x00\x00"  # uid 1000
        b"\x64\x00\x00\x00"  # gid 100
        b"\x4d\x01\x00\x00"  # pid 333
        b"\x00\x00"  # total_extlen 0
        b"\x00\x00"  # padding
        b"hello\x00"
    ),
    ">": (
        b"\x00\x00\x00\x2e"  # len 46
        b"\x00\x00\x00\x01"  # opcode LOOKUP
        b"\x00\x00\x00\x00\x00\x00\x00\x2a"  # unique 42
        b"\x00\x00\x00\x00\x00\x00\x00\x01"  # nodeid 1
        b"\x00\x00\x03\xe8"  # uid 1000
        b"\x00\x00\x00\x64"  # gid 100
        b"\x00\x00\x01\x4d"  # pid 333
        b"\x00\x00"  # total_extlen 0
        b"\x00\x00"  # padding
        b"hello\x00"
    ),
}

INIT = {
    "<": (
        b"\x68\x00\x00\x00"  # len 104
        b"\x1a\x00\x00\x00"  # opcode INIT
        b"\x02\x00\x00\x00\x00\x00\x00\x00"  # unique 2
        b"\x00\x00\x00\x00\x00\x00\x00\x00"  # nodeid 0
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"  # uid, gid, pid
        b"\x00\x00\x00\x00"  # total_extlen, padding
        b"\x07\x00\x00\x00"  # major 7
        b"\x2d\x00\x00\x00"  # minor 45
        b"\x00\x00\x02\x00"  # max_readahead 128 KiB
        b"\xfb\xff\xff\x73"  # flags
        b"\xfd\x07\x00\x00"  # flags2
        + bytes(44)  # unused
    ),
    ">": (
        b"\x00\x00\x00\x68"  # len 104
        b"\x00\x00\x00\x1a"  # opcode INIT
        b"\x00\x00\x00\x00\x00\x00\x00\x02"  # unique 2
        b"\x00\x00\x00\x00\x00\x00\x00\x00"  # nodeid 0
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"  # uid, gid, pid
        b"\x00\x00\x00\x00"  # total_extlen, padding
        b"\x00\x00\x00\x07"  # major 7
        b"\x00\x00\x00\x2d"  # minor 45
        b"\x00\x02\x00\x00"  # max_readahead 128 KiB
        b"\x73\xff\xff\xfb"  # flags
        b"\x00\x00\x07\xfd"  # flags2
        + bytes(44)  # unused
    ),
}

GETATTR_BODY = {
    "<": b"\x01\x00\x00\x00" + bytes(4) + b"\x09\x00\x00\x00\x00\x00\x00\x80",  # FH, dummy, fh
    ">": b"\x00\x00\x00\x01" + bytes(4) + b"\x80\x00\x00\x00\x00\x00\x00\x09",
}

SETATTR_BODY = (
    b"\x38\x00\x00\x00"  # valid SIZE|ATIME|MTIME
    b"\x00\x00\x00\x00"  # padding
    b"\x00\x00\x00\x00\x00\x00\x00\x00"  # fh
    b"\x00\x10\x00\x00\x00\x00\x00\x00"  # size 4096
    b"\x00\x00\x00\x00\x00\x00\x00\x00"  # lock_owner
    b"\xff\xff\xff\xff\xff\xff\xff\xff"  # atime -1
    b"\x02\x00\x00\x00\x00\x00\x00\x00"  # mtime 2
    b"\x00\x00\x00\x00\x00\x00\x00\x00"  # ctime
    b"\x05\x00\x00\x00"  # atimensec 5
    b"\x06\x00\x00\x00"  # mtimensec 6
    b"\x00\x00\x00\x00"  # ctimensec
    b"\xa4\x81\x00\x00"  # mode 0100644
    b"\x00\x00\x00\x00"  # unused4
    b"\xe8\x03\x00\x00"  # uid 1000
    b"\x64\x00\x00\x00"  # gid 100
    b"\x00\x00\x00\x00"  # unused5
)


@pytest.mark.parametrize("order", "<>")
def test_header_of_literal_bytes(order: str) -> None:
    assert IN_HEADER[order].unpack_from(LOOKUP[order]) == (46, 1, 42, 1, 1000, 100, 333, 0)


@pytest.mark.parametrize("order", "<>")
def test_init_of_literal_bytes(order: str) -> None:
    init = decode_init(INIT[order], 0, 104, order)
    assert (init.major, init.minor, init.max_readahead) == (7, 45, 1 << 17)
    assert (init.flags, init.flags2) == (0x73FFFFFB, 0x7FD)


@pytest.mark.parametrize("order", "<>")
def test_getattr_of_literal_bytes(order: str) -> None:
    body = GetattrIn.decode(GETATTR_BODY[order], 0, order)
    assert (body.getattr_flags, body.fh) == (1, 0x8000000000000009)


def test_setattr_of_literal_bytes() -> None:
    body = SetattrIn.decode(SETATTR_BODY, 0, "<")
    assert (body.valid, body.size, body.mode, body.uid, body.gid) == (0x38, 4096, 0o100644, 1000, 100)
    assert (body.atime, body.atimensec, body.mtime, body.mtimensec) == (2**64 - 1, 5, 2, 6)


@pytest.mark.parametrize("order", "<>")
def test_byte_order_is_read_from_init(order: str) -> None:
    assert byte_order_of_init(INIT[order], 0, 104) == order
    assert byte_order_of_init(LOOKUP[order], 0, 46) is None


def test_order_of_less_than_a_header_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="39 bytes is shorter than its 40-byte header"):
        byte_order_of_init(INIT["<"], 0, 39)


# -- header and lengths


def test_whole_request_without_extensions_ends_where_it_ends() -> None:
    assert check_header(46, 0, 100, 146) == 146


def test_extensions_are_counted_in_units_of_eight() -> None:
    assert check_header(62, 2, 100, 162) == 146


@pytest.mark.parametrize("says", [0, 40, 45, 47, 0xFFFFFFFF])
def test_length_that_is_not_what_arrived_is_refused(says: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"offset 0 says {says} bytes, 46 arrived"):
        check_header(says, 0, 0, 46)


@pytest.mark.parametrize("extlen", [1, 65535])
def test_extensions_that_reach_into_the_header_are_refused(extlen: int) -> None:
    with pytest.raises(RemoteProtocolError, match="total_extlen at offset 36"):
        check_header(46, extlen, 0, 46)


@pytest.mark.parametrize(
    ("opcode", "least"),
    [
        (Opcode.LOOKUP, 41),
        (Opcode.RENAME, 50),
        (Opcode.GETATTR, 56),
        (Opcode.WRITE, 80),
        (Opcode.DESTROY, 40),
        (Opcode.CREATE, 57),
    ],
)
def test_minimum_length_counts_structure_and_one_nul_per_name(opcode: Opcode, least: int) -> None:
    assert minimum_length(opcode, 45) == least


def test_minimum_length_of_init_depends_on_the_minor() -> None:
    assert [minimum_length(Opcode.INIT, minor) for minor in (35, 36)] == [56, 104]


# -- INIT


def test_short_init_of_an_old_peer_is_taken() -> None:
    old = INIT["<"][:44] + struct.pack("<I", 31) + INIT["<"][48:56]
    init = decode_init(old, 0, 56, "<")
    assert (init.minor, init.flags2) == (31, 0)


def test_bytes_behind_an_old_peers_init_are_not_read_as_flags2() -> None:
    old = INIT["<"][:44] + struct.pack("<I", 35) + INIT["<"][48:56] + b"\xff" * 48
    assert decode_init(old, 0, 104, "<").flags2 == 0


@pytest.mark.parametrize("length", [40, 55])
def test_init_without_its_first_16_bytes_is_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"init_in at offset 40: {length - 40} bytes where 16 belong"):
        decode_init(INIT["<"][:length], 0, length, "<")


def test_init_longer_than_we_know_is_taken() -> None:
    assert decode_init(INIT["<"] + bytes(64), 0, 168, "<").minor == 45


# -- names


def test_name_fills_its_room() -> None:
    assert decode_name(LOOKUP["<"], 40, 46, 0) == b"hello"


def test_name_offsets_are_told_from_the_start_of_the_request() -> None:
    with pytest.raises(RemoteProtocolError, match="name at offset 40 is not terminated within 5 bytes"):
        decode_name(bytes(7) + LOOKUP["<"], 47, 52, 7)


def test_unterminated_name_is_refused_even_if_a_nul_follows_the_request() -> None:
    with pytest.raises(RemoteProtocolError, match="not terminated"):
        decode_name(b"hello\0", 0, 5, 0)


def test_bytes_behind_a_name_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="ends after 2 bytes, 3 more follow"):
        decode_name(b"he\0lo\0", 0, 6, 0)


def test_no_room_for_a_name_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="not terminated within 0 bytes"):
        decode_name(b"", 0, 0, 0)


def test_two_names() -> None:
    assert decode_two_names(b"..old\0new\0", 2, 10, 0) == (b"old", b"new")


@pytest.mark.parametrize("raw", [b"old", b"old\0", b"old\0new", b"old\0new\0x", b"old\0new\0\0"])
def test_two_names_that_do_not_fill_their_room_are_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_two_names(raw, 0, len(raw), 0)


def test_name_and_value() -> None:
    assert decode_name_and_value(b"user.a\0v\0x", 0, 10, 3, 0) == (b"user.a", b"v\0x")


@pytest.mark.parametrize("size", [0, 2, 4, 1 << 31])
def test_value_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"size at offset 40 says {size} bytes, 3 follow"):
        decode_name_and_value(b"user.a\0v\0x", 0, 10, size, 0)


def test_value_without_a_name_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="attribute name"):
        decode_name_and_value(b"user.a", 0, 6, 0, 0)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"/etc", b"a/", b"../x"])
def test_what_can_never_be_a_name_is_refused(name: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_component(name)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("name", [b"a", b"...", b".hidden", b"\xff\xfe", b" ", b"x" * MAX_NAME, b"a\\b", b"a\nb"])
def test_any_other_bytes_are_a_name(name: bytes) -> None:
    check_component(name)


def test_too_long_name_is_enametoolong() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_component(b"x" * (MAX_NAME + 1))
    assert caught.value.errno == errno.ENAMETOOLONG


# -- extension records


def groups(order: str, *gids: int) -> bytes:
    raw = struct.pack(f"{order}I{len(gids)}I", len(gids), *gids)
    raw += bytes(-len(raw) % 8)
    return struct.pack(order + "II", 8 + len(raw), 32) + raw


def security(order: str, count: int = 1) -> bytes:
    body = b"".join(struct.pack(order + "II", 8, 0) + b"selinux\0" for _ in range(count))
    return struct.pack(order + "II", 8 + len(body), count) + body


def decoded(raw: bytes, order: str = "<") -> tuple[int, ...]:
    return decode_supplementary_groups(raw, 0, len(raw), order, 0)


@pytest.mark.parametrize("order", "<>")
def test_one_group_of_literal_bytes(order: str) -> None:
    raw = {
        # size 16, type GROUPS, nr_groups 1, gid 1001
        "<": b"\x10\0\0\0\x20\0\0\0\x01\0\0\0\xe9\x03\0\0",
        ">": b"\0\0\0\x10\0\0\0\x20\0\0\0\x01\0\0\x03\xe9",
    }[order]
    assert decoded(raw, order) == (1001,)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("gids", [(), (1,), (1, 2), tuple(range(100))])
def test_groups_of_any_number(order: str, gids: tuple[int, ...]) -> None:
    assert decoded(groups(order, *gids), order) == gids


@pytest.mark.parametrize("order", "<>")
def test_security_contexts_are_passed_over(order: str) -> None:
    assert decoded(security(order, 2) + groups(order, 7) + security(order, 31), order) == (7,)


def test_no_records_are_no_groups() -> None:
    assert decoded(b"") == ()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x10\0\0\0", "ext_header at offset 0: 4 bytes"),
        (struct.pack("<II", 0, 32), "size at offset 0: 0 of 8"),
        (struct.pack("<II", 7, 32), "size at offset 0: 7 of 8"),
        (struct.pack("<II", 12, 32) + bytes(8), "size at offset 0: 12 of 16"),
        (struct.pack("<II", 24, 32) + bytes(8), "size at offset 0: 24 of 16"),
        (struct.pack("<II", 0xFFFFFFF8, 32) + bytes(8), "size at offset 0"),
        (struct.pack("<II", 8, 32), "record of 8 bytes has no count"),
        (struct.pack("<III", 16, 32, 2) + bytes(4), "nr_groups at offset 8: 2 in 16"),
        (struct.pack("<III", 16, 32, 0xFFFFFFFF) + bytes(4), "nr_groups at offset 8"),
        (struct.pack("<III", 16, 32, MAX_GROUPS + 1) + bytes(4), "nr_groups at offset 8"),
        (struct.pack("<II", 8, 33), "type at offset 4: 33 is not known"),
        (groups("<", 1) + b"\x08", "ext_header at offset 16: 1 bytes"),
    ],
)
def test_records_that_lie_are_refused(raw: bytes, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        decoded(raw)

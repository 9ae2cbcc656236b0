"""Bytes from a peer into numbers and names. Every length is checked here, and nowhere again after.

A request is `in_header | structure | names | payload | extensions`. What is too short, lies about its length or has an
unterminated name raises RemoteProtocolError with field and offset; nothing is read outside [start, end).
"""

from __future__ import annotations

import errno
import struct

from transfuse.errors import RemoteProtocolError
from transfuse.wire.flags import FUSE_EXT_GROUPS, FUSE_MAX_NR_SECCTX
from transfuse.wire.layout import Buffer, ByteOrder
from transfuse.wire.opcodes import OPERATIONS, Opcode
from transfuse.wire.structs import InHeader, InitIn, OutHeader

__all__ = [
    "IN_HEADER",
    "IN_HEADER_SIZE",
    "MAX_GROUPS",
    "MAX_NAME",
    "OUT_HEADER",
    "OUT_HEADER_SIZE",
    "byte_order_of_init",
    "check_component",
    "check_header",
    "decode_init",
    "decode_name",
    "decode_name_and_value",
    "decode_supplementary_groups",
    "decode_two_names",
    "minimum_length",
]

IN_HEADER: dict[str, struct.Struct] = {"<": InHeader.codec("<"), ">": InHeader.codec(">")}
OUT_HEADER: dict[str, struct.Struct] = {"<": OutHeader.codec("<"), ">": OutHeader.codec(">")}
IN_HEADER_SIZE = InHeader.SIZE
OUT_HEADER_SIZE = OutHeader.SIZE

MAX_NAME = 4095
"""Longest name any peer may send, in bytes: Linux's own upper limit (name_max when max_pages > 1)."""

MAX_GROUPS = 65536
"""Most supplementary groups in one request: Linux's NGROUPS_MAX."""

_INIT = int(Opcode.INIT)
_INIT_SWAPPED = int.from_bytes(_INIT.to_bytes(4, "little"), "big")


def byte_order_of_init(buffer: Buffer, start: int, end: int) -> ByteOrder | None:
    """The order in which the request reads as INIT, or None if it is no INIT in either (virtio 1.3, 5.11.6.1)."""
    if end - start < IN_HEADER_SIZE:
        raise RemoteProtocolError(f"request of {end - start} bytes is shorter than its {IN_HEADER_SIZE}-byte header")
    opcode = IN_HEADER["<"].unpack_from(buffer, start)[1]
    if opcode == _INIT:
        return "<"
    if opcode == _INIT_SWAPPED:
        return ">"
    return None


def check_header(length: int, extlen: int, start: int, end: int) -> int:
    """Check in_header.len and total_extlen against what arrived; returns where structure, names and payload end."""
    if length != end - start:
        raise RemoteProtocolError(f"in_header.len at offset 0 says {length} bytes, {end - start} arrived")
    body_end = end - extlen * 8
    if body_end < start + IN_HEADER_SIZE:
        raise RemoteProtocolError(
            f"in_header.total_extlen at offset 36: {extlen * 8} bytes of extensions in a request of {length}"
        )
    return body_end


def minimum_length(opcode: int, minor: int) -> int:
    """Least bytes of a request of this opcode from a peer of this minor: header, structure, one NUL for each name."""
    row = OPERATIONS[opcode]
    structure = row.request.size_at(minor) if row.request is not None else 0
    return IN_HEADER_SIZE + structure + row.names


def decode_name(buffer: Buffer, at: int, end: int, start: int) -> bytes:
    """The one NUL-terminated name that fills [at, end)."""
    raw = bytes(buffer[at:end])
    stop = raw.find(0)
    if stop < 0:
        raise RemoteProtocolError(f"name at offset {at - start} is not terminated within {end - at} bytes")
    if stop + 1 != len(raw):
        rest = len(raw) - stop - 1
        raise RemoteProtocolError(f"name at offset {at - start} ends after {stop} bytes, {rest} more follow")
    return raw[:stop]


def decode_two_names(buffer: Buffer, at: int, end: int, start: int) -> tuple[bytes, bytes]:
    """The two NUL-terminated names that fill [at, end): RENAME's old and new, SYMLINK's name and target."""
    raw = bytes(buffer[at:end])
    stop = raw.find(0)
    if stop < 0:
        raise RemoteProtocolError(f"first name at offset {at - start} is not terminated within {end - at} bytes")
    return raw[:stop], decode_name(buffer, at + stop + 1, end, start)


def decode_name_and_value(buffer: Buffer, at: int, end: int, size: int, start: int) -> tuple[bytes, bytes]:
    """SETXATTR's name and the `size` bytes of its value, which together fill [at, end)."""
    raw = bytes(buffer[at:end])
    stop = raw.find(0)
    if stop < 0:
        raise RemoteProtocolError(f"attribute name at offset {at - start} is not terminated within {end - at} bytes")
    value = raw[stop + 1 :]
    if len(value) != size:
        raise RemoteProtocolError(f"setxattr_in.size at offset 40 says {size} bytes, {len(value)} follow the name")
    return raw[:stop], value


def check_component(name: bytes) -> None:
    """Refuse what can never be one name in a directory: empty, with a slash, "." or "..", too long."""
    if not name or b"/" in name or name == b"." or name == b"..":
        raise RemoteProtocolError(f"{name[:64]!r} is not a name", errno.EINVAL)
    if len(name) > MAX_NAME:
        raise RemoteProtocolError(f"name of {len(name)} bytes, at most {MAX_NAME}", errno.ENAMETOOLONG)


def decode_supplementary_groups(buffer: Buffer, at: int, end: int, order: ByteOrder, start: int) -> tuple[int, ...]:
    """The groups among the extension records in [at, end); security contexts are checked and passed over.

    Each record is {u32 size, u32 type} and fills a multiple of 8 bytes; types below 32 count security contexts.
    """
    word = struct.Struct(order + "II")
    groups: tuple[int, ...] = ()
    while at < end:
        if end - at < word.size:
            raise RemoteProtocolError(f"ext_header at offset {at - start}: {end - at} bytes where {word.size} belong")
        size, kind = word.unpack_from(buffer, at)
        if size < word.size or size > end - at or size % 8:
            raise RemoteProtocolError(f"ext_header.size at offset {at - start}: {size} of {end - at} bytes")
        if kind == FUSE_EXT_GROUPS:
            if size < 12:
                raise RemoteProtocolError(
                    f"supp_groups at offset {at + 8 - start}: record of {size} bytes has no count"
                )
            (count,) = struct.unpack_from(order + "I", buffer, at + 8)
            if count > MAX_GROUPS or 12 + 4 * count > size:
                raise RemoteProtocolError(f"supp_groups.nr_groups at offset {at + 8 - start}: {count} in {size} bytes")
            groups = struct.unpack_from(f"{order}{count}I", buffer, at + 12)
        elif kind > FUSE_MAX_NR_SECCTX:
            raise RemoteProtocolError(f"ext_header.type at offset {at + 4 - start}: {kind} is not known")
        at += size
    return groups


def decode_init(buffer: Buffer, start: int, end: int, order: ByteOrder) -> InitIn:
    """INIT's structure; peers before 7.36 send its first 16 bytes, and nobody's reserved words are read."""
    at = start + IN_HEADER_SIZE
    short = InitIn.size_at(0)
    if end - at < short:
        raise RemoteProtocolError(f"init_in at offset {IN_HEADER_SIZE}: {end - at} bytes where {short} belong")
    raw = bytes(buffer[at : min(end, at + InitIn.SIZE)])
    # Before 7.36 there is no flags2: whatever lies behind 16 bytes is not read.
    minor = struct.unpack_from(order + "I", raw, 4)[0]
    if minor < 36:
        raw = raw[:short]
    return InitIn.decode(raw.ljust(InitIn.SIZE, b"\0"), 0, order)

"""Bytes of replies into numbers, as the asking side reads them: sizes, directory records, lists of names, flat
attributes.

Everything here distrusts the server: a record that overruns its reply, a name with a slash, a list without its NUL
raises RemoteProtocolError with field and offset. Values stay flat tuples in header order (what the struct module
gives), since a client reads several for every path it walks; `ENTRY_ATTR`, `ATTR_ATTR` and the like say where the
attributes begin.
"""

from __future__ import annotations

import stat as stat_bits
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from transfuse.errors import RemoteProtocolError
from transfuse.wire.decode import MAX_NAME
from transfuse.wire.encode import padded
from transfuse.wire.layout import Buffer, ByteOrder
from transfuse.wire.opcodes import OPERATIONS, Opcode
from transfuse.wire.structs import Dirent, Direntplus, EntryOut, GetxattrOut, InitOut

__all__ = [
    "ATTR_ATTR",
    "ENTRY_ATTR",
    "MAX_LINK_TARGET",
    "DirRecord",
    "ReplyShape",
    "check_attr",
    "decode_init_reply",
    "parse_dirents",
    "parse_direntplus",
    "parse_names",
    "reply_shapes",
]

MAX_LINK_TARGET = 4095
"""Longest target of a symbolic link: Linux offers one page less one byte."""
MAX_SIZE = 0x7FFF_FFFF_FFFF_FFFF
"""Largest size and offset: Linux's loff_t."""

ENTRY_ATTR = 6
"""Where the attributes begin among the values of an entry_out."""
ATTR_ATTR = 2
"""Where they begin among those of an attr_out."""
ENTRY_WIDTH = EntryOut.WIDTH

MODE = 9
"""Position of the mode among the sixteen values of a fuse_attr; size is 1."""
SIZE = 1

_TYPES = frozenset(
    (
        stat_bits.S_IFREG,
        stat_bits.S_IFDIR,
        stat_bits.S_IFLNK,
        stat_bits.S_IFIFO,
        stat_bits.S_IFSOCK,
        stat_bits.S_IFBLK,
        stat_bits.S_IFCHR,
    )
)


class ReplyShape(NamedTuple):
    """What a successful reply of one opcode looks like behind its header."""

    unpack: Callable[[Buffer, int], tuple[Any, ...]] | None
    size: int
    """Bytes of its structures."""
    data: bool
    """More bytes may follow."""


def reply_shapes(order: ByteOrder) -> dict[int, ReplyShape]:
    """The shapes of all replies in one byte order, from the table of operations."""
    shapes = {}
    for opcode, row in OPERATIONS.items():
        if not row.reply:
            shapes[opcode] = ReplyShape(None, 0, row.reply_data)
            continue
        codec = struct.Struct(order + "".join(part.FORMAT for part in row.reply))
        shapes[opcode] = ReplyShape(codec.unpack_from, codec.size, row.reply_data)
    # Asked with size 0, these two answer with the size alone (see `xattr_size`); INIT has had three lengths.
    shapes[int(Opcode.INIT)] = ReplyShape(None, 0, True)
    return shapes


def xattr_size(order: ByteOrder, body: Buffer) -> int:
    """The answer to GETXATTR or LISTXATTR of size 0."""
    if len(body) != GetxattrOut.SIZE:
        raise RemoteProtocolError(f"getxattr_out at offset 16: {len(body)} bytes where {GetxattrOut.SIZE} belong")
    size: int = GetxattrOut.codec(order).unpack(body)[0]
    return size


def decode_init_reply(body: Buffer, order: ByteOrder) -> InitOut:
    """init_out, of which servers before 7.5 send 8 bytes and those before 7.23 send 24; the rest counts as zero."""
    if len(body) not in (8, 24, InitOut.SIZE):
        raise RemoteProtocolError(f"init_out at offset 16: {len(body)} bytes, none of 8, 24 and {InitOut.SIZE}")
    return InitOut.decode(bytes(body).ljust(InitOut.SIZE, b"\0"), 0, order)


def check_attr(values: tuple[Any, ...], at: int, where: str) -> None:
    """Refuse attributes that no file can have: a mode without a file type, a size beyond every offset."""
    mode, size = values[at + MODE], values[at + SIZE]
    if mode & 0o170000 not in _TYPES:
        raise RemoteProtocolError(f"{where}.mode: {mode:#o} has no known file type")
    if size > MAX_SIZE:
        raise RemoteProtocolError(f"{where}.size: {size:#x} is beyond the largest file")


class DirRecord(NamedTuple):
    """One name of a listing."""

    name: bytes
    ino: int
    off: int
    """Where the listing goes on after this name."""
    kind: int
    """st_mode >> 12, 0 when not known."""
    entry: tuple[int, ...] | None
    """The values of an entry_out, from READDIRPLUS; None where there was no lookup."""


def _check_name(raw: bytes, at: int) -> None:
    if b"/" in raw or b"\0" in raw:
        raise RemoteProtocolError(f"dirent.name at offset {at}: {raw[:64]!r} is not a name")


def parse_dirents(data: bytes, order: ByteOrder) -> Iterator[DirRecord]:
    """The records of a READDIR reply: n × 24-byte dirent and name, each padded to 8 (the last one need not be)."""
    unpack = Dirent.codec(order).unpack_from
    at, end = 0, len(data)
    while at < end:
        if end - at < Dirent.SIZE:
            raise RemoteProtocolError(f"dirent at offset {at + 16}: {end - at} bytes where {Dirent.SIZE} belong")
        ino, off, namelen, kind = unpack(data, at)
        start = at + Dirent.SIZE
        if not 0 < namelen <= MAX_NAME or namelen > end - start:
            raise RemoteProtocolError(f"dirent.namelen at offset {at + 32}: {namelen} with {end - start} bytes left")
        name = data[start : start + namelen]
        _check_name(name, start + 16)
        yield DirRecord(name, ino, off, kind, None)
        at += padded(Dirent.SIZE + namelen)


def parse_direntplus(data: bytes, order: ByteOrder) -> Iterator[DirRecord]:
    """The records of a READDIRPLUS reply: n × 128-byte entry_out, 24-byte dirent and name, each padded to 8.

    The records before a wrong one are yielded first: each is a lookup that the server has counted.
    """
    unpack = Direntplus.codec(order).unpack_from
    at, end = 0, len(data)
    while at < end:
        if end - at < Direntplus.SIZE:
            left = f"{end - at} bytes where {Direntplus.SIZE} belong"
            raise RemoteProtocolError(f"direntplus at offset {at + 16}: {left}")
        values = unpack(data, at)
        ino, off, namelen, kind = values[ENTRY_WIDTH:]
        start = at + Direntplus.SIZE
        if not 0 < namelen <= MAX_NAME or namelen > end - start:
            raise RemoteProtocolError(f"dirent.namelen at offset {at + 160}: {namelen} with {end - start} bytes left")
        name = data[start : start + namelen]
        _check_name(name, start + 16)
        yield DirRecord(name, ino, off, kind, values[:ENTRY_WIDTH] if values[0] else None)
        at += padded(Direntplus.SIZE + namelen)


def parse_names(data: bytes) -> list[bytes]:
    """The names of a LISTXATTR reply, each with its NUL."""
    if not data:
        return []
    if data[-1]:
        raise RemoteProtocolError(f"listxattr names at offset 16: the last of {len(data)} bytes is no NUL")
    names = data[:-1].split(b"\0")
    if b"" in names:
        raise RemoteProtocolError("listxattr names at offset 16: an empty name")
    return names

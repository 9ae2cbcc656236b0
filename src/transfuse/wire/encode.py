"""Numbers and names into the bytes of replies, requests and notifications.

A message is bytes, or a list of buffers that follow one another (so that data is not copied to stand behind its
header), or a `RangeReply`: a read whose bytes the transport itself fetches from an fd. A transport that hands over a
WRITE without its payload may be answered by a `RangeWrite`: where it is to put that payload itself.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import NamedTuple

from transfuse.wire.layout import Buffer, ByteOrder, WireStruct
from transfuse.wire.structs import Dirent, InHeader, OutHeader, WriteOut

__all__ = [
    "Message",
    "RangeReply",
    "RangeWrite",
    "encode_error",
    "encode_request",
    "message_struct",
    "pack_dirent",
    "padded",
]


class RangeReply(NamedTuple):
    """The answer to a READ: at most `length` bytes of `fd` from `offset`, behind an out_header that the transport
    packs once it knows how many there are (`header`), or an error instead (`error`)."""

    unique: int
    order: ByteOrder
    fd: int
    offset: int
    length: int
    owner: object = None
    """Keeps `fd` open until the bytes were fetched."""

    def header(self, count: int) -> bytes:
        """The 16-byte out_header in front of `count` bytes."""
        return _OUT[self.order].pack(16 + count, 0, self.unique)

    def error(self, errno: int) -> bytes:
        """The whole reply when reading failed."""
        return _OUT[self.order].pack(16, -errno, self.unique)


class RangeWrite(NamedTuple):
    """The answer to a WRITE whose payload is still where the peer put it: the transport writes `length` bytes of it to
    `fd` at `offset` and then replies how many that were (`written`), or an error (`error`)."""

    unique: int
    order: ByteOrder
    fd: int
    offset: int
    length: int
    owner: object = None
    """Keeps `fd` open until the bytes were written."""

    def written(self, count: int) -> bytes:
        """The whole reply: out_header and write_out, 24 bytes."""
        return message_struct(self.order, WriteOut).pack(16 + WriteOut.SIZE, 0, self.unique, count)

    def error(self, errno: int) -> bytes:
        """The whole reply when writing failed."""
        return _OUT[self.order].pack(16, -errno, self.unique)


Message = bytes | list[Buffer] | RangeReply

_OUT: dict[str, struct.Struct] = {"<": OutHeader.codec("<"), ">": OutHeader.codec(">")}
_IN: dict[str, struct.Struct] = {"<": InHeader.codec("<"), ">": InHeader.codec(">")}

MAX_ERRNO = 511
"""Linux refuses a reply whose error is not above -512, and the request would stay unanswered."""


@cache
def message_struct(order: ByteOrder, *parts: type[WireStruct]) -> struct.Struct:
    """One struct.Struct over an out_header and `parts`, so that a whole reply is packed in one call."""
    return struct.Struct(order + OutHeader.FORMAT + "".join(part.FORMAT for part in parts))


def encode_error(order: ByteOrder, unique: int, errno: int) -> bytes:
    """An error reply; an errno that cannot travel becomes EIO."""
    if not 0 < errno <= MAX_ERRNO:
        errno = 5
    return _OUT[order].pack(16, -errno, unique)


def encode_request(
    order: ByteOrder,
    opcode: int,
    unique: int,
    nodeid: int,
    uid: int,
    gid: int,
    pid: int,
    body: bytes,
    payload: Buffer = b"",
    extensions: bytes = b"",
) -> list[Buffer]:
    """A request as buffers: header with structure and names, payload if any, extension records (a multiple of 8)."""
    if len(extensions) % 8:
        raise ValueError(f"{len(extensions)} bytes of extensions are not a multiple of 8")
    length = InHeader.SIZE + len(body) + len(payload) + len(extensions)
    head = _IN[order].pack(length, opcode, unique, nodeid, uid, gid, pid, len(extensions) // 8) + body
    out: list[Buffer] = [head]
    if len(payload):
        out.append(payload)
    if extensions:
        out.append(extensions)
    return out


def padded(size: int) -> int:
    """`size` rounded up to the 8 bytes that directory records are aligned to."""
    return (size + 7) & ~7


def pack_dirent(order: ByteOrder, ino: int, off: int, kind: int, name: bytes) -> bytes:
    """One 24-byte dirent with its name, padded to 8."""
    size = Dirent.SIZE + len(name)
    return Dirent.codec(order).pack(ino, off, len(name), kind) + name + bytes(padded(size) - size)

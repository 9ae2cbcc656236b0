"""How long the answer to a request can get, told from the bytes of the request alone.

Over a virtqueue the client lends the server the room for each answer beforehand. Linux knows it from the arguments it
has set up (fs/fuse/virtio_fs.c, virtio_fs_enqueue_req); a transport has only the message, and reads the same from it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from transfuse.errors import LocalProtocolError
from transfuse.wire.layout import Buffer, ByteOrder, WireStruct
from transfuse.wire.opcodes import OPERATIONS, Opcode
from transfuse.wire.structs import GetxattrIn, GetxattrOut, InHeader, IoctlIn, OutHeader, ReadIn

__all__ = ["Room", "room_for_reply"]

PATH_MAX = 4096
"""Linux lends a READLINK one page less one byte; the server need not know."""
UNKNOWN = 4096
"""For an opcode that is not in the table."""


class Room(NamedTuple):
    """What a request says of itself."""

    order: ByteOrder
    opcode: int
    unique: int
    size: int
    """Most bytes of the answer, its header included; 0: there is none."""


# Opcode -> where the request says how many bytes it wants behind the structures of the answer.
_WANTED: dict[int, tuple[type[WireStruct], str]] = {
    int(Opcode.READ): (ReadIn, "size"),
    int(Opcode.READDIR): (ReadIn, "size"),
    int(Opcode.READDIRPLUS): (ReadIn, "size"),
    int(Opcode.GETXATTR): (GetxattrIn, "size"),
    int(Opcode.LISTXATTR): (GetxattrIn, "size"),
    int(Opcode.IOCTL): (IoctlIn, "out_size"),
}
_WANTED_AT: dict[int, int] = {
    opcode: InHeader.SIZE + next(field.offset for field in body.FIELDS if field.name == name)
    for opcode, (body, name) in _WANTED.items()
}
_XATTR = frozenset((int(Opcode.GETXATTR), int(Opcode.LISTXATTR)))
_FIXED: dict[int, int] = {
    opcode: OutHeader.SIZE + sum(part.SIZE for part in row.reply) if row.replies else 0
    for opcode, row in OPERATIONS.items()
}
_HEADS: dict[ByteOrder, struct.Struct] = {"<": struct.Struct("<IIQ"), ">": struct.Struct(">IIQ")}
_SIZES: dict[ByteOrder, struct.Struct] = {"<": struct.Struct("<I"), ">": struct.Struct(">I")}


def room_for_reply(message: Sequence[Buffer]) -> Room:
    """`message`: the buffers of one whole request, the first of which holds header and structure.

    The byte order is the one in which the header's length is that of the message. LocalProtocolError if it is in
    neither.
    """
    head = message[0]
    length = sum(len(part) for part in message)
    order: ByteOrder
    for order in ("<", ">"):
        said, opcode, unique = _HEADS[order].unpack_from(head)
        if said == length:
            break
    else:
        raise LocalProtocolError(f"a request of {length} bytes says that it has {said}")
    size = _FIXED.get(opcode, UNKNOWN)
    at = _WANTED_AT.get(opcode)
    if at is not None:
        (wanted,) = _SIZES[order].unpack_from(head, at)
        # Exactly as much as is wanted: there are servers that fill whatever room a READ has. The size of an attribute
        # is asked for by wanting nothing of it.
        size += wanted or (GetxattrOut.SIZE if opcode in _XATTR else 0)
    elif opcode == Opcode.READLINK:
        size += PATH_MAX
    return Room(order, opcode, unique, size)

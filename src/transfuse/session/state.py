"""A session as bytes, so that another process can go on where this one stopped, with a peer that notices nothing.

What is written is what INIT agreed on and, if the filesystem keeps state, what the peer holds of it: nodes, open files.
The reader negotiates the same INIT again and refuses to go on if it would answer otherwise (`ServerSession.resume`).
Where nobody has said INIT yet, or the peer is gone, that is what is written: an INIT of no bytes.

Layout, little-endian: magic, flags u32, lengths u32 of INIT and its answer, both, then pieces of the filesystem's
state, each with its length u32 in front, a length of 0 behind the last one, and the CRC-32 of everything before.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transfuse.session.server import ServerSession

__all__ = ["export_session", "import_session"]

MAGIC = b"tfsess1\n"
PORTABLE = 1
"""The filesystem's part is for another machine."""
WITH_FILESYSTEM = 2
MAX_INIT = 1024
"""Longest INIT, and longest answer to one, in bytes; they have 104 and 80."""
MAX_PIECE = 1 << 20
"""Longest piece of the filesystem's state that is taken."""

_HEAD = struct.Struct("<8sIII")
_LENGTH = struct.Struct("<I")


def export_session(session: ServerSession, portable: bool, with_filesystem: bool = True) -> Iterator[bytes]:
    """The session in pieces. Nothing may be served meanwhile, unless `with_filesystem` is False: then it is only what
    INIT agreed on."""
    request, reply = session.init or (b"", b"")
    filesystem = session.filesystem
    kept = with_filesystem and filesystem.keeps_state and session.init is not None
    flags = (PORTABLE if portable else 0) | (WITH_FILESYSTEM if kept else 0)
    head = _HEAD.pack(MAGIC, flags, len(request), len(reply)) + request + reply
    crc = zlib.crc32(head)
    yield head
    if kept:
        for piece in filesystem.export_state(portable):
            for at in range(0, len(piece), MAX_PIECE):
                part = piece[at : at + MAX_PIECE]
                framed = _LENGTH.pack(len(part)) + part
                crc = zlib.crc32(framed, crc)
                yield framed
    end = _LENGTH.pack(0)
    yield end + _LENGTH.pack(zlib.crc32(end, crc))


def import_session(session: ServerSession, pieces: Iterable[bytes]) -> bool:
    """Have `session`, which serves nobody, go on where another one was exported. `pieces` may be cut anywhere. False:
    that one had nobody either.

    ValueError if they are not whole, or this server would have agreed to something else; the session is as before.
    """
    if session.connection is not None and not session.ended:
        raise ValueError("there is a session already")
    source = _Source(pieces)
    magic, flags, request_size, reply_size = _HEAD.unpack(source.read(_HEAD.size))
    if magic != MAGIC or flags & ~(PORTABLE | WITH_FILESYSTEM):
        raise ValueError(f"no session: begins with {magic!r}, flags {flags:#x}")
    if max(request_size, reply_size) > MAX_INIT:
        raise ValueError(f"INIT of {request_size} bytes, answer of {reply_size}, at most {MAX_INIT}")
    request, reply = source.read(request_size), source.read(reply_size)
    filesystem = session.filesystem
    try:
        if flags & WITH_FILESYSTEM:
            if not filesystem.keeps_state:
                raise ValueError(f"{type(filesystem).__name__} cannot take over the state of a filesystem")
            filesystem.import_state(source.framed(), bool(flags & PORTABLE))
        elif source.length():
            raise ValueError("a filesystem's state where there is said to be none")
        crc = source.crc
        if _LENGTH.unpack(source.read(_LENGTH.size))[0] != crc:
            raise ValueError("the checksum is wrong")
        if not request:
            return False
        session.resume(request, reply)
    except BaseException:
        filesystem.destroyed()
        raise
    return True


class _Source:
    """Pieces of bytes as a stream."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = b""
        self.crc = 0
        """Of all that was read."""

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; ValueError if there are fewer."""
        parts = []
        missing = size
        while missing:
            if not self._left:
                self._left = next(self._pieces, b"")
                if not self._left:
                    raise ValueError(f"the state ends {missing} bytes too early")
            part = self._left[:missing]
            self._left = self._left[missing:]
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        self.crc = zlib.crc32(data, self.crc)
        return data

    def length(self) -> int:
        """The length of the next piece; 0 behind the last one."""
        (size,) = _LENGTH.unpack(self.read(_LENGTH.size))
        if size > MAX_PIECE:
            raise ValueError(f"a piece of {size} bytes, at most {MAX_PIECE}")
        return int(size)

    def framed(self) -> Iterator[bytes]:
        """The pieces of the filesystem's state."""
        while size := self.length():
            yield self.read(size)

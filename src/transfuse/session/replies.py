"""Values into reply bytes: one small method per kind of reply, each packing header and body in one call.

One `Replies` belongs to one connection: byte order, default timeouts and what was negotiated are fixed in it. A value
that does not fit the wire (a negative size, a uid of 2**40) raises struct.error, which the session treats as the
filesystem's bug.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry, FileRange, IoctlResult, Lock, Opened, Statfs
from transfuse.session.negotiate import Connection
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import Message, RangeReply, encode_error, message_struct

try:
    from transfuse._native import replies as _native
except ImportError:
    _native = None  # type: ignore[assignment]  # the plain form: struct.Struct below

__all__ = ["DaxReplies", "Replies", "encode_rdev", "split_timeout"]

NS = 1_000_000_000
U32 = 0xFFFF_FFFF
U64 = 0xFFFF_FFFF_FFFF_FFFF
MAX_FD = 0x7FFF_FFFF
MAX_OFFSET = 0x7FFF_FFFF_FFFF_FFFF
MAX_LINK_TARGET = 4095
"""Longest target of a symbolic link: Linux's PATH_MAX without the NUL, and all the room it has for the reply."""
MAX_TIMEOUT_S = 0x7FFF_FFFF
"""Longest timeout sent, 68 years: what Linux can still add to its clock without overflow."""

REGULAR = 8
"""S_IFREG >> 12."""
STATX_BASIC = 0x7FF
STATX_BTIME = 0x800


def split_timeout(seconds: float) -> tuple[int, int]:
    """Seconds as (whole seconds, nanoseconds), negative as 0, endless as MAX_TIMEOUT_S."""
    if seconds <= 0:
        return 0, 0
    if seconds >= MAX_TIMEOUT_S:
        return MAX_TIMEOUT_S, 0
    whole = int(seconds)
    return whole, int((seconds - whole) * NS)


def encode_rdev(rdev: int) -> int:
    """An os.makedev() number in the 32 bits FUSE carries: low 8 bits of minor, 12 of major, 12 more of minor."""
    if not rdev:
        return 0
    major = (rdev >> 8) & 0xFFF | (rdev >> 32) & ~0xFFF
    minor = rdev & 0xFF | (rdev >> 12) & ~0xFF
    return minor & 0xFF | major << 8 & 0xFFF00 | (minor & 0xFFF00) << 12


def attr_values(a: Attr) -> tuple[int, ...]:
    """The flattened fuse_attr."""
    atime, atimensec = divmod(a.atime_ns, NS)
    mtime, mtimensec = divmod(a.mtime_ns, NS)
    ctime, ctimensec = divmod(a.ctime_ns, NS)
    return (
        a.ino,
        a.size,
        a.blocks,
        atime,
        mtime,
        ctime,
        atimensec,
        mtimensec,
        ctimensec,
        a.mode,
        a.nlink,
        a.uid,
        a.gid,
        encode_rdev(a.rdev) if a.rdev else 0,
        a.blksize,
        a.flags,
    )


_NO_ATTR = (0,) * 16


class Replies:
    """Makes the replies of one connection."""

    def __init__(self, connection: Connection) -> None:
        order = self.order = connection.order
        features = connection.features
        self.entry_timeout = split_timeout(features.entry_timeout_s)
        self.attr_timeout = split_timeout(features.attr_timeout_s)
        self.negative_timeout = split_timeout(features.negative_timeout_s)
        self._pack_empty = message_struct(order).pack
        self._pack_attr = message_struct(order, w.AttrOut).pack
        self._pack_entry = message_struct(order, w.EntryOut).pack
        self._pack_entry_into = w.EntryOut.codec(order).pack_into
        self._pack_open = message_struct(order, w.OpenOut).pack
        self._pack_create = message_struct(order, w.EntryOut, w.OpenOut).pack
        self._pack_write = message_struct(order, w.WriteOut).pack
        self._pack_statfs = message_struct(order, w.StatfsOut).pack
        self._pack_xattr_size = message_struct(order, w.GetxattrOut).pack
        self._pack_lk = message_struct(order, w.LkOut).pack
        self._pack_bmap = message_struct(order, w.BmapOut).pack
        self._pack_ioctl = message_struct(order, w.IoctlOut).pack
        self._pack_poll = message_struct(order, w.PollOut).pack
        self._pack_lseek = message_struct(order, w.LseekOut).pack
        self._pack_copied = message_struct(order, w.CopyFileRangeOut).pack
        self._pack_statx = message_struct(order, w.StatxOut).pack

    def error(self, req: Request, number: int) -> bytes:
        """An error reply."""
        return encode_error(self.order, req.unique, number)

    def empty(self, req: Request, value: Any = None) -> bytes:
        """Success with nothing to say."""
        return self._pack_empty(16, 0, req.unique)

    def nothing(self, req: Request, value: Any = None) -> None:
        """For requests that get no reply."""
        return None

    def attr(self, req: Request, value: Attr) -> bytes:
        """attr_out."""
        timeout = value.timeout_s
        valid, valid_nsec = self.attr_timeout if timeout is None else split_timeout(timeout)
        if _native is not None:  # 0.2 µs instead of 0.9
            return _native.attr_reply(self.order, req.unique, valid, valid_nsec, value)
        return self._pack_attr(120, 0, req.unique, valid, valid_nsec, *attr_values(value))

    def _timeouts(self, entry: Entry, attr: Attr) -> tuple[int, int, int, int]:
        """entry_valid, its nanoseconds, attr_valid, its nanoseconds."""
        timeout = entry.timeout_s
        valid, valid_nsec = self.entry_timeout if timeout is None else split_timeout(timeout)
        timeout = attr.timeout_s
        attr_valid, attr_nsec = self.attr_timeout if timeout is None else split_timeout(timeout)
        return valid, valid_nsec, attr_valid, attr_nsec

    def entry_values(self, entry: Entry) -> tuple[int, ...]:
        """The flattened fuse_entry_out of a found name, or of one that the peer may remember as missing."""
        attr = entry.attr
        if attr is None:
            timeout = entry.timeout_s
            valid, valid_nsec = self.negative_timeout if timeout is None else split_timeout(timeout)
            return (0, 0, valid, 0, valid_nsec, 0, *_NO_ATTR)
        valid, valid_nsec, attr_valid, attr_nsec = self._timeouts(entry, attr)
        return (entry.nodeid, entry.generation, valid, attr_valid, valid_nsec, attr_nsec, *attr_values(attr))

    def entry_into(self, out: bytearray, at: int, entry: Entry) -> None:
        """entry_out of a found name at `at` of a listing."""
        if _native is not None and entry.attr is not None:
            _native.entry_into(out, at, self.order, *self._timeouts(entry, entry.attr), entry)
        else:
            self._pack_entry_into(out, at, *self.entry_values(entry))

    def entry(self, req: Request, value: Entry) -> bytes:
        """entry_out."""
        if value.attr is None and not value.timeout_s and (value.timeout_s == 0 or self.negative_timeout == (0, 0)):
            return encode_error(self.order, req.unique, errno.ENOENT)
        if _native is not None and value.attr is not None:
            return _native.entry_reply(self.order, req.unique, *self._timeouts(value, value.attr), value)
        return self._pack_entry(144, 0, req.unique, *self.entry_values(value))

    def made(self, req: Request, value: Entry) -> bytes:
        """entry_out of an operation that makes a name: "not found" is no answer to it."""
        if value.attr is None or not value.nodeid:
            raise ValueError(f"{value!r} for a name that was just made")
        return self.entry(req, value)

    @staticmethod
    def open_flags(opened: Opened) -> int:
        """FOPEN_* bits of an open file."""
        return (
            (f.FOPEN_DIRECT_IO if opened.direct_io else 0)
            | (f.FOPEN_KEEP_CACHE if opened.keep_cache else 0)
            | (f.FOPEN_NOFLUSH if opened.noflush else 0)
            | (f.FOPEN_CACHE_DIR if opened.cache_dir else 0)
            | (f.FOPEN_NONSEEKABLE if opened.nonseekable else 0)
            | (f.FOPEN_PARALLEL_DIRECT_WRITES if opened.parallel_direct_writes else 0)
        )

    def opened(self, req: Request, fh: int, open_flags: int, backing_id: int) -> bytes:
        """open_out."""
        return self._pack_open(32, 0, req.unique, fh, open_flags, backing_id)

    def created(self, req: Request, entry: Entry, fh: int, open_flags: int, backing_id: int) -> bytes:
        """entry_out and open_out of CREATE and TMPFILE."""
        if _native is not None and entry.attr is not None:  # 0.5 µs instead of 1.4
            timeouts = self._timeouts(entry, entry.attr)
            return _native.create_reply(self.order, req.unique, *timeouts, entry, fh, open_flags, backing_id)
        return self._pack_create(160, 0, req.unique, *self.entry_values(entry), fh, open_flags, backing_id)

    def data(self, req: Request, value: Any) -> Message:
        """Bytes, or a range of a file; never more than the peer asked for (`req.argument`)."""
        room: int = req.argument  # type: ignore[assignment]
        kind = value.__class__
        if kind is FileRange:
            # Checked here, since what is wrong with them would surface only in the transport.
            if not (0 <= value.fd <= MAX_FD and 0 <= value.offset <= MAX_OFFSET and value.length >= 0):
                raise ValueError(f"FileRange(fd={value.fd}, offset={value.offset}, length={value.length})")
            return RangeReply(req.unique, self.order, value.fd, value.offset, min(value.length, room), value.owner)
        if kind is not bytes and kind is not bytearray:
            value = memoryview(value).cast("B")
        count = len(value)
        if count > room:
            raise ValueError(f"filesystem returned {count} bytes where {room} were asked for")
        head = self._pack_empty(16 + count, 0, req.unique)
        return head + value if count < 512 else [head, value]

    def written(self, req: Request, value: int) -> bytes:
        """write_out; `req.argument` is what the peer sent."""
        if not 0 <= value <= req.argument:  # type: ignore[operator]
            raise ValueError(f"filesystem wrote {value} of {req.argument} bytes")
        return self._pack_write(24, 0, req.unique, value)

    def copied(self, req: Request, value: int) -> bytes:
        """write_out of COPY_FILE_RANGE, whose count has 32 bits."""
        self._check_copied(req, value)
        return self._pack_write(24, 0, req.unique, value)

    @staticmethod
    def _check_copied(req: Request, value: int) -> None:
        if not 0 <= value <= req.argument:  # type: ignore[operator]
            raise ValueError(f"filesystem copied {value} of {req.argument} bytes")

    def copied_64(self, req: Request, value: int) -> bytes:
        """copy_file_range_out."""
        self._check_copied(req, value)
        return self._pack_copied(24, 0, req.unique, value)

    def link_target(self, req: Request, value: bytes) -> Message:
        """READLINK's bytes, without a NUL."""
        if len(value) > MAX_LINK_TARGET:
            return encode_error(self.order, req.unique, errno.ENAMETOOLONG)
        return self._pack_empty(16 + len(value), 0, req.unique) + value

    def statfs(self, req: Request, value: Statfs) -> bytes:
        """statfs_out."""
        return self._pack_statfs(
            96,
            0,
            req.unique,
            value.blocks,
            value.bfree,
            value.bavail,
            value.files,
            value.ffree,
            value.bsize,
            value.namelen,
            value.frsize,
        )

    def xattr(self, req: Request, value: bytes) -> Message:
        """GETXATTR: the size where the peer asked for it (room 0), ERANGE if the value does not fit, else the value."""
        room: int = req.argument  # type: ignore[assignment]
        if room == 0:
            return self._pack_xattr_size(24, 0, req.unique, len(value))
        if len(value) > room:
            return encode_error(self.order, req.unique, errno.ERANGE)
        return self._pack_empty(16 + len(value), 0, req.unique) + value

    def xattr_names(self, req: Request, value: Any) -> Message:
        """LISTXATTR: NUL-terminated names, under the same rule as a value."""
        return self.xattr(req, b"".join(name + b"\0" for name in value))

    def lock(self, req: Request, value: Lock | None) -> bytes:
        """lk_out: the lock in the way, or the asked one as unlocked."""
        if value is None:
            asked: Lock = req.argument  # type: ignore[assignment]
            value = Lock(2, asked.start, asked.end, 0)
        return self._pack_lk(40, 0, req.unique, value.start, value.end, value.kind, value.pid)

    def bmap(self, req: Request, value: int) -> bytes:
        """bmap_out."""
        return self._pack_bmap(24, 0, req.unique, value)

    def ioctl(self, req: Request, value: IoctlResult | bytes | int) -> Message:
        """ioctl_out and the bytes to copy out (at most what the peer has room for)."""
        if isinstance(value, int):
            value = IoctlResult(value)
        elif not isinstance(value, IoctlResult):
            value = IoctlResult(0, bytes(value))
        data = value.data
        if len(data) > req.argument:  # type: ignore[operator]
            raise ValueError(f"ioctl returned {len(data)} bytes where {req.argument} were asked for")
        return self._pack_ioctl(32 + len(data), 0, req.unique, value.result, 0, 0, 0) + data

    def poll(self, req: Request, value: int) -> bytes:
        """poll_out."""
        return self._pack_poll(24, 0, req.unique, value)

    def lseek(self, req: Request, value: int) -> bytes:
        """lseek_out."""
        return self._pack_lseek(24, 0, req.unique, value)

    def statx(self, req: Request, a: Attr) -> bytes:
        """statx_out."""
        timeout = a.timeout_s
        valid, valid_nsec = self.attr_timeout if timeout is None else split_timeout(timeout)
        btime = a.btime_ns
        times: list[int] = []
        for time_ns in (a.atime_ns, btime or 0, a.ctime_ns, a.mtime_ns):
            times += divmod(time_ns, NS)
        rdev = a.rdev
        major = (rdev >> 8) & 0xFFF | (rdev >> 32) & ~0xFFF
        minor = rdev & 0xFF | (rdev >> 12) & ~0xFF
        stat = (
            STATX_BASIC | (STATX_BTIME if btime is not None else 0),
            a.blksize,
            a.attributes,
            a.nlink,
            a.uid,
            a.gid,
            a.mode,
            a.ino,
            a.size,
            a.blocks,
            a.attributes_mask,
            *times,
            major & U32,
            minor & U32,
            0,
            0,
        )
        return self._pack_statx(304, 0, req.unique, valid, valid_nsec, 0, *stat)


class DaxReplies(Replies):
    """Replies to a peer that reads and writes marked files through its DAX window. `suits(size)`: it can do so with all
    of a regular file of this size."""

    def __init__(self, connection: Connection, suits: Callable[[int], bool]) -> None:
        super().__init__(connection)
        self._suits = suits

    def _mark(self, attr: Attr) -> None:
        suitable = attr.mode >> 12 == REGULAR and self._suits(attr.size)
        attr.flags = attr.flags & ~f.FUSE_ATTR_DAX | (f.FUSE_ATTR_DAX if suitable else 0)

    def attr(self, req: Request, value: Attr) -> bytes:
        """attr_out."""
        self._mark(value)
        return super().attr(req, value)

    def entry(self, req: Request, value: Entry) -> bytes:
        """entry_out."""
        if value.attr is not None:
            self._mark(value.attr)
        return super().entry(req, value)

    def entry_into(self, out: bytearray, at: int, entry: Entry) -> None:
        """entry_out of a found name at `at` of a listing."""
        if entry.attr is not None:
            self._mark(entry.attr)
        super().entry_into(out, at, entry)

    def created(self, req: Request, entry: Entry, fh: int, open_flags: int, backing_id: int) -> bytes:
        """entry_out and open_out of CREATE and TMPFILE."""
        if entry.attr is not None:
            self._mark(entry.attr)
        return super().created(req, entry, fh, open_flags, backing_id)

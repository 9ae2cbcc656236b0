"""The table of one connection: opcode → how to decode, whom to call, how to answer.

Built once, after INIT, from wire.OPERATIONS and from what the filesystem has. Rows of absent operations answer what the
protocol wants for "never ask again" (ENOSYS, mostly) without entering the filesystem; a few have to succeed instead.
"""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from transfuse.errors import RemoteProtocolError
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import MAP_READ, MAP_SHARED, MAP_WRITE, Entry, FileRange, Opened, Statfs
from transfuse.session.calls import MAX_OFFSET, Calls
from transfuse.session.directories import Listings
from transfuse.session.negotiate import MAP_ALIGNMENT, Connection
from transfuse.session.replies import Replies
from transfuse.wire import flags as f
from transfuse.wire.decode import IN_HEADER_SIZE, minimum_length
from transfuse.wire.encode import Message
from transfuse.wire.layout import Buffer
from transfuse.wire.opcodes import OPERATIONS, Opcode
from transfuse.wire.structs import RemovemappingOne

if TYPE_CHECKING:
    from transfuse.session.server import ServerSession, WindowHost

__all__ = ["Row", "build_rows"]

Call = Callable[[Request, Any, Buffer, int, int], Any]
Reply = Callable[[Request, Any], "Message | None"]
Row = tuple[Call, Reply, "Callable[[Buffer, int], tuple[Any, ...]] | None", int, int, bool]
"""call, reply, unpacker of the structure, its size, least length of the request, may carry extensions."""

MAP_PAGE = 1 << MAP_ALIGNMENT
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY)
MAX_DIR_REPLY = 1 << 20
"""Most bytes of one READDIR reply, whatever the peer asks for."""


def _absent(req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
    raise OSError(errno.ENOSYS, "not implemented by this filesystem")


_FOR_OPEN_FILES = frozenset(
    {
        Opcode.READ,
        Opcode.WRITE,
        Opcode.FSYNC,
        Opcode.FLUSH,
        Opcode.RELEASE,
        Opcode.READDIR,
        Opcode.READDIRPLUS,
        Opcode.FSYNCDIR,
        Opcode.RELEASEDIR,
        Opcode.FORGET,
    }
)
"""Not checked for allow_root: the file was opened by somebody who may, and the kernel sends some of these by itself."""


def _owner_only(call: Call, owner: int) -> Call:
    def guarded(req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        if req.uid != owner and req.uid != 0:
            raise PermissionError(errno.EACCES, "only root and the owner of the mount may use it")
        return call(req, args, buffer, at, end)

    return guarded


class _Special:
    """Rows that need more than one call: opens, releases and listings."""

    def __init__(self, session: ServerSession, calls: Calls, replies: Replies, operations: frozenset[str]) -> None:
        self.session = session
        self.window: WindowHost = cast("WindowHost", session.host)
        self.calls = calls
        self.replies = replies
        self.fs = calls.fs
        self.has = operations
        self.listings = Listings(replies)
        self.dir_handles = itertools.count(1)
        connection = calls.connection
        self.no_open = connection.has(f.FUSE_NO_OPEN_SUPPORT)
        self.no_opendir = connection.has(f.FUSE_NO_OPENDIR_SUPPORT)
        self.atomic_trunc = connection.has(f.FUSE_ATOMIC_O_TRUNC)

    def open(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        if self.no_open:
            raise OSError(errno.ENOSYS, "files need no open on this connection")
        if "open" not in self.has:
            return Opened()
        return self.calls.open(req, args, buffer, at, end)

    def opened(self, req: Request, value: Opened) -> Message:
        flags, backing_id = self.session.open_reply(req.nodeid, value)
        try:
            return self.replies.opened(req, value.fh, flags, backing_id)
        except BaseException:
            self.session.passthrough.released(req.nodeid)
            raise

    def created(self, req: Request, value: Any) -> Message:
        entry, fh, flags, backing_id = self.session.created_reply(value)
        try:
            return self.replies.created(req, entry, fh, flags, backing_id)
        except BaseException:
            self.session.passthrough.released(entry.nodeid)
            raise

    def release(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        fh, flags, release_flags, lock_owner = args
        self.session.passthrough.released(req.nodeid)
        if "release" not in self.has:
            return None
        unlock = bool(release_flags & f.FUSE_RELEASE_FLOCK_UNLOCK)
        return self.fs.release(req, req.nodeid, fh, flags, lock_owner, unlock)

    def opendir(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        if self.no_opendir:
            raise OSError(errno.ENOSYS, "directories need no open on this connection")
        if "opendir" not in self.has:
            return Opened(next(self.dir_handles))
        return self.calls.opendir(req, args, buffer, at, end)

    def opened_dir(self, req: Request, value: Opened) -> Message:
        return self.replies.opened(req, value.fh, Replies.open_flags(value), 0)

    def releasedir(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        self.listings.drop(req.nodeid, args[0])
        if "releasedir" not in self.has:
            return None
        return self.fs.releasedir(req, req.nodeid, args[0], args[1])

    def readdir(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        fh, offset, size = args[:3]
        req.argument = min(size, MAX_DIR_REPLY)
        if "readdir" in self.session.coroutines:
            return self._readdir_later(req, fh, offset)
        return self.listings.entries(self.fs.readdir, req, req.nodeid, fh, offset)

    async def _readdir_later(self, req: Request, fh: int, offset: int) -> Any:
        found: Any = self.fs.readdir(req, req.nodeid, fh, offset)
        return self.listings.number(await found, req.nodeid, fh, offset)

    def listed(self, req: Request, value: Any) -> Message:
        packed = self.listings.pack(value, req.argument)  # type: ignore[arg-type]
        return self.replies.data(req, packed)

    def listed_plus(self, req: Request, value: Any) -> Message:
        found: list[int] = []

        def lookup(req: Request, nodeid: int, name: bytes) -> Entry:
            entry = self.fs.lookup(req, nodeid, name)
            found.append(entry.nodeid)
            return entry

        try:
            packed = self.listings.pack_plus(value, req.argument, lookup, req, req.nodeid)  # type: ignore[arg-type]
            return self.replies.data(req, packed)
        except BaseException:
            self.session.forget_found(found)  # the peer will not hear of them
            raise

    def forget(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.calls.forget(req, args, buffer, at, end) if "forget" in self.has else None

    def setupmapping(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> None:
        """Linux names no open file (fh is all ones): the filesystem opens the node for as long as it is mapped."""
        _, foffset, length, flags, moffset = args
        self._check_window(moffset, length)
        if foffset % MAP_PAGE or foffset + length > MAX_OFFSET:
            raise RemoteProtocolError(f"setupmapping_in.foffset at offset 48: {foffset:#x}")
        writable = bool(flags & f.FUSE_SETUPMAPPING_FLAG_WRITE)
        found = self._shared(req, foffset, length, writable)
        if found is None:
            raise OSError(errno.ENODEV, "the file cannot be mapped")
        self.window.window_map(found.fd, found.offset, min(length, found.length), moffset, writable, found.owner)

    def _shared(self, req: Request, offset: int, length: int, writable: bool) -> FileRange | None:
        intent = MAP_SHARED | MAP_READ
        if writable or self.window.window_needs_writable():
            try:
                return self.fs.map(req, req.nodeid, None, offset, length, intent | MAP_WRITE)
            except OSError as error:
                if writable or error.errno not in NOT_WRITABLE:
                    raise
        return self.fs.map(req, req.nodeid, None, offset, length, intent)

    def removemapping(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> None:
        if args[0] * RemovemappingOne.SIZE != end - at:
            raise RemoteProtocolError(f"removemapping_in.count at offset 40 says {args[0]}, {end - at} bytes follow")
        ranges = list(RemovemappingOne.codec(self.calls.connection.order).iter_unpack(bytes(buffer[at:end])))
        for moffset, length in ranges:
            self._check_window(moffset, length)
        for moffset, length in ranges:
            self.window.window_unmap(moffset, length)

    def _check_window(self, moffset: int, length: int) -> None:
        if moffset % MAP_PAGE or length % MAP_PAGE or not length or moffset + length > self.session.limits.window:
            raise RemoteProtocolError(
                f"{length:#x} bytes at {moffset:#x} of a DAX window of {self.session.limits.window:#x}"
            )


# opcode → (operation it needs, Calls method, Replies method); operations that are absent become ENOSYS.
_PLAIN: dict[Opcode, tuple[str, str, str]] = {
    Opcode.LOOKUP: ("lookup", "lookup", "entry"),
    Opcode.GETATTR: ("getattr", "getattr", "attr"),
    Opcode.SETATTR: ("setattr", "setattr", "attr"),
    Opcode.READLINK: ("readlink", "readlink", "link_target"),
    Opcode.SYMLINK: ("symlink", "symlink", "made"),
    Opcode.MKNOD: ("mknod", "mknod", "made"),
    Opcode.MKDIR: ("mkdir", "mkdir", "made"),
    Opcode.UNLINK: ("unlink", "unlink", "empty"),
    Opcode.RMDIR: ("rmdir", "rmdir", "empty"),
    Opcode.RENAME: ("rename", "rename", "empty"),
    Opcode.RENAME2: ("rename", "rename", "empty"),
    Opcode.LINK: ("link", "link", "made"),
    Opcode.READ: ("read", "read", "data"),
    Opcode.WRITE: ("write", "write", "written"),
    Opcode.STATFS: ("statfs", "statfs", "statfs"),
    Opcode.FSYNC: ("fsync", "fsync", "empty"),
    Opcode.SETXATTR: ("setxattr", "setxattr", "empty"),
    Opcode.GETXATTR: ("getxattr", "getxattr", "xattr"),
    Opcode.LISTXATTR: ("listxattr", "listxattr", "xattr_names"),
    Opcode.REMOVEXATTR: ("removexattr", "removexattr", "empty"),
    Opcode.FLUSH: ("flush", "flush", "empty"),
    Opcode.FSYNCDIR: ("fsyncdir", "fsyncdir", "empty"),
    Opcode.GETLK: ("getlk", "getlk", "lock"),
    Opcode.ACCESS: ("access", "access", "empty"),
    Opcode.BMAP: ("bmap", "bmap", "bmap"),
    Opcode.IOCTL: ("ioctl", "ioctl", "ioctl"),
    Opcode.POLL: ("poll", "poll", "poll"),
    Opcode.FALLOCATE: ("fallocate", "fallocate", "empty"),
    Opcode.LSEEK: ("lseek", "lseek", "lseek"),
    Opcode.COPY_FILE_RANGE: ("copy_file_range", "copy_file_range", "copied"),
    Opcode.COPY_FILE_RANGE_64: ("copy_file_range", "copy_file_range", "copied_64"),
    Opcode.SYNCFS: ("syncfs", "syncfs", "empty"),
    Opcode.STATX: ("statx", "statx", "statx"),
}


def build_rows(
    filesystem: Filesystem, connection: Connection, replies: Replies, session: ServerSession
) -> dict[int, Row]:
    """The table for one connection. INIT, DESTROY, INTERRUPT, BATCH_FORGET and NOTIFY_REPLY are the session's own."""
    operations = session.operations
    calls = Calls(filesystem, connection, session.coroutines)
    special = _Special(session, calls, replies, operations)
    pairs: dict[Opcode, tuple[Call, Reply]] = {
        opcode: (getattr(calls, call) if needs in operations else _absent, getattr(replies, reply))
        for opcode, (needs, call, reply) in _PLAIN.items()
    }
    if connection.has(f.FUSE_WRITEBACK_CACHE):
        # The peer asks without sending first what it has collected (fs/fuse/file.c, fuse_lseek), so the answer could
        # call data a hole, and a copying program would lose them. Without an answer all of a file counts as data.
        pairs[Opcode.LSEEK] = (_absent, replies.lseek)
    if "statfs" not in operations:  # statfs(2) and df must work; ENOSYS would reach the application
        pairs[Opcode.STATFS] = (lambda *_: Statfs(), replies.statfs)
    pairs[Opcode.FORGET] = (special.forget, replies.nothing)
    pairs[Opcode.OPEN] = (special.open, special.opened)
    pairs[Opcode.RELEASE] = (special.release, replies.empty)
    pairs[Opcode.OPENDIR] = (special.opendir, special.opened_dir)
    pairs[Opcode.RELEASEDIR] = (special.releasedir, replies.empty)
    listing = "readdir" in operations
    pairs[Opcode.READDIR] = (special.readdir if listing else _absent, special.listed)
    plus = connection.has(f.FUSE_DO_READDIRPLUS)
    pairs[Opcode.READDIRPLUS] = (special.readdir if plus else _absent, special.listed_plus)
    pairs[Opcode.CREATE] = (calls.create if "create" in operations else _absent, special.created)
    pairs[Opcode.TMPFILE] = (calls.tmpfile if "tmpfile" in operations else _absent, special.created)
    locks = bool({"setlk", "flock"} & operations)
    pairs[Opcode.SETLK] = (calls.setlk if locks else _absent, replies.empty)
    pairs[Opcode.SETLKW] = (calls.setlkw if locks else _absent, replies.empty)
    mapped = bool(session.limits.window) and "map" in operations
    pairs[Opcode.SETUPMAPPING] = (special.setupmapping if mapped else _absent, replies.empty)
    pairs[Opcode.REMOVEMAPPING] = (special.removemapping if mapped else _absent, replies.empty)
    owner = session.limits.owner
    if owner is not None:
        for opcode in pairs.keys() - _FOR_OPEN_FILES:
            call, reply = pairs[opcode]
            pairs[opcode] = _owner_only(call, owner), reply
    return {int(opcode): _row(opcode, call, reply, connection) for opcode, (call, reply) in pairs.items()}


def _row(opcode: Opcode, call: Call, reply: Reply, connection: Connection) -> Row:
    operation = OPERATIONS[opcode]
    structure = operation.request
    if structure is None:
        return call, reply, None, 0, minimum_length(opcode, connection.minor), operation.extensions
    codec = structure.codec(connection.order)
    size = codec.size
    least = minimum_length(opcode, connection.minor)
    unpack: Callable[[Buffer, int], tuple[Any, ...]] = codec.unpack_from
    if opcode == Opcode.SETXATTR and not connection.has(f.FUSE_SETXATTR_EXT):
        # FUSE_COMPAT_SETXATTR_IN_SIZE: without the flag the structure ends after size and flags.
        short = struct.Struct(connection.order + "II")
        unpack, size, least = short.unpack_from, short.size, IN_HEADER_SIZE + short.size + 1
    return call, reply, unpack, size, least, operation.extensions

"""Decoded requests into filesystem method calls: one small function per opcode.

Each takes (req, args, buffer, at, end): the request, its structure as a tuple in header order, and where names and
payload lie. It returns what the method returned; the reply is made of that by `replies`. Together with `replies` this
is the only place where wire structures and values meet.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from transfuse.errors import RemoteProtocolError
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import AttrChanges, Lock
from transfuse.session.negotiate import Connection
from transfuse.wire import flags as f
from transfuse.wire.decode import check_component, decode_name, decode_name_and_value, decode_two_names
from transfuse.wire.layout import Buffer
from transfuse.wire.opcodes import Opcode

__all__ = ["Blocking", "Calls", "decode_rdev"]

NS = 1_000_000_000
MAX_OFFSET = 0x7FFF_FFFF_FFFF_FFFF
"""Largest file offset: Linux's loff_t."""
MAX_XATTR = 1 << 16
"""Largest extended attribute: Linux's XATTR_SIZE_MAX."""
MAX_XATTR_NAME = 255
MAX_COPY_32 = 0xFFFF_F000
"""Most bytes that one COPY_FILE_RANGE copies: whole pages that its 32-bit answer can count."""
NO_REPLY_SIZE = 1 << 20


class Blocking:
    """A call that may wait for long (a contended lock): the session runs it on a thread of its own."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run


def decode_rdev(rdev: int) -> int:
    """The 32-bit device number of the wire as an os.makedev() number."""
    if not rdev:
        return 0
    major = rdev >> 8 & 0xFFF
    minor = rdev & 0xFF | rdev >> 12 & 0xFFF00
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _offset(value: int, what: str) -> int:
    if value > MAX_OFFSET:
        raise RemoteProtocolError(f"{what} {value:#x} is beyond the largest file offset")
    return value


class Calls:
    """The calls of one connection."""

    def __init__(self, filesystem: Filesystem, connection: Connection, coroutines: frozenset[str]) -> None:
        self.fs = filesystem
        self.connection = connection
        # write() as a coroutine runs when the receive buffer is in use again.
        self.copy_payload = "write" in coroutines
        self.coroutines = coroutines
        self.dont_mask = connection.has(f.FUSE_DONT_MASK)
        self.export = connection.has(f.FUSE_EXPORT_SUPPORT)

    def _umask(self, umask: int) -> int:
        # Without DONT_MASK the peer has applied the umask already.
        return umask if self.dont_mask else 0

    def _name(self, req: Request, buffer: Buffer, at: int, end: int) -> bytes:
        name = decode_name(buffer, at, end, at - 40)
        check_component(name)
        return name

    # -- names ------------------------------------------------------------------------------------------------------

    def lookup(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        name = decode_name(buffer, at, end, at - 40)
        if not (self.export and (name == b"." or name == b"..")):
            check_component(name)
        return self.fs.lookup(req, req.nodeid, name)

    def forget(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.forget(req, req.nodeid, args[0])

    def symlink(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        name, target = decode_two_names(buffer, at, end, at - 40)
        check_component(name)
        return self.fs.symlink(req, req.nodeid, name, target)

    def mknod(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        mode, rdev, umask = args
        name = self._name(req, buffer, at, end)
        return self.fs.mknod(req, req.nodeid, name, mode, decode_rdev(rdev), self._umask(umask))

    def mkdir(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        mode, umask = args
        return self.fs.mkdir(req, req.nodeid, self._name(req, buffer, at, end), mode, self._umask(umask))

    def unlink(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.unlink(req, req.nodeid, self._name(req, buffer, at, end))

    def rmdir(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.rmdir(req, req.nodeid, self._name(req, buffer, at, end))

    def rename(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        name, newname = decode_two_names(buffer, at, end, at - 40)
        check_component(name)
        check_component(newname)
        flags = args[1] if len(args) > 1 else 0
        return self.fs.rename(req, req.nodeid, name, args[0], newname, flags)

    def link(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.link(req, args[0], req.nodeid, self._name(req, buffer, at, end))

    def readlink(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.readlink(req, req.nodeid)

    # -- attributes ---------------------------------------------------------------------------------------------------

    def getattr(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.getattr(req, req.nodeid, args[1] if args[0] & f.FUSE_GETATTR_FH else None)

    def statx(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        getattr_flags, fh, sx_flags, sx_mask = args
        return self.fs.statx(req, req.nodeid, fh if getattr_flags & f.FUSE_GETATTR_FH else None, sx_flags, sx_mask)

    def setattr(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        (valid, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, uid, gid) = args
        changes = AttrChanges()
        if valid & f.FATTR_MODE:
            changes.mode = mode & 0o7777
        if valid & f.FATTR_UID:
            changes.uid = uid
        if valid & f.FATTR_GID:
            changes.gid = gid
        if valid & f.FATTR_SIZE:
            changes.size = _offset(size, "setattr_in.size")
        if valid & f.FATTR_ATIME_NOW:
            changes.atime_now = True
        elif valid & f.FATTR_ATIME:
            changes.atime_ns = _signed(atime) * NS + _nanoseconds(atimensec)
        if valid & f.FATTR_MTIME_NOW:
            changes.mtime_now = True
        elif valid & f.FATTR_MTIME:
            changes.mtime_ns = _signed(mtime) * NS + _nanoseconds(mtimensec)
        if valid & f.FATTR_CTIME:
            changes.ctime_ns = _signed(ctime) * NS + _nanoseconds(ctimensec)
        if valid & f.FATTR_LOCKOWNER:
            changes.lock_owner = lock_owner
        changes.kill_suidgid = bool(valid & f.FATTR_KILL_SUIDGID)
        return self.fs.setattr(req, req.nodeid, changes, fh if valid & f.FATTR_FH else None)

    def access(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.access(req, req.nodeid, args[0])

    def getxattr(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        req.argument = args[0]
        return self.fs.getxattr(req, req.nodeid, self._xattr_name(decode_name(buffer, at, end, at - 48)))

    def listxattr(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        req.argument = args[0]
        return self.fs.listxattr(req, req.nodeid)

    def setxattr(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        size, flags = args[:2]
        if size > MAX_XATTR:
            raise OSError(errno.E2BIG, "extended attribute too large")
        name, value = decode_name_and_value(buffer, at, end, size, at - 56)
        kill_sgid = len(args) > 2 and bool(args[2] & f.FUSE_SETXATTR_ACL_KILL_SGID)
        return self.fs.setxattr(req, req.nodeid, self._xattr_name(name), value, flags, kill_sgid)

    def removexattr(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.removexattr(req, req.nodeid, self._xattr_name(decode_name(buffer, at, end, at - 40)))

    @staticmethod
    def _xattr_name(name: bytes) -> bytes:
        if not 0 < len(name) <= MAX_XATTR_NAME:
            raise OSError(errno.ERANGE, f"attribute name of {len(name)} bytes")
        return name

    def statfs(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.statfs(req, req.nodeid)

    # -- open files ---------------------------------------------------------------------------------------------------

    def open(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.open(req, req.nodeid, args[0])

    def create(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        flags, mode, umask, _ = args
        name = self._name(req, buffer, at, end)
        return self.fs.create(req, req.nodeid, name, mode, self._umask(umask), flags)

    def tmpfile(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        flags, mode, umask, _ = args
        decode_name(buffer, at, end, at - 56)  # Linux sends one, of its own making; it means nothing
        return self.fs.tmpfile(req, req.nodeid, mode, self._umask(umask), flags)

    def read(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        size = args[2]
        req.argument = size
        if size > NO_REPLY_SIZE and size > self.connection.max_write:
            raise RemoteProtocolError(f"read_in.size {size} is beyond the {self.connection.max_write} agreed")
        return self.fs.read(req, req.nodeid, args[0], size, _offset(args[1], "read_in.offset"))

    def write(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        size = args[2]
        if end - at != size:
            raise RemoteProtocolError(f"write_in.size at offset 56 says {size} bytes, {end - at} follow")
        req.argument = size
        data: Buffer = memoryview(buffer)[at:end]
        if self.copy_payload:
            data = bytes(data)
        _offset(args[1] + size, "write_in.offset + size")
        return self.fs.write(req, req.nodeid, args[0], data, args[1], args[3])

    def flush(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.flush(req, req.nodeid, args[0], args[-1])

    def fsync(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.fsync(req, req.nodeid, args[0], bool(args[1] & f.FUSE_FSYNC_FDATASYNC))

    def fsyncdir(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.fsyncdir(req, req.nodeid, args[0], bool(args[1] & f.FUSE_FSYNC_FDATASYNC))

    def fallocate(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        fh, offset, length, mode = args
        _offset(offset + length, "fallocate_in.offset + length")
        return self.fs.fallocate(req, req.nodeid, fh, mode, offset, length)

    def lseek(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        fh, offset, whence = args
        return self.fs.lseek(req, req.nodeid, fh, _offset(offset, "lseek_in.offset"), whence)

    def copy_file_range(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        fh_in, off_in, nodeid_out, fh_out, off_out, length, flags = args
        if req.opcode == Opcode.COPY_FILE_RANGE:
            length = min(length, MAX_COPY_32)  # its reply counts in 32 bits
        _offset(off_in + length, "copy_file_range_in.off_in + len")
        _offset(off_out + length, "copy_file_range_in.off_out + len")
        req.argument = length
        return self.fs.copy_file_range(req, req.nodeid, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags)

    def ioctl(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        fh, flags, cmd, arg, in_size, out_size = args
        if end - at != in_size:
            raise RemoteProtocolError(f"ioctl_in.in_size at offset 64 says {in_size} bytes, {end - at} follow")
        if out_size > self.connection.max_write:
            raise RemoteProtocolError(f"ioctl_in.out_size at offset 68: {out_size}")
        req.argument = out_size
        return self.fs.ioctl(req, req.nodeid, fh, cmd, arg, bytes(buffer[at:end]), out_size, flags)

    def poll(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        fh, kh, flags, events = args
        return self.fs.poll(req, req.nodeid, fh, events, kh if flags & f.FUSE_POLL_SCHEDULE_NOTIFY else None)

    def bmap(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.bmap(req, req.nodeid, args[0], args[1])

    def getlk(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        lock = req.argument = _lock_of(args)
        return self.fs.getlk(req, req.nodeid, args[0], args[1], lock)

    def setlk(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self._lock(req, args, False)

    def setlkw(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        # Most locks are free: only one that is not costs a thread.
        try:
            return self._lock(req, args, ("flock" if args[6] & f.FUSE_LK_FLOCK else "setlk") in self.coroutines)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        return Blocking(lambda: self._lock(req, args, True))

    def _lock(self, req: Request, args: Any, wait: bool) -> Any:
        fh, owner, lk_flags = args[0], args[1], args[6]
        lock = _lock_of(args)
        if lk_flags & f.FUSE_LK_FLOCK:
            return self.fs.flock(req, req.nodeid, fh, owner, lock.kind, wait)
        return self.fs.setlk(req, req.nodeid, fh, owner, lock, wait)

    # -- directories --------------------------------------------------------------------------------------------------

    def opendir(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.opendir(req, req.nodeid, args[0])

    def syncfs(self, req: Request, args: Any, buffer: Buffer, at: int, end: int) -> Any:
        return self.fs.syncfs(req, req.nodeid)


def _lock_of(args: Any) -> Lock:
    _, _, start, stop, kind, pid, _ = args
    if kind > 2:
        raise RemoteProtocolError(f"file_lock.type at offset 72: {kind}")
    if start > MAX_OFFSET or stop < start:
        raise RemoteProtocolError(f"file_lock at offset 56: from {start:#x} to {stop:#x}")
    return Lock(kind, start, min(stop, MAX_OFFSET), pid)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _nanoseconds(value: int) -> int:
    if value >= NS:
        raise RemoteProtocolError(f"setattr_in: {value} nanoseconds in a second")
    return value

"""One open file description of the server's: reads, writes and everything else that carries an fh.

Offsets are arguments here; a position and the file protocol are `files.RawFile`'s. Requests are as large as was agreed:
writes of at most max_write, reads of at most max_pages pages. A short answer to a read means the end of the file; a
short answer to a write stops the loop and is returned, as write(2) does.

There is no page cache: every read and write reaches the server, as with FOPEN_DIRECT_IO. After each of them the
attributes are asked for again before they are shown.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from transfuse.client.base import new_owner
from transfuse.client.caches import Node
from transfuse.client.walk import Path, fail
from transfuse.fs.values import Lock
from transfuse.wire import flags as f
from transfuse.wire.layout import Buffer
from transfuse.wire.opcodes import Opcode

if TYPE_CHECKING:
    from transfuse.client.client import Client

__all__ = ["OpenFile"]

PAGE = 4096
MAX_OFFSET = 0x7FFF_FFFF_FFFF_FFFF
MAX_COPY_32 = 0xFFFF_F000
"""Most bytes of one COPY_FILE_RANGE, whose answer counts in 32 bits."""
COPY_CHUNK = 1 << 20
FALLOCATE_KNOWN = 0x01 | 0x02 | 0x10
"""FALLOC_FL_KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE: all that Linux passes on."""
SEEK_DATA, SEEK_HOLE = 3, 4
ATTR_FLAGS = 15
"""Where fuse_attr.flags stands in the flattened structure."""
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2


class OpenFile:
    """An open file. Made by Client.open_file(); close() it."""

    def __init__(self, client: Client, node: Node, fh: int, open_flags: int, flags: int, path: Path) -> None:
        self.client = client.lasting
        self.node = node
        self.fh = fh
        """The server's number for it."""
        self.open_flags = open_flags
        """FOPEN_* of the answer to OPEN."""
        self.flags = flags
        """open(2) flags, without those that count at the opening only."""
        self.path = path
        self.flock_owner = new_owner()
        self.is_open = True
        self._flocked = False

    # -- life ---------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self.is_open:
            raise fail(errno.EBADF, self.path)

    @property
    def readable(self) -> bool:
        """Opened for reading?"""
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        """Opened for writing?"""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    def flush(self) -> None:
        """FLUSH, as close(2) sends for each descriptor: late errors come here, POSIX locks of this owner end."""
        self._check_open()
        if not self.open_flags & f.FOPEN_NOFLUSH:
            self.client.ask(Opcode.FLUSH, self.node, (self.fh, self.client.lock_owner), path=self.path)

    def close(self) -> None:
        """FLUSH and RELEASE. The error of FLUSH is raised, the file is closed all the same. Idempotent."""
        if not self.is_open:
            return
        try:
            if not self.node.is_dir:
                self.flush()
        finally:
            self.is_open = False
            opcode = Opcode.RELEASEDIR if self.node.is_dir else Opcode.RELEASE
            if self._needs_release():
                release_flags = f.FUSE_RELEASE_FLOCK_UNLOCK if self._flocked else 0
                owner = self.flock_owner if self._flocked else 0
                self.client.exchange.call(
                    opcode, self.node.nodeid, (self.fh, self.flags, release_flags, owner), creds=self.client.creds
                )

    def _needs_release(self) -> bool:
        return self.client.exchange.session.without(Opcode.OPENDIR if self.node.is_dir else Opcode.OPEN) is None

    def abandon(self) -> None:
        """Closed by nobody: RELEASE goes out with the next request. May be called from a finalizer."""
        if self.is_open:
            self.is_open = False
            opcode = Opcode.RELEASEDIR if self.node.is_dir else Opcode.RELEASE
            self.client.exchange.orphans.append((opcode, self.node.nodeid, self.fh, self.flags))

    # -- data ---------------------------------------------------------------------------------------------------------

    def _lock_owner(self, bit: int) -> tuple[int, int]:
        """Only direct I/O tells the server whose locks to mind."""
        return (bit, self.client.lock_owner) if self.open_flags & f.FOPEN_DIRECT_IO else (0, 0)

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        self._check_open()
        if not self.readable:
            raise fail(errno.EBADF, self.path)
        if offset < 0 or size < 0:
            raise fail(errno.EINVAL, self.path)
        if self.node.is_dir:
            raise fail(errno.EISDIR, self.path)
        size = min(size, MAX_OFFSET - offset)
        dax = self.client.dax
        if dax is not None and not self.open_flags & f.FOPEN_DIRECT_IO:
            attributes = self.client.attributes(self.node, self.fh)
            if attributes[ATTR_FLAGS] & f.FUSE_ATTR_DAX:
                return dax.read(self.node.nodeid, size, offset, attributes[1])
        chunk = self.client.max_read
        read_flags, owner = self._lock_owner(f.FUSE_READ_LOCKOWNER)
        parts: list[bytes] = []
        while size > 0:
            asked = min(size, chunk)
            args = (self.fh, offset, asked, read_flags, owner, self.flags)
            data = self.client.ask(Opcode.READ, self.node, args, path=self.path).data
            parts.append(data)
            if len(data) < asked:
                break
            offset += asked
            size -= asked
        self.client.cache.invalidate_attr(self.node)  # atime
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, data: Buffer, offset: int) -> int:
        """Write at `offset`; fewer bytes than given only when the server took fewer."""
        self._check_open()
        if not self.writable:
            raise fail(errno.EBADF, self.path)
        if offset < 0:
            raise fail(errno.EINVAL, self.path)
        view = memoryview(data).cast("B")
        if offset + len(view) > MAX_OFFSET:
            raise fail(errno.EFBIG, self.path)
        client = self.client
        chunk = client.max_write
        write_flags, owner = self._lock_owner(f.FUSE_WRITE_LOCKOWNER)
        if client.creds.uid != 0 and client.connection.has(f.FUSE_HANDLE_KILLPRIV_V2):
            write_flags |= f.FUSE_WRITE_KILL_SUIDGID
        done = 0
        try:
            while done < len(view):
                part = view[done : done + chunk]
                args = (self.fh, offset + done, len(part), write_flags, owner, self.flags)
                try:
                    count = client.ask(Opcode.WRITE, self.node, args, payload=part, path=self.path).values[0]
                except OSError:
                    if done:
                        break
                    raise
                done += count
                if count < len(part):
                    if not done:
                        raise fail(errno.EIO, self.path)
                    break
        finally:
            client.cache.invalidate_attr(self.node)
        return done

    def append(self, data: Buffer) -> tuple[int, int]:
        """Write at the end, as O_APPEND does: (bytes written, offset they went to)."""
        offset = self.size()
        return self.pwrite(data, offset), offset

    # -- attributes ---------------------------------------------------------------------------------------------------

    def size(self) -> int:
        """The file's size, asked for when it may have changed."""
        size: int = self.client.attributes(self.node, self._attr_fh())[1]
        return size

    def _attr_fh(self) -> int | None:
        return None if self.node.is_dir else self.fh

    def fstat(self) -> os.stat_result:
        """As os.fstat()."""
        self._check_open()
        self.client.attributes(self.node, self._attr_fh())
        return self.client.node_stat(self.node, self.path)

    def ftruncate(self, length: int) -> None:
        """As os.ftruncate()."""
        self._check_open()
        if not self.writable or length < 0:
            raise fail(errno.EINVAL, self.path)
        self.client.node_truncate(self.node, length, self.path, self.fh)

    def fchmod(self, mode: int) -> None:
        """As os.fchmod()."""
        self._check_open()
        mode = self.node.mode & 0o170000 | mode & 0o7777
        self.client.set_attributes(self.node, f.FATTR_MODE, mode=mode, fh=self._attr_fh(), path=self.path)

    def fchown(self, uid: int, gid: int) -> None:
        """As os.fchown()."""
        self._check_open()
        self.client.node_chown(self.node, uid, gid, self.path, self._attr_fh())

    def futime(self, ns: tuple[int | None, int | None] | None = None) -> None:
        """As os.utime() of a descriptor: (atime_ns, mtime_ns), None in place of one leaves it alone."""
        self._check_open()
        self.client.node_utime(self.node, ns, self.path, self._attr_fh())

    # -- the rest -----------------------------------------------------------------------------------------------------

    def fsync(self, datasync: bool = False) -> None:
        """As os.fsync(), or os.fdatasync()."""
        self._check_open()
        opcode = Opcode.FSYNCDIR if self.node.is_dir else Opcode.FSYNC
        self.client.ask(opcode, self.node, (self.fh, f.FUSE_FSYNC_FDATASYNC if datasync else 0), path=self.path)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """As fallocate(2); modes other than KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE are EOPNOTSUPP."""
        self._check_open()
        if offset < 0 or length <= 0:
            raise fail(errno.EINVAL, self.path)
        if not self.writable:
            raise fail(errno.EBADF, self.path)
        if mode & ~FALLOCATE_KNOWN:
            raise fail(errno.EOPNOTSUPP, self.path)
        if offset + length > MAX_OFFSET:
            raise fail(errno.EFBIG, self.path)
        self.client.ask(Opcode.FALLOCATE, self.node, (self.fh, offset, length, mode), path=self.path)
        self.client.cache.invalidate_attr(self.node)

    def seek_data(self, offset: int, whence: int) -> int:
        """Where the next data (SEEK_DATA) or hole (SEEK_HOLE) begins; ENXIO past the end. Where the server does not
        know, the file is all data."""
        self._check_open()
        if offset < 0:
            raise fail(errno.ENXIO, self.path)
        reply = self.client.exchange.call(
            Opcode.LSEEK, self.node.nodeid, (self.fh, offset, whence), creds=self.client.creds
        )
        if reply.error == errno.ENOSYS:
            size = self.size()
            if offset >= size:
                raise fail(errno.ENXIO, self.path)
            return offset if whence == SEEK_DATA else size
        if reply.error:
            raise fail(reply.error, self.path)
        found: int = reply.values[0]
        return found

    def copy_range(self, offset: int, target: OpenFile, target_offset: int, count: int) -> int:
        """As os.copy_file_range(): how many bytes the server copied, 0 at the end of the file. Servers that can't
        copy have it read and written from here."""
        self._check_open()
        target._check_open()
        if not self.readable or not target.writable or target.flags & os.O_APPEND:
            raise fail(errno.EBADF, self.path)
        if count < 0 or offset < 0 or target_offset < 0:
            raise fail(errno.EINVAL, self.path)
        if target.node is self.node:
            # only what there is to copy can overlap (mm/filemap.c, generic_copy_file_checks())
            length = max(0, min(count, self.size() - offset))
            if offset < target_offset + length and target_offset < offset + length:
                raise fail(errno.EINVAL, self.path)
        for opcode, limit in ((Opcode.COPY_FILE_RANGE_64, MAX_OFFSET), (Opcode.COPY_FILE_RANGE, MAX_COPY_32)):
            length = min(count, limit)
            args = (self.fh, offset, target.node.nodeid, target.fh, target_offset, length, 0)
            if self.client.exchange.session.without(opcode) is not None:
                continue
            reply = self.client.exchange.call(opcode, self.node.nodeid, args, creds=self.client.creds)
            if not reply.error:
                self.client.cache.invalidate_attr(target.node)
                self.client.cache.invalidate_attr(self.node)
                copied: int = reply.values[0]
                return copied
            if reply.error not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV):
                raise fail(reply.error, self.path)
        data = self.pread(min(count, COPY_CHUNK), offset)
        return target.pwrite(data, target_offset) if data else 0

    def ioctl(self, cmd: int, data: bytes = b"", out_size: int = 0, arg: int = 0) -> tuple[int, bytes]:
        """ioctl(2) with `data` going in and up to `out_size` bytes coming back: (result, bytes)."""
        self._check_open()
        flags = f.FUSE_IOCTL_DIR if self.node.is_dir else 0
        if self.node.is_dir and not self.client.connection.has(f.FUSE_HAS_IOCTL_DIR):
            raise fail(errno.ENOTTY, self.path)
        args = (self.fh, flags, cmd, arg, len(data), out_size)
        reply = self.client.ask(Opcode.IOCTL, self.node, args, payload=data, path=self.path)
        if reply.values[0] < 0:
            raise fail(-reply.values[0], self.path)
        return reply.values[0], reply.data

    # -- locks --------------------------------------------------------------------------------------------------------

    def lock(self, kind: int, start: int, end: int, *, wait: bool = False, timeout_s: float | None = None) -> None:
        """Take or drop a POSIX lock of bytes `start` to `end` (F_RDLCK 0, F_WRLCK 1, F_UNLCK 2).

        Without `wait` a lock in the way is EAGAIN; with it, waits for `timeout_s` (None: for ever), then TimeoutError.
        """
        self._setlk(self.client.lock_owner, kind, start, end, 0, wait, timeout_s)

    def flock(self, kind: int, *, wait: bool = False, timeout_s: float | None = None) -> None:
        """Take or drop a BSD lock, which belongs to this open file; otherwise as `lock`."""
        self._setlk(self.flock_owner, kind, 0, MAX_OFFSET, f.FUSE_LK_FLOCK, wait, timeout_s)
        self._flocked = kind != F_UNLCK

    def _setlk(
        self, owner: int, kind: int, start: int, end: int, lk_flags: int, wait: bool, timeout_s: float | None
    ) -> None:
        self._check_open()
        client = self.client
        bit = f.FUSE_FLOCK_LOCKS if lk_flags else f.FUSE_POSIX_LOCKS
        if not client.connection.has(bit):
            raise fail(errno.ENOLCK, self.path)
        if start < 0 or end < start:
            raise fail(errno.EINVAL, self.path)
        if not lk_flags and ((kind == F_RDLCK and not self.readable) or (kind == F_WRLCK and not self.writable)):
            raise fail(errno.EBADF, self.path)
        pid = 0 if kind == F_UNLCK else client.creds.pid
        args = (self.fh, owner, start, end, kind, pid, lk_flags)
        if wait:
            client.ask(Opcode.SETLKW, self.node, args, path=self.path, timeout_s=timeout_s)
        else:
            client.ask(Opcode.SETLK, self.node, args, path=self.path)

    def test_lock(self, kind: int, start: int, end: int) -> Lock | None:
        """The POSIX lock in the way of one of this kind, or None."""
        self._check_open()
        args: tuple[Any, ...] = (self.fh, self.client.lock_owner, start, end, kind, self.client.creds.pid, 0)
        first, last, found, pid = self.client.ask(Opcode.GETLK, self.node, args, path=self.path).values
        return None if found == F_UNLCK else Lock(found, first, last, pid)

"""The operations on open files: data, holes, locks, ioctl, poll."""

from __future__ import annotations

import errno
import stat
import struct

from transfuse.filesystems.memory.inode import FS_APPEND_FL, FS_IMMUTABLE_FL, FS_NODUMP_FL, Inode
from transfuse.filesystems.memory.locks import F_RDLCK, F_UNLCK, F_WRLCK
from transfuse.filesystems.memory.state import Handle, R, State, W, X, error
from transfuse.fs.request import Request
from transfuse.fs.values import Entry, IoctlResult, Lock, Opened

__all__ = ["Files"]

Buffer = bytes | bytearray | memoryview

O_EXCL, O_TRUNC, O_APPEND, O_NOATIME = 0o200, 0o1000, 0o2000, 0o1000000
"""asm-generic values, as a filesystem always sees them."""
MAX_OFFSET = 0x7FFF_FFFF_FFFF_FFFF
SEEK_DATA, SEEK_HOLE = 3, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10
WRITE_CACHE, WRITE_KILL_SUIDGID = 1, 4
POLL_ALWAYS = 0x0001 | 0x0004 | 0x0040 | 0x0100
"""POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM."""
COPY_STEP = 1 << 20

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
SETTABLE_FLAGS = FS_IMMUTABLE_FL | FS_APPEND_FL | FS_NODUMP_FL
FSX_FORMAT = "IIIII8x"
"""struct fsxattr: xflags, extsize, nextents, projid, cowextsize, 8 bytes of padding."""
FSX_TO_FLAG = {0x08: FS_IMMUTABLE_FL, 0x10: FS_APPEND_FL, 0x80: FS_NODUMP_FL}
"""FS_XFLAG_* to FS_*_FL."""


class Files(State):
    """Operations on open files."""

    # -- opening and closing -------------------------------------------------------------------------------------------

    def _open(self, inode: Inode, flags: int) -> Opened:
        fh = self._handles.add(Handle(inode, flags))
        inode.opens += 1
        # Nobody else changes the file, so what the peer has cached of it stays true.
        return Opened(fh, keep_cache=True)

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        """O_TRUNC is honoured; an append-only file needs O_APPEND, an immutable one can't be written."""
        with self._lock:
            inode = self._inode(nodeid)
            access = flags & 3
            writes = access != 0 or bool(flags & O_TRUNC)
            if inode.children is not None and writes:
                raise error(errno.EISDIR)
            if inode.target is not None:
                raise error(errno.ELOOP)
            if self.check_permissions:
                want = (R, W, R | W, R | W)[access] | (W if flags & O_TRUNC else 0)
                self._need(req, inode, want)
                if flags & O_NOATIME:
                    self._need_owner(req, inode)
            if inode.flags & FS_IMMUTABLE_FL and writes:
                raise error(errno.EPERM)
            if inode.flags & FS_APPEND_FL and (flags & O_TRUNC or (access and not flags & O_APPEND)):
                raise error(errno.EPERM)
            opened = self._open(inode, flags)
            if flags & O_TRUNC and inode.data is not None:
                inode.data.truncate(0)
                if req.uid != 0:
                    self._kill_suidgid(req, inode)
                inode.touch_mtime(self._clock())
            return opened

    def create(self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        """A name that exists is opened, unless O_EXCL; a new file is open for writing even if its mode forbids it."""
        with self._lock:
            directory = self._directory(parent)
            self._need(req, directory, X)
            assert directory.children is not None
            there = directory.children.get(name)
            if there is not None:
                if flags & O_EXCL:
                    raise error(errno.EEXIST)
                if there.inode.children is not None:
                    raise error(errno.EISDIR)
                opened = self.open(req, there.inode.ino, flags)
                return self._entry(there.inode), opened
            self._room_for_name(req, directory, name)
            inode = self._make(req, directory, stat.S_IFREG | mode & 0o7777, umask)
            # Before the name is given: opening fails when too many files are open.
            opened = self._opened_or_freed(inode, flags)
            self._enter(directory, name, inode)
            return self._entry(inode), opened

    def _opened_or_freed(self, inode: Inode, flags: int) -> Opened:
        try:
            return self._open(inode, flags)
        except OSError:
            self._settle(inode)
            raise

    def tmpfile(self, req: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        """A file with no name and no links; link() may give it one, unless O_EXCL."""
        with self._lock:
            directory = self._directory(parent)
            if directory.ino != 1 and not directory.nlink:
                raise error(errno.ENOENT)
            self._need(req, directory, W | X)
            inode = self._make(req, directory, stat.S_IFREG | mode & 0o7777, umask)
            inode.linkable = not flags & O_EXCL
            opened = self._opened_or_freed(inode, flags)
            return self._entry(inode), opened

    def flush(self, req: Request, nodeid: int, fh: int, lock_owner: int) -> None:
        """The process's POSIX locks on the file end, whichever of its descriptors was closed."""
        owners = self._handle(fh, nodeid).lock_owners
        if owners is not None:
            owners.discard(lock_owner)
        self._locks.drop_owner(nodeid, lock_owner)

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """An unlinked file goes with its last handle."""
        with self._lock:
            handle = self._handles.remove(fh)
            handle.inode.opens -= 1
            self._settle(handle.inode)
        if flock_unlock:
            self._locks.drop_flock(nodeid, lock_owner)
        # Who locks without ever flushing is an open file description (F_OFD_SETLK). Linux sends no unlock for it when
        # it is closed (locks_remove_posix() finds no local locks), so the end of the handle has to do.
        for owner in handle.lock_owners or ():
            self._locks.drop_owner(nodeid, owner)

    def fsync(self, req: Request, nodeid: int, fh: int, datasync: bool) -> None:
        """Memory is as durable as it gets."""
        self._inode(nodeid)

    def syncfs(self, req: Request, nodeid: int) -> None:
        """Memory is as durable as it gets."""

    # -- data ----------------------------------------------------------------------------------------------------------

    def read(self, req: Request, nodeid: int, fh: int, size: int, offset: int) -> Buffer:
        """EBADF for a handle that is not open for reading (unless the peer caches writes, and must fill pages)."""
        handle = self._handle(fh, nodeid)
        if not handle.readable and not self._writeback:
            raise error(errno.EBADF)
        inode = handle.inode
        data = inode.data
        if data is None:
            raise error(errno.EISDIR if inode.children is not None else errno.EINVAL)
        with self._lock:
            found = data.read(size, offset)
            if not handle.noatime and (inode.atime_ns <= inode.mtime_ns or inode.atime_ns <= inode.ctime_ns):
                inode.atime_ns = self._clock()
        return found

    def write(self, req: Request, nodeid: int, fh: int, data: Buffer, offset: int, flags: int) -> int:
        """All or nothing; ENOSPC beyond the filesystem's size, EFBIG beyond the largest offset."""
        handle = self._handle(fh, nodeid)
        if not handle.writable:
            raise error(errno.EBADF)
        inode = handle.inode
        content = inode.data
        if content is None:
            raise error(errno.EINVAL)
        with self._lock:
            if handle.append and not flags & WRITE_CACHE:
                offset = content.size
            if offset + len(data) > MAX_OFFSET:
                raise error(errno.EFBIG)
            content.write(data, offset)
            now = self._clock()
            inode.mtime_ns = inode.ctime_ns = now
            if inode.mode & 0o6000 and (flags & WRITE_KILL_SUIDGID or (self.check_permissions and req.uid != 0)):
                self._kill_suidgid(req, inode)
        return len(data)

    def fallocate(self, req: Request, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None:
        """Allocate, keep the size, punch, zero: all that FUSE passes on. Others are EOPNOTSUPP."""
        handle = self._handle(fh, nodeid)
        inode = handle.inode
        if length <= 0 or offset < 0:
            raise error(errno.EINVAL)
        keep_size = bool(mode & FALLOC_KEEP_SIZE)
        what = mode & ~FALLOC_KEEP_SIZE
        if what not in (0, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE) or (what == FALLOC_PUNCH_HOLE and not keep_size):
            raise error(errno.EOPNOTSUPP)
        if not handle.writable:
            raise error(errno.EBADF)
        if inode.data is None:
            raise error(errno.ENODEV)
        if offset + length > MAX_OFFSET:
            raise error(errno.EFBIG)
        with self._lock:
            if inode.flags & FS_IMMUTABLE_FL or (inode.flags & FS_APPEND_FL and what):
                raise error(errno.EPERM)
            if what == FALLOC_PUNCH_HOLE:
                inode.data.punch(offset, length)
            else:
                inode.data.allocate(offset, length, zero=bool(what), keep_size=keep_size, max_pages=self._max_pages)
            if req.uid != 0:
                self._kill_suidgid(req, inode)
            inode.touch_mtime(self._clock())

    def lseek(self, req: Request, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """Pages of 4 KiB are the grain; ENXIO where there is nothing more to find."""
        data = self._handle(fh, nodeid).inode.data
        if data is None or whence not in (SEEK_DATA, SEEK_HOLE):
            raise error(errno.EINVAL)
        with self._lock:
            found = data.seek_data(offset) if whence == SEEK_DATA else data.seek_hole(offset)
        if found is None:
            raise error(errno.ENXIO)
        return found

    def copy_file_range(
        self,
        req: Request,
        nodeid_in: int,
        fh_in: int,
        offset_in: int,
        nodeid_out: int,
        fh_out: int,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        """Atomic for everyone else; holes are kept. Overlapping ranges of one file are EINVAL."""
        source, target = self._handle(fh_in, nodeid_in), self._handle(fh_out, nodeid_out)
        if not source.readable or not target.writable or target.append:
            raise error(errno.EBADF)
        if flags:
            raise error(errno.EINVAL)
        data_in, data_out = source.inode.data, target.inode.data
        if data_in is None or data_out is None:
            raise error(errno.EINVAL)
        with self._lock:
            length = min(length, max(0, data_in.size - offset_in))
            if data_in is data_out and offset_in < offset_out + length and offset_out < offset_in + length:
                raise error(errno.EINVAL)
            if offset_out + length > MAX_OFFSET:
                raise error(errno.EFBIG)
            done = 0
            while done < length:
                found = data_in.seek_data(offset_in + done)
                hole = length - done if found is None else min(found - offset_in - done, length - done)
                if hole:
                    data_out.punch(offset_out + done, hole)
                    done += hole
                    if offset_out + done > data_out.size:
                        data_out.truncate(offset_out + done)
                    continue
                data_end = data_in.seek_hole(offset_in + done)
                assert data_end is not None  # inside the file: seek_data found something
                step = min(COPY_STEP, length - done, data_end - offset_in - done)
                part = data_in.read(step, offset_in + done)
                try:
                    data_out.write(part, offset_out + done)
                except OSError:
                    if not done:
                        raise
                    break
                done += len(part)
            if done:
                target.inode.touch_mtime(self._clock())
                if req.uid != 0:
                    self._kill_suidgid(req, target.inode)
            return done

    # -- the rest ------------------------------------------------------------------------------------------------------

    def ioctl(
        self, req: Request, nodeid: int, fh: int, cmd: int, arg: int, data: bytes, out_size: int, flags: int
    ) -> IoctlResult:
        """The file flags (chattr(1)): immutable, append-only and no-dump are kept, and honoured."""
        inode = self._inode(nodeid)
        order = self._order
        if cmd == FS_IOC_GETFLAGS and out_size >= 4:
            return IoctlResult(0, struct.pack(order + "I", inode.flags).ljust(min(out_size, 8), b"\0"))
        if cmd == FS_IOC_SETFLAGS and len(data) >= 4:
            self._set_flags(req, inode, struct.unpack_from(order + "I", data)[0])
            return IoctlResult()
        if cmd == FS_IOC_FSGETXATTR and out_size >= 28:
            xflags = sum(bit for bit, flag in FSX_TO_FLAG.items() if inode.flags & flag)
            return IoctlResult(0, struct.pack(order + FSX_FORMAT, xflags, 0, 0, 0, 0))
        if cmd == FS_IOC_FSSETXATTR and len(data) >= 28:
            xflags, extsize, _, projid, cowextsize = struct.unpack_from(order + FSX_FORMAT, data)
            if extsize or projid or cowextsize or xflags & ~sum(FSX_TO_FLAG):
                raise error(errno.EOPNOTSUPP)
            self._set_flags(req, inode, sum(flag for bit, flag in FSX_TO_FLAG.items() if xflags & bit))
            return IoctlResult()
        raise error(errno.ENOTTY)

    def _set_flags(self, req: Request, inode: Inode, new: int) -> None:
        if new & ~SETTABLE_FLAGS:
            raise error(errno.EOPNOTSUPP)
        with self._lock:
            self._need_owner(req, inode)
            if (inode.flags ^ new) & (FS_IMMUTABLE_FL | FS_APPEND_FL) and req.uid != 0:
                raise error(errno.EPERM)
            inode.flags = new
            inode.touch_ctime(self._clock())
        self._attributes_changed(inode)

    def poll(self, req: Request, nodeid: int, fh: int, events: int, handle: int | None) -> int:
        """A regular file is always ready."""
        self._handle(fh, nodeid)
        return events & POLL_ALWAYS

    def getlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        """The first lock in the way."""
        self._inode(nodeid)
        return self._locks.conflict(nodeid, owner, lock)

    def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock, wait: bool) -> None:
        """EDEADLK instead of waiting in a circle; EBADF when the handle's mode does not allow the kind of lock."""
        handle = self._handle(fh, nodeid)
        if (lock.kind == F_RDLCK and not handle.readable) or (lock.kind == F_WRLCK and not handle.writable):
            raise error(errno.EBADF)
        self._locks.acquire(req, nodeid, owner, lock, wait)
        if lock.kind != F_UNLCK:
            with self._lock:
                handle.lock_owners = (handle.lock_owners or set()) | {owner}

    def flock(self, req: Request, nodeid: int, fh: int, owner: int, kind: int, wait: bool) -> None:
        """No deadlock detection, as in Linux."""
        self._handle(fh, nodeid)
        self._locks.flock(req, nodeid, owner, kind, wait)

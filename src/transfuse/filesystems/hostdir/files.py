"""Operations on open files and directories.

read() answers with the place of the bytes, and an open regular file is offered to the kernel as a backing file, so data
does not pass through Python objects except in write(), whose buffer is the one the request came in.

setuid and setgid: the session tells when a write or truncation comes from a caller that may not keep these bits; the
server is root and may, so such a call is made without CAP_FSETID where the bits are set. The kernel's own passthrough
writes go by the rights of whoever the backing file was registered as, for all opens of the file; so one that has the
bits is not offered for that, and others are registered as the first opener. Where root is that, the bits can still come
later: if they come through the mount, the kernel asks to clear them before a user's write (see `attributes`); if they
come on the host, it learns of them when it next asks for attributes, and until then they survive such a write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from transfuse.filesystems.hostdir import locks, syscalls
from transfuse.filesystems.hostdir.core import DIRECTORY, MAX_LOCK_OWNERS, REGULAR, Core
from transfuse.filesystems.hostdir.credentials import SET_ID_BITS
from transfuse.filesystems.hostdir.handles import OpenDirectory, OpenFile
from transfuse.filesystems.hostdir.nodes import HeldFd, Node, stale
from transfuse.fs.backing import BackingFile
from transfuse.fs.request import Request
from transfuse.fs.values import (
    MAP_CACHED,
    MAP_WRITE,
    ROOT_ID,
    Attr,
    DirEntry,
    Entry,
    FileRange,
    IoctlResult,
    Lock,
    Opened,
)

__all__ = ["Files"]

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
"""open(2) flags that reach the host. Not O_DIRECT unless asked for: a server's buffers are not aligned as it wants."""
MAKING = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
WRITE_CACHE, WRITE_KILL_SUIDGID = 1, 4
PASSTHROUGH_READ_BYTES = 1 << 17
"""Smaller files that are opened only for reading are not offered as backing files: taking one and giving it back costs
two ioctls and an open inside the kernel, more than the one READ that fetches the whole file."""
MAX_COPY = 0x7FFF_F000
"""Most bytes Linux copies in one call."""
SEEK_KINDS = (os.SEEK_DATA, os.SEEK_HOLE)

FS_IOC_GETFLAGS, FS_IOC32_GETFLAGS = 0x80086601, 0x80046601
FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS = 0x40086602, 0x40046602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FLAGS_SIZE = 4
"""The flags are an int although the number says long (<linux/fs.h>)."""
FSXATTR_SIZE = 28
PRIVILEGED_FLAGS = 0x30
"""FS_IMMUTABLE_FL | FS_APPEND_FL need CAP_LINUX_IMMUTABLE."""
PRIVILEGED_XFLAGS = 0x18
"""FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND."""


class Files(Core):
    """What needs an fh, and how one is got."""

    # -- opening ------------------------------------------------------------------------------------------------------

    def _host_flags(self, flags: int) -> int:
        flags = flags & (KEPT_FLAGS | self.added_flags) & ~self.dropped_flags | os.O_CLOEXEC
        if self.unopened is not None:
            flags &= ~os.O_APPEND  # the fd serves other opens, too; every write comes with its place
        if self.writeback:
            # The peer reads what it writes in part, and has done the appending itself.
            flags &= ~os.O_APPEND
            if flags & os.O_ACCMODE == os.O_WRONLY:
                flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        """Open a regular file, truncating it with O_TRUNC."""
        node = self._node(nodeid)
        if node.kind != REGULAR:
            raise OSError(errno.EISDIR if node.kind == DIRECTORY else errno.ENXIO, "only regular files are opened")
        host_flags = self._host_flags(flags)
        kill = bool(flags & os.O_TRUNC) and req.uid != 0 and self.credentials.can_switch
        if kill:
            host_flags &= ~os.O_TRUNC
        ref, attr, appending = self._open_node(node, host_flags, flags)
        file = OpenFile(ref, node, appending)
        if kill:
            writing = HeldFd(syscalls.reopen(file.ref.fd, os.O_WRONLY))
            self._killing(req, nodeid, writing.fd, lambda: os.ftruncate(writing.fd, 0))
        return self._opened(req, file, attr, flags)

    def _open_node(self, node: Node, host_flags: int, flags: int) -> tuple[HeldFd, Attr | None, bool]:
        """A real fd of the node, the attributes right before if they were seen, and whether writes to it append."""
        base = node.ref
        if base is None or self.steps.direct:
            found = self._open_by_name(node, host_flags)
            if found is not None:
                return found[0], found[1], bool(host_flags & os.O_APPEND)
        attr: Attr | None = None
        if base is None:
            fd, attr = self._find_again(node, node.parent)
            base = HeldFd(fd)
        else:
            base.used = True
        ref, appending = self._reopen(base.fd, host_flags, flags)
        return ref, attr, appending

    def _open_by_name(self, node: Node, host_flags: int) -> tuple[HeldFd, Attr] | None:
        """The usual case, in one step, with the attributes as they were right before: None when it is not that, or when
        anything went wrong."""
        parent, place = node.parent, node.place
        if parent is None or place is None or (held := parent.ref) is None:
            return None
        if host_flags & os.O_TRUNC and not host_flags & os.O_ACCMODE:
            return None  # ftruncate() would need a writable fd
        held.used = True
        found = self.steps.open(held.fd, place, node.key, host_flags & ~os.O_TRUNC)
        if found is None:
            return None
        ref = HeldFd(found[0])
        if host_flags & os.O_TRUNC:
            os.ftruncate(ref.fd, 0)
        return ref, found[1]

    def _find_again(self, node: Node, parent: Node | None) -> tuple[int, Attr]:
        """An O_PATH fd of a node without one, which is not kept: the open file's own will serve."""
        try:
            return self._find(node, None if parent is None else parent.ref or self._hold(parent))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        ref = self._hold(node)  # minds a rename at the same moment
        found = self.probe(ref.fd, b"")
        if found is None:
            raise stale(node.nodeid)
        return os.dup(ref.fd), found[0]

    def _reopen(self, fd: int, host_flags: int, flags: int) -> tuple[HeldFd, bool]:
        """A real fd of what `fd` stands for, and whether writes to it append."""
        try:
            return HeldFd(self._with_room(syscalls.reopen, fd, host_flags)), bool(host_flags & os.O_APPEND)
        except PermissionError:
            # What an unprivileged server may lack: ownership for O_NOATIME, the right to read for write-back; and an
            # append-only file must be open for appending.
            plain = host_flags & ~os.O_NOATIME
            if self.writeback:
                plain |= flags & os.O_APPEND
            if plain == host_flags and not self.writeback:
                raise
        try:
            return HeldFd(syscalls.reopen(fd, plain)), bool(plain & os.O_APPEND)
        except PermissionError:
            if not self.writeback:
                raise
        plain = plain & ~os.O_ACCMODE | flags & os.O_ACCMODE
        return HeldFd(syscalls.reopen(fd, plain)), bool(plain & os.O_APPEND)

    def _opened(self, req: Request, file: OpenFile, attr: Attr | None, flags: int) -> Opened:
        """The reply to an open, by cache mode. `attr`: as it was just before."""
        ref = file.ref
        if self.unopened is not None:
            self.unopened.keep(file, flags & os.O_ACCMODE)
            opened = Opened(0)
        else:
            opened = Opened(self._new_fh(file))
            self.nodes.lend(file.node, ref)
        opened.noflush = not self.posix_locks and not self.writeback
        if self.offer_backing and self.passed_through:
            if attr is None:
                attr = self._attr_of(ref)
            if (flags & os.O_ACCMODE or attr.size >= PASSTHROUGH_READ_BYTES) and not (
                attr.mode & SET_ID_BITS and self.credentials.can_switch
            ):
                opened.backing_fd = self._backing(req, ref.fd)
        if self.direct_io:
            opened.direct_io = opened.parallel_direct_writes = True
        elif self.cache == "always":
            opened.keep_cache = True
        elif opened.backing_fd is None:
            opened.keep_cache = self._unchanged(file, attr)
        return opened

    def _backing(self, req: Request, fd: int) -> int:
        """A backing file for all opens of the node; where a user comes first, the kernel writes with the user's rights,
        which clears setuid and setgid bits that the file gets while it is open."""
        if not req.uid or not self.credentials.can_switch:
            return fd
        make = self.credentials.make
        return BackingFile(fd, lambda register, fd: make(req, -1, 0, lambda: register(fd)))

    def _attr_of(self, ref: HeldFd) -> Attr:
        found = self.probe(ref.fd, b"")
        assert found is not None  # b"" is not looked up
        return found[0]

    def _unchanged(self, file: OpenFile, attr: Attr | None) -> bool:
        """Is the file as it was when it was last opened?"""
        if attr is None:
            attr = self._attr_of(file.ref)
        nodeid, seen = file.node.nodeid, self.nodes.seen
        now = hash((attr.mtime_ns, attr.ctime_ns, attr.size))
        same = seen.get(nodeid) == now
        seen[nodeid] = now
        return same

    def create(self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        """Make and open a regular file as the caller. One that exists is opened, unless O_EXCL."""
        node, ref = self._directory(parent, name)
        host_flags = self._host_flags(flags)
        making = host_flags & ~os.O_TRUNC | MAKING
        mode &= 0o7777
        umask &= 0o777
        credentials, step = self.credentials, self.steps.create
        try:
            if credentials.suit(req, umask):
                fd, attr, key = self._with_room(step, ref.fd, name, making, mode)
            else:
                fd, attr, key = self._with_room(
                    credentials.make, req, umask, mode, lambda: step(ref.fd, name, making, mode)
                )
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return self._create_existing(req, parent, name, flags)
        held = HeldFd(fd)
        child = self.nodes.remember(attr, key, node, name, ref.fd)
        return self._made_open(req, OpenFile(held, child, bool(host_flags & os.O_APPEND)), attr, flags)

    def _made_open(self, req: Request, file: OpenFile, attr: Attr, flags: int) -> tuple[Entry, Opened]:
        node = file.node
        try:
            return Entry(attr, node.nodeid), self._opened(req, file, attr, flags)
        except OSError:
            self.nodes.forget(node.nodeid, 1)
            raise

    def _create_existing(self, req: Request, parent: int, name: bytes, flags: int) -> tuple[Entry, Opened]:
        """Somebody else made the file since the peer looked, so the peer could not check the caller's right to it."""
        entry = self.lookup(req, parent, name)
        if entry.attr is None:
            raise FileNotFoundError(errno.ENOENT, f"{name!r} came and went")
        try:
            if entry.attr.mode >> 12 == REGULAR:
                ref = self._ref(entry.nodeid)
                HeldFd(self.credentials.make(req, -1, 0, lambda: syscalls.reopen(ref.fd, flags & os.O_ACCMODE)))
            return entry, self.open(req, entry.nodeid, flags)
        except OSError:
            self.forget(req, entry.nodeid, 1)
            raise

    def tmpfile(self, req: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        """Make and open a file without a name; link() may give it one unless O_EXCL."""
        ref = self._ref(parent)
        host_flags = self._host_flags(flags)
        making = host_flags & ~os.O_TRUNC | os.O_TMPFILE | flags & os.O_EXCL
        mode &= 0o7777
        fd = self._with_room(
            self.credentials.make, req, umask & 0o777, mode, lambda: os.open(b".", making, mode, dir_fd=ref.fd)
        )
        held = HeldFd(fd)
        found = self.probe(fd, b"")
        if found is None:
            raise stale(parent)
        node = self.nodes.add_nameless(found[1], held)
        return self._made_open(req, OpenFile(held, node, bool(host_flags & os.O_APPEND)), found[0], flags)

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """Close the file. Its BSD lock ends here even if a backing file of the kernel's lives on."""
        if self.unopened is not None and not fh:
            return
        file = self.opened.pop(fh, None)
        if file.__class__ is not OpenFile:
            raise OSError(errno.EBADF, f"fh {fh} is not an open file")
        assert isinstance(file, OpenFile)
        for owner in file.lock_owners or ():
            # The locks of this open file itself (F_OFD_SETLK), which no FLUSH names.
            self.locks.drop(nodeid, owner)
        if file.flocked:
            locks.flock(file.ref.fd, locks.UNLOCK)
            self.waiters.wake(nodeid)
        if not self.nodes.take_back(file.node, file.ref):
            path_fd = syscalls.reopen(file.ref.fd, os.O_PATH)
            self.nodes.pin(file.node, HeldFd(path_fd), False)

    def _without_open(self, nodeid: int, fh: int, writing: bool = False) -> OpenFile:
        """What a request is about whose fh is no open file: none has one with `no_open`, else it is EBADF."""
        unopened = self.unopened
        if unopened is None or fh:
            raise OSError(errno.EBADF, f"fh {fh} is not an open file")
        file = unopened.get(nodeid, writing)
        if file is None:
            node = self._node(nodeid)
            if node.kind != REGULAR:
                raise OSError(errno.EBADF, f"node {nodeid} is not a regular file")
            flags = self._host_flags(os.O_WRONLY if writing else os.O_RDONLY)
            try:
                ref, _, appending = self._open_node(node, flags, flags)
            except PermissionError:
                if not writing:
                    raise
                ref, _, appending = self._open_node(node, flags | os.O_APPEND, flags)  # an append-only file
            file = OpenFile(ref, node, appending)
            unopened.keep(file, flags & os.O_ACCMODE)
        return file

    def _file_of(self, nodeid: int, fh: int, writing: bool = False) -> OpenFile:
        file = self.opened.get(fh)
        return file if file.__class__ is OpenFile else self._without_open(nodeid, fh, writing)

    # -- data ---------------------------------------------------------------------------------------------------------

    def read(self, req: Request, nodeid: int, fh: int, size: int, offset: int) -> FileRange:
        """Where the bytes are. EBADF reaches the peer from there if the file was not opened for reading."""
        file = self.opened.get(fh)
        if file.__class__ is not OpenFile:
            file = self._without_open(nodeid, fh)
        ref = file.ref
        return FileRange(ref.fd, offset, size, ref)

    def write(self, req: Request, nodeid: int, fh: int, data: Buffer, offset: int, flags: int) -> int:
        """pwrite(2) from the request's buffer. A file open for appending ignores `offset`, but for a page of the peer's
        cache that is written back (a shared mapping), which has its place."""
        file = self.opened.get(fh)
        if file.__class__ is not OpenFile:
            file = self._without_open(nodeid, fh, True)
        fd = file.ref.fd
        if file.appending and (flags & WRITE_CACHE or not fh):
            in_place = self._in_place(file)
            if in_place is file.ref:
                return self._append_rest(fd, data, offset, bool(flags & WRITE_CACHE))
            fd = in_place.fd
        if flags & WRITE_KILL_SUIDGID and self.credentials.can_switch:
            return self._killing(req, nodeid, fd, lambda: os.pwrite(fd, data, offset))
        return os.pwrite(fd, data, offset)

    def map(
        self, req: Request, nodeid: int, fh: int | None, offset: int, length: int, intent: int
    ) -> FileRange | None:
        """The same place in the host's file. None for the pages of a file that can only be appended to.

        To be mapped (fh None) the file is opened anew, as the server: the peer's kernel has checked its users' rights.
        """
        if fh is None:
            node = self._node(nodeid)
            if node.kind != REGULAR:
                raise OSError(errno.ENODEV, "only regular files are mapped")
            base = self._ref(nodeid)
            flags = os.O_RDWR if intent & MAP_WRITE else os.O_RDONLY
            ref = HeldFd(self._with_room(syscalls.reopen, base.fd, flags))
            return FileRange(ref.fd, offset, length, ref)
        file = self._file_of(nodeid, fh, bool(intent & MAP_WRITE))
        ref = file.ref
        if intent & MAP_CACHED and file.appending:
            in_place = self._in_place(file)
            if in_place is ref:
                return None
            ref = in_place
        return FileRange(ref.fd, offset, length, ref)

    def _in_place(self, file: OpenFile) -> HeldFd:
        """An fd of the file that does not append; only appending to it is possible where the host says so."""
        ref = file.unappending
        if ref is None:
            try:
                ref = HeldFd(self._with_room(syscalls.reopen, file.ref.fd, os.O_WRONLY))
            except PermissionError:
                ref = file.ref
            file.unappending = ref
        return ref

    @staticmethod
    def _append_rest(fd: int, data: Buffer, offset: int, is_page: bool) -> int:
        """Write to an append-only file. Of a page of the peer's cache, what lies before the end is there already and
        cannot be written again."""
        size = os.fstat(fd).st_size
        if offset > size or (offset < size and not is_page):
            raise PermissionError(errno.EPERM, f"at {offset} of an append-only file of {size} bytes")
        there = min(size - offset, len(data))
        rest = memoryview(data)[there:]
        return there + os.write(fd, rest) if rest else there

    def _killing(self, req: Request, nodeid: int, fd: int, call: Callable[[], T]) -> T:
        """call(), which changes the file's data on behalf of an ordinary user."""
        mode = os.fstat(fd).st_mode
        if not mode & SET_ID_BITS:
            return call()
        result = self.credentials.without_fsetid(req, mode, call)
        # execve() goes by the mode that the peer has cached.
        self._attributes_changed(nodeid)
        return result

    def flush(self, req: Request, nodeid: int, fh: int, lock_owner: int) -> None:
        """Drop the POSIX locks of whoever closed the file."""
        self.locks.drop(nodeid, lock_owner)
        file = self.opened.get(fh)
        if file.__class__ is OpenFile and file.lock_owners:
            file.lock_owners.discard(lock_owner)

    def fsync(self, req: Request, nodeid: int, fh: int, datasync: bool) -> None:
        """fsync(2) or fdatasync(2)."""
        (os.fdatasync if datasync else os.fsync)(self._file_of(nodeid, fh).ref.fd)

    def fallocate(self, req: Request, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2) with whatever modes the host's filesystem has."""
        fd = self._file_of(nodeid, fh, True).ref.fd
        if req.uid:
            self._killing(req, nodeid, fd, lambda: syscalls.fallocate(fd, mode, offset, length))
        else:
            syscalls.fallocate(fd, mode, offset, length)

    def lseek(self, req: Request, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE of the host's file. The position of the shared fd means nothing: I/O has offsets."""
        if whence not in SEEK_KINDS:
            raise OSError(errno.EINVAL, f"whence {whence}")
        return os.lseek(self._file_of(nodeid, fh).ref.fd, offset, whence)

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
        """copy_file_range(2); EXDEV and EOPNOTSUPP make the peer copy by itself."""
        if flags:
            raise OSError(errno.EINVAL, f"copy_file_range flags {flags:#x}")
        source, target = self._file_of(nodeid_in, fh_in).ref.fd, self._file_of(nodeid_out, fh_out, True).ref.fd
        length = min(length, MAX_COPY)
        if req.uid:
            return self._killing(
                req,
                nodeid_out,
                target,
                lambda: os.copy_file_range(source, target, length, offset_in, offset_out),
            )
        return os.copy_file_range(source, target, length, offset_in, offset_out)

    def ioctl(
        self, req: Request, nodeid: int, fh: int, cmd: int, arg: int, data: bytes, out_size: int, flags: int
    ) -> IoctlResult | bytes | int:
        """File attributes (lsattr, chattr, project ids). Everything else is ENOTTY: an ioctl can do anything."""
        opened = self.opened.get(fh) or self._without_open(nodeid, fh)
        fd = opened.ref.fd
        if cmd in (FS_IOC_GETFLAGS, FS_IOC32_GETFLAGS):
            return bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[: min(out_size, FLAGS_SIZE)]
        if cmd == FS_IOC_FSGETXATTR:
            return bytes(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR_SIZE)))[:out_size]
        if cmd in (FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS):
            self._set_flags(req, fd, data)
        elif cmd == FS_IOC_FSSETXATTR:
            self._set_fsxattr(req, fd, data)
        else:
            raise OSError(errno.ENOTTY, f"ioctl {cmd:#x} is not passed on")
        self._attributes_changed(nodeid)
        return 0

    @staticmethod
    def _set_flags(req: Request, fd: int, data: bytes) -> None:
        if len(data) < FLAGS_SIZE:
            raise OSError(errno.EINVAL, f"{len(data)} bytes of flags")
        wanted = struct.unpack_from("=I", data)[0]
        now = struct.unpack_from("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
        if req.uid and (wanted ^ now) & PRIVILEGED_FLAGS:
            raise PermissionError(errno.EPERM, "only root changes the immutable and append-only flags")
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", wanted))

    @staticmethod
    def _set_fsxattr(req: Request, fd: int, data: bytes) -> None:
        if len(data) < FSXATTR_SIZE:
            raise OSError(errno.EINVAL, f"{len(data)} bytes of fsxattr")
        wanted = struct.unpack_from("=I", data)[0]
        now = struct.unpack_from("=I", fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR_SIZE)))[0]
        if req.uid and (wanted ^ now) & PRIVILEGED_XFLAGS:
            raise PermissionError(errno.EPERM, "only root changes the immutable and append-only flags")
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, data[:FSXATTR_SIZE])

    # -- locks --------------------------------------------------------------------------------------------------------

    def getlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        """The POSIX lock in the way, of this mount's processes or the host's."""
        self._file(fh)
        return self.locks.get(nodeid, owner, lock)

    def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock, wait: bool) -> None:
        """Take or drop a POSIX lock. EDEADLK instead of waiting in a circle of this mount's lock owners."""
        file = self._file(fh)
        if lock.kind == locks.UNLOCK:
            self.locks.set(nodeid, owner, lock)
            return
        owners = file.lock_owners
        if owners is None:
            owners = file.lock_owners = set()
        if len(owners) >= MAX_LOCK_OWNERS:
            raise OSError(errno.ENOLCK, f"{MAX_LOCK_OWNERS} owners locked through this open file")
        owners.add(owner)
        if wait:
            self.locks.wait(req, nodeid, owner, lock)
        else:
            self.locks.set(nodeid, owner, lock)

    def flock(self, req: Request, nodeid: int, fh: int, owner: int, kind: int, wait: bool) -> None:
        """Take or drop the BSD lock of the open file, which is one on the host's file too."""
        file = self._file(fh)
        fd = file.ref.fd
        if kind == locks.UNLOCK:
            locks.flock(fd, kind)
            self.waiters.wake(nodeid)
            return
        if wait:
            self.waiters.wait(req, nodeid, lambda: locks.flock(fd, kind))
        else:
            locks.flock(fd, kind)
        file.flocked = True

    # -- directories --------------------------------------------------------------------------------------------------

    def opendir(self, req: Request, nodeid: int, flags: int) -> Opened:
        """Open a directory for listing."""
        node = self._node(nodeid)
        if node.kind != DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, f"node {nodeid} is not a directory")
        ref = self._ref(nodeid)
        fd = self._open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, ref.fd)
        opened = Opened(self._new_fh(OpenDirectory(HeldFd(fd), node)))
        opened.cache_dir = opened.keep_cache = self.cache == "always"
        return opened

    def _open_directory(self, fh: int) -> OpenDirectory:
        opened = self.opened.get(fh)
        if not isinstance(opened, OpenDirectory):
            raise OSError(errno.EBADF, f"fh {fh} is not an open directory")
        return opened

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Sequence[DirEntry]:
        """Some entries after `offset`, with the host's own offsets as cookies."""
        opened = self.opened.get(fh)
        if opened.__class__ is not OpenDirectory:
            raise OSError(errno.EBADF, f"fh {fh} is not an open directory")
        return opened.read(offset)

    def releasedir(self, req: Request, nodeid: int, fh: int, flags: int) -> None:
        """Close the directory."""
        self._open_directory(fh)
        self.opened.pop(fh, None)

    def fsyncdir(self, req: Request, nodeid: int, fh: int, datasync: bool) -> None:
        """fsync(2) of a directory."""
        (os.fdatasync if datasync else os.fsync)(self._open_directory(fh).ref.fd)

    def syncfs(self, req: Request, nodeid: int) -> None:
        """syncfs(2) of the filesystem that holds the node: the source's, or of something mounted in it."""
        if nodeid == ROOT_ID:
            syscalls.sync_filesystem(self.root.fd)
            return
        held = HeldFd(self._open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, self._ref(nodeid).fd))
        syscalls.sync_filesystem(held.fd)

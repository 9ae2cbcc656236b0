"""Open files as Python knows them: a real io.RawIOBase over an OpenFile, and the rules of opening.

`open_node` is open(2)'s part behind the path walk (fs/namei.c, fs/fuse/dir.c): CREATE only for a name that is not
there, OPEN for one that is; a server without CREATE gets MKNOD and OPEN, and one without ATOMIC_O_TRUNC a truncating
SETATTR.
"""

from __future__ import annotations

import errno
import io
import os
import stat as stat_bits
import threading
import warnings
from typing import TYPE_CHECKING, Any, Literal

from transfuse.client.caches import Node
from transfuse.client.openfile import MAX_OFFSET, SEEK_DATA, SEEK_HOLE, OpenFile
from transfuse.client.stale import retries_stale
from transfuse.client.walk import Last, Path, fail, follow_link, walk, walk_parent
from transfuse.fs.values import Lock
from transfuse.session.answers import ENTRY_WIDTH
from transfuse.wire import flags as f
from transfuse.wire.opcodes import Opcode

if TYPE_CHECKING:
    from transfuse.client.client import Client

__all__ = ["RawFile", "open_node", "parse_mode"]

LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8
"""fcntl's numbers for lockf() and flock()."""
_ONLY_AT_OPEN = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_CLOEXEC


def parse_mode(mode: str) -> tuple[int, bool]:
    """open(2) flags for builtin open()'s mode, and whether it is text."""
    letters = set(mode)
    if letters - set("rwxabt+") or len(letters) != len(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    if len(letters & set("rwxa")) != 1 or {"t", "b"} <= letters:
        raise ValueError(f"mode {mode!r}: exactly one of r, w, x, a; not both b and t")
    flags = os.O_RDWR if "+" in letters else os.O_RDONLY if "r" in letters else os.O_WRONLY
    if "w" in letters:
        flags |= os.O_CREAT | os.O_TRUNC
    elif "x" in letters:
        flags |= os.O_CREAT | os.O_EXCL
    elif "a" in letters:
        flags |= os.O_CREAT | os.O_APPEND
    return flags | os.O_CLOEXEC, "b" not in letters


@retries_stale
def open_node(client: Client, path: Path, flags: int, mode: int) -> OpenFile:
    """open(2)."""
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        return _tmpfile(client, path, flags, mode)
    if not flags & os.O_CREAT:
        node = walk(client, path, not flags & os.O_NOFOLLOW)
        return _open(client, node, flags, path)
    last = walk_parent(client, path)
    links = [0]
    while True:
        if not last.name or last.must_be_dir:
            raise fail(errno.EISDIR, path)
        look_up = client.lookup_sure if flags & os.O_EXCL else client.lookup
        node_found = look_up(last.parent, last.name)
        if node_found is None:
            try:
                return _create(client, last, flags, mode, path)
            except FileExistsError:
                # Somebody made it meanwhile: that is the file to open, unless we had to be first.
                if flags & os.O_EXCL:
                    raise
                node_found = client.lookup(last.parent, last.name, fresh=True)
                if node_found is None:
                    raise
        if flags & os.O_EXCL:
            raise fail(errno.EEXIST, path)
        if node_found.is_symlink and not flags & os.O_NOFOLLOW:
            last, _ = follow_link(client, path, last.stack, node_found, links)
            continue
        if node_found.is_dir:
            raise fail(errno.EISDIR, path)
        return _open(client, node_found, flags, path)


def _wire_flags(client: Client, flags: int) -> int:
    """What OPEN carries: no O_CREAT, O_EXCL, O_NOCTTY; O_TRUNC only where the server truncates by itself."""
    sent = flags & ~_ONLY_AT_OPEN | client.large_file
    if client.connection.has(f.FUSE_ATOMIC_O_TRUNC):
        sent |= flags & os.O_TRUNC
    return sent


def _kill_suidgid(client: Client, flags: int) -> int:
    kills = flags & os.O_TRUNC and client.creds.uid != 0 and client.connection.has(f.FUSE_HANDLE_KILLPRIV_V2)
    return 1 if kills else 0


def _open(client: Client, node: Node, flags: int, path: Path) -> OpenFile:
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if node.is_symlink:
        raise fail(errno.ELOOP, path)
    if node.is_dir:
        if writes:
            raise fail(errno.EISDIR, path)
        return _open_directory(client, node, flags, path)
    if flags & os.O_DIRECTORY:
        raise fail(errno.ENOTDIR, path)
    if not stat_bits.S_ISREG(node.mode):
        raise fail(errno.ENXIO, path)  # fifos, sockets and devices live in a kernel, not on this wire
    sent = _wire_flags(client, flags)
    kept = flags & ~_ONLY_AT_OPEN | client.large_file
    truncates = flags & os.O_TRUNC and writes
    reply = client.exchange.call(Opcode.OPEN, node.nodeid, (sent, _kill_suidgid(client, flags)), creds=client.creds)
    if reply.error == errno.ENOSYS and client.exchange.session.without(Opcode.OPEN) is not None:
        file = OpenFile(client, node, 0, f.FOPEN_KEEP_CACHE, kept, path)
        atomic = False
    elif reply.error:
        raise fail(reply.error, path)
    else:
        file = OpenFile(client, node, reply.values[0], reply.values[1], kept, path)
        atomic = client.connection.has(f.FUSE_ATOMIC_O_TRUNC)
    if truncates:
        client.cache.invalidate_attr(node)
        if not atomic:
            try:
                client.node_truncate(node, 0, path)
            except BaseException:
                file.close()
                raise
    return file


def _open_directory(client: Client, node: Node, flags: int, path: Path) -> OpenFile:
    kept = flags & ~_ONLY_AT_OPEN | client.large_file
    reply = client.exchange.call(Opcode.OPENDIR, node.nodeid, (kept, 0), creds=client.creds)
    if reply.error == errno.ENOSYS and client.exchange.session.without(Opcode.OPENDIR) is not None:
        return OpenFile(client, node, 0, 0, kept, path)
    if reply.error:
        raise fail(reply.error, path)
    return OpenFile(client, node, reply.values[0], reply.values[1], kept, path)


def _create(client: Client, last: Last, flags: int, mode: int, path: Path) -> OpenFile:
    mode = client.masked(stat_bits.S_IFREG | mode & 0o7777)
    kept = flags & ~_ONLY_AT_OPEN | client.large_file
    sent = flags & ~(os.O_NOCTTY | os.O_CLOEXEC) | client.large_file
    sample = client.cache.version
    args = (sent, mode, client.creds.umask, _kill_suidgid(client, flags))
    extensions = client.create_extensions(last.parent)
    reply = client.exchange.call(
        Opcode.CREATE, last.parent.nodeid, args, (last.name,), b"", client.creds, extensions
    )
    if reply.error == errno.ENOSYS:
        client.mknod_at(last, mode, path)
        node = client.lookup(last.parent, last.name)
        if node is None:
            raise fail(errno.ENOENT, path)
        return _open(client, node, flags & ~os.O_TRUNC, path)
    if reply.error:
        if reply.error == errno.EEXIST:
            client.cache.drop(last.parent, last.name)
        raise fail(reply.error, path)
    return _created(client, last, last.name, reply, sample, kept, path)


def _created(
    client: Client, last: Last, name: bytes | None, reply: Any, sample: int, flags: int, path: Path
) -> OpenFile:
    fh, open_flags, _ = reply.values[ENTRY_WIDTH:]
    try:
        node = client.made(last.parent, name, reply, sample, stat_bits.S_IFREG)
    except BaseException:
        client.exchange.orphans.append((Opcode.RELEASE, reply.values[0], fh, flags))
        raise
    return OpenFile(client, node, fh, open_flags, flags, path)


def _tmpfile(client: Client, path: Path, flags: int, mode: int) -> OpenFile:
    node = walk(client, path)
    if not node.is_dir:
        raise fail(errno.ENOTDIR, path)
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise fail(errno.EINVAL, path)
    sent = flags & ~(os.O_NOCTTY | os.O_CLOEXEC) | client.large_file
    sample = client.cache.version
    args = (sent, client.masked(stat_bits.S_IFREG | mode & 0o7777), client.creds.umask, 0)
    last = Last([node], b"", False, "")
    reply = client.ask(Opcode.TMPFILE, node, args, (b"",), extensions=client.create_extensions(node), path=path)
    kept = flags & ~(_ONLY_AT_OPEN | os.O_TMPFILE) | client.large_file
    return _created(client, last, None, reply, sample, kept, path)


class RawFile(io.RawIOBase):
    """An open file with a position. Everything io.FileIO has, and what a descriptor can do beyond (locks, fallocate,
    copies, ioctl) as methods. May be used by several threads."""

    def __init__(self, file: OpenFile) -> None:
        super().__init__()
        self.file = file
        self.name = file.path
        self.mode = "rb+" if file.readable and file.writable else "rb" if file.readable else "wb"
        self._position = 0
        self._lock = threading.Lock()

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def readable(self) -> bool:
        """Opened for reading?"""
        self._check()
        return self.file.readable

    def writable(self) -> bool:
        """Opened for writing?"""
        self._check()
        return self.file.writable

    def seekable(self) -> bool:
        """False where the server says the file has no positions (FOPEN_NONSEEKABLE)."""
        self._check()
        return not self.file.open_flags & (f.FOPEN_NONSEEKABLE | f.FOPEN_STREAM)

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`; fewer bytes than fit only at the end."""
        self._check()
        if not self.file.readable:
            raise io.UnsupportedOperation("not readable")
        view = memoryview(buffer).cast("B")
        with self._lock:
            data = self.file.pread(len(view), self._position)
            view[: len(data)] = data
            self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Everything from the position on."""
        self._check()
        if not self.file.readable:
            raise io.UnsupportedOperation("not readable")
        parts = []
        with self._lock:
            while data := self.file.pread(self.file.client.max_read, self._position):
                parts.append(data)
                self._position += len(data)
                if len(data) < self.file.client.max_read:
                    break
        return b"".join(parts)

    def write(self, data: Any) -> int:
        """Write at the position, or at the end with O_APPEND."""
        self._check()
        if not self.file.writable:
            raise io.UnsupportedOperation("not writable")
        with self._lock:
            if self.file.flags & os.O_APPEND:
                count, offset = self.file.append(data)
                self._position = offset + count
            else:
                count = self.file.pwrite(data, self._position)
                self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As os.lseek(), SEEK_DATA and SEEK_HOLE included."""
        self._check()
        if not self.seekable():
            raise fail(errno.ESPIPE, self.name)
        with self._lock:
            if whence == os.SEEK_CUR:
                offset += self._position
            elif whence == os.SEEK_END:
                offset += self.file.size()
            elif whence in (SEEK_DATA, SEEK_HOLE):
                offset = self.file.seek_data(offset, whence)
            elif whence != os.SEEK_SET:
                raise fail(errno.EINVAL, self.name)
            if not 0 <= offset <= MAX_OFFSET:
                raise fail(errno.EINVAL, self.name)
            self._position = offset
            return offset

    def tell(self) -> int:
        """The position."""
        self._check()
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """As os.ftruncate(), by default at the position."""
        self._check()
        if not self.file.writable:
            raise io.UnsupportedOperation("truncate")
        size = self._position if size is None else size
        self.file.ftruncate(size)
        return size

    def fsync(self, datasync: bool = False) -> None:
        """As os.fsync()."""
        self._check()
        self.file.fsync(datasync)

    def stat(self) -> os.stat_result:
        """As os.fstat()."""
        self._check()
        return self.file.fstat()

    def lockf(
        self, cmd: int, length: int = 0, start: int = 0, whence: int = os.SEEK_SET, *, timeout_s: float | None = None
    ) -> None:
        """As fcntl.lockf(): LOCK_SH, LOCK_EX, with LOCK_NB not to wait, or LOCK_UN, of `length` bytes (0: to the end).

        A wait that takes longer than `timeout_s` is given up with TimeoutError.
        """
        self._check()
        if whence == os.SEEK_CUR:
            start += self._position
        elif whence == os.SEEK_END:
            start += self.file.size()
        end = start + length - 1 if length else MAX_OFFSET
        self.file.lock(_lock_kind(cmd), start, end, wait=not cmd & LOCK_NB, timeout_s=timeout_s)

    def flock(self, operation: int, *, timeout_s: float | None = None) -> None:
        """As fcntl.flock(); a wait that takes longer than `timeout_s` is given up with TimeoutError."""
        self._check()
        self.file.flock(_lock_kind(operation), wait=not operation & LOCK_NB, timeout_s=timeout_s)

    def getlk(self, cmd: int, length: int = 0, start: int = 0) -> Lock | None:
        """The lock in the way of lockf() with the same arguments, or None."""
        self._check()
        return self.file.test_lock(_lock_kind(cmd), start, start + length - 1 if length else MAX_OFFSET)

    def close(self) -> None:
        """FLUSH and RELEASE."""
        if self.closed:
            return
        try:
            self.file.close()
        finally:
            super().close()

    def __del__(self) -> None:
        file = getattr(self, "file", None)
        if file is not None and not self.closed:
            warnings.warn(f"unclosed file {self!r}", ResourceWarning, stacklevel=2, source=self)
            # A finalizer may run in the thread that receives answers, and must not wait for one.
            file.abandon()
            super().close()

    def __repr__(self) -> str:
        return f"<transfuse.client.RawFile name={self.name!r} mode={self.mode!r}>"


def _lock_kind(cmd: int) -> Literal[0, 1, 2]:
    match cmd & ~LOCK_NB:
        case 1:
            return 0
        case 2:
            return 1
        case 8:
            return 2
    raise fail(errno.EINVAL)

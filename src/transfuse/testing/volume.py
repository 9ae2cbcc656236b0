"""One interface to a file tree, whoever keeps it: what the conformance cases and the random model test are written in.

`OsVolume` is a directory of this machine, such as a mount, reached with os.*; `DirectVolume` (direct.py) calls a
Filesystem's methods with nothing between; `ClientVolume` (client_volume.py) goes through a client. All raise OSError
with the errno of the failed call. Paths are str, begin with "/", and name what is inside the volume; a last component
that is a symbolic link is never followed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

__all__ = ["LOCK_EXCLUSIVE", "LOCK_NONE", "LOCK_SHARED", "OpenFile", "OsVolume", "Space", "Stat", "Volume"]

LOCK_SHARED, LOCK_EXCLUSIVE, LOCK_NONE = 0, 1, 2
"""Kinds of locks, numbered as in fuse_file_lock.type."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.linkat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


class Stat(NamedTuple):
    """What lstat(2) shows; times in nanoseconds."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Space(NamedTuple):
    """What statvfs(2) shows; blocks of `frsize` bytes."""

    blocks: int
    bfree: int
    files: int
    ffree: int
    frsize: int
    namelen: int


class OpenFile(ABC):
    """An open regular file. A context manager; closing twice is harmless."""

    @abstractmethod
    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer mean the end of the file."""

    @abstractmethod
    def pwrite(self, data: bytes, offset: int) -> int:
        """How many bytes were written. At the end, wherever `offset` is, with O_APPEND."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """ftruncate(2)."""

    @abstractmethod
    def stat(self) -> Stat:
        """fstat(2)."""

    @abstractmethod
    def fsync(self, datasync: bool = False) -> None:
        """fsync(2) or fdatasync(2)."""

    @abstractmethod
    def allocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""

    @abstractmethod
    def seek(self, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""

    @abstractmethod
    def copy_to(self, other: OpenFile, offset: int, other_offset: int, length: int) -> int:
        """copy_file_range(2): how many bytes were copied. `other` belongs to the same volume."""

    @abstractmethod
    def lock(self, kind: int, start: int, length: int, wait: bool = False) -> None:
        """Take or drop a lock of this open file (fcntl(2), F_OFD_SETLK); a length of 0 is to the end."""

    @abstractmethod
    def lock_in_the_way(self, kind: int, start: int, length: int) -> tuple[int, int, int] | None:
        """F_OFD_GETLK: (kind, start, length) of a lock that keeps this open file from the asked one."""

    @abstractmethod
    def flock(self, kind: int, wait: bool = False) -> None:
        """flock(2)."""

    @abstractmethod
    def ioctl(self, cmd: int, data: bytes) -> bytes:
        """ioctl(2) on a buffer."""

    @abstractmethod
    def close(self) -> None:
        """close(2)."""

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Volume(ABC):
    """A file tree."""

    lacks: frozenset[str] = frozenset()
    """Names of Filesystem operations that can't be reached through this volume."""

    @abstractmethod
    def stat(self, path: str) -> Stat:
        """lstat(2)."""

    @abstractmethod
    def scandir(self, path: str) -> list[tuple[str, int, int]]:
        """(name, inode number, DT_* or 0) of every name but "." and ".."."""

    @abstractmethod
    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """mkdir(2), with umask 0 as everywhere here."""

    @abstractmethod
    def rmdir(self, path: str) -> None:
        """rmdir(2)."""

    @abstractmethod
    def unlink(self, path: str) -> None:
        """unlink(2)."""

    @abstractmethod
    def rename(self, path: str, newpath: str, flags: int = 0) -> None:
        """renameat2(2)."""

    @abstractmethod
    def link(self, path: str, newpath: str) -> None:
        """link(2)."""

    @abstractmethod
    def symlink(self, target: str, path: str) -> None:
        """symlink(2)."""

    @abstractmethod
    def readlink(self, path: str) -> str:
        """readlink(2)."""

    @abstractmethod
    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        """mknod(2)."""

    @abstractmethod
    def open(self, path: str, flags: int, mode: int = 0o644) -> OpenFile:
        """open(2), with O_NOFOLLOW."""

    @abstractmethod
    def tmpfile(self, path: str, flags: int = os.O_RDWR, mode: int = 0o644) -> OpenFile:
        """open(2) with O_TMPFILE in the directory `path`."""

    @abstractmethod
    def link_open(self, file: OpenFile, newpath: str) -> None:
        """Give an open file a name, as linkat(2) with AT_EMPTY_PATH does."""

    @abstractmethod
    def truncate(self, path: str, size: int) -> None:
        """truncate(2)."""

    @abstractmethod
    def chmod(self, path: str, mode: int) -> None:
        """chmod(2)."""

    @abstractmethod
    def chown(self, path: str, uid: int, gid: int) -> None:
        """lchown(2); -1 leaves an id alone."""

    @abstractmethod
    def utime(self, path: str, times_ns: tuple[int, int] | None) -> None:
        """utimensat(2): (atime, mtime), or now."""

    @abstractmethod
    def access(self, path: str, mask: int) -> bool:
        """access(2) for the caller's effective ids."""

    @abstractmethod
    def getxattr(self, path: str, name: str) -> bytes:
        """lgetxattr(2)."""

    @abstractmethod
    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        """lsetxattr(2)."""

    @abstractmethod
    def listxattr(self, path: str) -> list[str]:
        """llistxattr(2)."""

    @abstractmethod
    def removexattr(self, path: str, name: str) -> None:
        """lremovexattr(2)."""

    @abstractmethod
    def statfs(self, path: str = "/") -> Space:
        """statvfs(2)."""

    @abstractmethod
    def identity(self, uid: int, gid: int, groups: Sequence[int] = ()) -> AbstractContextManager[None]:
        """Be someone else while the context lasts."""

    # -- made of the above -------------------------------------------------------------------------------------------

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, in the order they come."""
        return [name for name, _, _ in self.scandir(path)]

    def exists(self, path: str) -> bool:
        """Is there something of that name?"""
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def write_bytes(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Make or empty a file and write all of `data`."""
        with self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as file:
            done = 0
            while done < len(data):
                done += file.pwrite(data[done:], done)

    def read_bytes(self, path: str) -> bytes:
        """All of a file."""
        with self.open(path, os.O_RDONLY) as file:
            parts = []
            at = 0
            while part := file.pread(1 << 17, at):
                parts.append(part)
                at += len(part)
            return b"".join(parts)


def _stat(st: os.stat_result) -> Stat:
    return Stat(
        st.st_ino,
        st.st_mode,
        st.st_nlink,
        st.st_uid,
        st.st_gid,
        st.st_rdev,
        st.st_size,
        st.st_blocks,
        st.st_atime_ns,
        st.st_mtime_ns,
        st.st_ctime_ns,
    )


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class OsFile(OpenFile):
    """A file descriptor."""

    _FLOCK = struct.Struct("hhqqi4x")
    """struct flock of 64-bit Linux: type, whence, start, len, pid."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def pread(self, size: int, offset: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def pwrite(self, data: bytes, offset: int) -> int:
        return os.pwrite(self.fd, data, offset)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def stat(self) -> Stat:
        return _stat(os.fstat(self.fd))

    def fsync(self, datasync: bool = False) -> None:
        (os.fdatasync if datasync else os.fsync)(self.fd)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        _check(_libc.fallocate(self.fd, mode, offset, length))

    def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self.fd, offset, whence)

    def copy_to(self, other: OpenFile, offset: int, other_offset: int, length: int) -> int:
        assert isinstance(other, OsFile)
        return os.copy_file_range(self.fd, other.fd, length, offset, other_offset)

    def lock(self, kind: int, start: int, length: int, wait: bool = False) -> None:
        kinds = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        fcntl.fcntl(self.fd, command, self._FLOCK.pack(kinds[kind], 0, start, length, 0))

    def lock_in_the_way(self, kind: int, start: int, length: int) -> tuple[int, int, int] | None:
        kinds = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
        asked = self._FLOCK.pack(kinds[kind], 0, start, length, 0)
        found, _, start, length, _ = self._FLOCK.unpack(fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, asked))
        return None if found == fcntl.F_UNLCK else (kinds.index(found), start, length)

    def flock(self, kind: int, wait: bool = False) -> None:
        command = (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)[kind]
        fcntl.flock(self.fd, command if wait else command | fcntl.LOCK_NB)

    def ioctl(self, cmd: int, data: bytes) -> bytes:
        return fcntl.ioctl(self.fd, cmd, data)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class OsVolume(Volume):
    """A directory of this machine as a volume. The process's umask is taken to be 0 (see `testing.fixtures`)."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def at(self, path: str) -> str:
        """Where `path` is on this machine."""
        return self.root + path

    def stat(self, path: str) -> Stat:
        return _stat(os.lstat(self.at(path)))

    def scandir(self, path: str) -> list[tuple[str, int, int]]:
        with os.scandir(self.at(path)) as entries:
            return [(e.name, e.inode(), self._kind(e)) for e in entries]

    @staticmethod
    def _kind(entry: os.DirEntry[str]) -> int:
        if entry.is_symlink():
            return 10
        if entry.is_dir(follow_symlinks=False):
            return 4
        return 8 if entry.is_file(follow_symlinks=False) else 0

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def rename(self, path: str, newpath: str, flags: int = 0) -> None:
        _check(_libc.renameat2(-100, os.fsencode(self.at(path)), -100, os.fsencode(self.at(newpath)), flags))

    def link(self, path: str, newpath: str) -> None:
        os.link(self.at(path), self.at(newpath), follow_symlinks=False)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self.at(path))

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        os.mknod(self.at(path), mode, rdev)

    def open(self, path: str, flags: int, mode: int = 0o644) -> OpenFile:
        return OsFile(os.open(self.at(path), flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode))

    def tmpfile(self, path: str, flags: int = os.O_RDWR, mode: int = 0o644) -> OpenFile:
        return OsFile(os.open(self.at(path), flags | os.O_TMPFILE | os.O_CLOEXEC, mode))

    def link_open(self, file: OpenFile, newpath: str) -> None:
        assert isinstance(file, OsFile)
        # AT_SYMLINK_FOLLOW, which os.link() does not pass on
        _check(_libc.linkat(-100, b"/proc/self/fd/%d" % file.fd, -100, os.fsencode(self.at(newpath)), 0x400))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(self.at(path), uid, gid)

    def utime(self, path: str, times_ns: tuple[int, int] | None) -> None:
        if times_ns is None:
            os.utime(self.at(path), follow_symlinks=False)
        else:
            os.utime(self.at(path), ns=times_ns, follow_symlinks=False)

    def access(self, path: str, mask: int) -> bool:
        return os.access(self.at(path), mask, effective_ids=True)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self.at(path), name, follow_symlinks=False)

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        return os.listxattr(self.at(path), follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=False)

    def statfs(self, path: str = "/") -> Space:
        st = os.statvfs(self.at(path) or "/")
        return Space(st.f_blocks, st.f_bfree, st.f_files, st.f_ffree, st.f_frsize, st.f_namemax)

    @contextmanager
    def identity(self, uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
        """By the filesystem ids of this thread, so that a server in this process keeps its own; needs root."""
        before = os.getgroups()
        os.setgroups(groups)
        old_gid, old_uid = _libc.setfsgid(gid), _libc.setfsuid(uid)
        try:
            yield
        finally:
            _libc.setfsuid(old_uid)
            _libc.setfsgid(old_gid)
            os.setgroups(before)

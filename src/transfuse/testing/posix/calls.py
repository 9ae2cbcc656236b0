"""System calls that the os module does not offer, or offers without the arguments the cases need.

Theory: a POSIX case must reach the kernel with exactly the arguments it names, so every function here is one call of
the C library with the same parameters in the same order, `dirfd` excepted, which defaults to the working directory.
Paths are str (surrogateescape) or bytes. A failing call raises OSError with the errno of the kernel. Nothing here
knows about cases.

The C library must be one that exports these names: glibc 2.30 or later does. A missing name raises OSError(ENOSYS).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_COLLAPSE_RANGE = 0x08
FALLOC_ZERO_RANGE = 0x10
FALLOC_INSERT_RANGE = 0x20

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
AT_STATX_FORCE_SYNC = 0x2000
AT_STATX_DONT_SYNC = 0x4000

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
FS_NODUMP_FL = 0x40

PR_SET_DUMPABLE = 4

F_OFD_GETLK = 36
F_OFD_SETLK = 37
F_OFD_SETLKW = 38

Path = str | bytes

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64)]


def _function(name: str, restype: type = ctypes.c_int) -> Callable[..., int]:
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(errno.ENOSYS, f"the C library has no {name}") from None
    function.restype = restype
    found: Callable[..., int] = function
    return found


def _checked(result: int, path: Path | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def renameat2(old: Path, new: Path, flags: int, old_dirfd: int = AT_FDCWD, new_dirfd: int = AT_FDCWD) -> None:
    """renameat2(2) with RENAME_* flags."""
    call = _function("renameat2")
    _checked(call(old_dirfd, os.fsencode(old), new_dirfd, os.fsencode(new), ctypes.c_uint(flags)), old)


def linkat(old: Path, new: Path, flags: int = 0, old_dirfd: int = AT_FDCWD, new_dirfd: int = AT_FDCWD) -> None:
    """linkat(2); os.link can't say AT_EMPTY_PATH, and says AT_SYMLINK_FOLLOW only with a dirfd."""
    _checked(_function("linkat")(old_dirfd, os.fsencode(old), new_dirfd, os.fsencode(new), flags), old)


def link_descriptor(fd: int, new: Path) -> None:
    """Give the open file a name by way of /proc, which needs no capability (open(2), O_TMPFILE)."""
    linkat(f"/proc/self/fd/{fd}", new, AT_SYMLINK_FOLLOW)


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2); each time is (seconds, nanoseconds), where nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_function("utimensat")(AT_FDCWD, os.fsencode(path), times, flags), path)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with FALLOC_* modes."""
    _checked(_function("fallocate")(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def copy_file_range(
    source: int, source_offset: int | None, target: int, target_offset: int | None, count: int, flags: int = 0
) -> int:
    """copy_file_range(2); an offset of None uses and moves the descriptor's own position."""
    arguments = [
        None if offset is None else ctypes.byref(ctypes.c_int64(offset)) for offset in (source_offset, target_offset)
    ]
    call = _function("copy_file_range", ctypes.c_ssize_t)
    return _checked(call(source, arguments[0], target, arguments[1], ctypes.c_size_t(count), ctypes.c_uint(flags)))


@dataclass(slots=True)
class Statx:
    """The fields of struct statx that the cases look at. Times are nanoseconds since the epoch."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    btime_ns: int
    ctime_ns: int
    mtime_ns: int


# stx_mask … stx_attributes_mask, then four 16-byte times (linux/stat.h); the times follow at byte 64.
_STATX_HEAD = struct.Struct("=IIQIIIHHQQQQ")
_STATX_TIME = struct.Struct("=qIi")


def statx(path: Path, flags: int = 0, mask: int = STATX_BASIC_STATS | STATX_BTIME, dirfd: int = AT_FDCWD) -> Statx:
    """statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    _checked(_function("statx")(dirfd, os.fsencode(path), flags, ctypes.c_uint(mask), buffer), path)
    head = _STATX_HEAD.unpack_from(buffer.raw, 0)
    got, blksize, attributes, nlink, uid, gid, mode, _spare, ino, size, blocks, attributes_mask = head
    _atime, btime, ctime, mtime = (
        seconds * 10**9 + nanoseconds
        for seconds, nanoseconds, _pad in (_STATX_TIME.unpack_from(buffer.raw, 64 + 16 * i) for i in range(4))
    )
    return Statx(
        got, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask, btime, ctime, mtime
    )


@dataclass(slots=True)
class DirectoryEntry:
    """One struct linux_dirent64. `offset` is the position after this entry, good for lseek on the descriptor."""

    ino: int
    offset: int
    type: int
    name: bytes


def getdents(fd: int, size_bytes: int = 32768) -> list[DirectoryEntry]:
    """One getdents64(2): the next entries of the directory, '.' and '..' included; empty at the end."""
    buffer = ctypes.create_string_buffer(size_bytes)
    filled = _checked(_function("getdents64", ctypes.c_ssize_t)(fd, buffer, ctypes.c_size_t(size_bytes)))
    data = buffer.raw[:filled]
    entries: list[DirectoryEntry] = []
    at = 0
    while at < filled:
        ino, offset, length, kind = struct.unpack_from("=QqHB", data, at)
        name = data[at + 19 : at + length].split(b"\0", 1)[0]
        entries.append(DirectoryEntry(ino, offset, kind, name))
        at += length
    return entries


def name_to_handle(path: Path) -> bytes:
    """name_to_handle_at(2): the whole struct file_handle (8 bytes of size and type, then the handle)."""
    buffer = ctypes.create_string_buffer(8 + 128)
    struct.pack_into("=I", buffer, 0, 128)
    mount_id = ctypes.c_int()
    call = _function("name_to_handle_at")
    _checked(call(AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount_id), 0), path)
    (length,) = struct.unpack_from("=I", buffer.raw, 0)
    return buffer.raw[: 8 + length]


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2); needs CAP_DAC_READ_SEARCH."""
    return _checked(_function("open_by_handle_at")(mount_fd, ctypes.create_string_buffer(handle, len(handle)), flags))


def get_inode_flags(fd: int) -> int:
    """FS_IOC_GETFLAGS: the FS_*_FL bits (chattr). The kernel fills 4 bytes, whatever the number says."""
    flags = bytearray(8)
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
    (value,) = struct.unpack_from("=I", flags)
    return int(value)


def set_inode_flags(fd: int, flags: int) -> None:
    """FS_IOC_SETFLAGS."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=Q", flags))


# struct flock of 64-bit systems: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqi4x")


@dataclass(slots=True)
class RecordLock:
    """struct flock: type F_RDLCK, F_WRLCK or F_UNLCK; a length of 0 reaches to the end of all files."""

    type: int
    start: int
    length: int
    pid: int


def flock_struct(kind: int, start: int, length: int, whence: int = os.SEEK_SET) -> bytes:
    """struct flock with l_pid 0, as OFD locks demand."""
    return _FLOCK.pack(kind, whence, start, length, 0)


def get_lock(fd: int, kind: int, start: int, length: int, command: int = fcntl.F_GETLK) -> RecordLock:
    """F_GETLK: the lock that would be in the way, or type F_UNLCK."""
    raw = fcntl.fcntl(fd, command, flock_struct(kind, start, length))
    found, _whence, first, count, pid = _FLOCK.unpack(raw)
    return RecordLock(found, first, count, pid)


def set_lock(fd: int, kind: int, start: int, length: int, command: int = fcntl.F_SETLK) -> None:
    """F_SETLK, or with another command F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW."""
    fcntl.fcntl(fd, command, flock_struct(kind, start, length))


def allow_own_proc() -> None:
    """Make /proc/self/fd usable again after a change of user id (prctl PR_SET_DUMPABLE)."""
    _checked(_function("prctl")(PR_SET_DUMPABLE, 1, 0, 0, 0))


def access(path: Path, mode: int) -> None:
    """access(2), as a call that raises; os.access hides the errno."""
    _checked(_function("access")(os.fsencode(path), mode), path)

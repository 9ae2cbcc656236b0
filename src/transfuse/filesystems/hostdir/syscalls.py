"""System calls that the os module does not have, and the one that every lookup makes.

The functions take ints and bytes and raise OSError. Arguments go to libc without declared types on purpose: ctypes then
converts an int or bytes directly, which makes statx() 1.1 µs instead of 1.6 and as cheap as os.stat(). So no value
beyond 32 bits may be passed that way; those calls declare their types.

Buffers belong to the calling thread, because the interpreter lock is not held during a call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Callable

from transfuse.fs.values import Attr, DirEntry

try:
    from transfuse._native.probe import Probe as _NativeProbe
except ImportError:
    _NativeProbe = None  # type: ignore[assignment, misc]  # the plain form: ctypes and struct below

__all__ = [
    "KIND_SHIFT",
    "PROC_FD",
    "Key",
    "Probe",
    "chmod_fd",
    "chown_fd",
    "fallocate",
    "link_fd",
    "list_directory",
    "make_plain_probe",
    "make_probe",
    "open_handle",
    "open_view",
    "proc_fd",
    "rename",
    "reopen",
    "set_fs_gid",
    "set_fs_uid",
    "set_thread_groups",
    "set_times",
    "sync_filesystem",
    "take_handle",
    "timespec",
    "unshare_fs",
]

Key = int | tuple[int, int]
"""What tells one inode from every other that ever had its number: see `make_probe`."""
Probe = Callable[[int, bytes], "tuple[Attr, Key] | None"]

PROC_FD = b"/proc/self/fd/%d"

KIND_SHIFT = 64
"""In an identity, the file type (4 bits) stands above the inode number."""
BIRTH_SHIFT = 68

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
STATX_BTIME = 0x800
STATX_WANTED = 0xFFF  # STATX_BASIC_STATS | STATX_BTIME
CLONE_FS = 0x200
OPEN_TREE_CLONE = 1
AT_RECURSIVE = 0x8000
MOUNT_ATTR_NODEV = 4
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
SYS_OPEN_TREE, SYS_MOUNT_SETATTR, SYS_FCHMODAT2 = 428, 442, 452
"""One number each on every architecture; since Linux 5.2, 5.12 and 6.6."""
SYS_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "loongarch64": 159}.get(platform.machine())
"""The plain call changes the calling thread only; glibc's setgroups() changes all threads."""
HANDLE_ROOM = 128
"""MAX_HANDLE_SZ of <fcntl.h>."""
DENTS_ROOM = 1 << 15
"""Bytes of directory read at a time: some thousand entries, which also bounds what an open directory keeps."""
NS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)
_get_errno = ctypes.get_errno
_statx = _libc.statx
_name_to_handle_at = _libc.name_to_handle_at
_open_by_handle_at = _libc.open_by_handle_at
_getdents64 = _libc.getdents64
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_STATX = struct.Struct("=IIQIIIHxxQQQQqIiqIiqIiqIiIIII")
_DIRENT = struct.Struct("=QqHB")
_U32 = struct.Struct("=I")
_TIMES = struct.Struct("@qlql")
_MOUNT_ATTR = struct.Struct("=QQQQ")


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.statx = ctypes.create_string_buffer(256)
        self.handle = ctypes.create_string_buffer(8 + HANDLE_ROOM)
        self.mount_id = ctypes.create_string_buffer(8)
        self.dents = ctypes.create_string_buffer(DENTS_ROOM)


_buffers = _Buffers()


def _error() -> OSError:
    number = _get_errno()
    return OSError(number, os.strerror(number))


def make_probe(device: int) -> Probe:
    """A function probe(fd, name) that gives attributes and identity of `name` in directory `fd`, or of `fd` itself for
    b"". Symbolic links are not followed. None when there is no such name; OSError for anything else.

    The identity is (time of birth, type, inode number), as one int on `device` and with the device on others. The time
    of birth makes a file that got the number of a deleted one a different file; where a filesystem does not record it,
    such a file is taken for the old one until the peer has forgotten that, if it has the same type.
    """
    if _NativeProbe is not None:
        return _NativeProbe(os.major(device), os.minor(device))
    return make_plain_probe(device)


def make_plain_probe(device: int) -> Probe:
    """make_probe() where nothing is compiled, and what the compiled one is compared with."""
    major, minor = os.major(device), os.minor(device)
    buffers, call, unpack, new = _buffers, _statx, _STATX.unpack_from, Attr.__new__
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH
    enoent, makedev = errno.ENOENT, os.makedev

    def probe(fd: int, name: bytes) -> tuple[Attr, Key] | None:
        buffer = buffers.statx
        if call(fd, name, flags, STATX_WANTED, buffer):
            if _get_errno() == enoent:
                return None
            raise _error()
        (mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
         atime, atime_nsec, _, btime, btime_nsec, _, ctime, ctime_nsec, _, mtime, mtime_nsec, _,
         rdev_major, rdev_minor, dev_major, dev_minor) = unpack(buffer)  # fmt: skip
        attr = new(Attr)
        attr.mode = mode
        attr.size = size
        attr.nlink = nlink
        attr.uid = uid
        attr.gid = gid
        attr.atime_ns = atime * NS + atime_nsec
        attr.mtime_ns = mtime * NS + mtime_nsec
        attr.ctime_ns = ctime * NS + ctime_nsec
        attr.blocks = blocks
        attr.blksize = blksize
        attr.rdev = makedev(rdev_major, rdev_minor) if rdev_major or rdev_minor else 0
        attr.flags = 0
        attr.attributes = attributes
        attr.attributes_mask = attributes_mask
        attr.timeout_s = None
        if mask & STATX_BTIME:
            attr.btime_ns = born = btime * NS + btime_nsec
        else:
            attr.btime_ns = None
            born = 0
        key = born << BIRTH_SHIFT | (mode >> 12) << KIND_SHIFT | ino
        if dev_minor == minor and dev_major == major:
            attr.ino = ino
            return attr, key
        # Another filesystem is mounted inside: its numbers must not look like hard links of ours.
        dev = dev_major << 20 | dev_minor
        attr.ino = (ino ^ dev << 40) & 0xFFFF_FFFF_FFFF_FFFF
        return attr, (dev, key)

    return probe


def take_handle(fd: int, name: bytes) -> bytes | None:
    """The file handle of `name` in `fd` (b"": of `fd` itself), or None where the filesystem has none."""
    buffer = _buffers.handle
    _U32.pack_into(buffer, 0, HANDLE_ROOM)
    if _name_to_handle_at(fd, name, buffer, _buffers.mount_id, AT_EMPTY_PATH):
        return None
    return buffer.raw[: 8 + _U32.unpack_from(buffer)[0]]


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open what `handle` (from take_handle) names. ESTALE when it is gone; EPERM without CAP_DAC_READ_SEARCH."""
    fd = int(_open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC))
    if fd < 0:
        raise _error()
    return fd


def open_view(fd: int) -> int | None:
    """Directory `fd` once more, on mounts of our own below which no device can be opened; None where that is not to be
    had (needs CAP_SYS_ADMIN, Linux 5.12).

    It shows what is mounted in the directory now: what the host mounts or unmounts there later is not seen.
    """
    tree = _libc.syscall(SYS_OPEN_TREE, fd, b"", OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE)
    if tree < 0:
        return None
    try:
        attr = _MOUNT_ATTR.pack(MOUNT_ATTR_NODEV, 0, 0, 0)
        if _libc.syscall(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, attr, len(attr)):
            return None
        # The mounts stay for as long as something in them is open.
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    finally:
        os.close(tree)


class _ProcFd:
    """/proc/self/fd, held open: opening through it saves a microsecond of walking there every time.

    It shows the fds of the process that opened it, so a forked child needs its own.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.open()

    def open(self) -> None:
        try:
            self.fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # no /proc here: reopen() will say so if it is needed
            self.fd = -1

    def forked(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.open()


_proc = _ProcFd()
os.register_at_fork(after_in_child=_proc.forked)


def proc_fd() -> int:
    """An fd of this process's /proc/self/fd, -1 where that cannot be had. It stays open while the process lives."""
    return _proc.fd


def reopen(fd: int, flags: int) -> int:
    """Open once more what `fd`, possibly an O_PATH one, stands for. No name is looked up."""
    held = proc_fd()
    if held < 0:
        return os.open(PROC_FD % fd, flags | os.O_CLOEXEC)
    return os.open(b"%d" % fd, flags | os.O_CLOEXEC, dir_fd=held)


def rename(fd: int, name: bytes, newfd: int, newname: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(fd, name, newfd, newname, flags):
        raise _error()


def link_fd(fd: int, newfd: int, newname: bytes) -> None:
    """Name the file behind `fd`, possibly one without any name. Needs CAP_DAC_READ_SEARCH, else goes through /proc."""
    if _libc.linkat(fd, b"", newfd, newname, AT_EMPTY_PATH):
        if _get_errno() != errno.ENOENT:  # what an unprivileged caller gets
            raise _error()
        if _libc.linkat(AT_FDCWD, PROC_FD % fd, newfd, newname, AT_SYMLINK_FOLLOW):
            raise _error()


def chmod_fd(fd: int, mode: int) -> None:
    """fchmod(2) that works on O_PATH fds."""
    if _libc.syscall(SYS_FCHMODAT2, fd, b"", mode, AT_EMPTY_PATH):
        if _get_errno() != errno.ENOSYS:
            raise _error()
        os.chmod(PROC_FD % fd, mode)


def chown_fd(fd: int, uid: int, gid: int) -> None:
    """fchown(2) that works on O_PATH fds; -1 leaves an id alone."""
    if _libc.fchownat(fd, b"", uid, gid, AT_EMPTY_PATH):
        raise _error()


def set_times(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) on any fd, O_PATH included. Times are timespecs: see `timespec`."""
    packed = _TIMES.pack(*atime, *mtime)
    if _libc.utimensat(fd, b"", packed, AT_EMPTY_PATH):
        if _get_errno() != errno.EINVAL:  # before Linux 5.8
            raise _error()
        if _libc.utimensat(AT_FDCWD, PROC_FD % fd, packed, 0):
            raise _error()


def timespec(time_ns: int | None, now: bool) -> tuple[int, int]:
    """Nanoseconds since 1970 as (seconds, nanoseconds), with the special values for "now" and "leave alone" (None)."""
    if now:
        return 0, UTIME_NOW
    if time_ns is None:
        return 0, UTIME_OMIT
    return divmod(time_ns, NS)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with its modes."""
    while _fallocate(fd, mode, offset, length):
        if _get_errno() != errno.EINTR:
            raise _error()


def sync_filesystem(fd: int) -> None:
    """syncfs(2)."""
    if _libc.syncfs(fd):
        raise _error()


def set_fs_uid(uid: int) -> int:
    """Set the calling thread's filesystem uid and return the one before; silently does nothing when not permitted."""
    return int(_libc.setfsuid(uid)) & 0xFFFF_FFFF


def set_fs_gid(gid: int) -> int:
    """As set_fs_uid for the group."""
    return int(_libc.setfsgid(gid)) & 0xFFFF_FFFF


def set_thread_groups(groups: tuple[int, ...]) -> None:
    """Set the supplementary groups of the calling thread alone."""
    if SYS_SETGROUPS is None:
        raise OSError(errno.ENOSYS, f"setgroups of one thread is not known on {platform.machine()}")
    if _libc.syscall(SYS_SETGROUPS, len(groups), struct.pack(f"={len(groups)}I", *groups)):
        raise _error()


def unshare_fs() -> bool:
    """Give the calling thread a umask and working directory of its own. False where that is forbidden."""
    return not _libc.unshare(CLONE_FS)


def list_directory(fd: int) -> list[DirEntry]:
    """The next entries of the directory open at `fd`, with getdents64's offsets as cookies; empty at the end."""
    buffer = _buffers.dents
    count = _getdents64(fd, buffer, DENTS_ROOM)
    if count < 0:
        raise _error()
    raw = ctypes.string_at(buffer, count)
    entries: list[DirEntry] = []
    unpack, find, append = _DIRENT.unpack_from, raw.find, entries.append
    at = 0
    while at < count:
        ino, cookie, length, kind = unpack(raw, at)
        start = at + 19
        append(DirEntry(raw[start : find(b"\0", start)], ino, kind, cookie))
        at += length
    return entries

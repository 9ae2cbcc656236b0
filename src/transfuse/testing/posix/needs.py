"""What a case needs from the process, the mount and the filesystem, and how each need is found out.

Theory: filesystems differ where POSIX and Linux let them (ext4 has the ZERO_RANGE of fallocate, tmpfs has not; some
give every directory one link). A case never asks for the *name* of a filesystem: it states a need, and every need is
probed by trying the thing once. A need that isn't met turns the case into a skip with the reason found here, never
into silence; comparing the needs of a mount with those of the directory behind it (`lost`) shows what the mount lost.

This module must not use Env: the probe comes first.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable

from transfuse.testing.posix import calls

_PROBE_USER = (54321, 54331)
ACCESS_ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"


class Need(enum.Enum):
    """One thing a case can depend on. The value says what, for the reason of a skip."""

    ROOT = "the process is root with its capabilities"
    USERS = "other users can reach the filesystem"
    ORDINARY = "the process is an ordinary user"
    USER_XATTR = "user.* extended attributes"
    TRUSTED_XATTR = "trusted.* extended attributes"
    SECURITY_XATTR = "security.* extended attributes"
    ACL = "POSIX access control lists"
    SYMLINK = "symbolic links"
    HARD_LINK = "hard links"
    FIFO = "named pipes"
    SOCKET = "socket nodes"
    DEVICE = "device nodes can be made and opened"
    EXEC = "programs can be run (no noexec)"
    SUID = "set-user-id bits are honoured (no nosuid)"
    RENAME_NOREPLACE = "renameat2 RENAME_NOREPLACE"
    RENAME_EXCHANGE = "renameat2 RENAME_EXCHANGE"
    RENAME_WHITEOUT = "renameat2 RENAME_WHITEOUT"
    TMPFILE = "open O_TMPFILE"
    DIRECT = "open O_DIRECT"
    HANDLES = "name_to_handle_at and open_by_handle_at"
    FALLOCATE = "fallocate mode 0 and KEEP_SIZE"
    PUNCH_HOLE = "fallocate PUNCH_HOLE"
    ZERO_RANGE = "fallocate ZERO_RANGE"
    COLLAPSE_RANGE = "fallocate COLLAPSE_RANGE"
    INSERT_RANGE = "fallocate INSERT_RANGE"
    SPARSE = "unwritten parts of a file occupy no blocks"
    SEEK_HOLE = "lseek SEEK_HOLE finds real holes"
    COPY_FILE_RANGE = "copy_file_range"
    MMAP_SHARED = "shared writable mappings"
    LOCKS = "POSIX record locks"
    OFD_LOCKS = "open file description locks"
    FLOCK = "flock"
    ATIME = "reading updates atime (at least as relatime does)"
    NEGATIVE_TIMES = "times before 1970"
    NANOSECONDS = "times of one nanosecond"
    BTIME = "statx gives a birth time"
    INODE_FLAGS = "ioctl FS_IOC_GETFLAGS and SETFLAGS"
    DIRECTORY_NLINK = "directories count their sub-directories in st_nlink"
    LARGE_FILES = "files beyond 4 GiB"
    DEADLOCK = "record locks detect deadlocks"


def probe(root: str) -> dict[Need, str]:
    """The needs not met under this directory, each with the reason. A scratch directory is made there and removed."""
    missing: dict[Need, str] = {}
    scratch = tempfile.mkdtemp(prefix=".probe-", dir=root)
    try:
        for need, attempt in _PROBES.items():
            place = os.path.join(scratch, need.name)
            os.mkdir(place)
            try:
                attempt(place)
            except _NotMet as reason:
                missing[need] = str(reason)
            except OSError as error:
                missing[need] = f"{errno.errorcode.get(error.errno or 0, error.errno)} ({error.strerror})"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return missing


def lost(reference: Iterable[Need], mounted: Iterable[Need]) -> list[Need]:
    """Given what is missing in a reference directory and on a mount: the needs that only the mount fails to meet."""
    return sorted(set(mounted) - set(reference), key=lambda need: need.name)


def time_tick_s(root: str) -> float:
    """How long to wait for a time stamp to move: twice the granularity seen, at least 10 ms, at most 2.2 s."""
    fd, name = tempfile.mkstemp(prefix=".probe-", dir=root)
    try:
        os.write(fd, b"x")
        first = os.stat(name).st_mtime_ns
        start = time.monotonic()
        while os.stat(name).st_mtime_ns == first and time.monotonic() - start < 1.1:
            time.sleep(0.001)
            os.pwrite(fd, b"y", 0)
            os.fsync(fd)  # a write-back cache may keep its own, coarser time until then
        return min(2.2, max(0.010, 2 * (time.monotonic() - start)))
    finally:
        os.close(fd)
        os.unlink(name)


class _NotMet(Exception):
    pass


def _demand(condition: bool, reason: str) -> None:
    if not condition:
        raise _NotMet(reason)


def _file(place: str, data: bytes = b"", name: str = "f") -> str:
    path = os.path.join(place, name)
    with open(path, "wb") as file:
        file.write(data)
    return path


def _in_child(func: Callable[[], bool]) -> bool:
    """Whether func returns True in a forked child; it may change its credentials there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if func() else 1
        except OSError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _root(place: str) -> None:
    _demand(os.geteuid() == 0, f"uid is {os.geteuid()}")
    path = _file(place)
    os.chown(path, *_PROBE_USER)
    found = os.stat(path)
    _demand((found.st_uid, found.st_gid) == _PROBE_USER, f"chown gave {found.st_uid}:{found.st_gid}")


def _users(place: str) -> None:
    _demand(os.geteuid() == 0, "changing users needs root")

    def reach() -> bool:
        os.fchdir(directory)
        os.setgroups([])
        os.setresgid(_PROBE_USER[1], _PROBE_USER[1], _PROBE_USER[1])
        os.setresuid(_PROBE_USER[0], _PROBE_USER[0], _PROBE_USER[0])
        return stat.S_ISREG(os.stat("f").st_mode)

    _file(place)
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _demand(_in_child(reach), "another user can't stat a file (allow_other is missing?)")
    finally:
        os.close(directory)


def _ordinary(_place: str) -> None:
    _demand(os.geteuid() != 0, "the process is root")


def _xattr(name: str) -> Callable[[str], None]:
    def attempt(place: str) -> None:
        path = _file(place)
        os.setxattr(path, name, b"v")
        _demand(os.getxattr(path, name) == b"v", f"{name} was not kept")

    return attempt


def _acl(place: str) -> None:
    # version 2; user_obj rw, user 54321 r, group_obj r, mask r, other none
    path = _file(place)
    entries = ((1, 6, -1), (2, 4, _PROBE_USER[0]), (4, 4, -1), (0x10, 4, -1), (0x20, 0, -1))
    value = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, bits, who in entries
    )
    os.setxattr(path, ACCESS_ACL, value)
    _demand(os.getxattr(path, ACCESS_ACL) == value, "the list was not kept")


def _symlink(place: str) -> None:
    os.symlink("f", os.path.join(place, "l"))


def _hard_link(place: str) -> None:
    os.link(_file(place), os.path.join(place, "g"))


def _fifo(place: str) -> None:
    os.mkfifo(os.path.join(place, "p"))


def _socket(place: str) -> None:
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{directory}/s")  # the path itself may be too long for sun_path
    finally:
        os.close(directory)


def _device(place: str) -> None:
    path = os.path.join(place, "null")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.close(os.open(path, os.O_RDWR))


def _exec(place: str) -> None:
    path = _file(place, b"#!/bin/sh\nexit 0\n")
    os.chmod(path, 0o755)
    pid = os.posix_spawn(path, [path], {})
    _demand(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a script could not be run")


def _suid(place: str) -> None:
    _demand(not os.statvfs(place).f_flag & os.ST_NOSUID, "mounted nosuid")


def _rename(flags: int) -> Callable[[str], None]:
    def attempt(place: str) -> None:
        old = _file(place)
        new = os.path.join(place, "g")
        if flags == calls.RENAME_EXCHANGE:
            _file(place, name="g")
        calls.renameat2(old, new, flags)

    return attempt


def _tmpfile(place: str) -> None:
    os.close(os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600))


def _direct(place: str) -> None:
    path = _file(place, bytes(8192))
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as aligned:
            _demand(os.preadv(fd, [aligned], 0) == 4096, "a direct read came short")
    finally:
        os.close(fd)


def _handles(place: str) -> None:
    handle = calls.name_to_handle(_file(place))
    directory = os.open(place, os.O_RDONLY)
    try:
        os.close(calls.open_handle(directory, handle, os.O_RDONLY))
    finally:
        os.close(directory)


def _fallocate(*modes: int) -> Callable[[str], None]:
    def attempt(place: str) -> None:
        fd = os.open(_file(place, bytes(65536)), os.O_RDWR)
        try:
            for mode in modes:
                calls.fallocate(fd, mode, 4096 * 4, 4096 * 4)
        finally:
            os.close(fd)

    return attempt


def _hole(place: str) -> int:
    fd = os.open(_file(place), os.O_RDWR)
    os.pwrite(fd, b"x", 1 << 20)
    os.fsync(fd)  # the kernel's FUSE doesn't write back before it asks a server for SEEK_DATA
    return fd


def _sparse(place: str) -> None:
    fd = _hole(place)
    try:
        _demand(os.fstat(fd).st_blocks * 512 < 1 << 19, "a hole of 1 MiB occupies blocks")
    finally:
        os.close(fd)


def _seek_hole(place: str) -> None:
    fd = _hole(place)
    try:
        _demand(os.lseek(fd, 0, os.SEEK_HOLE) == 0, "the hole at 0 is reported as data")
        _demand(os.lseek(fd, 0, os.SEEK_DATA) > 0, "data are reported at 0")
    finally:
        os.close(fd)


def _copy_file_range(place: str) -> None:
    source = os.open(_file(place, b"abc"), os.O_RDONLY)
    target = os.open(_file(place, name="g"), os.O_WRONLY)
    try:
        _demand(calls.copy_file_range(source, 0, target, 0, 3) == 3, "nothing was copied")
    finally:
        os.close(source)
        os.close(target)


def _mmap_shared(place: str) -> None:
    fd = os.open(_file(place, bytes(4096)), os.O_RDWR)
    try:
        mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    finally:
        os.close(fd)


def _lock(command: int) -> Callable[[str], None]:
    def attempt(place: str) -> None:
        fd = os.open(_file(place), os.O_RDWR)
        try:
            fcntl.fcntl(fd, command, calls.flock_struct(fcntl.F_WRLCK, 0, 0))
        finally:
            os.close(fd)

    return attempt


def _flock(place: str) -> None:
    fd = os.open(_file(place), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def _atime(place: str) -> None:
    path = _file(place, b"data")
    os.utime(path, ns=(10**18, os.stat(path).st_mtime_ns))
    with open(path, "rb") as file:
        file.read()
    _demand(os.stat(path).st_atime_ns != 10**18, "reading left atime alone")


def _time(wanted_ns: int) -> Callable[[str], None]:
    def attempt(place: str) -> None:
        path = _file(place)
        os.utime(path, ns=(wanted_ns, wanted_ns))
        found = os.stat(path).st_mtime_ns
        _demand(found == wanted_ns, f"{wanted_ns} ns came back as {found} ns")

    return attempt


def _btime(place: str) -> None:
    _demand(bool(calls.statx(_file(place)).mask & calls.STATX_BTIME), "statx leaves STATX_BTIME out")


def _inode_flags(place: str) -> None:
    fd = os.open(_file(place), os.O_RDONLY)
    try:
        flags = calls.get_inode_flags(fd)
        calls.set_inode_flags(fd, flags | calls.FS_NODUMP_FL)
        _demand(bool(calls.get_inode_flags(fd) & calls.FS_NODUMP_FL), "the nodump flag was not kept")
    finally:
        os.close(fd)


def _directory_nlink(place: str) -> None:
    os.mkdir(os.path.join(place, "d"))
    found = os.stat(place).st_nlink
    _demand(found == 3, f"a directory with one sub-directory has {found} links")


def _large_files(place: str) -> None:
    os.truncate(_file(place), (1 << 32) + 1)


def _deadlock(place: str) -> None:
    """Two processes lock a byte each and then want the other's: one of them must get EDEADLK."""
    path = _file(place, b"ab")
    ours = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(ours, fcntl.LOCK_EX, 1, 0)
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                fd = os.open(path, os.O_RDWR)
                fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)
                os.write(tell, b"x")
                fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
            finally:
                os._exit(0)
        os.close(tell)
        os.read(told, 1)
        os.close(told)
        time.sleep(0.05)  # the child is to be waiting for us by now
        detected = _waiting_is_refused(ours)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        _demand(detected, "two processes waiting for each other are not told")
    finally:
        os.close(ours)


def _waiting_is_refused(fd: int) -> bool:
    def wake(_number: int, _frame: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, wake)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)
    except TimeoutError:
        return False
    except OSError as error:
        return error.errno == errno.EDEADLK
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return False


_PROBES: dict[Need, Callable[[str], None]] = {
    Need.ROOT: _root,
    Need.USERS: _users,
    Need.ORDINARY: _ordinary,
    Need.USER_XATTR: _xattr("user.probe"),
    Need.TRUSTED_XATTR: _xattr("trusted.probe"),
    Need.SECURITY_XATTR: _xattr("security.probe"),
    Need.ACL: _acl,
    Need.SYMLINK: _symlink,
    Need.HARD_LINK: _hard_link,
    Need.FIFO: _fifo,
    Need.SOCKET: _socket,
    Need.DEVICE: _device,
    Need.EXEC: _exec,
    Need.SUID: _suid,
    Need.RENAME_NOREPLACE: _rename(calls.RENAME_NOREPLACE),
    Need.RENAME_EXCHANGE: _rename(calls.RENAME_EXCHANGE),
    Need.RENAME_WHITEOUT: _rename(calls.RENAME_WHITEOUT),
    Need.TMPFILE: _tmpfile,
    Need.DIRECT: _direct,
    Need.HANDLES: _handles,
    Need.FALLOCATE: _fallocate(0, calls.FALLOC_KEEP_SIZE),
    Need.PUNCH_HOLE: _fallocate(calls.FALLOC_PUNCH_HOLE | calls.FALLOC_KEEP_SIZE),
    Need.ZERO_RANGE: _fallocate(calls.FALLOC_ZERO_RANGE),
    Need.COLLAPSE_RANGE: _fallocate(calls.FALLOC_COLLAPSE_RANGE),
    Need.INSERT_RANGE: _fallocate(calls.FALLOC_INSERT_RANGE),
    Need.SPARSE: _sparse,
    Need.SEEK_HOLE: _seek_hole,
    Need.COPY_FILE_RANGE: _copy_file_range,
    Need.MMAP_SHARED: _mmap_shared,
    Need.LOCKS: _lock(fcntl.F_SETLK),
    Need.OFD_LOCKS: _lock(calls.F_OFD_SETLK),
    Need.FLOCK: _flock,
    Need.ATIME: _atime,
    Need.NEGATIVE_TIMES: _time(-315_593_940 * 10**9),
    Need.NANOSECONDS: _time(1_600_000_000_000_000_001),
    Need.BTIME: _btime,
    Need.INODE_FLAGS: _inode_flags,
    Need.DIRECTORY_NLINK: _directory_nlink,
    Need.LARGE_FILES: _large_files,
    Need.DEADLOCK: _deadlock,
}

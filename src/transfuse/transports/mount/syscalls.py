"""System calls around mounting that the os module lacks, with the kernel's errno and the kernel's own words.

fsopen, fsconfig, fsmount, move_mount and fspick (Linux 5.2) are called by number, so that the C library's age does not
matter; where the kernel lacks them they raise ENOSYS. ctypes lets go of the interpreter's lock during a call: with
FUSE_DEV_IOC_SYNC_INIT, fsconfig(CREATE) and mount(2) wait for another thread of ours to answer INIT.

A filesystem context keeps a log. After a failed call `FsContext` reads it, so that "e fuse: Bad value for 'fd'" reaches
the user and not only EINVAL.
"""

from __future__ import annotations

import ctypes
import errno
import os
from types import TracebackType

from .errors import MountError

__all__ = [
    "AT_FDCWD", "FsContext", "MAX_FSCONFIG_STRING", "MNT_DETACH", "MNT_FORCE", "UMOUNT_NOFOLLOW",
    "may_mount", "mount", "move_mount", "umount2",
]  # fmt: skip

AT_FDCWD = -100
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
MAX_FSCONFIG_STRING = 255  # strndup_user(value, 256) in fs/fsopen.c

_FSOPEN_CLOEXEC = 1
_FSPICK_CLOEXEC = 1
_FSPICK_SYMLINK_NOFOLLOW = 2
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7
_FSMOUNT_CLOEXEC = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_LOG_MESSAGES = 16  # the kernel keeps 8 (struct fc_log)
_LOG_BYTES = 8192

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def syscall_offset(machine: str, pointer_bytes: int) -> int:
    """What is added to the numbers that all architectures share since 424 (arch/*/kernel/syscalls)."""
    if machine == "alpha":
        return 110
    if machine.startswith("mips"):
        # A 32-bit process on a mips64 kernel is o32 or n32; Debian's 32-bit ports are o32. n32 is not tested.
        return 5000 if pointer_bytes == 8 else 4000
    if machine == "x86_64" and pointer_bytes == 4:
        return 0  # i386 on a 64-bit kernel (x32 is not supported)
    return 0


_OFFSET = syscall_offset(os.uname().machine, ctypes.sizeof(ctypes.c_void_p))
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _FSPICK = (_OFFSET + n for n in (429, 430, 431, 432, 433))


def _failed() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def _syscall(number: int, *args: int | bytes | None) -> int:
    passed = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    result = int(_libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        raise _failed()
    return result


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None) -> None:
    """mount(2). Raises OSError."""
    if _libc.mount(source, target, fstype, flags, data) < 0:
        raise _failed()


def umount2(target: bytes, flags: int) -> None:
    """umount2(2): does not ask the filesystem's server about `target`, so it works on dead mounts. Raises OSError."""
    if _libc.umount2(target, flags) < 0:
        raise _failed()


def may_mount() -> bool:
    """Whether mount(2) would let this process try: CAP_SYS_ADMIN in the user namespace that owns the mount namespace.

    Asks by a mount without a type: path_mount() checks the privilege first and then answers EINVAL.
    """
    try:
        mount(None, b"/", None, 0, None)
    except OSError as e:
        return e.errno == errno.EINVAL
    return True


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Put the mount behind `mount_fd` (from FsContext.mount) on what the O_PATH descriptor `target_fd` names."""
    try:
        flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        _syscall(_MOVE_MOUNT, mount_fd, b"", target_fd, b"", flags)
    except OSError as e:
        raise MountError(e.errno or errno.EIO, "move_mount") from e


class FsContext:
    """A superblock being configured: parameters one by one, then create (or reconfigure), then mount.

    Every failure is a MountError whose step names call and parameter and whose text is what the kernel logged.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, fstype: bytes) -> FsContext:
        """A new superblock. ENOSYS: kernel before 5.2; EPERM: may not mount; ENODEV: no such filesystem type."""
        try:
            return cls(_syscall(_FSOPEN, fstype, _FSOPEN_CLOEXEC))
        except OSError as e:
            raise MountError(e.errno or errno.EIO, "fsopen") from e

    @classmethod
    def pick(cls, path: bytes) -> FsContext:
        """The superblock mounted at `path`, to be reconfigured."""
        try:
            return cls(_syscall(_FSPICK, AT_FDCWD, path, _FSPICK_CLOEXEC | _FSPICK_SYMLINK_NOFOLLOW))
        except OSError as e:
            raise MountError(e.errno or errno.EIO, "fspick", where=path) from e

    def set_flag(self, key: str) -> None:
        self._config(f"fsconfig {key}", _FSCONFIG_SET_FLAG, key.encode(), None, 0)

    def set_string(self, key: str, value: str) -> None:
        """At most MAX_FSCONFIG_STRING bytes."""
        self._config(f"fsconfig {key}", _FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0)

    def set_fd(self, key: str, fd: int) -> None:
        """Only for kernels that take `key` as a descriptor and not as its number only."""
        self._config(f"fsconfig {key}", _FSCONFIG_SET_FD, key.encode(), None, fd)

    def create(self) -> None:
        """Make the superblock. With SYNC_INIT this waits for the server's answer to INIT."""
        self._config("fsconfig create", _FSCONFIG_CMD_CREATE, None, None, 0)

    def reconfigure(self) -> None:
        self._config("fsconfig reconfigure", _FSCONFIG_CMD_RECONFIGURE, None, None, 0)

    def mount(self, attributes: int) -> int:
        """A descriptor of the mount, not attached anywhere yet (close-on-exec)."""
        try:
            return _syscall(_FSMOUNT, self.fd, _FSMOUNT_CLOEXEC, attributes)
        except OSError as e:
            raise MountError(e.errno or errno.EIO, "fsmount", text=self.log()) from e

    def _config(self, step: str, command: int, key: bytes | None, value: bytes | None, aux: int) -> None:
        try:
            _syscall(_FSCONFIG, self.fd, command, key, value, aux)
        except OSError as e:
            raise MountError(e.errno or errno.EIO, step, text=self.log()) from e

    def log(self) -> str:
        """What the kernel has logged since the last call, in its words, messages joined by "; "."""
        messages = []
        for _ in range(_LOG_MESSAGES):
            try:
                messages.append(os.read(self.fd, _LOG_BYTES).decode("utf-8", "replace").strip())
            except OSError:  # ENODATA: read all of it
                break
        return "; ".join(messages)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> FsContext:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

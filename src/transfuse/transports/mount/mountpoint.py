"""The mount point before the mount: found, held, and looked at once.

`resolve` makes a path absolute and free of links without asking about the last component itself: that may be a FUSE
mount whose server is dead or hangs. `MountPoint` then holds the place by an O_PATH descriptor, so that what was checked
is what is mounted on, whatever happens to the name in between. Paths are bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType

from .errors import MountError
from .options import MountOptions

__all__ = ["MountPoint", "resolve"]

MAX_LINKS = 40  # as the kernel's path walk (MAXSYMLINKS)
STEP = "look at the mount point"


def resolve(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> bytes:
    """Absolute path without symbolic links; works when `path` itself is a dead or hanging mount.

    A missing last component is not an error here. Raises MountError (ELOOP) for too many links, (ENOENT) for "".
    """
    name = os.fsencode(path)
    if not name or b"\0" in name:
        raise MountError(errno.ENOENT if not name else errno.EINVAL, STEP, hint="give the path of a mount point")
    for _ in range(MAX_LINKS):
        head, tail = os.path.split(name.rstrip(b"/") or b"/")
        if tail in {b"", b".", b".."}:
            return os.path.realpath(name)
        name = os.path.join(os.path.realpath(head or b"."), tail)
        try:
            link = os.readlink(name)  # on the root of a mount this is EINVAL, with no question to its server
        except OSError:
            return name
        name = os.path.join(os.path.dirname(name), link)
    raise MountError(errno.ELOOP, STEP, where=os.fsencode(path))


class MountPoint:
    """A checked place to mount on: `path`, `fd` (O_PATH) and `rootmode`. Close it, or use it in a with statement.

    Raises MountError: ENOENT, ENOTDIR (a directory was asked for by rootmode and it is none, or the reverse: EISDIR),
    ENOTEMPTY (without nonempty; also for a regular file that has data, which would be hidden), ENOTCONN for a dead
    FUSE mount in the place.
    """

    __slots__ = ("fd", "path", "rootmode")

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], options: MountOptions) -> None:
        self.path = resolve(path)
        try:
            self.fd = os.open(self.path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as e:
            raise MountError(e.errno or errno.EIO, STEP, where=self.path, hint=_hint(e.errno, self.path)) from e
        try:
            self.rootmode = self._check(options)
        except BaseException:
            self.close()
            raise

    def _check(self, options: MountOptions) -> int:
        try:
            found = os.stat(self.fd)
        except OSError as e:
            raise MountError(e.errno or errno.EIO, STEP, where=self.path, hint=_hint(e.errno, self.path)) from e
        kind = stat.S_IFMT(found.st_mode)
        if options.rootmode is not None and (kind == stat.S_IFDIR) != stat.S_ISDIR(options.rootmode):
            wants_directory = stat.S_ISDIR(options.rootmode)
            raise MountError(
                errno.ENOTDIR if wants_directory else errno.EISDIR,
                STEP,
                where=self.path,
                hint="the file system's root is " + ("a directory" if wants_directory else "not a directory"),
            )
        if not options.nonempty and (self._has_entries() if kind == stat.S_IFDIR else self._has_data(found)):
            raise MountError(
                errno.ENOTEMPTY if kind == stat.S_IFDIR else errno.EEXIST,
                STEP,
                where=self.path,
                text="" if kind == stat.S_IFDIR else "a file with data, which the mount would hide",
                hint="mount on an empty one, or add -o nonempty to hide what is there while mounted",
            )
        return kind if options.rootmode is None else options.rootmode

    def _has_data(self, found: os.stat_result) -> bool:
        return stat.S_ISREG(found.st_mode) and found.st_size > 0

    def _has_entries(self) -> bool:
        try:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        except PermissionError:
            return False  # searchable but not listable: nobody can tell
        except OSError as e:
            raise MountError(e.errno or errno.EIO, STEP, where=self.path, hint=_hint(e.errno, self.path)) from e
        try:
            with os.scandir(fd) as entries:
                return next(entries, None) is not None
        except OSError as e:
            raise MountError(e.errno or errno.EIO, STEP, where=self.path, hint=_hint(e.errno, self.path)) from e
        finally:
            os.close(fd)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> MountPoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _hint(code: int | None, path: bytes) -> str:
    name = os.fsdecode(path)
    if code == errno.ENOENT:
        return f"make it first: mkdir {name}"
    if code in {errno.ENOTCONN, errno.ECONNABORTED}:
        return f"a FUSE mount whose server is gone is in the way; `transfuse umount {name}` clears it"
    if code == errno.EACCES:
        return "a directory on the way, or a FUSE mount of another user in its place, keeps you out"
    return ""

"""PathFilesystem: the authors' API in paths instead of nodes.

Paths are str, begin with "/", have no "." or ".." in them, and carry bytes that are not UTF-8 as surrogate escapes; so
do link targets and names of extended attributes. Methods have the names, arguments and errors of `Filesystem`, with a
path where it has a node, so growing up means changing `path` to `nodeid`. What differs:

- There is no lookup() and no forget(): the adapter asks getattr(), and keeps the table of nodes.
- listdir(req, path) -> names is enough for a directory; readdir() may be had instead.
- mkdir, mknod, symlink, link and setattr may return Attr, or None: then getattr() is asked. create and tmpfile return
  Opened, and getattr() is asked by the new handle.

The smallest filesystem that can be read has getattr, listdir and read.

`Attr.ino` 0 means that files have no identity but their path. With other numbers, names that have the same number are
one node: hard links, whose attributes and pages the peer then shares.

A file may lose its name while it is open. Its handle goes on working: the methods that get a non-zero `fh` are still
called, with the path the file last had, where by now there may be another file. So a filesystem with unlink() or
rename() works by `fh` where it gets one; files opened with `fh` 0 are ESTALE once their name is gone, without asking.
A file made by tmpfile() has no name to begin with: its methods get the path of the directory it was made in, until
link() has given it one.

rename, unlink and rmdir are exclusive: no other method runs meanwhile (locks, poll, ioctl and release excepted), so
that no path goes bad in a method's hands. Filesystems with coroutines see to that themselves.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from transfuse.fs.base import Filesystem, check_method_names
from transfuse.fs.request import Request
from transfuse.fs.values import (
    Attr,
    AttrChanges,
    DirEntry,
    Features,
    FileRange,
    IoctlResult,
    Lock,
    Opened,
    Statfs,
)

__all__ = ["PATH_OPERATION_NAMES", "PathFilesystem"]

Buffer = bytes | bytearray | memoryview


def _absent() -> OSError:
    return OSError(errno.ENOSYS, "not implemented by this filesystem")


class PathFilesystem:
    """Base of filesystems that think in paths. Override what there is; the rest stays absent."""

    features: Features = Features(readdirplus=False)
    """What to negotiate. Without readdirplus a listing costs one listdir() and no getattr() of every name."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_method_names(cls, PATH_OPERATION_NAMES)

    def operations(self) -> frozenset[str]:
        """Names of the operations this filesystem has."""
        cls = type(self)
        return frozenset(n for n in PATH_OPERATION_NAMES if getattr(cls, n) is not getattr(PathFilesystem, n))

    def as_filesystem(self) -> Filesystem:
        """This filesystem at the inode layer. Each call makes a new adapter, for one connection at a time."""
        from transfuse.fs.path_adapter import PathAdapter

        return PathAdapter(self)

    def mounted(self, connection: Any) -> None:
        """The connection is up."""

    def destroyed(self) -> None:
        """The peer is gone, and release() or releasedir() was called for every handle, unless it is a coroutine, which
        nobody could wait for here."""

    # -- names ---------------------------------------------------------------------------------------------------------

    def symlink(self, req: Request, path: str, target: str) -> Attr | None:
        """Make a symbolic link at `path`."""
        raise _absent()

    def mknod(self, req: Request, path: str, mode: int, rdev: int, umask: int) -> Attr | None:
        """Make a file, fifo, socket or device node."""
        raise _absent()

    def mkdir(self, req: Request, path: str, mode: int, umask: int) -> Attr | None:
        """Make a directory."""
        raise _absent()

    def unlink(self, req: Request, path: str) -> None:
        """Remove a name that is not a directory. Open handles go on working."""
        raise _absent()

    def rmdir(self, req: Request, path: str) -> None:
        """Remove an empty directory (ENOTEMPTY else)."""
        raise _absent()

    def rename(self, req: Request, path: str, newpath: str, flags: int) -> None:
        """Move a name; what was at `newpath` is replaced. `flags`: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2."""
        raise _absent()

    def link(self, req: Request, path: str, newpath: str, fh: int | None) -> Attr | None:
        """Give a file another name. Both should then show the same Attr.ino. `fh`: it has no name, as by tmpfile()."""
        raise _absent()

    def readlink(self, req: Request, path: str) -> str:
        """The target of a symbolic link."""
        raise _absent()

    # -- attributes ----------------------------------------------------------------------------------------------------

    def getattr(self, req: Request, path: str, fh: int | None) -> Attr:
        """Attributes of a path, ENOENT if there is nothing. This is also how names are looked up."""
        raise _absent()

    def statx(self, req: Request, path: str, fh: int | None, flags: int, mask: int) -> Attr:
        """As getattr, with birth time and attributes."""
        raise _absent()

    def setattr(self, req: Request, path: str, changes: AttrChanges, fh: int | None) -> Attr | None:
        """Apply `changes`."""
        raise _absent()

    def access(self, req: Request, path: str, mask: int) -> None:
        """Check access(2)."""
        raise _absent()

    def getxattr(self, req: Request, path: str, name: str) -> bytes:
        """The value of an extended attribute; ENODATA if it does not exist."""
        raise _absent()

    def listxattr(self, req: Request, path: str) -> Sequence[str]:
        """Names of all extended attributes."""
        raise _absent()

    def setxattr(self, req: Request, path: str, name: str, value: bytes, flags: int, kill_sgid: bool) -> None:
        """Set an extended attribute."""
        raise _absent()

    def removexattr(self, req: Request, path: str, name: str) -> None:
        """Remove an extended attribute."""
        raise _absent()

    def statfs(self, req: Request, path: str) -> Statfs:
        """Figures of the filesystem."""
        raise _absent()

    # -- open files ----------------------------------------------------------------------------------------------------

    def open(self, req: Request, path: str, flags: int) -> Opened:
        """Open a file. Without it, read() and write() get fh 0."""
        raise _absent()

    def create(self, req: Request, path: str, mode: int, umask: int, flags: int) -> Opened:
        """Make and open a regular file."""
        raise _absent()

    def tmpfile(self, req: Request, path: str, mode: int, umask: int, flags: int) -> Opened:
        """Make and open a file without a name in the directory `path`; `fh` must not be 0. link() may name it later
        unless O_EXCL."""
        raise _absent()

    def read(self, req: Request, path: str, fh: int, size: int, offset: int) -> Buffer | FileRange:
        """Up to `size` bytes from `offset`; fewer mean the end of the file."""
        raise _absent()

    def write(self, req: Request, path: str, fh: int, data: Buffer, offset: int, flags: int) -> int:
        """Write `data`, which is only valid during the call, and return how many bytes were written."""
        raise _absent()

    def flush(self, req: Request, path: str, fh: int, lock_owner: int) -> None:
        """One descriptor of the open file was closed."""
        raise _absent()

    def release(self, req: Request, path: str, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """The last descriptor is gone. Called whether or not the file still has a name."""
        raise _absent()

    def fsync(self, req: Request, path: str, fh: int, datasync: bool) -> None:
        """Make the file durable."""
        raise _absent()

    def fallocate(self, req: Request, path: str, fh: int, mode: int, offset: int, length: int) -> None:
        """Allocate, punch or zero a range."""
        raise _absent()

    def lseek(self, req: Request, path: str, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE."""
        raise _absent()

    def copy_file_range(
        self,
        req: Request,
        path_in: str,
        fh_in: int,
        offset_in: int,
        path_out: str,
        fh_out: int,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        """Copy within the filesystem."""
        raise _absent()

    def ioctl(
        self, req: Request, path: str, fh: int, cmd: int, arg: int, data: bytes, out_size: int, flags: int
    ) -> IoctlResult | bytes | int:
        """An ioctl(2)."""
        raise _absent()

    def poll(self, req: Request, path: str, fh: int, events: int, handle: int | None) -> int:
        """Which of `events` are ready."""
        raise _absent()

    def getlk(self, req: Request, path: str, fh: int, owner: int, lock: Lock) -> Lock | None:
        """A lock that keeps `owner` from `lock`, or None."""
        raise _absent()

    def setlk(self, req: Request, path: str, fh: int, owner: int, lock: Lock, wait: bool) -> None:
        """Take or drop a POSIX byte-range lock."""
        raise _absent()

    def flock(self, req: Request, path: str, fh: int, owner: int, kind: int, wait: bool) -> None:
        """Take or drop a BSD lock."""
        raise _absent()

    # -- directories ---------------------------------------------------------------------------------------------------

    def listdir(self, req: Request, path: str) -> Iterable[str]:
        """The names in a directory, without "." and ".."."""
        raise _absent()

    def opendir(self, req: Request, path: str, flags: int) -> Opened:
        """Open a directory."""
        raise _absent()

    def readdir(self, req: Request, path: str, fh: int, offset: int) -> Iterable[DirEntry]:
        """As Filesystem.readdir(), instead of listdir(): for kinds, inode numbers and cookies. Names are bytes."""
        raise _absent()

    def releasedir(self, req: Request, path: str, fh: int, flags: int) -> None:
        """The open directory is done with."""
        raise _absent()

    def fsyncdir(self, req: Request, path: str, fh: int, datasync: bool) -> None:
        """Make the directory durable."""
        raise _absent()

    def syncfs(self, req: Request, path: str) -> None:
        """Make the whole filesystem durable."""
        raise _absent()


_LIFE = frozenset({"mounted", "destroyed", "operations", "as_filesystem"})

PATH_OPERATION_NAMES: frozenset[str] = frozenset(
    name
    for name, value in vars(PathFilesystem).items()
    if inspect.isfunction(value) and name[0] != "_" and name not in _LIFE
)
"""The methods that are operations."""

"""What an author writes: a Filesystem, one method per operation, names as bytes, nodes as integers.

Override the methods the filesystem has. A method left alone is absent: the session reads the class once, leaves the
matching INIT flags off, and answers ENOSYS, after which most peers never ask again. Report failure by raising OSError
with an errno (the built-in subclasses do); any other exception is a bug: the peer gets EIO, the log a traceback, and
the mount lives on. Methods may be `async def`.

A public method whose first argument is `req` must be an operation; anything else is refused when the class is made, so
that a misspelt name cannot stay silent. Helpers start with an underscore.
"""

from __future__ import annotations

import difflib
import errno
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from transfuse.fs.values import (
    Attr,
    AttrChanges,
    DirEntry,
    Entry,
    Features,
    FileRange,
    IoctlResult,
    Lock,
    Opened,
    Statfs,
)

if TYPE_CHECKING:
    from transfuse.fs.request import Request

__all__ = ["OPERATION_NAMES", "Filesystem"]

Buffer = bytes | bytearray | memoryview


def _absent() -> OSError:
    return OSError(errno.ENOSYS, "not implemented by this filesystem")


class Filesystem:
    """Base of all inode-level filesystems.

    `nodeid` 1 is the root. A nodeid given out in an Entry must stay valid until forget() has returned every lookup.
    Names never contain "/" or NUL and are never empty; "." and ".." only with `features.export_support`.
    """

    features: Features
    """What to negotiate; replace in __init__ or as a class attribute."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        if isinstance(cls.features, Features):
            # A copy: `self.features.passthrough = True` is about this filesystem, not about all of its class.
            self.features = replace(cls.features)
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_method_names(cls, OPERATION_NAMES)

    def operations(self) -> frozenset[str]:
        """Names of the operations this filesystem has. Wrappers override it to pass on what they wrap."""
        cls = type(self)
        found = frozenset(name for name in OPERATION_NAMES if getattr(cls, name) is not getattr(Filesystem, name))
        return found if map_is_current(cls) else found - {"map"}

    # -- life of the connection --------------------------------------------------------------------------------------

    def mounted(self, connection: Any) -> None:
        """The connection is up; `connection` (session.negotiate.Connection) says what was agreed."""

    def destroyed(self) -> None:
        """The peer is gone: every lookup is forgotten and every handle closed. Called once per connection."""

    # -- what outlives the server -------------------------------------------------------------------------------------

    keeps_state: bool = False
    """What the peer holds can be handed to a later object of this class: the three methods below work."""

    def renumber(self, epoch: int) -> None:
        """Give out only nodeids and handles that no object with a smaller `epoch` (0 to 65535) ever gave out. Called
        before anything else. Unknown ones of earlier epochs are ESTALE, whereupon a peer looks its paths up again."""
        raise NotImplementedError

    def export_state(self, portable: bool) -> Iterable[bytes]:
        """Everything the peer holds, in pieces of at most 64 KiB: nodes with their lookups, open files and directories.
        Not locks. `portable`: for another machine with the same files, so only what names lead to. Nothing else is
        called meanwhile."""
        raise NotImplementedError

    def import_state(self, state: Iterable[bytes], portable: bool) -> None:
        """Take over what export_state() gave, in pieces of any size; called before mounted(). ValueError if that
        cannot be read. `portable`: it comes from elsewhere, and must not lead out of the source. What is not found
        any more is ESTALE when it is used."""
        raise NotImplementedError

    # -- names --------------------------------------------------------------------------------------------------------

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        """Find `name` in `parent`. ENOENT is not remembered by the peer; `Entry.negative()` is."""
        raise _absent()

    def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        """The peer dropped `nlookup` of the lookups it was given for `nodeid`. Has no reply and may not fail."""
        raise _absent()

    def symlink(self, req: Request, parent: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link."""
        raise _absent()

    def mknod(self, req: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """Make a file, fifo, socket or device node. `mode` has the type; `rdev` is an os.makedev() number."""
        raise _absent()

    def mkdir(self, req: Request, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        """Make a directory."""
        raise _absent()

    def unlink(self, req: Request, parent: int, name: bytes) -> None:
        """Remove a name that is not a directory. The node lives on while it is open or remembered."""
        raise _absent()

    def rmdir(self, req: Request, parent: int, name: bytes) -> None:
        """Remove an empty directory (ENOTEMPTY else)."""
        raise _absent()

    def rename(self, req: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Move a name. `flags`: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2, RENAME_WHITEOUT 4 (EINVAL for what is not
        supported)."""
        raise _absent()

    def link(self, req: Request, nodeid: int, newparent: int, newname: bytes) -> Entry:
        """Give `nodeid` another name. Without it, link(2) fails with EPERM."""
        raise _absent()

    def readlink(self, req: Request, nodeid: int) -> bytes:
        """The target of a symbolic link."""
        raise _absent()

    # -- attributes ---------------------------------------------------------------------------------------------------

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        """Attributes of a node; `fh` when the peer asks about an open file."""
        raise _absent()

    def statx(self, req: Request, nodeid: int, fh: int | None, flags: int, mask: int) -> Attr:
        """As getattr, with `btime_ns` and `attributes`. ENOSYS is permanent: the peer falls back to getattr."""
        raise _absent()

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        """Apply `changes` and return all attributes afterwards."""
        raise _absent()

    def access(self, req: Request, nodeid: int, mask: int) -> None:
        """Check access(2) for `mask` (R 4, W 2, X 1); EACCES refuses. ENOSYS is permanent: everything is allowed."""
        raise _absent()

    def getxattr(self, req: Request, nodeid: int, name: bytes) -> bytes:
        """The value of an extended attribute; ENODATA if it does not exist. The session minds the caller's buffer."""
        raise _absent()

    def listxattr(self, req: Request, nodeid: int) -> Sequence[bytes]:
        """Names of all extended attributes."""
        raise _absent()

    def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """Set an extended attribute. `flags`: XATTR_CREATE 1, XATTR_REPLACE 2. `kill_sgid`: writing this ACL also
        clears the setgid bit."""
        raise _absent()

    def removexattr(self, req: Request, nodeid: int, name: bytes) -> None:
        """Remove an extended attribute; ENODATA if it does not exist."""
        raise _absent()

    def statfs(self, req: Request, nodeid: int) -> Statfs:
        """Figures of the filesystem that holds `nodeid`."""
        raise _absent()

    # -- open files ---------------------------------------------------------------------------------------------------

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        """Open a file; `flags` are open(2) flags without O_CREAT, O_EXCL and O_NOCTTY."""
        raise _absent()

    def create(
        self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int
    ) -> tuple[Entry, Opened]:
        """Make and open a regular file. ENOSYS is permanent: the peer uses mknod and open."""
        raise _absent()

    def tmpfile(self, req: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        """Make and open a file without a name in directory `parent`; link() may name it later unless O_EXCL."""
        raise _absent()

    def read(self, req: Request, nodeid: int, fh: int, size: int, offset: int) -> Buffer | FileRange:
        """Up to `size` bytes from `offset`; fewer mean the end of the file."""
        raise _absent()

    def write(self, req: Request, nodeid: int, fh: int, data: Buffer, offset: int, flags: int) -> int:
        """Write `data` and return how many bytes were written. `data` is only valid during the call.
        `flags`: FUSE_WRITE_CACHE 1 (write-back, the caller's identity is unknown), FUSE_WRITE_KILL_SUIDGID 4."""
        raise _absent()

    def map(
        self, req: Request, nodeid: int, fh: int | None, offset: int, length: int, intent: int
    ) -> FileRange | None:
        """Where `length` bytes from `offset` are, or belong when they are written: the transport moves them itself.

        `intent` is of MAP_READ, MAP_WRITE, MAP_CACHED and MAP_SHARED (fs.values). With MAP_SHARED `fh` is None, and
        the fd must allow what MAP_READ and MAP_WRITE say. None: no such place, so read() or write() is called instead,
        as for writes that have to clear setuid bits. Not on the wire; a class that overrides read() or write() without
        map() has none.
        """
        raise _absent()

    def flush(self, req: Request, nodeid: int, fh: int, lock_owner: int) -> None:
        """One descriptor of the open file was closed; errors reach close(2). POSIX locks of `lock_owner` end."""
        raise _absent()

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """The last descriptor is gone, `fh` will not come again. Errors are not seen by anyone."""
        raise _absent()

    def fsync(self, req: Request, nodeid: int, fh: int, datasync: bool) -> None:
        """Make the file durable. ENOSYS is permanent: fsync(2) succeeds at once."""
        raise _absent()

    def fallocate(self, req: Request, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None:
        """Allocate, punch or zero a range (FALLOC_FL_* in `mode`). ENOSYS is permanent: EOPNOTSUPP."""
        raise _absent()

    def lseek(self, req: Request, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA 3 or SEEK_HOLE 4. ENOSYS is permanent: the file is all data."""
        raise _absent()

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
        """Copy within the filesystem and return how many bytes were copied. ENOSYS is permanent."""
        raise _absent()

    def ioctl(
        self, req: Request, nodeid: int, fh: int, cmd: int, arg: int, data: bytes, out_size: int, flags: int
    ) -> IoctlResult | bytes | int:
        """An ioctl(2) with `data` copied in and up to `out_size` bytes to copy out. ENOSYS becomes ENOTTY."""
        raise _absent()

    def poll(self, req: Request, nodeid: int, fh: int, events: int, handle: int | None) -> int:
        """Which of `events` are ready. `handle` not None: notify poll(handle) when that changes. ENOSYS is
        permanent: always ready."""
        raise _absent()

    def bmap(self, req: Request, nodeid: int, block: int, blocksize: int) -> int:
        """The device block that holds file block `block` (fuseblk mounts only)."""
        raise _absent()

    def getlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock) -> Lock | None:
        """A lock that keeps `owner` from `lock`, or None."""
        raise _absent()

    def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Lock, wait: bool) -> None:
        """Take or drop (kind 2) a POSIX byte-range lock. With `wait` block until it is free or `req` is interrupted
        (InterruptedError); the session calls such a one on a thread of its own. Without, EAGAIN."""
        raise _absent()

    def flock(self, req: Request, nodeid: int, fh: int, owner: int, kind: int, wait: bool) -> None:
        """Take or drop a BSD lock of the whole file; `kind` as in Lock."""
        raise _absent()

    # -- directories --------------------------------------------------------------------------------------------------

    def opendir(self, req: Request, nodeid: int, flags: int) -> Opened:
        """Open a directory. Without it directories need no handle (fh 0)."""
        raise _absent()

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        """The names of a directory.

        Either return all of them with cookie 0: the session remembers the list for the open directory, adds "." and
        ".." if they are missing, and answers later offsets itself. Or give every entry a non-zero cookie, "." and ".."
        included, and start after the entry whose cookie was `offset` (0: from the beginning). Listings with attributes
        (READDIRPLUS) are made of this and lookup().
        """
        raise _absent()

    def releasedir(self, req: Request, nodeid: int, fh: int, flags: int) -> None:
        """The open directory `fh` is done with."""
        raise _absent()

    def fsyncdir(self, req: Request, nodeid: int, fh: int, datasync: bool) -> None:
        """Make the directory durable. ENOSYS is permanent: fsync(2) succeeds at once."""
        raise _absent()

    def syncfs(self, req: Request, nodeid: int) -> None:
        """Make the whole filesystem durable (fuseblk and virtio-fs peers only)."""
        raise _absent()


_LIFE = frozenset({"mounted", "destroyed", "operations", "renumber", "export_state", "import_state"})

OPERATION_NAMES: frozenset[str] = frozenset(
    name
    for name, value in vars(Filesystem).items()
    if inspect.isfunction(value) and name[0] != "_" and name not in _LIFE
)
"""The methods that are operations."""


def map_is_current(cls: type) -> bool:
    """Does map() speak for read() and write()? Not if a subclass has put others in their place."""

    def depth(name: str) -> int:
        return next(at for at, base in enumerate(cls.__mro__) if name in vars(base))

    return depth("map") <= min(depth("read"), depth("write"))


def check_method_names(cls: type, known: frozenset[str]) -> None:
    """Refuse a class with a public method that looks like an operation but is none (TypeError names the nearest)."""
    for name, value in vars(cls).items():
        if name.startswith("_") or name in known or name in _LIFE or not inspect.isfunction(value):
            continue
        parameters = list(inspect.signature(value).parameters)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        if len(parameters) > 1 and parameters[1] == "req":
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{cls.__name__}.{name} takes a request but {name!r} is not an operation{meant}")
        if difflib.get_close_matches(name, known, n=1, cutoff=0.87):
            raise TypeError(f"{cls.__name__}.{name} is not an operation; did you mean {near[0]!r}?")


Filesystem.features = Features()

"""Filesystems made of one other filesystem: forwarding, read-only, a sub-tree.

A `Wrapper` has exactly the operations of what it wraps. Those that it does not change are the wrapped filesystem's own
bound methods, so forwarding costs nothing. Where the wrapped method is a coroutine function, the wrapper's shows itself
as one, too.
"""

from __future__ import annotations

import errno
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from transfuse.fs.base import OPERATION_NAMES, Filesystem, map_is_current
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import MAP_WRITE, ROOT_ID, DirEntry, Entry, FileRange, IoctlResult, Opened

__all__ = ["ReadOnly", "Subdirectory", "Wrapper", "then"]

T = TypeVar("T")
U = TypeVar("U")

O_ACCMODE, O_TRUNC = 3, 0o1000


def then(found: T | Awaitable[T], use: Callable[[T], U]) -> U:
    """`use(found)`: now or, if `found` is still to be waited for, in a coroutine, on which the type keeps quiet."""
    if inspect.isawaitable(found):

        async def later() -> U:
            return use(await found)

        return later()  # type: ignore[return-value]  # the session awaits what a coroutine function returns
    return use(found)


class Wrapper(Filesystem):
    """Forwards everything to `inner`. Override the operations to change, and call self.inner's. Data of a wrapper that
    overrides read() or write() goes through these; say map() as well if it need not."""

    def __init__(self, inner: Filesystem | PathFilesystem) -> None:
        self.inner = inner if isinstance(inner, Filesystem) else inner.as_filesystem()
        self.features = self.inner.features
        self.keeps_state = self.inner.keeps_state
        for name in OPERATION_NAMES:
            own = getattr(type(self), name)
            theirs = getattr(self.inner, name)
            if own is getattr(Filesystem, name):
                setattr(self, name, theirs)
            elif inspect.iscoroutinefunction(theirs):
                setattr(self, name, self._later(own))

    def _later(self, own: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any) -> Any:
            found = own(self, *args)
            return await found if inspect.isawaitable(found) else found

        return call

    def operations(self) -> frozenset[str]:
        """Exactly those of what is wrapped."""
        found = self.inner.operations()
        return found if map_is_current(type(self)) else found - {"map"}

    def mounted(self, connection: Any) -> None:
        """Passed on."""
        self.inner.mounted(connection)

    def destroyed(self) -> None:
        """Passed on."""
        self.inner.destroyed()

    def renumber(self, epoch: int) -> None:
        """Passed on."""
        self.inner.renumber(epoch)

    def export_state(self, portable: bool) -> Iterable[bytes]:
        """Passed on."""
        return self.inner.export_state(portable)

    def import_state(self, state: Iterable[bytes], portable: bool) -> None:
        """Passed on."""
        self.inner.import_state(state, portable)


def _refuse(name: str) -> Callable[..., Any]:
    def call(self: Filesystem, req: Request, *args: Any) -> Any:
        raise OSError(errno.EROFS, "the filesystem is read-only")

    call.__name__ = name
    call.__doc__ = "EROFS."
    return call


class ReadOnly(Wrapper):
    """The same filesystem, where every change, and every open for writing, is EROFS.

    What `inner` changes by itself (access times, say) is its own affair.
    """

    MUTATIONS = frozenset(
        {"symlink", "mknod", "mkdir", "unlink", "rmdir", "rename", "link", "setattr", "setxattr", "removexattr"}
        | {"create", "tmpfile", "write", "fallocate", "copy_file_range"}
    )
    """Operations that are refused without being asked."""
    HARMLESS_IOCTLS = frozenset({0x80086601, 0x80046601, 0x801C581F, 0x80087601, 0x541B})
    """FS_IOC_GETFLAGS (64 and 32 bits), FS_IOC_FSGETXATTR, FS_IOC_GETVERSION, FIONREAD: the ones known to only read."""

    def __init__(self, inner: Filesystem | PathFilesystem) -> None:
        super().__init__(inner)
        self.features = replace(self.features, writeback_cache=False)

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        """EROFS unless it is for reading only."""
        if flags & O_ACCMODE or flags & O_TRUNC:
            raise OSError(errno.EROFS, "the filesystem is read-only")
        return self.inner.open(req, nodeid, flags)

    def access(self, req: Request, nodeid: int, mask: int) -> None:
        """EROFS for W, as on a filesystem that was mounted read-only."""
        if mask & 2:
            raise OSError(errno.EROFS, "the filesystem is read-only")
        return self.inner.access(req, nodeid, mask)

    def map(
        self, req: Request, nodeid: int, fh: int | None, offset: int, length: int, intent: int
    ) -> FileRange | None:
        """EROFS for writing."""
        if intent & MAP_WRITE:
            raise OSError(errno.EROFS, "the filesystem is read-only")
        return self.inner.map(req, nodeid, fh, offset, length, intent)

    def ioctl(
        self, req: Request, nodeid: int, fh: int, cmd: int, arg: int, data: bytes, out_size: int, flags: int
    ) -> IoctlResult | bytes | int:
        """Only what is known not to change anything."""
        if cmd not in self.HARMLESS_IOCTLS:
            raise OSError(errno.EROFS, f"ioctl {cmd:#x} might change something")
        return self.inner.ioctl(req, nodeid, fh, cmd, arg, data, out_size, flags)


for _name in ReadOnly.MUTATIONS:
    setattr(ReadOnly, _name, _refuse(_name))


NODE_ARGUMENTS: dict[str, tuple[int, ...]] = {
    name: tuple(
        position
        for position, parameter in enumerate(inspect.signature(getattr(Filesystem, name)).parameters)
        if parameter in ("nodeid", "parent", "newparent", "nodeid_in", "nodeid_out")
    )
    for name in OPERATION_NAMES
}
"""Which arguments of each operation are nodeids, counted with self as 0."""
ENTRY_RESULTS = frozenset({"lookup", "symlink", "mknod", "mkdir", "link"})
CREATE_RESULTS = frozenset({"create", "tmpfile"})


class Subdirectory(Wrapper):
    """The sub-tree of `inner` at `path` as a filesystem of its own: its directory is node 1.

    The path is walked when the wrapper is made; it must lead to a directory, and symbolic links on it are not followed
    (ENOTDIR). The wrapper holds a lookup of the directory until destroyed(). Nothing above is reachable: ".." of the
    root is the root, and `inner`'s root never turns up as a node.
    """

    def __init__(self, inner: Filesystem | PathFilesystem, path: str | bytes) -> None:
        super().__init__(inner)
        self.keeps_state = False  # its own lookup and the peer's of the directory are counted here
        if inspect.iscoroutinefunction(self.inner.lookup):
            raise TypeError("Subdirectory can't walk a filesystem whose lookup() is a coroutine")
        raw = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
        self._names = [name for name in raw.split(b"/") if name]
        if b".." in self._names or b"." in self._names:
            raise ValueError(f"{path!r}: no '.' or '..', please")
        self._forgets = "forget" in self.inner.operations()
        self._lock = threading.Lock()
        self._given = 0
        """Lookups of the directory itself that the peer was given, as node 1."""
        self._root = int(ROOT_ID)
        self._held = False
        self._walk()

    def _walk(self) -> None:
        req = Request()
        at = int(ROOT_ID)
        for name in self._names:
            try:
                entry = self.inner.lookup(req, at, name)
            finally:
                if at != ROOT_ID:
                    self._forget(req, at, 1)
            if entry.attr is None:
                raise FileNotFoundError(errno.ENOENT, "no such directory", name)
            at = entry.nodeid
            if entry.attr.mode >> 12 != 4:
                self._forget(req, at, 1)
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", name)
        self._root = at
        self._held = at != ROOT_ID

    def _forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        if self._forgets:
            self.inner.forget(req, nodeid, nlookup)

    def _inside(self, nodeid: int) -> int:
        """The wrapped filesystem's nodeid."""
        if nodeid == ROOT_ID:
            return self._root
        if nodeid == self._root:
            raise OSError(errno.ESTALE, f"nodeid {nodeid} is not known")  # it is known as 1
        return nodeid

    def _entry(self, entry: Entry) -> Entry:
        if entry.attr is None or self._root == ROOT_ID:
            return entry
        if entry.nodeid == self._root:
            with self._lock:
                self._given += 1
            return Entry(entry.attr, int(ROOT_ID), entry.generation, entry.timeout_s)
        if entry.nodeid == ROOT_ID:
            raise OSError(errno.ESTALE, "above the root of this filesystem")
        return entry

    def _created(self, found: tuple[Entry, Opened]) -> tuple[Entry, Opened]:
        return self._entry(found[0]), found[1]

    def mounted(self, connection: Any) -> None:
        """Walk the path again if an earlier connection's end dropped the directory."""
        self.inner.mounted(connection)
        if self._names and not self._held:
            self._walk()

    def destroyed(self) -> None:
        """Everything is forgotten, the directory included."""
        self._held = False
        self._given = 0
        self.inner.destroyed()

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        """ ".." of the root is the root."""
        if name == b".." and parent == ROOT_ID:
            name = b"."
        return then(self.inner.lookup(req, self._inside(parent), name), self._entry)

    def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        """For the root at most what was given; our own lookup of it stays."""
        if nodeid == ROOT_ID:
            with self._lock:
                nlookup = min(nlookup, self._given)
                self._given -= nlookup
            if not nlookup:
                return
        elif nodeid == self._root:
            return
        self._forget(req, self._inside(nodeid), nlookup)

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        """ ".." of the root shows the root."""
        found = self.inner.readdir(req, self._inside(nodeid), fh, offset)
        if nodeid != ROOT_ID or self._root == ROOT_ID:
            return found
        return then(found, self._root_listing)

    def _root_listing(self, entries: Iterable[DirEntry]) -> Iterable[DirEntry]:
        for entry in entries:
            if entry.name == b"..":
                yield DirEntry(b"..", self._root, entry.kind, entry.cookie)
            else:
                yield entry


def _translated(name: str) -> Callable[..., Any]:
    """An operation of Subdirectory: nodeids in, and an Entry, if there is one, out."""
    positions = [position - 2 for position in NODE_ARGUMENTS[name]]

    def call(self: Subdirectory, req: Request, *args: Any) -> Any:
        values = list(args)
        for position in positions:
            values[position] = self._inside(values[position])
        found = getattr(self.inner, name)(req, *values)
        if name in ENTRY_RESULTS:
            return then(found, self._entry)
        return then(found, self._created) if name in CREATE_RESULTS else found

    call.__name__ = name
    call.__doc__ = getattr(Filesystem, name).__doc__
    return call


for _name in OPERATION_NAMES - vars(Subdirectory).keys():
    setattr(Subdirectory, _name, _translated(_name))

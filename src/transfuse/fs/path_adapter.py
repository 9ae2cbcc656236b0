"""A PathFilesystem as a Filesystem: nodeids in, paths out.

Every method is written once, as a coroutine that awaits what the author's method gives if that can be awaited. For a
filesystem without coroutines it is run to its end on the spot (`_finish`: it never really suspends); for one with some,
the session is shown the coroutine functions themselves.
"""

from __future__ import annotations

import copy
import errno
import inspect
import logging
import stat
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.path_nodes import PathNode, PathNodes
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, AttrChanges, DirEntry, Entry, Features, Opened

__all__ = ["PathAdapter"]

T = TypeVar("T")

log = logging.getLogger("transfuse.fs")

UNKNOWN_INO = 0xFFFF_FFFF
"""Shown in listings for names whose number is not known (0 would hide them from some programs), as libfuse does."""
MAY_WAIT = frozenset({"setlk", "flock", "poll", "ioctl"})
"""Operations that may take for ever and so do not hold renames up."""
RENAME_EXCHANGE = 2


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    work.close()
    raise RuntimeError("a method of a filesystem without coroutines returned something to wait for")


async def _value(found: Any) -> Any:
    return await found if inspect.isawaitable(found) else found


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class _Tree:
    """Shared for everything, exclusive for renames and removals. Those inside are waited for, but nobody is kept out by
    who waits: a method that looks into its own mount does not hang because a rename is due."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)
            yield

    @contextmanager
    def free(self) -> Iterator[None]:
        yield


class PathAdapter(Filesystem):
    """The inode layer of one PathFilesystem."""

    features: Features

    def __init__(self, fs: PathFilesystem) -> None:
        self.fs = fs
        has = fs.operations()
        if "getattr" not in has:
            raise TypeError(f"{type(fs).__name__} has no getattr(): nothing could be looked up")
        self.features = fs.features
        self._has = has
        self._lock = threading.Lock()
        self._nodes = PathNodes()
        self._tree = _Tree()
        self._coroutines = any(inspect.iscoroutinefunction(getattr(fs, name)) for name in has)
        if self._coroutines:
            for name in OPERATION_NAMES & self.operations() - {"forget"}:
                setattr(self, name, getattr(self, f"_{name}", None) or self._later(name))

    def operations(self) -> frozenset[str]:
        """What the path filesystem has, by the names of the inode layer."""
        found = (self._has & OPERATION_NAMES) | {"lookup", "forget"}
        return found | {"readdir"} if "listdir" in self._has else found

    def _later(self, name: str) -> Callable[..., Any]:
        """The coroutine form of an operation that is only passed on."""
        call = getattr(type(self), name)

        async def later(*args: Any) -> Any:
            return await _value(call(self, *args))

        return later

    def mounted(self, connection: Any) -> None:
        """Passed on."""
        self.fs.mounted(connection)

    def destroyed(self) -> None:
        """What is open is closed, and the table emptied."""
        with self._lock:
            left = [
                (node.is_dir, self._nodes.path(node) or node.last_path, fh, flags)
                for node, fh, flags in self._nodes.open_handles()
            ]
            self._nodes.clear()
        failure: Exception | None = None
        for is_dir, path, fh, flags in left:
            if inspect.iscoroutinefunction(self.fs.releasedir if is_dir else self.fs.release):
                continue
            try:
                self._close(Request(), is_dir, path, fh, flags)
            except OSError as error:
                log.debug("handle %d of %r, closed at the end: %s", fh, path, error)
            except Exception as error:  # noqa: BLE001  the others are closed all the same
                failure = failure or error
        self.fs.destroyed()
        if failure is not None:
            raise failure

    def _close(self, req: Request, is_dir: bool, path: str, fh: int, flags: int) -> Any:
        """Close a handle that the peer will not (any more)."""
        if is_dir:
            return self.fs.releasedir(req, path, fh, flags) if "releasedir" in self._has else None
        return self.fs.release(req, path, fh, flags, 0, False) if "release" in self._has else None

    def node_count(self) -> int:
        """How many nodes the peer holds, the root included."""
        return len(self._nodes)

    # -- from nodes to paths -------------------------------------------------------------------------------------------

    def _shared(self) -> Any:
        return self._tree.free() if self._coroutines else self._tree.shared()

    def _exclusive(self) -> Any:
        return self._tree.free() if self._coroutines else self._tree.exclusive()

    def _path(self, nodeid: int, fh: int | None = None) -> str:
        """The path of a node; for one without a name the last it had, if there is a handle to work by."""
        with self._lock:
            node = self._nodes.get(nodeid)
            path = self._nodes.path(node)
            if path is None:
                if not fh:
                    raise OSError(errno.ESTALE, "the file has no name any more, and no handle")
                path = node.last_path
            return path

    def _path_and_handle(self, nodeid: int, fh: int | None) -> tuple[str, int | None]:
        """As _path, where any open handle of the node will do."""
        with self._lock:
            node = self._nodes.get(nodeid)
            if not fh and node.handles and self._nodes.path(node) is None:
                fh = next(reversed(node.handles))
        return self._path(nodeid, fh), fh

    def _child(self, parent: int, name: bytes) -> str:
        with self._lock:
            return self._nodes.child(self._nodes.get(parent), _text(name))

    def _numbered(self, attr: Attr, nodeid: int) -> Attr:
        if not attr.ino:
            attr = copy.copy(attr)
            attr.ino = nodeid
        return attr

    def _remember(self, parent: int, name: bytes, attr: Attr) -> Entry:
        with self._lock:
            directory = self._nodes.get(parent)
            node = self._nodes.remember(directory, _text(name), attr.ino, stat.S_ISDIR(attr.mode))
        return Entry(self._numbered(attr, node.nodeid), node.nodeid)

    def _drop_name(self, parent: int, name: bytes) -> None:
        with self._lock:
            self._nodes.detach(self._nodes.get(parent), _text(name))

    # -- names ---------------------------------------------------------------------------------------------------------

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        """getattr() of the path."""
        return _finish(self._lookup(req, parent, name))

    async def _lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        with self._shared():
            path = self._child(parent, name)
            try:
                attr = await _value(self.fs.getattr(req, path, None))
            except FileNotFoundError:
                self._drop_name(parent, name)  # removed behind our back
                raise
            return self._remember(parent, name, attr)

    def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        """The table's business only."""
        with self._lock:
            self._nodes.forget(nodeid, nlookup)

    async def _made(self, req: Request, parent: int, name: bytes, make: Callable[[str], Any]) -> Entry:
        with self._shared():
            path = self._child(parent, name)
            attr = await _value(make(path))
            if attr is None:
                attr = await _value(self.fs.getattr(req, path, None))
            return self._remember(parent, name, attr)

    def symlink(self, req: Request, parent: int, name: bytes, target: bytes) -> Entry:
        """See PathFilesystem.symlink."""
        return _finish(self._symlink(req, parent, name, target))

    async def _symlink(self, req: Request, parent: int, name: bytes, target: bytes) -> Entry:
        return await self._made(req, parent, name, lambda path: self.fs.symlink(req, path, _text(target)))

    def mknod(self, req: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """See PathFilesystem.mknod."""
        return _finish(self._mknod(req, parent, name, mode, rdev, umask))

    async def _mknod(self, req: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        return await self._made(req, parent, name, lambda path: self.fs.mknod(req, path, mode, rdev, umask))

    def mkdir(self, req: Request, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        """See PathFilesystem.mkdir."""
        return _finish(self._mkdir(req, parent, name, mode, umask))

    async def _mkdir(self, req: Request, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        return await self._made(req, parent, name, lambda path: self.fs.mkdir(req, path, mode, umask))

    def link(self, req: Request, nodeid: int, newparent: int, newname: bytes) -> Entry:
        """See PathFilesystem.link."""
        return _finish(self._link(req, nodeid, newparent, newname))

    async def _link(self, req: Request, nodeid: int, newparent: int, newname: bytes) -> Entry:
        with self._shared():
            path, fh = self._path_and_handle(nodeid, None)
            newpath = self._child(newparent, newname)
            attr = await _value(self.fs.link(req, path, newpath, fh))
            if attr is None:
                attr = await _value(self.fs.getattr(req, newpath, None))
            if not fh:
                return self._remember(newparent, newname, attr)
            with self._lock:
                nodes = self._nodes
                nodes.attach(nodes.get(nodeid), nodes.get(newparent), _text(newname))
            return Entry(self._numbered(attr, nodeid), nodeid)

    async def _call(self, name: str, *args: Any) -> Any:
        return await _value(getattr(self.fs, name)(*args))

    def unlink(self, req: Request, parent: int, name: bytes) -> None:
        """See PathFilesystem.unlink."""
        _finish(self._unlink(req, parent, name))

    async def _unlink(self, req: Request, parent: int, name: bytes) -> None:
        with self._exclusive():
            await self._call("unlink", req, self._child(parent, name))
            self._drop_name(parent, name)

    def rmdir(self, req: Request, parent: int, name: bytes) -> None:
        """See PathFilesystem.rmdir."""
        _finish(self._rmdir(req, parent, name))

    async def _rmdir(self, req: Request, parent: int, name: bytes) -> None:
        with self._exclusive():
            await self._call("rmdir", req, self._child(parent, name))
            self._drop_name(parent, name)

    def rename(self, req: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """The nodes follow, with all that is below them."""
        _finish(self._rename(req, parent, name, newparent, newname, flags))

    async def _rename(self, req: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        with self._exclusive():
            path, newpath = self._child(parent, name), self._child(newparent, newname)
            await self._call("rename", req, path, newpath, flags)
            with self._lock:
                nodes = self._nodes
                move = nodes.exchange if flags & RENAME_EXCHANGE else nodes.move
                move(nodes.get(parent), _text(name), nodes.get(newparent), _text(newname))

    # -- what needs more than a path -----------------------------------------------------------------------------------

    def readlink(self, req: Request, nodeid: int) -> bytes:
        """See PathFilesystem.readlink."""
        return _finish(self._readlink(req, nodeid))

    async def _readlink(self, req: Request, nodeid: int) -> bytes:
        with self._shared():
            return _bytes(await _value(self.fs.readlink(req, self._path(nodeid))))

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        """By any open handle, if the file has no name any more."""
        return _finish(self._getattr(req, nodeid, fh))

    async def _getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        with self._shared():
            path, fh = self._path_and_handle(nodeid, fh)
            return self._numbered(await _value(self.fs.getattr(req, path, fh)), nodeid)

    def statx(self, req: Request, nodeid: int, fh: int | None, flags: int, mask: int) -> Attr:
        """As getattr."""
        return _finish(self._statx(req, nodeid, fh, flags, mask))

    async def _statx(self, req: Request, nodeid: int, fh: int | None, flags: int, mask: int) -> Attr:
        with self._shared():
            path, fh = self._path_and_handle(nodeid, fh)
            return self._numbered(await _value(self.fs.statx(req, path, fh, flags, mask)), nodeid)

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        """By any open handle, if the file has no name any more."""
        return _finish(self._setattr(req, nodeid, changes, fh))

    async def _setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        with self._shared():
            path, fh = self._path_and_handle(nodeid, fh)
            attr = await _value(self.fs.setattr(req, path, changes, fh))
            if attr is None:
                attr = await _value(self.fs.getattr(req, path, fh))
            return self._numbered(attr, nodeid)

    def listxattr(self, req: Request, nodeid: int) -> list[bytes]:
        """See PathFilesystem.listxattr."""
        return _finish(self._listxattr(req, nodeid))

    async def _listxattr(self, req: Request, nodeid: int) -> list[bytes]:
        with self._shared():
            return [_bytes(name) for name in await _value(self.fs.listxattr(req, self._path(nodeid)))]

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
        """Two nodes, two paths."""
        with self._shared():
            path_in, path_out = self._path(nodeid_in, fh_in), self._path(nodeid_out, fh_out)
            return self.fs.copy_file_range(req, path_in, fh_in, offset_in, path_out, fh_out, offset_out, length, flags)

    # -- handles -------------------------------------------------------------------------------------------------------

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        """Notes the handle."""
        return _finish(self._open(req, nodeid, flags))

    async def _open(self, req: Request, nodeid: int, flags: int) -> Opened:
        with self._shared():
            path = self._path(nodeid)
            opened: Opened = await _value(self.fs.open(req, path, flags))
            await self._keep(req, nodeid, False, path, opened, flags)
            return opened

    def opendir(self, req: Request, nodeid: int, flags: int) -> Opened:
        """Notes the handle."""
        return _finish(self._opendir(req, nodeid, flags))

    async def _opendir(self, req: Request, nodeid: int, flags: int) -> Opened:
        with self._shared():
            path = self._path(nodeid)
            opened: Opened = await _value(self.fs.opendir(req, path, flags))
            await self._keep(req, nodeid, True, path, opened, flags)
            return opened

    async def _keep(self, req: Request, nodeid: int, is_dir: bool, path: str, opened: Opened, flags: int) -> None:
        """Note the handle. If the peer has left meanwhile nobody will ever close it, so that is done here."""
        if not opened.fh:
            return
        try:
            with self._lock:
                self._nodes.opened(self._nodes.get(nodeid), opened.fh, flags)
        except OSError:
            await _value(self._close(req, is_dir, path, opened.fh, flags))
            raise

    def create(self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        """create() and getattr() by the new handle."""
        return _finish(self._create(req, parent, name, mode, umask, flags))

    async def _create(
        self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int
    ) -> tuple[Entry, Opened]:
        with self._shared():
            path = self._child(parent, name)
            opened: Opened = await _value(self.fs.create(req, path, mode, umask, flags))
            entry = await self._entry_of(req, path, opened, flags, lambda attr: self._remember(parent, name, attr))
            return entry, opened

    def tmpfile(self, req: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        """tmpfile() and getattr() by the new handle."""
        return _finish(self._tmpfile(req, parent, mode, umask, flags))

    async def _tmpfile(self, req: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        with self._shared():
            path = self._path(parent)
            opened: Opened = await _value(self.fs.tmpfile(req, path, mode, umask, flags))
            if not opened.fh:
                raise RuntimeError(f"{type(self.fs).__name__}.tmpfile() gave no handle: nothing leads to the file")
            entry = await self._entry_of(req, path, opened, flags, lambda attr: self._remember_nameless(path, attr))
            return entry, opened

    async def _entry_of(
        self, req: Request, path: str, opened: Opened, flags: int, remember: Callable[[Attr], Entry]
    ) -> Entry:
        """The entry of a file that was just made and opened."""
        try:
            entry = remember(await _value(self.fs.getattr(req, path, opened.fh)))
        except BaseException:
            if opened.fh:
                await _value(self._close(req, False, path, opened.fh, flags))
            raise
        await self._keep(req, entry.nodeid, False, path, opened, flags)
        return entry

    def _remember_nameless(self, path: str, attr: Attr) -> Entry:
        with self._lock:
            node = self._nodes.add_nameless(attr.ino, path)
        return Entry(self._numbered(attr, node.nodeid), node.nodeid)

    def _closed(self, nodeid: int, fh: int) -> str:
        """The path of an open node, the last one if it has no name; the handle is not open any more."""
        with self._lock:
            node = self._nodes.get(nodeid)
            path = self._nodes.path(node) or node.last_path
            self._nodes.closed(node, fh)
        return path

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """Called whether or not the file still has a name."""
        return self.fs.release(req, self._closed(nodeid, fh), fh, flags, lock_owner, flock_unlock)

    def releasedir(self, req: Request, nodeid: int, fh: int, flags: int) -> None:
        """Called whether or not the directory still has a name."""
        return self.fs.releasedir(req, self._closed(nodeid, fh), fh, flags)

    # -- directories ---------------------------------------------------------------------------------------------------

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        """What readdir() gives or, if there is none, the names of listdir()."""
        return _finish(self._readdir(req, nodeid, fh, offset))

    async def _readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        with self._shared():
            path = self._path(nodeid, fh)
            if "readdir" in self._has:
                entries: Iterable[DirEntry] = await _value(self.fs.readdir(req, path, fh, offset))
                return entries
            names = list(await _value(self.fs.listdir(req, path)))
            with self._lock:
                known = dict(self._nodes.get(nodeid).children)
        return [self._dir_entry(name, known.get(name)) for name in names]

    @staticmethod
    def _dir_entry(name: str, node: PathNode | None) -> DirEntry:
        if node is None:
            return DirEntry(_bytes(name), UNKNOWN_INO)
        return DirEntry(_bytes(name), node.ino or node.nodeid, 4 if node.is_dir else 0)


def _pass_on(name: str) -> Callable[..., Any]:
    """An operation whose only translation is that of its node."""
    has_fh = name in WITH_HANDLE

    def call(self: PathAdapter, req: Request, nodeid: int, *args: Any) -> Any:
        with self._tree.free() if name in MAY_WAIT else self._shared():
            path = self._path(nodeid, args[0] if has_fh else None)
            return getattr(self.fs, name)(req, path, *args)

    return call


def _pass_on_named(name: str) -> Callable[..., Any]:
    """As _pass_on, for operations whose next argument is the name of an extended attribute."""

    def call(self: PathAdapter, req: Request, nodeid: int, attribute: bytes, *args: Any) -> Any:
        with self._shared():
            return getattr(self.fs, name)(req, self._path(nodeid), _text(attribute), *args)

    return call


WITH_HANDLE = frozenset(
    {"read", "write", "flush", "fsync", "fallocate", "lseek", "ioctl", "poll", "getlk", "setlk", "flock"}
    | {"fsyncdir"}
)
BY_NODE = WITH_HANDLE | {"access", "statfs", "syncfs"}
BY_NODE_AND_NAME = frozenset({"getxattr", "setxattr", "removexattr"})

for _name in sorted(BY_NODE | BY_NODE_AND_NAME):
    _make = _pass_on if _name in BY_NODE else _pass_on_named
    _method = _make(_name)
    _method.__name__ = _name
    _method.__qualname__ = f"PathAdapter.{_name}"
    _method.__doc__ = getattr(PathFilesystem, _name).__doc__
    setattr(PathAdapter, _name, _method)

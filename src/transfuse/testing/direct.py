"""A volume that calls a Filesystem's methods itself: no session, no bytes, no cache between.

It does what a kernel would do around them (walking a path, creating or opening, closing in two steps) and pays every
lookup back at once, so that the tables of the filesystem are empty whenever nothing is open.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import ROOT_ID, Attr, AttrChanges, Entry, IoctlResult, Lock
from transfuse.testing.volume import OpenFile, Space, Stat, Volume

__all__ = ["DirectVolume"]

T = TypeVar("T")
MAX_LINKS = 40
"""Symbolic links followed on one path, as in Linux."""
LISTING_STEP = 100
"""Names taken of one readdir() before it is asked again at a cookie, as a peer's buffer would make it."""


def _stat(attr: Attr) -> Stat:
    return Stat(
        attr.ino,
        attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.rdev,
        attr.size,
        attr.blocks,
        attr.atime_ns,
        attr.mtime_ns,
        attr.ctime_ns,
    )


class _Owners:
    """Lock owners: one number per open file."""

    numbers = itertools.count(1)


class DirectFile(OpenFile):
    """A handle, and the lookup that keeps its node."""

    def __init__(self, volume: DirectVolume, nodeid: int, fh: int, flags: int) -> None:
        self.volume = volume
        self.nodeid = nodeid
        self.fh = fh
        self.flags = flags
        self.owner = next(_Owners.numbers)
        self._flocked = False
        self._closed = False

    def pread(self, size: int, offset: int) -> bytes:
        found = self.volume.fs.read(self.volume.request(), self.nodeid, self.fh, size, offset)
        assert isinstance(found, (bytes, bytearray, memoryview))
        return bytes(found)

    def pwrite(self, data: bytes, offset: int) -> int:
        return self.volume.fs.write(self.volume.request(), self.nodeid, self.fh, data, offset, 0)

    def truncate(self, size: int) -> None:
        self.volume.fs.setattr(self.volume.request(), self.nodeid, AttrChanges(size=size), self.fh)

    def stat(self) -> Stat:
        return _stat(self.volume.fs.getattr(self.volume.request(), self.nodeid, self.fh))

    def fsync(self, datasync: bool = False) -> None:
        self.volume.fs.fsync(self.volume.request(), self.nodeid, self.fh, datasync)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        self.volume.fs.fallocate(self.volume.request(), self.nodeid, self.fh, mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        return self.volume.fs.lseek(self.volume.request(), self.nodeid, self.fh, offset, whence)

    def copy_to(self, other: OpenFile, offset: int, other_offset: int, length: int) -> int:
        assert isinstance(other, DirectFile)
        return self.volume.fs.copy_file_range(
            self.volume.request(), self.nodeid, self.fh, offset, other.nodeid, other.fh, other_offset, length, 0
        )

    @staticmethod
    def _range(kind: int, start: int, length: int) -> Lock:
        return Lock(kind, start, start + length - 1 if length else Lock.MAX_END)

    def lock(self, kind: int, start: int, length: int, wait: bool = False) -> None:
        lock = self._range(kind, start, length)
        self.volume.fs.setlk(self.volume.request(), self.nodeid, self.fh, self.owner, lock, wait)

    def lock_in_the_way(self, kind: int, start: int, length: int) -> tuple[int, int, int] | None:
        lock = self._range(kind, start, length)
        found = self.volume.fs.getlk(self.volume.request(), self.nodeid, self.fh, self.owner, lock)
        if found is None:
            return None
        return found.kind, found.start, 0 if found.end == Lock.MAX_END else found.end - found.start + 1

    def flock(self, kind: int, wait: bool = False) -> None:
        self.volume.fs.flock(self.volume.request(), self.nodeid, self.fh, self.owner, kind, wait)
        self._flocked = True

    def ioctl(self, cmd: int, data: bytes) -> bytes:
        found = self.volume.fs.ioctl(self.volume.request(), self.nodeid, self.fh, cmd, 0, data, len(data), 0)
        if isinstance(found, IoctlResult):
            return found.data or data
        return data if isinstance(found, int) else found

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        volume, fs = self.volume, self.volume.fs
        if "flush" in volume.operations:
            fs.flush(volume.request(), self.nodeid, self.fh, self.owner)
        if "release" in volume.operations:
            fs.release(volume.request(), self.nodeid, self.fh, self.flags, self.owner, self._flocked)
        volume.forget(self.nodeid, 1)


class _As(Request):
    """A request of someone with supplementary groups."""

    __slots__ = ("_known_groups",)

    def __init__(self, volume: DirectVolume) -> None:
        super().__init__(uid=volume.uid, gid=volume.gid)
        self._known_groups = volume.groups

    @property
    def groups(self) -> tuple[int, ...]:
        return self._known_groups


class DirectVolume(Volume):
    """The volume of a Filesystem, as seen by `uid`, `gid` and `groups`."""

    def __init__(self, fs: Filesystem, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()) -> None:
        self.fs = fs
        self.operations = fs.operations()
        self.uid = uid
        self.gid = gid
        self.groups = groups

    @contextmanager
    def identity(self, uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
        """Requests carry these ids while the context lasts; not for use by several threads at a time."""
        before = self.uid, self.gid, self.groups
        self.uid, self.gid, self.groups = uid, gid, tuple(groups)
        try:
            yield
        finally:
            self.uid, self.gid, self.groups = before

    def request(self) -> Request:
        """A request of this volume's user."""
        return _As(self) if self.groups else Request(uid=self.uid, gid=self.gid)

    def forget(self, nodeid: int, count: int) -> None:
        """Give lookups back."""
        if nodeid != ROOT_ID and "forget" in self.operations:
            self.fs.forget(self.request(), nodeid, count)

    @contextmanager
    def node(self, path: str, follow: bool = False) -> Iterator[tuple[int, Attr | None]]:
        """Walk to `path`: its nodeid and, unless it is the root, attributes. Held while the context lasts.

        Symbolic links on the way are followed, the last component only with `follow`, and then it must be a directory.
        """
        nodeid, attr = int(ROOT_ID), None
        held: list[int] = []
        links = 0
        ahead = [name for name in reversed(path.split("/")) if name]
        above: list[tuple[int, Attr | None]] = []
        try:
            while ahead:
                name = ahead.pop()
                if attr is not None and not stat.S_ISDIR(attr.mode):
                    raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
                if name == ".":
                    continue
                if name == "..":
                    nodeid, attr = above.pop() if above else (nodeid, attr)
                    continue
                entry = self.fs.lookup(self.request(), nodeid, os.fsencode(name))
                if entry.attr is None:
                    raise FileNotFoundError(errno.ENOENT, "no such name", path)
                held.append(entry.nodeid)
                if (ahead or follow) and stat.S_ISLNK(entry.attr.mode):
                    links += 1
                    if links > MAX_LINKS:
                        raise OSError(errno.ELOOP, "too many symbolic links", path)
                    target = os.fsdecode(self.fs.readlink(self.request(), entry.nodeid))
                    if target.startswith("/"):
                        nodeid, attr, above = int(ROOT_ID), None, []
                    ahead += [part for part in reversed(target.split("/")) if part]
                    continue
                above.append((nodeid, attr))
                nodeid, attr = entry.nodeid, entry.attr
            if follow and attr is not None and not stat.S_ISDIR(attr.mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
            yield nodeid, attr
        finally:
            for held_id in held:
                self.forget(held_id, 1)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, bytes]]:
        """Walk to the directory of `path`, which must be searchable: its nodeid and the last name."""
        above, _, name = path.rpartition("/")
        with self.node(above, follow=True) as (nodeid, _):
            if self.uid and "access" in self.operations:
                self.fs.access(self.request(), nodeid, 1)
            yield nodeid, os.fsencode(name)

    def _made(self, path: str, make: Callable[[int, bytes], Entry]) -> None:
        with self.parent(path) as (parent, name):
            self.forget(make(parent, name).nodeid, 1)

    def _on(self, path: str, call: Callable[[int], T]) -> T:
        with self.node(path) as (nodeid, _):
            return call(nodeid)

    def stat(self, path: str) -> Stat:
        return self._on(path, lambda nodeid: _stat(self.fs.getattr(self.request(), nodeid, None)))

    def scandir(self, path: str) -> list[tuple[str, int, int]]:
        with self.node(path, follow=True) as (nodeid, _):
            fh = self.fs.opendir(self.request(), nodeid, 0).fh if "opendir" in self.operations else 0
            try:
                return self._listing(nodeid, fh)
            finally:
                if "releasedir" in self.operations:
                    self.fs.releasedir(self.request(), nodeid, fh, 0)

    def _listing(self, nodeid: int, fh: int) -> list[tuple[str, int, int]]:
        found = []
        offset = 0
        seen = {offset}
        while True:
            part = list(itertools.islice(self.fs.readdir(self.request(), nodeid, fh, offset), LISTING_STEP))
            if part and not part[0].cookie:
                part = list(self.fs.readdir(self.request(), nodeid, fh, 0))
            found += [(os.fsdecode(e.name), e.ino, e.kind) for e in part if e.name not in (b".", b"..")]
            if not part or not part[-1].cookie:
                return found
            offset = part[-1].cookie
            if offset in seen:
                raise OSError(errno.EIO, f"the listing comes back to cookie {offset}")
            seen.add(offset)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._made(path, lambda parent, name: self.fs.mkdir(self.request(), parent, name, mode, 0))

    def rmdir(self, path: str) -> None:
        with self.parent(path) as (parent, name):
            self.fs.rmdir(self.request(), parent, name)

    def unlink(self, path: str) -> None:
        with self.parent(path) as (parent, name):
            self.fs.unlink(self.request(), parent, name)

    def rename(self, path: str, newpath: str, flags: int = 0) -> None:
        if flags & 2 and flags & 5:
            raise OSError(errno.EINVAL, "RENAME_EXCHANGE goes with no other flag")  # the kernel looks before it walks
        with self.parent(path) as (parent, name), self.parent(newpath) as (newparent, newname):
            self.fs.rename(self.request(), parent, name, newparent, newname, flags)

    def link(self, path: str, newpath: str) -> None:
        with self.node(path) as (nodeid, _):
            self._made(newpath, lambda parent, name: self.fs.link(self.request(), nodeid, parent, name))

    def symlink(self, target: str, path: str) -> None:
        to = os.fsencode(target)
        self._made(path, lambda parent, name: self.fs.symlink(self.request(), parent, name, to))

    def readlink(self, path: str) -> str:
        with self.node(path) as (nodeid, attr):
            if attr is None or not stat.S_ISLNK(attr.mode):
                raise OSError(errno.EINVAL, "not a symbolic link", path)
            return os.fsdecode(self.fs.readlink(self.request(), nodeid))

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        self._made(path, lambda parent, name: self.fs.mknod(self.request(), parent, name, mode, rdev, 0))

    def open(self, path: str, flags: int, mode: int = 0o644) -> OpenFile:
        if not flags & os.O_CREAT:
            return self._open(path, flags)
        with self.parent(path) as (parent, name):
            try:
                there = self.fs.lookup(self.request(), parent, name)
            except FileNotFoundError:
                there = Entry(None)
            if there.attr is not None:
                self.forget(there.nodeid, 1)
                if flags & os.O_EXCL:
                    raise FileExistsError(errno.EEXIST, "the name exists", path)
                if stat.S_ISDIR(there.attr.mode):
                    raise IsADirectoryError(errno.EISDIR, "a directory", path)
                return self._open(path, flags & ~os.O_CREAT)
            if "create" not in self.operations:
                self._made(path, lambda p, n: self.fs.mknod(self.request(), p, n, stat.S_IFREG | mode, 0, 0))
                return self._open(path, flags & ~(os.O_CREAT | os.O_EXCL))
            entry, opened = self.fs.create(self.request(), parent, name, mode, 0, flags)
            return DirectFile(self, entry.nodeid, opened.fh, flags)

    def _open(self, path: str, flags: int) -> DirectFile:
        above, _, name = path.rpartition("/")
        with self.node(above, follow=True) as (parent, _):
            nodeid = self.fs.lookup(self.request(), parent, os.fsencode(name)) if name else None
            target = nodeid.nodeid if nodeid is not None else int(ROOT_ID)
            try:
                if nodeid is not None and nodeid.attr is None:
                    raise FileNotFoundError(errno.ENOENT, "no such name", path)
                if nodeid is not None and nodeid.attr is not None and stat.S_ISLNK(nodeid.attr.mode):
                    raise OSError(errno.ELOOP, "a symbolic link", path)
                fh = self.fs.open(self.request(), target, flags).fh if "open" in self.operations else 0
            except OSError:
                self.forget(target, 1)
                raise
            return DirectFile(self, target, fh, flags)

    def tmpfile(self, path: str, flags: int = os.O_RDWR, mode: int = 0o644) -> OpenFile:
        with self.node(path, follow=True) as (nodeid, _):
            entry, opened = self.fs.tmpfile(self.request(), nodeid, mode, 0, flags)
            return DirectFile(self, entry.nodeid, opened.fh, flags)

    def link_open(self, file: OpenFile, newpath: str) -> None:
        assert isinstance(file, DirectFile)
        self._made(newpath, lambda parent, name: self.fs.link(self.request(), file.nodeid, parent, name))

    def _set(self, path: str, changes: AttrChanges) -> None:
        self._on(path, lambda nodeid: self.fs.setattr(self.request(), nodeid, changes, None))

    def truncate(self, path: str, size: int) -> None:
        self._set(path, AttrChanges(size=size))

    def chmod(self, path: str, mode: int) -> None:
        self._set(path, AttrChanges(mode=mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._set(path, AttrChanges(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid))

    def utime(self, path: str, times_ns: tuple[int, int] | None) -> None:
        if times_ns is None:
            self._set(path, AttrChanges(atime_now=True, mtime_now=True))
        else:
            self._set(path, AttrChanges(atime_ns=times_ns[0], mtime_ns=times_ns[1]))

    def access(self, path: str, mask: int) -> bool:
        try:
            self._on(path, lambda nodeid: self.fs.access(self.request(), nodeid, mask))
        except PermissionError:
            return False
        return True

    def getxattr(self, path: str, name: str) -> bytes:
        return self._on(path, lambda nodeid: self.fs.getxattr(self.request(), nodeid, os.fsencode(name)))

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        attribute = os.fsencode(name)
        self._on(path, lambda nodeid: self.fs.setxattr(self.request(), nodeid, attribute, value, flags, False))

    def listxattr(self, path: str) -> list[str]:
        return [os.fsdecode(n) for n in self._on(path, lambda nodeid: self.fs.listxattr(self.request(), nodeid))]

    def removexattr(self, path: str, name: str) -> None:
        self._on(path, lambda nodeid: self.fs.removexattr(self.request(), nodeid, os.fsencode(name)))

    def statfs(self, path: str = "/") -> Space:
        found = self._on(path, lambda nodeid: self.fs.statfs(self.request(), nodeid))
        return Space(found.blocks, found.bfree, found.files, found.ffree, found.frsize, found.namelen)

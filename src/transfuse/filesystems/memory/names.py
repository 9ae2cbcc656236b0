"""The operations on names: looking up, making, removing, renaming, linking, listing.

The order of the checks is Linux's (fs/namei.c), so that the errno is the one a native filesystem gives when several
would do.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from transfuse.filesystems.memory.inode import Inode
from transfuse.filesystems.memory.state import LINK_MAX, NAME_MAX, Handle, State, W, X, error
from transfuse.fs.request import Request
from transfuse.fs.values import DirEntry, Entry, Opened

__all__ = ["Names"]

PATH_MAX = 4096
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
DAY_NS = 86_400 * 1_000_000_000
MAKEABLE = frozenset((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK))


class Names(State):
    """Directory operations."""

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        """Also of "." and "..", of any inode that exists."""
        with self._lock:
            if name == b".":
                return self._entry(self._inode(parent))
            directory = self._directory(parent)
            if self.check_permissions:
                self._need(req, directory, X)
            if name == b"..":
                return self._entry(self._inode((directory.parent or directory).ino))
            return self._entry(self._child(directory, name).inode)

    def symlink(self, req: Request, parent: int, name: bytes, target: bytes) -> Entry:
        """ENAMETOOLONG for a target of PATH_MAX bytes and more."""
        if not 0 < len(target) < PATH_MAX:
            raise error(errno.ENAMETOOLONG if target else errno.ENOENT)
        with self._lock:
            directory = self._directory(parent)
            self._room_for_name(req, directory, name)
            self._charge_pages(1)
            try:
                inode = self._make(req, directory, stat.S_IFLNK | 0o777, 0)
            except OSError:
                self._charge_pages(-1)
                raise
            inode.target = target
            self._enter(directory, name, inode)
            return self._entry(inode)

    def mknod(self, req: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """Devices only for root (when permissions are checked here), but anyone may make a whiteout (0:0)."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in MAKEABLE:
            raise error(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
        with self._lock:
            directory = self._directory(parent)
            self._room_for_name(req, directory, name)
            if kind == stat.S_IFBLK or (kind == stat.S_IFCHR and rdev):
                self._need_root(req)
            inode = self._make(req, directory, kind | mode & 0o7777, umask)
            if kind in (stat.S_IFBLK, stat.S_IFCHR):
                inode.rdev = rdev
            self._enter(directory, name, inode)
            return self._entry(inode)

    def mkdir(self, req: Request, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        """The setgid bit of the parent is passed on."""
        with self._lock:
            directory = self._directory(parent)
            self._room_for_name(req, directory, name)
            if directory.nlink >= LINK_MAX:
                raise error(errno.EMLINK)
            inode = self._make(req, directory, stat.S_IFDIR | mode & 0o1777, umask)
            self._enter(directory, name, inode)
            return self._entry(inode)

    def unlink(self, req: Request, parent: int, name: bytes) -> None:
        """EISDIR for a directory, as in Linux (POSIX allows EPERM)."""
        with self._lock:
            directory = self._directory(parent)
            self._need(req, directory, X)
            inode = self._child(directory, name).inode
            self._need_entry_change(req, directory, inode)
            if inode.children is not None:
                raise error(errno.EISDIR)
            self._leave(directory, name, inode)

    def rmdir(self, req: Request, parent: int, name: bytes) -> None:
        """ENOTDIR for anything else, ENOTEMPTY for a directory with names in it."""
        with self._lock:
            directory = self._directory(parent)
            self._need(req, directory, X)
            inode = self._child(directory, name).inode
            self._need_entry_change(req, directory, inode)
            if inode.children is None:
                raise error(errno.ENOTDIR)
            if inode.children:
                raise error(errno.ENOTEMPTY)
            self._leave(directory, name, inode)

    def link(self, req: Request, nodeid: int, newparent: int, newname: bytes) -> Entry:
        """EPERM for directories, EMLINK beyond LINK_MAX, ENOENT for an unlinked file (but not for an O_TMPFILE)."""
        with self._lock:
            inode = self._inode(nodeid)
            directory = self._directory(newparent)
            self._room_for_name(req, directory, newname)
            if inode.children is not None:
                raise error(errno.EPERM)
            self._need_changeable(inode)
            if not inode.nlink and not inode.linkable:
                raise error(errno.ENOENT)
            if inode.nlink >= LINK_MAX:
                raise error(errno.EMLINK)
            if inode.nlink:
                self._charge_name()
            inode.linkable = False
            self._enter(directory, newname, inode)
            inode.touch_ctime(self._clock())
            return self._entry(inode)

    def readlink(self, req: Request, nodeid: int) -> bytes:
        """EINVAL if it is no symbolic link."""
        inode = self._inode(nodeid)
        if inode.target is None:
            raise error(errno.EINVAL)
        self._accessed(inode)
        return inode.target

    def _accessed(self, inode: Inode) -> None:
        """atime as relatime keeps it: only if it is older than a change, or a day old."""
        atime = inode.atime_ns
        if atime > inode.mtime_ns and atime > inode.ctime_ns:
            now = self._clock()
            if now - atime < DAY_NS:
                return
            inode.atime_ns = now
        else:
            inode.atime_ns = self._clock()

    # -- rename --------------------------------------------------------------------------------------------------------

    def rename(self, req: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Atomic for everyone else. A name that is renamed over keeps its place in listings."""
        if flags & ~7 or (flags & RENAME_EXCHANGE and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT)):
            raise error(errno.EINVAL)
        with self._lock:
            old_dir, new_dir = self._directory(parent), self._directory(newparent)
            self._need(req, old_dir, X)
            self._need(req, new_dir, X)
            source = self._child(old_dir, name).inode
            if len(newname) > NAME_MAX:
                raise error(errno.ENAMETOOLONG)
            assert new_dir.children is not None
            there = new_dir.children.get(newname)
            target = there.inode if there is not None else None
            if target is not None and flags & RENAME_NOREPLACE:
                raise error(errno.EEXIST)
            if target is None and flags & RENAME_EXCHANGE:
                raise error(errno.ENOENT)
            if source.children is not None and self._is_below(new_dir, source):
                raise error(errno.EINVAL)
            if target is not None and target.children is not None and self._is_below(old_dir, target):
                raise error(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
            if source is target:
                return
            if not new_dir.nlink:
                raise error(errno.ENOENT)
            self._may_rename(req, old_dir, source, new_dir, target, flags)
            if flags & RENAME_EXCHANGE:
                assert target is not None
                self._exchange(old_dir, name, source, new_dir, newname, target)
            else:
                self._replace(req, old_dir, name, source, new_dir, newname, target, bool(flags & RENAME_WHITEOUT))

    @staticmethod
    def _is_below(directory: Inode, ancestor: Inode) -> bool:
        """Is `directory` the ancestor itself or somewhere below it? Ends at the root, which is its own parent."""
        while directory is not ancestor:
            if directory.parent is None or directory.parent is directory:
                return False
            directory = directory.parent
        return True

    def _may_rename(
        self, req: Request, old_dir: Inode, source: Inode, new_dir: Inode, target: Inode | None, flags: int
    ) -> None:
        exchange = bool(flags & RENAME_EXCHANGE)
        self._need_entry_change(req, old_dir, source)
        self._need_entry_change(req, new_dir, target)
        if target is not None and not exchange:
            if source.children is not None and target.children is None:
                raise error(errno.ENOTDIR)
            if source.children is None and target.children is not None:
                raise error(errno.EISDIR)
        if old_dir is not new_dir:
            # A directory that moves gets another "..": that is a change of its own content.
            if source.children is not None:
                self._need(req, source, W)
            if exchange and target is not None and target.children is not None:
                self._need(req, target, W)
            gains = source.children is not None and (target is None or (exchange and target.children is None))
            if gains and new_dir.nlink >= LINK_MAX:
                raise error(errno.EMLINK)
        if target is not None and not exchange and target.children:
            raise error(errno.ENOTEMPTY)

    def _replace(
        self,
        req: Request,
        old_dir: Inode,
        name: bytes,
        source: Inode,
        new_dir: Inode,
        newname: bytes,
        target: Inode | None,
        whiteout: bool,
    ) -> None:
        left_behind = self._make(req, old_dir, stat.S_IFCHR, 0o777) if whiteout else None
        now = self._clock()
        is_dir = source.children is not None
        assert old_dir.children is not None and new_dir.children is not None
        if left_behind is None:
            old_dir.remove(name)
        else:
            left_behind.nlink = 1
            old_dir.children[name].inode = left_behind
        if is_dir:
            old_dir.nlink -= 1
        if target is None:
            new_dir.add(newname, source)
        else:
            new_dir.children[newname].inode = source
            if target.children is not None:
                target.nlink = 0
                new_dir.nlink -= 1
            else:
                target.nlink -= 1
                if target.nlink:
                    self._names -= 1
            target.touch_ctime(now)
        if is_dir:
            source.parent = new_dir
            new_dir.nlink += 1
        source.touch_ctime(now)
        old_dir.touch_mtime(now)
        new_dir.touch_mtime(now)
        if target is not None:
            self._settle(target)

    def _exchange(
        self, old_dir: Inode, name: bytes, source: Inode, new_dir: Inode, newname: bytes, target: Inode
    ) -> None:
        assert old_dir.children is not None and new_dir.children is not None
        old_dir.children[name].inode = target
        new_dir.children[newname].inode = source
        for inode, was, becomes in ((source, old_dir, new_dir), (target, new_dir, old_dir)):
            if inode.children is not None:
                was.nlink -= 1
                becomes.nlink += 1
                inode.parent = becomes
        now = self._clock()
        source.touch_ctime(now)
        target.touch_ctime(now)
        old_dir.touch_mtime(now)
        new_dir.touch_mtime(now)

    # -- listings ------------------------------------------------------------------------------------------------------

    def opendir(self, req: Request, nodeid: int, flags: int) -> Opened:
        """A handle that keeps a removed directory alive."""
        with self._lock:
            inode = self._directory(nodeid)
            self._need(req, inode, 4)
            fh = self._handles.add(Handle(inode, 0))
            inode.opens += 1
            return Opened(fh)

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        """Every name has a cookie of its own, so removing while listing neither skips nor repeats.

        Names that are added while an open directory is listed come with its next listing from the start. Otherwise a
        program that renames every file as it finds it would find it again under its new name, and never end.
        """
        inode = self._directory(nodeid)
        end = inode.next_cookie
        if fh:
            handle = self._handle(fh, nodeid)
            if offset:
                end = handle.listing_end
            else:
                handle.listing_end = end
        self._accessed(inode)
        return self._entries(inode, offset, end)

    @staticmethod
    def _entries(inode: Inode, offset: int, end: int) -> Iterator[DirEntry]:
        if offset < 1:
            yield DirEntry(b".", inode.ino, 4, 1)
        if offset < 2:
            yield DirEntry(b"..", (inode.parent or inode).ino, 4, 2)
        for child in inode.listing(offset, end):
            yield DirEntry(child.name, child.inode.ino, child.inode.mode >> 12, child.cookie)

    def releasedir(self, req: Request, nodeid: int, fh: int, flags: int) -> None:
        """A removed directory goes with its last handle."""
        with self._lock:
            inode = self._handles.remove(fh).inode
            inode.opens -= 1
            self._settle(inode)

    def fsyncdir(self, req: Request, nodeid: int, fh: int, datasync: bool) -> None:
        """Memory is as durable as it gets."""
        self._directory(nodeid)

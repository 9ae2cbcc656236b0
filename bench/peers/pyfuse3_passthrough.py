"""A pass-through filesystem as a user of pyfuse3 would write it: inode numbers mapped to paths, trio, coroutines.

Usage: pyfuse3_passthrough.py SOURCE MOUNTPOINT (stays in the foreground). Cache times are long, because the other
subjects are compared with caches on too. Hard links share a node whose first path is kept: enough for these workloads.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

CACHE_SECONDS = 3600


class Passthrough(pyfuse3.Operations):
    """nodeid → host path; file handles are host file descriptors, directory handles keys of a table of listings."""

    enable_writeback_cache = False

    def __init__(self, source: str) -> None:
        super().__init__()
        self.paths: dict[int, bytes] = {pyfuse3.ROOT_INODE: os.fsencode(source)}
        self.lookups: dict[int, int] = {}
        self.listings: dict[int, list[bytes]] = {}
        self.next_listing = 1
        self.root_ino = os.stat(source).st_ino

    def _nodeid(self, st: os.stat_result) -> int:
        return pyfuse3.ROOT_INODE if st.st_ino == self.root_ino else (st.st_ino << 1) + 2

    def _attributes(self, st: os.stat_result) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = self._nodeid(st)
        for key in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks",
                    "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):  # fmt: skip
            setattr(entry, key, getattr(st, key))
        entry.entry_timeout = entry.attr_timeout = CACHE_SECONDS
        return entry

    def _stat(self, path: bytes) -> os.stat_result:
        try:
            return os.lstat(path)
        except OSError as error:
            raise FUSEError(error.errno) from None

    def _remember(self, path: bytes, st: os.stat_result) -> EntryAttributes:
        nodeid = self._nodeid(st)
        self.paths[nodeid] = path
        self.lookups[nodeid] = self.lookups.get(nodeid, 0) + 1
        return self._attributes(st)

    def _child(self, parent: int, name: bytes) -> bytes:
        return os.path.join(self.paths[parent], name)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> EntryAttributes:
        path = self._child(parent_inode, name)
        return self._remember(path, self._stat(path))

    async def forget(self, inode_list: Any) -> None:
        for nodeid, count in inode_list:
            left = self.lookups.get(nodeid, 0) - count
            if left > 0:
                self.lookups[nodeid] = left
            else:
                self.lookups.pop(nodeid, None)
                if nodeid != pyfuse3.ROOT_INODE:
                    self.paths.pop(nodeid, None)

    async def getattr(self, inode: int, ctx: Any = None) -> EntryAttributes:
        return self._attributes(self._stat(self.paths[inode]))

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> EntryAttributes:
        path = self.paths[inode]
        try:
            if fields.update_size:
                os.truncate(path if fh is None else fh, attr.st_size)
            if fields.update_mode:
                os.chmod(path, attr.st_mode & 0o7777)
            if fields.update_uid or fields.update_gid:
                os.lchown(path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)
            if fields.update_atime or fields.update_mtime:
                old = os.lstat(path)
                os.utime(path, ns=(attr.st_atime_ns if fields.update_atime else old.st_atime_ns,
                                   attr.st_mtime_ns if fields.update_mtime else old.st_mtime_ns),
                         follow_symlinks=False)  # fmt: skip
        except OSError as error:
            raise FUSEError(error.errno) from None
        return await self.getattr(inode)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return os.readlink(self.paths[inode])

    async def opendir(self, inode: int, ctx: Any) -> int:
        handle, self.next_listing = self.next_listing, self.next_listing + 1
        try:
            self.listings[handle] = [os.path.join(self.paths[inode], name) for name in os.listdir(self.paths[inode])]
        except OSError as error:
            raise FUSEError(error.errno) from None
        return handle

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        listing = self.listings[fh]
        for index in range(start_id, len(listing)):
            path = listing[index]
            try:
                st = os.lstat(path)
            except FileNotFoundError:
                continue
            if not pyfuse3.readdir_reply(token, os.path.basename(path), self._attributes(st), index + 1):
                break
            self._remember(path, st)

    async def releasedir(self, fh: int) -> None:
        del self.listings[fh]

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        try:
            return FileInfo(fh=os.open(self.paths[inode], flags & ~os.O_CREAT), keep_cache=True)
        except OSError as error:
            raise FUSEError(error.errno) from None

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        path = self._child(parent_inode, name)
        try:
            fd = os.open(path, flags | os.O_CREAT, mode)
        except OSError as error:
            raise FUSEError(error.errno) from None
        return FileInfo(fh=fd), self._remember(path, os.fstat(fd))

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return os.pwrite(fh, buf, off)

    async def flush(self, fh: int) -> None:
        return None

    async def fsync(self, fh: int, datasync: bool) -> None:
        os.fsync(fh)

    async def release(self, fh: int) -> None:
        os.close(fh)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> EntryAttributes:
        path = self._child(parent_inode, name)
        try:
            os.mkdir(path, mode)
        except OSError as error:
            raise FUSEError(error.errno) from None
        return self._remember(path, self._stat(path))

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        try:
            os.unlink(self._child(parent_inode, name))
        except OSError as error:
            raise FUSEError(error.errno) from None

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        try:
            os.rmdir(self._child(parent_inode, name))
        except OSError as error:
            raise FUSEError(error.errno) from None

    async def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int, ctx: Any) -> None:
        source, target = self._child(old_parent, old), self._child(new_parent, new)
        try:
            os.rename(source, target)
        except OSError as error:
            raise FUSEError(error.errno) from None
        nodeid = self._nodeid(os.lstat(target))
        if nodeid in self.paths:
            self.paths[nodeid] = target

    async def statfs(self, ctx: Any) -> Any:
        st, data = os.statvfs(self.paths[pyfuse3.ROOT_INODE]), pyfuse3.StatvfsData()
        for key in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(data, key, getattr(st, key))
        data.f_namemax = st.f_namemax
        return data


if __name__ == "__main__":
    pyfuse3.init(Passthrough(sys.argv[1]), sys.argv[2], {*pyfuse3.default_options, "fsname=pyfuse3_passthrough"})
    trio.run(pyfuse3.main)
    pyfuse3.close(unmount=True)

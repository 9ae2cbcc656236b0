"""One inode of the memory filesystem: plain state, and the few rules that belong to it alone.

A directory keeps `children` (name -> Child) and `order`, its Childs in the order of their cookies. A cookie is given to
a name once and never to another, so a listing that goes on after cookie n misses nothing and repeats nothing, whatever
was removed meanwhile; one that stops at the `next_cookie` of its beginning has an end, whatever is added. Removed
Childs stay in `order` until half of it is dead.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Iterator

from transfuse.filesystems.memory.sparse import PAGE, SparseBytes
from transfuse.fs.acl import Acl
from transfuse.fs.values import Attr

__all__ = ["Child", "Inode"]

FIRST_COOKIE = 3
"""1 and 2 are "." and ".."."""
DIRENT_SIZE = 20
"""What one entry adds to a directory's st_size, as on tmpfs."""
STATX_ATTR_IMMUTABLE, STATX_ATTR_APPEND, STATX_ATTR_NODUMP = 0x10, 0x20, 0x40
FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL = 0x10, 0x20, 0x40


class Child:
    """A name in a directory."""

    __slots__ = ("alive", "cookie", "inode", "name")

    def __init__(self, name: bytes, inode: Inode, cookie: int) -> None:
        self.name = name
        self.inode = inode
        self.cookie = cookie
        self.alive = True


class Inode:
    """A file of any kind. `parent` is set for directories: the one that holds its name."""

    __slots__ = (
        "acl",
        "atime_ns",
        "btime_ns",
        "children",
        "ctime_ns",
        "data",
        "default_acl",
        "flags",
        "gid",
        "ino",
        "linkable",
        "mode",
        "mtime_ns",
        "next_cookie",
        "nlink",
        "nlookup",
        "opens",
        "order",
        "parent",
        "rdev",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now_ns: int) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = 0
        self.nlink = 0
        self.nlookup = 0
        self.opens = 0
        self.linkable = False
        """Made without a name by O_TMPFILE, and may still get one."""
        self.flags = 0
        """FS_*_FL bits of FS_IOC_SETFLAGS."""
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.btime_ns = now_ns
        self.acl: Acl | None = None
        self.default_acl: Acl | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        self.data: SparseBytes | None = None
        self.target: bytes | None = None
        self.parent: Inode | None = None
        self.children: dict[bytes, Child] | None = None
        self.order: list[Child] = []
        self.next_cookie = FIRST_COOKIE

    @property
    def is_dir(self) -> bool:
        """Is it a directory?"""
        return self.children is not None

    @property
    def size(self) -> int:
        """st_size in bytes."""
        if self.data is not None:
            return self.data.size
        if self.children is not None:
            return (len(self.children) + 2) * DIRENT_SIZE
        return len(self.target) if self.target is not None else 0

    def attr(self) -> Attr:
        """What stat(2) shows."""
        data = self.data
        return Attr(
            self.ino,
            self.mode,
            data.size if data is not None else self.size,
            self.nlink,
            self.uid,
            self.gid,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            len(data.pages) * (PAGE // 512) if data is not None else 0,
            PAGE,
            self.rdev,
        )

    def statx(self) -> Attr:
        """What statx(2) shows: the birth time and the attributes, too."""
        attr = self.attr()
        attr.btime_ns = self.btime_ns
        flags = self.flags
        attr.attributes = (
            (STATX_ATTR_IMMUTABLE if flags & FS_IMMUTABLE_FL else 0)
            | (STATX_ATTR_APPEND if flags & FS_APPEND_FL else 0)
            | (STATX_ATTR_NODUMP if flags & FS_NODUMP_FL else 0)
        )
        attr.attributes_mask = STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND | STATX_ATTR_NODUMP
        return attr

    def touch_ctime(self, now_ns: int) -> None:
        """Something about the inode changed."""
        self.ctime_ns = now_ns

    def touch_mtime(self, now_ns: int) -> None:
        """The content changed."""
        self.mtime_ns = self.ctime_ns = now_ns

    def kill_suidgid(self, in_group: bool = True) -> None:
        """Clear setuid, and setgid unless the caller is in the group and the group may not execute (which once meant
        mandatory locking): Linux's setattr_should_drop_sgid()."""
        mode = self.mode
        if mode & (stat.S_ISUID | stat.S_ISGID) and self.children is None:
            self.mode = mode & ~stat.S_ISUID & ~(0 if in_group and not mode & stat.S_IXGRP else stat.S_ISGID)

    # -- directories ---------------------------------------------------------------------------------------------------

    def add(self, name: bytes, inode: Inode) -> None:
        """Enter a new name into this directory; link counts are the caller's."""
        assert self.children is not None
        child = Child(name, inode, self.next_cookie)
        self.next_cookie += 1
        self.children[name] = child
        self.order.append(child)

    def remove(self, name: bytes) -> None:
        """Take a name out of this directory."""
        assert self.children is not None
        self.children.pop(name).alive = False
        if len(self.order) > 2 * len(self.children) + 32:
            # A new list: a listing under way goes on with the old one.
            self.order = [child for child in self.order if child.alive]

    def listing(self, after: int, end: int) -> Iterator[Child]:
        """The names whose cookie is larger than `after` and smaller than `end`, in order."""
        order = self.order
        at = bisect_right(order, after, key=lambda child: child.cookie)
        while at < len(order):
            child = order[at]
            at += 1
            if child.cookie >= end:
                return
            if child.alive:
                yield child

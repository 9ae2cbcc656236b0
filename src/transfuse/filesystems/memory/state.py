"""What all parts of the memory filesystem share: the inodes, the accounts, the clock, and who may do what.

Everything is guarded by one lock, held for the length of one operation and never while waiting (locks.py waits under a
condition of its own). An inode lives while it has a name, is open, or is remembered by the peer; `settle` is the one
place that ends it.

Permissions: a kernel in front checks them (features.posix_acl implies its default permissions), and the filesystem must
not, because requests written back later come without an identity. With `check_permissions` the filesystem checks modes,
ACLs, ownership and the sticky bit itself, by the request's uid, gid and groups; uid 0 has every capability.
"""

from __future__ import annotations

import errno
import logging
import stat
import threading
import time
from collections.abc import Callable
from typing import Any

from transfuse.filesystems.memory.inode import FS_APPEND_FL, FS_IMMUTABLE_FL, Child, Inode
from transfuse.filesystems.memory.locks import LockTable
from transfuse.filesystems.memory.sparse import PAGE, SparseBytes
from transfuse.fs.acl import acl_allows, acl_inherit, is_minimal
from transfuse.fs.base import Filesystem
from transfuse.fs.nodes import HandleTable
from transfuse.fs.request import Request
from transfuse.fs.values import ROOT_ID, Entry, Features, Statfs

__all__ = ["NAME_MAX", "Handle", "State", "error"]

_log = logging.getLogger(__name__)

NAME_MAX = 255
LINK_MAX = 65_000
"""Most names of one inode, as on ext4 (EMLINK)."""
DEFAULT_SIZE = 1 << 30
DEFAULT_MAX_INODES = 1 << 20
R, W, X = 4, 2, 1


def error(number: int, text: str = "") -> OSError:
    """The OSError subclass for `number`."""
    return OSError(number, text or errno.errorcode.get(number, "error"))


class Handle:
    """An open file or directory."""

    __slots__ = ("append", "inode", "listing_end", "lock_owners", "noatime", "readable", "writable")

    def __init__(self, inode: Inode, flags: int) -> None:
        mode = flags & 3
        self.inode = inode
        self.readable = mode != 1
        self.writable = mode in (1, 2)
        self.append = bool(flags & 0o2000)
        self.noatime = bool(flags & 0o1000000)
        self.lock_owners: set[int] | None = None
        """Who took POSIX locks through this handle, and has not flushed it since."""
        self.listing_end = inode.next_cookie
        """Of a directory: the first cookie that was not given out when its listing began."""


class State(Filesystem):
    """Inodes, accounts, permissions."""

    def __init__(
        self,
        *,
        size_bytes: int = DEFAULT_SIZE,
        max_inodes: int = DEFAULT_MAX_INODES,
        check_permissions: bool = False,
        clock: Callable[[], int] = time.time_ns,
        root_mode: int = 0o755,
        root_uid: int = 0,
        root_gid: int = 0,
        features: Features | None = None,
    ) -> None:
        if size_bytes < PAGE or max_inodes < 1:
            raise ValueError(f"no room for anything: size_bytes {size_bytes}, max_inodes {max_inodes}")
        # Nothing changes behind the peer's back, so it keeps cached data. Dropping them whenever mtime moved would not
        # only cost: where several processes write a file, Linux could read a page again while a write to it is still
        # under way, and keep what was there before (fs/fuse/file.c, fuse_fill_write_pages unlocks before it sends).
        self.features = features or Features(
            posix_acl=True,
            handle_killpriv_v2=True,
            export_support=True,
            auto_inval_data=False,
            explicit_inval_data=True,
        )
        self.check_permissions = check_permissions
        self._clock = clock
        self._lock = threading.RLock()
        self._max_pages = size_bytes // PAGE
        self._pages = 0
        self._max_inodes = max_inodes
        self._names = 0
        """Inodes, and names beyond the first of each: both cost memory, both are counted, as on tmpfs."""
        self._last_ino = int(ROOT_ID) - 1
        self._inodes: dict[int, Inode] = {}
        self._handles: HandleTable[Handle] = HandleTable()
        self._locks = LockTable()
        self._order = "<"
        """Byte order of the peer, for what travels inside ioctls."""
        self._writeback = False
        self._notify: Any = None
        root = self._new_inode(stat.S_IFDIR | root_mode & 0o7777, root_uid, root_gid)
        root.parent = root
        root.nlink = 2

    # -- life ----------------------------------------------------------------------------------------------------------

    def mounted(self, connection: Any) -> None:
        """Note what the peer is like."""
        self._order = connection.order
        self._writeback = connection.features.writeback_cache
        self._notify = connection.notify

    def destroyed(self) -> None:
        """Everything that only the peer kept alive goes."""
        with self._lock:
            self._handles.clear()
            self._locks.clear()
            self._writeback = False
            self._notify = None
            for inode in list(self._inodes.values()):
                inode.opens = inode.nlookup = 0
                self._settle(inode)

    def _attributes_changed(self, inode: Inode) -> None:
        """Have the peer ask anew, after something whose reply tells it nothing of mode or ctime.

        Attributes alone (offset -1) take no inode lock in the kernel (fs/fuse/inode.c, fuse_reverse_inval_inode),
        so this is safe from inside a request about it.
        """
        if self._notify is not None:
            try:
                self._notify.inval_inode(inode.ino, -1)
            except OSError as reason:  # the peer goes on with what it has until the timeout
                _log.debug("inode %d: attributes not invalidated: %s", inode.ino, reason)

    # -- inodes and accounts -------------------------------------------------------------------------------------------

    def _charge_pages(self, count: int) -> None:
        if count > 0 and self._pages + count > self._max_pages:
            raise error(errno.ENOSPC, f"{self._pages} of {self._max_pages} pages are used, {count} more are needed")
        self._pages += count

    def _charge_name(self) -> None:
        if self._names >= self._max_inodes:
            raise error(errno.ENOSPC, f"{self._names} inodes and names exist")
        self._names += 1

    def _new_inode(self, mode: int, uid: int, gid: int) -> Inode:
        self._charge_name()
        self._last_ino += 1
        inode = Inode(self._last_ino, mode, uid, gid, self._clock())
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG:
            inode.data = SparseBytes(self._charge_pages)
        elif kind == stat.S_IFDIR:
            inode.children = {}
        self._inodes[inode.ino] = inode
        return inode

    def _inode(self, nodeid: int) -> Inode:
        try:
            return self._inodes[nodeid]
        except KeyError:
            raise error(errno.ESTALE, f"nodeid {nodeid} is gone") from None

    def _directory(self, nodeid: int) -> Inode:
        inode = self._inode(nodeid)
        if inode.children is None:
            raise error(errno.ENOTDIR)
        return inode

    def _handle(self, fh: int, nodeid: int) -> Handle:
        handle = self._handles.get(fh)
        if handle.inode.ino != nodeid:
            raise error(errno.EBADF, f"handle {fh} is of inode {handle.inode.ino}, not {nodeid}")
        return handle

    def _settle(self, inode: Inode) -> None:
        """Free the inode if nothing holds it any more."""
        if inode.nlink or inode.opens or inode.nlookup or inode.ino not in self._inodes:
            return
        del self._inodes[inode.ino]
        self._names -= 1
        if inode.data is not None:
            inode.data.free()
        elif inode.target is not None:
            self._charge_pages(-1)
        self._charge_pages(-self._xattr_pages(inode))
        inode.xattrs = None
        inode.parent = None

    @staticmethod
    def _xattr_pages(inode: Inode) -> int:
        if not inode.xattrs:
            return 0
        return -(-sum(len(name) + len(value) for name, value in inode.xattrs.items()) // PAGE)

    def _entry(self, inode: Inode) -> Entry:
        inode.nlookup += 1
        return Entry(inode.attr())

    def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        """Take back lookups; more than there are is the peer's mistake, logged and harmless."""
        with self._lock:
            inode = self._inodes.get(nodeid)
            if inode is None:
                _log.warning("forget of %d lookups of unknown nodeid %d", nlookup, nodeid)
                return
            if nlookup > inode.nlookup and nodeid != ROOT_ID:
                _log.warning("forget of %d lookups of nodeid %d, which has %d", nlookup, nodeid, inode.nlookup)
            inode.nlookup = max(0, inode.nlookup - nlookup)
            self._settle(inode)

    def statfs(self, req: Request, nodeid: int) -> Statfs:
        """Room by the bounds the filesystem was made with."""
        free = self._max_pages - self._pages
        return Statfs(
            self._max_pages, free, free, self._max_inodes, self._max_inodes - self._names, PAGE, NAME_MAX, PAGE
        )

    def inode_count(self) -> int:
        """How many inodes exist, the unlinked ones that are still held included."""
        return len(self._inodes)

    def lookup_count(self) -> int:
        """How many lookups the peer has not given back."""
        return sum(inode.nlookup for inode in self._inodes.values() if inode.ino != ROOT_ID)

    def open_count(self) -> int:
        """How many handles the peer has open."""
        return len(self._handles)

    # -- permissions ---------------------------------------------------------------------------------------------------

    def _allowed(self, req: Request, inode: Inode, want: int) -> bool:
        """Do mode and ACL let the caller do `want`?"""
        mode = inode.mode
        if req.uid == 0:
            return not (want & X) or inode.children is not None or bool(mode & 0o111)
        if inode.acl is not None:
            return acl_allows(inode.acl, want, req.uid, {req.gid, *req.groups}, inode.uid, inode.gid)
        if req.uid == inode.uid:
            mode >>= 6
        elif self._in_group(req, inode.gid):
            mode >>= 3
        return mode & want == want

    @staticmethod
    def _in_group(req: Request, gid: int) -> bool:
        return gid == req.gid or gid in req.groups

    def _kill_suidgid(self, req: Request, inode: Inode) -> None:
        """The content or the owner changed: privileges given to the old file end."""
        if inode.mode & (stat.S_ISUID | stat.S_ISGID):
            inode.kill_suidgid(req.uid == 0 or self._in_group(req, inode.gid))
            # execve() goes by the mode that the peer has cached.
            self._attributes_changed(inode)

    def _need(self, req: Request, inode: Inode, want: int) -> None:
        if self.check_permissions and not self._allowed(req, inode, want):
            raise error(errno.EACCES)

    def _need_owner(self, req: Request, inode: Inode) -> None:
        if self.check_permissions and req.uid not in (0, inode.uid):
            raise error(errno.EPERM)

    def _need_root(self, req: Request) -> None:
        if self.check_permissions and req.uid != 0:
            raise error(errno.EPERM)

    def _need_entry_change(self, req: Request, parent: Inode, victim: Inode | None) -> None:
        """May the caller add a name to `parent` or, with a `victim`, take one away?"""
        self._need(req, parent, W | X)
        if parent.flags & FS_IMMUTABLE_FL or (victim is not None and parent.flags & FS_APPEND_FL):
            raise error(errno.EPERM)
        if victim is None:
            return
        sticky = parent.mode & stat.S_ISVTX and req.uid not in (0, victim.uid, parent.uid)
        if (self.check_permissions and sticky) or victim.flags & (FS_IMMUTABLE_FL | FS_APPEND_FL):
            raise error(errno.EPERM)

    def _need_changeable(self, inode: Inode) -> None:
        if inode.flags & (FS_IMMUTABLE_FL | FS_APPEND_FL):
            raise error(errno.EPERM)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _child(self, parent: Inode, name: bytes) -> Child:
        if len(name) > NAME_MAX:
            raise error(errno.ENAMETOOLONG)
        assert parent.children is not None
        child = parent.children.get(name)
        if child is None:
            raise FileNotFoundError(errno.ENOENT, "no such name")
        return child

    def _room_for_name(self, req: Request, parent: Inode, name: bytes) -> None:
        """Check that `name` may be added to `parent`: whoever may search it learns EEXIST before EACCES."""
        if len(name) > NAME_MAX:
            raise error(errno.ENAMETOOLONG)
        assert parent.children is not None
        self._need(req, parent, X)
        if name in parent.children:
            raise FileExistsError(errno.EEXIST, "the name exists")
        if parent.ino != ROOT_ID and not parent.nlink:
            raise error(errno.ENOENT, "the directory was removed")
        self._need_entry_change(req, parent, None)

    def _make(self, req: Request, parent: Inode, mode: int, umask: int) -> Inode:
        """A new inode as made in `parent`: group and setgid, umask or default ACL. It has no name yet."""
        gid = req.gid
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
            elif mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP:
                # inode_init_owner(): nobody gets a setgid program of a group they are not in.
                if req.uid != 0 and not self._in_group(req, gid):
                    mode &= ~stat.S_ISGID
        acl = None
        if stat.S_ISLNK(mode):
            pass
        elif parent.default_acl is not None:
            mode, acl = acl_inherit(parent.default_acl, mode)
        else:
            mode &= ~(umask & 0o777)
        inode = self._new_inode(mode, req.uid, gid)
        if acl is not None and not is_minimal(acl):
            inode.acl = acl
        if stat.S_ISDIR(mode):
            inode.default_acl = parent.default_acl
        return inode

    def _enter(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Give a nameless or linked inode a (further) name, counting links both ways."""
        parent.add(name, inode)
        if inode.children is not None:
            inode.nlink = 2
            inode.parent = parent
            parent.nlink += 1
        else:
            inode.nlink += 1
        parent.touch_mtime(self._clock())

    def _leave(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Take a name away, counting links both ways, and free the inode if that was all."""
        parent.remove(name)
        now = self._clock()
        if inode.children is not None:
            inode.nlink = 0
            parent.nlink -= 1
        else:
            inode.nlink -= 1
            if inode.nlink:
                self._names -= 1
        parent.touch_mtime(now)
        inode.touch_ctime(now)
        self._settle(inode)

"""The operations on attributes: stat, chmod, chown, utimens, access, extended attributes and ACLs.

An access ACL and the nine permission bits are two views of one thing: setting either changes the other, and an ACL that
says no more than the bits is not kept. Truncation is a setattr, too, and lives in files.py.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence

from transfuse.filesystems.memory.inode import Inode
from transfuse.filesystems.memory.state import R, State, W, error
from transfuse.fs.acl import (
    ACCESS_XATTR,
    DEFAULT_XATTR,
    acl_to_mode,
    acl_with_mode,
    decode_acl,
    encode_acl,
    is_minimal,
)
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, AttrChanges

__all__ = ["Attributes"]

XATTR_CREATE, XATTR_REPLACE = 1, 2
XATTR_NAME_MAX = 255
XATTR_SIZE_MAX = 65_536
XATTR_LIST_MAX = 65_536
"""Linux's bounds; the list's includes a NUL after each name."""
XATTR_TOTAL_MAX = 1 << 20
"""Names and values of one inode in bytes (ENOSPC beyond)."""
CAPABILITY_XATTR = b"security.capability"


class Attributes(State):
    """Attribute operations."""

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        """ESTALE if the inode is gone."""
        try:
            return self._inodes[nodeid].attr()
        except KeyError:
            raise error(errno.ESTALE, f"nodeid {nodeid} is gone") from None

    def statx(self, req: Request, nodeid: int, fh: int | None, flags: int, mask: int) -> Attr:
        """With birth time, immutable, append-only and no-dump."""
        return self._inode(nodeid).statx()

    def access(self, req: Request, nodeid: int, mask: int) -> None:
        """Only with `check_permissions`; else it is absent, and the peer checks."""
        inode = self._inode(nodeid)
        if mask & 7 and not self._allowed(req, inode, mask & 7):
            raise error(errno.EACCES)

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        """All checks come before the first change, so a refused request changes nothing."""
        with self._lock:
            inode = self._inode(nodeid)
            if inode.flags and _are_kept_times(changes):
                return inode.attr()  # an append-only file has its times from these writes already
            self._check_changes(req, inode, changes, fh)
            if changes.size is not None:
                self._truncate(inode, changes.size)
            now = self._clock()
            if changes.uid is not None or changes.gid is not None:
                self._chown(req, inode, changes)
            if changes.mode is not None:
                self._chmod(req, inode, changes.mode)
            elif changes.size is not None and (changes.kill_suidgid or (self.check_permissions and req.uid != 0)):
                self._kill_suidgid(req, inode)
            elif changes.is_empty and inode.children is None and req.uid in (0, inode.uid):
                # chown(path, -1, -1), or a write is to follow, which does it for others than the owner.
                self._kill_suidgid(req, inode)
            if changes.atime_now:
                inode.atime_ns = now
            elif changes.atime_ns is not None:
                inode.atime_ns = changes.atime_ns
            if changes.mtime_now or (changes.size is not None and changes.mtime_ns is None):
                inode.mtime_ns = now
            elif changes.mtime_ns is not None:
                inode.mtime_ns = changes.mtime_ns
            inode.ctime_ns = now if changes.ctime_ns is None else changes.ctime_ns
            return inode.attr()

    def _check_changes(self, req: Request, inode: Inode, changes: AttrChanges, fh: int | None) -> None:
        now_only = changes.atime_now or changes.mtime_now
        if inode.flags:
            self._need_changeable(inode)
        if changes.size is not None:
            if inode.children is not None:
                raise error(errno.EISDIR)
            if inode.data is None:
                raise error(errno.EINVAL)
            if changes.size < 0:
                raise error(errno.EINVAL)
            if fh is not None:
                # ftruncate(2): the right was granted when the file was opened.
                if not self._handle(fh, inode.ino).writable:
                    raise error(errno.EINVAL)
            else:
                self._need(req, inode, W)
        if not self.check_permissions or req.uid == 0:
            return
        if changes.uid is not None and (req.uid != inode.uid or changes.uid != inode.uid):
            raise error(errno.EPERM)
        if changes.gid is not None and (
            req.uid != inode.uid or not (changes.gid == inode.gid or self._in_group(req, changes.gid))
        ):
            raise error(errno.EPERM)
        if changes.mode is not None:
            self._need_owner(req, inode)
        if changes.atime_ns is not None or (changes.mtime_ns is not None):
            self._need_owner(req, inode)
        elif now_only and changes.size is None and req.uid != inode.uid:
            self._need(req, inode, W)

    def _truncate(self, inode: Inode, size: int) -> None:
        assert inode.data is not None
        inode.data.truncate(size)

    def _chown(self, req: Request, inode: Inode, changes: AttrChanges) -> None:
        if changes.uid is not None:
            inode.uid = changes.uid
        if changes.gid is not None:
            inode.gid = changes.gid
        # Even for root (chown(2)); directories keep their setgid bit.
        self._kill_suidgid(req, inode)
        self._drop_capabilities(inode)

    def _chmod(self, req: Request, inode: Inode, mode: int) -> None:
        mode &= 0o7777
        if self._strips_setgid(req, inode):
            mode &= ~stat.S_ISGID
        inode.mode = stat.S_IFMT(inode.mode) | mode
        if inode.acl is not None:
            inode.acl = acl_with_mode(inode.acl, mode)

    def _strips_setgid(self, req: Request, inode: Inode) -> bool:
        """Must a change of mode or ACL by this caller clear setgid? A kernel that checks permissions does so itself."""
        return self.check_permissions and req.uid != 0 and not self._in_group(req, inode.gid)

    def _drop_capabilities(self, inode: Inode) -> None:
        if inode.xattrs and CAPABILITY_XATTR in inode.xattrs:
            before = self._xattr_pages(inode)
            del inode.xattrs[CAPABILITY_XATTR]
            self._charge_pages(self._xattr_pages(inode) - before)

    # -- extended attributes -------------------------------------------------------------------------------------------

    def getxattr(self, req: Request, nodeid: int, name: bytes) -> bytes:
        """ENODATA if it does not exist or the caller may not know."""
        with self._lock:
            inode = self._inode(nodeid)
            if name in (ACCESS_XATTR, DEFAULT_XATTR):
                self._no_symlink(inode)
                acl = inode.acl if name == ACCESS_XATTR else inode.default_acl
                if acl is None:
                    raise error(errno.ENODATA)
                return encode_acl(acl)
            self._check_name(req, inode, name, R)
            value = (inode.xattrs or {}).get(name)
            if value is None:
                raise error(errno.ENODATA)
            return value

    def listxattr(self, req: Request, nodeid: int) -> Sequence[bytes]:
        """trusted.* is shown to root only, which a kernel in front leaves to the filesystem."""
        with self._lock:
            inode = self._inode(nodeid)
            names = list(inode.xattrs or ())
            if req.uid != 0:
                names = [name for name in names if not name.startswith(b"trusted.")]
            if inode.acl is not None:
                names.append(ACCESS_XATTR)
            if inode.default_acl is not None:
                names.append(DEFAULT_XATTR)
            return names

    def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """EEXIST or ENODATA by `flags`, E2BIG for one value too large, ENOSPC when they are too many together."""
        if flags & ~3:
            raise error(errno.EINVAL)
        with self._lock:
            inode = self._inode(nodeid)
            if name in (ACCESS_XATTR, DEFAULT_XATTR):
                self._set_acl(req, inode, name, value, flags, kill_sgid)
                return
            self._check_name(req, inode, name, W)
            self._need_changeable(inode)
            if len(value) > XATTR_SIZE_MAX:
                raise error(errno.E2BIG)
            old = inode.xattrs or {}
            if flags & XATTR_CREATE and name in old:
                raise error(errno.EEXIST)
            if flags & XATTR_REPLACE and name not in old:
                raise error(errno.ENODATA)
            total = sum(len(n) + len(v) for n, v in old.items() if n != name) + len(name) + len(value)
            list_size = sum(len(n) + 1 for n in old if n != name) + len(name) + 1
            if total > XATTR_TOTAL_MAX or list_size > XATTR_LIST_MAX:
                raise error(errno.ENOSPC)
            self._put_xattrs(inode, {**old, name: bytes(value)})

    def removexattr(self, req: Request, nodeid: int, name: bytes) -> None:
        """ENODATA if it does not exist; a missing ACL is no error (Linux)."""
        with self._lock:
            inode = self._inode(nodeid)
            if name in (ACCESS_XATTR, DEFAULT_XATTR):
                self._no_symlink(inode)
                if name == DEFAULT_XATTR and inode.children is None:
                    return
                self._need_owner(req, inode)
                if name == ACCESS_XATTR:
                    inode.acl = None
                    if self._strips_setgid(req, inode):
                        inode.mode &= ~stat.S_ISGID
                else:
                    inode.default_acl = None
                inode.touch_ctime(self._clock())
                return
            self._check_name(req, inode, name, W)
            self._need_changeable(inode)
            if name not in (inode.xattrs or {}):
                raise error(errno.ENODATA)
            self._put_xattrs(inode, {n: v for n, v in (inode.xattrs or {}).items() if n != name})

    def _put_xattrs(self, inode: Inode, new: dict[bytes, bytes]) -> None:
        old = inode.xattrs
        before = self._xattr_pages(inode)
        inode.xattrs = new
        try:
            self._charge_pages(self._xattr_pages(inode) - before)
        except OSError:
            inode.xattrs = old
            raise
        inode.touch_ctime(self._clock())

    def _check_name(self, req: Request, inode: Inode, name: bytes, want: int) -> None:
        """xattr(7): which namespaces there are, and who may use them."""
        if not 0 < len(name) <= XATTR_NAME_MAX:
            raise error(errno.ERANGE)
        space, dot, rest = name.partition(b".")
        if space not in (b"user", b"trusted", b"security") or not dot:
            if space != b"system":
                self._need(req, inode, want)
            raise error(errno.EOPNOTSUPP)
        if space == b"user":
            if inode.data is None and inode.children is None:
                raise error(errno.EPERM if want == W else errno.ENODATA)
            if self.check_permissions:
                sticky = inode.children is not None and inode.mode & stat.S_ISVTX and want == W
                if sticky:
                    self._need_owner(req, inode)
                self._need(req, inode, want)
        elif self.check_permissions and req.uid != 0 and (space == b"trusted" or want == W):
            raise error(errno.EPERM if want == W else errno.ENODATA)
        if not rest:
            raise error(errno.EINVAL)

    @staticmethod
    def _no_symlink(inode: Inode) -> None:
        if inode.target is not None:
            raise error(errno.EOPNOTSUPP, "symbolic links have no ACL")

    def _set_acl(self, req: Request, inode: Inode, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        self._no_symlink(inode)
        if name == DEFAULT_XATTR and inode.children is None and len(value) > 4:
            raise error(errno.EACCES)
        self._need_owner(req, inode)
        self._need_changeable(inode)
        exists = (inode.acl if name == ACCESS_XATTR else inode.default_acl) is not None
        if flags & XATTR_CREATE and exists:
            raise error(errno.EEXIST)
        if flags & XATTR_REPLACE and not exists:
            raise error(errno.ENODATA)
        acl = decode_acl(bytes(value))
        if name == DEFAULT_XATTR:
            inode.default_acl = acl or None
        elif not acl:
            inode.acl = None
        else:
            mode = acl_to_mode(acl, inode.mode)
            if kill_sgid or self._strips_setgid(req, inode):
                mode &= ~stat.S_ISGID
            inode.mode = mode
            inode.acl = None if is_minimal(acl) else acl
        inode.touch_ctime(self._clock())


def _are_kept_times(changes: AttrChanges) -> bool:
    """Is this what a peer that collects writes sends after them: the mtime and ctime it kept meanwhile?"""
    return changes == AttrChanges(mtime_ns=changes.mtime_ns, ctime_ns=changes.ctime_ns) and None not in (
        changes.mtime_ns,
        changes.ctime_ns,
    )

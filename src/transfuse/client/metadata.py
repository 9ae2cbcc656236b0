"""Attributes by path: stat, chmod, chown, times, extended attributes, statvfs, access. Names and arguments are os's."""

from __future__ import annotations

import errno
import os
import stat as stat_bits

from transfuse.client.attrs import NS, StatxResult, stat_result, statvfs_result, statx_result
from transfuse.client.base import ClientBase
from transfuse.client.caches import Node
from transfuse.client.stale import retries_stale
from transfuse.client.walk import Path, fail, walk
from transfuse.session.answers import check_attr, parse_names
from transfuse.session.client import Reply
from transfuse.wire import flags as f
from transfuse.wire.opcodes import Opcode

__all__ = ["MetadataCalls"]

MAX_XATTR = 1 << 16
"""Largest extended attribute, and list of their names: Linux's XATTR_SIZE_MAX and XATTR_LIST_MAX."""
MAX_XATTR_NAME = 255
STATX_BASIC_AND_BTIME = 0xFFF
U64 = 0xFFFF_FFFF_FFFF_FFFF


class MetadataCalls(ClientBase):
    """The part of Client that asks about files and changes what is said of them."""

    # -- stat ---------------------------------------------------------------------------------------------------------

    @retries_stale
    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        """As os.stat(); times are exact in the _ns fields, st_dev is 0.

        No request while name and attributes are valid; else one LOOKUP for each name that is not, and one GETATTR.
        """
        return self.node_stat(walk(self, path, follow_symlinks), path)

    @retries_stale
    def lstat(self, path: Path) -> os.stat_result:
        """As os.lstat()."""
        return self.node_stat(walk(self, path, False), path)

    def node_stat(self, node: Node, path: Path | None = None) -> os.stat_result:
        """os.stat() of a node that was found."""
        if self.cache.attr_is_valid(node):
            return stat_result(node.attr)
        try:
            return stat_result(self.attributes(node))
        except OSError as error:
            raise fail(error.errno or errno.EIO, path) from None

    @retries_stale
    def statx(self, path: Path, *, follow_symlinks: bool = True, mask: int = STATX_BASIC_AND_BTIME) -> StatxResult:
        """As statx(2), with the birth time where the server has STATX (since 7.39); never cached."""
        node = walk(self, path, follow_symlinks)
        reply = self.exchange.call(Opcode.STATX, node.nodeid, (0, 0, 0, mask), creds=self.creds)
        if reply.error == errno.ENOSYS:
            return StatxResult.from_stat(self.node_stat(node, path))
        if reply.error:
            raise fail(reply.error, path)
        values = reply.values[3:]
        # The same check as of a fuse_attr, by the same positions: size 1, mode 9.
        check_attr((0, values[8], 0, 0, 0, 0, 0, 0, 0, values[6]), 0, "statx_out.stat")
        return statx_result(values)

    def exists(self, path: Path) -> bool:
        """As os.path.exists(): False for a dangling link and whatever else keeps the path from being walked, but a
        connection that failed raises."""
        return self._found(path, True) is not None

    @retries_stale
    def _walk(self, path: Path, follow: bool) -> Node:
        return walk(self, path, follow)

    def _found(self, path: Path, follow: bool) -> Node | None:
        try:
            return self._walk(path, follow)
        except (ConnectionError, TimeoutError):
            raise
        except (OSError, ValueError):
            return None

    def lexists(self, path: Path) -> bool:
        """As os.path.lexists()."""
        return self._found(path, False) is not None

    def isdir(self, path: Path) -> bool:
        """As os.path.isdir()."""
        node = self._found(path, True)
        return node is not None and node.is_dir

    def isfile(self, path: Path) -> bool:
        """As os.path.isfile()."""
        node = self._found(path, True)
        return node is not None and stat_bits.S_ISREG(node.mode)

    def islink(self, path: Path) -> bool:
        """As os.path.islink()."""
        node = self._found(path, False)
        return node is not None and node.is_symlink

    def access(self, path: Path, mode: int, *, follow_symlinks: bool = True) -> bool:
        """As os.access(), asked of the server (ACCESS); one that has no ACCESS allows everything. Errors are False."""
        if mode == os.F_OK:
            return self._found(path, follow_symlinks) is not None
        try:
            self._ask_access(path, mode, follow_symlinks)
        except (ConnectionError, TimeoutError):
            raise
        except (OSError, ValueError):
            return False
        return True

    @retries_stale
    def _ask_access(self, path: Path, mode: int, follow: bool) -> None:
        self.ask(Opcode.ACCESS, walk(self, path, follow), (mode,), path=path)

    @retries_stale
    def statvfs(self, path: Path = "/") -> os.statvfs_result:
        """As os.statvfs(). Asks each time."""
        return statvfs_result(self.ask(Opcode.STATFS, walk(self, path), path=path).values)

    statfs = statvfs

    # -- changes ------------------------------------------------------------------------------------------------------

    def set_attributes(
        self,
        node: Node,
        valid: int,
        *,
        fh: int | None = None,
        size: int = 0,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        atime_ns: int = 0,
        mtime_ns: int = 0,
        path: Path | None = None,
    ) -> os.stat_result:
        """One SETATTR; `valid` says which fields count (FATTR_*). Returns the attributes afterwards."""
        owner = 0
        if fh is not None:
            valid |= f.FATTR_FH
        if valid & f.FATTR_SIZE and fh is not None:
            valid |= f.FATTR_LOCKOWNER
            owner = self.lock_owner
        atime, atimensec = divmod(atime_ns, NS)
        mtime, mtimensec = divmod(mtime_ns, NS)
        args = (
            valid,
            fh or 0,
            size,
            owner,
            atime & U64,
            mtime & U64,
            0,
            atimensec,
            mtimensec,
            0,
            mode,
            uid,
            gid,
        )
        # A truncation in flight makes attributes read meanwhile worthless.
        self.cache.invalidate_attr(node)
        sample = self.cache.version
        reply: Reply = self.ask(Opcode.SETATTR, node, args, path=path)
        return stat_result(self.accept_attributes(node, reply, sample))

    @retries_stale
    def chmod(self, path: Path, mode: int, *, follow_symlinks: bool = True) -> None:
        """As os.chmod(). A link's own mode can't be changed (EOPNOTSUPP)."""
        node = walk(self, path, follow_symlinks)
        if node.is_symlink:
            raise fail(errno.EOPNOTSUPP, path)
        self.set_attributes(node, f.FATTR_MODE, mode=node.mode & 0o170000 | mode & 0o7777, path=path)

    @retries_stale
    def chown(self, path: Path, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """As os.chown(); -1 leaves an id alone. Clears setuid and setgid of what is no directory, as Linux does."""
        self.node_chown(walk(self, path, follow_symlinks), uid, gid, path)

    def node_chown(self, node: Node, uid: int, gid: int, path: Path | None = None, fh: int | None = None) -> None:
        """chown() of a node that was found."""
        valid = (f.FATTR_UID if uid != -1 else 0) | (f.FATTR_GID if gid != -1 else 0)
        mode = 0
        if not node.is_dir:
            if self.connection.has(f.FUSE_HANDLE_KILLPRIV_V2):
                valid |= f.FATTR_KILL_SUIDGID if valid else 0
            else:
                valid, mode = self._without_set_id(node, valid, fh)
        if valid:
            self.set_attributes(node, valid, uid=max(uid, 0), gid=max(gid, 0), mode=mode, fh=fh, path=path)

    def _without_set_id(self, node: Node, valid: int, fh: int | None = None) -> tuple[int, int]:
        """`valid` and a mode that also clear the bits, for servers that leave that to us."""
        mode = self.attributes(node, fh)[9]
        cleared = mode & ~stat_bits.S_ISUID
        if mode & stat_bits.S_IXGRP:
            cleared &= ~stat_bits.S_ISGID
        return (valid | f.FATTR_MODE, cleared) if cleared != mode else (valid, 0)

    def lchown(self, path: Path, uid: int, gid: int) -> None:
        """As os.lchown()."""
        self.chown(path, uid, gid, follow_symlinks=False)

    @retries_stale
    def utime(
        self,
        path: Path,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """As os.utime(): (atime, mtime) in seconds or, exactly, `ns`; neither means the server's now."""
        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        if times is not None:
            ns = (round(times[0] * NS), round(times[1] * NS))
        self.node_utime(walk(self, path, follow_symlinks), ns, path)

    def node_utime(
        self, node: Node, ns: tuple[int | None, int | None] | None, path: Path | None = None, fh: int | None = None
    ) -> None:
        """Times of a node that was found; None in place of one leaves it alone (UTIME_OMIT)."""
        if ns is None:
            valid = f.FATTR_ATIME | f.FATTR_ATIME_NOW | f.FATTR_MTIME | f.FATTR_MTIME_NOW
            self.set_attributes(node, valid, fh=fh, path=path)
            return
        atime_ns, mtime_ns = ns
        valid = (f.FATTR_ATIME if atime_ns is not None else 0) | (f.FATTR_MTIME if mtime_ns is not None else 0)
        if valid:
            self.set_attributes(node, valid, atime_ns=atime_ns or 0, mtime_ns=mtime_ns or 0, fh=fh, path=path)

    @retries_stale
    def truncate(self, path: Path, length: int) -> None:
        """As os.truncate()."""
        if length < 0:
            raise fail(errno.EINVAL, path)
        node = walk(self, path)
        if node.is_dir:
            raise fail(errno.EISDIR, path)
        if not stat_bits.S_ISREG(node.mode):
            raise fail(errno.EINVAL, path)
        self.node_truncate(node, length, path)

    def node_truncate(self, node: Node, length: int, path: Path | None = None, fh: int | None = None) -> None:
        """truncate() of a node that was found."""
        valid, mode = f.FATTR_SIZE, 0
        if self.creds.uid != 0:
            if self.connection.has(f.FUSE_HANDLE_KILLPRIV_V2):
                valid |= f.FATTR_KILL_SUIDGID
            else:
                valid, mode = self._without_set_id(node, valid, fh)
        self.set_attributes(node, valid, size=length, mode=mode, fh=fh, path=path)

    # -- extended attributes ------------------------------------------------------------------------------------------

    @staticmethod
    def _xattr_name(name: str | bytes) -> bytes:
        raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        if b"\0" in raw:
            raise ValueError("embedded null byte")
        if not 0 < len(raw) <= MAX_XATTR_NAME:
            raise fail(errno.ERANGE)
        return raw

    @retries_stale
    def getxattr(self, path: Path, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """As os.getxattr()."""
        node = walk(self, path, follow_symlinks)
        return self.ask(Opcode.GETXATTR, node, (MAX_XATTR,), (self._xattr_name(attribute),), path=path).data

    @retries_stale
    def setxattr(
        self, path: Path, attribute: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """As os.setxattr(); `flags` XATTR_CREATE or XATTR_REPLACE."""
        name = self._xattr_name(attribute)
        if len(value) > MAX_XATTR:
            raise fail(errno.E2BIG, path)
        node = walk(self, path, follow_symlinks)
        self.ask(Opcode.SETXATTR, node, (len(value), flags, 0), (name,), value, path=path)
        self.cache.invalidate_attr(node)

    @retries_stale
    def listxattr(self, path: Path = "/", *, follow_symlinks: bool = True) -> list[str]:
        """As os.listxattr()."""
        node = walk(self, path, follow_symlinks)
        names = parse_names(self.ask(Opcode.LISTXATTR, node, (MAX_XATTR,), path=path).data)
        return [name.decode("utf-8", "surrogateescape") for name in names]

    @retries_stale
    def removexattr(self, path: Path, attribute: str | bytes, *, follow_symlinks: bool = True) -> None:
        """As os.removexattr()."""
        node = walk(self, path, follow_symlinks)
        self.ask(Opcode.REMOVEXATTR, node, (), (self._xattr_name(attribute),), path=path)
        self.cache.invalidate_attr(node)

"""Operations on names: make, remove, rename, link. Names and arguments are os's.

As in Linux (fs/namei.c), a name is looked up before it is made or removed, so that a server is never asked to make what
exists or to remove a directory as a file; the errors of those checks are raised here. Afterwards the parents'
attributes are asked for again, and the name's cache entry says what is true now.
"""

from __future__ import annotations

import errno
import os
import stat as stat_bits

from transfuse.client.caches import Node
from transfuse.client.metadata import MetadataCalls
from transfuse.client.stale import retries_stale
from transfuse.client.walk import Last, Path, encode_path, fail, walk, walk_parent
from transfuse.session.replies import encode_rdev
from transfuse.wire.opcodes import Opcode

__all__ = ["RENAME_EXCHANGE", "RENAME_NOREPLACE", "RENAME_WHITEOUT", "NamespaceCalls"]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
MAX_TARGET = 4095


class NamespaceCalls(MetadataCalls):
    """The part of Client that changes directories."""

    def _to_make(self, path: Path, *, directory: bool = False) -> Last:
        """Where a new name goes; EEXIST when it is taken, ENOENT for "name/" that is to be no directory."""
        last = walk_parent(self, path)
        if not last.name or self.lookup_sure(last.parent, last.name) is not None:
            raise fail(errno.EEXIST, path)
        if last.must_be_dir and not directory:
            raise fail(errno.ENOENT, path)
        return last

    def _make(
        self, last: Last, opcode: Opcode, args: tuple[int, ...], more: tuple[bytes, ...], kind: int, path: Path
    ) -> Node:
        sample = self.cache.version
        extensions = self.create_extensions(last.parent)
        try:
            reply = self.ask(opcode, last.parent, args, (last.name, *more), extensions=extensions, path=path)
        except FileExistsError:
            self.cache.drop(last.parent, last.name)  # somebody else was quicker: not missing any more
            raise
        return self.made(last.parent, last.name, reply, sample, kind)

    @retries_stale
    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """As os.mkdir()."""
        last = self._to_make(path, directory=True)
        args = (self.masked(mode & 0o1777), self.creds.umask)
        self._make(last, Opcode.MKDIR, args, (), stat_bits.S_IFDIR, path)

    def makedirs(self, name: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        """As os.makedirs()."""
        data = encode_path(name)
        parts = [part for part in data.split(b"/") if part]
        for count in range(1, len(parts)):
            try:
                self.mkdir(b"/" + b"/".join(parts[:count]))
            except FileExistsError:
                continue
        try:
            self.mkdir(name, mode)
        except OSError:
            if not exist_ok or not self.isdir(name):
                raise

    @retries_stale
    def mknod(self, path: Path, mode: int = 0o600, device: int = 0) -> None:
        """As os.mknod(); `mode` has the file type (none: a regular file)."""
        kind = stat_bits.S_IFMT(mode) or stat_bits.S_IFREG
        if kind == stat_bits.S_IFDIR:
            raise fail(errno.EPERM, path)
        last = self._to_make(path)
        rdev = encode_rdev(device) if kind in (stat_bits.S_IFCHR, stat_bits.S_IFBLK) else 0
        self._make(last, Opcode.MKNOD, (self.masked(kind | mode & 0o7777), rdev, self.creds.umask), (), kind, path)

    def mkfifo(self, path: Path, mode: int = 0o666) -> None:
        """As os.mkfifo()."""
        self.mknod(path, stat_bits.S_IFIFO | mode & 0o7777)

    @retries_stale
    def symlink(self, src: Path, dst: Path) -> None:
        """As os.symlink(): `dst` becomes a link to `src`, which need not exist."""
        target = encode_path(src)
        self._make(self._to_make(dst), Opcode.SYMLINK, (), (target,), stat_bits.S_IFLNK, dst)

    @retries_stale
    def readlink(self, path: Path) -> str | bytes:
        """As os.readlink(): str for a str path, bytes for bytes."""
        node = walk(self, path, False)
        if not node.is_symlink:
            raise fail(errno.EINVAL, path)
        target = self.node_readlink(node)
        return target if isinstance(os.fspath(path), bytes) else target.decode("utf-8", "surrogateescape")

    @retries_stale
    def link(self, src: Path, dst: Path, *, follow_symlinks: bool = False) -> None:
        """As link(2): `dst` becomes another name of `src`."""
        node = walk(self, src, follow_symlinks)
        last = self._to_make(dst)
        if node.is_dir:
            raise fail(errno.EPERM, src)
        self.link_node(node, last, dst)

    def link_node(self, node: Node, last: Last, path: Path) -> None:
        """link() of a node that was found or is open."""
        sample = self.cache.version
        reply = self.ask(Opcode.LINK, last.parent, (node.nodeid,), (last.name,), path=path)
        self.made(last.parent, last.name, reply, sample, node.mode & 0o170000)

    # -- removing -----------------------------------------------------------------------------------------------------

    def _remove(self, last: Last, node: Node, opcode: Opcode, path: Path) -> None:
        try:
            self.ask(opcode, last.parent, (), (last.name,), path=path)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):
                self.cache.drop(last.parent, last.name)
            raise
        if opcode == Opcode.RMDIR:
            self.cache.drop_children(node)
        self.cache.drop(last.parent, last.name)
        self.cache.invalidate_attr(last.parent)
        self.cache.invalidate_attr(node)

    def _existing(self, last: Last, path: Path) -> Node:
        node = self.lookup(last.parent, last.name)
        if node is None:
            raise fail(errno.ENOENT, path)
        return node

    @retries_stale
    def unlink(self, path: Path) -> None:
        """As os.unlink()."""
        last = walk_parent(self, path)
        if not last.name:
            raise fail(errno.EISDIR, path)
        node = self._existing(last, path)
        if node.is_dir:
            raise fail(errno.EISDIR, path)
        if last.must_be_dir:
            raise fail(errno.ENOTDIR, path)
        self._remove(last, node, Opcode.UNLINK, path)

    remove = unlink

    @retries_stale
    def rmdir(self, path: Path) -> None:
        """As os.rmdir()."""
        last = walk_parent(self, path)
        if not last.name:
            raise fail({".": errno.EINVAL, "..": errno.ENOTEMPTY}.get(last.kind, errno.EBUSY), path)
        node = self._existing(last, path)
        if not node.is_dir:
            raise fail(errno.ENOTDIR, path)
        self._remove(last, node, Opcode.RMDIR, path)

    # -- renaming -----------------------------------------------------------------------------------------------------

    @retries_stale
    def rename(self, src: Path, dst: Path, *, flags: int = 0) -> None:
        """As rename(2), and renameat2(2) with `flags` (RENAME_NOREPLACE, _EXCHANGE, _WHITEOUT).

        RENAME2 is used only with flags; a server without it gives EINVAL, for ever.
        """
        if flags & ~7 or (flags & RENAME_EXCHANGE and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT)):
            raise fail(errno.EINVAL, src)
        old, new = walk_parent(self, src), walk_parent(self, dst)
        if not old.name:
            raise fail(errno.EBUSY, src)
        if not new.name:
            raise fail(errno.EEXIST if flags & RENAME_NOREPLACE else errno.EBUSY, dst)
        node = self._existing(old, src)
        target = self.lookup_sure(new.parent, new.name)
        if self._check_rename(old, new, node, target, flags, src, dst):
            return
        opcode = Opcode.RENAME2 if flags else Opcode.RENAME
        args = (new.parent.nodeid, flags) if flags else (new.parent.nodeid,)
        try:
            self.ask(opcode, old.parent, args, (old.name, new.name), path=src)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):
                self.cache.expire(old.parent, old.name)
                self.cache.expire(new.parent, new.name)
            raise
        self._renamed(old, new, node, target, flags)

    def _check_rename(
        self, old: Last, new: Last, node: Node, target: Node | None, flags: int, src: Path, dst: Path
    ) -> bool:
        """The kernel's own checks; True when there is nothing to do."""
        if not node.is_dir and (old.must_be_dir or (new.must_be_dir and not flags & RENAME_EXCHANGE)):
            raise fail(errno.ENOTDIR, src)
        if flags & RENAME_NOREPLACE and target is not None:
            raise fail(errno.EEXIST, dst)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise fail(errno.ENOENT, dst)
            if new.must_be_dir and not target.is_dir:
                raise fail(errno.ENOTDIR, dst)
        if node in new.stack:
            raise fail(errno.EINVAL, src)
        if target is not None and target in old.stack:
            raise fail(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY, dst)
        if target is node:
            return True
        if target is not None and not flags & RENAME_EXCHANGE:
            if node.is_dir and not target.is_dir:
                raise fail(errno.ENOTDIR, dst)
            if target.is_dir and not node.is_dir:
                raise fail(errno.EISDIR, dst)
        return False

    def _renamed(self, old: Last, new: Last, node: Node, target: Node | None, flags: int) -> None:
        """Bring names and attributes up to date: what was moved keeps the timeout it had."""
        cache = self.cache
        with cache.lock:
            moved, other = old.parent.names.get(old.name), new.parent.names.get(new.name)
            moved_expiry = moved.expiry if moved is not None else None
            other_expiry = other.expiry if other is not None else None
            cache.drop(old.parent, old.name)
            cache.drop(new.parent, new.name)
            cache.remember_until(new.parent, new.name, node, moved_expiry)
            if flags & RENAME_EXCHANGE and target is not None:
                cache.remember_until(old.parent, old.name, target, other_expiry)
        for touched in (old.parent, new.parent, node, target):
            if touched is not None:
                cache.invalidate_attr(touched)

    def replace(self, src: Path, dst: Path) -> None:
        """As os.replace(), which on Linux is rename()."""
        self.rename(src, dst)

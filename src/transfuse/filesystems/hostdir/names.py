"""Operations on names: making, linking, renaming and removing.

Whatever is made is made as the caller (see `credentials`); removing and renaming happen as the server, since the
peer's kernel has checked the caller's right to the directory. Before a name goes away, a node the peer still knows gets
an fd, so that a file or directory in use without being open (a working directory, an O_PATH fd) stays usable.
"""

from __future__ import annotations

import errno
import os

from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.hostdir.core import DIRECTORY, O_PATH_FLAGS, Core
from transfuse.filesystems.hostdir.nodes import HeldFd, Node
from transfuse.filesystems.hostdir.syscalls import Key
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry

__all__ = ["Names"]

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
Doomed = tuple[Node, "HeldFd | bytes", bool]
"""A node about to lose its name: what leads to it from then on, and whether that was its last name."""


class Names(Core):
    """What changes directories."""

    def symlink(self, req: Request, parent: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link; its target is never looked at."""
        node, ref = self._directory(parent, name)
        self.credentials.make(req, -1, 0, lambda: os.symlink(target, name, dir_fd=ref.fd))
        return self._made(node, ref, name)

    def mknod(self, req: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Entry:
        """Make a file, fifo, socket or device node."""
        node, ref = self._directory(parent, name)
        self.credentials.make(req, umask & 0o777, mode, lambda: os.mknod(name, mode, rdev, dir_fd=ref.fd))
        return self._made(node, ref, name)

    def mkdir(self, req: Request, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        """Make a directory."""
        node, ref = self._directory(parent, name)
        self.credentials.make(req, umask & 0o777, mode, lambda: os.mkdir(name, mode & 0o7777, dir_fd=ref.fd))
        return self._made(node, ref, name)

    def link(self, req: Request, nodeid: int, newparent: int, newname: bytes) -> Entry:
        """Give the inode another name, or its first one if it was made by tmpfile()."""
        node, ref = self._directory(newparent, newname)
        file = self._ref(nodeid)
        syscalls.link_fd(file.fd, ref.fd, newname)
        return self._made(node, ref, newname)

    def unlink(self, req: Request, parent: int, name: bytes) -> None:
        """Remove a name that is not a directory."""
        _, ref = self._directory(parent, name)
        doomed = self._doom(ref, name)
        os.unlink(name, dir_fd=ref.fd)
        if doomed is not None:
            self._bury(doomed)

    def rmdir(self, req: Request, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        _, ref = self._directory(parent, name)
        doomed = self._doom(ref, name)
        os.rmdir(name, dir_fd=ref.fd)
        if doomed is not None:
            self._bury(doomed)

    def rename(self, req: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Move or (flag 2) exchange names, in one step of the host's filesystem. EXDEV between filesystems."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            raise OSError(errno.EINVAL, f"rename flags {flags:#x}")
        node, ref = self._directory(parent, name)
        newnode, newref = self._directory(newparent, newname)
        with self.rename_lock:
            moving = self.probe(ref.fd, name)
            doomed: Doomed | None = None
            replaced: tuple[Attr, Key] | None = None
            if flags & RENAME_EXCHANGE:
                replaced = self.probe(newref.fd, newname)
            elif not flags & RENAME_NOREPLACE:
                doomed = self._doom(newref, newname)
            if flags:
                syscalls.rename(ref.fd, name, newref.fd, newname, flags)
            else:
                os.rename(name, newname, src_dir_fd=ref.fd, dst_dir_fd=newref.fd)
            if moving is not None:
                if doomed is not None and doomed[0].key == moving[1]:
                    return  # two names of one inode: rename(2) leaves both
                self.nodes.moved(moving[1], newnode, newname)
            if replaced is not None:
                self.nodes.moved(replaced[1], node, name)
        if doomed is not None:
            self._bury(doomed)

    def _doom(self, ref: HeldFd, name: bytes) -> Doomed | None:
        """Before `name` is removed: if the peer knows the inode, get hold of it. One open and one statx."""
        grasped = None if self.grasp is None else self.grasp(ref.fd, name)
        found: tuple[Attr, Key] | None
        if grasped is not None:
            fd, found = HeldFd(grasped[0]), grasped[1]
        else:
            try:
                fd = HeldFd(self._open(name, O_PATH_FLAGS, ref.fd))
            except FileNotFoundError:
                return None
            found = self.probe(fd.fd, b"")
        if found is None:
            return None
        attr, key = found
        node = self.nodes.by_key.get(key)
        if node is None:
            return None
        last = attr.nlink <= 1 or node.kind == DIRECTORY
        if not last and self.nodes.keep_handles and key.__class__ is int:
            handle = syscalls.take_handle(fd.fd, b"")
            if handle is not None:
                return node, handle, False
        return node, fd, last

    def _bury(self, doomed: Doomed) -> None:
        """The name is removed."""
        node, way, last = doomed
        if isinstance(way, bytes):
            self.nodes.place_by_handle(node, way)
        else:
            self.nodes.pin(node, way, last)

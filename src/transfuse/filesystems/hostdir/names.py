"""Operations on names: making, linking, renaming and removing.

Whatever is made is made as the caller (see `credentials`); removing and renaming happen as the server, since the
peer's kernel has checked the caller's right to the directory. A node that loses its name gets an O_PATH fd, taken right
before, so that a file or directory in use without being open (a working directory, an O_PATH fd) stays usable: nobody
tells the server whether there is such use, and FORGET, which says that there is none, comes after the removal.
"""

from __future__ import annotations

import errno
import os

from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.hostdir.core import DIRECTORY, Core
from transfuse.filesystems.hostdir.nodes import HeldFd
from transfuse.filesystems.hostdir.syscalls import Key
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry

__all__ = ["Names"]

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
Grasped = tuple[HeldFd, Attr, Key]
"""An O_PATH fd of an inode that is about to lose a name, and what it looked like."""


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
        self._remove(parent, name, False)

    def rmdir(self, req: Request, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._remove(parent, name, True)

    def _remove(self, parent: int, name: bytes, directory: bool) -> None:
        _, ref = self._directory(parent, name)
        fd, attr, key = self._with_room(self.steps.remove, ref.fd, name, directory)
        self._bury(HeldFd(fd), attr, key)

    def rename(self, req: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Move or (flag 2) exchange names, in one step of the host's filesystem. EXDEV between filesystems."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            raise OSError(errno.EINVAL, f"rename flags {flags:#x}")
        node, ref = self._directory(parent, name)
        newnode, newref = self._directory(newparent, newname)
        with self.rename_lock:
            moving = self.probe(ref.fd, name)
            replaced: tuple[Attr, Key] | None = None
            doomed: Grasped | None = None
            if flags & RENAME_EXCHANGE:
                replaced = self.probe(newref.fd, newname)
            elif not flags & RENAME_NOREPLACE:
                doomed = self._grasp(newref, newname)
            if flags:
                syscalls.rename(ref.fd, name, newref.fd, newname, flags)
            else:
                os.rename(name, newname, src_dir_fd=ref.fd, dst_dir_fd=newref.fd)
            if moving is not None:
                if doomed is not None and doomed[2] == moving[1]:
                    return  # two names of one inode: rename(2) leaves both
                self.nodes.moved(moving[1], newnode, newname)
            if replaced is not None:
                self.nodes.moved(replaced[1], node, name)
        if doomed is not None:
            self._bury(*doomed)

    def _grasp(self, ref: HeldFd, name: bytes) -> Grasped | None:
        """Get hold of what is about to lose `name`."""
        try:
            fd, attr, key = self._with_room(self.steps.grasp, ref.fd, name)
        except FileNotFoundError:
            return None
        return HeldFd(fd), attr, key

    def _bury(self, ref: HeldFd, attr: Attr, key: Key) -> None:
        """A name of the inode behind `ref` is removed, which had the attributes `attr` until then."""
        node = self.nodes.by_key.get(key)
        if node is None:
            return
        last = attr.nlink <= 1 or node.kind == DIRECTORY
        if not last and self.nodes.keep_handles and key.__class__ is int:
            handle = syscalls.take_handle(ref.fd, b"")
            if handle is not None:
                self.nodes.place_by_handle(node, handle)
                return
        self.nodes.pin(node, ref, last)

"""Changing attributes, links' targets, extended attributes and filesystem figures.

Attributes are changed as the server: the peer's kernel has checked the caller's right, and root may do all of it.
Order within one request: owner (which clears setuid), size (which sets mtime), mode, times. A request to change
nothing clears setuid and setgid.

Extended attributes have no call that takes an O_PATH fd, so unless the file is open they go through /proc/self/fd,
which leads to the inode itself, also for symbolic links. Names and values pass as they are: the peer's kernel has
decided who may touch security.* and trusted.*.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from typing import TypeVar

from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.hostdir.core import REGULAR, Core
from transfuse.filesystems.hostdir.handles import OpenFile
from transfuse.filesystems.hostdir.nodes import HeldFd, stale
from transfuse.filesystems.hostdir.syscalls import PROC_FD, timespec
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, AttrChanges, Statfs

__all__ = ["Attributes"]

T = TypeVar("T")

LEAVE = -1


class Attributes(Core):
    """What concerns inodes rather than names or data."""

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        """Apply the changes by the open file, or by the node; ctime is the host's own."""
        file = self.opened.get(fh) if fh is not None else None
        ref = file.ref if file is not None else self._ref(nodeid)
        fd = ref.fd
        if changes.is_empty:
            self._clear_set_ids(req, nodeid, fd)
        if changes.uid is not None or changes.gid is not None:
            syscalls.chown_fd(
                fd,
                LEAVE if changes.uid is None else changes.uid,
                LEAVE if changes.gid is None else changes.gid,
            )
        if changes.size is not None:
            self._truncate(
                req, nodeid, file if isinstance(file, OpenFile) else None, ref, changes.size, changes.kill_suidgid
            )
        if changes.mode is not None:
            syscalls.chmod_fd(fd, changes.mode & 0o7777)
        atime = timespec(changes.atime_ns, changes.atime_now)
        mtime = timespec(changes.mtime_ns, changes.mtime_now)
        if atime[1] != syscalls.UTIME_OMIT or mtime[1] != syscalls.UTIME_OMIT:
            try:
                syscalls.set_times(fd, atime, mtime)
            except PermissionError:
                # ctime comes only with the times the peer kept while it collected writes; an append-only file has its
                # own from these writes already.
                if changes.ctime_ns is None or atime[1] != syscalls.UTIME_OMIT:
                    raise
        found = self.probe(fd, b"")
        if found is None:
            raise stale(nodeid)
        return found[0]

    def _clear_set_ids(self, req: Request, nodeid: int, fd: int) -> None:
        """What chown(path, -1, -1) does, and what Linux asks for before it writes to a backing file (fs/backing-file.c,
        backing_file_write_iter), where the bits would survive if root registered that.

        The two cannot be told apart, and the peer's kernel checks the caller's right to neither. So for somebody who is
        not the owner this is done only where such a write may be at hand. Before a WRITE the same is asked for; that
        clears the bits itself.
        """
        st = os.fstat(fd)
        if req.uid not in (0, st.st_uid) and not self._written_by_the_kernel(nodeid):
            return
        try:
            syscalls.chown_fd(fd, LEAVE, LEAVE)
        except PermissionError:  # an unprivileged server that is not the owner: its writes clear the bits anyway
            return
        if (
            stat.S_ISREG(st.st_mode)
            and st.st_mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID
            and req.uid
            and st.st_gid not in (req.gid, *req.groups)
        ):
            # Not for the server, but for the caller (fs/attr.c, setattr_should_drop_sgid).
            syscalls.chmod_fd(fd, st.st_mode & 0o7777 & ~(stat.S_ISUID | stat.S_ISGID))

    def _written_by_the_kernel(self, nodeid: int) -> bool:
        """May there be writes to the file that do not come here? Looks through all open files; it is asked rarely."""
        return self.passed_through and any(
            file.node.nodeid == nodeid
            and isinstance(file, OpenFile)
            and fcntl.fcntl(file.ref.fd, fcntl.F_GETFL) & os.O_ACCMODE
            for file in list(self.opened.values())
        )

    def _truncate(self, req: Request, nodeid: int, file: OpenFile | None, ref: HeldFd, size: int, kill: bool) -> None:
        node = self._node(nodeid)
        if node.kind != REGULAR:
            raise OSError(errno.EINVAL, "only regular files have a size to set")
        if file is not None:
            held = file.ref
        else:
            held = HeldFd(self._with_room(syscalls.reopen, ref.fd, os.O_WRONLY))
        if kill:
            mode = os.fstat(held.fd).st_mode
            self.credentials.without_fsetid(req, mode, lambda: os.ftruncate(held.fd, size))
        else:
            os.ftruncate(held.fd, size)

    def readlink(self, req: Request, nodeid: int) -> bytes:
        """The target of a symbolic link, as it is written there.

        By its name where that is known, which needs no fd of the link; if another link has taken the name since it was
        looked up, that one is read, as it would have been a moment later.
        """
        node = self._node(nodeid)
        parent, place = node.parent, node.place
        if node.ref is None and parent is not None and place is not None and (held := parent.ref) is not None:
            try:
                return os.readlink(place, dir_fd=held.fd)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
        return os.readlink(b"", dir_fd=self._ref(nodeid).fd)

    def statfs(self, req: Request, nodeid: int) -> Statfs:
        """Figures of the host filesystem that holds the node."""
        st = os.fstatvfs(self._ref(nodeid).fd)
        return Statfs(
            st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax, st.f_frsize
        )

    # -- extended attributes ------------------------------------------------------------------------------------------

    def _with_xattrs(self, nodeid: int, call: Callable[[int | bytes], T]) -> T:
        """call() with something that os.getxattr() and its like take for the node: the fd of an open file that serves
        as the node's, else the O_PATH fd's place in /proc (9 µs instead of 2: Linux asks for security.capability before
        the first write to each file)."""
        ref = self._ref(nodeid)
        node, nodes = self.nodes.by_id.get(nodeid), self.nodes
        if node not in nodes.held and node not in nodes.pinned:
            try:
                return call(ref.fd)
            except OSError as error:
                if error.errno != errno.EBADF:  # O_PATH after all: the node was evicted this moment
                    raise
        return call(PROC_FD % ref.fd)

    def getxattr(self, req: Request, nodeid: int, name: bytes) -> bytes:
        """The value of an extended attribute, ACLs (system.posix_acl_*) included."""
        return self._with_xattrs(nodeid, lambda target: os.getxattr(target, name))

    def listxattr(self, req: Request, nodeid: int) -> Sequence[bytes]:
        """Names of all extended attributes that the server may see, and trusted.* for root only, as xattr(7) has it."""
        names = [os.fsencode(name) for name in self._with_xattrs(nodeid, os.listxattr)]
        return [name for name in names if not name.startswith(b"trusted.")] if req.uid else names

    def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """Set an extended attribute; `kill_sgid`: it is an ACL set by somebody outside the group of a setgid file."""
        self._with_xattrs(nodeid, lambda target: os.setxattr(target, name, value, flags))
        if kill_sgid:
            ref = self._ref(nodeid)
            found = self.probe(ref.fd, b"")
            if found is not None and found[0].mode & stat.S_ISGID:
                syscalls.chmod_fd(ref.fd, found[0].mode & 0o7777 & ~stat.S_ISGID)

    def removexattr(self, req: Request, nodeid: int, name: bytes) -> None:
        """Remove an extended attribute."""
        self._with_xattrs(nodeid, lambda target: os.removexattr(target, name))

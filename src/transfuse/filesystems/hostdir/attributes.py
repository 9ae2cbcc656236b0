"""Changing attributes, links' targets, extended attributes and filesystem figures.

Attributes are changed as the server: the peer's kernel has checked the caller's right, and root may do all of it.
Order within one request: owner (which clears setuid), size (which sets mtime), mode, times.

Extended attributes have no call that takes an O_PATH fd, so they go through /proc/self/fd, which leads to the inode
itself, also for symbolic links. Names and values pass as they are: the peer's kernel has decided who may touch
security.* and trusted.*.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.hostdir.core import REGULAR, Core
from transfuse.filesystems.hostdir.handles import OpenFile
from transfuse.filesystems.hostdir.nodes import HeldFd, stale
from transfuse.filesystems.hostdir.syscalls import PROC_FD, timespec
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, AttrChanges, Statfs

__all__ = ["Attributes"]

S_ISGID = 0o2000
LEAVE = -1


class Attributes(Core):
    """What concerns inodes rather than names or data."""

    def setattr(self, req: Request, nodeid: int, changes: AttrChanges, fh: int | None) -> Attr:
        """Apply the changes by the open file, or by the node; ctime is the host's own."""
        file = self.opened.get(fh) if fh is not None else None
        ref = file.ref if file is not None else self._ref(nodeid)
        fd = ref.fd
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

    def getxattr(self, req: Request, nodeid: int, name: bytes) -> bytes:
        """The value of an extended attribute, ACLs (system.posix_acl_*) included."""
        ref = self._ref(nodeid)
        return os.getxattr(PROC_FD % ref.fd, name)

    def listxattr(self, req: Request, nodeid: int) -> Sequence[bytes]:
        """Names of all extended attributes that the server may see, and trusted.* for root only, as xattr(7) has it."""
        ref = self._ref(nodeid)
        names = [os.fsencode(name) for name in os.listxattr(PROC_FD % ref.fd)]
        return [name for name in names if not name.startswith(b"trusted.")] if req.uid else names

    def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
        """Set an extended attribute; `kill_sgid`: it is an ACL set by somebody outside the group of a setgid file."""
        ref = self._ref(nodeid)
        os.setxattr(PROC_FD % ref.fd, name, value, flags)
        if kill_sgid and (found := self.probe(ref.fd, b"")) is not None and found[0].mode & S_ISGID:
            syscalls.chmod_fd(ref.fd, found[0].mode & 0o7777 & ~S_ISGID)

    def removexattr(self, req: Request, nodeid: int, name: bytes) -> None:
        """Remove an extended attribute."""
        ref = self._ref(nodeid)
        os.removexattr(PROC_FD % ref.fd, name)

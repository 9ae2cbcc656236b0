"""The middle of the host directory: what it holds open, how a nodeid becomes an fd, and the way back by forget().

Rules that everything else relies on:
- Nothing is resolved by path. A step is one name in one directory fd, never "..", never through a symbolic link; files
  are opened again through /proc/self/fd, which looks up no name. So a rename on the host, or a directory that is moved
  out of the source while it is in use, cannot lead anywhere the peer was not already.
- Only regular files and directories are ever opened for real, everything else stays O_PATH: opening a device or a fifo
  does things.
- Whatever a hint or handle led to is used only if it is the same inode (see `nodes`).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.hostdir.credentials import Credentials
from transfuse.filesystems.hostdir.handles import OpenDirectory, OpenFile
from transfuse.filesystems.hostdir.locks import PosixLocks, Waiters
from transfuse.filesystems.hostdir.nodes import HeldFd, Node, NodeTable, default_bound, stale
from transfuse.filesystems.hostdir.steps import O_PATH_FLAGS, make_steps
from transfuse.filesystems.hostdir.unopened import Unopened
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry, Features

__all__ = ["CACHE_MODES", "Core"]

T = TypeVar("T")

log = logging.getLogger("transfuse.hostdir")

REGULAR = 8
"""S_IFREG >> 12."""
DIRECTORY = 4
DOTS = (b".", b"..")
STATX_ATTR_MOUNT_ROOT = 0x2000
"""Something is mounted there (Linux 5.8)."""
FUSE_ATTR_SUBMOUNT = 1
CACHE_MODES = ("never", "auto", "always")
HANDLE_MODES = ("never", "prefer", "mandatory")
AUTO_TIMEOUT_S = 1.0
ALWAYS_TIMEOUT_S = 86400.0
MAX_OPEN = 1 << 20
"""Most files and directories open at a time; RLIMIT_NOFILE is usually reached before."""
MAX_LOCK_OWNERS = 4096
"""Most (file, owner) pairs with POSIX locks, each of which costs an fd."""
SEARCH_ENTRIES = 1 << 16
"""How many names of the old directory are looked through for a file that was renamed on the host."""
XATTR_OPERATIONS = frozenset({"getxattr", "setxattr", "listxattr", "removexattr"})
POSIX_LOCK_OPERATIONS = frozenset({"getlk", "setlk"})


class Core(Filesystem):
    """A directory of this machine, served as it is.

    `source`: a path, or an fd of a directory (which stays the caller's). `cache` says how long the peer may believe
    what it was told: "never" (not at all; data is not cached by the peer either), "auto" (names and attributes for a
    second, data from one open to the next if the file did not change meanwhile) or "always" (a day: right when nobody
    else changes the source; listings, symbolic links and data stay cached, and POSIX locks are left to the peer's
    kernel, which saves a request at every close). The three timeouts in seconds override it.

    `writeback`: the peer collects writes (no passthrough then). `passthrough`: the kernel reads and writes regular
    files itself where it can. `direct_io`: nothing is cached by the peer, every read and write comes here. `no_open`:
    the peer opens and closes files without telling, which makes small files cheap (see `unopened`). It needs "always",
    excludes passthrough, direct_io and posix_locks, and leaves BSD locks to the peer. `xattr`, `posix_acl`, `flock`,
    `posix_locks`: off means that the peer's kernel goes without, or (locks) minds them alone. `max_held`: bound on
    O_PATH fds held for known inodes, by default a quarter of RLIMIT_NOFILE and at most 1000.

    `submounts`: the peer learns what is mounted in the source, shows a device number of its own for each and syncs each
    (virtio-fs peers only). `file_handles`: known inodes without an fd are found again by handles where these work
    ("prefer"), "never" so, or OSError if they do not work ("mandatory"). `keep_noatime`: the peer's O_NOATIME reaches
    the host, where the server may. `o_direct`: so does O_DIRECT, for wires that move data straight between the peer's
    memory and the file. `direct_mmap`: files with direct_io can be mapped shared. `killpriv`: the host clears setuid
    and setgid bits; off: the peer's kernel does, with a request before each write. `readdirplus`: listings with
    attributes always or never; None: as the peer likes.

    Run as root, files are made as the calling user; otherwise everything happens as the server's user. Permissions are
    checked by the peer's kernel: mount with default_permissions. OSError if `source` is not a directory.
    """

    def __init__(
        self,
        source: str | bytes | os.PathLike[str] | int,
        *,
        cache: str = "auto",
        entry_timeout_s: float | None = None,
        attr_timeout_s: float | None = None,
        negative_timeout_s: float | None = None,
        writeback: bool = False,
        passthrough: bool = True,
        direct_io: bool = False,
        no_open: bool = False,
        xattr: bool = True,
        posix_acl: bool = True,
        flock: bool = True,
        posix_locks: bool | None = None,
        max_held: int | None = None,
        submounts: bool = False,
        file_handles: str = "prefer",
        keep_noatime: bool = True,
        o_direct: bool = False,
        direct_mmap: bool = True,
        killpriv: bool = True,
        readdirplus: bool | None = None,
    ) -> None:
        if cache not in CACHE_MODES:
            raise ValueError(f"cache={cache!r} is none of {', '.join(CACHE_MODES)}")
        if file_handles not in HANDLE_MODES:
            raise ValueError(f"file_handles={file_handles!r} is none of {', '.join(HANDLE_MODES)}")
        if no_open and (cache != "always" or direct_io or posix_locks):
            raise ValueError("no_open needs cache=always, and goes with neither direct_io nor posix_locks")
        self.cache = cache
        self.writeback = writeback
        self.direct_io = direct_io or (cache == "never" and not writeback)
        self.submounts = submounts
        self.dropped_flags = 0 if keep_noatime else os.O_NOATIME
        self.added_flags = os.O_DIRECT if o_direct else 0
        self.offer_backing = passthrough and not writeback and not direct_io and not no_open
        self.posix_locks = posix_locks if posix_locks is not None else cache != "always"
        timeout = {"never": 0.0, "auto": AUTO_TIMEOUT_S, "always": ALWAYS_TIMEOUT_S}[cache]
        self.features = Features(
            entry_timeout_s=timeout if entry_timeout_s is None else entry_timeout_s,
            attr_timeout_s=timeout if attr_timeout_s is None else attr_timeout_s,
            # A name made on the host while the peer remembers its absence: only "always" promises that this is not so.
            negative_timeout_s=(ALWAYS_TIMEOUT_S if cache == "always" else 0.0)
            if negative_timeout_s is None
            else negative_timeout_s,
            writeback_cache=writeback,
            passthrough=self.offer_backing,
            posix_acl=posix_acl and xattr,
            auto_inval_data=cache != "always",
            explicit_inval_data=cache == "always",
            cache_symlinks=cache == "always",
            handle_killpriv_v2=killpriv,
            direct_io_allow_mmap=self.direct_io and direct_mmap,
            readdirplus=readdirplus,
            submounts=submounts,
            no_open=no_open,
            atomic_o_trunc=not no_open,
        )
        without: frozenset[str] = frozenset() if xattr else XATTR_OPERATIONS
        if not self.posix_locks:
            without |= POSIX_LOCK_OPERATIONS
        if not flock or no_open:
            without |= {"flock"}
        if no_open:
            without |= {"flush"}  # ENOSYS: it is never asked for again, and there is nothing to do
        self._without = without
        self.passed_through = self.offer_backing
        """The kernel takes backing files on this connection, as far as is known."""
        self.credentials = Credentials()
        # "." of the given fd, so that ours is one of its own and readable (syncfs, open_by_handle_at need that).
        root = (
            os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
            if isinstance(source, int)
            else os.open(os.fspath(source), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        )
        # "always" promises that nobody mounts anything in the source either.
        view = syscalls.open_view(root) if cache == "always" else None
        if view is not None:
            os.close(root)
            root = view
        held = HeldFd(root)
        self.probe = syscalls.make_probe(os.fstat(root).st_dev)
        self.steps = make_steps(self.probe, direct=view is not None or os.geteuid() != 0)
        handles = file_handles != "never" and _handles_work(root)
        if file_handles == "mandatory" and not handles:
            raise OSError(errno.EOPNOTSUPP, "no file handles here: none are kept, or CAP_DAC_READ_SEARCH is missing")
        self.nodes = NodeTable(held, default_bound() if max_held is None else max_held, handles, cache == "always")
        self.opened: dict[int, OpenFile | OpenDirectory] = {}
        """Open files and directories by fh."""
        self.unopened = Unopened() if no_open else None
        self.fhs = itertools.count(1)
        self.rename_lock = threading.RLock()
        """Held from before a rename until the hints tell of it."""
        self.waiters = Waiters()
        self.locks = PosixLocks(self._lock_fd, self.waiters, MAX_LOCK_OWNERS)
        self._negative = Entry.negative()
        self._notify: Any = None

    def operations(self) -> frozenset[str]:
        return super().operations() - self._without

    def mounted(self, connection: Any) -> None:
        self.passed_through = bool(connection.features.passthrough)
        self._notify = connection.notify

    def _attributes_changed(self, nodeid: int) -> None:
        """Have the peer ask anew, after something whose reply tells it nothing of mode or ctime.

        Attributes alone (offset -1) take no inode lock in the kernel (fs/fuse/inode.c, fuse_reverse_inval_inode),
        so this is safe from inside a request about it.
        """
        if self._notify is not None:
            try:
                self._notify.inval_inode(nodeid, -1)
            except OSError as error:  # the peer goes on with what it has until the timeout
                log.debug("node %d: attributes not invalidated: %s", nodeid, error)

    def destroyed(self) -> None:
        self._notify = None
        opened, self.opened = self.opened, {}
        opened.clear()
        if self.unopened is not None:
            self.unopened.clear()
        self.locks.clear()
        self.nodes.clear()

    def close(self) -> None:
        """Let go of the source; every later call fails with ESTALE. Dropping the object does the same."""
        self.destroyed()
        self.nodes.root.ref = None

    @property
    def root(self) -> HeldFd:
        """The source, open for reading."""
        ref = self.nodes.root.ref
        if ref is None:
            raise stale(self.nodes.root.nodeid)
        return ref

    # -- from a nodeid to an fd ---------------------------------------------------------------------------------------

    def _node(self, nodeid: int) -> Node:
        node = self.nodes.by_id.get(nodeid)
        if node is None:
            raise stale(nodeid)
        return node

    def _ref(self, nodeid: int) -> HeldFd:
        """An fd of the node, good for as long as the object is held."""
        node = self.nodes.by_id.get(nodeid)
        if node is None:
            raise stale(nodeid)
        ref = node.ref
        if ref is None:
            return self._hold(node)
        ref.used = True
        return ref

    def _directory(self, nodeid: int, name: bytes) -> tuple[Node, HeldFd]:
        """A directory node and its fd, for a step to `name`."""
        if b"/" in name or name in DOTS or not name:
            raise OSError(errno.EINVAL, f"{name!r} is no name of a directory entry")
        node = self.nodes.by_id.get(nodeid)
        if node is None:
            raise stale(nodeid)
        ref = node.ref
        if ref is None:
            return node, self._hold(node)
        ref.used = True
        return node, ref

    def _hold(self, node: Node, settled: bool = False) -> HeldFd:
        """Open the node and keep the fd, and those of the directories on the way that had none.

        `settled`: no rename of ours is under way that could make a hint wrong before the node is told.
        """
        way = []
        at = node
        while (ref := at.ref) is None and (parent := at.parent) is not None:
            way.append(at)
            at = parent
        try:
            if ref is None:
                ref = self._hold_step(at, None, settled)
            for at in reversed(way):
                ref = self._hold_step(at, ref, settled)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return self._hold_open(node)
        return ref

    def _hold_step(self, node: Node, parent: HeldFd | None, settled: bool) -> HeldFd:
        try:
            fd, _ = self._find(node, parent)
        except OSError as error:
            if settled or error.errno != errno.ESTALE:
                raise
            with self.rename_lock:
                return self._hold(node, True)
        return self.nodes.hold(node, HeldFd(fd))

    def _hold_open(self, node: Node) -> HeldFd:
        """Nothing leads to the node any more, unless it is open. Looks through all that is open: the last resort."""
        for opened in list(self.opened.values()):
            if opened.node is node:
                return self.nodes.hold(node, opened.ref)
        raise stale(node.nodeid)

    def _find(self, node: Node, parent: HeldFd | None) -> tuple[int, Attr]:
        """Open the node as O_PATH by its handle, or by its hint in `parent`; the fd is the caller's.

        A file that is not where the hint says is looked for in the rest of that directory. ESTALE otherwise.
        """
        place = node.place
        if place is None:
            raise stale(node.nodeid)
        try:
            if parent is None:
                fd = self._with_room(syscalls.open_handle, self.root.fd, place, os.O_PATH)
            else:
                fd = self._open(place, O_PATH_FLAGS, parent.fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                raise
        else:
            found = self.probe(fd, b"")
            if found is not None and found[1] == node.key:
                return fd, found[0]
            os.close(fd)
        if parent is None:
            raise stale(node.nodeid)
        return self._search(node, parent)

    def _search(self, node: Node, parent: HeldFd) -> tuple[int, Attr]:
        key = node.key
        if isinstance(key, tuple):
            raise stale(node.nodeid)
        ino = key & 0xFFFF_FFFF_FFFF_FFFF
        listing = self._open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, parent.fd)
        try:
            seen = 0
            while seen < SEARCH_ENTRIES and (entries := syscalls.list_directory(listing)):
                seen += len(entries)
                for entry in entries:
                    if entry.ino != ino or entry.name in DOTS:
                        continue
                    try:
                        fd = self._open(entry.name, O_PATH_FLAGS, parent.fd)
                    except FileNotFoundError:
                        continue
                    found = self.probe(fd, b"")
                    if found is not None and found[1] == key:
                        self._moved_here(node, parent, entry.name)
                        return fd, found[0]
                    os.close(fd)
        finally:
            os.close(listing)
        raise stale(node.nodeid)

    def _moved_here(self, node: Node, parent: HeldFd, name: bytes) -> None:
        with self.nodes.lock:
            if node.parent is not None and node.parent.ref is parent:
                node.place = name

    def _open(self, name: bytes, flags: int, dir_fd: int | None = None) -> int:
        """os.open, which gives up held fds when the process has run out of them."""
        try:
            return os.open(name, flags, 0, dir_fd=dir_fd)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self.nodes.make_room():
                raise
        return os.open(name, flags, 0, dir_fd=dir_fd)

    def _with_room(self, call: Callable[..., T], *args: Any) -> T:
        """As _open, for any call."""
        try:
            return call(*args)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self.nodes.make_room():
                raise
        return call(*args)

    def _file(self, fh: int) -> OpenFile:
        file = self.opened.get(fh)
        if file.__class__ is not OpenFile:
            raise OSError(errno.EBADF, f"fh {fh} is not an open file")
        return file

    def _new_fh(self, opened: OpenFile | OpenDirectory) -> int:
        if len(self.opened) >= MAX_OPEN:
            raise OSError(errno.ENFILE, f"{MAX_OPEN} files are open")
        fh = next(self.fhs)
        self.opened[fh] = opened
        return fh

    def _lock_fd(self, nodeid: int, writable: bool) -> HeldFd:
        """A file description of its own for the POSIX locks of one owner."""
        node = self._node(nodeid)
        if node.kind != REGULAR:
            raise OSError(errno.EBADF, "only regular files are locked")
        ref = node.ref or self._hold(node)
        try:
            return HeldFd(self._with_room(syscalls.reopen, ref.fd, os.O_RDWR))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS, errno.ETXTBSY):
                raise
        return HeldFd(self._with_room(syscalls.reopen, ref.fd, os.O_WRONLY if writable else os.O_RDONLY))

    # -- the operations of every walk ---------------------------------------------------------------------------------

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        """One statx(). A missing name is a negative entry, which the session turns into ENOENT without a timeout."""
        if b"/" in name or name in DOTS or not name:
            raise OSError(errno.EINVAL, f"{name!r} is no name of a directory entry")
        nodes = self.nodes
        node = nodes.by_id.get(parent)
        if node is None:
            raise stale(parent)
        ref = node.ref
        if ref is None:
            ref = self._hold(node)
        else:
            ref.used = True
        found = self.probe(ref.fd, name)
        if found is None:
            return self._negative
        attr = found[0]
        if self.submounts and attr.attributes & STATX_ATTR_MOUNT_ROOT and attr.mode >> 12 == DIRECTORY:
            attr.flags |= FUSE_ATTR_SUBMOUNT
        return Entry(attr, nodes.remember(attr, found[1], node, name, ref.fd).nodeid)

    def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        """Drop the node, its fd and its locks when no lookup is left."""
        if self.nodes.forget(nodeid, nlookup) is not None:
            self.locks.drop_node(nodeid)
            if self.unopened is not None:
                self.unopened.drop(nodeid)

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        """One statx(), by the open file, the node's fd, or the node's name in its directory."""
        if fh is not None and (opened := self.opened.get(fh)) is not None:
            found = self.probe(opened.ref.fd, b"")
            if found is not None:
                return found[0]
        node = self.nodes.by_id.get(nodeid)
        if node is None:
            raise stale(nodeid)
        ref = node.ref
        if ref is None:
            # A name that still leads there needs no fd of the file.
            parent, place = node.parent, node.place
            if parent is not None and place is not None and (held := parent.ref) is not None:
                held.used = True
                found = self.probe(held.fd, place)
                if found is not None and found[1] == node.key:
                    return found[0]
                ref = self._hold(node)
            elif parent is None and place is not None:
                try:
                    fd, attr = self._find(node, None)  # by handle: seen on the way, no need to look again
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        raise
                    ref = self._hold(node)  # minds a rename at the same moment
                else:
                    self.nodes.hold(node, HeldFd(fd))
                    return attr
            else:
                ref = self._hold(node)
        else:
            ref.used = True
        found = self.probe(ref.fd, b"")
        if found is None:
            raise stale(nodeid)
        return found[0]

    def statx(self, req: Request, nodeid: int, fh: int | None, flags: int, mask: int) -> Attr:
        """As getattr(), which knows btime and attributes already."""
        return self.getattr(req, nodeid, fh)

    def _made(self, node: Node, ref: HeldFd, name: bytes) -> Entry:
        """The entry of something that was just made as `name`."""
        found = self.probe(ref.fd, name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, f"{name!r} was removed as soon as it was made")
        return Entry(found[0], self.nodes.remember(found[0], found[1], node, name, ref.fd).nodeid)


def _handles_work(root: int) -> bool:
    """May this process open file handles of the source?"""
    handle = syscalls.take_handle(root, b"")
    if handle is None:
        return False
    try:
        os.close(syscalls.open_handle(root, handle, os.O_PATH))
    except OSError:
        return False
    return True

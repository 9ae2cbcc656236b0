"""The values that filesystems give and take: plain classes with slots and defaults, nothing from the wire.

Times are integers in nanoseconds since 1970 (negative before), timeouts are seconds as float, sizes are bytes.
A timeout of None means "the session's default for this filesystem" (`Filesystem.features`).
"""

from __future__ import annotations

import os
import stat as stat_bits
from dataclasses import dataclass, field
from typing import Any, NewType

__all__ = [
    "MAP_CACHED",
    "MAP_READ",
    "MAP_SHARED",
    "MAP_WRITE",
    "ROOT_ID",
    "Attr",
    "AttrChanges",
    "DirEntry",
    "Entry",
    "Features",
    "FileHandle",
    "FileRange",
    "IoctlResult",
    "Lock",
    "NodeId",
    "Opened",
    "Statfs",
]

NodeId = NewType("NodeId", int)
FileHandle = NewType("FileHandle", int)

ROOT_ID = NodeId(1)
"""The nodeid of the root directory, in every FUSE filesystem."""

MAP_READ = 1
"""map(): the bytes will be read."""
MAP_WRITE = 2
"""map(): the bytes will be written."""
MAP_CACHED = 4
"""map(): what will be written is a page of the peer's cache, which has its place even in a file open for appending."""
MAP_SHARED = 8
"""map(): the peer will map the fd into memory and use it for as long as it likes; it asks without an open file."""


class Attr:
    """The attributes of one inode.

    `ino` is what stat(2) shows, not necessarily the nodeid. `blocks` counts 512-byte units. `btime_ns` and
    `attributes` are seen only by statx(2). `timeout_s` tells the peer how long it may believe all of this.
    """

    __slots__ = (
        "atime_ns",
        "attributes",
        "attributes_mask",
        "blksize",
        "blocks",
        "btime_ns",
        "ctime_ns",
        "flags",
        "gid",
        "ino",
        "mode",
        "mtime_ns",
        "nlink",
        "rdev",
        "size",
        "timeout_s",
        "uid",
    )

    def __init__(
        self,
        ino: int,
        mode: int,
        size: int = 0,
        nlink: int = 1,
        uid: int = 0,
        gid: int = 0,
        atime_ns: int = 0,
        mtime_ns: int = 0,
        ctime_ns: int = 0,
        blocks: int = -1,
        blksize: int = 4096,
        rdev: int = 0,
        flags: int = 0,
        btime_ns: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.ino = ino
        self.mode = mode
        self.size = size
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.atime_ns = atime_ns
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.blocks = blocks if blocks >= 0 else (size + 511) // 512
        self.blksize = blksize
        self.rdev = rdev
        self.flags = flags
        self.btime_ns = btime_ns
        self.attributes = 0
        self.attributes_mask = 0
        self.timeout_s = timeout_s

    @classmethod
    def file(cls, ino: int, size: int = 0, mode: int = 0o644, **rest: Any) -> Attr:
        """A regular file."""
        return cls(ino, stat_bits.S_IFREG | mode, size, **rest)

    @classmethod
    def directory(cls, ino: int, mode: int = 0o755, nlink: int = 2, **rest: Any) -> Attr:
        """A directory."""
        return cls(ino, stat_bits.S_IFDIR | mode, nlink=nlink, **rest)

    @classmethod
    def symlink(cls, ino: int, size: int, **rest: Any) -> Attr:
        """A symbolic link; `size` is the length of its target."""
        return cls(ino, stat_bits.S_IFLNK | 0o777, size, **rest)

    @classmethod
    def from_stat(cls, st: os.stat_result, ino: int | None = None) -> Attr:
        """The attributes that os.stat() gave; `ino` overrides st_ino."""
        self = cls.__new__(cls)
        self.ino = st.st_ino if ino is None else ino
        self.mode = st.st_mode
        self.size = st.st_size
        self.nlink = st.st_nlink
        self.uid = st.st_uid
        self.gid = st.st_gid
        self.atime_ns = st.st_atime_ns
        self.mtime_ns = st.st_mtime_ns
        self.ctime_ns = st.st_ctime_ns
        self.blocks = st.st_blocks
        self.blksize = st.st_blksize
        self.rdev = st.st_rdev
        self.flags = 0
        self.btime_ns = None
        self.attributes = 0
        self.attributes_mask = 0
        self.timeout_s = None
        return self

    def __repr__(self) -> str:
        return f"Attr(ino={self.ino}, mode={self.mode:#o}, size={self.size}, nlink={self.nlink})"


class Entry:
    """A name that was found or made: which node it is, and how long the peer may remember that.

    `nodeid` defaults to `attr.ino`, so that a hard link is one node. Every Entry that reaches the peer counts as one
    lookup of `nodeid`, given back later by forget(). `Entry.negative(timeout_s)` says "no such name" in a way the peer
    may remember.
    """

    __slots__ = ("attr", "generation", "nodeid", "timeout_s")

    def __init__(
        self, attr: Attr | None, nodeid: int | None = None, generation: int = 0, timeout_s: float | None = None
    ) -> None:
        self.attr = attr
        self.nodeid = nodeid if nodeid is not None else (attr.ino if attr is not None else 0)
        self.generation = generation
        self.timeout_s = timeout_s

    @classmethod
    def negative(cls, timeout_s: float | None = None) -> Entry:
        """No such name, and the peer need not ask again for `timeout_s` (None: the default negative timeout)."""
        return cls(None, 0, 0, timeout_s)

    def __repr__(self) -> str:
        return f"Entry(nodeid={self.nodeid}, attr={self.attr!r})"


class DirEntry:
    """One name of a directory listing.

    `kind` is the file type as in st_mode >> 12 (DT_*), 0 when unknown. `cookie` is an opaque position *after* this
    entry, at which a later readdir() can go on; 0 lets the session remember the listing and number it.
    """

    __slots__ = ("cookie", "ino", "kind", "name")

    def __init__(self, name: bytes, ino: int, kind: int = 0, cookie: int = 0) -> None:
        self.name = name
        self.ino = ino
        self.kind = kind
        self.cookie = cookie

    def __repr__(self) -> str:
        return f"DirEntry({self.name!r}, ino={self.ino}, kind={self.kind}, cookie={self.cookie})"


class Opened:
    """An open file or directory: the handle that later requests carry, and what the peer may do with its cache.

    `direct_io`: every read and write comes to the server. `keep_cache`: pages cached earlier stay valid.
    `noflush`: no FLUSH at close. `cache_dir`: the listing may be cached. `backing_fd`: an fd whose file holds exactly
    the bytes of this one; where the peer can, it then moves data by itself (kernel passthrough), else it is ignored.
    The fd must stay open until release().
    """

    __slots__ = (
        "backing_fd",
        "cache_dir",
        "direct_io",
        "fh",
        "keep_cache",
        "noflush",
        "nonseekable",
        "parallel_direct_writes",
    )

    def __init__(
        self,
        fh: int = 0,
        *,
        direct_io: bool = False,
        keep_cache: bool = False,
        noflush: bool = False,
        cache_dir: bool = False,
        nonseekable: bool = False,
        parallel_direct_writes: bool = False,
        backing_fd: int | None = None,
    ) -> None:
        self.fh = fh
        self.direct_io = direct_io
        self.keep_cache = keep_cache
        self.noflush = noflush
        self.cache_dir = cache_dir
        self.nonseekable = nonseekable
        self.parallel_direct_writes = parallel_direct_writes
        self.backing_fd = backing_fd

    def __repr__(self) -> str:
        return f"Opened(fh={self.fh})"


class FileRange:
    """A read() or map() result that says where the bytes are instead of carrying them: `length` bytes of `fd` from
    `offset`.

    The transport moves them without a copy through a Python object. Fewer bytes may arrive at the end of the file.
    `owner` is whatever keeps `fd` open; it is held until the bytes were moved, so that a release at the same moment
    cannot give the number to another file.
    """

    __slots__ = ("fd", "length", "offset", "owner")

    def __init__(self, fd: int, offset: int, length: int, owner: object = None) -> None:
        self.fd = fd
        self.offset = offset
        self.length = length
        self.owner = owner


@dataclass(slots=True)
class AttrChanges:
    """What setattr() is asked to change; None leaves a field alone.

    `atime_now`/`mtime_now`: set to the server's current time. `kill_suidgid`: the caller lacks CAP_FSETID, so a change
    of size or owner clears setuid, and setgid where group execute is set. Nothing at all is asked (`is_empty`) by
    chown(path, -1, -1), and by Linux before it changes a file's data by itself or sends a WRITE for a caller who may
    not keep setuid and setgid: both mean that these are to be cleared.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False
    lock_owner: int | None = None
    kill_suidgid: bool = False

    @property
    def is_empty(self) -> bool:
        """No change is asked for; ctime may be there, which the peer sends along while it collects writes."""
        return (
            self.mode is self.uid is self.gid is self.size is self.atime_ns is self.mtime_ns is None
            and not self.atime_now
            and not self.mtime_now
        )


@dataclass(slots=True)
class Lock:
    """A byte-range lock. `kind` is F_RDLCK 0, F_WRLCK 1 or F_UNLCK 2; `end` is the last byte, MAX_END for "the end"."""

    MAX_END = 0x7FFF_FFFF_FFFF_FFFF

    kind: int
    start: int
    end: int
    pid: int = 0


@dataclass(slots=True)
class Statfs:
    """The figures of statvfs(3); block counts are in units of `frsize` bytes."""

    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    bsize: int = 4096
    namelen: int = 255
    frsize: int = 4096


@dataclass(slots=True)
class IoctlResult:
    """What ioctl() returns: the call's result and the bytes to copy out to the caller."""

    result: int = 0
    data: bytes = b""


@dataclass(slots=True)
class Features:
    """What a filesystem wants of the connection. The session negotiates each only if the peer offers it and the
    methods it needs exist; what could not be had is False in `Connection.features` afterwards.
    """

    entry_timeout_s: float = 1.0
    """How long the peer may believe a name, where an Entry does not say."""
    attr_timeout_s: float = 1.0
    """How long the peer may believe attributes, where an Attr does not say."""
    negative_timeout_s: float = 0.0
    """How long the peer may believe that a name does not exist."""
    writeback_cache: bool = False
    """The peer collects writes and owns size, mtime and ctime meanwhile. Excludes passthrough."""
    passthrough: bool = False
    """Let the kernel read and write `Opened.backing_fd` itself."""
    max_stack_depth: int = 1
    """1: the files given for passthrough are not on a stacked filesystem, and nothing stacks on this mount.
    2: overlayfs may."""
    readdirplus: bool | None = None
    """True: listings always carry attributes; False: never; None: the peer decides as it goes."""
    posix_acl: bool = False
    """The filesystem keeps POSIX ACLs as xattrs; the peer checks permissions by them. Implies default permissions."""
    dont_mask: bool = True
    """The filesystem applies the umask (needed for default ACLs); else the peer has applied it already."""
    atomic_o_trunc: bool = True
    """open() handles O_TRUNC itself; else a truncating setattr() comes first."""
    auto_inval_data: bool = True
    """The peer drops cached pages when mtime or size changed."""
    explicit_inval_data: bool = False
    """Cached pages are dropped only by notification."""
    cache_symlinks: bool = False
    no_open: bool = False
    """open()/release() may be left out for the life of the connection (fh is 0). Excludes passthrough."""
    no_opendir: bool = False
    parallel_dirops: bool = True
    """Several lookups and listings in one directory at a time."""
    handle_killpriv_v2: bool = False
    """write(), truncation and chown clear setuid and setgid in the filesystem; requests say when."""
    export_support: bool = False
    """lookup() of "." and ".." works on any nodeid the filesystem ever gave out (NFS export, open_by_handle_at)."""
    direct_io_allow_mmap: bool = False
    submounts: bool = False
    allow_idmap: bool = False
    supplementary_groups: bool = True
    """Creating requests carry the one supplementary group that the parent directory's group needs."""
    async_read: bool = True
    async_dio: bool = True
    max_write: int = 1 << 20
    """Largest write and, with max_pages, largest read, in bytes."""
    max_readahead: int = 1 << 20
    max_background: int = 64
    congestion_threshold: int = 48
    time_gran_ns: int = 1
    request_timeout_s: int = 0
    """The peer aborts the connection when a request takes longer (0: never; the kernel's floor is 15)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """For extensions that are not part of mainline FUSE."""

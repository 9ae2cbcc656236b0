"""INIT as a pure function: what the peer offers, what the filesystem wants and what the transport can do, in; the reply
and the Connection, out. Nothing that can't be honoured is ever agreed to.

A bit is answered only if all three agree: the peer offered it, `Features` asks for it, and the operations (and, for
passthrough, the transport) behind it exist. The peer's minor above ours is answered with ours; one below 7.27 is
refused.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from transfuse.errors import RemoteProtocolError
from transfuse.fs.values import Features
from transfuse.wire import flags as f
from transfuse.wire.layout import ByteOrder
from transfuse.wire.structs import InitIn, InitOut

if TYPE_CHECKING:
    from transfuse.session.notify import Notifier

__all__ = ["MIN_MINOR", "Connection", "Limits", "negotiate"]

MIN_MINOR = 27
"""Oldest peers that are served (RHEL 8 guests speak 7.27); older ones get EPROTO."""

PAGE = 4096
MAP_ALIGNMENT = 12
"""What offsets and lengths of DAX mappings are multiples of, as a power of two: pages, which is what can be mapped.
Linux asks for 2 MiB at a time."""
MAX_PAGES = 256
"""Most pages of one request: Linux's default fs.fuse.max_pages_limit. 1 MiB with 4 KiB pages."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the transport can carry."""

    max_write: int = 1 << 20
    """Largest payload of one request in bytes."""
    passthrough: bool = False
    """The peer is a kernel that can be given backing files."""
    notify: bool = True
    """Notifications reach the peer."""
    default_permissions: bool = False
    """The peer's kernel checks permissions by mode bits (a mount option)."""
    owner: int | None = None
    """With a uid: only it and root may use the filesystem (mount option allow_root, which the kernel does not have)."""
    locks: bool = True
    """Who waits for a lock can be interrupted. Linux sends no INTERRUPT over virtio-fs (fs/fuse/virtio_fs.c): a process
    that waited there could not be killed. Without this the peer's kernel minds its locks alone."""
    window: int = 0
    """Bytes of the DAX window, through which a virtio-fs peer reads and writes files by itself; 0: there is none."""
    io_uring: bool = False
    """The transport serves the kernel's queues, and whoever mounts wants that."""


@dataclass(slots=True)
class Connection:
    """Everything that was agreed with one peer. Never a module global: each connection has its own."""

    order: ByteOrder = "<"
    minor: int = f.FUSE_KERNEL_MINOR_VERSION
    """Protocol minor both sides speak from now on."""
    peer_minor: int = f.FUSE_KERNEL_MINOR_VERSION
    """What the peer said of itself."""
    offered: int = 0
    """INIT bits the peer offered."""
    flags: int = 0
    """INIT bits in force."""
    max_write: int = 1 << 20
    max_pages: int = 32
    max_readahead: int = 0
    features: Features = field(default_factory=Features)
    """The filesystem's wishes with everything that was not granted switched off."""
    notify: Notifier | None = field(default=None, repr=False, compare=False)
    """Sends notifications to the peer; None where the wire has none. A filesystem gets at it through mounted()."""

    def has(self, bit: int) -> bool:
        """Is this INIT bit in force?"""
        return bool(self.flags & bit)

    def describe(self) -> str:
        """One line for logs and `doctor`."""
        return (
            f"FUSE 7.{self.minor} (peer 7.{self.peer_minor}), {'little' if self.order == '<' else 'big'}-endian, "
            f"max_write {self.max_write}, {f.names(self.flags, f.INIT_NAMES)}"
        )


@dataclass(frozen=True, slots=True)
class _Rule:
    """One INIT bit: the Features field that asks for it (None: always wanted) and the operations it needs."""

    bit: int
    feature: str | None = None
    needs: frozenset[str] = frozenset()
    minor: int = 0


def _rule(bit: int, feature: str | None = None, *needs: str, minor: int = 0) -> _Rule:
    return _Rule(bit, feature, frozenset(needs), minor)


RULES: tuple[_Rule, ...] = (
    _rule(f.FUSE_ASYNC_READ, "async_read"),
    _rule(f.FUSE_POSIX_LOCKS, None, "getlk", "setlk"),
    _rule(f.FUSE_FLOCK_LOCKS, None, "flock"),
    _rule(f.FUSE_ATOMIC_O_TRUNC, "atomic_o_trunc", "open"),
    _rule(f.FUSE_EXPORT_SUPPORT, "export_support", "lookup"),
    _rule(f.FUSE_BIG_WRITES),
    _rule(f.FUSE_DONT_MASK, "dont_mask"),
    _rule(f.FUSE_HAS_IOCTL_DIR, None, "ioctl"),
    _rule(f.FUSE_AUTO_INVAL_DATA, "auto_inval_data"),
    _rule(f.FUSE_EXPLICIT_INVAL_DATA, "explicit_inval_data", minor=30),
    _rule(f.FUSE_ASYNC_DIO, "async_dio"),
    _rule(f.FUSE_WRITEBACK_CACHE, "writeback_cache", "write"),
    _rule(f.FUSE_NO_OPEN_SUPPORT, "no_open"),
    _rule(f.FUSE_NO_OPENDIR_SUPPORT, "no_opendir", minor=29),
    _rule(f.FUSE_PARALLEL_DIROPS, "parallel_dirops"),
    _rule(f.FUSE_POSIX_ACL, "posix_acl", "getxattr", "setxattr"),
    _rule(f.FUSE_ABORT_ERROR),
    _rule(f.FUSE_MAX_PAGES, minor=28),
    _rule(f.FUSE_CACHE_SYMLINKS, "cache_symlinks", "readlink", minor=28),
    _rule(f.FUSE_SUBMOUNTS, "submounts", minor=32),
    _rule(f.FUSE_HANDLE_KILLPRIV_V2, "handle_killpriv_v2", "write", "setattr", minor=33),
    _rule(f.FUSE_SETXATTR_EXT, None, "setxattr", minor=33),
    _rule(f.FUSE_CREATE_SUPP_GROUP, "supplementary_groups", minor=38),
    _rule(f.FUSE_DIRECT_IO_ALLOW_MMAP, "direct_io_allow_mmap", minor=39),
    _rule(f.FUSE_HAS_RESEND, None, minor=40),
    _rule(f.FUSE_ALLOW_IDMAP, "allow_idmap", minor=41),
)


def negotiate(
    offer: InitIn, order: ByteOrder, operations: frozenset[str], features: Features, limits: Limits
) -> tuple[InitOut, Connection]:
    """Answer INIT.

    Raises RemoteProtocolError with EPROTO for a peer that is too old. A peer with a newer *major* is answered with our
    version alone (`Connection.minor` 0), whereupon it sends INIT again in our major.
    """
    if offer.major > f.FUSE_KERNEL_VERSION:
        return InitOut(major=f.FUSE_KERNEL_VERSION, minor=f.FUSE_KERNEL_MINOR_VERSION), Connection(order=order, minor=0)
    if offer.major < f.FUSE_KERNEL_VERSION or offer.minor < MIN_MINOR:
        raise RemoteProtocolError(
            f"peer speaks FUSE {offer.major}.{offer.minor}; 7.{MIN_MINOR} is the oldest that is served", errno.EPROTO
        )
    minor = min(offer.minor, f.FUSE_KERNEL_MINOR_VERSION)
    offered = offer.flags
    extended = bool(offered & f.FUSE_INIT_EXT) and offer.minor >= 36
    if extended:
        offered |= offer.flags2 << 32
    offered &= ~f.FUSE_INIT_RESERVED
    agreed = _agree(offered, minor, operations, features, limits)
    granted = _granted(features, agreed)
    if extended:
        agreed |= f.FUSE_INIT_EXT

    max_write = max(PAGE, min(features.max_write, limits.max_write))
    max_pages = 32
    if agreed & f.FUSE_MAX_PAGES:
        max_pages = max(1, min(MAX_PAGES, (max_write + PAGE - 1) // PAGE))
    else:
        max_write = min(max_write, max_pages * PAGE)
    readahead = min(offer.max_readahead, features.max_readahead)
    reply = InitOut(
        major=f.FUSE_KERNEL_VERSION,
        minor=f.FUSE_KERNEL_MINOR_VERSION,
        max_readahead=readahead,
        flags=agreed & 0xFFFFFFFF,
        flags2=agreed >> 32,
        max_background=features.max_background,
        congestion_threshold=features.congestion_threshold,
        max_write=max_write,
        time_gran=features.time_gran_ns,
        max_pages=max_pages if agreed & f.FUSE_MAX_PAGES else 0,
        max_stack_depth=features.max_stack_depth if agreed & f.FUSE_PASSTHROUGH else 0,
        request_timeout=features.request_timeout_s if agreed & f.FUSE_REQUEST_TIMEOUT else 0,
        map_alignment=MAP_ALIGNMENT if agreed & f.FUSE_MAP_ALIGNMENT else 0,
    )
    connection = Connection(order, minor, offer.minor, offered, agreed, max_write, max_pages, readahead, granted)
    return reply, connection


def _agree(offered: int, minor: int, operations: frozenset[str], features: Features, limits: Limits) -> int:
    agreed = 0
    for rule in RULES:
        wanted = rule.feature is None or getattr(features, rule.feature)
        if wanted and offered & rule.bit and minor >= rule.minor and rule.needs <= operations:
            agreed |= rule.bit
    if {"readdir", "lookup"} <= operations and features.readdirplus is not False:
        agreed |= offered & f.FUSE_DO_READDIRPLUS
        if features.readdirplus is None and agreed & f.FUSE_DO_READDIRPLUS:
            agreed |= offered & f.FUSE_READDIRPLUS_AUTO
    if not limits.locks:
        agreed &= ~(f.FUSE_POSIX_LOCKS | f.FUSE_FLOCK_LOCKS)
    if limits.notify and minor >= 38:
        agreed |= offered & f.FUSE_HAS_EXPIRE_ONLY
    if not limits.notify:
        agreed &= ~(f.FUSE_HAS_RESEND | f.FUSE_EXPLICIT_INVAL_DATA)
    if agreed & f.FUSE_EXPLICIT_INVAL_DATA:
        agreed &= ~f.FUSE_AUTO_INVAL_DATA  # the kernel lets AUTO win when both are set
    if not (limits.default_permissions or agreed & f.FUSE_POSIX_ACL) or limits.owner is not None:
        # Linux takes ALLOW_IDMAP without default_permissions for a bad INIT, and refuses every later request. With it,
        # only creating requests say who asks, so that `owner` could not be told from others.
        agreed &= ~f.FUSE_ALLOW_IDMAP
    passthrough = features.passthrough and limits.passthrough and not features.no_open and "open" in operations
    # Linux refuses passthrough together with write-back (fs/fuse/inode.c, process_init_reply).
    if passthrough and minor >= 40 and not agreed & f.FUSE_WRITEBACK_CACHE and features.max_stack_depth in (1, 2):
        agreed |= offered & f.FUSE_PASSTHROUGH
    if limits.window and "map" in operations:
        agreed |= offered & f.FUSE_MAP_ALIGNMENT
        if minor >= 36:
            agreed |= offered & f.FUSE_HAS_INODE_DAX
    if limits.io_uring and minor >= 42:
        agreed |= offered & f.FUSE_OVER_IO_URING
    if features.request_timeout_s and minor >= 43:
        agreed |= offered & f.FUSE_REQUEST_TIMEOUT
    return agreed


def _granted(features: Features, agreed: int) -> Features:
    """`features` with every wish switched off that did not become a flag."""
    off: dict[str, Any] = {rule.feature: False for rule in RULES if rule.feature is not None and not agreed & rule.bit}
    granted = replace(features, **off)
    granted.passthrough = bool(agreed & f.FUSE_PASSTHROUGH)
    if not agreed & f.FUSE_DO_READDIRPLUS:
        granted.readdirplus = False
    elif features.readdirplus is None and not agreed & f.FUSE_READDIRPLUS_AUTO:
        granted.readdirplus = True  # a peer without AUTO always asks for attributes
    if not agreed & f.FUSE_REQUEST_TIMEOUT:
        granted.request_timeout_s = 0
    return granted

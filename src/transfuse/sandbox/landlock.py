"""Landlock: a process gives up every file but a few, without privileges and without a new root.

What is denied is what the kernel's version (ABI) can deny: opening, listing, making, removing, renaming; from 3
truncating, 4 TCP, 5 device ioctls, 6 abstract Unix sockets and signals to others. What it does not deny, in any version
so far: looking at attributes, changing mode, owner, times and xattrs, connecting to a Unix socket by path. As an
ordinary user the permissions of files remain in the way; for root this is much weaker than namespaces are.

A file is judged by the directories above it. One that was opened by its handle may have none (its dentry is
"disconnected" until somebody walks there), and is then denied. So there are no file handles with Landlock: the
process gives up CAP_DAC_READ_SEARCH, and hostdir sees that they do not work and goes by directories and names.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from transfuse.sandbox import linux

__all__ = ["Opening", "READ", "WRITE", "restrict", "what_is_denied"]

# LANDLOCK_ACCESS_FS_* of <linux/landlock.h>
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REMOVE_DIR, REMOVE_FILE = 0x10, 0x20
MAKE_ANY = 0x1FC0
"""MAKE_CHAR, _DIR, _REG, _SOCK, _FIFO, _BLOCK and _SYM."""
REFER, TRUNCATE, IOCTL_DEV = 0x2000, 0x4000, 0x8000
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_ANY | REFER | TRUNCATE
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What a rule for something that is no directory may say; more is EINVAL."""
NET_TCP = 3
"""LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP."""
SCOPES = 3
"""LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and _SIGNAL."""
ABI_REFER, ABI_TRUNCATE, ABI_NET, ABI_IOCTL_DEV, ABI_SCOPE = 2, 3, 4, 5, 6

_RULESET = struct.Struct("=QQQ")
"""handled_access_fs, handled_access_net (ABI 4), scoped (ABI 6)."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A hole: `access` (READ, WRITE) at and below `path`."""

    path: str
    access: int


def handled(abi: int) -> int:
    """Every file access that this ABI can deny."""
    access = EXECUTE | WRITE & ~REFER & ~TRUNCATE
    for since, bit in ((ABI_REFER, REFER), (ABI_TRUNCATE, TRUNCATE), (ABI_IOCTL_DEV, IOCTL_DEV)):
        if abi >= since:
            access |= bit
    return access


def what_is_denied(abi: int) -> tuple[str, ...]:
    """In words, for the report."""
    parts = ((1, "files"), (ABI_NET, "TCP"), (ABI_SCOPE, "abstract sockets"), (ABI_SCOPE, "signals"))
    return tuple(text for since, text in parts if abi >= since)


def restrict(openings: Iterable[Opening], abi: int) -> None:
    """Deny everything but `openings`, from the calling thread on. Needs no_new_privs. OSError names the step; a path
    that is not there is left out."""
    fs = handled(abi)
    size = 8 if abi < ABI_NET else 16 if abi < ABI_SCOPE else 24
    ruleset = linux.landlock_create(_RULESET.pack(fs, NET_TCP, SCOPES)[:size])
    try:
        for opening in openings:
            try:
                fd = os.open(opening.path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                access = opening.access & fs
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    access &= OF_A_FILE
                linux.landlock_add_path(ruleset, access, fd, opening.path)
            finally:
                os.close(fd)
        linux.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)

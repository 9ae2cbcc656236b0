"""A connection that somebody else prepared: a /dev/fuse descriptor that is mounted already, or a Unix socket.

mount.fuse3 with drop_privileges, container runtimes and gVisor open (and mount) first and hand the descriptor to an
unprivileged server, named as the mount point /dev/fd/N or by a number. What it really is is checked once, here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from typing import Literal

from .errors import MountError

__all__ = ["DEV_FUSE_RDEV", "from_fd", "parse_dev_fd"]

DEV_FUSE_RDEV = os.makedev(10, 229)  # FUSE_MINOR, include/linux/miscdevice.h


def parse_dev_fd(mountpoint: str | bytes) -> int | None:
    """N when the mount point is spelt "/dev/fd/N", else None."""
    match = re.fullmatch(rb"/dev/fd/(0|[1-9][0-9]{0,8})", os.fsencode(mountpoint))
    return int(match[1]) if match else None


def from_fd(fd: int) -> Literal["dev_fuse", "seqpacket"]:
    """What an inherited descriptor speaks, and make it close-on-exec.

    "dev_fuse": a /dev/fuse descriptor open for reading and writing. "seqpacket": a connected Unix SOCK_SEQPACKET
    socket, one message per packet. Raises MountError: EBADF when it is not open, EINVAL when it is anything else.
    """
    step = f"use descriptor {fd}"
    try:
        found = os.fstat(fd)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    except (OSError, OverflowError) as e:
        raise MountError(errno.EBADF, step, hint="whoever starts this program must leave it open") from e
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == DEV_FUSE_RDEV:
        if flags & os.O_ACCMODE != os.O_RDWR:
            raise MountError(errno.EINVAL, step, text="/dev/fuse, but not open for reading and writing")
        os.set_inheritable(fd, False)
        return "dev_fuse"
    if stat.S_ISSOCK(found.st_mode):
        _check_socket(fd, step)
        os.set_inheritable(fd, False)
        return "seqpacket"
    what = "a directory" if stat.S_ISDIR(found.st_mode) else "neither /dev/fuse nor a socket"
    raise MountError(errno.EINVAL, step, text=f"it is {what}", hint="it must be /dev/fuse or a SOCK_SEQPACKET socket")


def _check_socket(fd: int, step: str) -> None:
    sock = socket.socket(fileno=fd)  # reads family and type from the kernel
    try:
        if sock.family != socket.AF_UNIX or sock.type & 0xF != socket.SOCK_SEQPACKET:
            raise MountError(errno.EINVAL, step, text="it is a socket, but not a Unix SOCK_SEQPACKET one")
        try:
            sock.getpeername()
        except OSError as e:
            raise MountError(e.errno or errno.EINVAL, step, text="the socket is not connected") from e
    finally:
        sock.detach()

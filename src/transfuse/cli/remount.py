"""`mount -o remount` of a mount that another process serves: what it is now is read from the kernel's table.

mount(8) passes a remount to us like a mount. The kernel changes the flags of the mount (ro, nosuid, noexec, atime,
...) and drops every FUSE parameter without a word; a parameter that would have to change is refused here instead.
"""

from __future__ import annotations

import errno
import os

from transfuse.cli.errors import OK, USAGE, CommandError
from transfuse.transports.mount import mountinfo
from transfuse.transports.mount.errors import MountError
from transfuse.transports.mount.mounted import Mounted
from transfuse.transports.mount.mountpoint import resolve
from transfuse.transports.mount.options import MountOptions, parse_options

__all__ = ["options_of", "run"]


def options_of(row: mountinfo.Mount) -> MountOptions:
    """The options a mount was made with, as far as the kernel tells them."""
    texts = [os.fsdecode(row.super_options), os.fsdecode(row.options)]
    options = parse_options(texts)
    options.source = os.fsdecode(row.source)
    options.subtype = os.fsdecode(row.fstype).partition(".")[2] or None
    flags = row.options.split(b",")
    options.nosuid = b"nosuid" in flags
    options.nodev = b"nodev" in flags
    return options


def run(place: str | None, new: MountOptions, *, fake: bool = False) -> int:
    """Remount what is mounted at `place`. MountError or MountOptionError when that can't be done."""
    if place is None:
        raise CommandError("remount", "DIR is missing", "name the mount point", USAGE)
    path = resolve(place)
    row = mountinfo.top_mount(mountinfo.mounts(), path)
    if row is None or not row.is_fuse:
        raise MountError(errno.EINVAL, "remount", where=path, text="no FUSE mount is there", hint="mount it first")
    if not fake:
        Mounted(row.mountpoint, 0, "mount", row, options_of(row)).remount(new)
    return OK

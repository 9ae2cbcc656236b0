"""What is mounted, from /proc/self/mountinfo: no question ever reaches a filesystem's server.

A FUSE mount whose server died answers ENOTCONN to stat(), and one whose server hangs does not answer at all. So
everything here is read from proc: the table itself, and the mount id of an O_PATH descriptor from its fdinfo.
Paths are bytes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

__all__ = ["Mount", "mount_id_of_fd", "mounts", "parse", "top_mount"]


@dataclass(slots=True)
class Mount:
    """One row of /proc/self/mountinfo (proc(5))."""

    mount_id: int
    """Unique among present mounts; used again after an unmount."""
    parent_id: int
    major: int
    minor: int
    """For a FUSE mount (major 0) also its folder's name in the fusectl filesystem."""
    mountpoint: bytes
    options: bytes
    fstype: bytes
    source: bytes
    super_options: bytes

    @property
    def dev(self) -> int:
        """As st_dev of files in it."""
        return os.makedev(self.major, self.minor)

    @property
    def is_fuse(self) -> bool:
        return self.fstype in {b"fuse", b"fuseblk"} or self.fstype.startswith((b"fuse.", b"fuseblk."))


def _plain(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), field)


def parse(table: bytes) -> list[Mount]:
    """Rows of a mountinfo table, in its order."""
    found = []
    for line in table.splitlines():
        front, _, back = line.partition(b" - ")
        fields, kinds = front.split(b" "), back.split(b" ")
        major, _, minor = fields[2].partition(b":")
        row = Mount(
            int(fields[0]), int(fields[1]), int(major), int(minor), _plain(fields[4]), fields[5],
            _plain(kinds[0]), _plain(kinds[1]), _plain(kinds[2]),
        )  # fmt: skip
        found.append(row)
    return found


def mounts() -> list[Mount]:
    """This process's mounts. Raises OSError where /proc is not mounted."""
    with open("/proc/self/mountinfo", "rb") as f:
        return parse(f.read())


def top_mount(table: list[Mount], path: bytes) -> Mount | None:
    """The mount that shows at `path` (absolute, without links): with several stacked there, the uppermost."""
    here = [row for row in table if row.mountpoint == path]
    covered = {row.parent_id for row in here}
    uncovered = [row for row in here if row.mount_id not in covered]
    return uncovered[-1] if uncovered else None


def mount_id_of_fd(fd: int) -> int:
    """Id of the mount that an open descriptor (O_PATH will do) is on."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as f:
        for line in f:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(f"/proc/self/fdinfo/{fd} has no mnt_id")

"""A mount that exists: what it is called in the kernel's tables, and how it ends.

The mount is recognised by its row in /proc/self/mountinfo (mount id, device number and place together; ids alone are
used again). Ending it twice, or after somebody else did, is harmless.
"""

from __future__ import annotations

import errno
import os
from typing import Literal

from . import mountinfo, parameters, syscalls
from .errors import MountError
from .options import MountOptions, Remount, check_remount
from .umount import umount
from .watch import Watcher

__all__ = ["Mounted", "abort_connection"]

CONNECTIONS = "/sys/fs/fuse/connections"


class Mounted:
    """One mount of a /dev/fuse descriptor.

    `mountpoint` is absolute and without links; `dev` is st_dev of the files in it, and `connection` the number of its
    folder below /sys/fs/fuse/connections; `method` tells how it was made. The descriptor belongs to the caller.
    """

    __slots__ = ("device_fd", "keeper", "method", "mountpoint", "options", "row")

    def __init__(
        self,
        mountpoint: bytes,
        device_fd: int,
        method: Literal["fsmount", "mount", "fusermount3"],
        row: mountinfo.Mount,
        options: MountOptions,
    ) -> None:
        self.mountpoint = mountpoint
        self.device_fd = device_fd
        self.method = method
        self.row = row
        self.options = options
        self.keeper: Watcher | None = None
        """The auto_unmount process, if there is one."""

    @property
    def dev(self) -> int:
        return self.row.dev

    @property
    def connection(self) -> int:
        return self.row.minor

    def __repr__(self) -> str:
        return f"<Mounted {self.mountpoint!r} by {self.method}, connection {self.connection}, fd {self.device_fd}>"

    def is_mounted(self) -> bool:
        """Whether it is still there, dead or alive (read from /proc/self/mountinfo, nobody is asked)."""
        ours = self.row
        key = (ours.mount_id, ours.dev, ours.mountpoint, ours.fstype, ours.source)
        return any((m.mount_id, m.dev, m.mountpoint, m.fstype, m.source) == key for m in mountinfo.mounts())

    def umount(self, lazy: bool = False, force: bool = False) -> None:
        """End the mount; nothing happens when it has ended already. Raises MountError (EBUSY: files are open in it).

        `force` (not by fusermount3) also breaks the connection at once, which needs no fusectl.

        Dirty pages are written back by the server first, unless `lazy`, so somebody must still be serving then.
        """
        if self.is_mounted():
            top = mountinfo.top_mount(mountinfo.mounts(), self.mountpoint)
            if top is not None and top.mount_id != self.row.mount_id:
                raise MountError(
                    errno.EBUSY,
                    "umount",
                    where=self.mountpoint,
                    text="another mount covers it",
                    hint="unmount that first",
                )
            umount(self.mountpoint, lazy=lazy, force=force)
        self.release()

    def release(self) -> None:
        """Send the auto_unmount process away. Done by `umount`."""
        keeper, self.keeper = self.keeper, None
        if keeper is not None:
            keeper.release()

    def abort(self) -> None:
        """Break the connection: requests in flight end with ECONNABORTED, later ones with ENOTCONN; the server reads
        ENODEV. The mount stays, dead, until it is unmounted. Raises MountError, see `abort_connection`."""
        abort_connection(self.connection)

    def remount(self, new: MountOptions) -> Remount:
        """Change what a remount can change (see check_remount) by mount(2), as `mount -o remount` does.

        Raises MountOptionError for parameters that would have to change, MountError (EPERM) without the privilege.
        """
        outcome = check_remount(self.options, new)
        user_id, group_id = parameters.default_ids(self.options)
        # The kernel accepts and drops all of this; mount(8) passes the full string too.
        data = parameters.mount_data(self.options, self.device_fd, 0o40000, user_id, group_id)
        flags = parameters.mount_flags(new) | parameters.MS_REMOUNT
        try:
            syscalls.mount(self.row.source, self.mountpoint, self.row.fstype, flags, data)
        except OSError as e:
            hint = "fusermount3 can't remount; unmount and mount again" if e.errno == errno.EPERM else ""
            raise MountError(e.errno or errno.EIO, "remount", where=self.mountpoint, hint=hint) from e
        for name in outcome.changes:
            setattr(self.options, name, getattr(new, name))
        return outcome


def abort_connection(connection: int) -> None:
    """Abort by the control file. Its owner is the mount's user_id, so that user may do it without other privilege.

    fusectl is used wherever it is mounted, the usual place first; it is never mounted here. Raises MountError: ENOENT
    when it is mounted nowhere or the connection is gone, EACCES for other users.
    """
    places = [m.mountpoint for m in mountinfo.mounts() if m.fstype == b"fusectl"]
    if not places:
        raise MountError(
            errno.ENOENT,
            "abort",
            text="the control filesystem fusectl is not mounted",
            hint=f"mount it (mount -t fusectl none {CONNECTIONS}), or unmount with force",
        )
    usual = os.fsencode(CONNECTIONS)
    place = usual if usual in places else places[0]
    try:
        fd = os.open(os.path.join(place, b"%d" % connection, b"abort"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
    except OSError as e:
        hint = "the connection has ended" if e.errno == errno.ENOENT else ""
        raise MountError(e.errno or errno.EIO, f"abort connection {connection}", hint=hint) from e

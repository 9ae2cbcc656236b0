"""Ending a FUSE mount, dead or alive, by whoever may.

Nothing here asks the mounted filesystem anything: the mount is looked up in /proc/self/mountinfo, and umount2(2) does
not consult the server either. So it also clears what a killed server left behind (every access to it says ENOTCONN) and
what a hanging one blocks.
"""

from __future__ import annotations

import errno
import os

from . import fusermount, mountinfo, syscalls
from .errors import MountError
from .mountpoint import resolve

__all__ = ["umount"]


def umount(
    mountpoint: str | bytes | os.PathLike[str] | os.PathLike[bytes], lazy: bool = False, force: bool = False
) -> None:
    """Unmount the FUSE filesystem that shows at `mountpoint`.

    `lazy` takes it out of the tree at once and lets open files live on; `force` first aborts the connection: whoever
    waits for the server gets ECONNABORTED, and data not written back is lost. Without the privilege, fusermount3 does
    it for a mount's owner. Raises MountError: EINVAL when no FUSE mount is there, EBUSY when files are open, EPERM.
    """
    path = resolve(mountpoint)
    row = mountinfo.top_mount(mountinfo.mounts(), path)
    if row is None:
        raise MountError(errno.EINVAL, "umount", where=path, text="not a mount point")
    if not row.is_fuse:
        kind = row.fstype.decode("utf-8", "backslashreplace")
        raise MountError(
            errno.EINVAL, "umount", where=path, text=f"a {kind} mount, not FUSE", hint="umount(8) is for those"
        )
    flags = syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH * lazy | syscalls.MNT_FORCE * force
    try:
        syscalls.umount2(path, flags)
    except OSError as e:
        if e.errno != errno.EPERM:
            raise MountError(e.errno or errno.EIO, "umount2", where=path, hint=_hint(e.errno, path)) from e
    else:
        return
    if force:
        raise MountError(
            errno.EPERM,
            "umount2",
            where=path,
            text="only root can abort a mount by unmounting it",
            hint="unmount it without force, or abort it by the file `abort` of its connection in fusectl",
        )
    try:
        fusermount.umount_by_helper(path, lazy=lazy)
    except MountError as e:
        e.hint = _hint(e.errno, path) or e.hint
        raise


def _hint(code: int | None, path: bytes) -> str:
    name = os.fsdecode(path)
    if code == errno.EBUSY:
        return f"files are open in it (`fuser -vm {name}` shows by whom); add --lazy to let them finish"
    if code in {errno.EINVAL, errno.ENOENT}:
        return "it was unmounted in the meantime, or a mount above it hides it"
    return ""

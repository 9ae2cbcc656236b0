"""Checked options in the spellings of the three ways to mount: fsconfig/fsmount, mount(2), and fusermount3.

Translation only, from include/uapi/linux/mount.h and libfuse's util/fusermount.c. No string parameter goes into
mount(2)'s comma-separated data, which knows no escapes: the source is an argument of its own and the subtype is part of
the type.
"""

from __future__ import annotations

import errno
import os
import stat

from .errors import MountError
from .options import MountOptions

__all__ = ["default_ids", "fsconfig_parameters", "fusermount_options", "mount_attributes", "mount_data", "mount_flags"]

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000


def mount_flags(options: MountOptions) -> int:
    """The flags argument of mount(2)."""
    flags = (
        MS_RDONLY * options.read_only
        | MS_NOSUID * options.nosuid
        | MS_NODEV * options.nodev
        | MS_NOEXEC * options.noexec
        | MS_SYNCHRONOUS * options.sync
        | MS_DIRSYNC * options.dirsync
        | MS_NOSYMFOLLOW * options.nosymfollow
        | MS_NODIRATIME * options.nodiratime
        | MS_LAZYTIME * options.lazytime
    )
    return flags | {"relatime": 0, "noatime": MS_NOATIME, "strictatime": MS_STRICTATIME}[options.atime]


def mount_attributes(options: MountOptions) -> int:
    """The attribute argument of fsmount(2); what belongs to the superblock is in `fsconfig_parameters`."""
    attributes = (
        MOUNT_ATTR_RDONLY * options.read_only
        | MOUNT_ATTR_NOSUID * options.nosuid
        | MOUNT_ATTR_NODEV * options.nodev
        | MOUNT_ATTR_NOEXEC * options.noexec
        | MOUNT_ATTR_NOSYMFOLLOW * options.nosymfollow
        | MOUNT_ATTR_NODIRATIME * options.nodiratime
    )
    return (
        attributes
        | {"relatime": 0, "noatime": MOUNT_ATTR_NOATIME, "strictatime": MOUNT_ATTR_STRICTATIME}[options.atime]
    )


def _fuse_parameters(
    options: MountOptions, fd: int, rootmode: int, user_id: int, group_id: int
) -> list[tuple[str, str | None]]:
    parameters: list[tuple[str, str | None]] = [
        ("fd", str(fd)),
        ("rootmode", f"{rootmode:o}"),
        ("user_id", str(user_id)),
        ("group_id", str(group_id)),
    ]
    if options.default_permissions:
        parameters.append(("default_permissions", None))
    if options.allow_other or options.allow_root:
        parameters.append(("allow_other", None))
    if options.max_read is not None:
        parameters.append(("max_read", str(options.max_read)))
    return parameters


def fsconfig_parameters(
    options: MountOptions, fd: int, rootmode: int, user_id: int, group_id: int
) -> list[tuple[str, str | None]]:
    """What fsconfig(2) is to be given, in order; None marks a flag."""
    parameters: list[tuple[str, str | None]] = [("source", options.shown_source)]
    if options.subtype:
        parameters.append(("subtype", options.subtype))
    superblock = {
        "ro": options.read_only,
        "sync": options.sync,
        "dirsync": options.dirsync,
        "lazytime": options.lazytime,
    }
    parameters += [(name, None) for name, on in superblock.items() if on]
    return parameters + _fuse_parameters(options, fd, rootmode, user_id, group_id)


def mount_data(options: MountOptions, fd: int, rootmode: int, user_id: int, group_id: int) -> bytes:
    """The data argument of mount(2)."""
    parameters = _fuse_parameters(options, fd, rootmode, user_id, group_id)
    return ",".join(name if value is None else f"{name}={value}" for name, value in parameters).encode()


def fusermount_options(options: MountOptions, *, root: bool) -> str:
    """The -o argument of fusermount3.

    The helper chooses fd, rootmode, user_id and group_id itself, and has no word for strictatime, lazytime and
    nosymfollow: MountError (EOPNOTSUPP) when one of them was asked for. auto_unmount is done without it (watch.py). It
    leaves nosuid and nodev on for ordinary users whatever they say, so dev and suid are passed on only for `root`.
    """
    own = {"fd": options.fd, "user_id": options.user_id, "group_id": options.group_id}
    cannot = [name for name, value in own.items() if value is not None]
    cannot += ["strictatime"] if options.atime == "strictatime" else []
    cannot += ["lazytime"] if options.lazytime else []
    cannot += ["nosymfollow"] if options.nosymfollow else []
    if cannot:
        raise MountError(
            errno.EOPNOTSUPP,
            "fusermount3",
            text=f"it can't set {', '.join(cannot)}",
            hint="leave that out, or mount with the privilege to do without the helper (root, or unshare -Urm)",
        )
    if options.rootmode is not None and stat.S_IFMT(options.rootmode) not in {stat.S_IFDIR, stat.S_IFREG}:
        raise MountError(
            errno.EOPNOTSUPP, "fusermount3", text=f"it mounts directories and regular files, not {options.rootmode:o}"
        )
    words = [f"fsname={_escaped(options.shown_source)}"]
    words += [f"subtype={_escaped(options.subtype)}"] if options.subtype else []
    flags = {
        "ro": options.read_only,
        "suid": root and not options.nosuid,
        "dev": root and not options.nodev,
        "noexec": options.noexec,
        "sync": options.sync,
        "dirsync": options.dirsync,
        "noatime": options.atime == "noatime",
        "nodiratime": options.nodiratime,
        "default_permissions": options.default_permissions,
        "allow_other": options.allow_other or options.allow_root,
    }
    words += [name for name, on in flags.items() if on]
    words += [f"max_read={options.max_read}"] if options.max_read is not None else []
    return ",".join(words)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,")


def default_ids(options: MountOptions) -> tuple[int, int]:
    """user_id and group_id: as given, else the caller's real ones (like libfuse)."""
    return (
        os.getuid() if options.user_id is None else options.user_id,
        os.getgid() if options.group_id is None else options.group_id,
    )

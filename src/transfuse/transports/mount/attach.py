"""Making a kernel mount: from checked options to a `Mounted` that knows how to end itself.

Three ways, chosen by asking the kernel rather than by its version:

* "fsmount": fsopen, fsconfig, fsmount, move_mount (Linux 5.2; FUSE since 5.4). The kernel explains refusals in words.
* "mount": mount(2), where fsopen is missing or forbidden by a filter, or the source is longer than fsconfig takes.
* "fusermount3": the setuid helper, where this process has no CAP_SYS_ADMIN over its mount namespace.

With the first two this process opens /dev/fuse. If SYNC_INIT was requested on the descriptor (an ioctl, to be done in
`before_mount`), creating the superblock waits for the answer to INIT, so another thread must be serving by then.
Without it, and always with fusermount3, the mount is made first and INIT waits to be read.

Whoever owns a descriptor closes it; see `open_and_attach`. Paths are bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Literal

from . import fusermount, inherit, mountinfo, parameters, syscalls
from .errors import MountError
from .mounted import Mounted
from .mountpoint import MountPoint
from .options import MountOptions
from .watch import start_watcher

__all__ = ["Method", "attach", "choose_method", "open_and_attach", "open_device"]

Method = Literal["auto", "fsmount", "mount", "fusermount3"]
PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]
DEVICE = "/dev/fuse"


def choose_method(options: MountOptions) -> Literal["fsmount", "mount", "fusermount3"]:
    """How "auto" would mount. Asks the kernel, changes nothing. Raises MountError (ENODEV): the kernel has no FUSE."""
    long_source = len(os.fsencode(options.shown_source)) > syscalls.MAX_FSCONFIG_STRING
    try:
        syscalls.FsContext.open(b"fuse").close()
    except MountError as e:
        if e.errno == errno.ENODEV:
            e.hint = _NO_MODULE
            raise
        # ENOSYS: an older kernel, or a filter (old container runtimes). EPERM: a filter, or no privilege.
        return "mount" if syscalls.may_mount() else "fusermount3"
    return "mount" if long_source else "fsmount"


def open_device() -> int:
    """/dev/fuse, for reading and writing, close-on-exec. Raises MountError that says what to do."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        hints = {
            errno.ENOENT: "load the module (modprobe fuse); in a container, pass the device in (--device /dev/fuse)",
            errno.ENODEV: _NO_MODULE,
            errno.ENXIO: _NO_MODULE,
            errno.EACCES: "it is meant to be open to all: chmod 0666 /dev/fuse (a mount option nodev also forbids it)",
            errno.EPERM: "a device cgroup or container policy forbids it: allow the device 10:229",
        }
        code = e.errno or errno.EIO
        raise MountError(code, f"open {DEVICE}", hint=hints.get(code, "")) from e


_NO_MODULE = "the kernel has no FUSE: load the module (modprobe fuse) or use a kernel with CONFIG_FUSE_FS"


def open_and_attach(
    mountpoint: PathLike,
    options: MountOptions,
    method: Method = "auto",
    before_mount: Callable[[int], None] | None = None,
) -> Mounted:
    """Get a /dev/fuse descriptor and mount it on `mountpoint`; the result's `device_fd` is the caller's to close.

    `before_mount(fd)` is called at most once: right before the superblock is made with "fsmount" and "mount" (what the
    kernel refuses earlier never gets there), and right after the mount with "fusermount3" (whose descriptor arrives
    mounted: FUSE_DEV_IOC_SYNC_INIT then says EINVAL). Once it has returned, `fd` belongs to the caller whatever
    happens: when the mount then fails the caller ends its threads and closes it. In all other failures it is closed
    here. With `options.fd` that descriptor is used and never closed here.

    Raises MountError (see its fields) and MountOptionError.
    """
    chosen = choose_method(options) if method == "auto" else method
    with MountPoint(mountpoint, options) as point:
        if chosen == "fusermount3":
            return _by_helper(point, options, before_mount)
        owned = options.fd is None
        fd = _checked_device(options.fd) if options.fd is not None else open_device()

        def last_step() -> None:
            nonlocal owned
            if before_mount is not None:
                before_mount(fd)
                owned = False

        try:
            return _direct(fd, point, options, chosen, last_step)
        except BaseException:
            if owned:
                os.close(fd)
            raise


def attach(device_fd: int, mountpoint: PathLike, options: MountOptions, *, method: Method = "auto") -> Mounted:
    """Mount an open /dev/fuse descriptor on `mountpoint`; it stays the caller's.

    A descriptor whose connection is mounted and alive is mounted a second time, with the first mount's parameters (a
    dead one: ENOTCONN). Raises MountError; "fusermount3" is not possible, since that brings its own descriptor.
    """
    _checked_device(device_fd)
    chosen = choose_method(options) if method == "auto" else method
    if chosen == "fusermount3":
        raise MountError(
            errno.EPERM,
            "mount",
            text="fusermount3 brings its own descriptor and can't mount this one",
            hint="be root, use `unshare -Urm`, or let the device be opened for you",
        )
    with MountPoint(mountpoint, options) as point:
        return _direct(device_fd, point, options, chosen, lambda: None)


def _checked_device(fd: int) -> int:
    if inherit.from_fd(fd) != "dev_fuse":
        raise MountError(errno.EINVAL, f"use descriptor {fd}", text="a socket can't be mounted")
    return fd


def _direct(
    fd: int, point: MountPoint, options: MountOptions, method: str, last_step: Callable[[], None]
) -> Mounted:
    """Mount; `last_step` is called when nothing is left that could be refused but the superblock itself."""
    if options.fd is not None and options.fd != fd:
        raise MountError(errno.EINVAL, "mount", text=f"option fd={options.fd} contradicts descriptor {fd}")
    user_id, group_id = parameters.default_ids(options)
    try:
        if method == "fsmount":
            mount_id = _by_fsmount(fd, point, options, user_id, group_id, last_step)
        else:
            mount_id = _by_mount(fd, point, options, user_id, group_id, last_step)
    except MountError as e:
        e.where = e.where or point.path
        e.hint = e.hint or _hint(e)
        raise
    mounted = _known(point, fd, "fsmount" if method == "fsmount" else "mount", mount_id, options)
    return _watched(mounted)


def _watched(mounted: Mounted) -> Mounted:
    """With its auto_unmount process, if that was asked for; without one there is no mount."""
    if mounted.options.auto_unmount:
        try:
            user_id, group_id = parameters.default_ids(mounted.options)
            helper = None if syscalls.may_mount() else fusermount.find_fusermount()
            mounted.keeper = start_watcher(mounted.mountpoint, mounted.dev, user_id, group_id, helper)
        except OSError as e:
            mounted.umount(lazy=True)
            raise MountError(e.errno or errno.EIO, "start auto_unmount", where=mounted.mountpoint, text=str(e)) from e
    return mounted


def _by_fsmount(
    fd: int, point: MountPoint, options: MountOptions, user_id: int, group_id: int, last_step: Callable[[], None]
) -> int:
    if len(os.fsencode(options.shown_source)) > syscalls.MAX_FSCONFIG_STRING:
        raise MountError(
            errno.ENAMETOOLONG,
            "fsconfig source",
            text=f"it takes {syscalls.MAX_FSCONFIG_STRING} bytes",
            hint="give a shorter fsname, or mount by mount(2)",
        )
    with syscalls.FsContext.open(b"fuse") as context:
        for name, value in parameters.fsconfig_parameters(options, fd, point.rootmode, user_id, group_id):
            if value is None:
                context.set_flag(name)
            else:
                context.set_string(name, value)
        last_step()
        context.create()
        mount_fd = context.mount(parameters.mount_attributes(options))
    try:
        mount_id = mountinfo.mount_id_of_fd(mount_fd)
        syscalls.move_mount(mount_fd, point.fd)
        return mount_id
    finally:
        os.close(mount_fd)


def _by_mount(
    fd: int, point: MountPoint, options: MountOptions, user_id: int, group_id: int, last_step: Callable[[], None]
) -> int:
    data = parameters.mount_data(options, fd, point.rootmode, user_id, group_id)
    source, fstype = os.fsencode(options.shown_source), os.fsencode(options.fstype)
    last_step()
    try:
        syscalls.mount(source, point.path, fstype, parameters.mount_flags(options), data)
    except OSError as e:
        raise MountError(e.errno or errno.EIO, "mount") from e
    return _mount_id_at(point.path)


def _by_helper(point: MountPoint, options: MountOptions, before_mount: Callable[[int], None] | None) -> Mounted:
    root = os.getuid() == 0
    if not root and (options.allow_other or options.allow_root) and not fusermount.user_allow_other():
        raise MountError(
            errno.EPERM,
            "allow_other" if options.allow_other else "allow_root",
            where=point.path,
            text="not for ordinary users on this machine",
            hint=f"root must put the line user_allow_other into {fusermount.FUSE_CONF}",
        )
    words = parameters.fusermount_options(options, root=root)
    fd = fusermount.mount_by_helper(point.path, words)
    try:
        mounted = _watched(_known(point, fd, "fusermount3", _mount_id_at(point.path), options))
        if before_mount is not None:
            try:
                before_mount(fd)
            except BaseException:
                mounted.umount(lazy=True)
                raise
    except BaseException:
        os.close(fd)
        raise
    return mounted


def _mount_id_at(path: bytes) -> int:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)  # asks no server
    try:
        return mountinfo.mount_id_of_fd(fd)
    finally:
        os.close(fd)


def _known(
    point: MountPoint, fd: int, method: Literal["fsmount", "mount", "fusermount3"], mount_id: int, options: MountOptions
) -> Mounted:
    """The mount just made, found in the table by its id."""
    rows = [row for row in mountinfo.mounts() if row.mount_id == mount_id and row.is_fuse]
    if not rows:
        raise MountError(
            errno.ENOENT, "find the mount", where=point.path, text="it was unmounted at once, by somebody else"
        )
    return Mounted(rows[0].mountpoint, fd, method, rows[0], options)


def _hint(e: MountError) -> str:
    """What to do about a failed step of a direct mount."""
    parameter = e.step.removeprefix("fsconfig ")
    if e.errno in {errno.EPERM, errno.EACCES}:
        return "mounting needs CAP_SYS_ADMIN over the mount namespace: be root, use fusermount3 or `unshare -Urm`"
    if e.errno == errno.ENODEV:
        return _NO_MODULE
    if e.errno == errno.ENOTCONN:
        return "the server ended, or refused, before it had answered INIT"
    if e.errno == errno.EINVAL and parameter in {"user_id", "group_id"}:
        return "the id has no mapping in this user namespace (/proc/self/uid_map, gid_map)"
    if e.errno == errno.EINVAL and e.step in {"fsconfig fd", "fsconfig create", "mount"}:
        return "the device must be opened, and the ids be mapped (/proc/self/uid_map), in this user namespace"
    if e.errno == errno.EINVAL and e.step == "fsmount":
        return "nosymfollow needs Linux 5.10"
    if e.errno == errno.EBUSY:
        return "this connection is mounted there already"
    return ""

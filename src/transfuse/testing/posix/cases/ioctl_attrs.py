"""Inode flags (chattr), file handles, and ioctls nobody knows."""

from __future__ import annotations

import errno
import fcntl
import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager

from transfuse.testing.posix.calls import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    FS_NODUMP_FL,
    get_inode_flags,
    name_to_handle,
    open_handle,
    set_inode_flags,
)
from transfuse.testing.posix.env import (
    ALICE,
    Env,
    Skip,
    check,
    equal,
    get,
    needs,
    opened,
    put,
    put_owned,
    refused,
    try_open,
)
from transfuse.testing.posix.needs import Need


@contextmanager
def _flagged(name: str, flag: int) -> Iterator[None]:
    """Set a flag, and take it away again whatever happens: an immutable file can't be cleaned up."""
    with opened(name, os.O_RDONLY) as fd:
        before = get_inode_flags(fd)
        try:
            set_inode_flags(fd, before | flag)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
                raise Skip(f"flag {flag:#x} can't be set here ({error.strerror})") from None
            raise
        try:
            yield
        finally:
            set_inode_flags(fd, before)


@needs(Need.INODE_FLAGS)
def case_flags_roundtrip(env: Env) -> None:
    """FS_NODUMP_FL is set, seen through another descriptor, and cleared, on files and directories."""
    put("f")
    os.mkdir("d")
    for name in ("f", "d"):
        with _flagged(name, FS_NODUMP_FL), opened(name, os.O_RDONLY) as fd:
            check(bool(get_inode_flags(fd) & FS_NODUMP_FL), "the flag is not seen")
        with opened(name, os.O_RDONLY) as fd:
            check(not get_inode_flags(fd) & FS_NODUMP_FL, "the flag is still there")


@needs(Need.INODE_FLAGS, Need.ROOT)
def case_immutable(env: Env) -> None:
    """Nothing can be changed, by nobody: EPERM."""
    put("f", b"x")
    with _flagged("f", FS_IMMUTABLE_FL):
        for call in (
            lambda: try_open("f", os.O_WRONLY),
            lambda: os.unlink("f"),
            lambda: os.rename("f", "g"),
            lambda: os.link("f", "g"),
            lambda: os.chmod("f", 0o600),
            lambda: os.truncate("f", 0),
            lambda: os.utime("f", (1, 1)),
        ):
            refused(errno.EPERM, call)
        equal(get("f"), b"x", "content")
    os.unlink("f")


@needs(Need.INODE_FLAGS, Need.ROOT)
def case_append_only(env: Env) -> None:
    """Only O_APPEND writes; no truncation, no unlink."""
    put("f", b"x")
    with _flagged("f", FS_APPEND_FL):
        for flags in (os.O_WRONLY, os.O_WRONLY | os.O_APPEND | os.O_TRUNC):
            refused(errno.EPERM, try_open, "f", flags)
        refused(errno.EPERM, os.unlink, "f")
        with opened("f", os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"y")
    equal(get("f"), b"xy", "content")


@needs(Need.INODE_FLAGS, Need.ROOT)
def case_immutable_directory(env: Env) -> None:
    """No names come or go, but files in it can be written."""
    os.mkdir("d")
    put("d/f")
    with _flagged("d", FS_IMMUTABLE_FL):
        refused((errno.EPERM, errno.EACCES), put, "d/g")
        refused((errno.EPERM, errno.EACCES), os.unlink, "d/f")
        put("d/f", b"written")
    equal(get("d/f"), b"written", "content")


@needs(Need.INODE_FLAGS, Need.USERS)
def case_flags_by_users(env: Env) -> None:
    """The owner sets harmless flags, not the immutable one; others none."""
    put_owned("f", ALICE, 0o666)

    def set_flag(flag: int) -> None:
        with opened("f", os.O_RDONLY) as fd:
            set_inode_flags(fd, get_inode_flags(fd) | flag)

    with _flagged("f", FS_NODUMP_FL):
        pass
    env.as_user(*ALICE)(set_flag, FS_NODUMP_FL)
    env.as_user(*ALICE).refused((errno.EPERM, errno.EOPNOTSUPP), set_flag, FS_IMMUTABLE_FL)
    env.as_user(54322, 54332).refused((errno.EPERM, errno.EACCES), set_flag, FS_NODUMP_FL)


@needs(Need.INODE_FLAGS)
def case_setting_flags_moves_ctime(env: Env) -> None:
    """A change of the inode."""
    put("f")

    def change() -> None:
        with _flagged("f", FS_NODUMP_FL):
            pass

    equal(env.changed(change, "f"), ["c"], "times")


def case_unknown_ioctl_is_enotty(env: Env) -> None:
    """A number nobody knows, and one for terminals, on files and directories."""
    put("f")
    for name in ("f", "."):
        with opened(name, os.O_RDONLY) as fd:
            refused((errno.ENOTTY, errno.ENOSYS), fcntl.ioctl, fd, 0x40045A5A, bytes(4))
            refused(errno.ENOTTY, fcntl.ioctl, fd, termios.TCGETS, bytes(64))
            equal(os.isatty(fd), False, "isatty")


def case_fionread_on_a_file(env: Env) -> None:
    """FIONREAD gives the bytes left, or ENOTTY where the filesystem doesn't have it."""
    put("f", b"0123456789")
    with opened("f", os.O_RDONLY) as fd:
        os.read(fd, 3)
        try:
            left = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")
        except OSError as error:
            equal(error.errno, errno.ENOTTY, "errno")
        else:
            equal(left, 7, "bytes left")


@needs(Need.HANDLES, Need.ROOT)
def case_handle_opens_the_file_after_rename(env: Env) -> None:
    """A handle survives a rename of the file and of its directory."""
    os.mkdir("d")
    put("d/f", b"data")
    handle = name_to_handle("d/f")
    os.rename("d/f", "d/g")
    os.rename("d", "e")
    with opened(".", os.O_RDONLY) as mount:
        fd = open_handle(mount, handle, os.O_RDONLY)
        equal(os.read(fd, 10), b"data", "content")
        os.close(fd)


@needs(Need.HANDLES, Need.ROOT)
def case_handle_of_removed_file_is_estale(env: Env) -> None:
    """Also when a new file has taken the name."""
    put("f", b"old")
    handle = name_to_handle("f")
    os.unlink("f")
    put("f", b"new")
    with opened(".", os.O_RDONLY) as mount:
        refused(errno.ESTALE, open_handle, mount, handle, os.O_RDONLY)


@needs(Need.HANDLES)
def case_handles_are_distinct_and_steady(env: Env) -> None:
    """Two files have two handles; the same file always the same."""
    put("f")
    put("g")
    first = name_to_handle("f")
    check(first != name_to_handle("g"), "two files with one handle")
    os.rename("f", "h")
    equal(name_to_handle("h"), first, "handle after a rename")

"""open(2) of what exists: flags, types, permissions."""

from __future__ import annotations

import errno
import fcntl
import os

from transfuse.testing.posix.env import (
    ALICE,
    Env,
    check,
    equal,
    get,
    make_directory,
    needs,
    opened,
    put,
    put_owned,
    read_all,
    refused,
    try_open,
)
from transfuse.testing.posix.needs import Need


def case_directory_for_writing_is_eisdir(env: Env) -> None:
    """A directory can't be opened for writing, with whatever flag means writing."""
    os.mkdir("d")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        refused(errno.EISDIR, try_open, "d", flags)


def case_directory_with_creat_is_eisdir(env: Env) -> None:
    """O_CREAT on a directory is EISDIR even for reading."""
    os.mkdir("d")
    refused(errno.EISDIR, try_open, "d", os.O_CREAT)


def case_o_directory_of_file_is_enotdir(env: Env) -> None:
    """O_DIRECTORY on a file is ENOTDIR."""
    put("f")
    refused(errno.ENOTDIR, try_open, "f", os.O_DIRECTORY)


def case_o_directory_of_directory_works(env: Env) -> None:
    """O_DIRECTORY on a directory gives a descriptor for *at calls."""
    os.mkdir("d")
    with opened("d", os.O_DIRECTORY) as fd:
        os.mkdir("below", dir_fd=fd)
    check(os.path.isdir("d/below"), "the directory made through the descriptor is not there")


def case_o_nofollow_of_link_is_eloop(env: Env) -> None:
    """O_NOFOLLOW on a symbolic link is ELOOP."""
    put("f")
    os.symlink("f", "l")
    refused(errno.ELOOP, try_open, "l", os.O_NOFOLLOW)


def case_o_nofollow_applies_to_last_component_only(env: Env) -> None:
    """A link in the middle is still followed."""
    os.mkdir("d")
    put("d/f")
    os.symlink("d", "l")
    try_open("l/f", os.O_NOFOLLOW)


def case_o_nofollow_with_o_directory_of_link(env: Env) -> None:
    """O_DIRECTORY | O_NOFOLLOW on a link to a directory is ENOTDIR (Linux), never a success."""
    os.mkdir("d")
    os.symlink("d", "l")
    refused((errno.ENOTDIR, errno.ELOOP), try_open, "l", os.O_DIRECTORY | os.O_NOFOLLOW)


def case_o_path_of_link(env: Env) -> None:
    """O_PATH | O_NOFOLLOW opens the link itself; readlink through the descriptor works."""
    os.symlink("somewhere", "l")
    with opened("l", os.O_PATH | os.O_NOFOLLOW) as fd:
        equal(os.readlink("", dir_fd=fd), "somewhere", "target")


def case_o_path_forbids_read_and_write(env: Env) -> None:
    """A descriptor of O_PATH is EBADF for data."""
    put("f", b"x")
    with opened("f", os.O_PATH) as fd:
        refused(errno.EBADF, os.read, fd, 1)
        refused(errno.EBADF, os.write, fd, b"x")
        equal(os.fstat(fd).st_size, 1, "size by fstat")


@needs(Need.USERS)
def case_o_path_needs_no_read_permission(env: Env) -> None:
    """O_PATH works on a file one may not read."""
    put_owned("f", (0, 0), 0o000)
    env.as_user(*ALICE)(try_open, "f", os.O_PATH)
    env.as_user(*ALICE).refused(errno.EACCES, try_open, "f", os.O_RDONLY)


def case_o_trunc_empties(env: Env) -> None:
    """O_TRUNC sets the size to 0."""
    put("f", b"12345")
    try_open("f", os.O_WRONLY | os.O_TRUNC)
    equal(os.stat("f").st_size, 0, "size")
    equal(get("f"), b"", "content")


def case_o_trunc_updates_times(env: Env) -> None:
    """O_TRUNC of a file with data moves mtime and ctime."""
    put("f", b"12345")
    equal(env.changed(lambda: try_open("f", os.O_WRONLY | os.O_TRUNC), "f"), ["mc"], "times")


def case_o_trunc_with_o_rdonly_truncates(env: Env) -> None:
    """Linux: O_RDONLY | O_TRUNC of a writable file empties it and moves its times, empty before or not."""
    put("f", b"12345")
    put("empty")
    for name in ("f", "empty"):
        moved = env.changed(lambda name=name: try_open(name, os.O_RDONLY | os.O_TRUNC), name)  # type: ignore[misc]
        equal((moved, os.stat(name).st_size), (["mc"], 0), f"times and size of {name}")


def case_o_trunc_of_an_empty_file_updates_times(env: Env) -> None:
    """O_TRUNC moves mtime and ctime even if there was nothing to cut (POSIX open)."""
    put("f")
    equal(env.changed(lambda: try_open("f", os.O_WRONLY | os.O_TRUNC), "f"), ["mc"], "times")


def case_o_trunc_with_another_descriptor_open(env: Env) -> None:
    """The other descriptor sees the end of the file at once and keeps its position."""
    put("f", b"12345")
    with opened("f", os.O_RDWR) as fd:
        equal(os.read(fd, 2), b"12", "first read")
        try_open("f", os.O_WRONLY | os.O_TRUNC)
        equal(os.read(fd, 10), b"", "read after truncation")
        os.write(fd, b"X")
    equal(get("f"), b"\0\0X", "content")


def case_plain_open_leaves_times(env: Env) -> None:
    """Opening changes no time."""
    put("f", b"x")
    equal(env.changed(lambda: try_open("f", os.O_RDWR), "f", atime=True), [""], "times")


def case_read_only_descriptor_refuses_write(env: Env) -> None:
    """write on O_RDONLY is EBADF, ftruncate EINVAL or EBADF."""
    put("f", b"x")
    with opened("f", os.O_RDONLY) as fd:
        refused(errno.EBADF, os.write, fd, b"y")
        refused((errno.EINVAL, errno.EBADF), os.ftruncate, fd, 0)


def case_write_only_descriptor_refuses_read(env: Env) -> None:
    """read on O_WRONLY is EBADF."""
    put("f", b"x")
    with opened("f", os.O_WRONLY) as fd:
        refused(errno.EBADF, os.read, fd, 1)
        refused(errno.EBADF, os.pread, fd, 1, 0)


def case_read_of_directory_is_eisdir(env: Env) -> None:
    """read(2) on a directory is EISDIR."""
    with opened(".", os.O_RDONLY) as fd:
        refused(errno.EISDIR, os.read, fd, 1)


def case_many_opens_of_one_file(env: Env) -> None:
    """200 descriptors of one file have each their own position."""
    put("f", bytes(range(200)))
    fds = [os.open("f", os.O_RDONLY) for _ in range(200)]
    try:
        for index, fd in enumerate(fds):
            os.lseek(fd, index, os.SEEK_SET)
        equal(b"".join(os.read(fd, 1) for fd in fds), bytes(range(200)), "a byte from each")
    finally:
        for fd in fds:
            os.close(fd)


def case_getfl_reports_flags(env: Env) -> None:
    """F_GETFL gives back the access mode and O_APPEND."""
    put("f")
    with opened("f", os.O_RDWR | os.O_APPEND) as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        equal((flags & os.O_ACCMODE, bool(flags & os.O_APPEND)), (os.O_RDWR, True), "flags")


@needs(Need.USERS)
def case_permission_by_access_mode(env: Env) -> None:
    """Every pair of mode bits and access mode, for the owner: allowed exactly if all asked bits are there."""
    for bits in range(8):
        put_owned(f"f{bits}", ALICE, bits << 6)
    alice = env.as_user(*ALICE)

    def allowed() -> list[str]:
        result = []
        for bits in range(8):
            text = ""
            for letter, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY), ("b", os.O_RDWR)):
                try:
                    try_open(f"f{bits}", flags)
                    text += letter
                except PermissionError:
                    continue
            result.append(text)
        return result

    equal(alice(allowed), ["", "", "w", "w", "r", "r", "rwb", "rwb"], "allowed modes for owner bits 0..7")


@needs(Need.USERS)
def case_o_trunc_needs_write_permission(env: Env) -> None:
    """O_RDONLY | O_TRUNC on a read-only file is EACCES, and the content stays."""
    put_owned("f", (0, 0), 0o644, b"data")
    env.as_user(*ALICE).refused(errno.EACCES, try_open, "f", os.O_RDONLY | os.O_TRUNC)
    equal(get("f"), b"data", "content")


@needs(Need.USERS)
def case_o_noatime_is_for_the_owner(env: Env) -> None:
    """O_NOATIME by somebody else is EPERM; the owner may."""
    put_owned("f", ALICE, 0o644)
    env.as_user(*ALICE)(try_open, "f", os.O_NOATIME)
    env.as_user(54322, 54332).refused(errno.EPERM, try_open, "f", os.O_NOATIME)


@needs(Need.USERS)
def case_open_keeps_its_right_after_chmod(env: Env) -> None:
    """A descriptor goes on working when the mode takes the right away."""
    put_owned("f", ALICE, 0o600, b"data")

    def read_after_chmod() -> bytes:
        with opened("f", os.O_RDONLY) as fd:
            os.chmod("f", 0o000)
            return read_all(fd)

    equal(env.as_user(*ALICE)(read_after_chmod), b"data", "content")


@needs(Need.DIRECT)
def case_o_direct_roundtrip(env: Env) -> None:
    """What is written with O_DIRECT is read by a buffered descriptor, and the other way round."""
    import mmap

    size = 65536
    with mmap.mmap(-1, size) as buffer:
        buffer.write(bytes(range(256)) * (size // 256))
        with opened("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as direct, opened("f", os.O_RDWR) as buffered:
            equal(os.pwritev(direct, [buffer], 0), size, "written")
            equal(os.pread(buffered, size, 0), buffer[:], "buffered read")
            os.pwrite(buffered, b"Z" * 10, 100)
            equal(os.preadv(direct, [buffer], 0), size, "read")
            equal(buffer[98:112], bytes([98, 99]) + b"Z" * 10 + bytes([110, 111]), "direct read")


def case_o_sync_writes(env: Env) -> None:
    """O_SYNC and O_DSYNC write like the others."""
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flag) as fd:
            os.write(fd, b"durable")
        equal(get("f"), b"durable", "content")


def case_file_and_directory_can_be_synced(env: Env) -> None:
    """fsync and fdatasync work on a file, a read-only descriptor and a directory."""
    put("f", b"x")
    make_directory("d")
    for name in ("f", "d"):
        with opened(name, os.O_RDONLY) as fd:
            os.fsync(fd)
            os.fdatasync(fd)

"""copy_file_range(2)."""

from __future__ import annotations

import errno
import os

from transfuse.testing.posix.calls import copy_file_range
from transfuse.testing.posix.env import Env, check, equal, get, needs, opened, put, refused
from transfuse.testing.posix.needs import Need

_NEW = os.O_RDWR | os.O_CREAT


@needs(Need.COPY_FILE_RANGE)
def case_whole_file(env: Env) -> None:
    """In as many steps as it takes; 0 at the end."""
    data = os.urandom(300_000)
    put("f", data)
    with opened("f", os.O_RDONLY) as source, opened("g", _NEW) as target:
        copied = 0
        while step := copy_file_range(source, None, target, None, 1 << 20):
            copied += step
        equal(copied, 300_000, "bytes copied")
        equal((os.lseek(source, 0, os.SEEK_CUR), os.lseek(target, 0, os.SEEK_CUR)), (300_000, 300_000), "positions")
    equal(get("g") == data, True, "content is the same")


@needs(Need.COPY_FILE_RANGE)
def case_given_offsets_leave_positions(env: Env) -> None:
    """Into the middle of an existing file, which keeps the rest."""
    put("f", b"0123456789")
    put("g", b"abcdefghij")
    with opened("f", os.O_RDONLY) as source, opened("g", os.O_RDWR) as target:
        equal(copy_file_range(source, 2, target, 5, 3), 3, "bytes copied")
        equal((os.lseek(source, 0, os.SEEK_CUR), os.lseek(target, 0, os.SEEK_CUR)), (0, 0), "positions")
    equal(get("g"), b"abcde234ij", "content")


@needs(Need.COPY_FILE_RANGE)
def case_is_cut_at_the_end_of_the_source(env: Env) -> None:
    """Short at the end, 0 behind it."""
    put("f", b"0123456789")
    with opened("f", os.O_RDONLY) as source, opened("g", _NEW) as target:
        equal(copy_file_range(source, 8, target, 0, 100), 2, "bytes copied at the end")
        equal(copy_file_range(source, 10, target, 2, 100), 0, "bytes copied behind it")
    equal(get("g"), b"89", "content")


@needs(Need.COPY_FILE_RANGE)
def case_behind_the_end_of_the_target_leaves_a_gap(env: Env) -> None:
    """Zeros between."""
    put("f", b"data")
    with opened("f", os.O_RDONLY) as source, opened("g", _NEW) as target:
        copy_file_range(source, 0, target, 10_000, 4)
    equal(get("g"), bytes(10_000) + b"data", "content")


@needs(Need.COPY_FILE_RANGE)
def case_within_a_file(env: Env) -> None:
    """Two ranges of one file that don't overlap."""
    put("f", b"0123456789")
    with opened("f", os.O_RDWR) as fd:
        equal(copy_file_range(fd, 0, fd, 5, 5), 5, "bytes copied")
    equal(get("f"), b"0123401234", "content")


@needs(Need.COPY_FILE_RANGE)
def case_overlapping_is_einval(env: Env) -> None:
    """Also through two descriptors."""
    put("f", b"0123456789" * 1000)
    with opened("f", os.O_RDWR) as fd, opened("f", os.O_RDWR) as second:
        refused(errno.EINVAL, copy_file_range, fd, 0, fd, 5, 10)
        refused(errno.EINVAL, copy_file_range, fd, 0, second, 5, 10)
    equal(get("f"), b"0123456789" * 1000, "content")


@needs(Need.COPY_FILE_RANGE)
def case_bad_descriptors(env: Env) -> None:
    """Write-only source, read-only target, appending target: EBADF; directories: EISDIR; unknown flags: EINVAL."""
    put("f", b"x" * 10)
    put("g")
    os.mkdir("d")
    with opened("f", os.O_WRONLY) as source, opened("g", os.O_WRONLY) as target:
        refused(errno.EBADF, copy_file_range, source, 0, target, 0, 5)
    with opened("f", os.O_RDONLY) as source, opened("g", os.O_RDONLY) as target:
        refused(errno.EBADF, copy_file_range, source, 0, target, 0, 5)
    with opened("f", os.O_RDONLY) as source, opened("g", os.O_WRONLY | os.O_APPEND) as target:
        refused(errno.EBADF, copy_file_range, source, 0, target, 0, 5)
    with opened("d", os.O_RDONLY) as source, opened("g", os.O_WRONLY) as target:
        refused(errno.EISDIR, copy_file_range, source, 0, target, 0, 5)
        refused(errno.EINVAL, copy_file_range, target, 0, target, 0, 5, 1 << 8)


@needs(Need.COPY_FILE_RANGE)
def case_moves_times_of_the_target(env: Env) -> None:
    """mtime and ctime of the target, neither of the source."""
    put("f", b"data")
    put("g", b"old!")

    def copy() -> None:
        with opened("f", os.O_RDONLY) as source, opened("g", os.O_RDWR) as target:
            copy_file_range(source, 0, target, 0, 4)

    equal(env.changed(copy, "f", "g"), ["", "mc"], "times")


@needs(Need.COPY_FILE_RANGE)
def case_sees_what_was_written_a_moment_ago(env: Env) -> None:
    """No sync between a write, the copy and a read."""
    with opened("f", _NEW) as source, opened("g", _NEW) as target:
        for index in range(50):
            data = b"%d" % index * 5000
            os.pwrite(source, data, 0)
            os.ftruncate(source, len(data))
            os.pread(target, 100_000, 0)
            copied = 0
            while copied < len(data):
                copied += copy_file_range(source, copied, target, copied, len(data) - copied)
            equal(os.pread(target, len(data), 0) == data, True, f"content at step {index} is right")


@needs(Need.COPY_FILE_RANGE)
def case_from_another_filesystem(env: Env) -> None:
    """From /proc: either an errno for it or the right bytes, never wrong ones."""
    with opened("/proc/version", os.O_RDONLY) as source, opened("g", _NEW) as target:
        try:
            copied = copy_file_range(source, 0, target, 0, 10)
        except OSError as error:
            check(error.errno in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP), f"errno {error.errno}")
            copied = 0
    equal(get("g"), get("/proc/version")[:copied], "content")


def case_of_shutil(env: Env) -> None:
    """shutil.copy2 keeps content, mode and mtime."""
    import shutil

    put("f", b"data" * 10_000, 0o640)
    os.utime("f", ns=(10**18, 10**18))
    shutil.copy2("f", "g")
    found = os.stat("g")
    equal((get("g") == get("f"), found.st_mode & 0o777, found.st_mtime_ns), (True, 0o640, 10**18), "copy")

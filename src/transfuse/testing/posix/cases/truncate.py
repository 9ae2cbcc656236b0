"""truncate(2), ftruncate(2)."""

from __future__ import annotations

import errno
import os
import resource
import signal

from transfuse.testing.posix.env import ALICE, Env, check, equal, get, needs, opened, put, put_owned, refused, try_open
from transfuse.testing.posix.needs import Need


def case_shorter(env: Env) -> None:
    """The rest is gone."""
    put("f", b"0123456789")
    os.truncate("f", 4)
    equal((get("f"), os.stat("f").st_size), (b"0123", 4), "content and size")


def case_longer_gives_zeros(env: Env) -> None:
    """What is new reads as zeros."""
    put("f", b"abc")
    os.truncate("f", 10_000)
    equal(get("f"), b"abc" + bytes(9997), "content")


def case_shorter_then_longer_forgets(env: Env) -> None:
    """Bytes cut off don't come back, whatever part of a page they filled."""
    for cut in (1, 100, 4095, 4096, 4097, 8191):
        put("f", b"\xff" * 10_000)
        os.truncate("f", cut)
        os.truncate("f", 10_000)
        equal(get("f"), b"\xff" * cut + bytes(10_000 - cut), f"content after a cut at {cut}")


def case_by_descriptor(env: Env) -> None:
    """ftruncate leaves the position."""
    put("f", b"0123456789")
    with opened("f", os.O_RDWR) as fd:
        os.lseek(fd, 8, os.SEEK_SET)
        os.ftruncate(fd, 5)
        equal(os.lseek(fd, 0, os.SEEK_CUR), 8, "position")
        equal(os.read(fd, 10), b"", "read behind the end")
        os.write(fd, b"X")
    equal(get("f"), b"01234\0\0\0X", "content")


def case_is_seen_by_other_descriptors(env: Env) -> None:
    """A descriptor that has read the data sees the new end at once."""
    put("f", b"x" * 10_000)
    with opened("f", os.O_RDONLY) as fd:
        equal(len(os.pread(fd, 20_000, 0)), 10_000, "bytes before")
        os.truncate("f", 10)
        equal((os.pread(fd, 20_000, 0), os.fstat(fd).st_size), (b"x" * 10, 10), "content and size after")


def case_changes_mtime_and_ctime(env: Env) -> None:
    """A change of size moves both."""
    put("f", b"12345")
    equal(env.changed(lambda: os.truncate("f", 2), "f"), ["mc"], "times when shorter")
    equal(env.changed(lambda: os.truncate("f", 7), "f"), ["mc"], "times when longer")


def case_to_the_same_size_changes_times(env: Env) -> None:
    """ftruncate to the size it has moves the times (POSIX); truncate(2) may or may not."""
    put("f", b"12345")
    with opened("f", os.O_WRONLY) as fd:
        equal(env.changed(lambda: os.ftruncate(fd, 5), "f"), ["mc"], "times")
    equal(get("f"), b"12345", "content")


def case_negative_is_einval(env: Env) -> None:
    """No negative sizes."""
    put("f")
    refused(errno.EINVAL, os.truncate, "f", -1)


def case_directory_is_eisdir(env: Env) -> None:
    """A directory has no size to set."""
    os.mkdir("d")
    refused(errno.EISDIR, os.truncate, "d", 0)


def case_fifo_is_einval(env: Env) -> None:
    """Nor a fifo."""
    os.mkfifo("p")
    refused(errno.EINVAL, os.truncate, "p", 0)


def case_follows_links(env: Env) -> None:
    """truncate of a link cuts the target."""
    put("f", b"12345")
    os.symlink("f", "l")
    os.truncate("l", 1)
    equal(get("f"), b"1", "content")


@needs(Need.USERS)
def case_needs_write_permission(env: Env) -> None:
    """EACCES without w; an owner's write-only file can be cut."""
    put_owned("f", (0, 0), 0o644, b"x")
    put_owned("g", ALICE, 0o200, b"x")
    env.as_user(*ALICE).refused(errno.EACCES, os.truncate, "f", 0)
    env.as_user(*ALICE)(os.truncate, "g", 0)


@needs(Need.USERS)
def case_descriptor_keeps_its_right(env: Env) -> None:
    """ftruncate on a descriptor opened for writing works after the mode is gone."""
    put_owned("f", ALICE, 0o600, b"12345")

    def cut() -> None:
        with opened("f", os.O_RDWR) as fd:
            os.fchmod(fd, 0o400)
            os.ftruncate(fd, 2)
            refused(errno.EACCES, try_open, "f", os.O_WRONLY)

    env.as_user(*ALICE)(cut)
    equal(os.stat("f").st_size, 2, "size")


@needs(Need.LARGE_FILES)
def case_beyond_4_gib(env: Env) -> None:
    """A size of more than 32 bits is kept, and data at its end read back."""
    size = (1 << 32) + 5
    put("f")
    os.truncate("f", size)
    equal(os.stat("f").st_size, size, "size")
    with opened("f", os.O_RDWR) as fd:
        os.pwrite(fd, b"end", size)
        equal(os.pread(fd, 10, size - 2), b"\0\0end", "bytes at the end")
        equal(os.pread(fd, 5, 0), bytes(5), "bytes at the start")


def case_beyond_any_limit_is_efbig(env: Env) -> None:
    """The largest offset is too much for every filesystem, or allowed: then it must be the size."""
    put("f", b"x")
    limit = (1 << 63) - 1
    try:
        os.truncate("f", limit)
    except OSError as error:
        check(error.errno in (errno.EFBIG, errno.EINVAL, errno.ENOSPC), f"errno {error.errno}")
        equal(os.stat("f").st_size, 1, "size after the refusal")
    else:
        equal(os.stat("f").st_size, limit, "size")


def case_over_resource_limit_is_efbig(env: Env) -> None:
    """RLIMIT_FSIZE: EFBIG, with SIGXFSZ ignored; a write up to the limit is short."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    put("f")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    refused(errno.EFBIG, os.truncate, "f", 1001)
    with opened("f", os.O_WRONLY) as fd:
        equal(os.pwrite(fd, b"x" * 100, 950), 50, "bytes written up to the limit")
        refused(errno.EFBIG, os.pwrite, fd, b"x", 1000)
    equal(os.stat("f").st_size, 1000, "size")


def case_many_sizes(env: Env) -> None:
    """300 sizes up and down, checked by a second name of the file."""
    put("f", b"\x11" * 70_000)
    size, known = 70_000, 70_000
    for step in range(300):
        size = (size * 7 + 13 + step) % 70_001
        os.truncate("f", size)
        known = min(known, size)
        equal(os.stat("f").st_size, size, "size")
    os.truncate("f", 70_000)
    content = get("f")
    equal(content, b"\x11" * known + bytes(70_000 - known), "content")

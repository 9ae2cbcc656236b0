"""fallocate(2), posix_fallocate(3), SEEK_DATA and SEEK_HOLE, sparse files."""

from __future__ import annotations

import errno
import os

from transfuse.testing.posix.calls import (
    FALLOC_COLLAPSE_RANGE,
    FALLOC_INSERT_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    fallocate,
)
from transfuse.testing.posix.env import Env, check, equal, eventually, get, needs, opened, put, refused
from transfuse.testing.posix.needs import Need

_NEW = os.O_RDWR | os.O_CREAT
_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


@needs(Need.FALLOCATE)
def case_extends_with_zeros(env: Env) -> None:
    """Mode 0 makes the file longer, keeps what is there, and allocates."""
    put("f", b"abc")
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 100_000)
        found = os.fstat(fd)
    equal((found.st_size, get("f")), (100_000, b"abc" + bytes(99_997)), "size and content")
    check(found.st_blocks * 512 >= 100_000, f"{found.st_blocks} blocks")


@needs(Need.FALLOCATE)
def case_inside_keeps_size_and_content(env: Env) -> None:
    """A range within the file changes nothing to see."""
    put("f", b"x" * 10_000)
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, 0, 100, 1000)
    equal(get("f"), b"x" * 10_000, "content")


@needs(Need.FALLOCATE)
def case_keep_size(env: Env) -> None:
    """KEEP_SIZE allocates behind the end; truncating up shows zeros."""
    put("f", b"abc")
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_KEEP_SIZE, 0, 65_536)
        found = os.fstat(fd)
        equal(found.st_size, 3, "size")
        check(found.st_blocks * 512 >= 65_536, f"{found.st_blocks} blocks")
        os.ftruncate(fd, 100)
    equal(get("f"), b"abc" + bytes(97), "content")


@needs(Need.FALLOCATE)
def case_bad_ranges(env: Env) -> None:
    """A length of 0 or less and a negative offset are EINVAL; too far is EFBIG."""
    with opened("f", _NEW) as fd:
        for offset, length in ((0, 0), (0, -1), (-1, 10)):
            refused(errno.EINVAL, fallocate, fd, 0, offset, length)
        refused((errno.EFBIG, errno.ENOSPC), fallocate, fd, 0, (1 << 63) - 10, 100)
        equal(os.fstat(fd).st_size, 0, "size")


@needs(Need.FALLOCATE)
def case_needs_a_writable_regular_file(env: Env) -> None:
    """EBADF on a read-only descriptor, ESPIPE on a fifo, and a directory is refused."""
    put("f")
    os.mkdir("d")
    os.mkfifo("p")
    with opened("f", os.O_RDONLY) as fd:
        refused(errno.EBADF, fallocate, fd, 0, 0, 10)
    with opened("d", os.O_RDONLY) as fd:
        refused((errno.EBADF, errno.EISDIR, errno.ENODEV), fallocate, fd, 0, 0, 10)
    with opened("p", os.O_RDWR) as fd:
        refused((errno.ESPIPE, errno.ENODEV), fallocate, fd, 0, 0, 10)


def case_posix_fallocate(env: Env) -> None:
    """os.posix_fallocate extends everywhere, by emulation if need be."""
    with opened("f", _NEW) as fd:
        os.posix_fallocate(fd, 0, 20_000)
    equal((os.stat("f").st_size, get("f")), (20_000, bytes(20_000)), "size and content")


@needs(Need.FALLOCATE)
def case_changes_times(env: Env) -> None:
    """An extension moves mtime and ctime (ctime at least)."""
    put("f", b"x")

    def extend() -> None:
        with opened("f", os.O_RDWR) as fd:
            fallocate(fd, 0, 0, 100_000)

    check(env.changed(extend, "f")[0] in ("mc", "c"), "neither time moved")


@needs(Need.PUNCH_HOLE)
def case_punch_hole(env: Env) -> None:
    """The range reads as zeros, size and the rest stay, unaligned edges included."""
    for offset, length in ((4096, 8192), (100, 50), (4000, 200), (1, 30_000), (39_990, 100)):
        put("f", b"\xff" * 40_000)
        with opened("f", os.O_RDWR) as fd:
            fallocate(fd, _PUNCH, offset, length)
        end = min(offset + length, 40_000)
        wanted = b"\xff" * offset + bytes(end - offset) + b"\xff" * (40_000 - end)
        equal(get("f") == wanted, True, f"content after a hole of {length} at {offset} is right")


@needs(Need.PUNCH_HOLE, Need.SPARSE)
def case_punch_hole_frees_blocks(env: Env) -> None:
    """Blocks are given back."""
    with opened("f", _NEW) as fd:
        os.write(fd, b"x" * (1 << 20))
        os.fsync(fd)
        eventually(lambda: os.fstat(fd).st_blocks * 512 >= 1 << 20, "too few blocks for 1 MiB")
        before = os.fstat(fd).st_blocks
        fallocate(fd, _PUNCH, 0, 1 << 19)
        os.fsync(fd)
        eventually(lambda: os.fstat(fd).st_blocks < before, "no block was freed")
        equal(os.fstat(fd).st_size, 1 << 20, "size")


@needs(Need.PUNCH_HOLE)
def case_punch_hole_without_keep_size_is_refused(env: Env) -> None:
    """EOPNOTSUPP says the kernel."""
    put("f", b"x" * 100)
    with opened("f", os.O_RDWR) as fd:
        refused((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, FALLOC_PUNCH_HOLE, 0, 10)


@needs(Need.PUNCH_HOLE)
def case_punch_hole_is_seen_by_cached_readers(env: Env) -> None:
    """A descriptor that has read the data, and a mapping, see the zeros."""
    put("f", b"x" * 16_384)
    with opened("f", os.O_RDONLY) as reader, opened("f", os.O_RDWR) as fd:
        os.pread(reader, 16_384, 0)
        fallocate(fd, _PUNCH, 4096, 4096)
        equal(os.pread(reader, 16_384, 0), b"x" * 4096 + bytes(4096) + b"x" * 8192, "content")


@needs(Need.ZERO_RANGE)
def case_zero_range(env: Env) -> None:
    """Zeros, with and without KEEP_SIZE over the end."""
    put("f", b"x" * 10_000)
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_ZERO_RANGE, 100, 5000)
        equal(get("f") == b"x" * 100 + bytes(5000) + b"x" * 4900, True, "content is right")
        fallocate(fd, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, 9000, 5000)
        equal(os.fstat(fd).st_size, 10_000, "size with KEEP_SIZE")
        fallocate(fd, FALLOC_ZERO_RANGE, 9500, 5000)
        equal(os.fstat(fd).st_size, 14_500, "size without")
    equal(get("f")[9000:], bytes(5500), "the end")


@needs(Need.COLLAPSE_RANGE)
def case_collapse_range(env: Env) -> None:
    """The range is taken out."""
    block = os.statvfs(".").f_bsize
    put("f", b"a" * block + b"b" * block + b"c" * block)
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_COLLAPSE_RANGE, block, block)
        refused(errno.EINVAL, fallocate, fd, FALLOC_COLLAPSE_RANGE, 1, block)
    equal(get("f"), b"a" * block + b"c" * block, "content")


@needs(Need.INSERT_RANGE)
def case_insert_range(env: Env) -> None:
    """A hole is put in."""
    block = os.statvfs(".").f_bsize
    put("f", b"a" * block + b"b" * block)
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_INSERT_RANGE, block, block)
    equal(get("f"), b"a" * block + bytes(block) + b"b" * block, "content")


def case_unknown_mode_is_eopnotsupp(env: Env) -> None:
    """A mode bit that doesn't exist."""
    with opened("f", _NEW) as fd:
        refused((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, 1 << 20, 0, 10)


def case_seek_data_and_hole_in_a_full_file(env: Env) -> None:
    """Data everywhere, one hole at the end (also where holes aren't tracked)."""
    put("f", b"x" * 10_000)
    with opened("f", os.O_RDONLY) as fd:
        equal((os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)), (0, 10_000), "from 0")
        equal((os.lseek(fd, 5000, os.SEEK_DATA), os.lseek(fd, 5000, os.SEEK_HOLE)), (5000, 10_000), "from 5000")


def case_seek_data_and_hole_behind_the_end_are_enxio(env: Env) -> None:
    """At the end and behind it, and in an empty file."""
    put("f", b"x" * 100)
    put("empty")
    for name, offset in (("f", 100), ("f", 1000), ("empty", 0)):
        with opened(name, os.O_RDONLY) as fd:
            refused(errno.ENXIO, os.lseek, fd, offset, os.SEEK_DATA)
            refused(errno.ENXIO, os.lseek, fd, offset, os.SEEK_HOLE)


@needs(Need.SEEK_HOLE)
def case_seek_finds_holes(env: Env) -> None:
    """Data at 0 and at 1 MiB, holes between and behind; each offset is found."""
    with opened("f", _NEW) as fd:
        os.pwrite(fd, b"x" * 4096, 0)
        os.pwrite(fd, b"y" * 4096, 1 << 20)
        os.ftruncate(fd, 2 << 20)
        os.fsync(fd)
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
        check(4096 <= hole <= 1 << 19, f"the first hole is at {hole}")
        data = os.lseek(fd, hole, os.SEEK_DATA)
        check(1 << 19 < data <= 1 << 20, f"the second data are at {data}")
        end = os.lseek(fd, 1 << 20, os.SEEK_HOLE)
        check((1 << 20) + 4096 <= end < 2 << 20, f"the last hole is at {end}")
        refused(errno.ENXIO, os.lseek, fd, end, os.SEEK_DATA)


@needs(Need.SEEK_HOLE)
def case_seek_in_a_file_of_holes(env: Env) -> None:
    """Only truncated up: hole at 0, no data."""
    with opened("f", _NEW) as fd:
        os.ftruncate(fd, 1 << 20)
        equal(os.lseek(fd, 0, os.SEEK_HOLE), 0, "hole")
        refused(errno.ENXIO, os.lseek, fd, 0, os.SEEK_DATA)


def case_seek_sees_unsynced_data(env: Env) -> None:
    """Data written a moment ago are data, before any sync (also where holes aren't tracked)."""
    with opened("f", _NEW) as fd:
        os.ftruncate(fd, 1 << 20)
        os.pwrite(fd, b"x" * 4096, 1 << 19)
        found = os.lseek(fd, 0, os.SEEK_DATA)
        check(found <= 1 << 19, f"data are found at {found}")
        equal(os.lseek(fd, 1 << 19, os.SEEK_DATA), 1 << 19, "data where they were written")
        hole = os.lseek(fd, 1 << 19, os.SEEK_HOLE)
        check(hole >= (1 << 19) + 4096, f"a hole is found at {hole}, inside the data")


def case_seek_sees_unsynced_data_at_the_end(env: Env) -> None:
    """A file that grew by writing has data up to its end, before any sync."""
    with opened("f", _NEW) as fd:
        os.write(fd, b"x" * 10_000)
        equal((os.lseek(fd, 9_999, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)), (9_999, 10_000), "data, end")


def case_seek_hole_moves_the_position(env: Env) -> None:
    """A following read starts there."""
    put("f", b"0123456789")
    with opened("f", os.O_RDONLY) as fd:
        os.lseek(fd, 4, os.SEEK_DATA)
        equal(os.read(fd, 3), b"456", "bytes")


@needs(Need.SPARSE)
def case_sparse_file_occupies_little(env: Env) -> None:
    """100 MiB of holes with 3 bytes of data."""
    with opened("f", _NEW) as fd:
        os.pwrite(fd, b"end", 100 << 20)
        os.fsync(fd)
        found = os.fstat(fd)
    check(found.st_blocks * 512 < 10 << 20, f"{found.st_blocks} blocks")
    equal(found.st_size, (100 << 20) + 3, "size")

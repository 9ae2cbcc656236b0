"""read(2), write(2), lseek(2) and their vector and positional forms."""

from __future__ import annotations

import errno
import os
import random

from transfuse.testing.posix.env import Env, check, equal, eventually, get, needs, opened, put, read_all, refused
from transfuse.testing.posix.needs import Need


def case_position_moves(env: Env) -> None:
    """Read and write share one position."""
    put("f", b"0123456789")
    with opened("f", os.O_RDWR) as fd:
        equal(os.read(fd, 3), b"012", "first read")
        os.write(fd, b"XY")
        equal(os.read(fd, 100), b"56789", "read after the write")
        equal(os.read(fd, 100), b"", "read at the end")
    equal(get("f"), b"012XY56789", "content")


def case_dup_shares_the_position(env: Env) -> None:
    """dup shares, a second open doesn't."""
    put("f", b"abcdef")
    with opened("f", os.O_RDONLY) as fd, opened("f", os.O_RDONLY) as second:
        copy = os.dup(fd)
        os.read(fd, 2)
        equal((os.read(copy, 2), os.read(second, 2)), (b"cd", b"ab"), "reads")
        os.close(copy)


def case_positional_calls_leave_the_position(env: Env) -> None:
    """pread and pwrite."""
    put("f", b"abcdef")
    with opened("f", os.O_RDWR) as fd:
        equal(os.pread(fd, 2, 3), b"de", "pread")
        os.pwrite(fd, b"Z", 5)
        equal(os.read(fd, 100), b"abcdeZ", "read from the start")


def case_seek(env: Env) -> None:
    """SEEK_SET, SEEK_CUR, SEEK_END; before the start is EINVAL, behind the end allowed."""
    put("f", b"0123456789")
    with opened("f", os.O_RDWR) as fd:
        equal(os.lseek(fd, -2, os.SEEK_END), 8, "two before the end")
        equal(os.lseek(fd, -3, os.SEEK_CUR), 5, "three back")
        refused(errno.EINVAL, os.lseek, fd, -6, os.SEEK_CUR)
        equal(os.lseek(fd, 0, os.SEEK_CUR), 5, "position after the refusal")
        equal(os.lseek(fd, 100, os.SEEK_END), 110, "behind the end")
        equal(os.read(fd, 1), b"", "read behind the end")
        equal(os.fstat(fd).st_size, 10, "size")


def case_seek_end_sees_another_process(env: Env) -> None:
    """SEEK_END uses the size as it is now."""
    put("f", b"x")
    with opened("f", os.O_RDONLY) as fd:
        equal(os.lseek(fd, 0, os.SEEK_END), 1, "end before")
        env.spawn(lambda _other: put("f", b"x" * 5000)).result()
        equal(os.lseek(fd, 0, os.SEEK_END), 5000, "end after")


def case_gap_reads_as_zeros(env: Env) -> None:
    """A write far behind the end leaves zeros between."""
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"start", 0)
        os.pwrite(fd, b"end", 1_000_000)
        equal(os.fstat(fd).st_size, 1_000_003, "size")
        equal(os.pread(fd, 2_000_000, 0), b"start" + bytes(999_995) + b"end", "content")


def case_vectors(env: Env) -> None:
    """readv, writev, preadv and pwritev with several buffers."""
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        equal(os.writev(fd, [b"ab", b"", b"cde"]), 5, "written")
        equal(os.pwritev(fd, [b"X", b"Y"], 4), 2, "written at 4")
        one, two = bytearray(3), bytearray(10)
        equal(os.preadv(fd, [one, two], 0), 6, "read")
        equal((bytes(one), bytes(two[:3])), (b"abc", b"dXY"), "buffers")
    equal(os.stat("f").st_size, 6, "size")


def case_writing_changes_mtime_and_ctime(env: Env) -> None:
    """write moves both, by the time the descriptor is closed."""
    put("f", b"x")

    def write() -> None:
        with opened("f", os.O_WRONLY) as fd:
            os.write(fd, b"y")

    equal(env.changed(write, "f"), ["mc"], "times")


def case_times_are_seen_while_open(env: Env) -> None:
    """fstat and stat right after a write agree on size and mtime."""
    with opened("f", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"first")
        env.tick()
        old = os.fstat(fd).st_mtime_ns
        env.tick()
        os.write(fd, b"second")
        by_fd, by_name = os.fstat(fd), os.stat("f")
        check(by_fd.st_mtime_ns > old, "mtime did not move")
        equal((by_name.st_size, by_name.st_mtime_ns), (11, by_fd.st_mtime_ns), "size and mtime by name")


def case_writing_nothing_leaves_times(env: Env) -> None:
    """write of 0 bytes changes nothing."""
    put("f", b"x")
    with opened("f", os.O_WRONLY) as fd:
        equal(env.changed(lambda: os.write(fd, b""), "f"), [""], "times")


def case_reading_leaves_mtime_and_ctime(env: Env) -> None:
    """read changes at most atime."""
    put("f", b"x" * 100)
    equal(env.changed(lambda: get("f"), "f"), [""], "times")


def case_all_bytes_of_unaligned_writes(env: Env) -> None:
    """Chunks of odd sizes put together a megabyte."""
    data = random.Random(1).randbytes(1_000_003)
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        at = 0
        for size in (1, 4095, 4096, 4097, 65_537, 131_071, 262_145, 1_000_003):
            at += os.write(fd, data[at : at + size])
        equal((at, os.fstat(fd).st_size), (len(data), len(data)), "bytes written, size")
        os.lseek(fd, 0, os.SEEK_SET)
        equal(read_all(fd) == data, True, "content is the same")
        for offset, size in ((0, 1), (4095, 2), (65_535, 70_000), (999_999, 100)):
            equal(os.pread(fd, size, offset), data[offset : offset + size], f"{size} bytes at {offset}")


def case_random_overwrites(env: Env) -> None:
    """2,000 random writes, reads and truncations against a bytearray (the seed is fixed)."""
    chance = random.Random(20)
    model = bytearray()
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        for step in range(2000):
            offset, size = chance.randrange(200_000), chance.randrange(1, 20_000)
            kind = chance.random()
            if kind < 0.45:
                data = chance.randbytes(size)
                os.pwrite(fd, data, offset)
                if len(model) < offset:
                    model.extend(bytes(offset - len(model)))
                model[offset : offset + size] = data
            elif kind < 0.9:
                equal(
                    os.pread(fd, size, offset) == bytes(model[offset : offset + size]),
                    True,
                    f"step {step}: {size} bytes at {offset} are right",
                )
            else:
                os.ftruncate(fd, offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            equal(os.fstat(fd).st_size, len(model), f"size at step {step}")
    equal(get("f") == bytes(model), True, "content is the same at the end")


def case_one_process_writes_and_another_reads(env: Env) -> None:
    """What write returned for is read by another process at once, 200 times."""

    def reader(other: object) -> None:
        del other
        with opened("f", os.O_RDONLY) as fd, opened("go", os.O_RDONLY) as go, opened("done", os.O_WRONLY) as done:
            while token := os.read(go, 1):
                equal(os.pread(fd, 100, 0), token * 100, "what the reader sees")
                os.write(done, token)

    put("f", b"?" * 100)
    os.mkfifo("go")
    os.mkfifo("done")
    child = env.spawn(reader)
    with opened("f", os.O_WRONLY) as fd, opened("go", os.O_WRONLY) as go, opened("done", os.O_RDONLY) as done:
        for step in range(200):
            token = bytes([65 + step % 26])
            os.pwrite(fd, token * 100, 0)
            os.write(go, token)
            equal(os.read(done, 1), token, "answer")
    child.result()


def case_large_file_sequential(env: Env) -> None:
    """16 MiB in 1 MiB writes come back."""
    block = random.Random(3).randbytes(1 << 20)
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        for index in range(16):
            os.write(fd, bytes([index]) + block[1:])
        os.lseek(fd, 0, os.SEEK_SET)
        for index in range(16):
            equal(os.read(fd, 1 << 20) == bytes([index]) + block[1:], True, f"block {index} is right")


def case_blocks_grow_with_data(env: Env) -> None:
    """st_blocks of a written and synced file covers its data."""
    with opened("f", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"x" * 100_000)
        os.fsync(fd)
        eventually(lambda: os.fstat(fd).st_blocks * 512 >= 100_000, "too few blocks for 100,000 bytes")


def case_write_at_largest_offset_is_efbig(env: Env) -> None:
    """No write ends behind the largest offset."""
    with opened("f", os.O_WRONLY | os.O_CREAT) as fd:
        refused((errno.EFBIG, errno.EINVAL), os.pwrite, fd, b"x", (1 << 63) - 1)


@needs(Need.ATIME)
def case_reading_updates_atime(env: Env) -> None:
    """Under every atime rule but noatime: an atime older than mtime moves on a read."""
    put("f", b"data")
    os.utime("f", ns=(10**18, os.stat("f").st_mtime_ns))
    get("f")
    check(os.stat("f").st_atime_ns != 10**18, "atime did not move")


@needs(Need.ATIME)
def case_reading_with_o_noatime_leaves_atime(env: Env) -> None:
    """O_NOATIME."""
    put("f", b"data")
    os.utime("f", ns=(10**18, os.stat("f").st_mtime_ns))
    with opened("f", os.O_RDONLY | os.O_NOATIME) as fd:
        read_all(fd)
    equal(os.stat("f").st_atime_ns, 10**18, "atime")


def case_preadv2_with_nowait_or_sync(env: Env) -> None:
    """RWF_DSYNC writes, RWF_NOWAIT reads or says EAGAIN or EOPNOTSUPP."""
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwritev(fd, [b"abc"], 0, os.RWF_DSYNC)
        buffer = bytearray(3)
        try:
            os.preadv(fd, [buffer], 0, os.RWF_NOWAIT)
        except OSError as error:
            check(error.errno in (errno.EAGAIN, errno.EOPNOTSUPP), f"errno {error.errno}")
        else:
            equal(bytes(buffer), b"abc", "content")


def case_splice_and_sendfile(env: Env) -> None:
    """sendfile to and splice from a file."""
    put("f", bytes(range(256)) * 100)
    with opened("f", os.O_RDONLY) as source, opened("g", os.O_RDWR | os.O_CREAT) as target:
        sent = 0
        while step := os.sendfile(target, source, sent, 25_600 - sent):
            sent += step
        equal(sent, 25_600, "bytes sent")
    equal(get("g"), get("f"), "content")
    reading, writing = os.pipe()
    with opened("f", os.O_RDONLY) as source:
        _splice(source, writing, 4096)
        equal(os.read(reading, 8192), (bytes(range(256)) * 16), "spliced bytes")


def _splice(source: int, target: int, count: int) -> None:
    os.splice(source, target, count)

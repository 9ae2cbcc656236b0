"""The timing client where no C compiler is present: the same modes and output as client.c, in Python.

It adds 0.5–1 µs of its own to each operation, equally for all subjects; the report says which client ran.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable

AT_EMPTY_PATH = 0x1000
AT_STATX_FORCE_SYNC = 0x2000
STATX_BASIC_STATS = 0x7FF
STATX_SIZE_BYTES = 256


def _timed(step: Callable[[int], int], count: int | None, seconds: float | None) -> tuple[int, int, int]:
    """Call step(0), step(1), … until count calls or seconds have passed: (calls, nanoseconds, sum of results)."""
    ops = total = 0
    start = time.monotonic_ns()
    limit = None if seconds is None else start + int(seconds * 1e9)
    while count is None or ops < count:
        total += step(ops)
        ops += 1
        if limit is not None and time.monotonic_ns() >= limit:
            break
    return ops, time.monotonic_ns() - start, total


def main(argv: list[str]) -> int:
    """Run one mode; arguments as in client.c. Prints "OPS NANOSECONDS BYTES"."""
    mode, directory, *rest = argv
    dir_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    names: list[str] = []
    if mode in ("statlist", "openclose", "readlist"):
        with open(rest[0], encoding="utf-8") as file:
            names = file.read().splitlines()
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(STATX_SIZE_BYTES)
    block = bytes(1024)

    def getattr_(_: int) -> int:
        if libc.statx(dir_fd, b"", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, buffer):
            raise OSError(ctypes.get_errno(), "statx")
        return 0

    def negative(index: int) -> int:
        try:
            os.lstat(f"absent-{os.getpid()}-{index}", dir_fd=dir_fd)
        except FileNotFoundError:
            return 0
        raise FileExistsError(f"absent-{index}")

    def statlist(index: int) -> int:
        return os.lstat(names[index], dir_fd=dir_fd).st_size

    def openclose(index: int) -> int:
        os.close(os.open(names[index % len(names)], os.O_RDONLY, dir_fd=dir_fd))
        return 0

    def readlist(index: int) -> int:
        fd = os.open(names[index], os.O_RDONLY, dir_fd=dir_fd)
        got = 0
        while data := os.read(fd, 1 << 20):
            got += len(data)
        os.close(fd)
        return got

    def create(index: int) -> int:
        fd = os.open(f"new-{index:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=dir_fd)
        written = os.write(fd, block)
        os.close(fd)
        return written

    def unlink(index: int) -> int:
        os.unlink(f"new-{index:06}", dir_fd=dir_fd)
        return 0

    steps = {"getattr": getattr_, "negative": negative, "statlist": statlist, "openclose": openclose,
             "readlist": readlist, "create": create, "unlink": unlink}  # fmt: skip
    count = {"statlist": len(names), "readlist": len(names)}.get(mode)
    if mode in ("create", "unlink"):
        count = int(rest[0])
    seconds = None if mode in ("statlist", "readlist") else float(rest[-1])
    print(*_timed(steps[mode], count, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

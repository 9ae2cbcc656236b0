"""statvfs(2), fstatvfs(2), sync."""

from __future__ import annotations

import os

from transfuse.testing.posix.env import Env, check, equal, opened, put


def case_numbers_are_sane(env: Env) -> None:
    """Block sizes are powers of two, free ≤ total, available ≤ free, names at least 14 bytes (POSIX)."""
    found = os.statvfs(".")
    for size in (found.f_bsize, found.f_frsize):
        check(size >= 512 and size & (size - 1) == 0, f"a block size of {size}")
    check(found.f_bavail <= found.f_bfree <= found.f_blocks, f"blocks: {found}")
    check(found.f_ffree <= found.f_files, f"inodes: {found}")
    check(14 <= found.f_namemax <= 1024, f"f_namemax {found.f_namemax}")


def case_agrees_for_all_files(env: Env) -> None:
    """A file, a directory and a descriptor give the same totals."""
    put("f")
    os.mkdir("d")
    with opened("f", os.O_RDONLY) as fd:
        results = [os.statvfs("f"), os.statvfs("d"), os.statvfs("."), os.fstatvfs(fd)]
    totals = {(each.f_blocks, each.f_frsize, each.f_bsize, each.f_namemax) for each in results}
    equal(len(totals), 1, "different totals")


def case_device_number_is_the_same_everywhere(env: Env) -> None:
    """st_dev of all objects, and not that of /proc."""
    put("f")
    os.mkdir("d")
    equal({os.stat(name).st_dev for name in ("f", "d", ".")}, {os.stat(".").st_dev}, "devices")
    check(os.stat(".").st_dev != os.stat("/proc").st_dev, "the device of /proc")


def case_inode_numbers_are_distinct_and_steady(env: Env) -> None:
    """100 files have 100 numbers, which don't change from call to call or by rename."""
    for index in range(100):
        put(f"f{index}")
    first = [os.stat(f"f{index}").st_ino for index in range(100)]
    os.listdir(".")
    equal(([os.stat(f"f{index}").st_ino for index in range(100)], len(set(first))), (first, 100), "numbers")


def case_pathconf(env: Env) -> None:
    """pathconf agrees with statvfs on the length of names."""
    equal(os.pathconf(".", "PC_NAME_MAX"), os.statvfs(".").f_namemax, "length of names")


def case_block_size_of_files(env: Env) -> None:
    """st_blksize is a good size for reads: at least 512, at most 16 MiB."""
    put("f", b"x")
    check(512 <= os.stat("f").st_blksize <= 1 << 24, f"st_blksize {os.stat('f').st_blksize}")


def case_syncfs(env: Env) -> None:
    """sync returns, and data are still there."""
    put("f", b"x" * 10_000)
    os.sync()
    equal(os.stat("f").st_size, 10_000, "size")

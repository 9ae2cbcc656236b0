"""Calls of the C library: arguments arrive as given, failures carry the errno."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from transfuse.testing.posix import calls


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    return path


def test_statx_gives_what_stat_gives(file: Path) -> None:
    one, two = os.stat(file), calls.statx(str(file))
    assert (two.mode, two.nlink, two.uid, two.gid, two.ino, two.size, two.blocks, two.mtime_ns, two.ctime_ns) == (
        one.st_mode, one.st_nlink, one.st_uid, one.st_gid, one.st_ino, one.st_size, one.st_blocks, one.st_mtime_ns,
        one.st_ctime_ns,
    )  # fmt: skip


def test_utimensat_sets_both_times_to_the_nanosecond(file: Path) -> None:
    calls.utimensat(str(file), (5, 6), (7, 8))
    assert (os.stat(file).st_atime_ns, os.stat(file).st_mtime_ns) == (5_000_000_006, 7_000_000_008)


def test_getdents_lists_what_is_there(file: Path) -> None:
    fd = os.open(file.parent, os.O_RDONLY)
    try:
        found = {entry.name: entry.ino for entry in calls.getdents(fd)}
    finally:
        os.close(fd)
    assert found.keys() == {b".", b"..", b"f"}
    assert found[b"f"] == os.stat(file).st_ino


def test_failures_are_negative_results_with_errno(file: Path) -> None:
    with pytest.raises(OSError) as renamed:
        calls.renameat2(str(file), str(file), 1 << 20)
    with pytest.raises(OSError) as allocated:
        calls.fallocate(-1, 0, 0, 1)
    with pytest.raises(OSError) as listed:
        calls.getdents(-1)
    assert [each.value.errno for each in (renamed, allocated, listed)] == [errno.EINVAL, errno.EBADF, errno.EBADF]


def test_record_lock_is_seen_from_another_description(file: Path) -> None:
    one, two = os.open(file, os.O_RDWR), os.open(file, os.O_RDWR)
    try:
        calls.set_lock(one, fcntl.F_WRLCK, 3, 4, calls.F_OFD_SETLK)
        found = calls.get_lock(two, fcntl.F_RDLCK, 0, 0, calls.F_OFD_GETLK)
        assert (found.type, found.start, found.length) == (fcntl.F_WRLCK, 3, 4)
    finally:
        os.close(one)
        os.close(two)


def test_copy_file_range_without_offsets_moves_both_positions(file: Path) -> None:
    source, target = os.open(file, os.O_RDONLY), os.open(file.with_name("g"), os.O_RDWR | os.O_CREAT)
    try:
        assert calls.copy_file_range(source, None, target, None, 4) == 4
        assert (os.lseek(source, 0, os.SEEK_CUR), os.lseek(target, 0, os.SEEK_CUR)) == (4, 4)
        assert os.pread(target, 10, 0) == b"0123"
    finally:
        os.close(source)
        os.close(target)


def test_access_carries_the_errno(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        calls.access(str(tmp_path / "missing"), os.F_OK)

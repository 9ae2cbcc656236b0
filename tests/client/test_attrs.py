"""Attributes from the wire's tuples into Python's."""

from __future__ import annotations

import os

from transfuse.client.attrs import StatxResult, stat_result, statvfs_result, statx_result
from transfuse.session.replies import encode_rdev
from transfuse.wire import structs as w


def test_every_field_of_stat_has_its_place() -> None:
    attr = w.Attr(
        ino=11,
        size=12,
        blocks=13,
        atime=-1,
        mtime=15,
        ctime=16,
        atimensec=1,
        mtimensec=2,
        ctimensec=999_999_999,
        mode=0o100644,
        nlink=20,
        uid=21,
        gid=22,
        rdev=encode_rdev(os.makedev(259, 70_000)),
        blksize=5000,
    )
    st = stat_result(attr.values())
    assert (st.st_mode, st.st_ino, st.st_dev, st.st_nlink, st.st_uid, st.st_gid, st.st_size) == (
        0o100644,
        11,
        0,
        20,
        21,
        22,
        12,
    )
    assert (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns) == (-999_999_999, 15_000_000_002, 16_999_999_999)
    assert (st.st_blocks, st.st_rdev) == (13, os.makedev(259, 70_000))
    assert st.st_blksize == 4096  # the power of two below


def test_block_size_0_is_4096() -> None:
    assert stat_result(w.Attr(mode=0o100644).values()).st_blksize == 4096


def test_nanoseconds_never_carry() -> None:
    assert stat_result(w.Attr(mode=0o100644, mtime=1, mtimensec=0xFFFFFFFF).values()).st_mtime_ns == 1_999_999_999


def test_every_field_of_statvfs_has_its_place() -> None:
    st = w.Kstatfs(blocks=1, bfree=2, bavail=3, files=4, ffree=5, bsize=6, namelen=7, frsize=8)
    found = statvfs_result(st.values())
    assert (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree) == (1, 2, 3, 4, 5)
    assert (found.f_bsize, found.f_namemax, found.f_frsize) == (6, 7, 8)


def test_every_field_of_statx_has_its_place() -> None:
    stat = w.Statx(
        mask=0xFFF,
        blksize=512,
        attributes=1,
        nlink=2,
        uid=3,
        gid=4,
        mode=0o100600,
        ino=5,
        size=6,
        blocks=7,
        attributes_mask=8,
        atime=w.SxTime(tv_sec=1, tv_nsec=2),
        btime=w.SxTime(tv_sec=3, tv_nsec=4),
        ctime=w.SxTime(tv_sec=5, tv_nsec=6),
        mtime=w.SxTime(tv_sec=7, tv_nsec=8),
        rdev_major=9,
        rdev_minor=10,
    )
    found = statx_result(stat.values())
    assert (found.ino, found.mode, found.nlink, found.size, found.blocks) == (5, 0o100600, 2, 6, 7)
    assert (found.uid, found.gid) == (3, 4)
    assert (found.atime_ns, found.btime_ns, found.ctime_ns, found.mtime_ns) == (
        1_000_000_002,
        3_000_000_004,
        5_000_000_006,
        7_000_000_008,
    )
    assert (found.rdev, found.attributes, found.attributes_mask) == (os.makedev(9, 10), 1, 8)


def test_statx_without_the_btime_bit_has_none() -> None:
    assert statx_result(w.Statx(mask=0x7FF).values()).btime_ns is None


def test_a_device_number_beyond_every_device_does_no_harm() -> None:
    found = statx_result(w.Statx(rdev_major=0xFFFFFFFF, rdev_minor=0xFFFFFFFF).values())
    assert found.rdev == os.makedev(0xFFF, 0xFFFFF)


def test_plain_attributes_as_statx() -> None:
    st = stat_result(w.Attr(ino=2, mode=0o100644, size=3).values())
    found = StatxResult.from_stat(st)
    assert (found.ino, found.size, found.btime_ns) == (2, 3, None)

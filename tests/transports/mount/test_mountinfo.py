from __future__ import annotations

import os

from transfuse.transports.mount import mountinfo

TABLE = b"""\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
44 27 0:41 / /mnt/a\\040b rw,nosuid shared:5 master:2 - fuse.x.y a\\054b\\134 ro,user_id=0
45 44 0:300 / /mnt/a\\040b rw - tmpfs none rw
46 27 8:1 / /mnt/c rw - fuseblk /dev/sda1 rw,blksize=4096
47 27 0:50 / /mnt/d rw - fusectl  rw
"""


def test_row_is_split_and_unescaped() -> None:
    row = mountinfo.parse(TABLE)[1]
    assert (row.mount_id, row.parent_id, row.major, row.minor) == (44, 27, 0, 41)
    assert (row.mountpoint, row.fstype, row.source) == (b"/mnt/a b", b"fuse.x.y", b"a,b\\")
    assert (row.options, row.super_options) == (b"rw,nosuid", b"ro,user_id=0")


def test_fuse_is_recognised_by_type_and_fusectl_is_not_fuse() -> None:
    assert [row.is_fuse for row in mountinfo.parse(TABLE)] == [False, True, False, True, False]


def test_dev_is_st_dev_also_above_255() -> None:
    assert mountinfo.parse(TABLE)[2].dev == os.makedev(0, 300) != 300


def test_empty_source_is_empty() -> None:
    assert mountinfo.parse(TABLE)[4].source == b""


def test_the_uppermost_of_stacked_mounts_shows() -> None:
    top = mountinfo.top_mount(mountinfo.parse(TABLE), b"/mnt/a b")
    assert top is not None and top.mount_id == 45


def test_no_mount_there_is_none() -> None:
    assert mountinfo.top_mount(mountinfo.parse(TABLE), b"/mnt") is None


def test_mount_id_of_a_descriptor_is_in_the_table() -> None:
    fd = os.open("/proc", os.O_PATH)
    try:
        mount_id = mountinfo.mount_id_of_fd(fd)
    finally:
        os.close(fd)
    rows = [row for row in mountinfo.mounts() if row.mount_id == mount_id]
    assert [row.mountpoint for row in rows] == [b"/proc"]

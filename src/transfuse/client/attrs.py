"""Attributes from the wire's flat tuples into what Python shows: os.stat_result, os.statvfs_result, and statx's fields.

Times stay exact: st_mtime_ns is what the server sent, the float fields are derived from it as os.stat() does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from transfuse.session.calls import decode_rdev

__all__ = ["NS", "StatxResult", "stat_result", "statvfs_result", "statx_result"]

NS = 1_000_000_000
STATX_BTIME = 0x800

# Positions in a fuse_attr: ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev
# blksize flags.
INO, SIZE, MODE, NLINK, UID, GID = 0, 1, 9, 10, 11, 12


def _block_size(blksize: int) -> int:
    """Linux keeps the logarithm only: the power of two at or below, 4096 for 0."""
    return 1 << (blksize.bit_length() - 1) if blksize else 4096


def stat_result(a: tuple[Any, ...]) -> os.stat_result:
    """os.stat_result of a flattened fuse_attr; st_dev is 0."""
    atime_ns = a[3] * NS + min(a[6], NS - 1)
    mtime_ns = a[4] * NS + min(a[7], NS - 1)
    ctime_ns = a[5] * NS + min(a[8], NS - 1)
    return os.stat_result(
        (
            a[9],
            a[0],
            0,
            a[10],
            a[11],
            a[12],
            a[1],
            a[3],
            a[4],
            a[5],
            atime_ns / NS,
            mtime_ns / NS,
            ctime_ns / NS,
            atime_ns,
            mtime_ns,
            ctime_ns,
            _block_size(a[14]),
            a[2],
            decode_rdev(a[13]),
        )
    )


def statvfs_result(st: tuple[int, ...]) -> os.statvfs_result:
    """os.statvfs_result of a flattened fuse_kstatfs."""
    blocks, bfree, bavail, files, ffree, bsize, namelen, frsize = st
    return os.statvfs_result((bsize, frsize or bsize, blocks, bfree, bavail, files, ffree, ffree, 0, namelen, 0))


@dataclass(frozen=True, slots=True)
class StatxResult:
    """What statx(2) knows beyond stat(2). Times in nanoseconds since 1970; `btime_ns` is None where there is none."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    blksize: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int | None
    attributes: int = 0
    attributes_mask: int = 0
    mask: int = 0x7FF

    @classmethod
    def from_stat(cls, st: os.stat_result) -> StatxResult:
        """From plain attributes: no birth time."""
        return cls(
            st.st_ino,
            st.st_mode,
            st.st_nlink,
            st.st_uid,
            st.st_gid,
            st.st_size,
            st.st_blocks,
            st.st_blksize,
            st.st_rdev,
            st.st_atime_ns,
            st.st_mtime_ns,
            st.st_ctime_ns,
            None,
        )


def statx_result(v: tuple[Any, ...]) -> StatxResult:
    """From a flattened fuse_statx."""
    mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask = v[:11]
    atime, btime, ctime, mtime = (v[at] * NS + min(v[at + 1], NS - 1) for at in (11, 13, 15, 17))
    return StatxResult(
        ino=ino,
        mode=mode,
        nlink=nlink,
        uid=uid,
        gid=gid,
        size=size,
        blocks=blocks,
        blksize=_block_size(blksize),
        rdev=os.makedev(v[19] & 0xFFF, v[20] & 0xFFFFF),
        atime_ns=atime,
        mtime_ns=mtime,
        ctime_ns=ctime,
        btime_ns=btime if mask & STATX_BTIME else None,
        attributes=attributes,
        attributes_mask=attributes_mask,
        mask=mask,
    )

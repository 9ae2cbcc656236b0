"""A pass-through filesystem as a user of mfusepy would write it: paths in, os calls out, libfuse's cache options on.

Usage: mfusepy_passthrough.py SOURCE MOUNTPOINT (stays in the foreground). Cache times are set as long as mfusepy
allows, because the other subjects are compared with caches on too.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from typing import Any

import mfusepy

CACHE_SECONDS = 3600
STAT_KEYS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino", "st_rdev", "st_blocks")
STATVFS_KEYS = (
    "f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize", "f_namemax",
)  # fmt: skip


class Passthrough(mfusepy.Operations):
    """Every path is SOURCE + path; file handles are host file descriptors."""

    use_ns = True

    def __init__(self, source: str) -> None:
        self.source = source

    def _host(self, path: str) -> str:
        return self.source + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        st = os.lstat(self._host(path)) if fh is None else os.fstat(fh)
        attr = {key: getattr(st, key) for key in STAT_KEYS}
        attr["st_atime"], attr["st_mtime"], attr["st_ctime"] = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns
        return attr

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        # with use_ino an entry without an inode number is invisible: the C library skips number 0
        found = [(".", {"st_ino": 1, "st_mode": stat.S_IFDIR}, 0), ("..", {"st_ino": 1, "st_mode": stat.S_IFDIR}, 0)]
        with os.scandir(self._host(path)) as entries:
            for entry in entries:
                kind = (
                    stat.S_IFDIR if entry.is_dir(follow_symlinks=False)
                    else stat.S_IFLNK if entry.is_symlink()
                    else stat.S_IFREG
                )  # fmt: skip
                found.append((entry.name, {"st_ino": entry.inode(), "st_mode": kind}, 0))
        return found

    def readlink(self, path: str) -> str:
        return os.readlink(self._host(path))

    def access(self, path: str, amode: int) -> int:
        if not os.access(self._host(path), amode):
            raise PermissionError(13, "access refused")
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._host(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._host(path), flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._host(path) if fh is None else fh, length)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._host(path))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._host(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._host(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._host(old), self._host(new))
        return 0

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, self._host(target))
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._host(source), self._host(target))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._host(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.lchown(self._host(path), uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self._host(path), ns=times or (time.time_ns(),) * 2, follow_symlinks=False)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        st = os.statvfs(self._host(path))
        return {key: getattr(st, key) for key in STATVFS_KEYS}


if __name__ == "__main__":
    mfusepy.FUSE(
        Passthrough(sys.argv[1]),
        sys.argv[2],
        foreground=True,
        use_ino=True,
        kernel_cache=True,
        attr_timeout=CACHE_SECONDS,
        entry_timeout=CACHE_SECONDS,
        negative_timeout=CACHE_SECONDS,
    )

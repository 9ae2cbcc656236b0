"""Which files of a copy are further names of one that was copied already.

A file with several names is remembered until all of them have come by. What it was like is remembered, too: two files
are one only if their inode numbers and everything stat() shows of them agree, since a source may give several files one
number (filesystems without inode numbers do), and to take two files for one would lose the second.
"""

from __future__ import annotations

import os

__all__ = ["MAX_WAITING", "LinkTable"]

MAX_WAITING = 1 << 17
"""Most files remembered whose other names have not come yet: some 64 MB with paths of 100 letters."""

Witness = tuple[int, ...]


class LinkTable:
    """Files with several names, by device and inode number."""

    def __init__(self, bound: int = MAX_WAITING) -> None:
        self._bound = bound
        self._waiting: dict[tuple[int, int], tuple[str, int, Witness]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def find(self, st: os.stat_result) -> str | None:
        """Where the file that this is another name of was copied to; None if it was not, or is not the same."""
        found = self._waiting.get((st.st_dev, st.st_ino))
        return found[0] if found is not None and found[2] == _witness(st) else None

    def seen(self, st: os.stat_result) -> None:
        """One more of its names is done; after the last the file is forgotten."""
        key = st.st_dev, st.st_ino
        to, left, witness = self._waiting[key]
        if left > 1:
            self._waiting[key] = to, left - 1, witness
        else:
            del self._waiting[key]

    def add(self, st: os.stat_result, to: str) -> bool:
        """The first of its names was copied to `to`. False: there is no room to remember it."""
        key = st.st_dev, st.st_ino
        if key not in self._waiting and len(self._waiting) >= self._bound:
            return False
        self._waiting[key] = to, st.st_nlink - 1, _witness(st)
        return True


def _witness(st: os.stat_result) -> Witness:
    """What the names of one file have in common. Not the time of the last access, which copying changes."""
    return st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_rdev, st.st_size, st.st_mtime_ns, st.st_ctime_ns

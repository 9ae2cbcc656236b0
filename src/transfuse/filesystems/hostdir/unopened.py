"""Files for a peer that sends no OPEN (`no_open`): its reads and writes name the node alone, and the fd is found here.

Linux sends no RELEASE either, not even for a file that CREATE opened (fs/fuse/file.c, fuse_file_put), so no open file
has a handle: fh is always 0.

The last few fds are kept, for reading and for writing apart, since reads of one file follow each other. An fd is the
inode's, so no rename or removal makes one wrong; it goes with the node, so that a removed file's space is free once the
peer has forgotten it.
"""

from __future__ import annotations

import os
import threading

from transfuse.filesystems.hostdir.handles import OpenFile

__all__ = ["Unopened"]

MAX_KEPT = 64
"""Most fds kept. Small files are read once each and large ones in a row, so a few would do as well."""


class Unopened:
    """The fds most recently used. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], OpenFile] = {}
        """By nodeid and whether it is for writing; oldest use first."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, nodeid: int, writing: bool) -> OpenFile | None:
        """The file, if it is kept."""
        key = nodeid, writing
        with self._lock:
            file = self._kept.pop(key, None)
            if file is not None:
                self._kept[key] = file
        return file

    def keep(self, file: OpenFile, access: int) -> None:
        """Keep `file`, opened for `access` (O_ACCMODE), at the cost of the one that was not used for longest."""
        nodeid, kept = file.node.nodeid, self._kept
        with self._lock:
            if access != os.O_RDONLY:
                kept[nodeid, True] = file
            if access != os.O_WRONLY:
                kept[nodeid, False] = file
            while len(kept) > MAX_KEPT:
                del kept[next(iter(kept))]

    def drop(self, nodeid: int) -> None:
        """The node is forgotten."""
        with self._lock:
            self._kept.pop((nodeid, False), None)
            self._kept.pop((nodeid, True), None)

    def clear(self) -> None:
        """Close all."""
        with self._lock:
            self._kept.clear()

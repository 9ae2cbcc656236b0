"""A filesystem whose files answer READ in each of the ways there are; for the transports of /dev/fuse."""

from __future__ import annotations

import errno
import os
import threading

from transfuse import Attr, DirEntry, Entry, Features, FileRange, Filesystem, Opened

BIG = bytes(range(256)) * 8192


class Files(Filesystem):
    """A root with files; `fd` has BIG in it, `write_only` can't be read."""

    features = Features(attr_timeout_s=0.0)

    def __init__(self, fd: int, write_only: int = 0) -> None:
        self.fd = fd
        self.write_only = write_only
        self.written: dict[int, bytes] = {}
        self.gate = threading.Event()
        self.waiting = threading.Semaphore(0)
        """Released by each reader of "slow"."""
        self.cpus: list[tuple[set[int], str]] = []
        """Where each getattr of the root ran: CPUs it may run on, name of its thread."""

    NAMES = {b"small": 2, b"bytes": 3, b"range": 4, b"broken": 5, b"slow": 6, b"buggy": 7, b"huge": 8, b"patient": 9}

    def lookup(self, req, parent, name):
        if name not in self.NAMES:
            raise FileNotFoundError(errno.ENOENT, name)
        return Entry(self.getattr(req, self.NAMES[name], None))

    def getattr(self, req, nodeid, fh):
        if nodeid == 1:
            self.cpus.append((os.sched_getaffinity(0), threading.current_thread().name))
        return Attr.directory(1) if nodeid == 1 else Attr.file(nodeid, size=len(BIG), mode=0o666)

    def open(self, req, nodeid, flags):
        return Opened(7, direct_io=True)

    def read(self, req, nodeid, fh, size, offset):
        if nodeid == 2:
            return b"tiny"[offset : offset + size]
        if nodeid == 4:
            return FileRange(self.fd, offset, size)
        if nodeid == 5:
            return FileRange(self.write_only, offset, size)
        if nodeid == 6:
            self.waiting.release()
            self.gate.wait(10)
            return b""
        if nodeid == 9:
            self.waiting.release()
            req.wait_interrupted(10)
        if nodeid == 7:
            raise ZeroDivisionError("a bug")
        if nodeid == 8:
            return BIG
        return BIG[offset : offset + size]

    def write(self, req, nodeid, fh, data, offset, flags):
        self.written[nodeid] = self.written.get(nodeid, b"") + bytes(data)
        return len(data)

    def readdir(self, req, nodeid, fh, offset):
        return [DirEntry(name, ino) for name, ino in self.NAMES.items()]

"""A small file by which a server goes on where the one before it stopped, under a guest that keeps its mount.

It has the number of times that a server has begun (the *epoch*, from which nodeids and handles are counted, so that no
number of an earlier server is ever another file), and what INIT agreed on: a guest that goes on sends no second INIT.
A server that is stopped in order also leaves what the guest holds, and its successor knows every node and open file.
After a crash this part is missing: what the guest still names is ESTALE then, and its kernel looks the paths up again.

The file is replaced as a whole, and locked by the server that uses it. It may be trusted as far as its folder is: it
names files by handles, so nobody else may write there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Generator, Iterable

__all__ = ["MAX_EPOCH", "StateFile"]

MAGIC = b"tfstate1"
MAX_EPOCH = 0xFFFF
"""After so many servers in a row for one guest the numbers begin again."""
PIECE = 1 << 16
_HEAD = struct.Struct("<8sI")


class StateFile:
    """The file at `path`, locked. OSError: EBUSY if another server uses it, EINVAL if it is something else."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder, self._name = os.path.split(os.path.abspath(path))
        # Held open: the server may be confined later to where no path leads here.
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock = self._open(self._name + ".lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise OSError(errno.EBUSY, "another server uses it", os.fspath(path)) from None
        except BaseException:
            os.close(self._folder)
            raise
        self.epoch = 0

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._folder)

    def begin(self) -> Generator[bytes, None, None] | None:
        """Count this server as begun, whatever happens next, and read what the last one left: the session's state in
        pieces, None if there is none. `write` before anything is served, since the state is old from then on."""
        try:
            fd = self._open(self._name, os.O_RDWR)
        except FileNotFoundError:
            self.write(None)
            return None
        try:
            head = os.read(fd, _HEAD.size)
            if len(head) < _HEAD.size or head[:8] != MAGIC:
                raise OSError(errno.EINVAL, "is no state of a server", self._name)
            self.epoch = _HEAD.unpack(head)[1] % MAX_EPOCH + 1
            os.pwrite(fd, _HEAD.pack(MAGIC, self.epoch), 0)
            return _pieces(os.dup(fd)) if os.fstat(fd).st_size > _HEAD.size else None
        finally:
            os.close(fd)

    def write(self, pieces: Iterable[bytes] | None) -> None:
        """Replace the file. The session's state in pieces, or None: no guest has a session."""
        new = self._name + ".new"
        fd = self._open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with open(fd, "wb", buffering=PIECE, closefd=False) as file:
                file.write(_HEAD.pack(MAGIC, self.epoch))
                for piece in pieces or ():
                    file.write(piece)
        finally:
            os.close(fd)
        os.rename(new, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)
        os.close(self._folder)


def _pieces(fd: int) -> Generator[bytes, None, None]:
    with open(fd, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            yield piece

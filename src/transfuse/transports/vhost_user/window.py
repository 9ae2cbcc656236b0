"""The DAX window, seen from the device: which file lies where, and how to have the front-end change that.

Two rules differ. FUSE's SETUPMAPPING may name a range that is mapped already (Linux does, to make a read-only one
writable) and then replaces what is there, in part if need be; REMOVEMAPPING may name any range. A front-end, however,
refuses to map over something, and unmaps only exactly what was mapped in one piece. So the device keeps the book:
what is in the way is unmapped first, and what sticks out of the range is mapped again.

QEMU 11.1 besides maps nothing that reaches beyond the end of the file, not even in its last page, where mmap(2) does;
such a front-end is called *strict*. It gets as many whole pages as the file has, and no file is marked for DAX by
itself, since a file that grows would outgrow what is mapped. And it maps everything as writable, also what the guest
may only read, so that every fd must be open for writing. Both is found out by mapping small files before the first.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from transfuse.transports.vhost_user.messages import BackendRequest, ShmemMapping
from transfuse.transports.vhost_user.upcalls import BackendChannel

__all__ = ["MAX_MAPPINGS", "Window"]

log = logging.getLogger("transfuse.vhost_user")

MAX_MAPPINGS = 1024
"""Most pieces mapped at a time; each holds an fd here and a memory slot in QEMU, which has some 500."""
PAGE = 4096
CACHE_ID = 0
"""The shared memory region that is a virtio-fs device's window."""


class _Piece(NamedTuple):
    """`length` bytes of `fd` from `offset`, mapped at `at`."""

    at: int
    length: int
    fd: int
    offset: int
    writable: bool
    owner: object

    @property
    def end(self) -> int:
        return self.at + self.length

    def part(self, start: int, end: int) -> _Piece:
        """What of it lies in [start, end) of the window."""
        return self._replace(at=start, length=end - start, offset=self.offset + start - self.at)


class Window:
    """The window of one connection. Methods may be called from any thread, never from the one that serves the main
    channel."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.channel: BackendChannel | None = None
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._pieces: list[_Piece] = []
        self._probed = False
        self._strict = True
        self._needs_writable = True
        self.inherited = False
        """An earlier server of the same guest may have mapped something that is not in this book."""

    def map(self, fd: int, offset: int, length: int, at: int, writable: bool, owner: object) -> None:
        """Map a range of a file at `at`, in place of what is there. OSError: ENXIO if the file has no whole page there
        and the front-end wants some, ENOSPC if too much is mapped, else as BackendChannel.call."""
        with self._lock:
            self._probe()
            asked = length
            if self._strict:
                length = min(length, (os.fstat(fd).st_size - offset) // PAGE * PAGE)
                if length <= 0:
                    raise OSError(errno.ENXIO, "the front-end maps no page that the file does not fill")
            before = self._clear(at, asked)
            try:
                if len(self._pieces) >= MAX_MAPPINGS:
                    raise OSError(errno.ENOSPC, f"{MAX_MAPPINGS} pieces are mapped")
                self._add(_Piece(at, length, fd, offset, writable, owner))
            except OSError:
                for piece in before:  # the peer believes that this is still there
                    self._add(piece)
                raise

    def unmap(self, at: int, length: int) -> None:
        """Take back a range, mapped or not."""
        with self._lock:
            if not self._clear(at, length) and self.inherited:
                self._unmap_unknown(at, length)

    def clear(self) -> None:
        """The guest starts over: take everything back."""
        with self._lock:
            try:
                while self._pieces:
                    self._remove(self._pieces[-1])
            except OSError as error:
                log.debug("the window could not be cleared: %s", error)
            self._forget()

    def forget(self) -> None:
        """The front-end has dropped all mappings: it was reset, or is gone."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._starts.clear()
        self._pieces.clear()
        self.inherited = False

    def suits(self, size: int) -> bool:
        """Can all of a file of this size be used through the window, whatever becomes of it?"""
        return not self._strict if self._asked() else False

    def needs_writable(self) -> bool:
        """Must an fd be open for writing although the guest may only read?"""
        return self._needs_writable if self._asked() else False

    def _asked(self) -> bool:
        """Has the front-end shown what it does? False if it can't be asked at the moment."""
        if not self._probed:
            try:
                with self._lock:
                    self._probe()
            except OSError:
                return False
        return True

    def _probe(self) -> None:
        """Find out what the front-end thinks of a file with one byte, and of a file that is open for reading only."""
        if self._probed:
            return
        fd = os.memfd_create("transfuse-probe", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, PAGE)
            place = next((at for at in (0, self.size - PAGE, self.size // 2) if self._would_map(fd, at)), None)
            if place is None:  # all taken, by an earlier server's mappings: the worst is assumed
                return
            os.ftruncate(fd, 1)
            self._strict = not self._would_map(fd, place)
            os.ftruncate(fd, PAGE)
            try:
                reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                log.info("no /proc: %s", error)  # it stays unknown, and files are opened for writing
            else:
                try:
                    self._needs_writable = not self._would_map(reader, place)
                finally:
                    os.close(reader)
        finally:
            os.close(fd)
        self._probed = True

    def _would_map(self, fd: int, at: int) -> bool:
        """Have a page of `fd` mapped, and unmapped again."""
        piece = _Piece(at, PAGE, fd, 0, False, None)
        try:
            self._tell(BackendRequest.SHMEM_MAP, piece)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        self._tell(BackendRequest.SHMEM_UNMAP, piece)
        return True

    def _clear(self, at: int, length: int) -> list[_Piece]:
        """Unmap all of [at, at + length), and put back what stuck out of it; what lay inside."""
        end = at + length
        inside = []
        first = max(0, bisect_right(self._starts, at) - 1)
        last = bisect_left(self._starts, end)
        for piece in self._pieces[first:last]:
            if piece.end <= at:
                continue
            self._remove(piece)
            if piece.at < at:
                self._add(piece.part(piece.at, at))
            if piece.end > end:
                self._add(piece.part(end, piece.end))
            inside.append(piece.part(max(at, piece.at), min(end, piece.end)))
        return inside

    def _add(self, piece: _Piece) -> None:
        try:
            self._tell(BackendRequest.SHMEM_MAP, piece)
        except OSError as error:
            if error.errno != errno.EIO or not self.inherited:
                raise
            self._unmap_unknown(piece.at, piece.length)
            self._tell(BackendRequest.SHMEM_MAP, piece)
        i = bisect_left(self._starts, piece.at)
        self._starts.insert(i, piece.at)
        self._pieces.insert(i, piece)

    def _remove(self, piece: _Piece) -> None:
        self._tell(BackendRequest.SHMEM_UNMAP, piece)
        i = bisect_left(self._starts, piece.at)
        del self._starts[i], self._pieces[i]

    def _unmap_unknown(self, at: int, length: int) -> None:
        """What an earlier server may have mapped in one piece."""
        try:
            self._tell(BackendRequest.SHMEM_UNMAP, _Piece(at, length, -1, 0, False, None))
        except OSError as error:
            if error.errno != errno.EIO:
                raise

    def _tell(self, request: BackendRequest, piece: _Piece) -> None:
        channel = self.channel
        if channel is None:
            raise OSError(errno.ENOTCONN, "the front-end has no channel for requests of the back-end")
        mapping = ShmemMapping(
            shmid=CACHE_ID,
            fd_offset=piece.offset,
            shm_offset=piece.at,
            length=piece.length,
            flags=1 if piece.writable else 0,
        )
        channel.call(request, mapping, [piece.fd] if request == BackendRequest.SHMEM_MAP else [])

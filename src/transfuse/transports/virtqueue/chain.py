"""One request as it lies in the driver's memory: segments to read, then segments to write.

A chain is made by a device queue's pop() out of descriptors that were checked then; afterwards only the bytes of its
segments are touched, and those may change at any time, because the driver still has them. So a request is copied once
(`copy_in`) before it is understood, and file data goes between file and segments without passing through here
(`pread`, `pwrite`).

Once the queue is stopped its memory belongs to the driver again: whatever would write raises QueueStopped.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transfuse.wire.layout import Buffer

if TYPE_CHECKING:
    from transfuse.transports.virtqueue.device import DeviceQueue

__all__ = ["IOV_MAX", "Chain"]

IOV_MAX = 1024
"""Most segments of one system call (UIO_MAXIOV)."""


class Chain:
    """A request. Offsets count from the first byte of the part they are about, readable or writable."""

    __slots__ = (
        "done",
        "entry",
        "head",
        "inputs",
        "outputs",
        "places",
        "queue",
        "readable",
        "sequence",
        "slots",
        "touched",
        "writable",
    )

    def __init__(
        self,
        queue: DeviceQueue,
        head: int,
        slots: int,
        readable: int,
        writable: int,
        inputs: list[memoryview],
        outputs: list[memoryview],
        places: list[int],
    ) -> None:
        self.queue = queue
        self.head = head
        """What names it to the driver: index of the first descriptor (split), buffer id (packed)."""
        self.slots = slots
        """Entries of a packed ring that it takes; 1 of a split one."""
        self.readable = readable
        """Bytes that the driver gives."""
        self.writable = writable
        """Bytes that the driver has room for."""
        self.inputs = inputs
        self.outputs = outputs
        self.places = places
        """Guest addresses of `outputs`."""
        self.done = False
        """It was pushed."""
        self.touched = 0
        """Bytes of the writable part that may have been written."""
        self.entry = -1
        """Where a packed queue's inflight region has it."""
        self.sequence = 0

    def copy_in(self, buffer: Buffer, at: int, offset: int, length: int) -> None:
        """Copy `length` readable bytes from `offset` into buffer[at:]. ValueError if there are not so many."""
        if offset < 0 or length < 0 or offset + length > self.readable:
            raise ValueError(f"{length} bytes at {offset} of a chain with {self.readable} readable bytes")
        with memoryview(buffer) as target:
            if at < 0 or at + length > len(target):
                raise ValueError(f"{length} bytes into a buffer of {len(target)} at {at}")
            for piece in pieces(self.inputs, offset, length):
                target[at : at + len(piece)] = piece
                at += len(piece)

    def gather(self, offset: int, length: int) -> bytes:
        """`length` readable bytes from `offset`."""
        if offset < 0 or length < 0 or offset + length > self.readable:
            raise ValueError(f"{length} bytes at {offset} of a chain with {self.readable} readable bytes")
        if length == self.readable:
            return b"".join(self.inputs)
        return b"".join(pieces(self.inputs, offset, length))

    def write(self, offset: int, data: Buffer) -> None:
        """Copy `data` into the writable part at `offset`. ValueError if it does not fit."""
        with memoryview(data) as flat, flat.cast("B") as source:
            end = offset + len(source)
            if offset < 0 or end > self.writable:
                raise ValueError(f"{len(source)} bytes at {offset} of a chain with {self.writable} writable bytes")
            self.queue.begin_writing()
            try:
                self.touched = max(self.touched, end)
                at = 0
                for piece in pieces(self.outputs, offset, len(source)):
                    piece[:] = source[at : at + len(piece)]
                    at += len(piece)
            finally:
                self.queue.end_writing()

    def pread(self, fd: int, file_offset: int, skip: int, length: int) -> int:
        """Read `length` bytes of `fd` into the writable part behind its first `skip` bytes; how many came."""
        check_offset(file_offset)
        if skip < 0 or length < 0 or skip + length > self.writable:
            raise ValueError(f"{length} bytes at {skip} of a chain with {self.writable} writable bytes")
        self.queue.begin_writing()
        try:
            self.touched = max(self.touched, skip + length)
            return transfer(os.preadv, fd, pieces(self.outputs, skip, length), file_offset)
        finally:
            self.queue.end_writing()

    def pwrite(self, fd: int, file_offset: int, skip: int, length: int) -> int:
        """Write `length` readable bytes behind the first `skip` to `fd`; how many went."""
        check_offset(file_offset)
        if skip < 0 or length < 0 or skip + length > self.readable:
            raise ValueError(f"{length} bytes at {skip} of a chain with {self.readable} readable bytes")
        return transfer(os.pwritev, fd, pieces(self.inputs, skip, length), file_offset)

    def send(self, message: Any) -> bool:
        """Answer the request, through whoever serves its queue (`DeviceQueue.answer`). False: nobody waits for it."""
        return self.queue.answer(self, message)


def check_offset(offset: int) -> None:
    """EINVAL for an offset no file has; -1 would mean the file's position to preadv2, which os.preadv calls."""
    if not 0 <= offset < 1 << 63:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def pieces(segments: Sequence[memoryview], skip: int, length: int) -> list[memoryview]:
    """The parts of `segments` that hold `length` bytes behind the first `skip`."""
    found = []
    for segment in segments:
        if not length:
            break
        size = len(segment)
        if skip >= size:
            skip -= size
            continue
        if skip or size > length:
            segment = segment[skip : skip + length]
            size = len(segment)
            skip = 0
        found.append(segment)
        length -= size
    return found


def transfer(call: Any, fd: int, buffers: list[memoryview], offset: int) -> int:
    """preadv or pwritev over any number of buffers, until one comes back short."""
    done = 0
    for first in range(0, len(buffers), IOV_MAX):
        batch = buffers[first : first + IOV_MAX]
        try:
            count: int = call(fd, batch, offset + done)
        except OSError:
            if done:
                break
            raise
        done += count
        if count < sum(map(len, batch)):
            break
    return done

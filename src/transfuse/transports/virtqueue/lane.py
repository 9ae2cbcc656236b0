"""A device queue with its eventfds, and the loop that carries FUSE requests between it and a session.

Each worker of a lane runs `serve`: pop a chain, copy the request once into a buffer of our own, call the session, put
the answer where the driver wants it, tell the driver. A late answer comes by `Chain.send` from any thread and takes the
same way out. Everything a session can answer is sent here: bytes and lists of buffers are copied into the writable
segments; for a RangeReply file data goes from the file into the segments, for a RangeWrite from the segments into the
file.

A WRITE is handed over *detached*, if the session wants it so: the buffer holds its 80 bytes of header and write_in
only, and the payload stays in the driver's memory, for a RangeWrite or for `Chain.gather(80, n)`.

A request that gets no answer (FORGET, INTERRUPT, NOTIFY_REPLY) is given back with length 0. So is one that cannot be
answered: longer than `room`, shorter than a header. Linux makes EIO of that. An answer that does not fit the room
the driver left for it becomes EIO, too.

`serve` ends when the lane is halted, when its queue breaks, or when its worker is sent home. The kick eventfd is waited
for edge-triggered and never read: each kick wakes one worker, and there is no counter that another process could take
away between a poll and a read.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import struct
import threading
from collections.abc import Callable
from typing import Literal, Protocol

from transfuse.errors import QueueStopped, RemoteProtocolError, RingError
from transfuse.transports.base import Worker
from transfuse.transports.virtqueue.chain import Chain
from transfuse.transports.virtqueue.device import DeviceQueue, no_answer
from transfuse.wire.encode import Message, RangeReply, RangeWrite
from transfuse.wire.layout import Buffer

__all__ = ["Answer", "Ended", "Lane", "LaneDetachedHandler", "LaneHandler"]

log = logging.getLogger("transfuse.transports")

IN_HEADER = 40
OUT_HEADER = 16
WRITE_HEAD = 80
"""in_header and write_in."""
POLL_S = 0.001
"""How often the ring is looked at where the driver has no kick eventfd."""

_WRITE = frozenset(struct.pack(order, 16) for order in ("<I", ">I"))
_NO_REPLY = frozenset(struct.pack(order, number) for order in ("<I", ">I") for number in (2, 36, 41, 42))
"""FORGET, INTERRUPT, NOTIFY_REPLY, BATCH_FORGET as they stand in a header, in either byte order."""

Ended = Literal["halted", "broken", "home"]
Answer = Message | RangeWrite


class LaneHandler(Protocol):
    """ServerSession.handle; the chain is the channel of late replies."""

    def __call__(self, buffer: Buffer, start: int, end: int, chain: Chain, /) -> Message | None: ...


class LaneDetachedHandler(Protocol):
    """The same for a WRITE whose payload is behind the first 80 readable bytes of `chain` (`Chain.gather`)."""

    def __call__(
        self, buffer: Buffer, start: int, end: int, chain: Chain, payload_size: int, /
    ) -> Message | RangeWrite | None: ...


Undelivered = Callable[[Buffer, int, Answer], None]


class Lane:
    """A queue, its eventfds, and what its workers share.

    `room` is the largest request that is taken, without the payload of a detached WRITE. `complain` gets log lines that
    the driver can cause. `on_broken` is called once when the queue breaks, from a worker.

    The eventfds stay the caller's; one that is replaced may be closed when `set_kick` or `set_call` has returned. They
    should be non-blocking. `set_kick(None)`: the ring is looked at every millisecond.
    """

    def __init__(
        self,
        queue: DeviceQueue,
        room: int,
        *,
        kick: int | None = None,
        call: int | None = None,
        complain: Callable[..., None] = log.warning,
        on_broken: Callable[[RingError], None] | None = None,
    ) -> None:
        self.queue = queue
        self.room = max(room, WRITE_HEAD)
        self.halted = False
        self._complain = complain
        self._on_broken = on_broken
        self._lock = threading.Lock()
        self._call: int | None = None
        self._kick: int | None = None
        self._waiting = 0
        self._broken = False
        self._halt_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable while the lane is halted: wakes all."""
        self._nudge_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Each write wakes one worker, as a kick does."""
        self._poll = select.epoll()
        self._poll.register(self._halt_fd, select.EPOLLIN)
        self._poll.register(self._nudge_fd, select.EPOLLIN | select.EPOLLET)
        self.set_kick(kick)
        self.set_call(call)
        queue.answer = self.answer

    # -- the control thread's side ------------------------------------------------------------------------------------

    def set_kick(self, fd: int | None) -> None:
        """Wait for kicks on another eventfd."""
        with self._lock:
            if self._kick is not None:
                self._poll.unregister(self._kick)
            self._kick = fd
            if fd is not None:
                self._poll.register(fd, select.EPOLLIN | select.EPOLLET)
            self._signal(self._nudge_fd)

    def set_call(self, fd: int | None) -> None:
        """Tell the driver by another eventfd; at once, since what was told by the old one, or was to be told by a
        device that died, may be lost."""
        with self._lock:
            self._call = fd
            self._signal(fd)

    def halt(self) -> None:
        """Make every serve() return soon. Requests under way may still be answered."""
        with self._lock:
            self.halted = True
            self._signal(self._halt_fd)

    def resume(self) -> None:
        """Allow serve() again."""
        with self._lock:
            self.halted = False
            try:
                os.eventfd_read(self._halt_fd)
            except BlockingIOError:
                return  # it was not halted

    def stop(self, timeout_s: float | None = None) -> bool:
        """Halt, and give the driver its ring back (DeviceQueue.stop)."""
        self.halt()
        return self.queue.stop(timeout_s)

    def close(self) -> None:
        """Free the lane's own fds; only when no worker serves any more."""
        with self._lock:
            self._call = self._kick = None
            self.queue.answer = no_answer
            self._poll.close()
            os.close(self._halt_fd)
            os.close(self._nudge_fd)

    # -- workers ------------------------------------------------------------------------------------------------------

    def serve(
        self,
        handle: LaneHandler,
        handle_detached: LaneDetachedHandler | None,
        undelivered: Undelivered,
        worker: Worker,
    ) -> Ended:
        """Carry requests. Several workers may serve one lane. `handle_detached` None: WRITEs come whole as well."""
        queue = self.queue
        pop = queue.pop
        counters, step, park = worker.counters, worker.step_at, worker.park_at
        while True:
            if self.halted:
                return "halted"
            try:
                chain = pop()
            except RingError as error:
                self._broke(error)
                return "broken"
            if chain is None:
                self._wait()
                continue
            if self._waiting and queue.arm():
                # Others watch the ring while this one is in a handler; and there is more already.
                self._signal(self._nudge_fd)
            counters[step] += 1
            if counters[0]:
                worker.wake()
            self._carry(chain, handle, handle_detached, undelivered)
            # At once, not after a few more requests: the next handler may wait for long, and for something that only
            # a peer does who has this answer.
            self.notify()
            counters[step] += 1
            if counters[park] and not worker.park():
                return "home"

    def _carry(
        self,
        chain: Chain,
        handle: LaneHandler,
        handle_detached: LaneDetachedHandler | None,
        undelivered: Undelivered,
    ) -> None:
        """One request. What is decided by its header is decided by our copy of it."""
        size = chain.readable
        if size < IN_HEADER:
            self._drop(chain, f"request of {size} bytes is shorter than its header")
            return
        buffer = chain.gather(0, min(size, WRITE_HEAD))
        opcode = buffer[4:8]
        message: Answer | None
        try:
            # Extension records would lie behind the payload.
            if (
                handle_detached is not None
                and opcode in _WRITE
                and len(buffer) == WRITE_HEAD
                and buffer[36:38] == b"\0\0"
            ):
                message = handle_detached(buffer, 0, WRITE_HEAD, chain, size - WRITE_HEAD)
            elif size > self.room:
                self._drop(chain, f"request of {size} bytes, at most {self.room} are taken")
                return
            else:
                if size > WRITE_HEAD:
                    buffer += chain.gather(WRITE_HEAD, size - WRITE_HEAD)
                message = handle(buffer, 0, size, chain)
        except RemoteProtocolError as error:
            self._drop(chain, str(error))
            return
        if message is None:
            if opcode in _NO_REPLY or chain.writable < OUT_HEADER:
                self.queue.push(chain, 0)
        elif not self.put(chain, message):
            undelivered(buffer, 0, message)

    def _drop(self, chain: Chain, why: str) -> None:
        self._complain("request dropped: %s", why)
        self.queue.push(chain, 0)

    def answer(self, chain: Chain, message: Answer) -> bool:
        """A late reply."""
        if not self.put(chain, message):
            return False
        self.notify()
        return True

    def put(self, chain: Chain, message: Answer) -> bool:
        """Give `chain` back with `message` in it. False: nobody waits, or it did not fit and EIO went instead."""
        if chain.done:
            return False
        if type(message) is bytes and len(message) <= chain.writable:
            return self.queue.answer_with(chain, message)
        try:
            filled, whole = self._fill(chain, message)
            return self.queue.push(chain, filled) and whole
        except QueueStopped:
            return False

    def _fill(self, chain: Chain, message: Answer) -> tuple[int, bool]:
        """Write `message` to `chain`: how many bytes of it are filled then; False if an error took its place."""
        if isinstance(message, RangeReply):
            if OUT_HEADER + message.length > chain.writable:
                return self._too_long(chain, OUT_HEADER + message.length, message.error(errno.EIO))
            try:
                count = chain.pread(message.fd, message.offset, OUT_HEADER, message.length)
            except OSError as error:
                chain.write(0, message.error(error.errno or errno.EIO))
                return OUT_HEADER, True
            chain.write(0, message.header(count))
            return OUT_HEADER + count, True
        if isinstance(message, RangeWrite):
            if WRITE_HEAD + message.length > chain.readable:
                return self._too_long(chain, WRITE_HEAD + message.length, message.error(errno.EIO))
            try:
                reply = message.written(chain.pwrite(message.fd, message.offset, WRITE_HEAD, message.length))
            except OSError as error:
                reply = message.error(error.errno or errno.EIO)
            message = reply
        parts: list[Buffer] = [message] if isinstance(message, bytes) else message
        size = sum(map(len, parts))
        if size > chain.writable:
            return self._too_long(chain, size, error_of(parts))
        at = 0
        for part in parts:
            chain.write(at, part)
            at += len(part)
        return size, True

    def _too_long(self, chain: Chain, size: int, reply: bytes) -> tuple[int, bool]:
        self._complain(
            "%d bytes do not fit a request of %d readable and %d writable bytes", size, chain.readable, chain.writable
        )
        if chain.writable < OUT_HEADER:
            return 0, False
        chain.write(0, reply)
        return OUT_HEADER, False

    # -- eventfds -----------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Tell the driver of what was pushed."""
        if self.queue.should_notify():
            with self._lock:
                self._signal(self._call)

    def _wait(self) -> None:
        # Counted before the ring is armed: a worker that pops, which turns kicks off, must see who relies on them.
        with self._lock:
            self._waiting += 1
        try:
            if not self.queue.arm():
                self._poll.poll(-1 if self._kick is not None else POLL_S)
        finally:
            with self._lock:
                self._waiting -= 1

    def _broke(self, error: RingError) -> None:
        with self._lock:
            first, self._broken = not self._broken, True
            self.halted = True
            self._signal(self._halt_fd)
        if first and self._on_broken is not None:
            self._on_broken(error)

    @staticmethod
    def _signal(fd: int | None) -> None:
        if fd is None:
            return
        try:
            os.eventfd_write(fd, 1)
        except BlockingIOError:
            return  # a counter full of kicks wakes as well


def error_of(parts: list[Buffer]) -> bytes:
    """The out_header of a reply turned into that of EIO, in the byte order it has."""
    header = bytes(parts[0])[:OUT_HEADER]
    order = "<" if sum(map(len, parts)) == int.from_bytes(header[:4], "little") else ">"
    return struct.pack(order + "Ii", OUT_HEADER, -errno.EIO) + header[8:16]

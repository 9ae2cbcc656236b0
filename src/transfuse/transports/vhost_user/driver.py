"""A client's wire to a virtio-fs device: FUSE requests through virtqueues, many under way at a time.

`send` may be called from any thread: it takes a buffer in shared memory, copies the request there, puts it into a ring
with the room for its answer behind it, and kicks. Each thread keeps to one request queue. Forgets and interrupts go by
hiprio. One thread takes what is done out of all rings and hands it to the client.

Answers are checked as Linux checks them (fs/fuse/virtio_fs.c, virtio_fs_verify_response): at least a header, and as
long as the header says. A request whose answer is not so ends with EIO, and the wire lives on; a ring that breaks the
rules of virtqueues ends the connection. An answer is copied before it is looked at, since the device may still write.

When the connection breaks, and the back-end keeps a region of what is under way, the driver connects again for
`reconnect_s` seconds; callers notice nothing but the time it takes.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from transfuse.errors import LocalProtocolError, RemoteProtocolError, RingError
from transfuse.transports.vhost_user.buffers import BufferPool, Lent, memory_needed
from transfuse.transports.vhost_user.frontend import Frontend, Ring
from transfuse.transports.vhost_user.mapped import WindowView
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.wire.encode import encode_error
from transfuse.wire.layout import Buffer, ByteOrder
from transfuse.wire.opcodes import OPERATIONS, Opcode
from transfuse.wire.room import Room, room_for_reply

__all__ = ["VhostUserClientTransport"]

log = logging.getLogger("transfuse.vhost_user")

MAX_WRITE = 1 << 20
SEND_TIMEOUT_S = 60.0
"""How long a request waits for room before the server is taken for dead."""
RECONNECT_PAUSE_S = 0.05
CONTROL_CHECK_S = 0.5
"""How long the end may go unnoticed of a connection that ends without a sound; normally none does."""
OUT_HEADER = 16
HIPRIO = frozenset(int(opcode) for opcode, row in OPERATIONS.items() if not row.replies)
_DESTROY = int(Opcode.DESTROY)
_OUT: dict[ByteOrder, struct.Struct] = {"<": struct.Struct("<IiQ"), ">": struct.Struct(">IiQ")}


class _Under(NamedTuple):
    """A request under way: its buffer, what it is, and where the answer goes."""

    lent: Lent
    room: Room
    answer_at: int


class VhostUserClientTransport:
    """The client's end. `where` is a socket's path, or a connected MessageSocket; see Frontend for the rest.

    OSError when there is nobody; what the device is, and whether it can be used, turns out in `start`.
    """

    max_write = MAX_WRITE

    def __init__(
        self,
        where: str | bytes | os.PathLike[str] | MessageSocket,
        *,
        queues: int = 1,
        size: int = 256,
        packed: bool = False,
        reconnect_s: float = 0.0,
    ) -> None:
        self.frontend = Frontend(where, queues=queues, size=size, packed=packed, room=memory_needed())
        self.reconnect_s = reconnect_s
        self._pool: BufferPool
        self._room = threading.Condition()
        """Woken when entries of a ring become free."""
        self._closed = False
        self._ended = False
        self._local = threading.local()
        self._turn = 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._reader: threading.Thread | None = None
        self._on_message: Callable[[Buffer], None]
        self._on_closed: Callable[[BaseException | None], None]

    @property
    def window(self) -> WindowView | None:
        """The DAX window, if the device has one."""
        return self.frontend.window

    @property
    def tag(self) -> str:
        """The device's name, if it tells."""
        return self.frontend.tag

    # -- requests -----------------------------------------------------------------------------------------------------

    def start(self, on_message: Callable[[Buffer], None], on_closed: Callable[[BaseException | None], None]) -> None:
        """Set the device up and begin; both callbacks come from one thread of ours. OSError or RemoteProtocolError:
        the device can't be used."""
        self._on_message, self._on_closed = on_message, on_closed
        self.frontend.handshake()
        self._pool = BufferPool(self.frontend.room_at)
        self.frontend.begin()
        self._reader = threading.Thread(target=self._read, name="transfuse-virtio-reader", daemon=True)
        self._reader.start()

    def send(self, message: list[Buffer]) -> None:
        """Send one request. ConnectionError when the server is gone or answers nothing for SEND_TIMEOUT_S."""
        if self._ended or self._reader is None:
            raise ConnectionError(errno.ENOTCONN, "the server is gone")
        room = room_for_reply(message)
        length = sum(len(part) for part in message)
        start = -(-length // 8) * 8
        lent = self._pool.take(start + room.size, SEND_TIMEOUT_S)
        try:
            view = self.frontend.memory.at_guest(lent.at, start)
            at = 0
            for part in message:
                view[at : at + len(part)] = part if isinstance(part, bytes | bytearray) else memoryview(part).cast("B")
                at += len(part)
            under = _Under(lent, room, lent.at + start)
            self._add(self._ring(room.opcode), [(lent.at, length)], under)
        except BaseException:
            self._pool.give(lent)
            raise

    def _ring(self, opcode: int) -> Ring:
        rings = self.frontend.rings
        if opcode in HIPRIO:
            return rings[0]
        try:
            index: int = self._local.index
        except AttributeError:
            with self._room:
                self._turn += 1
                index = self._local.index = self._turn
        return rings[1 + index % (len(rings) - 1)]

    def _add(self, ring: Ring, readable: list[tuple[int, int]], under: _Under) -> None:
        writable = [(under.answer_at, under.room.size)] if under.room.size else []
        deadline = 0.0
        while True:
            with ring.lock:
                if self._ended:
                    raise ConnectionError(errno.ENOTCONN, "the server is gone")
                if ring.queue.add(readable, writable, under):
                    ring.queue.publish()
                    kick = ring.queue.needs_kick()
                    break
            with self._room:
                now = time.monotonic()
                deadline = deadline or now + SEND_TIMEOUT_S
                if now >= deadline:
                    raise ConnectionAbortedError(errno.ETIMEDOUT, "the server answers nothing")
                self._room.wait(0.01)  # the ring may have got room between the two looks
        if kick:
            _signal(ring.kick)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        why: BaseException | None = None
        try:
            while (lost := self._carry()) is not None:
                if self._closed or not self._come_back(lost):
                    why = None if self._closed else lost
                    break
        except Exception as error:
            log.exception("the driver's reader ends")
            why = error
        finally:
            self._end()
            self._on_closed(why)

    def _carry(self) -> Exception | None:
        """Hand over answers until the connection ends: why it did, None if it was closed here."""
        frontend = self.frontend
        with select.epoll() as poll:
            by_fd = {ring.call: ring for ring in frontend.rings}
            broken = {ring.err: ring for ring in frontend.rings}
            control = frontend.socket.dup_for_poll()
            try:
                poll.register(control, select.EPOLLRDHUP | select.EPOLLHUP)
                poll.register(self._wake, select.EPOLLIN)
                for fd in (*by_fd, *broken):
                    poll.register(fd, select.EPOLLIN)
                pending = list(frontend.rings)
                while not self._closed:
                    for ring in pending:
                        try:
                            self._take(ring)
                        except RingError as error:
                            return RemoteProtocolError(f"ring {ring.index}: {error}")
                    pending = []
                    for fd, _ in poll.poll(CONTROL_CHECK_S):
                        if fd == control:
                            return ConnectionResetError(errno.ECONNRESET, "the server hung up")
                        if fd in broken:
                            _drain(fd)
                            return RemoteProtocolError(f"the device says that ring {broken[fd].index} is broken")
                        if fd in by_fd:
                            _drain(fd)
                            pending.append(by_fd[fd])
                return None
            finally:
                os.close(control)

    def _take(self, ring: Ring) -> None:
        """All that is done in one ring."""
        while True:
            with ring.lock:
                used = ring.queue.take_used()
                if used is None:
                    if ring.queue.arm():
                        continue
                    return
            under, written = used
            message = self._answer(under, written)
            self._pool.give(under.lent)
            with self._room:
                self._room.notify_all()
            if message is None:
                continue
            try:
                self._on_message(message)
            except OSError as error:
                log.debug("answer to #%d: %s", under.room.unique, error)

    def _answer(self, under: _Under, written: int) -> bytes | None:
        """A copy of the answer, or EIO in place of one that is not as it must be."""
        room = under.room
        if not room.size:
            return None
        if written == 0 and room.opcode == _DESTROY:
            return _OUT[room.order].pack(OUT_HEADER, 0, room.unique)  # virtiofsd gives this one back empty
        if written >= OUT_HEADER:
            message = bytes(self.frontend.memory.at_guest(under.answer_at, written))
            length, _, unique = _OUT[room.order].unpack_from(message)
            if length == written and unique == room.unique:
                return message
            log.warning("answer to #%d: %d bytes used, header says %d of #%d", room.unique, written, length, unique)
        else:
            log.warning("answer to #%d: %d bytes used, no header", room.unique, written)
        return encode_error(room.order, room.unique, errno.EIO)

    # -- the end, and what comes after --------------------------------------------------------------------------------

    def _come_back(self, lost: Exception) -> bool:
        """Connect again, if that can be."""
        if not self.frontend.can_reconnect or not isinstance(lost, ConnectionError):
            return False
        deadline = time.monotonic() + self.reconnect_s
        while not self._closed and time.monotonic() < deadline:
            try:
                self.frontend.reconnect()
            except (ConnectionError, FileNotFoundError) as error:
                log.debug("not back yet: %s", error)
                time.sleep(RECONNECT_PAUSE_S)
            except (OSError, RemoteProtocolError, LocalProtocolError) as error:
                log.error("the server that came back is not the one that left: %s", error)
                return False
            else:
                log.info("connected again after: %s", lost)
                for ring in self.frontend.rings:
                    _signal(ring.kick)
                return True
        return False

    def _end(self) -> None:
        self._ended = True
        if self._reader is not None:
            self._pool.close()
        with self._room:
            self._room.notify_all()

    def close(self) -> None:
        """Take the rings back and end the connection. Idempotent."""
        if self._closed:
            return
        self._closed = True
        _signal(self._wake)
        reader = self._reader
        if reader is not None and reader is not threading.current_thread():
            reader.join(10)
        self._end()
        if reader is not None:
            try:
                self.frontend.stop()
            except (OSError, RemoteProtocolError) as error:
                log.debug("the rings were not given back: %s", error)
        for ring in self.frontend.rings:  # whoever is in send() leaves first
            with ring.lock:
                pass
        self.frontend.close()
        os.close(self._wake)


def _signal(fd: int) -> None:
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return  # a counter full of kicks wakes as well


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return  # somebody else read it

"""A connection that outlives the server: stands between a front-end that cannot connect anew and a server that may be
restarted or crash.

QEMU, up to 11.1 at least, gives up a virtio-fs device for good when its back-end goes away. A relay listens in the
server's place and passes every message on, with its fds; requests and data go by the rings and never through here. It
remembers what was said, and when the server is gone it waits for the next one and says it all again: features, memory,
rings, eventfds. Neither the front-end nor the guest notices more than a pause.

So that no request is lost or answered twice, the server is asked to keep its book of requests under way
(INFLIGHT_SHMFD) even if the front-end does not know of it. A server that cannot is not relayed over its death. For the
guest's nodes and open files to be known to the next server, see `state`.

One thread, one front-end at a time. What the front-end says is checked by the server; here only as much as is
remembered.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from transfuse.errors import ProtocolError, RemoteProtocolError
from transfuse.transports.listening import identity, listen
from transfuse.transports.vhost_user.messages import (
    FRONTEND_REQUESTS,
    NEED_REPLY,
    REPLY,
    U64,
    FrontendRequest,
    InflightArea,
    ProtocolFeature,
    VringState,
)
from transfuse.transports.vhost_user.socket import Fds, MessageSocket, Received, connect

__all__ = ["Relay"]

log = logging.getLogger("transfuse.vhost_user")

AGAIN_S = 0.1
"""How soon a server that is not there is looked for again."""
MAX_REGIONS = 512
"""Most memory regions that are remembered; a server takes 509."""
_F = FrontendRequest
_PER_RING = (_F.SET_VRING_NUM, _F.SET_VRING_BASE, _F.SET_VRING_ADDR, _F.SET_VRING_ERR, _F.SET_VRING_CALL,
             _F.SET_VRING_KICK, _F.SET_VRING_ENABLE)  # fmt: skip
"""What is said of a ring, in the order in which it is said again."""
_ONCE = (_F.SET_OWNER, _F.SET_BACKEND_REQ_FD, _F.SET_FEATURES, _F.SET_STATUS, _F.SET_INFLIGHT_FD, _F.SET_LOG_BASE,
         _F.SET_LOG_FD)  # fmt: skip
"""What is said of the device."""


class _Said:
    """A message that is to be said again, with its own fds."""

    def __init__(self, payload: bytes, fds: Sequence[int]) -> None:
        self.payload = payload
        self.fds = Fds([os.dup(fd) for fd in fds])


class _Memory:
    """What a server has to be told, when it is a new one."""

    def __init__(self) -> None:
        self.protocol = 0
        self.once: dict[int, _Said] = {}
        self.regions: dict[bytes, _Said] = {}
        """By their first 32 bytes of payload, which name a region."""
        self.table: _Said | None = None
        self.rings: dict[tuple[int, int], _Said] = {}
        self.started: set[int] = set()

    def note(self, request: int, payload: bytes, fds: Sequence[int]) -> None:
        """The server has done this."""
        if request in _ONCE:
            self.once[request] = _Said(payload, fds)
        elif request == _F.SET_PROTOCOL_FEATURES:
            self.protocol = U64.decode(payload).value
        elif request == _F.ADD_MEM_REG and len(self.regions) < MAX_REGIONS:
            self.regions[payload[8:32]] = _Said(payload, fds)
        elif request == _F.REM_MEM_REG:
            self.regions.pop(payload[8:32], None)
        elif request == _F.SET_MEM_TABLE:
            self.table = _Said(payload, fds)
            self.regions.clear()
        elif request in _PER_RING:
            index = self._index(request, payload)
            self.rings[index, request] = _Said(payload, fds)
            if request == _F.SET_VRING_KICK:
                self.started.add(index)
        elif request == _F.GET_VRING_BASE:
            index = VringState.decode(payload).index
            self.started.discard(index)
            self.rings.pop((index, _F.SET_VRING_KICK), None)
        elif request == _F.RESET_DEVICE:
            self.started.clear()
            kept = (_F.SET_VRING_CALL, _F.SET_VRING_ERR)
            self.rings = {key: said for key, said in self.rings.items() if key[1] in kept}
            for name in (_F.SET_FEATURES, _F.SET_STATUS, _F.SET_INFLIGHT_FD):
                self.once.pop(name, None)

    @staticmethod
    def _index(request: int, payload: bytes) -> int:
        if request in (_F.SET_VRING_KICK, _F.SET_VRING_CALL, _F.SET_VRING_ERR):
            return int(U64.decode(payload).value & 0xFF)
        return int(VringState.decode(payload).index)

    def agreed(self, feature: ProtocolFeature) -> bool:
        return bool(self.protocol & feature.bit)

    def ring_fd(self, index: int, request: FrontendRequest) -> int | None:
        said = self.rings.get((index, request))
        numbers = said.fds.numbers if said is not None else []
        return numbers[0] if numbers else None

    def again(self) -> Iterator[tuple[int, bytes, list[int]]]:
        """Everything, in an order that every server takes."""
        yield _F.SET_PROTOCOL_FEATURES, U64(value=self.protocol).encode(), []
        for request in _ONCE:
            said = self.once.get(request)
            if said is not None:
                yield request, said.payload, said.fds.numbers
        if self.table is not None:
            yield _F.SET_MEM_TABLE, self.table.payload, self.table.fds.numbers
        for said in self.regions.values():
            yield _F.ADD_MEM_REG, said.payload, said.fds.numbers
        for index in sorted({index for index, _ in self.rings}):
            for request in _PER_RING:
                said = self.rings.get((index, request))
                if said is not None:
                    yield request, said.payload, said.fds.numbers


class Relay:
    """Listens on `front` (a path, or a listening socket) and passes on to whoever listens on `back`; a context manager.

    OSError if `front` cannot be listened on.
    """

    def __init__(self, front: str | os.PathLike[str] | socket.socket, back: str | os.PathLike[str]) -> None:
        self._path: str | None = None
        if isinstance(front, socket.socket):
            self._listening = front
        else:
            self._path = os.path.abspath(front)
            self._listening = listen(self._path, socket.SOCK_STREAM)
            self._made = identity(self._path)
        self._back_path = os.path.abspath(back)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._closing = False
        self._front: MessageSocket | None = None
        self._back: MessageSocket | None = None
        self._offered = 0
        self._said = _Memory()
        self.revived = 0
        """How often a new server took over."""
        self._thread = threading.Thread(target=self._run, name="transfuse-relay", daemon=True)

    def start(self) -> Self:
        """Begin, on a thread of its own."""
        self._thread.start()
        return self

    def wait(self) -> None:
        """Until close()."""
        self._thread.join()

    def close(self) -> None:
        """End both connections. Idempotent."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join(10)
        self._listening.close()
        if self._path is not None and identity(self._path) == self._made:
            os.unlink(self._path)
        os.close(self._wake)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._listening.setblocking(False)
        while not self._closing:
            poll = select.poll()
            poll.register(self._listening, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            poll.poll()
            if self._closing:
                return
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                continue
            self._front = MessageSocket(sock)
            try:
                self._carry(self._front)
            except ProtocolError as error:
                log.error("the relayed connection ends: %s", str(error))
            except ConnectionError as error:
                log.info("the relayed connection ends: %s", str(error))
            except Exception:
                log.exception("the relayed connection ends")
            finally:
                for end in (self._front, self._back):
                    if end is not None:
                        end.close()
                self._front = self._back = None
                self._said = _Memory()

    def _carry(self, front: MessageSocket) -> None:
        self._back = self._find_server(front)
        while self._back is not None:
            self._wait_for(front, self._back)
            if self._closing:
                return
            if self._died(self._back):
                self._revive(front)
                continue
            if front.readable(0) == {-1}:
                message = front.receive()
                if message is None:
                    return
                try:
                    self._pass_on(front, message)
                finally:
                    message.fds.close()

    def _wait_for(self, front: MessageSocket, back: MessageSocket) -> None:
        """Until one of them has something to say, or is gone."""
        poll = select.poll()
        for fd in (front.fileno(), back.fileno(), self._wake):
            poll.register(fd, select.POLLIN)
        poll.poll()

    def _died(self, back: MessageSocket) -> bool:
        """The server is gone. It never speaks without being asked."""
        return back.readable(0) != set()

    def _find_server(self, front: MessageSocket) -> MessageSocket | None:
        """Connect to the server as soon as there is one; None when the front-end goes away or this is closed."""
        while not self._closing:
            try:
                return connect(self._back_path)
            except (FileNotFoundError, ConnectionRefusedError):
                ready = front.readable(AGAIN_S, self._wake) or set()
                if -1 in ready and front.gone():
                    return None
                if ready:
                    select.select([self._wake], [], [], AGAIN_S)
        return None

    # -- messages -----------------------------------------------------------------------------------------------------

    def _pass_on(self, front: MessageSocket, message: Received) -> None:
        """One request, and its answer if there is one; said again if the server dies over it."""
        fds = message.fds.numbers
        payload = message.payload
        if message.request == _F.SET_PROTOCOL_FEATURES and len(payload) == U64.SIZE:
            # Servers must keep the book for us, whether or not the front-end knows of it.
            asked = U64.decode(payload).value
            payload = U64(value=asked | self._offered & ProtocolFeature.INFLIGHT_SHMFD.bit).encode()
        if message.request == _F.SET_VRING_KICK and not self._said.started:
            self._new_book(front)
        answer = self._ask(front, message.request, payload, fds, message.flags)
        if answer is None:
            self._said.note(message.request, payload, fds)
            return
        try:
            row = FRONTEND_REQUESTS.get(message.request)
            succeeded = row is not None and row.reply is not None or answer.payload == U64(value=0).encode()
            if message.request == _F.GET_PROTOCOL_FEATURES and len(answer.payload) == U64.SIZE:
                self._offered = U64.decode(answer.payload).value
            elif message.request == _F.GET_INFLIGHT_FD:
                self._said.note(_F.SET_INFLIGHT_FD, answer.payload, answer.fds.numbers)
            elif succeeded:
                self._said.note(message.request, payload, fds)
            front.send(message.request, answer.payload, answer.fds.numbers, answer.flags & (REPLY | NEED_REPLY))
        finally:
            answer.fds.close()

    def _ask(
        self, front: MessageSocket, request: int, payload: bytes, fds: Sequence[int], flags: int
    ) -> Received | None:
        """Send a request to the server; its answer, or None if none is due."""
        row = FRONTEND_REQUESTS.get(request)
        due = row is not None and row.reply is not None
        due = due or bool(flags & NEED_REPLY and self._said.agreed(ProtocolFeature.REPLY_ACK))
        while True:
            if self._back is None:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the server does not come back")
            try:
                self._back.send(request, payload, fds, flags & NEED_REPLY)
                answer = self._back.receive() if due else None
            except (ConnectionError, RemoteProtocolError) as error:
                log.warning("the server died over request %d: %s", request, str(error))
                answer = None
            else:
                if answer is not None or not due:
                    return answer
            self._revive(front)

    def _new_book(self, front: MessageSocket) -> None:
        """All rings are at rest and the first one starts: no request is under way, so a new book begins."""
        said = self._said
        if not said.agreed(ProtocolFeature.INFLIGHT_SHMFD):
            return
        sizes = [
            VringState.decode(one.payload).num
            for (_, request), one in said.rings.items()
            if request == _F.SET_VRING_NUM
        ]
        count = 1 + max((index for index, _ in said.rings), default=0)
        area = InflightArea(num_queues=count, queue_size=max(sizes, default=0))
        answer = self._ask(front, _F.GET_INFLIGHT_FD, area.encode(), [], 0)
        if answer is not None:
            with contextlib.closing(answer.fds):
                said.note(_F.SET_INFLIGHT_FD, answer.payload, answer.fds.numbers)

    def _revive(self, front: MessageSocket) -> None:
        """The server is gone: find the next one and tell it everything."""
        said = self._said
        if self._back is not None:
            self._back.close()
        if said.started and _F.SET_INFLIGHT_FD not in said.once:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the server is gone, and no book of requests was kept")
        log.warning("the server is gone; waiting for the next one")
        while (back := self._find_server(front)) is not None:
            try:
                self._tell_all(back)
            except ConnectionError as error:
                log.warning("the next server went as well: %s", str(error))
                back.close()
                continue
            break
        self._back = back
        if back is None:
            return
        self.revived += 1
        for index in said.started:
            # What came while nobody listened, and what was answered without a word.
            for request in (_F.SET_VRING_KICK, _F.SET_VRING_CALL):
                fd = said.ring_fd(index, request)
                if fd is not None:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_write(fd, 1)
        log.warning("the next server has taken over")

    def _tell_all(self, back: MessageSocket) -> None:
        acknowledged = self._said.agreed(ProtocolFeature.REPLY_ACK)
        for request, payload, fds in self._said.again():
            row = FRONTEND_REQUESTS[request]
            wants = acknowledged and request != _F.SET_PROTOCOL_FEATURES and row.reply is None
            back.send(request, payload, fds, NEED_REPLY if wants else 0)
            if not wants and row.reply is None:
                continue
            answer = back.receive()
            if answer is None:
                raise ConnectionResetError(errno.ECONNRESET, f"gone over {row.request.name}")
            answer.fds.close()
            if wants and answer.payload != U64(value=0).encode():
                raise RemoteProtocolError(f"the next server refuses {row.request.name}")

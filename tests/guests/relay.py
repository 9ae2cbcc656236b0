"""A front-end that reconnects, for a guest whose QEMU does not: it stands between QEMU and the back-end.

Theory: QEMU (7.2 to 11.1) gives a vhost-user-fs device up when its back-end goes away, so a server's restart under a
live mount can't be tried with QEMU alone; cloud-hypervisor, and QEMU's own block device, do reconnect. This relay does
what those do. It hands every message on and keeps what the device's state consists of: features, memory, rings, fds.
When the back-end is gone it waits for the next one on the same socket, tells it all of that anew, and lets it go on
from the used index in guest memory with the inflight area of its predecessor. QEMU and the guest notice nothing but the
time it takes. Guest memory and eventfds don't pass through here, only messages do.

Split rings only. Source: QEMU, docs/interop/vhost-user, "Inflight I/O tracking" and the message list.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

HEADER = struct.Struct("=III")  # request, flags, size
VERSION, REPLY, NEED_REPLY = 1, 4, 8
MAX_FDS = 8
NO_FD = 1 << 8

GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
SET_MEM_TABLE = 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD = 21
GET_CONFIG = 24
GET_INFLIGHT_FD, SET_INFLIGHT_FD = 31, 32
RESET_DEVICE = 34
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, SET_STATUS, GET_STATUS = 36, 37, 38, 39, 40
SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE, GET_SHMEM_CONFIG = 42, 43, 44
ANSWERED = {
    GET_FEATURES, GET_VRING_BASE, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_CONFIG, GET_INFLIGHT_FD, GET_MAX_MEM_SLOTS,
    GET_STATUS, SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE, GET_SHMEM_CONFIG,
}  # fmt: skip
INFLIGHT_SHMFD, REPLY_ACK = 1 << 12, 1 << 3
REGION = struct.Struct("=QQQQ")  # guest address, size, user address, offset in the fd
INFLIGHT = struct.Struct("=QQHH4x")
CONNECT_LIMIT_S = 60.0


class Gone(Exception):
    """The other side closed the connection."""


@dataclass(slots=True)
class Message:
    """One message and the fds that came with it, which are the holder's to close."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        """Whether the front-end waits for an answer."""
        return self.request in ANSWERED or bool(self.flags & NEED_REPLY)


def receive(peer: socket.socket) -> Message:
    """The next message; Gone if there is none."""
    try:
        data, fds, _, _ = socket.recv_fds(peer, HEADER.size, MAX_FDS)
        while len(data) < HEADER.size:
            more = peer.recv(HEADER.size - len(data))
            if not more:
                raise Gone
            data += more
        request, flags, size = HEADER.unpack(data)
        payload = b""
        while len(payload) < size:
            more = peer.recv(size - len(payload))
            if not more:
                raise Gone
            payload += more
    except ConnectionError:
        raise Gone from None
    return Message(request, flags, payload, fds)


def send(peer: socket.socket, message: Message) -> None:
    """Send a message with its fds, which stay open here; Gone if nobody takes it."""
    data = HEADER.pack(message.request, message.flags, len(message.payload)) + message.payload
    try:
        if message.fds:
            sent = socket.send_fds(peer, [data], message.fds)
            data = data[sent:]
        if data:
            peer.sendall(data)
    except OSError:
        raise Gone from None


@dataclass(slots=True)
class Region:
    """A memory region and its fd."""

    guest: int
    size: int
    user: int
    offset: int
    fd: int

    def pack(self) -> bytes:
        """As the messages carry it."""
        return REGION.pack(self.guest, self.size, self.user, self.offset)


@dataclass(slots=True)
class Ring:
    """What was told about a ring: the last message of each kind, kick and call among them while it runs."""

    said: dict[int, Message] = field(default_factory=dict)


class State:
    """All that a new back-end has to be told."""

    def __init__(self) -> None:
        self.said: dict[int, Message] = {}
        self.rings: dict[int, Ring] = {}
        self.regions: dict[tuple[int, int], Region] = {}
        self.by_table = False
        self.inflight: Message | None = None

    def keep(self, message: Message) -> None:
        """Remember a message that changes the state. Its fds are then the state's; those of others are closed."""
        request = message.request
        if request in (SET_FEATURES, SET_PROTOCOL_FEATURES, SET_OWNER, SET_BACKEND_REQ_FD, SET_STATUS):
            self._replace(self.said, request, message)
        elif request == SET_MEM_TABLE:
            self._forget_regions()
            self.by_table = True
            (count,) = struct.unpack_from("=I", message.payload)
            for number in range(count):
                self._add(REGION.unpack_from(message.payload, 8 + number * REGION.size), message.fds[number])
        elif request == ADD_MEM_REG:
            self._add(REGION.unpack_from(message.payload, 8), message.fds[0])
        elif request == REM_MEM_REG:
            guest, size, _, _ = REGION.unpack_from(message.payload, 8)
            os.close(self.regions.pop((guest, size)).fd)
            _close(message.fds)
        elif request in (SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_ENABLE):
            (index,) = struct.unpack_from("=I", message.payload)
            self._replace(self._ring(index).said, request, message)
        elif request in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR):
            (value,) = struct.unpack_from("=Q", message.payload)
            self._replace(self._ring(value & 0xFF).said, request, message)
        elif request == GET_VRING_BASE:
            (index,) = struct.unpack_from("=I", message.payload)
            self._drop(self._ring(index).said, SET_VRING_KICK)  # the ring stops
        elif request == RESET_DEVICE:
            for ring in self.rings.values():
                for each in (SET_VRING_KICK, SET_VRING_ENABLE):
                    self._drop(ring.said, each)
            self._drop(self.said, SET_STATUS)
        else:
            _close(message.fds)

    def _ring(self, index: int) -> Ring:
        return self.rings.setdefault(index, Ring())

    def _add(self, fields: tuple[int, int, int, int], fd: int) -> None:
        self.regions[fields[0], fields[1]] = Region(*fields, fd)

    @staticmethod
    def _drop(where: dict[int, Message], request: int) -> None:
        old = where.pop(request, None)
        if old is not None:
            _close(old.fds)

    def _replace(self, where: dict[int, Message], request: int, message: Message) -> None:
        self._drop(where, request)
        where[request] = message

    def _forget_regions(self) -> None:
        for region in self.regions.values():
            os.close(region.fd)
        self.regions.clear()

    def used_index(self, ring: Ring) -> int:
        """The index up to which the last back-end gave requests back, read from guest memory."""
        _, _, _, used, _, _ = struct.unpack("=IIQQQQ", ring.said[SET_VRING_ADDR].payload)
        for region in self.regions.values():
            if region.user <= used < region.user + region.size:
                data = os.pread(region.fd, 2, region.offset + used - region.user + 2)
                return int.from_bytes(data, "little")
        raise ValueError(f"the used ring at {used:#x} is in no memory region")

    def close(self) -> None:
        """Close all fds kept."""
        for said in (self.said, *(ring.said for ring in self.rings.values())):
            for message in said.values():
                _close(message.fds)
        self._forget_regions()
        if self.inflight is not None:
            _close(self.inflight.fds)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()


class Relay:
    """Listens on `socket`, for QEMU, and connects to `back`, again and again. A context; its thread ends with it."""

    def __init__(self, back: Path, place: Path) -> None:
        self.back = back
        self.socket = place / "relay"
        self.connections = 0
        """How many back-ends were told the state so far."""
        self.error: BaseException | None = None
        self._state = State()
        self._stopping = False
        self._talking: socket.socket | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> Relay:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.socket))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            if self._talking is not None:
                self._talking.shutdown(socket.SHUT_RDWR)  # it may be waiting for a back-end's answer
        self._thread.join(30)
        self._listener.close()
        self._state.close()
        self.socket.unlink(missing_ok=True)

    def wait_for(self, connections: int, timeout_s: float = CONNECT_LIMIT_S) -> None:
        """Wait until that many back-ends were connected and told the state."""
        with self._changed:
            done = self._changed.wait_for(lambda: self.error or self.connections >= connections, timeout_s)
        if self.error is not None:
            raise AssertionError(f"the relay failed: {self.error!r}") from self.error
        if not done:
            raise AssertionError(f"{self.connections} back-ends connected in {timeout_s} s, not {connections}")

    # ---- the thread

    def _run(self) -> None:
        try:
            front = self._accept()
            if front is not None:
                with front:
                    self._serve(front)
        except BaseException as error:  # noqa: BLE001  shown by wait_for
            self.error = error
            with self._changed:
                self._changed.notify_all()

    def _accept(self) -> socket.socket | None:
        while not self._stopping:
            if select.select([self._listener], [], [], 0.2)[0]:
                return self._listener.accept()[0]
        return None

    def _serve(self, front: socket.socket) -> None:
        pending: Message | None = None
        while (back := self._connect()) is not None:
            self._talking = back
            with back, contextlib.suppress(Gone):
                self._tell(back)
                with self._changed:
                    self.connections += 1
                    self._changed.notify_all()
                if pending is not None and (answer := self._own_answer(pending)) is not None:
                    send(front, answer)
                    pending = None
                elif pending is not None:
                    send(back, pending)
                while not self._stopping:
                    ready = select.select([front, back], [], [], 0.2)[0]
                    if back in ready:
                        answer = receive(back)
                        try:
                            send(front, answer)
                        except Gone:
                            return
                        finally:
                            _close(answer.fds)
                        pending = None
                    elif front in ready:
                        try:
                            message = receive(front)
                        except Gone:
                            return
                        pending = message if message.answered else None
                        self._hand_on(back, message)

    def _hand_on(self, back: socket.socket, message: Message) -> None:
        if message.request == SET_VRING_KICK:
            self._ask_for_inflight(back)
        try:
            send(back, message)
        finally:
            # also when it didn't get through: the next back-end is told
            self._state.keep(message)

    def _own_answer(self, pending: Message) -> Message | None:
        """The answer to a request that the last back-end left unanswered, unless only a back-end can know it."""
        if pending.request == GET_VRING_BASE:
            (index,) = struct.unpack_from("=I", pending.payload)
            base = struct.pack("=II", index, self._state.used_index(self._state.rings[index]))
            return Message(GET_VRING_BASE, VERSION | REPLY, base)
        if pending.request in ANSWERED:
            return None
        return Message(pending.request, VERSION | REPLY, bytes(8))  # the new one was told all of it and agreed

    def _connect(self) -> socket.socket | None:
        while not self._stopping:
            back = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                back.connect(str(self.back))
                back.settimeout(CONNECT_LIMIT_S)
                return back
            except OSError:
                back.close()
                time.sleep(0.05)
        return None

    def _ask(self, back: socket.socket, request: int, payload: bytes = b"") -> Message:
        send(back, Message(request, VERSION, payload))
        return receive(back)

    def _agreed(self, bit: int) -> bool:
        said = self._state.said.get(SET_PROTOCOL_FEATURES)
        return said is not None and bool(struct.unpack("=Q", said.payload)[0] & bit)

    def _ask_for_inflight(self, back: socket.socket) -> None:
        """Once, before the first ring starts: an area that outlives the back-end."""
        state = self._state
        if state.inflight is not None or not self._agreed(INFLIGHT_SHMFD):
            return
        # QEMU names all rings early (their call fds), but tells their sizes one by one as it starts them
        told = [ring.said[SET_VRING_NUM] for ring in state.rings.values() if SET_VRING_NUM in ring.said]
        size = max(struct.unpack("=II", message.payload)[1] for message in told)
        answer = self._ask(back, GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, len(state.rings), size))
        state.inflight = Message(SET_INFLIGHT_FD, VERSION, answer.payload, answer.fds)
        send(back, state.inflight)

    def _tell(self, back: socket.socket) -> None:
        """Tell a new back-end all that the ones before it were told."""
        state = self._state
        if SET_OWNER not in state.said:
            return
        self._ask(back, GET_FEATURES)
        if SET_PROTOCOL_FEATURES in state.said:
            self._ask(back, GET_PROTOCOL_FEATURES)
        for request in (SET_PROTOCOL_FEATURES, SET_OWNER, SET_BACKEND_REQ_FD, SET_FEATURES, SET_STATUS):
            if request in state.said:
                self._repeat(back, state.said[request])
        self._tell_memory(back)
        if state.inflight is not None:
            self._repeat(back, state.inflight)
        for index, ring in sorted(state.rings.items()):
            for request in (SET_VRING_CALL, SET_VRING_ERR):
                if request in ring.said:
                    self._repeat(back, ring.said[request])
            if SET_VRING_KICK not in ring.said:
                continue
            self._repeat(back, ring.said[SET_VRING_NUM])
            base = struct.pack("=II", index, state.used_index(ring))
            self._repeat(back, Message(SET_VRING_BASE, VERSION, base))
            for request in (SET_VRING_ADDR, SET_VRING_KICK, SET_VRING_ENABLE):
                if request in ring.said:
                    self._repeat(back, ring.said[request])
        for ring in state.rings.values():
            # What was put into the ring or given back just before the end may not have been signalled any more.
            for request in (SET_VRING_KICK, SET_VRING_CALL):
                if SET_VRING_KICK in ring.said and request in ring.said:
                    for fd in ring.said[request].fds:
                        os.eventfd_write(fd, 1)

    def _tell_memory(self, back: socket.socket) -> None:
        regions = list(self._state.regions.values())
        if self._state.by_table:
            payload = struct.pack("=II", len(regions), 0) + b"".join(region.pack() for region in regions)
            fds = [region.fd for region in regions]
            self._repeat(back, Message(SET_MEM_TABLE, VERSION, payload, fds))
            return
        for region in regions:
            self._repeat(back, Message(ADD_MEM_REG, VERSION, bytes(8) + region.pack(), [region.fd]))

    def _repeat(self, back: socket.socket, message: Message) -> None:
        # before the features are agreed on there is no asking for replies
        need = NEED_REPLY if self._agreed(REPLY_ACK) and message.request != SET_PROTOCOL_FEATURES else 0
        send(back, Message(message.request, VERSION | need, message.payload, message.fds))
        if need:
            answer = receive(back)
            (refused,) = struct.unpack("=Q", answer.payload)
            if refused:
                raise ValueError(f"the new back-end refuses request {message.request}: {refused}")

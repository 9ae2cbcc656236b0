"""The front-end's side of the control protocol: it plays the virtual machine monitor, for a driver in this process.

Order of a connection, as QEMU has it: features and protocol features are agreed on (`handshake`), the configuration
space is read, the channel for the back-end's requests is handed over; then memory, the region for requests under way,
and the rings (`begin`). At the end each ring is taken back (`stop`), which the back-end answers when it is done with
it. After a lost connection the same object shakes hands again and begins with the same memory, rings and region: the
back-end answers what was under way, nothing is lost and nothing is answered twice.

The guest's memory is one memfd that cannot shrink: the rings, their indirect tables, and room for requests. Guest
addresses and user addresses differ, so that mixing them up shows.

The back-end is not trusted: a wrong answer ends the connection with RemoteProtocolError, one that takes too long with
ConnectionError.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from transfuse.errors import RemoteProtocolError
from transfuse.transports.vhost_user import config
from transfuse.transports.vhost_user.mapped import WindowView
from transfuse.transports.vhost_user.messages import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    NEED_REPLY,
    REPLY,
    U64,
    BackendRequest,
    Body,
    ConfigAccess,
    FrontendRequest,
    InflightArea,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    ShmemConfig,
    ShmemMapping,
    SingleRegion,
    VringAddress,
    VringState,
    decode_reply,
    decode_request,
)
from transfuse.transports.vhost_user.socket import Fds, MessageSocket, Received, connect
from transfuse.transports.virtqueue import DriverQueue, GuestMemory, PackedDriver, Region, SplitDriver
from transfuse.transports.virtqueue.layout import (
    DESC_SIZE,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
    area_sizes,
)

__all__ = ["Frontend", "Ring"]

log = logging.getLogger("transfuse.vhost_user")

GUEST_BASE = 1 << 32
"""Guest address of the memory."""
USER_BASE = 0x5500_0000_0000
"""What the back-end is told of where it is mapped here; only a name."""
PAGE = 4096
TABLE_ENTRIES = 8
"""Of each indirect table; a request here is two or three segments."""
ANSWER_TIMEOUT_S = 20.0
"""How long the back-end may take to answer a control message."""
STOP_TIMEOUT_S = 5.0
"""The same when the connection is to end anyway."""
MAX_WINDOW = 1 << 40
"""Largest window that is believed."""
PACKED_START = 0x8000_8000
"""Base of a new packed ring: both indices 0, both wrap counters 1."""

WANTED = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | config.F_PROTOCOL_FEATURES
WANTED_PROTOCOL = sum(
    feature.bit
    for feature in (
        ProtocolFeature.MQ,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.BACKEND_SEND_FD,
        ProtocolFeature.CONFIG,
        ProtocolFeature.INFLIGHT_SHMFD,
        ProtocolFeature.RESET_DEVICE,
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature.SHMEM,
    )
)


class Ring:
    """One virtqueue with its eventfds. `lock` is held around every use of `queue`."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.lock = threading.Lock()
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.queue: DriverQueue
        self.areas: tuple[int, int, int] = (0, 0, 0)
        """Guest addresses of the descriptor, driver and device areas."""

    def close(self) -> None:
        """Close the eventfds."""
        for fd in (self.kick, self.call, self.err):
            os.close(fd)


class Frontend:
    """The control side of one device. `queues`: most request queues that are used; `room`: bytes of memory beside the
    rings, at `room_at`. `packed` asks for packed rings, which must be there then."""

    def __init__(
        self,
        where: str | bytes | os.PathLike[str] | MessageSocket,
        *,
        queues: int = 1,
        size: int = 256,
        packed: bool = False,
        room: int = 0,
    ) -> None:
        if queues < 1:
            raise ValueError(f"queues={queues}: at least one is needed")
        self._where = where
        self.socket = where if isinstance(where, MessageSocket) else connect(where)
        self.size = size
        self.packed = packed
        self.queues = queues
        self.room = room
        self.features = 0
        self.protocol_features = 0
        self.tag = ""
        """The device's name, if it tells."""
        self.window: WindowView | None = None
        """The DAX window, if there is one."""
        self.rings: list[Ring] = []
        self.room_at = 0
        self.memory = GuestMemory()
        self._memory_fd = -1
        self._memory_size = 0
        self._inflight: tuple[InflightArea, int] | None = None
        self._upcalls: MessageSocket | None = None

    # -- messages -----------------------------------------------------------------------------------------------------

    def _has(self, feature: ProtocolFeature) -> bool:
        return bool(self.protocol_features & feature.bit)

    def _ask(self, request: FrontendRequest, body: Body | None = None, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """The answer to a request that always has one."""
        answer, fds = self._ask_with_fds(request, body, timeout_s)
        fds.close()
        return answer

    def _ask_with_fds(
        self, request: FrontendRequest, body: Body | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> tuple[Any, Fds]:
        self.socket.send(request, body.encode() if body is not None else b"")
        message = self._answer(request, timeout_s)
        answer = decode_reply(FRONTEND_REQUESTS[request], message.payload)
        return (answer.value if isinstance(answer, U64) else answer), message.fds

    def _tell(self, request: FrontendRequest, body: Body | None = None, fds: Sequence[int] = ()) -> None:
        """A request without an answer; whether it was done is asked for where that can be."""
        acknowledged = self._has(ProtocolFeature.REPLY_ACK)
        self.socket.send(request, body.encode() if body is not None else b"", fds, NEED_REPLY if acknowledged else 0)
        if acknowledged:
            message = self._answer(request, ANSWER_TIMEOUT_S)
            message.fds.close()
            if decode_reply(FRONTEND_REQUESTS[request], message.payload).value:
                raise RemoteProtocolError(f"the back-end refused {request.name}")

    def _answer(self, request: FrontendRequest, timeout_s: float) -> Received:
        if not self.socket.readable(timeout_s):
            raise ConnectionError(f"the back-end does not answer {request.name}")
        message = self.socket.receive()
        if message is None:
            raise ConnectionResetError(f"the back-end hung up on {request.name}")
        if message.request != request or not message.flags & REPLY:
            raise RemoteProtocolError(f"{request.name} was answered by message {message.request}")
        return message

    # -- the order of things ------------------------------------------------------------------------------------------

    def handshake(self) -> None:
        """Agree on features, learn the configuration. After a reconnect the outcome must be the same."""
        offered = self._ask(FrontendRequest.GET_FEATURES)
        wanted = WANTED | (F_RING_PACKED if self.packed else 0)
        features = offered & wanted
        for feature, name in ((F_VERSION_1, "VIRTIO_F_VERSION_1"), (config.F_PROTOCOL_FEATURES, "protocol features")):
            if not features & feature:
                raise RemoteProtocolError(f"the back-end does not offer {name}")
        if self.packed and not features & F_RING_PACKED:
            raise RemoteProtocolError("the back-end does not offer packed rings")
        protocol = self._ask(FrontendRequest.GET_PROTOCOL_FEATURES) & WANTED_PROTOCOL
        channel = ProtocolFeature.BACKEND_REQ.bit | ProtocolFeature.BACKEND_SEND_FD.bit
        if protocol & channel != channel:
            protocol &= ~ProtocolFeature.SHMEM.bit
        if self.rings and (features, protocol) != (self.features, self.protocol_features):
            raise RemoteProtocolError("the back-end offers other features than before")
        self.features, self.protocol_features = features, protocol
        self.socket.send(FrontendRequest.SET_PROTOCOL_FEATURES, U64(value=protocol).encode())
        total = self._ask(FrontendRequest.GET_QUEUE_NUM) if self._has(ProtocolFeature.MQ) else 2
        if self._has(ProtocolFeature.BACKEND_REQ):
            self._give_channel()
        self._tell(FrontendRequest.SET_OWNER)
        requests = max(1, min(self.queues, total - 1))
        if self._has(ProtocolFeature.CONFIG):
            requests = min(requests, self._read_config())
        if self._has(ProtocolFeature.SHMEM):
            self._read_window()
        if not self.rings:
            self._allocate(requests)
        elif requests < len(self.rings) - 1:
            raise RemoteProtocolError(f"the back-end has {requests} request queues, {len(self.rings) - 1} are in use")

    def _read_config(self) -> int:
        """Tag and number of request queues."""
        size = config.VirtioFsConfig.SIZE - 4  # as Linux and QEMU have it: the last field needs a feature
        answer = self._ask(FrontendRequest.GET_CONFIG, ConfigAccess(0, bytes(size)))
        if len(answer.data) != size:
            raise RemoteProtocolError(f"GET_CONFIG answered {len(answer.data)} bytes, {size} were asked for")
        found = config.VirtioFsConfig.decode(answer.data + bytes(4))
        self.tag = found.tag.rstrip(b"\0").decode(errors="replace")
        if not found.num_request_queues:
            raise RemoteProtocolError("the device has no request queues")
        return int(found.num_request_queues)

    def _read_window(self) -> None:
        answer: ShmemConfig = self._ask(FrontendRequest.GET_SHMEM_CONFIG)
        size = answer.sizes[0]
        if size % PAGE or size > MAX_WINDOW:
            raise RemoteProtocolError(f"a window of {size} bytes")
        if self.window is None and size:
            self.window = WindowView(size)
        elif self.window is not None:
            self.window.clear()
            if self.window.size != size:
                raise RemoteProtocolError("the window has another size than before")

    def _allocate(self, requests: int) -> None:
        """Memory, rings and eventfds."""
        self.rings = [Ring(index) for index in range(requests + 1)]
        sizes = area_sizes(self.size, self.packed)
        tables = self.size * TABLE_ENTRIES * DESC_SIZE
        places: list[list[int]] = []
        at = 0
        for _ in self.rings:
            areas = []
            for size in (*sizes, tables):
                areas.append(GUEST_BASE + at)
                at = -(-(at + size) // 64) * 64
            places.append(areas)
        at = -(-at // PAGE) * PAGE
        self.room_at = GUEST_BASE + at
        self._memory_size = -(-(at + self.room) // PAGE) * PAGE
        self._memory_fd = os.memfd_create("transfuse-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory_fd, self._memory_size)
        fcntl.fcntl(self._memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.memory = GuestMemory([Region(GUEST_BASE, USER_BASE, self._memory_size, self._memory_fd)])
        kind = PackedDriver if self.packed else SplitDriver
        for ring, (desc, driver, device, table) in zip(self.rings, places, strict=True):
            ring.areas = (desc, driver, device)
            ring.queue = kind(
                self.memory,
                self.size,
                desc,
                driver,
                device,
                self.features,
                tables=table,
                table_entries=TABLE_ENTRIES,
                guest_physical=True,
            )

    def begin(self) -> None:
        """Give memory and rings to the back-end, which begins to serve them at once."""
        self.socket.send(FrontendRequest.SET_FEATURES, U64(value=self.features).encode())
        region = MemoryRegion(
            guest_address=GUEST_BASE, size=self._memory_size, user_address=USER_BASE, mmap_offset=0
        )
        if self._has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self._tell(FrontendRequest.ADD_MEM_REG, SingleRegion(region=region), [self._memory_fd])
        else:
            self._tell(FrontendRequest.SET_MEM_TABLE, MemoryTable((region,)), [self._memory_fd])
        again = self._inflight is not None
        if self._has(ProtocolFeature.INFLIGHT_SHMFD):
            self._share_inflight()
        for ring in self.rings:
            self._start(ring, again)

    def _share_inflight(self) -> None:
        """Have the region for requests under way made, or give back the one there is."""
        if self._inflight is None:
            wanted = InflightArea(num_queues=len(self.rings), queue_size=self.size)
            area, fds = self._ask_with_fds(FrontendRequest.GET_INFLIGHT_FD, wanted)
            if not area.mmap_size or not len(fds):
                fds.close()
                self.protocol_features &= ~ProtocolFeature.INFLIGHT_SHMFD.bit
                return
            self._inflight = (area, fds.take())
            fds.close()
        area, fd = self._inflight
        self._tell(FrontendRequest.SET_INFLIGHT_FD, area, [fd])

    def _start(self, ring: Ring, again: bool) -> None:
        index = ring.index
        base = PACKED_START if self.packed else 0
        if again and not self.packed:
            # The index of what was used last. A back-end with the region goes by that, and by its own index there.
            base = int.from_bytes(self.memory.at_guest(ring.areas[2] + 2, 2), "little")
        desc, driver, device = (at - GUEST_BASE + USER_BASE for at in ring.areas)
        self._tell(FrontendRequest.SET_VRING_NUM, VringState(index=index, num=self.size))
        self._tell(FrontendRequest.SET_VRING_BASE, VringState(index=index, num=base))
        self._tell(
            FrontendRequest.SET_VRING_ADDR,
            VringAddress(index=index, descriptor=desc, available=driver, used=device),
        )
        self._tell(FrontendRequest.SET_VRING_CALL, U64(value=index), [ring.call])
        self._tell(FrontendRequest.SET_VRING_ERR, U64(value=index), [ring.err])
        self._tell(FrontendRequest.SET_VRING_KICK, U64(value=index), [ring.kick])
        self._tell(FrontendRequest.SET_VRING_ENABLE, VringState(index=index, num=1))

    @property
    def can_reconnect(self) -> bool:
        """Would a back-end that comes back know what was under way?"""
        return self._inflight is not None and not isinstance(self._where, MessageSocket)

    def reconnect(self) -> None:
        """Once more, with the same memory and rings. ConnectionError or OSError: not yet."""
        assert not isinstance(self._where, MessageSocket)
        self.socket.close()
        self._end_channel()
        self.socket = connect(self._where)
        self.handshake()
        self.begin()

    def stop(self) -> None:
        """Take the rings back: the back-end has answered what it had when this returns."""
        for ring in self.rings:
            self._ask(FrontendRequest.GET_VRING_BASE, VringState(index=ring.index), STOP_TIMEOUT_S)

    def close(self) -> None:
        """End the connection and free everything. Idempotent; the rings must not be in use any more."""
        self.socket.close()
        self._end_channel()
        rings, self.rings = self.rings, []
        for ring in rings:
            with contextlib.suppress(AttributeError):
                del ring.queue
            ring.close()
        self.memory = GuestMemory()
        if self.window is not None:
            self.window.clear()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1
        if self._inflight is not None:
            os.close(self._inflight[1])
            self._inflight = None

    # -- what the back-end asks for -----------------------------------------------------------------------------------

    def _give_channel(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._upcalls = MessageSocket(ours)
            self._tell(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        threading.Thread(
            target=self._serve_channel, args=(self._upcalls,), name="transfuse-vhost-upcalls", daemon=True
        ).start()

    def _end_channel(self) -> None:
        if self._upcalls is not None:
            self._upcalls.close()
            self._upcalls = None

    def _serve_channel(self, channel: MessageSocket) -> None:
        try:
            while (message := channel.receive()) is not None:
                failed = self._upcall(message)
                if message.need_reply and self._has(ProtocolFeature.REPLY_ACK):
                    channel.send(message.request, U64(value=failed).encode(), flags=REPLY)
        except (RemoteProtocolError, OSError) as error:
            log.error("the channel of the back-end's requests ends: %s", error)
        finally:
            channel.close()

    def _upcall(self, message: Received) -> int:
        """0: done; 1: failed."""
        with contextlib.closing(message.fds) as fds:
            row = BACKEND_REQUESTS.get(message.request)
            if row is None or (row.feature is not None and not self._has(row.feature)):
                log.warning("the back-end asks for %d, which was not agreed on", message.request)
                return 1
            body = decode_request(row, message.payload, len(fds))
            act = {
                BackendRequest.CONFIG_CHANGE_MSG: lambda: None,  # the tag of a mounted filesystem changes nothing
                BackendRequest.SHMEM_MAP: lambda: self._map(body, fds),
                BackendRequest.SHMEM_UNMAP: lambda: self._unmap(body),
            }
            step: Callable[[], None] = act[BackendRequest(message.request)]
            try:
                step()
            except (OSError, ValueError) as error:
                log.warning("%s failed: %s", row.request.name, error)
                return 1
        return 0

    def _view(self, mapping: ShmemMapping) -> WindowView:
        if mapping.shmid or self.window is None:
            raise ValueError(f"shared memory region {mapping.shmid} is not there")
        return self.window

    def _map(self, mapping: ShmemMapping, fds: Fds) -> None:
        fd = fds.take()
        try:
            self._view(mapping).map(
                mapping.shm_offset, mapping.length, fd, mapping.fd_offset, bool(mapping.flags)
            )
        finally:
            os.close(fd)

    def _unmap(self, mapping: ShmemMapping) -> None:
        self._view(mapping).unmap(mapping.shm_offset, mapping.length)

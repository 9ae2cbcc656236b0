"""The server's end of virtio-fs: a vhost-user back-end, which a virtual machine's device is backed by.

One thread listens and reads the messages of one front-end at a time; each ring has threads of its own (`crew`). When a
front-end goes away the next one is waited for, unless `once`: the session stays as it is, because a guest may go on
after its machine's process has connected anew. Whoever starts over sends a new INIT.

With `state_path` the session also outlives this process (see `state`). The order of a start: the state of the last
server is read and the session resumed, then the first connection is accepted. The order of the end: rings are stopped,
the session's state is written, and the session ended by whoever closes this.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from transfuse.errors import ProtocolError
from transfuse.quiet import QuietLog
from transfuse.transports.base import Channel, Handler, Undelivered
from transfuse.transports.listening import identity, listen
from transfuse.transports.vhost_user.config import (
    MAX_QUEUES,
    check_tag,
    config_space,
    protocol_features,
    virtio_features,
)
from transfuse.transports.vhost_user.device import Device, Identity
from transfuse.transports.vhost_user.engine import QueueEngine, ServedSession
from transfuse.transports.vhost_user.messages import REPLY
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.transports.vhost_user.state import StateFile
from transfuse.transports.vhost_user.transfer import StateTransfer
from transfuse.transports.virtqueue import DirtyLog
from transfuse.wire.layout import Buffer

__all__ = ["VhostUserTransport"]

log = logging.getLogger("transfuse.vhost_user")

MAX_WRITE = 1 << 20
"""Largest payload of a request: what Linux sends at most unless told otherwise."""
DEFAULT_WORKERS = 16
"""Most threads for each ring."""
ACCEPT_AGAIN_S = 0.1
"""How soon accept() is tried again after it failed."""
JOIN_TIMEOUT_S = 60.0
"""How long close() waits for the control thread, which may be stopping rings."""
WINDOW_PAGE = 1 << 21
"""The DAX window is a multiple of this: what Linux maps at a time."""


class KeptSession(ServedSession, Protocol):
    """What is needed of a session besides serving requests."""

    on_started: Callable[[], None] | None
    on_ended: Callable[[], None] | None

    @property
    def keeps_state(self) -> bool: ...

    def renumber(self, epoch: int) -> None: ...

    def export_state(self, portable: bool, with_filesystem: bool = True) -> Iterable[bytes]: ...

    def import_state(self, pieces: Iterable[bytes]) -> bool: ...


class VhostUserTransport:
    """A virtio-fs device for one virtual machine.

    `where`: the path of a socket file to make and listen on (mode `mode`), or a socket, listening or connected, which
    is ours from now on. `tag`: the device's name, for front-ends that have none of their own. `queues`: request queues
    offered. `window`: size of the DAX window in bytes, a multiple of 2 MiB; 0: none. `workers`: most threads for each
    queue. `once`: end when the first front-end is gone. `state_path`: see the module. `in_order`: see config.
    `remote_locks`: locks of all guests and of the host see each other; a Linux guest's process that waits for one can't
    be killed then, so by default each guest minds its own.

    ValueError for what cannot be; OSError if the socket or the state file cannot be had.
    """

    max_write = MAX_WRITE
    can_pass_through = False
    can_notify = False
    checks_permissions = True
    """The peer's kernel checks mode bits: virtio-fs mounts are like that."""

    def __init__(
        self,
        where: str | os.PathLike[str] | socket.socket,
        *,
        tag: str = "",
        queues: int = 1,
        window: int = 0,
        workers: int = DEFAULT_WORKERS,
        once: bool = False,
        state_path: str | os.PathLike[str] | None = None,
        mode: int = 0o600,
        in_order: bool = False,
        remote_locks: bool = False,
    ) -> None:
        if not 1 <= queues <= MAX_QUEUES:
            raise ValueError(f"{queues} request queues, 1 to {MAX_QUEUES} belong")
        if window < 0 or window % WINDOW_PAGE:
            raise ValueError(f"a DAX window of {window} bytes is no multiple of {WINDOW_PAGE}")
        raw_tag = check_tag(tag) if tag else b""
        self.window = window
        self.once = once
        rings = queues + 1
        self._dax = window
        self._in_order = in_order
        self.remote_locks = remote_locks and not in_order  # one that waits would hold up all behind it
        self._config = config_space(raw_tag, queues)
        self._tag = bool(tag)
        self._rings = rings
        self._complaints = QuietLog(log, "complaints about the guest", time.monotonic)
        self._engine = QueueEngine(rings, window, self.max_write, workers, self._complaints.warning)
        self._session: KeptSession | None = None
        self._gone: Callable[[], None] | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._talking: MessageSocket | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._state: StateFile | None = None
        self._keeping = False
        """The state file is ours to write: it was read."""
        self._path: str | None = None
        self._listening: socket.socket | None = None
        self._connected: socket.socket | None = None
        try:
            if state_path is not None:
                self._state = StateFile(state_path)
            self._open(where, mode)
        except BaseException:
            self._free()
            raise

    @classmethod
    def from_fd(cls, fd: int, **options: Any) -> VhostUserTransport:
        """Over an inherited socket, listening or connected."""
        return cls(socket.socket(fileno=fd), **options)

    def _open(self, where: str | os.PathLike[str] | socket.socket, mode: int) -> None:
        if not isinstance(where, socket.socket):
            self._path = os.path.abspath(where)
            self._listening = listen(self._path, socket.SOCK_STREAM, mode)
            self._made = identity(self._path)
            return
        if where.family != socket.AF_UNIX or where.type != socket.SOCK_STREAM:
            raise ValueError(f"{where!r} is no Unix socket of type SOCK_STREAM")
        if where.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._listening = where
        else:
            self._connected = where
            self.once = True

    # -- what a Server wants of a transport ---------------------------------------------------------------------------

    def open_channel(self) -> Channel | None:
        """None: rings have threads of their own."""
        return None

    def bind(self, handle: Handler, undelivered: Undelivered) -> None:
        """Superseded by attach()."""

    def attach(
        self,
        session: KeptSession,
        handle: Handler,
        undelivered: Undelivered,
        connected: Callable[[], None],
        gone: Callable[[], None],
        *,
        detached: bool = True,
    ) -> None:
        """See transports.base.SelfServing; returns at once.

        OSError if the state file cannot be read, TypeError if the filesystem keeps no state and has to.
        """
        self._session = session
        self._gone = gone
        session.on_started = connected
        session.on_ended = self._engine.window.clear
        engine = self._engine
        engine.session, engine.handle, engine.undelivered, engine.detached = session, handle, undelivered, detached
        if session.keeps_state:
            engine.transfer = StateTransfer(lambda: session.export_state(True), session.import_state)
        if self._state is not None:
            self._resume(session, self._state)
        # Without an atomic "or" bits would be lost that other devices set in the same log.
        logs = DirtyLog.ATOMIC
        moves = session.keeps_state and logs
        identity = Identity(
            virtio_features(log=logs, in_order=self._in_order),
            protocol_features(tag=self._tag, log=logs, window=self._dax > 0, device_state=moves),
            self._rings,
            self._config,
            self._dax,
        )
        self._thread = threading.Thread(target=self._run, args=(identity,), name="transfuse-vhost-user", daemon=True)
        self._thread.start()

    def _resume(self, session: KeptSession, state: StateFile) -> None:
        if not session.keeps_state:
            raise TypeError("this filesystem keeps no state: a guest could not go on with another server of it")
        left = state.begin()
        session.renumber(state.epoch)
        if left is not None:
            try:
                with contextlib.closing(left):
                    goes_on = session.import_state(left)
            except ValueError as error:
                log.error("the last server's guest cannot go on: %s", str(error))
            else:
                if goes_on:
                    log.info("the last server's guest may go on")
                    self._engine.window.inherited = True
                    if session.on_started is not None:
                        session.on_started()
        connected = session.on_started

        def started() -> None:
            self._save(session, state, False)
            if connected is not None:
                connected()

        session.on_started = started

        def ended() -> None:
            self._engine.window.clear()
            self._save(session, state, False)

        session.on_ended = ended
        self._keeping = True
        self._save(session, state, False)

    @staticmethod
    def _save(session: KeptSession, state: StateFile, whole: bool) -> None:
        """`whole`: with what the guest holds; nothing is served any more."""
        try:
            state.write(session.export_state(False, whole))
        except OSError as error:
            log.error("the state could not be written: %s", error)

    def register_backing(self, fd: int) -> int:
        """No kernel of ours at the other end."""
        raise OSError(errno.EPERM, "virtio-fs takes no backing files")

    def unregister_backing(self, backing_id: int) -> None:
        """No kernel of ours at the other end."""

    def notify(self, message: list[Buffer]) -> None:
        """There is no notification queue."""
        raise OSError(errno.ENOSYS, "virtio-fs has no notifications")

    def groups_of(self, pid: int) -> tuple[int, ...]:
        """Unknown: a pid is the guest's."""
        return ()

    def may_wait(self, channel: Any) -> bool:
        """See QueueEngine.may_wait."""
        return self._engine.may_wait(channel)

    # -- the DAX window -----------------------------------------------------------------------------------------------

    def window_needs_writable(self) -> bool:
        """See Window.needs_writable."""
        return self._engine.window.needs_writable()

    def window_map(self, fd: int, offset: int, length: int, at: int, writable: bool, owner: object) -> None:
        """See Window.map."""
        self._engine.window.map(fd, offset, length, at, writable, owner)

    def window_unmap(self, at: int, length: int) -> None:
        """See Window.unmap."""
        self._engine.window.unmap(at, length)

    def window_suits(self, size: int) -> bool:
        """See Window.suits."""
        return self._engine.window.suits(size)

    # -- the control thread -------------------------------------------------------------------------------------------

    def _run(self, identity: Identity) -> None:
        try:
            while (sock := self._accept()) is not None:
                self._talk(MessageSocket(sock), identity)
                if self.once:
                    break
        except Exception:
            log.exception("the vhost-user device failed")
        if not self._closing and self._gone is not None:
            self._keep()
            self._gone()

    def _accept(self) -> socket.socket | None:
        if self._connected is not None:
            sock, self._connected = self._connected, None
            return sock
        listening = self._listening
        if listening is None:
            return None
        listening.setblocking(False)
        poll = select.poll()
        poll.register(listening, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._closing:
            poll.poll()
            if self._closing:
                break
            try:
                return listening.accept()[0]
            except BlockingIOError:
                continue
            except OSError as error:
                self._complaints.error("accept: %s", error)
                time.sleep(ACCEPT_AGAIN_S)
        return None

    def _talk(self, sock: MessageSocket, identity: Identity) -> None:
        """One front-end, until it is gone."""
        with self._lock:
            if self._closing:
                sock.close()
                return
            self._talking = sock
        log.info("a front-end has connected")
        engine = self._engine
        device = Device(identity, engine, self._complaints.warning)
        engine.connected(device)
        try:
            while (message := sock.receive()) is not None:
                answer = device.handle(message)
                if answer is not None:
                    fds = [answer.fds.take() for _ in range(len(answer.fds))]
                    try:
                        sock.send(message.request, answer.payload, fds, REPLY)
                    finally:
                        for fd in fds:
                            os.close(fd)
        except ProtocolError as error:
            self._complaints.error("the front-end's connection ends: %s", str(error))
        except ConnectionError as error:
            log.info("the front-end is gone: %s", error)
        except Exception:
            log.exception("the front-end's connection ends")
        finally:
            engine.disconnecting()
            device.close()
            engine.disconnected()
            with self._lock:
                self._talking = None
            sock.close()
            log.info("the front-end is gone")

    def close(self) -> None:
        """Stop serving: the front-end is cut off, requests under way are waited for, the session's state is kept."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            talking = self._talking
        os.eventfd_write(self._wake, 1)
        if talking is not None:
            talking.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_TIMEOUT_S)
        self._keep()
        self._engine.close()
        self._free()

    def _keep(self) -> None:
        """Nothing is served any more: write down all of the session, for the next server."""
        session = self._session
        if session is not None and self._keeping and self._state is not None:
            self._keeping = False
            session.on_started = session.on_ended = None
            self._save(session, self._state, True)

    def _free(self) -> None:
        for sock in (self._listening, self._connected):
            if sock is not None:
                sock.close()
        if self._path is not None and self._listening is not None and identity(self._path) == self._made:
            os.unlink(self._path)
        self._listening = self._connected = None
        if self._state is not None:
            self._state.close()
            self._state = None
        os.close(self._wake)
        self._complaints.end()

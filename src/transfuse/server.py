"""A filesystem, a session and a transport put together and kept running: threads, start, shutdown.

`Server` works over any transport; `mount` is the way to a kernel mount. Order of a start: the session is made, the
transport bound, one worker per channel started; the connection is up when INIT has been answered (`wait_connected`).
Order of the end: the transport stops giving requests, workers come home, the session is ended (which tells the
filesystem), late calls are interrupted and waited for, fds are closed.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from transfuse.errors import RemoteProtocolError
from transfuse.executor import ThreadedExecutor
from transfuse.fs.base import Filesystem
from transfuse.session.negotiate import Connection, Limits
from transfuse.session.notify import Notifier
from transfuse.session.server import BugHandler, ServerSession
from transfuse.transports.base import Channel, Handler, SelfServing, ServerTransport
from transfuse.transports.dev_fuse import DevFuse, sync_init
from transfuse.transports.mount import Mounted
from transfuse.transports.mount.attach import Method, open_and_attach
from transfuse.transports.mount.options import MountOptions, parse_options, unknown_option
from transfuse.transports.uring import UringDevFuse, obstacle
from transfuse.wire import flags as f
from transfuse.wire.encode import Message
from transfuse.wire.layout import Buffer
from transfuse.wire.show import show_message, traced
from transfuse.workers import WorkerPool

if TYPE_CHECKING:
    from transfuse.fs.path import PathFilesystem

__all__ = ["Mount", "Server", "mount"]

log = logging.getLogger("transfuse.server")

DEFAULT_WORKERS = 16
"""Most threads that read requests of one connection; one does, until it is held up (see workers)."""
JOIN_TIMEOUT_S = 10.0
"""How long a stop waits for each request that a filesystem still works on."""
CONNECT_TIMEOUT_S = 20.0
"""How long a peer may take to send INIT after a mount before the mount is given up."""


class Server:
    """Serves one filesystem over one transport.

    `default_permissions`: the peer's kernel checks mode bits (what the mount was told). `owner`: only this uid and root
    may use it (the mount option allow_root). `trace` is called with one line for every request, reply and notification.
    `executor` is for servers of one filesystem whose methods are coroutines, and must outlive them (see fs.shared).
    """

    def __init__(
        self,
        filesystem: Filesystem | PathFilesystem,
        transport: ServerTransport,
        *,
        workers: int = DEFAULT_WORKERS,
        default_permissions: bool = False,
        owner: int | None = None,
        on_bug: BugHandler | None = None,
        trace: Callable[[str], None] | None = None,
        executor: ThreadedExecutor | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: at least one is needed")
        self.filesystem = filesystem if isinstance(filesystem, Filesystem) else filesystem.as_filesystem()
        self.transport = transport
        self.workers = workers
        self.executor = executor or ThreadedExecutor()
        self._own_executor = executor is None
        self._self_serving = transport if isinstance(transport, SelfServing) else None
        limits = Limits(
            transport.max_write, transport.can_pass_through, transport.can_notify, default_permissions, owner
        )
        self._queued = transport if isinstance(transport, UringDevFuse) else None
        if self._queued is not None:
            limits = replace(limits, io_uring=True)
        if self._self_serving is not None:
            checked = default_permissions or self._self_serving.checks_permissions
            limits = replace(
                limits,
                default_permissions=checked,
                window=self._self_serving.window,
                locks=self._self_serving.remote_locks,
            )
        self.session = ServerSession(
            self.filesystem,
            transport,
            self.executor,
            limits,
            reinit=self._self_serving is not None,
            on_bug=on_bug,
            clock=time.monotonic,
        )
        self._handle: Handler = self.session.handle
        self._traced = trace is not None
        if trace is not None:  # the hot path knows nothing of it
            self._handle = traced(self.session.handle, trace)
            self.session.host = _TracedHost(transport, trace)
        self._connected = threading.Event()
        self._finished = threading.Event()
        self.pool = WorkerPool(
            transport,
            self._handle,
            self.session.undelivered,
            workers,
            handshake=self._handshake,
            on_gone=self.session.interrupt_all,
            on_finished=self._party_left,
        )
        self._parties = 1
        """Groups of threads that carry requests; the last one to come home ends the session."""
        self._parties_lock = threading.Lock()
        self._closed = False

    @property
    def connection(self) -> Connection | None:
        """What was negotiated; None before INIT."""
        return self.session.connection

    @property
    def notify(self) -> Notifier | None:
        """Sends notifications to the peer; None before INIT and where the wire has none."""
        return self.session.notify

    def start(self) -> Self:
        """Begin to serve; returns at once."""
        if self._self_serving is not None:
            undelivered, connected = self.session.undelivered, self._connected.set
            self._self_serving.attach(
                self.session, self._handle, undelivered, connected, self._end, detached=not self._traced
            )
            return self
        self.transport.bind(self._handle_first, self.session.undelivered)
        self.pool.start()
        return self

    def _handshake(self, channel: Channel) -> None:
        """Serve what comes until INIT has been answered; from then on the session's handler is called directly."""
        while not self._connected.is_set() and (got := channel.receive()) is not None:
            try:
                message = self._handle_first(*got, channel)
            except RemoteProtocolError as error:
                log.error("message dropped: %s", error)
                continue
            if message is not None:
                channel.send(message)
                # Only now are further channels to be had: the kernel connects when it has read the answer.
            if self.session.connection is not None:
                if self._queued is not None and self.session.connection.has(f.FUSE_OVER_IO_URING):
                    self._parties += 1
                    self._queued.start_queues(self._handle, self._party_left)
                self._connected.set()
                self.pool.watch()
            elif self.session.refused:
                self._connected.set()  # nobody needs to wait: there will be no connection

    def _handle_first(self, buffer: Buffer, start: int, end: int, channel: Channel) -> Message | None:
        message = self._handle(buffer, start, end, channel)
        if self.session.connection is not None:
            self.transport.bind(self._handle, self.session.undelivered)
        return message

    def _party_left(self) -> None:
        with self._parties_lock:
            self._parties -= 1
            last = self._parties == 0
        if last:
            self._end()

    def _end(self) -> None:
        try:
            self.session.end()
        except Exception:
            log.exception("the filesystem failed in destroyed()")
        self._finished.set()
        self._connected.set()

    def wait_connected(self, timeout_s: float | None = CONNECT_TIMEOUT_S) -> bool:
        """Wait until INIT was answered; False when the time is up or the peer went away first."""
        if self.pool.workers or self._self_serving is not None:
            self._connected.wait(timeout_s)
        return self.session.connection is not None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the peer is gone (unmounted); False when the time is up."""
        return self._finished.wait(timeout_s)

    def close(self) -> bool:
        """Stop serving. A kernel mount must have been unmounted before, or its users get errors. Idempotent.

        False when a request would not end: its worker still uses the transport's fds.
        """
        if self._closed:
            return self._finished.is_set()
        self._closed = True
        self.transport.close()
        self.session.interrupt_all()
        self.pool.close(JOIN_TIMEOUT_S)
        home = self._queued is None or self._queued.stop_queues(JOIN_TIMEOUT_S)
        if home and not self._finished.is_set() and not any(worker.thread.is_alive() for worker in self.pool.workers):
            self._end()
        if self._own_executor:
            self.executor.close()
        return self._finished.is_set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _TracedHost:
    """The transport as a session's host, with a line for each notification."""

    def __init__(self, transport: ServerTransport, trace: Callable[[str], None]) -> None:
        self._transport = transport
        self.register_backing = transport.register_backing
        self.unregister_backing = transport.unregister_backing
        self.groups_of = transport.groups_of
        self._notify = transport.notify
        self._trace = trace

    def notify(self, message: list[Buffer]) -> None:
        self._trace(show_message(message))
        self._notify(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)  # what not every transport has


class Mount:
    """A mounted filesystem; a context manager that unmounts at its end. What is still mounted when the interpreter
    exits is unmounted then, or its users would be left with a dead mount."""

    def __init__(self, server: Server, transport: DevFuse, mounted: Mounted) -> None:
        self.server = server
        self.transport = transport
        self.mounted = mounted
        self._closed = False
        atexit.register(self.close)

    @property
    def mountpoint(self) -> str:
        """Where it is mounted, absolute."""
        return os.fsdecode(self.mounted.mountpoint)

    @property
    def notify(self) -> Notifier:
        """Sends notifications to the kernel."""
        notifier = self.server.notify
        if notifier is None:
            raise ConnectionError("not connected")
        return notifier

    @property
    def connection(self) -> Connection:
        """What was agreed with the kernel."""
        connection = self.server.connection
        if connection is None:
            raise ConnectionError("not connected")
        return connection

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody unmounts it; False when the time is up."""
        return self.server.wait(timeout_s)

    def close(self) -> None:
        """Unmount and stop. Where files are still open the mount disappears at once and lives on for them until the
        connection is cut right after; open files then give ENOTCONN. Idempotent."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        # Even when the connection has ended: an aborted one leaves its mount behind, dead.
        try:
            self.mounted.umount()
        except OSError as error:
            log.debug("umount: %s; detaching", error)
            self._detach()
        if not self.server.wait(5):
            self._abort()
        if self.server.close():
            self.transport.dispose()

    def _detach(self) -> None:
        try:
            self.mounted.umount(lazy=True, force=self.mounted.method != "fusermount3")
        except OSError as error:
            log.debug("lazy umount: %s", error)
        if not self.server.wait(0.2):
            self._abort()

    def _abort(self) -> None:
        try:
            self.mounted.abort()
        except OSError as error:
            log.warning("the connection could not be aborted: %s", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def mount(
    filesystem: Filesystem | PathFilesystem,
    mountpoint: str | bytes | os.PathLike[str],
    options: MountOptions | Iterable[str] = (),
    *,
    workers: int = DEFAULT_WORKERS,
    method: Method = "auto",
    io_uring: bool = False,
    on_bug: BugHandler | None = None,
    trace: Callable[[str], None] | None = None,
    before_serving: Callable[[], None] | None = None,
) -> Mount:
    """Mount `filesystem` on `mountpoint` and serve it from threads of this process; returns when it answers.

    `options` are strings as behind -o, or MountOptions. `io_uring`: requests come that way where it is
    possible; methods are then called on threads that are bound to a CPU each, and threads and processes that they start
    are bound to it, too. Raises MountError (an OSError that names the step, the reason and the way out),
    MountOptionError, or ConnectionError when the kernel did not connect.
    """
    parsed = options if isinstance(options, MountOptions) else parse_options(list(options))
    if parsed.rest and parsed is not options:  # whoever parsed them has seen to the rest
        raise unknown_option(*parsed.rest[0])
    permissions = parsed.default_permissions
    owner = (os.getuid() if parsed.user_id is None else parsed.user_id) if parsed.allow_root else None
    started: list[tuple[Server, DevFuse]] = []

    def start(fd: int) -> None:
        transport = _open_transport(fd, workers) if io_uring else DevFuse(fd)
        server = Server(
            filesystem,
            transport,
            workers=workers,
            default_permissions=permissions,
            owner=owner,
            on_bug=on_bug,
            trace=trace,
        )
        started.append((server, transport))
        if before_serving is not None:
            before_serving()
        server.start()

    def before_mount(fd: int) -> None:
        if sync_init(fd):
            start(fd)

    try:
        mounted = open_and_attach(os.fspath(mountpoint), parsed, method, before_mount)
    except BaseException:
        for server, transport in started:
            # The kernel gave the connection up, which ended the worker's read.
            if server.close():
                transport.dispose()
        raise
    if not started:
        start(mounted.device_fd)
    server, transport = started[0]
    result = Mount(server, transport, mounted)
    if not server.wait_connected():
        result.close()
        raise ConnectionError(f"{result.mountpoint}: the kernel did not agree on a protocol; see the log")
    return result


def _open_transport(fd: int, workers: int) -> DevFuse:
    """With rings if this machine has them; else the log says why not."""
    reason = obstacle() if workers > 1 else "a queue needs more than one worker"
    if reason is None:
        try:
            return UringDevFuse(fd, workers)
        except OSError as error:
            reason = error.strerror
    log.warning("no io_uring, requests come by read(): %s", reason)
    return DevFuse(fd)

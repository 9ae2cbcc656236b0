"""The server's side of one connection: a state machine without I/O.

`handle` takes the bytes of one request and returns the message to send back, or None when nothing is to be sent now
(the operation has no reply, or its answer comes later through `channel`). Every request with a reply gets exactly one,
whatever the filesystem does: an OSError becomes its errno, anything else is the filesystem's bug and becomes EIO.

States: *new* (only INIT is served) → *running* → *ended* (DESTROY, or `end()` when the transport is gone). A second
INIT is refused, unless `reinit` allows a peer to start over (a virtio device, whose driver was reset).

Order of one request: header and lengths are checked → row of the table → `calls` decodes and calls the filesystem →
`replies` encodes. A coroutine or a `Blocking` call is handed to the executor and finished by `_finish_later`.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from inspect import iscoroutinefunction
from types import CoroutineType
from typing import Any, Protocol, cast

from transfuse.errors import RemoteProtocolError
from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import MAP_CACHED, MAP_WRITE, Entry, Opened
from transfuse.quiet import QuietLog, standstill
from transfuse.session.calls import MAX_OFFSET, Blocking
from transfuse.session.directories import listed_nodes
from transfuse.session.dispatch import Row, build_rows
from transfuse.session.negotiate import Connection, Limits, negotiate
from transfuse.session.notify import Notifier
from transfuse.session.passthrough import PassthroughTable
from transfuse.session.replies import DaxReplies, Replies
from transfuse.session.state import export_session, import_session
from transfuse.wire import flags as f
from transfuse.wire.decode import (
    IN_HEADER,
    IN_HEADER_SIZE,
    OUT_HEADER_SIZE,
    byte_order_of_init,
    check_header,
    decode_init,
    decode_supplementary_groups,
)
from transfuse.wire.encode import Message, RangeReply, RangeWrite, encode_error, message_struct
from transfuse.wire.layout import Buffer, ByteOrder
from transfuse.wire.opcodes import Opcode, opcode_name
from transfuse.wire.structs import BatchForgetIn, EntryOut, ForgetOne, InitOut, NotifyRetrieveIn, OpenOut, WriteIn

__all__ = ["Channel", "DetachedChannel", "Executor", "Host", "ServerSession", "WindowHost", "check_filesystem"]

log = logging.getLogger("transfuse.session")

MAX_BATCH_FORGET = 1 << 16
"""Most forgets in one BATCH_FORGET; Linux sends at most what fits its buffer, some 60,000."""

MAX_EARLY_INTERRUPTS = 256
"""Most INTERRUPTs kept for requests that are not known; nearly all are of requests just answered."""

_INIT = int(Opcode.INIT)
_DESTROY = int(Opcode.DESTROY)
_INTERRUPT = int(Opcode.INTERRUPT)
_FORGET = int(Opcode.FORGET)
_BATCH_FORGET = int(Opcode.BATCH_FORGET)
_NOTIFY_REPLY = int(Opcode.NOTIFY_REPLY)
_OPENDIR = int(Opcode.OPENDIR)
_READDIRPLUS = int(Opcode.READDIRPLUS)
_OPEN_LIKE = frozenset({int(Opcode.OPEN), _OPENDIR})
_CREATE_LIKE = frozenset({int(Opcode.CREATE), int(Opcode.TMPFILE)})
_ENTRY_LIKE = frozenset(
    int(o)
    for o in (
        Opcode.LOOKUP,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.SYMLINK,
        Opcode.LINK,
        Opcode.CREATE,
        Opcode.TMPFILE,
    )
)
_WRITE = int(Opcode.WRITE)
_WRITE_HEAD = IN_HEADER_SIZE + WriteIn.SIZE
"""What is in front of a WRITE's payload, 80 bytes."""
_TAKEN_BACK = _OPEN_LIKE | _CREATE_LIKE | _ENTRY_LIKE | {_READDIRPLUS}


class Channel(Protocol):
    """Where a late reply goes: the way its request came."""

    def send(self, message: Message) -> bool:
        """Send one message; False when the peer no longer waits for it."""
        ...


class DetachedChannel(Channel, Protocol):
    """The way of a WRITE whose payload was left where the peer put it."""

    def copy_in(self, buffer: Buffer, at: int, offset: int, length: int) -> None:
        """Copy `length` bytes of the request from `offset` into buffer[at:]."""
        ...


class Host(Protocol):
    """What the transport can do for a session. One whose requests take up room until they are answered may also have
    `may_wait(channel) -> bool`: False when this one had better not wait for a lock."""

    def register_backing(self, fd: int) -> int:
        """Give the peer's kernel a backing file; a positive id, or OSError."""
        ...

    def unregister_backing(self, backing_id: int) -> None:
        """Take it back."""
        ...

    def notify(self, message: list[Buffer]) -> None:
        """Send a notification; OSError as the peer answers."""
        ...

    def groups_of(self, pid: int) -> tuple[int, ...]:
        """Supplementary groups of a process of the peer; empty when not known."""
        ...


class WindowHost(Protocol):
    """What a transport with a DAX window (`Limits.window`) can do besides."""

    def window_suits(self, size: int) -> bool:
        """Can a file of this size be read to its end through the window?"""
        ...

    def window_needs_writable(self) -> bool:
        """Must an fd be open for writing even if the peer will only read?"""
        ...

    def window_map(self, fd: int, offset: int, length: int, at: int, writable: bool, owner: object) -> None:
        """Have the peer find `length` bytes of `fd` from `offset` at `at` of its window. OSError if it cannot be."""
        ...

    def window_unmap(self, at: int, length: int) -> None:
        """Take a range of the window back; what is not mapped there is passed over."""
        ...


class Executor(Protocol):
    """Runs what must not hold up the thread that carries requests."""

    def run_blocking(self, call: Callable[[], None]) -> None:
        """Run `call` on a thread of its own; OSError (EAGAIN) when there are too many."""
        ...

    def run_coroutine(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run `coroutine` on the event loop."""
        ...



async def _coroutine() -> None:
    """Only its type is wanted: coroutines of compiled modules have one of their own."""


_sample = _coroutine()
_LATER = frozenset({CoroutineType, type(_sample), Blocking})
"""Classes of results that are finished elsewhere."""
_sample.close()

BugHandler = Callable[[Request, BaseException], None]


def log_bug(req: Request, error: BaseException, say: Callable[..., None] = log.error) -> None:
    """For exceptions that are no OSError: a traceback in the log, and the mount lives on. An unmount instead would let
    a backup tool see an empty directory and delete its copy."""
    say("%s of node %d failed in the filesystem", opcode_name(req.opcode), req.nodeid, exc_info=error)


def check_filesystem(filesystem: Filesystem) -> None:
    """TypeError for one that can't be served at all."""
    for name in ("mounted", "destroyed", "operations"):
        if iscoroutinefunction(getattr(filesystem, name)):
            raise TypeError(f"{type(filesystem).__name__}.{name}() can't be a coroutine: nobody waits for it")
    missing = {"getattr", "lookup"} - filesystem.operations()
    if missing:
        raise TypeError(f"{type(filesystem).__name__} has no {' and no '.join(sorted(missing))}()")


class ServerSession:
    """One connection's server side. `handle` may be called from several threads at a time once INIT is answered.

    `on_bug` is called for exceptions of the filesystem that are no OSError; by default they are logged. What the peer
    can have logged is kept to a few lines by `clock`, which gives seconds (see transfuse.quiet).
    """

    def __init__(
        self,
        filesystem: Filesystem,
        host: Host,
        executor: Executor,
        limits: Limits | None = None,
        *,
        reinit: bool = False,
        on_bug: BugHandler | None = None,
        clock: Callable[[], float] = standstill,
    ) -> None:
        check_filesystem(filesystem)
        self.filesystem = filesystem
        self.operations = filesystem.operations()
        self.coroutines = frozenset(
            name for name in OPERATION_NAMES & self.operations if iscoroutinefunction(getattr(filesystem, name))
        )
        self.host = host
        self.executor = executor
        self.limits = limits or Limits()
        self.reinit = reinit
        self._refusals = QuietLog(log, "refused requests", clock)
        self._bugs = QuietLog(log, "failures of the filesystem", clock)
        self.on_bug = on_bug or functools.partial(log_bug, say=self._bugs.error)
        self.connection: Connection | None = None
        """What was agreed; None before INIT."""
        self.on_started: Callable[[], None] | None = None
        """Called when an INIT was answered, before the answer is sent."""
        self.on_ended: Callable[[], None] | None = None
        """Called when a connection that was up has ended."""
        self.init: tuple[bytes, bytes] | None = None
        """The INIT that was answered, and the answer: what another session needs to go on (`resume`)."""
        self.notify: Notifier | None = None
        """Sends notifications; None before INIT and where the wire has none."""
        self.passthrough = PassthroughTable(host.register_backing, host.unregister_backing)
        self.inflight: dict[int, Request] = {}
        """Requests that the filesystem is working on, by unique."""
        self.ended = False
        self.refused = ""
        """Why the last INIT was refused; empty if it was not."""
        self._end_lock = threading.Lock()
        self._early: dict[int, None] = {}
        """INTERRUPTs of requests that another worker has read but not registered yet, oldest first."""
        self._rows: dict[int, Row] = {}
        self._map: Callable[..., Any] | None = None
        self._write_in = WriteIn.codec("<").unpack_from
        self._may_wait: Callable[[Channel], bool] | None = getattr(host, "may_wait", None)
        self._header = IN_HEADER["<"].unpack_from
        self._order: ByteOrder = "<"

    # -- one request --------------------------------------------------------------------------------------------------

    def handle(self, buffer: Buffer, start: int, end: int, channel: Channel) -> Message | None:
        """Serve the request in buffer[start:end].

        Raises RemoteProtocolError only for what cannot be answered: no whole header. `buffer` may be reused as soon as
        this returns.
        """
        if end - start < IN_HEADER_SIZE:
            raise RemoteProtocolError(
                f"request of {end - start} bytes is shorter than its {IN_HEADER_SIZE}-byte header"
            )
        length, opcode, unique, nodeid, uid, gid, pid, extlen = self._header(buffer, start)
        row = self._rows.get(opcode)
        if row is None:
            return self._handle_special(buffer, start, end, channel)
        call, reply, unpack_from, size, least, extensible = row
        req = Request(unique, opcode, nodeid, uid, gid, pid)
        try:
            if extlen or length != end - start:
                body_end = check_header(length, extlen, start, end)
                if extensible:
                    req._groups = decode_supplementary_groups(buffer, body_end, end, self._order, start) or None
                end = body_end
            if end - start < least:
                raise RemoteProtocolError(f"{opcode_name(opcode)} of {end - start} bytes, at least {least} belong")
            req._resolve_groups = self.host.groups_of
            self.inflight[unique] = req
            if self._early and unique in self._early:
                self._early.pop(unique, None)
                req.interrupt()
            at = start + IN_HEADER_SIZE
            value = call(req, unpack_from(buffer, at) if unpack_from is not None else None, buffer, at + size, end)
            kind = value.__class__
            if kind in _LATER:
                return self._finish_later(req, value, reply, channel)
            message = reply(req, value)
        except BaseException as error:  # noqa: BLE001  a sys.exit() in a filesystem must not leave the peer waiting
            try:
                message = self._failed(req, error)
            finally:
                self.inflight.pop(unique, None)
            return message
        self.inflight.pop(unique, None)
        return message

    def handle_detached(
        self, buffer: Buffer, start: int, end: int, channel: DetachedChannel, size: int
    ) -> Message | RangeWrite | None:
        """As handle(), for a WRITE of which buffer[start:end] has the first 80 bytes and `channel` the other `size`.

        A RangeWrite has the transport put them into a file; what needs more care than that is done by write().
        """
        length, opcode, unique, nodeid, uid, gid, pid, extlen = self._header(buffer, start)
        if size > self.limits.max_write:
            # Segments can overlap, so this may be more than the peer has memory.
            self._refusals.warning("%s with %d bytes, at most %d", opcode_name(opcode), size, self.limits.max_write)
            return encode_error(self._order, unique, errno.EINVAL)
        put = self._map
        if put is not None and opcode == _WRITE and not extlen and end - start == _WRITE_HEAD == length - size:
            fh, offset, count, flags = self._write_in(buffer, start + IN_HEADER_SIZE)[:4]
            if count == size and not flags & f.FUSE_WRITE_KILL_SUIDGID and offset + size <= MAX_OFFSET:
                req = Request(unique, opcode, nodeid, uid, gid, pid)
                try:
                    found = put(
                        req, nodeid, fh, offset, size, MAP_WRITE | (MAP_CACHED if flags & f.FUSE_WRITE_CACHE else 0)
                    )
                    if found is not None and found.length >= size:
                        return RangeWrite(unique, self._order, found.fd, found.offset, size, found.owner)
                except BaseException as error:  # noqa: BLE001  as in handle()
                    return self._failed(req, error)
        whole = bytearray(end - start + size)
        whole[: end - start] = memoryview(buffer)[start:end]  # not copied again: the peer could have changed it
        channel.copy_in(whole, end - start, end - start, size)
        return self.handle(whole, 0, len(whole), channel)

    def _failed(self, req: Request, error: BaseException) -> Message | None:
        """The reply to a request that raised."""
        if isinstance(error, KeyboardInterrupt):
            raise error  # not the filesystem's: a signal to the main thread, which served a memory connection
        if isinstance(error, OSError):
            number = error.errno if isinstance(error.errno, int) else errno.EIO
        elif isinstance(error, RemoteProtocolError):
            self._refusals.warning("%s of node %d refused: %s", opcode_name(req.opcode), req.nodeid, str(error))
            number = error.errno
        elif isinstance(error, MemoryError):
            number = errno.ENOMEM
        else:
            self.on_bug(req, error)
            number = errno.EIO
        if req.opcode == _FORGET:
            return None
        return encode_error(self._order, req.unique, number)

    def _finish_later(self, req: Request, value: Any, reply: Callable[..., Any], channel: Channel) -> Message | None:
        """Hand a coroutine or a blocking call to the executor; its reply is sent from there."""

        def answer(message: Message | None) -> None:
            self.inflight.pop(req.unique, None)
            if message is not None and not channel.send(message):
                self.take_back(req.opcode, req.nodeid, message)

        async def run_coroutine() -> None:
            try:
                message = reply(req, await value)
            except asyncio.CancelledError:
                # At the end of the connection, or a bug that looks like it: an answer is owed in both cases.
                answer(encode_error(self._order, req.unique, errno.EINTR))
                raise
            except BaseException as error:  # noqa: BLE001  as in handle()
                message = self._failed(req, error)
            answer(message)

        def run_blocking() -> None:
            try:
                result = value.run()
                if result.__class__ in _LATER:
                    self._finish_later(req, result, reply, channel)
                    return
                message = reply(req, result)
            except BaseException as error:  # noqa: BLE001  as in handle()
                message = self._failed(req, error)
            answer(message)

        try:
            if value.__class__ is Blocking:
                if self._may_wait is not None and not self._may_wait(channel):
                    raise OSError(errno.ENOLCK, "too many requests wait for locks already")
                self.executor.run_blocking(run_blocking)
            else:
                self.executor.run_coroutine(run_coroutine())
        except OSError as error:
            self.inflight.pop(req.unique, None)
            if value.__class__ is not Blocking:
                value.close()
            return self._failed(req, error)
        return None

    def undelivered(self, buffer: Buffer, start: int, message: Message) -> None:
        """The peer gave up on the request at `start` before our answer came."""
        header = self._header(buffer, start)
        self.take_back(header[1], header[3], message)

    def take_back(self, opcode: int, nodeid: int, message: Message) -> None:
        """Undo the lookups and the open in a reply that the peer will never see."""
        if self.ended or opcode not in _TAKEN_BACK or isinstance(message, RangeReply):
            return  # after destroyed() there is nothing left to give back
        if isinstance(message, list):
            message = b"".join(message)
        if len(message) < 32:
            return
        if opcode == _READDIRPLUS:
            self.forget_found(listed_nodes(message[16:], self._order))
            return
        undo: list[tuple[str, tuple[Any, ...]]] = []
        if opcode in _ENTRY_LIKE:
            nodeid = EntryOut.decode(message, 16, self._order).nodeid
        if opcode in _OPEN_LIKE or opcode in _CREATE_LIKE:
            fh = OpenOut.decode(message, 16 + (EntryOut.SIZE if opcode in _CREATE_LIKE else 0), self._order).fh
            if opcode == _OPENDIR:
                undo.append(("releasedir", (nodeid, fh, 0)))
            else:
                self.passthrough.released(nodeid)
                undo.append(("release", (nodeid, fh, 0, 0, False)))
        if opcode in _ENTRY_LIKE and nodeid:
            undo.append(("forget", (nodeid, 1)))
        for name, args in undo:
            self._call_quietly(name, nodeid, args)

    def forget_found(self, nodeids: Iterable[int]) -> None:
        """Give back one lookup of each node (0: none) whose entry did not reach the peer."""
        for nodeid in nodeids:
            if nodeid:
                self._call_quietly("forget", nodeid, (nodeid, 1))

    def _call_quietly(self, name: str, nodeid: int, args: tuple[Any, ...]) -> None:
        """Call an operation whose failure nobody waits for."""
        if name not in self.operations:
            return
        req = Request(0, int(Opcode[name.upper()]), nodeid)
        try:
            value = getattr(self.filesystem, name)(req, *args)
            if value.__class__ in _LATER:
                self._finish_later(req, value, _no_reply, _NOWHERE)
        except OSError as error:
            log.debug("%s of node %d: %s", name, nodeid, error)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.on_bug(req, error)

    # -- what is not an ordinary operation ----------------------------------------------------------------------------

    def _handle_special(self, buffer: Buffer, start: int, end: int, channel: Channel) -> Message | None:
        found = byte_order_of_init(buffer, start, end)
        if found is not None and (self.connection is None or self.reinit or found == self._order):
            return self._init(buffer, start, end, found)
        length, opcode, unique, nodeid, uid, gid, pid, extlen = self._header(buffer, start)
        try:
            end = check_header(length, extlen, start, end)
            if self.ended or self.connection is None:
                raise RemoteProtocolError(f"{opcode_name(opcode)} before INIT", errno.EIO)
            at = start + IN_HEADER_SIZE
            if opcode == _INTERRUPT:
                return self._interrupt(buffer, at, end, unique)
            if opcode == _BATCH_FORGET:
                self._batch_forget(buffer, at, end, Request(unique, opcode, nodeid))
                return None
            if opcode == _NOTIFY_REPLY:
                self._notify_reply(buffer, at, end, unique)
                return None
            if opcode == _DESTROY:
                self.end()
                return message_struct(self._order).pack(16, 0, unique)
        except RemoteProtocolError as error:
            self._refusals.warning("%s refused: %s", opcode_name(opcode), str(error))
            if opcode in (_BATCH_FORGET, _NOTIFY_REPLY, _FORGET):
                return None
            return encode_error(self._order, unique, error.errno)
        return encode_error(self._order, unique, errno.ENOSYS)

    def _init(self, buffer: Buffer, start: int, end: int, order: ByteOrder) -> Message:
        header = IN_HEADER[order].unpack_from(buffer, start)
        unique = header[2]
        try:
            check_header(header[0], header[7], start, end)
            if self.connection is not None and not self.reinit:
                raise RemoteProtocolError("a second INIT", errno.EIO)
            offer = decode_init(buffer, start, end, order)
            answer, connection = negotiate(offer, order, self._negotiable(), self.filesystem.features, self.limits)
            message = message_struct(order, InitOut).pack(16 + InitOut.SIZE, 0, unique, *answer.values())
            if connection.minor:
                if self.connection is not None:
                    self.end()
                self._start(connection)
                self.init = bytes(memoryview(buffer)[start:end]), message
                if self.on_started is not None:
                    self.on_started()
        except RemoteProtocolError as error:
            self._refusals.error("INIT refused: %s", error)
            self.refused = str(error)
            return encode_error(order, unique, error.errno)
        except Exception as error:  # noqa: BLE001  a limit that does not fit the wire, or mounted() failed
            self.connection = self.notify = None
            self.refused = f"{type(error).__name__}: {error}"
            self.on_bug(Request(unique, _INIT), error)
            return encode_error(order, unique, errno.EIO)
        return message

    def resume(self, request: bytes, reply: bytes) -> None:
        """Go on where a session left off that answered the INIT `request` by `reply`, as if it had been this one.

        ValueError if this one would have agreed to something else, which the peer could not be told.
        """
        order = byte_order_of_init(request, 0, len(request))
        if order is None or len(reply) != OUT_HEADER_SIZE + InitOut.SIZE:
            raise ValueError("no INIT and its answer")
        offer = decode_init(request, 0, len(request), order)
        answer, connection = negotiate(offer, order, self._negotiable(), self.filesystem.features, self.limits)
        before = InitOut.decode(reply, OUT_HEADER_SIZE, order)
        differences = [
            f"{name} {getattr(answer, name):#x}, was {getattr(before, name):#x}"
            for name in ("minor", "flags", "flags2", "max_write", "max_pages", "map_alignment", "max_stack_depth")
            if getattr(answer, name) != getattr(before, name)
        ]
        if differences:
            raise ValueError(f"the peer has agreed to something else: {'; '.join(differences)}")
        self._start(connection)
        self.init = request, reply

    @property
    def keeps_state(self) -> bool:
        """Another session can go on from what `export_state` gives."""
        return self.filesystem.keeps_state

    def renumber(self, epoch: int) -> None:
        """Filesystem.renumber(), before anything is served."""
        self.filesystem.renumber(epoch)

    def export_state(self, portable: bool, with_filesystem: bool = True) -> Iterable[bytes]:
        """See transfuse.session.state."""
        return export_session(self, portable, with_filesystem)

    def import_state(self, pieces: Iterable[bytes]) -> bool:
        """See transfuse.session.state."""
        return import_session(self, pieces)

    def _negotiable(self) -> frozenset[str]:
        """Operations that INIT flags may rest on: READDIRPLUS is made by calling lookup(), so that is no coroutine."""
        return self.operations - {"readdir"} if "lookup" in self.coroutines else self.operations

    def _start(self, connection: Connection) -> None:
        self._order = connection.order
        self._header = IN_HEADER[connection.order].unpack_from
        self.passthrough = PassthroughTable(self.host.register_backing, self.host.unregister_backing)
        self.notify = connection.notify = Notifier(connection, self.host.notify) if self.limits.notify else None
        self.ended = False
        self.refused = ""
        self._early.clear()
        self.connection = connection
        self.filesystem.mounted(connection)
        self._write_in = WriteIn.codec(connection.order).unpack_from
        replies = Replies(connection)
        if connection.has(f.FUSE_HAS_INODE_DAX):
            replies = DaxReplies(connection, cast(WindowHost, self.host).window_suits)
        self._rows = build_rows(self.filesystem, connection, replies, self)
        mapped = "map" in self.operations and not self.coroutines & {"map", "write"}
        self._map = self.filesystem.map if mapped else None
        log.info("connected: %s", connection.describe())

    def _interrupt(self, buffer: Buffer, at: int, end: int, unique: int) -> Message | None:
        if end - at < 8:
            raise RemoteProtocolError(f"interrupt_in at offset 40: {end - at} bytes where 8 belong")
        target = int.from_bytes(bytes(buffer[at : at + 8]), "little" if self._order == "<" else "big")
        req = self.inflight.get(target)
        if req is None:
            # Answered already, or read by another worker that has not registered it yet: EAGAIN has it sent again
            # if the peer still waits (Documentation/filesystems/fuse/fuse.rst, "Interrupting filesystem operations").
            # But only if both came by the same device: of a clone's requests another fd's EAGAIN is not believed, so
            # it is also kept for when the request turns up.
            if len(self._early) >= MAX_EARLY_INTERRUPTS:
                self._early.pop(next(iter(list(self._early)), 0), None)
            self._early[target] = None
            return encode_error(self._order, unique, errno.EAGAIN)
        req.interrupt()
        return None

    def _batch_forget(self, buffer: Buffer, at: int, end: int, req: Request) -> None:
        if end - at < BatchForgetIn.SIZE:
            raise RemoteProtocolError(
                f"batch_forget_in at offset 40: {end - at} bytes where {BatchForgetIn.SIZE} belong"
            )
        count = BatchForgetIn.codec(self._order).unpack_from(buffer, at)[0]
        at += BatchForgetIn.SIZE
        if count > MAX_BATCH_FORGET or count * ForgetOne.SIZE != end - at:
            raise RemoteProtocolError(f"batch_forget_in.count at offset 40 says {count}, {end - at} bytes follow")
        if "forget" not in self.operations:
            return
        forget: Callable[..., Any] = self.filesystem.forget
        pairs = list(ForgetOne.codec(self._order).iter_unpack(bytes(buffer[at:end])))
        later: list[Any] = []
        for req.nodeid, nlookup in pairs:
            try:
                value = forget(req, req.nodeid, nlookup)
                if value.__class__ in _LATER:
                    later.append(value)
            except BaseException as error:  # noqa: BLE001  as in handle()
                self._failed(req, error)
        if later:
            self._finish_later(req, self._one_by_one(req, later), _no_reply, _NOWHERE)

    async def _one_by_one(self, req: Request, coroutines: list[Any]) -> None:
        for coroutine in coroutines:
            try:
                await coroutine
            except Exception as error:  # noqa: BLE001  each of a batch stands for itself
                self._failed(req, error)

    def _notify_reply(self, buffer: Buffer, at: int, end: int, unique: int) -> None:
        body = NotifyRetrieveIn.decode(memoryview(buffer)[:end], at, self._order)
        data = bytes(buffer[at + NotifyRetrieveIn.SIZE : end])
        if len(data) < body.size:
            raise RemoteProtocolError(
                f"notify_retrieve_in.size at offset 56 says {body.size}, {len(data)} bytes follow"
            )
        if self.notify is not None:
            self.notify.retrieved(unique, data[: body.size])

    def interrupt_all(self) -> None:
        """Nobody waits for answers any more: interrupt what is under way."""
        for req in list(self.inflight.values()):
            req.interrupt()

    def end(self) -> None:
        """The peer is gone: interrupt what is under way, give back backing files, tell the filesystem. Idempotent."""
        with self._end_lock:
            was, self.ended = self.ended, True
        self._refusals.end()
        self._bugs.end()
        if was or self.connection is None:
            return
        self._rows = {}
        self._map = self.init = None
        self.interrupt_all()
        if self.notify is not None:
            self.notify.cancel()
        self.passthrough.clear()
        try:
            self.filesystem.destroyed()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.on_bug(Request(0, _DESTROY), error)
        if self.on_ended is not None:
            self.on_ended()

    # -- opens, whose replies depend on what else is open -------------------------------------------------------------

    def open_reply(self, nodeid: int, opened: Opened) -> tuple[int, int]:
        """open_flags and backing_id for an open of `nodeid`."""
        flags = Replies.open_flags(opened)
        if self.connection is None or not self.connection.has(f.FUSE_PASSTHROUGH):
            return flags, 0
        backing_id = self.passthrough.opened(nodeid, opened.backing_fd)
        if backing_id:
            # Anything but these beside PASSTHROUGH is EINVAL, seen as EIO (fs/fuse/iomode.c).
            flags &= f.FOPEN_DIRECT_IO | f.FOPEN_PARALLEL_DIRECT_WRITES | f.FOPEN_NOFLUSH
            if opened.backing_fd is not None:
                # It would send reads and writes here after all (fs/fuse/file.c: it overrides PASSTHROUGH). An open that
                # offers no backing file means it.
                flags &= ~f.FOPEN_DIRECT_IO
            flags |= f.FOPEN_PASSTHROUGH
        return flags, backing_id

    def created_reply(self, value: tuple[Entry, Opened]) -> tuple[Entry, int, int, int]:
        """Entry, fh, open_flags and backing_id of a CREATE or TMPFILE."""
        entry, opened = value
        if entry.attr is None or not entry.nodeid:
            raise ValueError(f"{entry!r} for a file that was just made")
        flags, backing_id = self.open_reply(entry.nodeid, opened)
        return entry, opened.fh, flags, backing_id


def _no_reply(req: Request, value: Any) -> None:
    return None


class _Nowhere:
    """The channel of requests without reply."""

    def send(self, message: Message) -> bool:
        return True


_NOWHERE = _Nowhere()

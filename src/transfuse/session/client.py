"""The client's side of one connection: a state machine without I/O, clock or threads.

`request` gives the bytes of a request and remembers it; `receive` takes the bytes of one message and gives the `Reply`
to a remembered request, or an `Event` (a notification). Nothing is sent or awaited here.

States: *new* (only `init` may be sent) → *running* once INIT was answered. An answer in an older major that we speak
too leaves the session new: `init` is sent again in that major (fuse.h, "Protocol changelog and version negotiation").

What a server may get wrong is sorted: a malformed notification (BadNotification: nobody waits for it), a message that
belongs to no request (RemoteProtocolError: the server can't be trusted with the connection), and a wrong answer to one
request (BadReply, a RemoteProtocolError that says to which: that request fails, as with Linux, which ends it with EIO).

ENOSYS is for ever: `without` says how an operation ends that the server does not have, with no request at all. The
rules are Linux's (fs/fuse/{dir,file,xattr}.c), one row of `ABSENT` each.
"""

from __future__ import annotations

import errno
import itertools
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from transfuse.errors import LocalProtocolError, RemoteProtocolError
from transfuse.session.answers import MAX_LINK_TARGET, MAX_SIZE, decode_init_reply, reply_shapes, xattr_size
from transfuse.session.events import Event, decode_notification
from transfuse.session.negotiate import MAX_PAGES, MIN_MINOR, RULES, Connection
from transfuse.wire import flags as f
from transfuse.wire.decode import IN_HEADER_SIZE, OUT_HEADER
from transfuse.wire.encode import MAX_ERRNO, encode_request
from transfuse.wire.layout import Buffer, ByteOrder, WireStruct
from transfuse.wire.opcodes import OPERATIONS, Opcode, opcode_name
from transfuse.wire.structs import (
    BatchForgetIn,
    ForgetIn,
    ForgetOne,
    InHeader,
    InitIn,
    InitOut,
    InterruptIn,
    NotifyRetrieveIn,
)

__all__ = ["ABSENT", "DEFAULT_FLAGS", "BadNotification", "BadReply", "ClientSession", "Credentials", "Pending", "Reply"]

PAGE = 4096
MAX_IN_FLIGHT = 1 << 16
"""Most requests waiting for their answers, given-up ones included: a server that never answers can't make more grow."""
MAX_INTERRUPTED = 1024
"""Most INTERRUPTs whose answer, which may never come, is still expected."""
MAX_FORGETS = 4096
"""Most forgets in one BATCH_FORGET: 64 KiB."""

DEFAULT_FLAGS = (
    f.FUSE_ASYNC_READ
    | f.FUSE_POSIX_LOCKS
    | f.FUSE_FLOCK_LOCKS
    | f.FUSE_ATOMIC_O_TRUNC
    | f.FUSE_BIG_WRITES
    | f.FUSE_DONT_MASK
    | f.FUSE_HAS_IOCTL_DIR
    | f.FUSE_AUTO_INVAL_DATA
    | f.FUSE_DO_READDIRPLUS
    | f.FUSE_READDIRPLUS_AUTO
    | f.FUSE_ASYNC_DIO
    | f.FUSE_NO_OPEN_SUPPORT
    | f.FUSE_NO_OPENDIR_SUPPORT
    | f.FUSE_PARALLEL_DIROPS
    | f.FUSE_ABORT_ERROR
    | f.FUSE_MAX_PAGES
    | f.FUSE_CACHE_SYMLINKS
    | f.FUSE_EXPLICIT_INVAL_DATA
    | f.FUSE_HANDLE_KILLPRIV_V2
    | f.FUSE_SETXATTR_EXT
    | f.FUSE_CREATE_SUPP_GROUP
    | f.FUSE_HAS_EXPIRE_ONLY
    | f.FUSE_HAS_RESEND
)
"""What our client can honour. Not offered: write-back, ACLs checked by the client, submounts, passthrough. A client
whose wire may have a DAX window offers that besides."""

_SINCE = {rule.bit: rule.minor for rule in RULES} | {
    f.FUSE_HAS_EXPIRE_ONLY: 38,
    f.FUSE_INIT_EXT: 36,
    f.FUSE_MAP_ALIGNMENT: 31,
    f.FUSE_HAS_INODE_DAX: 36,
}

ABSENT: dict[int, int] = {
    Opcode.ACCESS: 0,
    Opcode.FLUSH: 0,
    Opcode.FSYNC: 0,
    Opcode.FSYNCDIR: 0,
    Opcode.SYNCFS: 0,
    Opcode.GETXATTR: errno.EOPNOTSUPP,
    Opcode.SETXATTR: errno.EOPNOTSUPP,
    Opcode.LISTXATTR: errno.EOPNOTSUPP,
    Opcode.REMOVEXATTR: errno.EOPNOTSUPP,
    Opcode.FALLOCATE: errno.EOPNOTSUPP,
    Opcode.TMPFILE: errno.EOPNOTSUPP,
    Opcode.RENAME2: errno.EINVAL,
    Opcode.LINK: errno.EPERM,
    Opcode.BMAP: errno.EINVAL,
    # For these the client has another way, which it takes when it sees ENOSYS.
    Opcode.CREATE: errno.ENOSYS,
    Opcode.STATX: errno.ENOSYS,
    Opcode.LSEEK: errno.ENOSYS,
    Opcode.POLL: errno.ENOSYS,
    Opcode.COPY_FILE_RANGE: errno.ENOSYS,
    Opcode.COPY_FILE_RANGE_64: errno.ENOSYS,
    Opcode.INTERRUPT: errno.ENOSYS,
}
"""Opcode → how a call ends, without a request, once the server has answered ENOSYS: 0 is success."""

# How many bytes or how much count the request allows its answer, by position in the structure.
_LIMIT_AT: dict[int, int] = {
    Opcode.READ: 2,
    Opcode.READDIR: 2,
    Opcode.READDIRPLUS: 2,
    Opcode.WRITE: 2,
    Opcode.GETXATTR: 0,
    Opcode.LISTXATTR: 0,
    Opcode.IOCTL: 5,
    Opcode.COPY_FILE_RANGE: 5,
    Opcode.COPY_FILE_RANGE_64: 5,
}
_COUNTS = frozenset((Opcode.WRITE, Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64))
_XATTR = frozenset((Opcode.GETXATTR, Opcode.LISTXATTR))
_INIT, _WRITE, _SETXATTR = int(Opcode.INIT), int(Opcode.WRITE), int(Opcode.SETXATTR)


class Credentials(NamedTuple):
    """Who asks: what a request header and the creating operations say of the calling process."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    groups: tuple[int, ...] = ()
    """Supplementary groups; only the one that a parent directory's group calls for is ever sent."""
    umask: int = 0o022


NOBODY = Credentials()
"""Requests that no process makes (INIT, FORGET, DESTROY) carry zeros."""


class Pending:
    """One request that was built and not answered yet."""

    __slots__ = ("abandoned", "event", "failure", "limit", "message", "nodeid", "opcode", "reply", "unique")

    def __init__(self, unique: int, opcode: int, nodeid: int, limit: int) -> None:
        self.unique = unique
        self.opcode = opcode
        self.nodeid = nodeid
        self.limit = limit
        self.message: list[Buffer] = []
        """What to send, and to send again after RESEND."""
        self.abandoned = False
        """Nobody waits any more: what the answer brings must be given back."""
        self.reply: Reply | None = None
        """The driver's own: the answer, once it came."""
        self.failure: Exception | None = None
        """The driver's own: why there is no answer."""
        self.event: Any = None
        """The driver's own: what to wake."""


class Reply:
    """The answer to one request."""

    __slots__ = ("data", "error", "pending", "values")

    def __init__(self, pending: Pending, error: int, values: tuple[Any, ...] = (), data: bytes = b"") -> None:
        self.pending = pending
        self.error = error
        """errno, 0 for success."""
        self.values = values
        """The reply's structures, flattened in header order."""
        self.data = data
        """The bytes behind them."""

    def __repr__(self) -> str:
        return f"Reply({opcode_name(self.pending.opcode)} #{self.pending.unique}, error={self.error}, {self.values})"


class BadReply(RemoteProtocolError):
    """A wrong answer to one request, which is over: it will get no other."""

    def __init__(self, text: str, pending: Pending) -> None:
        super().__init__(f"reply to {opcode_name(pending.opcode)} #{pending.unique}: {text}", errno.EIO)
        self.pending = pending


class BadNotification(RemoteProtocolError):
    """A malformed notification. Linux answers EINVAL and goes on; nobody waits for it."""


class ClientSession:
    """One connection's client side. Methods may be called from several threads at a time."""

    def __init__(
        self,
        *,
        order: ByteOrder = "<",
        minor: int = f.FUSE_KERNEL_MINOR_VERSION,
        major: int = f.FUSE_KERNEL_VERSION,
        flags: int = DEFAULT_FLAGS,
        max_readahead: int = 1 << 20,
        max_write: int = 1 << 20,
    ) -> None:
        if not MIN_MINOR <= minor <= f.FUSE_KERNEL_MINOR_VERSION:
            raise ValueError(f"minor={minor}: {MIN_MINOR} to {f.FUSE_KERNEL_MINOR_VERSION} are spoken")
        self.order: ByteOrder = order
        self.major = major
        self.minor = minor
        self.max_readahead = max_readahead
        self.max_write = max_write
        """Largest payload that our own wire carries in one request."""
        self.offered = _offer(flags, minor)
        self.connection: Connection | None = None
        """What was agreed; None before INIT was answered."""
        self.in_flight: dict[int, Pending] = {}
        """Requests without an answer, by unique."""
        self.resent = False
        """The server asked for a RESEND: it may answer a request twice."""
        self._absent: set[int] = set()
        self._interrupted: deque[int] = deque(maxlen=MAX_INTERRUPTED)
        self._uniques = itertools.count(2, 2)
        self._last_unique = 0
        self._header = OUT_HEADER[order].unpack_from
        self._shapes = reply_shapes(order)
        self._rows = _request_rows(order)
        self._pack_short_setxattr = struct.Struct(order + InHeader.FORMAT + "II").pack

    # -- requests -----------------------------------------------------------------------------------------------------

    def init(self) -> Pending:
        """INIT, in the length of our minor. Sent first, and again when the answer was of another major."""
        offer = InitIn(
            major=self.major,
            minor=self.minor,
            max_readahead=self.max_readahead,
            flags=self.offered & 0xFFFF_FFFF,
            flags2=self.offered >> 32,
        )
        pending = self._remember(_INIT, 0, InitOut.SIZE)
        body = offer.encode(self.order)[: InitIn.size_at(self.minor)]
        pending.message = encode_request(self.order, _INIT, pending.unique, 0, 0, 0, 0, body)
        return pending

    def request(
        self,
        opcode: int,
        nodeid: int,
        args: Sequence[int] | WireStruct = (),
        names: Sequence[bytes] = (),
        payload: Buffer = b"",
        creds: Credentials = NOBODY,
        extensions: bytes = b"",
    ) -> Pending:
        """Build a request that will be answered and remember it.

        `args` are the fields of its structure. Raises LocalProtocolError for what was not negotiated or can't be a
        request, and OSError (EAGAIN) when MAX_IN_FLIGHT wait already.
        """
        connection = self.connection
        if connection is None:
            raise LocalProtocolError(f"{opcode_name(opcode)} before INIT was answered")
        row = self._rows.get(opcode)
        if row is None:
            raise LocalProtocolError(f"{opcode_name(opcode)} is no request to wait for")
        pack, size, count, since, limit_at = row
        if since > connection.minor:
            raise LocalProtocolError(f"{opcode_name(opcode)} needs 7.{since}, agreed is 7.{connection.minor}")
        if isinstance(args, WireStruct):
            args = args.values()
        if len(names) != count:
            raise LocalProtocolError(f"{opcode_name(opcode)} carries {count} names, not {len(names)}")
        tail = b"\0".join((*names, b"")) if count else b""
        if count and tail.count(0) != count:
            raise LocalProtocolError(f"{opcode_name(opcode)}: a name contains NUL: {tail[:64]!r}")
        if opcode == _SETXATTR and not connection.has(f.FUSE_SETXATTR_EXT):
            pack, size, args = self._pack_short_setxattr, 8, args[:2]
        elif opcode == _WRITE and len(payload) > connection.max_write:
            raise LocalProtocolError(f"{len(payload)} bytes of payload, {connection.max_write} were agreed")
        extlen = len(extensions)
        if extlen % 8:
            raise LocalProtocolError(f"{extlen} bytes of extensions are not a multiple of 8")
        length = IN_HEADER_SIZE + size + len(tail) + len(payload) + extlen
        pending = self._remember(opcode, nodeid, args[limit_at] if limit_at >= 0 else 0)
        try:
            head = pack(length, opcode, pending.unique, nodeid, creds[0], creds[1], creds[2], extlen >> 3, *args)
        except struct.error as error:
            self.drop(pending)
            raise LocalProtocolError(f"{opcode_name(opcode)} {tuple(args)}: {error}") from error
        message: list[Buffer] = [head + tail if count else head]
        if payload:
            message.append(payload)
        if extlen:
            message.append(extensions)
        pending.message = message
        return pending

    def _remember(self, opcode: int, nodeid: int, limit: int) -> Pending:
        if len(self.in_flight) >= MAX_IN_FLIGHT:
            raise OSError(errno.EAGAIN, f"{MAX_IN_FLIGHT} requests are without an answer")
        unique = self._last_unique = next(self._uniques)
        pending = self.in_flight[unique] = Pending(unique, opcode, nodeid, limit)
        return pending

    def drop(self, pending: Pending) -> None:
        """The request never left: no answer will come."""
        self.in_flight.pop(pending.unique, None)

    def forget(self, forgets: Sequence[tuple[int, int]]) -> list[list[Buffer]]:
        """FORGET messages for (nodeid, nlookup) pairs; two and more go in batches, as from Linux. No reply comes."""
        if len(forgets) == 1:
            nodeid, nlookup = forgets[0]
            body = ForgetIn.codec(self.order).pack(nlookup)
            return [encode_request(self.order, Opcode.FORGET, next(self._uniques), nodeid, 0, 0, 0, body)]
        messages = []
        pack = ForgetOne.codec(self.order).pack
        for start in range(0, len(forgets), MAX_FORGETS):
            part = forgets[start : start + MAX_FORGETS]
            body = BatchForgetIn.codec(self.order).pack(len(part)) + b"".join(pack(*one) for one in part)
            messages.append(encode_request(self.order, Opcode.BATCH_FORGET, next(self._uniques), 0, 0, 0, 0, body))
        return messages

    def interrupt(self, pending: Pending) -> list[Buffer] | None:
        """INTERRUPT of a request, numbered one above it as from Linux; None when the server does not know it."""
        if Opcode.INTERRUPT in self._absent:
            return None
        self._interrupted.append(pending.unique | 1)
        body = InterruptIn.codec(self.order).pack(pending.unique)
        return encode_request(self.order, Opcode.INTERRUPT, pending.unique | 1, pending.nodeid, 0, 0, 0, body)

    def notify_reply(self, event: Event, offset: int, data: Buffer) -> list[Buffer]:
        """The answer to a RETRIEVE: the cached bytes from `offset` on. No reply comes."""
        body = NotifyRetrieveIn(offset=offset, size=len(data)).encode(self.order)
        return encode_request(self.order, Opcode.NOTIFY_REPLY, event.unique, event.nodeid, 0, 0, 0, body, data)

    def resend(self) -> list[list[Buffer]]:
        """Every request without an answer once more, marked as sent again: what a RESEND notification asks for."""
        self.resent = True
        messages = []
        for pending in list(self.in_flight.values()):
            first = bytearray(pending.message[0])
            struct.pack_into(self.order + "Q", first, 8, pending.unique | f.FUSE_UNIQUE_RESEND)
            messages.append([bytes(first), *pending.message[1:]])
        return messages

    # -- what the server does not have --------------------------------------------------------------------------------

    def without(self, opcode: int) -> int | None:
        """None: ask. Else the server has this operation not: 0 is success without asking, other numbers the errno."""
        if opcode in self._absent:
            return ABSENT.get(opcode, errno.ENOSYS)
        connection = self.connection
        if connection is not None and OPERATIONS[opcode].since > connection.minor:
            return ABSENT.get(opcode, errno.EOPNOTSUPP)
        return None

    def _learn_absence(self, opcode: int) -> int:
        """The server answered ENOSYS: remember it where that is the rule, and say how the call ends."""
        connection = self.connection
        if opcode in ABSENT:
            self._absent.add(opcode)
            return ABSENT[opcode]
        if connection is not None and (
            (opcode == Opcode.OPEN and self.offered & f.FUSE_NO_OPEN_SUPPORT)
            or (opcode == Opcode.OPENDIR and self.offered & f.FUSE_NO_OPENDIR_SUPPORT)
        ):
            self._absent.add(opcode)
            return errno.ENOSYS
        return errno.ENOTTY if opcode == Opcode.IOCTL else errno.ENOSYS

    # -- messages from the server -------------------------------------------------------------------------------------

    def receive(self, buffer: Buffer) -> Reply | Event | None:
        """Take one whole message. None: the answer to an INTERRUPT.

        Raises BadReply when one request was answered wrongly, RemoteProtocolError when the message belongs to none.
        """
        size = len(buffer)
        if size < 16:
            raise RemoteProtocolError(f"reply of {size} bytes is shorter than its 16-byte header")
        length, error, unique = self._header(buffer, 0)
        if length != size:
            raise RemoteProtocolError(f"out_header.len at offset 0 says {length} bytes, {size} arrived")
        if unique == 0:
            if self.connection is None:
                raise RemoteProtocolError(f"notification {error} before INIT was answered")
            try:
                return decode_notification(error, buffer, self.order, self.connection.minor)
            except RemoteProtocolError as wrong:
                raise BadNotification(str(wrong)) from wrong
        unique &= ~f.FUSE_UNIQUE_RESEND
        if unique & 1:
            self._interrupt_reply(unique, error, size)
            return None
        pending = self.in_flight.pop(unique, None)
        if pending is None:
            if self.resent and unique <= self._last_unique:
                return None
            raise RemoteProtocolError(f"out_header.unique at offset 8: {unique} is no request that waits for an answer")
        if error:
            if error > 0 or error < -MAX_ERRNO:
                raise BadReply(f"out_header.error at offset 4: {error} is no errno", pending)
            if size != 16:
                raise BadReply(f"an error of {size} bytes where 16 belong", pending)
            error = -error
            if error == errno.ENOSYS:
                error = self._learn_absence(pending.opcode)
            return Reply(pending, error)
        unpack, fixed, data = self._shapes[pending.opcode]
        if size != 16 + fixed and (size < 16 + fixed or not data):
            raise BadReply(f"{size} bytes where {16 + fixed} belong", pending)
        values = unpack(buffer, 16) if unpack is not None else ()
        if not data:
            if pending.opcode in _COUNTS and values[0] > pending.limit:
                raise BadReply(f"count at offset 16: {values[0]} of {pending.limit}", pending)
            if pending.opcode == Opcode.LSEEK and values[0] > MAX_SIZE:
                raise BadReply(f"lseek_out.offset at offset 16: {values[0]:#x} is beyond every file", pending)
            return Reply(pending, 0, values)
        return self._data_reply(pending, values, bytes(buffer[16 + fixed :]))

    def _data_reply(self, pending: Pending, values: tuple[Any, ...], body: bytes) -> Reply:
        opcode, limit = pending.opcode, pending.limit
        try:
            if opcode == _INIT:
                self._connect(decode_init_reply(body, self.order))
                return Reply(pending, 0)
            if opcode in _XATTR and limit == 0:
                return Reply(pending, 0, (xattr_size(self.order, body),))
        except RemoteProtocolError as error:
            raise BadReply(str(error), pending) from error
        if opcode == Opcode.READLINK:
            limit = MAX_LINK_TARGET
            if b"\0" in body:
                raise BadReply(f"link target at offset 16: NUL after {body.index(0)} bytes", pending)
        if len(body) > limit:
            raise BadReply(f"{len(body)} bytes of data where {limit} were asked for", pending)
        return Reply(pending, 0, values, body)

    def _interrupt_reply(self, unique: int, error: int, size: int) -> None:
        if size != 16 or unique not in self._interrupted:
            raise RemoteProtocolError(f"out_header.unique at offset 8: {unique} is no INTERRUPT of ours ({size} bytes)")
        if error == -errno.ENOSYS:
            self._absent.add(int(Opcode.INTERRUPT))
        # EAGAIN: the server had not begun the request yet. Who waits for it interrupts again.

    def _connect(self, answer: InitOut) -> None:
        if answer.major != self.major:
            if f.FUSE_KERNEL_VERSION <= answer.major < self.major:
                self.major = answer.major
                return
            raise RemoteProtocolError(f"init_out.major at offset 16: {answer.major}, we speak {self.major}")
        if answer.minor < MIN_MINOR:
            raise RemoteProtocolError(
                f"init_out.minor at offset 20: the server speaks 7.{answer.minor}, 7.{MIN_MINOR} is the oldest we do"
            )
        minor = min(self.minor, answer.minor)
        flags = answer.flags
        if flags & self.offered & f.FUSE_INIT_EXT:
            flags |= answer.flags2 << 32
        flags &= self.offered
        max_pages = max(1, min(MAX_PAGES, answer.max_pages)) if flags & f.FUSE_MAX_PAGES else 32
        max_write = max(PAGE, min(answer.max_write, self.max_write, max_pages * PAGE))
        if not flags & f.FUSE_BIG_WRITES:
            max_write = PAGE
        if flags & f.FUSE_AUTO_INVAL_DATA:
            flags &= ~f.FUSE_EXPLICIT_INVAL_DATA
        self.connection = Connection(
            order=self.order,
            minor=minor,
            peer_minor=answer.minor,
            offered=self.offered,
            flags=flags,
            max_write=max_write,
            max_pages=max_pages,
            max_readahead=min(self.max_readahead, answer.max_readahead),
        )


_RequestRow = tuple[Callable[..., bytes], int, int, int, int]
"""Packs header and structure at once; size of the structure; names; since; position of the limit, or -1."""


def _request_rows(order: ByteOrder) -> dict[int, _RequestRow]:
    """How to build each request that is answered, from the table of operations."""
    rows: dict[int, _RequestRow] = {}
    for opcode, row in OPERATIONS.items():
        if row.replies and opcode not in (Opcode.INIT, Opcode.CUSE_INIT, Opcode.NOTIFY_REPLY):
            inside, size = (row.request.FORMAT, row.request.SIZE) if row.request is not None else ("", 0)
            pack = struct.Struct(order + InHeader.FORMAT + inside).pack
            rows[opcode] = (pack, size, row.names, row.since, _LIMIT_AT.get(opcode, -1))
    return rows


def _offer(flags: int, minor: int) -> int:
    """`flags` without those that came after `minor`; INIT_EXT where the second word is in use."""
    known = 0
    for bit in range(63):
        one = 1 << bit
        if flags & one and _SINCE.get(one, 0) <= minor:
            known |= one
    if known >> 32:
        known |= f.FUSE_INIT_EXT
    return known

"""A server that says what a test tells it to: for tests of clients, of what they ask and what they believe.

    peer = ScriptedPeer()
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT, entry_timeout_s=5)
    with Client(peer, clock=clock) as client:
        assert not client.exists("/a")
        assert not client.exists("/a")      # believed for five seconds
    peer.assert_exhausted()

Requests must come in the order of the script. INIT and DESTROY are answered by themselves unless the script has them,
and forgets are only collected. A request that is not expected fails with EIO and is reported by assert_exhausted().
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from transfuse.fs.values import Attr, Entry, Features, Opened
from transfuse.session.client import DEFAULT_FLAGS
from transfuse.session.negotiate import Connection
from transfuse.session.replies import Replies, attr_values, split_timeout
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import message_struct, padded
from transfuse.wire.layout import Buffer, ByteOrder, WireStruct
from transfuse.wire.opcodes import OPERATIONS, NotifyCode, Opcode, opcode_name

__all__ = ["Asked", "Expectation", "ScriptedPeer"]

NS = 1_000_000_000


class Asked(NamedTuple):
    """One request as the peer got it."""

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    args: WireStruct | None
    names: tuple[bytes, ...]
    payload: bytes


class Expectation:
    """One request to come, and its answer. Without a reply_… call there is none."""

    def __init__(self, peer: ScriptedPeer, opcode: int, wanted: dict[str, Any]) -> None:
        self._peer = peer
        self.opcode = opcode
        self.wanted = wanted
        self.answer: Callable[[Asked], list[bytes]] = lambda asked: []

    def _reply(self, body: Callable[[Asked], bytes], error: int = 0) -> ScriptedPeer:
        def answer(asked: Asked) -> list[bytes]:
            inside = body(asked)
            return [message_struct(self._peer.order).pack(16 + len(inside), -error, asked.unique) + inside]

        self.answer = answer
        return self._peer

    def reply(self, *parts: WireStruct | bytes) -> ScriptedPeer:
        """Structures and bytes, one after the other; nothing: success without a body."""
        order = self._peer.order
        body = b"".join(part.encode(order) if isinstance(part, WireStruct) else part for part in parts)
        return self._reply(lambda asked: body)

    def reply_error(self, number: int, *, entry_timeout_s: float = 0) -> ScriptedPeer:
        """An errno. With `entry_timeout_s`, an ENOENT that may be remembered so long (an entry with nodeid 0)."""
        if entry_timeout_s:
            if number != errno.ENOENT:
                raise ValueError("only ENOENT can be remembered")
            whole, nsec = split_timeout(entry_timeout_s)
            return self.reply(w.EntryOut(entry_valid=whole, entry_valid_nsec=nsec))
        return self._reply(lambda asked: b"", number)

    def reply_entry(
        self,
        attr: Attr,
        nodeid: int | None = None,
        *,
        generation: int = 0,
        entry_timeout_s: float = 0,
        attr_timeout_s: float = 0,
    ) -> ScriptedPeer:
        """An entry_out; `nodeid` defaults to the inode number."""
        return self.reply(self._peer.entry(attr, nodeid, generation, entry_timeout_s, attr_timeout_s))

    def reply_attr(self, attr: Attr, *, attr_timeout_s: float = 0) -> ScriptedPeer:
        """An attr_out."""
        whole, nsec = split_timeout(attr_timeout_s)
        values = (whole, nsec, *attr_values(attr))
        return self.reply(w.AttrOut.codec(self._peer.order).pack(*values))

    def reply_open(self, fh: int = 1, open_flags: int = 0) -> ScriptedPeer:
        """An open_out."""
        return self.reply(w.OpenOut(fh=fh, open_flags=open_flags))

    def reply_dirents(self, *entries: tuple[bytes, int, int, int]) -> ScriptedPeer:
        """READDIR records: (name, ino, off, kind)."""
        order = self._peer.order
        parts = []
        for name, ino, off, kind in entries:
            record = w.Dirent(ino=ino, off=off, namelen=len(name), type=kind).encode(order) + name
            parts.append(record.ljust(padded(len(record)), b"\0"))
        return self.reply(b"".join(parts))

    def reply_direntplus(self, *entries: tuple[bytes, bytes, int]) -> ScriptedPeer:
        """READDIRPLUS records: (name, encoded entry_out as from `entry`, off)."""
        order = self._peer.order
        parts = []
        for name, entry, off in entries:
            record = entry + w.Dirent(ino=1, off=off, namelen=len(name), type=0).encode(order) + name
            parts.append(record.ljust(padded(len(record)), b"\0"))
        return self.reply(b"".join(parts))

    def reply_raw(self, *messages: bytes) -> ScriptedPeer:
        """Bytes as they are, header included; unique 0xFFFF_FFFF_FFFF_FFFE stands for the request's."""

        def answer(asked: Asked) -> list[bytes]:
            mark = b"\xfe" + b"\xff" * 7 if self._peer.order == "<" else b"\xff" * 7 + b"\xfe"
            real = struct.pack(self._peer.order + "Q", asked.unique)
            return [message.replace(mark, real) for message in messages]

        self.answer = answer
        return self._peer

    def no_reply(self) -> ScriptedPeer:
        """The server keeps silent."""
        self.answer = lambda asked: []
        return self._peer

    def hang_up(self) -> ScriptedPeer:
        """The server ends the connection instead."""

        def answer(asked: Asked) -> list[bytes]:
            self._peer.hang_up()
            return []

        self.answer = answer
        return self._peer

    def then(self, action: Callable[[ScriptedPeer, Asked], None]) -> ScriptedPeer:
        """Run `action` instead of answering; it may use `send`."""

        def answer(asked: Asked) -> list[bytes]:
            action(self._peer, asked)
            return []

        self.answer = answer
        return self._peer


class ScriptedPeer:
    """A client transport with a script at its other end."""

    max_write = 1 << 20
    UNIQUE = 0xFFFF_FFFF_FFFF_FFFE

    def __init__(
        self,
        *,
        order: ByteOrder = "<",
        minor: int = 45,
        flags: int = DEFAULT_FLAGS & ~f.FUSE_DO_READDIRPLUS,
        max_write: int = 1 << 20,
        max_pages: int = 256,
    ) -> None:
        self.order: ByteOrder = order
        self.minor = minor
        self.flags = flags | f.FUSE_INIT_EXT
        self.init_out = w.InitOut(
            major=7,
            minor=minor,
            max_readahead=1 << 17,
            flags=self.flags & 0xFFFF_FFFF,
            flags2=self.flags >> 32,
            max_write=max_write,
            max_pages=max_pages,
        )
        self.script: deque[Expectation] = deque()
        self.asked: list[Asked] = []
        """Everything that came, in order."""
        self.forgotten: dict[int, int] = {}
        """nodeid → lookups given back."""
        self.surprises: list[str] = []
        self.closed = False
        self._on_message: Callable[[Buffer], None] | None = None
        self._on_closed: Callable[[BaseException | None], None] | None = None

    # -- the script ---------------------------------------------------------------------------------------------------

    def expect(self, opcode: int, **wanted: Any) -> Expectation:
        """The next request. `wanted`: nodeid, uid, gid, pid, name, names, payload, or fields of its structure."""
        expectation = Expectation(self, int(opcode), wanted)
        self.script.append(expectation)
        return expectation

    def entry(
        self,
        attr: Attr,
        nodeid: int | None = None,
        generation: int = 0,
        entry_timeout_s: float = 0,
        attr_timeout_s: float = 0,
    ) -> bytes:
        """An entry_out in the peer's byte order."""
        attr.timeout_s = attr_timeout_s
        values = self._replies().entry_values(Entry(attr, nodeid, generation, entry_timeout_s))
        return w.EntryOut.codec(self.order).pack(*values)

    def created(self, attr: Attr, opened: Opened, nodeid: int | None = None) -> bytes:
        """The body of an answer to CREATE."""
        flags = Replies.open_flags(opened)
        return self.entry(attr, nodeid) + w.OpenOut(fh=opened.fh, open_flags=flags).encode(self.order)

    def _replies(self) -> Replies:
        return Replies(Connection(order=self.order, features=Features()))

    def notify(self, code: NotifyCode, body: WireStruct | None = None, tail: bytes = b"") -> None:
        """Send a notification now."""
        inside = (body.encode(self.order) if body is not None else b"") + tail
        self.send_raw(message_struct(self.order).pack(16 + len(inside), int(code), 0) + inside)

    def send_raw(self, message: bytes) -> None:
        """Send any bytes now."""
        if self._on_message is not None:
            self._on_message(message)

    def answer(self, asked: Asked, body: bytes = b"", error: int = 0) -> None:
        """Answer a request that was left without a reply."""
        self.send_raw(message_struct(self.order).pack(16 + len(body), -error, asked.unique) + body)

    def hang_up(self) -> None:
        """End the connection from the server's side."""
        self.closed = True
        if self._on_closed is not None:
            self._on_closed(None)

    def assert_exhausted(self) -> None:
        """AssertionError unless everything in the script was asked, and nothing else."""
        problems = list(self.surprises)
        problems += [f"{opcode_name(left.opcode)} {left.wanted} was never asked" for left in self.script]
        if problems:
            raise AssertionError("; ".join(problems))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.assert_exhausted()

    # -- the wire -----------------------------------------------------------------------------------------------------

    def start(self, on_message: Callable[[Buffer], None], on_closed: Callable[[BaseException | None], None]) -> None:
        """The client begins."""
        self._on_message = on_message
        self._on_closed = on_closed

    def close(self) -> None:
        """The client ends."""
        if not self.closed:
            self.hang_up()

    def send(self, message: list[Buffer]) -> None:
        """The client asks."""
        if self.closed:
            raise ConnectionError(errno.ENOTCONN, "the scripted peer has hung up")
        asked = self._decode(b"".join(message))
        self.asked.append(asked)
        if asked.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            self._forget(asked)
            return
        scripted = self.script[0] if self.script else None
        if asked.opcode in (Opcode.INIT, Opcode.DESTROY) and (scripted is None or scripted.opcode != asked.opcode):
            body = self.init_out.encode(self.order) if asked.opcode == Opcode.INIT else b""
            self.answer(asked, body)
            return
        wrong = f"{opcode_name(asked.opcode)} {asked}: nothing was expected"
        if scripted is not None:
            wrong = _mismatch(scripted, asked)
            if not wrong:
                self.script.popleft()
                for answer in scripted.answer(asked):
                    self.send_raw(answer)
                return
        self.surprises.append(wrong)
        if OPERATIONS[asked.opcode].replies and asked.opcode != Opcode.NOTIFY_REPLY:
            self.answer(asked, b"", errno.EIO)

    def _decode(self, message: bytes) -> Asked:
        header = w.InHeader.decode(message, 0, self.order)
        row = OPERATIONS[header.opcode]
        at = w.InHeader.SIZE
        args = None
        if row.request is not None:
            size = row.request.SIZE
            if header.opcode == Opcode.SETXATTR and not self.flags & f.FUSE_SETXATTR_EXT:
                size = 8
            elif header.opcode == Opcode.INIT:
                size = min(size, len(message) - at)
            args = row.request.decode(message[at : at + size].ljust(row.request.SIZE, b"\0"), 0, self.order)
            at += size
        end = len(message) - 8 * header.total_extlen
        names = []
        for _ in range(row.names):
            stop = message.index(0, at)
            names.append(message[at:stop])
            at = stop + 1
        return Asked(
            header.opcode,
            header.unique,
            header.nodeid,
            header.uid,
            header.gid,
            header.pid,
            args,
            tuple(names),
            message[at:end],
        )

    def _forget(self, asked: Asked) -> None:
        if isinstance(asked.args, w.ForgetIn):
            pairs = [(asked.nodeid, asked.args.nlookup)]
        else:
            words = struct.unpack(f"{self.order}{len(asked.payload) // 8}Q", asked.payload)
            pairs = list(zip(words[::2], words[1::2], strict=True))
        for nodeid, nlookup in pairs:
            self.forgotten[nodeid] = self.forgotten.get(nodeid, 0) + nlookup


def _mismatch(expected: Expectation, asked: Asked) -> str:
    """What is not as expected; empty when all is."""
    if expected.opcode != asked.opcode:
        return f"{opcode_name(asked.opcode)} {asked.names} came where {opcode_name(expected.opcode)} was expected"
    for field, value in expected.wanted.items():
        if field == "name":
            found: Any = asked.names[0] if asked.names else None
        elif field in Asked._fields:
            found = getattr(asked, field)
        else:
            found = getattr(asked.args, field)
        if found != value:
            return f"{opcode_name(asked.opcode)}: {field} is {found!r} where {value!r} was expected"
    return ""

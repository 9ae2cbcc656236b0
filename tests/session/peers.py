"""A peer for session tests: builds requests, hands them to a ServerSession, and takes replies apart.

`Peer(fs)` is a connection over nothing: `ask` returns a `Reply`, `tell` is for requests without one. What the session
sends by itself (late replies, notifications) is kept in `peer.channel` and `peer.host`.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from transfuse.errors import RemoteProtocolError
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, DirEntry, Entry, Features
from transfuse.session.negotiate import Limits
from transfuse.session.server import ServerSession
from transfuse.transports.base import flatten
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import Message, encode_request
from transfuse.wire.layout import WireStruct
from transfuse.wire.opcodes import OPERATIONS, Opcode

ALL_FLAGS = sum(f.INIT_NAMES)
"""Every INIT bit there is."""


class Tree(Filesystem):
    """A root with "hello.txt" (node 2, 14 bytes) and "sub" (node 3), and the books of lookups and handles."""

    DATA = b"Hello, world!\n"

    def __init__(self) -> None:
        self.lookups: dict[int, int] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.requests: list[Request] = []

    def attr(self, nodeid: int) -> Attr:
        if nodeid in (1, 3):
            return Attr.directory(nodeid)
        if nodeid == 2:
            return Attr.file(2, size=len(self.DATA))
        raise FileNotFoundError(2, f"node {nodeid}")

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        nodeid = {(1, b"hello.txt"): 2, (1, b"sub"): 3}.get((parent, name))
        if nodeid is None:
            raise FileNotFoundError(2, name)
        self.lookups[nodeid] = self.lookups.get(nodeid, 0) + 1
        return Entry(self.attr(nodeid))

    def forget(self, req: Request, nodeid: int, nlookup: int) -> None:
        self.lookups[nodeid] = self.lookups.get(nodeid, 0) - nlookup

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        return self.attr(nodeid)

    def read(self, req: Request, nodeid: int, fh: int, size: int, offset: int) -> bytes:
        return self.DATA[offset : offset + size]

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        return [DirEntry(b"hello.txt", 2, 8), DirEntry(b"sub", 3, 4)]


class Reply:
    """One reply, taken apart."""

    def __init__(self, message: Message, order: str = "<") -> None:
        raw = self.raw = flatten(message)
        self.order = order
        self.length, error, self.unique = struct.unpack_from(order + "IiQ", raw)
        assert self.length == len(raw)
        self.errno = -error
        self.body = raw[16:]

    def struct(self, kind: type[WireStruct], at: int = 0) -> Any:
        """The structure at `at` of the body."""
        assert self.errno == 0, f"errno {self.errno}"
        return kind.decode(self.body, at, self.order)

    def names(self) -> list[bytes]:
        """The names of a READDIR reply."""
        return [name for _, _, name, _ in dirents(self.body, self.order)]


def dirents(data: bytes, order: str = "<", plus: bool = False) -> list[tuple[Any, int, bytes, int]]:
    """(entry_out or ino, off, name, kind) of each record."""
    found, at = [], 0
    while at < len(data):
        entry = w.EntryOut.decode(data, at, order) if plus else None
        at += w.EntryOut.SIZE if plus else 0
        head = w.Dirent.decode(data, at, order)
        name = data[at + 24 : at + 24 + head.namelen]
        found.append((entry if plus else head.ino, head.off, name, head.type))
        at += (24 + head.namelen + 7) & ~7
    return found


class Host:
    """The transport's side of a session, which only takes notes."""

    def __init__(self) -> None:
        self.notified: list[bytes] = []
        self.backing: dict[int, int] = {}
        self.backing_error: OSError | None = None
        self.notify_error: OSError | None = None
        self.groups: tuple[int, ...] = ()
        self._last_id = 0

    def register_backing(self, fd: int) -> int:
        if self.backing_error is not None:
            raise self.backing_error
        self._last_id += 1
        self.backing[self._last_id] = fd
        return self._last_id

    def unregister_backing(self, backing_id: int) -> None:
        del self.backing[backing_id]

    def notify(self, message: list[Any]) -> None:
        if self.notify_error is not None:
            raise self.notify_error
        self.notified.append(b"".join(message))

    def groups_of(self, pid: int) -> tuple[int, ...]:
        return self.groups


class Later:
    """A channel for late replies, and the switch that makes them unwanted."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.wanted = True
        self.arrived = threading.Semaphore(0)

    def send(self, message: Message) -> bool:
        self.sent.append(flatten(message))
        self.arrived.release()
        return self.wanted

    def wait(self, timeout_s: float = 5.0) -> Reply:
        """The next late reply."""
        assert self.arrived.acquire(timeout=timeout_s), "no reply came"
        return Reply(self.sent.pop(0))


class Inline:
    """An executor: coroutines run at once in the caller's thread, blocking calls on threads."""

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.threads: list[threading.Thread] = []

    def run_blocking(self, call: Callable[[], None]) -> None:
        if self.error is not None:
            raise self.error
        thread = threading.Thread(target=call)
        self.threads.append(thread)
        thread.start()

    def run_coroutine(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self.error is not None:
            coroutine.close()
            raise self.error
        asyncio.run(coroutine)


class Peer:
    """One connection to `fs`, INIT exchanged unless `init` is False."""

    def __init__(
        self,
        fs: Filesystem,
        *,
        order: str = "<",
        minor: int = 45,
        flags: int = ALL_FLAGS,
        limits: Limits | None = None,
        init: bool = True,
        reinit: bool = False,
        **more: Any,
    ) -> None:
        self.fs = fs
        self.order = order
        self.minor = minor
        self.flags = flags
        self.host = Host()
        self.channel = Later()
        self.executor = Inline()
        self.bugs: list[BaseException] = []
        self.session = ServerSession(
            fs,
            self.host,
            self.executor,
            limits or Limits(),
            reinit=reinit,
            on_bug=lambda req, error: self.bugs.append(error),
            **more,
        )
        self.unique = 0
        if init:
            self.init_reply = self.init()

    def build(
        self, opcode: int, body: bytes | WireStruct = b"", *tail: bytes, nodeid: int = 1, **header: Any
    ) -> tuple[int, bytes]:
        """unique and bytes of a request; structures are encoded in the connection's order."""
        self.unique = header.pop("unique", self.unique + 2)
        raw = body.encode(self.order) if isinstance(body, WireStruct) else body
        parts = encode_request(
            self.order,
            opcode,
            self.unique,
            nodeid,
            header.get("uid", 1000),
            header.get("gid", 100),
            header.get("pid", 7),
            raw + b"".join(tail),
            b"",
            header.get("extensions", b""),
        )
        return self.unique, b"".join(parts)

    def give(self, raw: bytes, before: int = 0) -> Message | None:
        """Hand over raw bytes, as they would lie in a receive buffer that is used again afterwards."""
        buffer = bytearray(before) + bytearray(raw) + bytearray(64)
        try:
            return self.session.handle(buffer, before, before + len(raw), self.channel)
        finally:
            buffer[:] = b"\xee" * len(buffer)

    def ask(self, opcode: int, body: bytes | WireStruct = b"", *tail: bytes, **header: Any) -> Reply:
        """One request with its reply."""
        unique, raw = self.build(opcode, body, *tail, **header)
        message = self.give(raw)
        assert message is not None, "no reply"
        found = Reply(message, self.order)
        assert found.unique == unique
        return found

    def tell(self, opcode: int, body: bytes | WireStruct = b"", *tail: bytes, **header: Any) -> None:
        """One request without reply, or whose reply comes later."""
        _, raw = self.build(opcode, body, *tail, **header)
        assert self.give(raw) is None

    def init(self) -> Reply:
        """Exchange INIT; before 7.36 with the short structure."""
        flags = self.flags
        body = w.InitIn(major=7, minor=self.minor, max_readahead=1 << 20, flags=flags & 0xFFFFFFFF, flags2=flags >> 32)
        return self.ask(Opcode.INIT, body.encode(self.order)[: w.InitIn.size_at(self.minor)], nodeid=0)

    def open(self, nodeid: int = 2, flags: int = 0) -> Any:
        """open_out of an OPEN."""
        return self.ask(Opcode.OPEN, w.OpenIn(flags=flags), nodeid=nodeid).struct(w.OpenOut)


def valid_requests(order: str, opcodes: Iterable[int] | None = None) -> list[tuple[int, bytes]]:
    """(opcode, body) of one well-formed request of every opcode but INIT and DESTROY."""
    bodies: dict[int, bytes] = {}
    for row in OPERATIONS.values():
        if row.opcode in (Opcode.INIT, Opcode.DESTROY, Opcode.CUSE_INIT):
            continue
        kind = row.request
        names = [b"hello.txt\0", b"newname\0"][: row.names]
        values: dict[str, Any] = {}
        tail = b""
        if row.opcode == Opcode.WRITE:
            values, tail = {"size": 4}, b"data"
        elif row.opcode in (Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS):
            values = {"size": 4096}
        elif row.opcode == Opcode.SETXATTR:
            values, tail = {"size": 5}, b"value"
        elif row.opcode in (Opcode.GETXATTR, Opcode.LISTXATTR):
            values = {"size": 256}
        elif row.opcode == Opcode.BATCH_FORGET:
            values, tail = {"count": 1}, w.ForgetOne(nodeid=2, nlookup=1).encode(order)
        elif row.opcode == Opcode.NOTIFY_REPLY:
            values, tail = {"size": 4}, b"data"
        elif row.opcode == Opcode.IOCTL:
            values, tail = {"in_size": 4, "out_size": 64}, b"data"
        elif row.opcode in (Opcode.SETLK, Opcode.SETLKW, Opcode.GETLK):
            values = {"lk": w.FileLock(start=0, end=9, type=1, pid=7)}
        elif row.opcode == Opcode.COPY_FILE_RANGE:
            values = {"nodeid_out": 2, "len": 4}
        elif row.opcode == Opcode.LINK:
            values = {"oldnodeid": 2}
        elif row.opcode in (Opcode.RENAME, Opcode.RENAME2):
            values = {"newdir": 1}
        elif row.opcode in (Opcode.MKNOD,):
            values = {"mode": 0o100644}
        raw = kind(**values).encode(order) if kind is not None else b""
        bodies[int(row.opcode)] = raw + b"".join(names) + tail
    chosen = bodies if opcodes is None else {int(o): bodies[int(o)] for o in opcodes}
    return list(chosen.items())


def eventually(check: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until `check` holds."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)


def undelivered(peer: Peer, opcode: Opcode, body: Any, **header: Any) -> None:
    """Have a request answered, and the answer not taken by anybody."""
    _, raw = peer.build(opcode, body, **header)
    message = peer.give(raw)
    assert message is not None
    peer.session.undelivered(raw, 0, message)


__all__ = [
    "ALL_FLAGS",
    "Features",
    "Inline",
    "Later",
    "Peer",
    "RemoteProtocolError",
    "Reply",
    "Tree",
    "dirents",
    "eventually",
    "undelivered",
    "valid_requests",
]

"""The client: a FUSE server's files, with the names of os, os.path and pathlib, and no kernel between.

`Client(transport)` is given any wire that has a server at its other end. It plays Linux's part towards it: walks paths,
caches names and attributes as long as the server allows, gives every lookup back, interrupts what nobody waits for any
more, and obeys notifications. Checks of permission are the server's (as on a mount without default_permissions).

One connection serves any number of threads and users: `as_user` gives a view with other credentials over the same
caches.
"""

from __future__ import annotations

import errno
import io
import os
import stat as stat_bits
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, AnyStr, Self

from transfuse.client.base import new_owner
from transfuse.client.caches import DEFAULT_MAX_NAMES, Cache, Node
from transfuse.client.dax import DaxRanges, Window
from transfuse.client.directories import ScandirIterator, read_names
from transfuse.client.events import apply_event
from transfuse.client.exchange import Exchange
from transfuse.client.files import RawFile, open_node, parse_mode
from transfuse.client.namespace import NamespaceCalls
from transfuse.client.openfile import OpenFile
from transfuse.client.stale import retries_stale
from transfuse.client.walk import Last, Path, fail, walk, walk_parent
from transfuse.errors import RemoteProtocolError
from transfuse.session.client import DEFAULT_FLAGS, ClientSession, Credentials
from transfuse.session.events import Event
from transfuse.transports.base import ClientTransport
from transfuse.wire.flags import FUSE_BIG_WRITES, FUSE_HAS_INODE_DAX, FUSE_MAP_ALIGNMENT
from transfuse.wire.layout import Buffer, ByteOrder
from transfuse.wire.opcodes import Opcode

__all__ = ["Client"]

DEFAULT_TIMEOUT_S = 60.0
"""How long a request may take. Waiting for a lock has its own limit."""


class Client(NamespaceCalls):
    """A connection to one FUSE server, or one user's view of it. A context manager that connects and closes.

    `clock` gives seconds and is what cached names and attributes expire by. `creds` is who asks, by default this
    process. `minor` and `order` are the protocol spoken, `flags` the INIT bits offered, `timeout_s` the longest wait
    for an answer (None: no limit), `max_names` the bound of the name cache.
    """

    large_file = 0o100000
    """O_LARGEFILE, which Linux sets in every open of a 64-bit process and no user passes."""

    def __init__(
        self,
        transport: ClientTransport,
        *,
        clock: Callable[[], float] = time.monotonic,
        creds: Credentials | None = None,
        minor: int = 45,
        order: ByteOrder = "<",
        flags: int = DEFAULT_FLAGS,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        max_names: int = DEFAULT_MAX_NAMES,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if hasattr(transport, "window"):  # whether there is one turns out when the transport has started
            flags |= FUSE_MAP_ALIGNMENT | FUSE_HAS_INODE_DAX
        session = ClientSession(order=order, minor=minor, flags=flags, max_write=transport.max_write)
        self._on_event = on_event
        exchange = Exchange(transport, session, Cache(clock, max_names), self._event, timeout_s)
        if creds is None:
            creds = Credentials(os.geteuid(), os.getegid(), os.getpid(), tuple(os.getgroups()))
        self._init_view(exchange, creds)
        self._is_view = False
        self.max_read = self.max_write = 4096
        """Largest READ and WRITE, in bytes; known once connected."""

    # -- life ---------------------------------------------------------------------------------------------------------

    def connect(self) -> Self:
        """Agree on a protocol with the server. ConnectionError when it refuses, RemoteProtocolError when it can't."""
        try:
            self.exchange.connect()
        except (OSError, RemoteProtocolError):
            self.exchange.close()
            raise
        connection = self.connection
        self.max_write = connection.max_write
        self.max_read = min(connection.max_pages * 4096, self.exchange.transport.max_write)
        if connection.has(FUSE_BIG_WRITES):
            # Linux does not look at max_write here, but has no socket between that may carry no more.
            self.max_read = min(self.max_read, connection.max_write)
        window: Window | None = getattr(self.exchange.transport, "window", None)
        if window is not None and connection.has(FUSE_HAS_INODE_DAX):
            self.dax = DaxRanges(window, self._ask_mapping, connection.order)
        self._init_view(self.exchange, self.creds)
        return self

    def _ask_mapping(self, opcode: int, nodeid: int, args: tuple[Any, ...], payload: Buffer) -> None:
        reply = self.exchange.call(opcode, nodeid, args, (), payload)
        if reply.error:
            raise fail(reply.error)

    def close(self) -> None:
        """DESTROY, and the end of the connection. A view closes nothing. Idempotent."""
        if not self._is_view:
            self.exchange.close()

    @property
    def closed(self) -> bool:
        """Can nothing be asked any more?"""
        return self.exchange.ended is not None

    def __enter__(self) -> Self:
        if self.exchange.session.connection is None:
            self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def as_user(
        self,
        uid: int,
        gid: int | None = None,
        groups: tuple[int, ...] = (),
        *,
        pid: int | None = None,
        umask: int | None = None,
    ) -> Client:
        """The same connection as another user; a process of its own as far as locks go. `gid` defaults to `uid`."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.creds = Credentials(
            uid,
            uid if gid is None else gid,
            self.creds.pid if pid is None else pid,
            tuple(groups),
            self.creds.umask if umask is None else umask,
        )
        view.lock_owner = new_owner()
        view._is_view = True
        return view

    def drop_caches(self) -> None:
        """Forget every name, and give back every lookup that no open file needs."""
        self.cache.clear()
        self.exchange.flush_forgets()

    def forget_all(self) -> None:
        """Give back every lookup there is, also of open files: the last thing before close(), where a peer's books
        are to be compared with ours."""
        self.cache.surrender()
        self.exchange.flush_forgets()

    def _event(self, event: Event) -> None:
        try:
            apply_event(self.exchange, event)
        finally:
            if self._on_event is not None:
                self._on_event(event)

    # -- listings -----------------------------------------------------------------------------------------------------

    def listdir(self, path: Any = "/") -> list[Any]:
        """As os.listdir(): str names for a str path, bytes for bytes, without "." and "..", in the server's order."""
        names = read_names(self, path)
        if isinstance(os.fspath(path), bytes):
            return names
        return [name.decode("utf-8", "surrogateescape") for name in names]

    def scandir(self, path: AnyStr | os.PathLike[AnyStr] = "/") -> ScandirIterator[AnyStr]:  # type: ignore[assignment]
        """As os.scandir()."""
        return ScandirIterator(self, os.fspath(path))

    def walk(
        self,
        top: str = "/",
        topdown: bool = True,
        onerror: Callable[[OSError], Any] | None = None,
        followlinks: bool = False,
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """As os.walk(). A server's endless tree ends where paths are too long (ENAMETOOLONG, given to `onerror`), or
        have too many links."""
        todo: list[str | tuple[str, list[str], list[str]]] = [top]
        while todo:
            here = todo.pop()
            if not isinstance(here, str):
                yield here
                continue
            directories, others, inside = [], [], []
            try:
                with self.scandir(here) as entries:
                    for entry in entries:
                        try:
                            inner = entry.is_dir()
                        except OSError:
                            inner = False  # a link that leads nowhere, or round and round
                        if inner:
                            directories.append(entry.name)
                            if followlinks or not entry.is_symlink():
                                inside.append(entry.path)
                        else:
                            others.append(entry.name)
            except OSError as error:
                if onerror is not None:
                    onerror(error)
                continue
            if topdown:
                yield here, directories, others
                kept = set(directories)
                todo += [path for path in reversed(inside) if path.rpartition("/")[2] in kept]
            else:
                todo.append((here, directories, others))
                todo += reversed(inside)

    # -- open files ---------------------------------------------------------------------------------------------------

    def open_file(self, path: Path, flags: int = os.O_RDONLY, mode: int = 0o777) -> OpenFile:
        """As os.open(), giving an OpenFile: no position, everything else. Directories may be opened, too."""
        return open_node(self, path, flags, mode)

    def open_raw(self, path: Path, flags: int = os.O_RDONLY, mode: int = 0o777) -> RawFile:
        """As os.open(), giving an unbuffered file object."""
        file = self.open_file(path, flags, mode)
        if file.node.is_dir:
            file.close()
            raise fail(errno.EISDIR, path)
        raw = RawFile(file)
        if flags & os.O_APPEND and raw.seekable():
            raw.seek(0, os.SEEK_END)
        return raw

    def open(
        self,
        path: Path,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """As builtin open(): text, or buffered or (buffering=0) raw bytes."""
        flags, text = parse_mode(mode)
        if text and buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        if not text and (encoding is not None or errors is not None or newline is not None):
            raise ValueError("binary mode takes no encoding, errors or newline")
        raw = self.open_raw(path, flags, 0o666)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else max(io.DEFAULT_BUFFER_SIZE, 128 << 10)
        buffered: io.BufferedRandom | io.BufferedReader | io.BufferedWriter
        try:
            if "+" in mode:
                buffered = io.BufferedRandom(raw, size)
            elif "r" in mode:
                buffered = io.BufferedReader(raw, size)
            else:
                buffered = io.BufferedWriter(raw, size)
            if not text:
                return buffered
            wrapper = io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)
        except BaseException:
            raw.close()
            raise
        return wrapper

    def read_bytes(self, path: Path) -> bytes:
        """The whole file."""
        with self.open_raw(path) as raw:
            return raw.readall()

    def write_bytes(self, path: Path, data: bytes) -> int:
        """Make or replace the file's contents."""
        with self.open_raw(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666) as raw:
            done = 0
            while done < len(data):
                done += raw.write(memoryview(data)[done:])
            return done

    def read_text(self, path: Path, encoding: str = "utf-8") -> str:
        """The whole file as text."""
        return self.read_bytes(path).decode(encoding)

    def write_text(self, path: Path, data: str, encoding: str = "utf-8") -> int:
        """Make or replace the file's contents; returns the number of characters."""
        self.write_bytes(path, data.encode(encoding))
        return len(data)

    def copy_file_range(
        self, src: RawFile, dst: RawFile, count: int, offset_src: int | None = None, offset_dst: int | None = None
    ) -> int:
        """As os.copy_file_range(): None for an offset means the file's position, which moves on."""
        start = src.tell() if offset_src is None else offset_src
        target = dst.tell() if offset_dst is None else offset_dst
        copied = src.file.copy_range(start, dst.file, target, count)
        if offset_src is None:
            src.seek(start + copied)
        if offset_dst is None:
            dst.seek(target + copied)
        return copied

    @retries_stale
    def link_file(self, file: OpenFile | RawFile, dst: Path) -> None:
        """Give an open file a name, as linkat(2) with AT_EMPTY_PATH: how a temporary file becomes permanent."""
        last = walk_parent(self, dst)
        if not last.name or self.lookup_sure(last.parent, last.name) is not None:
            raise fail(errno.EEXIST, dst)
        self.link_node((file.file if isinstance(file, RawFile) else file).node, last, dst)

    def mknod_at(self, last: Last, mode: int, path: Path) -> Node:
        """MKNOD of a regular file, for servers that have no CREATE."""
        return self._make(last, Opcode.MKNOD, (mode, 0, self.creds.umask), (), stat_bits.S_IFREG, path)

    # -- the whole ----------------------------------------------------------------------------------------------------

    def syncfs(self) -> None:
        """Have the server make everything durable (SYNCFS, since 7.34; older ones: nothing to do)."""
        self.ask(Opcode.SYNCFS, self.cache.root, path="/")

    @retries_stale
    def nodeid(self, path: Path, *, follow_symlinks: bool = True) -> int:
        """The server's number for a file."""
        return walk(self, path, follow_symlinks).nodeid

"""Listings: from the records of READDIR and READDIRPLUS to names and DirEntry objects.

READDIRPLUS is used by Linux's rule (fs/fuse/readdir.c): where it was negotiated and, in its AUTO mode, at the start of
a directory or after names of it were looked up. Each of its entries is a lookup: it is remembered like one, and given
back when nobody uses it.

A listing is read as it is consumed. One that goes round (a position comes again) is EIO, and one that never ends is
cut off at MAX_ENTRIES.
"""

from __future__ import annotations

import errno
import os
import stat as stat_bits
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, AnyStr, Generic, Self

from transfuse.client.caches import Node
from transfuse.client.stale import retries_stale
from transfuse.client.walk import Path, fail, walk
from transfuse.session.answers import DirRecord, parse_direntplus, parse_dirents
from transfuse.wire import flags as f
from transfuse.wire.opcodes import Opcode

if TYPE_CHECKING:
    from transfuse.client.client import Client

__all__ = ["DirEntry", "ScandirIterator", "read_names"]

READ_SIZE = 65_536
"""Bytes asked for at a time: some 400 entries with attributes."""
MAX_ENTRIES = 1 << 24
"""Most names in one directory (EOVERFLOW beyond)."""


class DirEntry(Generic[AnyStr]):
    """One name of scandir(), as os.DirEntry: `name`, `path` and questions that mostly need no request."""

    __slots__ = ("_client", "_ino", "_kind", "_node", "name", "path")

    def __init__(self, client: Client, name: AnyStr, path: AnyStr, ino: int, kind: int, node: Node | None) -> None:
        self._client = client
        self._ino = ino
        self._kind = kind
        self._node = node
        self.name: AnyStr = name
        """The name alone."""
        self.path: AnyStr = path
        """scandir()'s path and the name."""

    def inode(self) -> int:
        """st_ino, from the listing."""
        return self._ino

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As os.DirEntry.stat(); attributes that came with the listing are used while they are valid."""
        if self._node is not None and (not follow_symlinks or not self._node.is_symlink):
            try:
                return self._client.node_stat(self._node, self.path)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise  # else the name may lead to another file by now, which os.DirEntry would find
        return self._client.stat(self.path, follow_symlinks=follow_symlinks)

    def _is(self, kind: int, follow_symlinks: bool) -> bool:
        found = self._kind << 12
        if found and (found != stat_bits.S_IFLNK or not follow_symlinks):
            return found == kind
        try:
            return stat_bits.S_IFMT(self.stat(follow_symlinks=follow_symlinks).st_mode) == kind
        except FileNotFoundError:
            return False

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """As os.DirEntry.is_dir()."""
        return self._is(stat_bits.S_IFDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """As os.DirEntry.is_file()."""
        return self._is(stat_bits.S_IFREG, follow_symlinks)

    def is_symlink(self) -> bool:
        """As os.DirEntry.is_symlink()."""
        return self._is(stat_bits.S_IFLNK, False)

    def __fspath__(self) -> AnyStr:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


def link_record(client: Client, parent: Node, record: DirRecord, sample: int) -> Node | None:
    """Remember an entry of READDIRPLUS as the lookup it is."""
    entry = record.entry
    if entry is None:
        return None
    if record.name in (b".", b".."):
        client.cache.forgets.append((entry[0], 1))  # never linked; a correct server sends none
        return None
    node = client.cache.instantiate(entry, sample)
    node.from_plus = client.connection.has(f.FUSE_READDIRPLUS_AUTO)
    client.cache.remember(parent, record.name, node, entry[2], entry[4])
    return node


class _Directory:
    """An open directory of the server's (see `_open`)."""

    def __init__(self, client: Client, path: Path) -> None:
        node = walk(client, path)
        if not node.is_dir:
            raise fail(errno.ENOTDIR, path)
        self.client = client.lasting
        self.node = node
        self.flags = os.O_RDONLY | os.O_NONBLOCK | os.O_DIRECTORY | client.large_file
        self.fh = 0
        self.needs_release = True
        reply = client.exchange.call(Opcode.OPENDIR, node.nodeid, (self.flags, 0), creds=client.creds)
        if reply.error == errno.ENOSYS and client.exchange.session.without(Opcode.OPENDIR) is not None:
            self.needs_release = False
        elif reply.error:
            raise fail(reply.error, path)
        else:
            self.fh = reply.values[0]
        self.is_open = True  # not before: nothing is released that was never opened

    def __iter__(self) -> Iterator[tuple[DirRecord, Node | None]]:
        client, node = self.client, self.node
        connection = client.connection
        plus_possible = connection.has(f.FUSE_DO_READDIRPLUS)
        auto = connection.has(f.FUSE_READDIRPLUS_AUTO)
        offset = count = 0
        asked: set[int] = set()
        while self.is_open:
            if offset in asked:
                raise OSError(errno.EIO, f"the listing goes round: position {offset} came twice")
            asked.add(offset)
            plus = plus_possible and (not auto or offset == 0 or node.advise_plus)
            if auto:
                node.advise_plus = False
            sample = client.cache.version
            opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
            size = min(READ_SIZE, client.max_read)
            data = client.ask(opcode, node, (self.fh, offset, size, 0, 0, self.flags)).data
            if not data:
                return
            parse = parse_direntplus if plus else parse_dirents
            # Everything is linked before anything is handed out: each record is a lookup, wanted or not.
            batch = [
                (record, link_record(client, node, record, sample)) for record in parse(data, connection.order)
            ]
            offset = batch[-1][0].off
            count += len(batch)
            if count > MAX_ENTRIES:
                raise OSError(errno.EOVERFLOW, f"more than {MAX_ENTRIES} names in one directory")
            yield from batch

    def close(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        if self.needs_release:
            self.client.exchange.call(
                Opcode.RELEASEDIR, self.node.nodeid, (self.fh, self.flags, 0, 0), creds=self.client.creds
            )

    def __del__(self) -> None:
        if getattr(self, "is_open", False) and self.needs_release:
            self.client.exchange.orphans.append((Opcode.RELEASEDIR, self.node.nodeid, self.fh, self.flags))


@retries_stale
def _open(client: Client, path: Path) -> _Directory:
    return _Directory(client, path)


class ScandirIterator(Generic[AnyStr]):
    """What scandir() returns: an iterator that is also a context manager, and closes itself at its end."""

    def __init__(self, client: Client, path: AnyStr) -> None:
        self._client = client
        self._path: AnyStr = path
        self._directory = _open(client, path)
        self._records = iter(self._directory)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DirEntry[AnyStr]:
        for record, node in self._records:
            if record.name not in (b".", b".."):
                return self._entry(record, node)
        self.close()
        raise StopIteration

    def _entry(self, record: DirRecord, node: Node | None) -> DirEntry[AnyStr]:
        path = self._path
        if isinstance(path, bytes):
            name: AnyStr = record.name
            joined: AnyStr = path + name if path.endswith(b"/") else path + b"/" + name
        else:
            name = record.name.decode("utf-8", "surrogateescape")
            joined = path + name if path.endswith("/") else path + "/" + name
        ino, kind = (node.attr[0], node.mode >> 12) if node is not None else (record.ino, record.kind)
        return DirEntry(self._client, name, joined, ino, kind, node)

    def close(self) -> None:
        """Release the directory."""
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_names(client: Client, path: Path) -> list[bytes]:
    """All names of a directory but "." and ".."."""
    directory = _open(client, path)
    try:
        return [record.name for record, _ in directory if record.name not in (b".", b"..")]
    finally:
        directory.close()

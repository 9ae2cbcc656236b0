"""TreeFilesystem: a read-only filesystem from a dict, for the simplest cases.

Values are bytes or str (a file), a callable that returns one of them (a file made anew at every open), a dict (a
directory) or Symlink. The tree is read once, when the filesystem is made; later changes of the dicts have no effect.

The size of a callable's file is not known before it is called, so it shows as 0, and such files are opened with direct
I/O: the peer then asks for bytes until there are no more, whatever the size says. What was made stays as it is for the
life of the handle.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, Union

from transfuse.fs.base import Filesystem
from transfuse.fs.nodes import HandleTable
from transfuse.fs.request import Request
from transfuse.fs.values import ROOT_ID, Attr, DirEntry, Entry, Features, Opened

__all__ = ["Symlink", "Tree", "TreeFilesystem"]

MAX_DEPTH = 256
"""Deepest nesting: a dict that contains itself is refused, not followed for ever."""
FOR_EVER_S = 86_400.0
"""Nothing in the tree ever changes."""


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link to `target`."""

    target: str | bytes


Content: TypeAlias = bytes | str
Tree: TypeAlias = Mapping[str, Union[Content, Callable[[], Content], Symlink, "Tree"]]


def _encoded(text: Content) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)


class _Node:
    __slots__ = ("attr", "children", "content", "make", "parent")

    def __init__(self, attr: Attr, parent: _Node | None) -> None:
        self.attr = attr
        self.parent = parent or self
        self.children: dict[bytes, _Node] | None = None
        self.content: bytes | None = None
        self.make: Callable[[], Content] | None = None


class TreeFilesystem(Filesystem):
    """Names and contents from a nested dict.

    `time_ns` is shown as every file's time. Files are 0444, directories 0555; `uid` and `gid` own them.
    """

    def __init__(self, tree: Tree, *, time_ns: int = 0, uid: int = 0, gid: int = 0) -> None:
        self.features = Features(entry_timeout_s=FOR_EVER_S, attr_timeout_s=FOR_EVER_S, negative_timeout_s=FOR_EVER_S)
        self._time_ns = time_ns
        self._owner = (uid, gid)
        self._nodes: dict[int, _Node] = {}
        self._made: HandleTable[bytes] = HandleTable()
        self._add(None, "/", tree, 0)

    def _add(self, parent: _Node | None, path: str, value: object, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise ValueError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH} (does a dict contain itself?)")
        ino = len(self._nodes) + int(ROOT_ID)
        node = _Node(Attr(ino, 0), parent)
        self._nodes[ino] = node
        if isinstance(value, Mapping):
            self._fill(node, path, value, depth)
            node.attr = self._attr(Attr.directory(ino, 0o555))
        elif isinstance(value, Symlink):
            node.content = _encoded(value.target)
            node.attr = self._attr(Attr.symlink(ino, len(node.content)))
        elif isinstance(value, (bytes, bytearray, memoryview, str)):
            node.content = _encoded(value if isinstance(value, str) else bytes(value))
            node.attr = self._attr(Attr.file(ino, len(node.content), 0o444))
        elif callable(value):
            node.make = value
            node.attr = self._attr(Attr.file(ino, 0, 0o444))
        else:
            raise TypeError(f"{path}: {type(value).__name__} is not bytes, str, a callable, a dict or Symlink")
        return node

    def _fill(self, node: _Node, path: str, tree: Mapping[object, object], depth: int) -> None:
        node.children = {}
        subdirs = 0
        for name, value in tree.items():
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
                raise ValueError(
                    f"{path}: {name!r} can't be a file name" + (", nest dicts" if "/" in str(name) else "")
                )
            if len(encoded := _encoded(name)) > 255:
                raise ValueError(f"{path}: the name {name[:20]!r}… is longer than 255 bytes")
            child = self._add(node, path.rstrip("/") + "/" + name, value, depth + 1)
            node.children[encoded] = child
            subdirs += child.children is not None
        node.attr.nlink = 2 + subdirs

    def _attr(self, attr: Attr) -> Attr:
        old = self._nodes[attr.ino].attr
        if self._nodes[attr.ino].children is not None:
            attr.nlink = old.nlink
        attr.atime_ns = attr.mtime_ns = attr.ctime_ns = self._time_ns
        attr.uid, attr.gid = self._owner
        return attr

    def _node(self, nodeid: int) -> _Node:
        try:
            return self._nodes[nodeid]
        except KeyError:
            raise OSError(errno.ESTALE, f"nodeid {nodeid} is not known") from None

    def _directory(self, nodeid: int) -> dict[bytes, _Node]:
        children = self._node(nodeid).children
        if children is None:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return children

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        """A missing name may be remembered as missing."""
        children = self._directory(parent)
        if name in (b".", b".."):
            node = self._node(parent)
            return Entry((node if name == b"." else node.parent).attr)
        child = children.get(name)
        return Entry(child.attr) if child is not None else Entry.negative()

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        """Never changes."""
        return self._node(nodeid).attr

    def readlink(self, req: Request, nodeid: int) -> bytes:
        """EINVAL if it is no symbolic link."""
        node = self._node(nodeid)
        if node.content is None or node.attr.mode >> 12 != 10:
            raise OSError(errno.EINVAL, "not a symbolic link")
        return node.content

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        """Calls the callable. EROFS for writing."""
        node = self._node(nodeid)
        if flags & 3 or flags & 0o1000:
            raise OSError(errno.EROFS, "the tree is read-only")
        if node.children is not None:
            raise IsADirectoryError(errno.EISDIR, "a directory")
        if node.make is None:
            return Opened(0, keep_cache=True)
        content = node.make()
        if not isinstance(content, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"{node.make!r} returned {type(content).__name__}, not bytes or str")
        return Opened(self._made.add(_encoded(content if isinstance(content, str) else bytes(content))), direct_io=True)

    def read(self, req: Request, nodeid: int, fh: int, size: int, offset: int) -> bytes:
        """From what open() made."""
        content = self._made.get(fh) if fh else self._node(nodeid).content
        if content is None:
            raise OSError(errno.EBADF, "the file is not open")
        return content[offset : offset + size]

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """Drops what open() made."""
        if fh:
            self._made.remove(fh)

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        """In the order of the dict."""
        children = self._directory(nodeid)
        return [DirEntry(name, node.attr.ino, node.attr.mode >> 12) for name, node in children.items()]

    def destroyed(self) -> None:
        """The peer is gone."""
        self._made.clear()

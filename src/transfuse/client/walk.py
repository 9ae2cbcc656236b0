"""From paths to nodes, one name at a time, as path_resolution(7) says.

Paths are str (surrogateescape), bytes or PathLike; the client has no current directory, so "a/b" and "/a/b" are the
same. Symbolic links are followed here, at most 40 on one path (ELOOP); ".." goes back over the directories that were
walked, so the server is never asked for it, and no server can lead a path out of its own root.

A walk holds every node it passes, so none of them can be forgotten under it.
"""

from __future__ import annotations

import errno
import os
from stat import S_IFDIR, S_IFLNK
from typing import TYPE_CHECKING, NamedTuple

from transfuse.client.caches import Node

if TYPE_CHECKING:
    from transfuse.client.base import ClientBase

__all__ = ["MAX_LINKS", "MAX_PATH", "Last", "Path", "encode_path", "fail", "split_path", "walk", "walk_parent"]

MAX_LINKS = 40
"""Most symbolic links on one path: Linux's MAXSYMLINKS."""
MAX_PATH = 4095
"""Longest path and link target, in bytes: Linux's PATH_MAX less its NUL."""

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def fail(number: int, path: Path | bytes | None = None) -> OSError:
    """The OSError (of the right subclass) for an errno."""
    if path is None:
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), os.fspath(path))


def encode_path(path: Path) -> bytes:
    """A path as bytes. ValueError for NUL, ENOENT for "", ENAMETOOLONG beyond MAX_PATH."""
    raw = os.fspath(path)
    data = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else raw
    if b"\0" in data:
        raise ValueError("embedded null byte")
    if not data:
        raise fail(errno.ENOENT, path)
    if len(data) > MAX_PATH:
        raise fail(errno.ENAMETOOLONG, path)
    return data


def split_path(data: bytes) -> tuple[list[bytes], bool]:
    """The names of a path, "." left out where it changes nothing, and whether it must be a directory: it ends in "/",
    "." or ".."."""
    parts = data.split(b"/")
    names = [part for part in parts if part and part != b"."]
    return names, parts[-1] in (b"", b".", b"..")


class Last(NamedTuple):
    """Where a path's last name is: directories from the root down, and the name in the last of them."""

    stack: list[Node]
    name: bytes
    """Empty: the path is the directory itself (it ends in "/", "." or "..", or is the root)."""
    must_be_dir: bool
    """The path ends in a slash (or in a dot)."""
    kind: str
    """How an empty name came about: "root", "." or ".."; "" with a name."""

    @property
    def parent(self) -> Node:
        """The directory that holds the name."""
        return self.stack[-1]


def walk(client: ClientBase, path: Path, follow: bool = True) -> Node:
    """The node of `path`. `follow`: go on through a symbolic link at its end (with "/" behind it always)."""
    data = encode_path(path)
    # The usual case first: plain names that are all remembered cost no more than the look-ups. Dots are never
    # remembered as names, and only directories have any, so whatever is special ends this loop.
    if not client.revalidates:
        node = client.cache.root
        find = client.cache.find
        for name in data.split(b"/"):
            if name:
                found = find(node, name)
                if found is None or found.node is None:
                    break
                node = found.node
        else:
            kind = node.mode & 0o170000
            if kind == S_IFDIR or (data[-1] != 47 and not (follow and kind == S_IFLNK)):
                return node
    stack = walk_stack(client, path, data, follow)
    return stack[-1]


def walk_stack(client: ClientBase, path: Path, data: bytes, follow: bool = True) -> list[Node]:
    """The directories from the root to the node of `path`, which is the last item."""
    names, must_be_dir = split_path(data)
    return _walk(client, path, [client.cache.root], names, must_be_dir, follow or must_be_dir, [0])


def walk_parent(client: ClientBase, path: Path) -> Last:
    """All of `path` but its last name, which is not looked up."""
    data = encode_path(path)
    parts = [part for part in data.split(b"/") if part]
    slash = data.endswith(b"/")
    root = client.cache.root
    if not parts:
        return Last([root], b"", True, "root")
    last = parts[-1]
    names = [part for part in parts[:-1] if part != b"."]
    stack = _walk(client, path, [root], names, True, True, [0])
    if last in (b".", b".."):
        return Last(stack, b"", True, last.decode())
    client.check_name(last)
    return Last(stack, last, slash, "")


def follow_link(client: ClientBase, path: Path, stack: list[Node], link: Node, links: list[int]) -> tuple[Last, bool]:
    """Where a link in the last of `stack` leads, its last name not looked up; and whether that must be a directory."""
    names, must_be_dir, base = _target(client, path, stack, link, links)
    if not names:
        return Last(base, b"", True, "."), True
    last = names[-1]
    base = _walk(client, path, base, names[:-1], True, True, links)
    if last == b"..":
        return Last(base, b"", True, ".."), True
    client.check_name(last)
    return Last(base, last, must_be_dir, ""), must_be_dir


def _target(
    client: ClientBase, path: Path, stack: list[Node], link: Node, links: list[int]
) -> tuple[list[bytes], bool, list[Node]]:
    links[0] += 1
    if links[0] > MAX_LINKS:
        raise fail(errno.ELOOP, path)
    target = client.node_readlink(link)
    if not target:
        raise fail(errno.ENOENT, path)
    names, must_be_dir = split_path(target)
    return names, must_be_dir, [client.cache.root] if target[:1] == b"/" else stack


def _walk(
    client: ClientBase,
    path: Path,
    stack: list[Node],
    names: list[bytes],
    must_be_dir: bool,
    follow: bool,
    links: list[int],
) -> list[Node]:
    """Walk `names` from the last of `stack`. `links` counts the links of the whole path in its one item."""
    stack = list(stack)
    todo = names[::-1]
    while todo:
        name = todo.pop()
        here = stack[-1]
        if not here.is_dir:
            raise fail(errno.ENOTDIR, path)
        if name == b"..":
            if len(stack) > 1:
                stack.pop()
            continue
        client.check_name(name)
        node = client.lookup(here, name)
        if node is None:
            raise fail(errno.ENOENT, path)
        if node.is_symlink and (todo or follow):
            more, ends_as_dir, stack = _target(client, path, stack, node, links)
            stack = list(stack)
            if not todo:
                must_be_dir = must_be_dir or ends_as_dir
                follow = follow or ends_as_dir
            todo.extend(reversed(more))
            continue
        stack.append(node)
    if must_be_dir and not stack[-1].is_dir:
        raise fail(errno.ENOTDIR, path)
    return stack

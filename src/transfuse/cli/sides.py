"""The two ends of a copy, which look alike: this machine (the os module) and a source (a client).

A side has the names and arguments of the os module and nothing else, so the four directions are one piece of code.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from io import RawIOBase
from typing import Protocol

from transfuse.client import Client

__all__ = ["Local", "Remote", "Side", "join"]


class Side(Protocol):
    """One end of a copy; the methods are those of the os module of the same names.

    Only stat(), open_raw(), chmod() and, where `follow` says so, the extended attributes follow a link.
    """

    def stat(self, path: str) -> os.stat_result: ...

    def lstat(self, path: str) -> os.stat_result: ...

    def names(self, path: str) -> list[str]: ...

    def readlink(self, path: str) -> str: ...

    def open_raw(self, path: str, flags: int, mode: int) -> AbstractContextManager[RawIOBase]: ...

    def mkdir(self, path: str, mode: int) -> None: ...

    def mknod(self, path: str, mode: int, device: int) -> None: ...

    def symlink(self, target: str, path: str) -> None: ...

    def link(self, path: str, to: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def chmod(self, path: str, mode: int) -> None: ...

    def lchown(self, path: str, uid: int, gid: int) -> None: ...

    def utime_ns(self, path: str, atime_ns: int, mtime_ns: int) -> None: ...

    def listxattr(self, path: str, follow: bool) -> list[str]: ...

    def getxattr(self, path: str, name: str, follow: bool) -> bytes: ...

    def setxattr(self, path: str, name: str, value: bytes, follow: bool) -> None: ...

    def removexattr(self, path: str, name: str, follow: bool) -> None: ...


class Local:
    """This machine."""

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path)

    def lstat(self, path: str) -> os.stat_result:
        return os.lstat(path)

    def names(self, path: str) -> list[str]:
        return os.listdir(path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def open_raw(self, path: str, flags: int, mode: int) -> AbstractContextManager[RawIOBase]:
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
        return open(fd, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "r+b", buffering=0)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def link(self, path: str, to: str) -> None:
        os.link(path, to, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def lchown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(path, uid, gid)

    def utime_ns(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def listxattr(self, path: str, follow: bool) -> list[str]:
        return os.listxattr(path, follow_symlinks=follow)

    def getxattr(self, path: str, name: str, follow: bool) -> bytes:
        return os.getxattr(path, name, follow_symlinks=follow)

    def setxattr(self, path: str, name: str, value: bytes, follow: bool) -> None:
        os.setxattr(path, name, value, follow_symlinks=follow)

    def removexattr(self, path: str, name: str, follow: bool) -> None:
        os.removexattr(path, name, follow_symlinks=follow)


class Remote:
    """A source, seen through a client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def stat(self, path: str) -> os.stat_result:
        return self._client.stat(path)

    def lstat(self, path: str) -> os.stat_result:
        return self._client.lstat(path)

    def names(self, path: str) -> list[str]:
        return self._client.listdir(path)

    def readlink(self, path: str) -> str:
        return os.fsdecode(self._client.readlink(path))

    def open_raw(self, path: str, flags: int, mode: int) -> AbstractContextManager[RawIOBase]:
        return self._client.open_raw(path, flags, mode)

    def mkdir(self, path: str, mode: int) -> None:
        self._client.mkdir(path, mode)

    def mknod(self, path: str, mode: int, device: int) -> None:
        self._client.mknod(path, mode, device)

    def symlink(self, target: str, path: str) -> None:
        self._client.symlink(target, path)

    def link(self, path: str, to: str) -> None:
        self._client.link(path, to)

    def unlink(self, path: str) -> None:
        self._client.unlink(path)

    def chmod(self, path: str, mode: int) -> None:
        self._client.chmod(path, mode)

    def lchown(self, path: str, uid: int, gid: int) -> None:
        self._client.lchown(path, uid, gid)

    def utime_ns(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        self._client.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def listxattr(self, path: str, follow: bool) -> list[str]:
        return self._client.listxattr(path, follow_symlinks=follow)

    def getxattr(self, path: str, name: str, follow: bool) -> bytes:
        return self._client.getxattr(path, name, follow_symlinks=follow)

    def setxattr(self, path: str, name: str, value: bytes, follow: bool) -> None:
        self._client.setxattr(path, name, value, follow_symlinks=follow)

    def removexattr(self, path: str, name: str, follow: bool) -> None:
        self._client.removexattr(path, name, follow_symlinks=follow)


def join(directory: str, name: str) -> str:
    """A path below a directory."""
    return f"{directory.rstrip('/')}/{name}" if directory.strip("/") or not directory else f"/{name}"

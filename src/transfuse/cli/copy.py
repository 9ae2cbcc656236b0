"""Copying trees between two sides that look alike: this machine (the os module) and a source (a client).

A side has the names and arguments of the os module; nothing else is assumed, so the four directions are one piece of
code. Holes stay holes (SEEK_DATA, SEEK_HOLE). A source is not trusted: names are checked, directories are walked to a
bounded depth, and below a copied directory nothing is written through a link that lies there already. A file whose
copying breaks off is taken away again if it was not there before. Hard links become separate files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from io import RawIOBase
from typing import Protocol

from transfuse.cli.inner import MAX_DEPTH, check_name
from transfuse.client import Client

__all__ = ["Copier", "Local", "Remote", "Side"]

CHUNK = 1 << 20
"""Bytes of one read and write: what one request carries."""


class Side(Protocol):
    """One end of a copy; the methods are those of the os module of the same names."""

    def stat(self, path: str) -> os.stat_result: ...

    def lstat(self, path: str) -> os.stat_result: ...

    def names(self, path: str) -> list[str]: ...

    def readlink(self, path: str) -> str: ...

    def open_raw(self, path: str, flags: int, mode: int) -> AbstractContextManager[RawIOBase]: ...

    def mkdir(self, path: str, mode: int) -> None: ...

    def mknod(self, path: str, mode: int, device: int) -> None: ...

    def symlink(self, target: str, path: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def chmod(self, path: str, mode: int) -> None: ...

    def lchown(self, path: str, uid: int, gid: int) -> None: ...

    def utime_ns(self, path: str, atime_ns: int, mtime_ns: int) -> None: ...


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

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def lchown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(path, uid, gid)

    def utime_ns(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)


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

    def unlink(self, path: str) -> None:
        self._client.unlink(path)

    def chmod(self, path: str, mode: int) -> None:
        self._client.chmod(path, mode)

    def lchown(self, path: str, uid: int, gid: int) -> None:
        self._client.lchown(path, uid, gid)

    def utime_ns(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        self._client.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)


def join(directory: str, name: str) -> str:
    """A path below a directory."""
    return f"{directory.rstrip('/')}/{name}" if directory.strip("/") or not directory else f"/{name}"


@dataclass
class Copier:
    """Copies from `source` to `target` and counts what it did."""

    source: Side
    target: Side
    recursive: bool = False
    preserve: bool = False
    on_error: Callable[[str, OSError], None] = lambda path, error: None
    advance: Callable[[int], None] = lambda count: None
    """Called with the size of each piece of a file that is done, holes included."""
    files: int = 0
    directories: int = 0
    bytes: int = 0
    written: int = 0
    """Bytes that were written, holes left out."""
    _to_finish: list[tuple[str, os.stat_result]] = field(default_factory=list)

    def copy(self, path: str, to: str) -> None:
        """Copy one name and, if `recursive`, what is below it. What fails is told to `on_error`; the rest goes on."""
        try:
            st = self.source.lstat(path) if self.recursive else self.source.stat(path)
        except OSError as error:
            self.on_error(path, error)
            return
        waiting = [(path, to, st, 0)]
        self._to_finish.clear()
        while waiting:
            path, to, st, depth = waiting.pop()
            try:
                if stat.S_ISDIR(st.st_mode):
                    self._directory(path, to, st, depth)
                    waiting += self._below(path, to, depth)
                else:
                    self._one(path, to, st, top=depth == 0)
            except OSError as error:
                self.on_error(path, error)
        # Directories last: writing into them changes their times, and their mode may forbid it.
        for place, st in reversed(self._to_finish):
            try:
                self._finish(place, st)
            except OSError as error:
                self.on_error(place, error)

    def total(self, path: str) -> int:
        """Sum of the sizes of the regular files that `copy` would copy, for a progress bar; errors count as nothing."""
        total = 0
        waiting = [(path, 0)]
        while waiting:
            path, depth = waiting.pop()
            with suppress(OSError):
                st = self.source.lstat(path) if self.recursive or depth else self.source.stat(path)
                if stat.S_ISREG(st.st_mode):
                    total += st.st_size
                elif stat.S_ISDIR(st.st_mode) and self.recursive and depth < MAX_DEPTH:
                    waiting += [(join(path, check_name(name)), depth + 1) for name in self.source.names(path)]
        return total

    def _below(self, path: str, to: str, depth: int) -> list[tuple[str, str, os.stat_result, int]]:
        found = []
        for name in sorted(self.source.names(path), reverse=True, key=os.fsencode):
            here = join(path, check_name(name))
            try:
                found.append((here, join(to, name), self.source.lstat(here), depth + 1))
            except OSError as error:
                self.on_error(here, error)
        return found

    def _directory(self, path: str, to: str, st: os.stat_result, depth: int) -> None:
        if not self.recursive:
            raise OSError(errno.EISDIR, "it is a directory; give -r to copy it with what is in it")
        if depth >= MAX_DEPTH:
            raise OSError(errno.ELOOP, f"more than {MAX_DEPTH} directories deep; not followed further")
        # While it is being filled it must be ours to write into.
        try:
            self.target.mkdir(to, stat.S_IMODE(st.st_mode) & 0o777 | 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(self.target.lstat(to).st_mode) and (
                depth or not stat.S_ISDIR(self.target.stat(to).st_mode)
            ):
                raise
        else:
            if self.preserve or not st.st_mode & 0o700 == 0o700:
                self._to_finish.append((to, st))
        self.directories += 1

    def _one(self, path: str, to: str, st: os.stat_result, *, top: bool) -> None:
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFREG:
            self._file(path, to, st, top=top)
        elif kind == stat.S_IFLNK:
            self._replaced(to, lambda: self.target.symlink(self.source.readlink(path), to))
        elif not self.recursive:
            raise OSError(errno.EINVAL, "it is no regular file; give -r to make another of its kind")
        elif kind == stat.S_IFSOCK:
            raise OSError(errno.EOPNOTSUPP, "a socket can't be copied")
        else:
            self._replaced(to, lambda: self.target.mknod(to, st.st_mode & 0o170777, st.st_rdev))
        self.files += 1
        if self.preserve:
            self._finish(to, st)

    def _replaced(self, to: str, make: Callable[[], None]) -> None:
        """Make a name; one that is there already and is no directory gives way."""
        try:
            make()
        except FileExistsError:
            self.target.unlink(to)
            make()

    def _file(self, path: str, to: str, st: os.stat_result, *, top: bool) -> None:
        follow = 0 if top else os.O_NOFOLLOW
        with self.source.open_raw(path, os.O_RDONLY | (os.O_NOFOLLOW if self.recursive else 0), 0) as source:
            mode = stat.S_IMODE(st.st_mode) & 0o777
            flags = os.O_RDWR | os.O_CREAT | follow
            new = True
            try:
                target = self.target.open_raw(to, flags | os.O_EXCL, mode | 0o200)
            except FileExistsError:
                new = False
                target = self.target.open_raw(to, flags | os.O_TRUNC, mode | 0o200)
            try:
                with target as out:
                    self._content(source, out, st.st_size)
            except BaseException:
                if new:
                    with suppress(OSError):
                        self.target.unlink(to)
                raise
            if new and not mode & 0o200 and not self.preserve:
                self.target.chmod(to, mode)

    def _content(self, source: RawIOBase, out: RawIOBase, size: int) -> None:
        buffer = memoryview(bytearray(CHUNK))
        at = 0
        while True:
            data, end = _data_range(source, at)
            if data is None:  # a hole up to the end
                break
            self.advance(data - at)
            at = data
            source.seek(at)
            out.seek(at)
            while end is None or at < end:
                wanted = CHUNK if end is None else min(CHUNK, end - at)
                count = source.readinto(buffer[:wanted])
                if not count:
                    break
                _write_all(out, buffer[:count])
                at += count
                self.written += count
                self.advance(count)
            else:
                continue
            break
        length = max(at, source.seek(0, os.SEEK_END))
        if length > at:
            out.truncate(length)
        self.advance(max(0, size - at))
        self.bytes += length

    def _finish(self, to: str, st: os.stat_result) -> None:
        """Owner, mode and times of something that was copied. An owner we may not give is left out, as cp does."""
        mode = stat.S_IMODE(st.st_mode)
        if self.preserve:
            try:
                self.target.lchown(to, st.st_uid, st.st_gid)
            except PermissionError:
                mode &= 0o777  # setuid of somebody else's would become ours
        if not stat.S_ISLNK(st.st_mode):
            self.target.chmod(to, mode if self.preserve else mode & 0o777)
        if self.preserve:
            self.target.utime_ns(to, st.st_atime_ns, st.st_mtime_ns)


def _data_range(file: RawIOBase, at: int) -> tuple[int | None, int | None]:
    """Where data begins at or after `at` and where it ends: (None, None) when none follows, (at, None) when the file
    can't tell."""
    try:
        data = file.seek(at, os.SEEK_DATA)
        return data, file.seek(data, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None, None
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE):
            return at, None
        raise
    except ValueError:
        return at, None  # a file object that knows no SEEK_DATA


def _write_all(out: RawIOBase, data: memoryview) -> None:
    while data:
        count = out.write(data)
        if not count:
            raise OSError(errno.EIO, "nothing was written")
        data = data[count:]

"""Copying trees from one side to another (see `sides`): this machine and sources, in any direction.

Holes stay holes: those that the source tells of (SEEK_DATA, SEEK_HOLE), and blocks of zeros in a file that takes less
room than its size. A source is not trusted: names are checked, directories are walked to a bounded depth, and below a
copied directory nothing is written through a link that lies there already. A file whose copying breaks off is taken
away again if it was not there before.

Order for each file: content, owner, extended attributes, mode, ACLs, times; each would spoil one of the later ones if
it came after (chown(2) drops capabilities and set-id bits, chmod(2) changes an ACL, all of them the times). Directories
come last of all, deepest first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import RawIOBase

from transfuse.cli.inner import MAX_DEPTH, check_name
from transfuse.cli.links import LinkTable
from transfuse.cli.sides import Side, join

__all__ = ["Copier"]

CHUNK = 1 << 20
"""Bytes of one read and write: what one request carries."""
PAGE = 4096
"""Zeros are left out in pieces of this size, the block of most filesystems."""
_ZEROS = bytes(CHUNK)
ACLS = ("system.posix_acl_access", "system.posix_acl_default")
LOST_SHOWN = 3
"""How many of the things that could not be kept are told one by one."""
PRIVILEGED = ("security.", "trusted.")
"""Attributes that only root may set, and not everywhere: left out without a word where that is refused, like owners."""
Value = bytes
"""Of an extended attribute; Copier has something else of that name."""
Attributes = dict[str, Value]
_NOT_KEPT = frozenset((errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL))
_NO_LINK = frozenset((errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT))


@dataclass
class Copier:
    """Copies from `source` to `target` and counts what it did.

    `preserve`: owner (where that is allowed), mode and times. `xattrs`: extended attributes, ACLs among them.
    `hard_links`: names of one file become names of one file, as long as all of them are copied by this object.
    """

    source: Side
    target: Side
    recursive: bool = False
    preserve: bool = False
    on_error: Callable[[str, OSError], None] = lambda path, error: None
    advance: Callable[[int], None] = lambda count: None
    """Called with the size of each piece of a file that is done, holes and further names included."""
    xattrs: bool = False
    hard_links: bool = False
    links: LinkTable = field(default_factory=LinkTable)
    files: int = 0
    directories: int = 0
    bytes: int = 0
    written: int = 0
    """Bytes that were written, holes left out."""
    linked: int = 0
    """Further names of a file that was copied already."""
    lost: list[str] = field(default_factory=list)
    """What could not be kept, in words; the first LOST_SHOWN of them."""
    lost_count: int = 0
    _links_are_full: bool = False
    _to_finish: list[tuple[str, str, os.stat_result]] = field(default_factory=list)

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
        for path, to, st in reversed(self._to_finish):
            try:
                self._finish(path, to, st)
            except OSError as error:
                self.on_error(to, error)

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
        finish = self.preserve or self.xattrs
        try:
            self.target.mkdir(to, stat.S_IMODE(st.st_mode) & 0o777 | 0o700)
            finish = finish or st.st_mode & 0o700 != 0o700
        except FileExistsError:
            if not stat.S_ISDIR(self.target.lstat(to).st_mode):
                if depth or not stat.S_ISDIR(self.target.stat(to).st_mode):
                    raise
                finish = False  # a link to a directory of somebody's
        if finish:
            self._to_finish.append((path, to, st))
        self.directories += 1

    def _one(self, path: str, to: str, st: os.stat_result, *, top: bool) -> None:
        several = self.hard_links and st.st_nlink > 1
        if several and self._link(to, st):
            return
        kind = stat.S_IFMT(st.st_mode)
        locked = False
        if kind == stat.S_IFREG:
            new = self._file(path, to, st, top=top)
            locked = new and not self.preserve and not st.st_mode & 0o200
        elif kind == stat.S_IFLNK:
            self._replaced(to, lambda: self.target.symlink(self.source.readlink(path), to))
        elif not self.recursive:
            raise OSError(errno.EINVAL, "it is no regular file; give -r to make another of its kind")
        elif kind == stat.S_IFSOCK:
            raise OSError(errno.EOPNOTSUPP, "a socket can't be copied")
        else:
            self._replaced(to, lambda: self.target.mknod(to, st.st_mode & 0o170777, st.st_rdev))
        self.files += 1
        if several and not self.links.add(st, to) and not self._links_are_full:
            self._links_are_full = True
            waiting = f"{len(self.links)} files wait for their other names; further ones become separate files"
            self.on_error(path, OSError(errno.EMLINK, waiting))
        if self.preserve or self.xattrs:
            self._finish(path, to, st, top=top)
        if locked:
            self.target.chmod(to, stat.S_IMODE(st.st_mode) & 0o777)

    def _link(self, to: str, st: os.stat_result) -> bool:
        """Make another name of a file that was copied already. False if it was not, or the target has no links."""
        first = self.links.find(st)
        if first is None:
            return False
        if first == to:  # the same PATH was given twice
            return True
        try:
            self._replaced(to, lambda: self.target.link(first, to))
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._lose(f"{to}: as another name of {first}: {os.strerror(error.errno or 0)}")
            return False
        self.links.seen(st)
        self.linked += 1
        if stat.S_ISREG(st.st_mode):
            self.advance(st.st_size)
        return True

    def _lose(self, what: str) -> None:
        self.lost_count += 1
        if len(self.lost) < LOST_SHOWN:
            self.lost.append(what)

    def _replaced(self, to: str, make: Callable[[], None]) -> None:
        """Make a name; one that is there already and is no directory gives way."""
        try:
            make()
        except FileExistsError:
            self.target.unlink(to)
            make()

    def _file(self, path: str, to: str, st: os.stat_result, *, top: bool) -> bool:
        """Copy a regular file; True if the name is new, and the file writable by its owner until it is finished."""
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
                    self._content(source, out, st)
            except BaseException:
                if new:
                    with suppress(OSError):
                        self.target.unlink(to)
                raise
            return new

    def _content(self, source: RawIOBase, out: RawIOBase, st: os.stat_result) -> None:
        buffer = memoryview(bytearray(CHUNK))
        sparse = st.st_blocks * 512 < st.st_size
        at = written_to = 0
        while True:
            data, end = _data_range(source, at)
            if data is None:  # a hole up to the end
                break
            self.advance(data - at)
            at = data
            source.seek(at)
            while end is None or at < end:
                wanted = CHUNK if end is None else min(CHUNK, end - at)
                count = source.readinto(buffer[:wanted])
                if not count:
                    break
                for begin, stop in _filled(buffer[:count]) if sparse else [(0, count)]:
                    out.seek(at + begin)
                    _write_all(out, buffer[begin:stop])
                    self.written += stop - begin
                    written_to = at + stop
                at += count
                self.advance(count)
            else:
                continue
            break
        length = max(at, source.seek(0, os.SEEK_END))
        if length > written_to:
            out.truncate(length)
        self.advance(max(0, st.st_size - at))
        self.bytes += length

    def _finish(self, path: str, to: str, st: os.stat_result, *, top: bool = False) -> None:
        """Owner, extended attributes, mode and times of something that was copied. An owner we may not give is left
        out, as cp does."""
        mode = stat.S_IMODE(st.st_mode)
        link = stat.S_ISLNK(st.st_mode)
        if self.preserve:
            try:
                self.target.lchown(to, st.st_uid, st.st_gid)
            except PermissionError:
                mode &= 0o777  # setuid of somebody else's would become ours
        acls: Attributes = {}
        if self.xattrs:
            acls = self._attributes(path, to, top=top)
        if not link and (self.preserve or stat.S_ISDIR(st.st_mode)):
            self.target.chmod(to, mode if self.preserve else mode & 0o777)
        for name, value in acls.items():
            self._set_attribute(to, name, value, top)
        if self.preserve:
            self.target.utime_ns(to, st.st_atime_ns, st.st_mtime_ns)

    def _attributes(self, path: str, to: str, *, top: bool) -> Attributes:
        """Copy the extended attributes but ACLs, which are returned. ACLs that the copy has inherited are taken off."""
        follow = not self.recursive
        try:
            names = self.source.listxattr(path, follow)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            names = []
        values: Attributes = {}
        for name in names:
            try:
                values[name] = self.source.getxattr(path, name, follow)
            except OSError as error:
                if error.errno in _NOT_KEPT:
                    self._lose_attribute(path, name, error)
                elif error.errno != errno.ENODATA:  # it was removed meanwhile
                    raise
        for name, value in values.items():
            if name not in ACLS:
                self._set_attribute(to, name, value, top)
        with suppress(OSError):
            for name in self.target.listxattr(to, top):
                if name in ACLS and name not in values:
                    self.target.removexattr(to, name, top)
        return {name: values[name] for name in ACLS if name in values}

    def _set_attribute(self, to: str, name: str, value: Value, top: bool) -> None:
        try:
            self.target.setxattr(to, name, value, top)
        except OSError as error:
            if error.errno not in _NOT_KEPT:
                raise
            self._lose_attribute(to, name, error)

    def _lose_attribute(self, path: str, name: str, error: OSError) -> None:
        if not name.startswith(PRIVILEGED):
            self._lose(f"{path}: {name}: {os.strerror(error.errno or 0)}")


def _filled(data: memoryview) -> Iterator[tuple[int, int]]:
    """Where in `data` something else than whole PAGEs of zeros is: (begin, end) of each run."""
    begin = -1
    for at in range(0, len(data), PAGE):
        piece = data[at : at + PAGE]
        if bytes(piece) != _ZEROS[: len(piece)]:
            if begin < 0:
                begin = at
        elif begin >= 0:
            yield begin, at
            begin = -1
    if begin >= 0:
        yield begin, len(data)


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

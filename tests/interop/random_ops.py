"""Random operations on two directories at once: whatever one answers, the other must answer too.

Theory: a tiny alphabet of names makes operations meet each other. Each step is drawn from a seeded generator and done
in both directories; results and errno must agree. Files stay open in numbered slots while their names are renamed,
replaced and removed. Every CHECK_EVERY steps the whole trees are compared: names, types, modes, owners, link counts,
sizes, contents, targets, attributes and modification times. A time set by utimensat is a marker: as long as the model
shows it the other must show it too, and once a write has replaced it there, it must be gone here as well.

Nothing is assumed of directory sizes, the order of listings, block counts, or where exactly a hole begins.

As a program: random_ops.py MODEL OTHER --seed N --steps N [--user UID:GID]; exit status 1 and the last operations where
the two differ. Both directories must be empty.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import errno
import mmap
import os
import random
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator

NAMES = ("a", "b", "c", "dd", "e", "f")
DEPTH = 3
SLOTS = 8
LARGEST = 150_000
CHECK_EVERY = 500
MOST_NAMES = 250
"""Above this many names at a check both trees are removed and begun anew: moved subtrees would grow without end."""
SHOWN = 30
MARKER_NS = 10**18
RECENT = 12
# operations that make a name, and which argument it is
_MAKING = {"open": 1, "mkdir": 0, "rename": 1, "rename2": 1, "link": 1, "symlink": 1, "mkfifo": 0, "link_slot": 1}

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_KEEP_SIZE, _PUNCH_HOLE = 1, 2

Operation = tuple[str, tuple[object, ...]]


class Differ(Exception):
    """The two directories differ; the message says how."""


def _errno_call(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def _kind_mode(status: os.stat_result, links_of_directories: bool) -> tuple[object, ...]:
    """What of a stat result must agree."""
    directory = stat.S_ISDIR(status.st_mode)
    links = status.st_nlink if links_of_directories or not directory else 0
    return (status.st_mode, links, 0 if directory else status.st_size, status.st_uid, status.st_gid)


class World:
    """One of the two directories, with its own open files."""

    def __init__(self, root: str, links_of_directories: bool) -> None:
        self.root = root
        self.prefix = root + "/"
        self.slots: list[int | None] = [None] * SLOTS
        self.links = links_of_directories

    def fd(self, slot: int) -> int:
        found = self.slots[slot]
        return -1 if found is None else found  # EBADF on both sides

    def open(self, slot: int, path: str, flags: int, mode: int) -> int:
        fd = os.open(self.prefix + path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        old, self.slots[slot] = self.slots[slot], fd
        if old is not None:
            os.close(old)
        return 0

    def tmpfile(self, slot: int, path: str) -> int:
        return self.open(slot, path, os.O_TMPFILE | os.O_RDWR, 0o600)

    def link_slot(self, slot: int, path: str) -> None:
        source = f"/proc/self/fd/{self.fd(slot)}".encode()
        _errno_call(_libc.linkat(-100, source, -100, os.fsencode(self.prefix + path), 0x400))

    def close(self, slot: int) -> None:
        fd, self.slots[slot] = self.slots[slot], None
        os.close(-1 if fd is None else fd)

    def pread(self, slot: int, count: int, offset: int) -> bytes:
        return os.pread(self.fd(slot), count, offset)

    def read(self, slot: int, count: int) -> bytes:
        return os.read(self.fd(slot), count)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.fd(slot), data, offset)

    def write(self, slot: int, data: bytes) -> int:
        return os.write(self.fd(slot), data)

    def store(self, slot: int, data: bytes, offset: int) -> int:
        """Through a shared mapping, as far as the file reaches."""
        fd = self.fd(slot)
        size = os.fstat(fd).st_size
        if offset + len(data) > size or not stat.S_ISREG(os.fstat(fd).st_mode):
            return -1
        with mmap.mmap(fd, size) as view:
            view[offset : offset + len(data)] = data
            view.flush()
        return len(data)

    def load(self, slot: int) -> object:
        """The whole file through a private mapping."""
        fd = self.fd(slot)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return None
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as view:
            return view[:]

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.fd(slot), size)

    def fstat(self, slot: int) -> object:
        return _kind_mode(os.fstat(self.fd(slot)), self.links)

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.fd(slot), mode)

    def futimens(self, slot: int, atime: int, mtime: int) -> None:
        os.utime(self.fd(slot), ns=(atime, mtime))

    def fsync(self, slot: int) -> None:
        os.fsync(self.fd(slot))

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        fd = self.fd(slot)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return -1  # positions in directories are the filesystem's own
        return os.lseek(fd, offset, whence)

    def seek_data(self, slot: int, offset: int) -> object:
        """Only that what is passed over reads as zeros: filesystems differ in where holes begin."""
        fd = self.fd(slot)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        position = os.lseek(fd, 0, os.SEEK_CUR)
        size = os.fstat(fd).st_size
        try:
            found = os.lseek(fd, offset, os.SEEK_DATA)
            hole = os.lseek(fd, offset, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO or offset >= size:
                raise
            found = hole = size  # no data behind the offset
        finally:
            os.lseek(fd, position, os.SEEK_SET)
        try:
            skipped = os.pread(fd, found - offset, offset)
        except OSError:
            return None  # a write-only descriptor
        if skipped.strip(b"\0") or not offset <= found <= size or not offset <= hole <= size:
            raise Differ(f"SEEK_DATA from {offset} gave {found}, SEEK_HOLE {hole}, in a file of {size} bytes")
        return None

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        call = _libc.fallocate(self.fd(slot), mode, ctypes.c_int64(offset), ctypes.c_int64(length))
        _errno_call(call)

    def copy(self, source: int, source_offset: int, target: int, target_offset: int, count: int) -> int:
        """copy_file_range until it is all there or the source ends; it may be short at will."""
        done = 0
        while done < count:
            step = os.copy_file_range(
                self.fd(source), self.fd(target), count - done, source_offset + done, target_offset + done
            )
            if not step:
                break
            done += step
        return done

    def truncate(self, path: str, size: int) -> int:
        status = os.stat(self.prefix + path)
        if stat.S_ISREG(status.st_mode) and status.st_size == size:
            return -1  # whether this moves mtime is up to the filesystem: tmpfs does it for files with pages only
        os.truncate(self.prefix + path, size)
        return 0

    def rename(self, old: str, new: str) -> None:
        os.rename(self.prefix + old, self.prefix + new)

    def rename2(self, old: str, new: str, flags: int) -> None:
        result = _libc.renameat2(-100, os.fsencode(self.prefix + old), -100, os.fsencode(self.prefix + new), flags)
        _errno_call(result)

    def link(self, old: str, new: str) -> None:
        os.link(self.prefix + old, self.prefix + new)

    def unlink(self, path: str) -> None:
        os.unlink(self.prefix + path)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.prefix + path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.prefix + path)

    def mkfifo(self, path: str, mode: int) -> None:
        os.mkfifo(self.prefix + path, mode)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.prefix + path)

    def readlink(self, path: str) -> str:
        return os.readlink(self.prefix + path)

    def stat(self, path: str) -> object:
        return _kind_mode(os.stat(self.prefix + path), self.links)

    def lstat(self, path: str) -> object:
        return _kind_mode(os.lstat(self.prefix + path), self.links)

    def access(self, path: str, mode: int) -> bool:
        return os.access(self.prefix + path, mode)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.prefix + path, mode)

    def utimens(self, path: str, atime: int, mtime: int) -> None:
        os.utime(self.prefix + path, ns=(atime, mtime))

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self.prefix + path))

    def scandir(self, path: str) -> list[tuple[str, bool, bool]]:
        with os.scandir(self.prefix + path) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.prefix + path, name, value, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self.prefix + path, name)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.prefix + path, name)

    def listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(self.prefix + path))

    # ---- the whole tree

    def tree(self) -> dict[str, tuple[object, ...]]:
        """Everything below the root that must agree; times last."""
        found: dict[str, tuple[object, ...]] = {}
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(self.prefix + folder) as entries:
                    listed = [entry.name for entry in entries]
            except PermissionError:
                found[folder + "?"] = ("closed",)
                continue
            for name in listed:
                path = f"{folder}/{name}" if folder else name
                found[path] = self._entry(path)
                if found[path][0] == "directory":
                    pending.append(path)
        return found

    def _entry(self, path: str) -> tuple[object, ...]:
        full = self.prefix + path
        try:
            status = os.lstat(full)
        except PermissionError:
            return ("hidden",)
        what: object = None
        kind = "other"
        attributes: object = None
        try:
            if stat.S_ISDIR(status.st_mode):
                kind = "directory"
            elif stat.S_ISLNK(status.st_mode):
                kind, what = "link", os.readlink(full)
            elif stat.S_ISREG(status.st_mode):
                kind = "file"
                with open(full, "rb", buffering=0) as file:
                    what = file.read()
            if kind in ("file", "directory"):
                attributes = [(name, os.getxattr(full, name)) for name in sorted(os.listxattr(full))]
        except PermissionError:
            what = "closed"
        return (kind, _kind_mode(status, self.links), what, attributes, status.st_mtime_ns)

    def clear(self) -> int:
        """Remove everything, as rm -r does; how many names there were at the top."""
        names = os.listdir(self.root)
        for name in names:
            full = self.prefix + name
            if stat.S_ISDIR(os.lstat(full).st_mode):
                _open_up(full)
                shutil.rmtree(full)
            else:
                os.unlink(full)
        return len(names)

    def close_all(self) -> None:
        for slot, fd in enumerate(self.slots):
            if fd is not None:
                os.close(fd)
                self.slots[slot] = None


def _open_up(directory: str) -> None:
    """Give the owner of a directory all rights on it and below, so that an ordinary user can remove it."""
    os.chmod(directory, 0o700)
    with os.scandir(directory) as entries:
        below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for path in below:
        _open_up(path)


class Steps:
    """The generator of operations; the same seed gives the same steps."""

    WEIGHTS: dict[str, int] = {
        "open": 12, "create": 10, "tmpfile": 1, "link_slot": 1, "close": 4, "pread": 6, "read": 4, "pwrite": 8,
        "write": 5, "store": 2, "load": 1, "ftruncate": 3, "fstat": 5, "fchmod": 1, "futimens": 1, "fsync": 1,
        "lseek": 3, "seek_data": 2, "fallocate": 2, "copy": 2, "truncate": 3, "rename": 10, "rename2": 3, "link": 5,
        "unlink": 6, "mkdir": 5, "rmdir": 6, "mkfifo": 1, "symlink": 4, "readlink": 2, "stat": 6, "lstat": 5,
        "access": 1, "chmod": 3, "utimens": 3, "listdir": 3, "scandir": 2, "setxattr": 3, "getxattr": 2,
        "removexattr": 2, "listxattr": 2,
    }  # fmt: skip

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.marker = MARKER_NS
        self.recent: collections.deque[str] = collections.deque(maxlen=RECENT)
        self.files: collections.deque[str] = collections.deque(maxlen=RECENT)
        self.open_slots: set[int] = set()
        self.makers: dict[str, Callable[[], Operation]] = {
            name: getattr(self, "_" + name, self._on_path) for name in self.WEIGHTS
        }

    def __iter__(self) -> Iterator[Operation]:
        names, weights = list(self.WEIGHTS), list(self.WEIGHTS.values())
        while True:
            for name in self.chance.choices(names, weights, k=1000):
                made = self.makers[name]()
                yield (name, made[1]) if made[0] == "" else made

    def learn(self, operation: Operation) -> None:
        """An operation succeeded: its names exist now, its slot is open now; so the next steps hit more often."""
        name, arguments = operation
        if name in ("open", "tmpfile"):
            self.open_slots.add(arguments[0])  # type: ignore[arg-type]
        elif name == "close":
            self.open_slots.discard(arguments[0])  # type: ignore[arg-type]
        if name in _MAKING:
            self.recent.append(str(arguments[_MAKING[name]]))
        if name in ("link", "link_slot") or (name == "open" and int(str(arguments[2])) & os.O_CREAT):
            self.files.append(str(arguments[1]))
        elif name == "rename" and arguments[0] in self.files:
            self.files.append(str(arguments[1]))

    def path(self) -> str:
        """Half of the time a name made lately, otherwise any."""
        draw = self.chance.random
        if self.recent and draw() < 0.4:
            return self.recent[int(draw() * len(self.recent))]
        parts = [NAMES[int(draw() * len(NAMES))]]
        while len(parts) < DEPTH and draw() < 0.45:
            parts.append(NAMES[int(draw() * len(NAMES))])
        return "/".join(parts)

    def file(self) -> str:
        """Most of the time a file made lately."""
        if self.files and self.chance.random() < 0.7:
            return self.files[int(self.chance.random() * len(self.files))]
        return self.path()

    def slot(self) -> int:
        if self.open_slots and self.chance.random() < 0.85:
            return self.chance.choice(sorted(self.open_slots))
        return self.any_slot()

    def any_slot(self) -> int:
        return int(self.chance.random() * SLOTS)

    def offset(self) -> int:
        draw = self.chance.random()
        if draw < 0.3:
            return int(self.chance.random() * 100)
        if draw < 0.5:
            return int(self.chance.random() * 10) * 4096
        return int(self.chance.random() * LARGEST)

    def data(self) -> bytes:
        size = 1 + int(self.chance.random() ** 4 * 20_000)
        return self.chance.randbytes(min(size, 16)) * (size // 16 + 1)

    def times(self) -> tuple[int, int]:
        self.marker += 1_000_000_007
        return MARKER_NS, self.marker

    def _on_path(self) -> Operation:
        return "", (self.path(),)

    def _open(self) -> Operation:
        flags = self.chance.choice((os.O_RDONLY, os.O_RDWR, os.O_WRONLY)) | self.chance.choice(
            (0, 0, 0, os.O_APPEND, os.O_TRUNC, os.O_NOFOLLOW, os.O_DIRECTORY)
        )
        return "open", (self.any_slot(), self.file(), flags, 0)

    def _create(self) -> Operation:
        flags = self.chance.choice((0, 0, os.O_EXCL, os.O_TRUNC, os.O_APPEND)) | os.O_CREAT | os.O_RDWR
        return "open", (self.any_slot(), self.path(), flags, self.chance.choice((0o644, 0o600, 0o444, 0o777)))

    def _tmpfile(self) -> Operation:
        return "tmpfile", (self.slot(), self.path())

    def _link_slot(self) -> Operation:
        return "link_slot", (self.slot(), self.path())

    def _close(self) -> Operation:
        return "close", (self.slot(),)

    def _on_slot(self) -> Operation:
        return "", (self.slot(),)

    _fstat = _fsync = _load = _on_slot

    def _pread(self) -> Operation:
        return "pread", (self.slot(), int(self.chance.random() * 40_000), self.offset())

    def _read(self) -> Operation:
        return "read", (self.slot(), int(self.chance.random() * 40_000))

    def _pwrite(self) -> Operation:
        return "pwrite", (self.slot(), self.data(), self.offset())

    def _write(self) -> Operation:
        return "write", (self.slot(), self.data())

    def _store(self) -> Operation:
        return "store", (self.slot(), self.data()[:5000], self.offset())

    def _ftruncate(self) -> Operation:
        return "ftruncate", (self.slot(), self.offset())

    def _truncate(self) -> Operation:
        return "truncate", (self.file(), self.offset())

    def _fchmod(self) -> Operation:
        return "fchmod", (self.slot(), self.chance.choice((0o644, 0o600, 0o755, 0o4755, 0o2711)))

    def _chmod(self) -> Operation:
        return "chmod", (self.path(), self.chance.choice((0o644, 0o755, 0o700, 0o777, 0o555, 0o1777, 0o2775, 0o000)))

    def _futimens(self) -> Operation:
        return "futimens", (self.slot(), *self.times())

    def _utimens(self) -> Operation:
        return "utimens", (self.path(), *self.times())

    def _lseek(self) -> Operation:
        return "lseek", (self.slot(), self.offset() - 50, self.chance.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)))

    def _seek_data(self) -> Operation:
        return "seek_data", (self.slot(), self.offset())

    def _fallocate(self) -> Operation:
        mode = self.chance.choice((0, _KEEP_SIZE, _PUNCH_HOLE | _KEEP_SIZE, _PUNCH_HOLE | _KEEP_SIZE))
        return "fallocate", (self.slot(), mode, self.offset(), 1 + int(self.chance.random() * 30_000))

    def _copy(self) -> Operation:
        return "copy", (self.slot(), self.offset(), self.slot(), self.offset(), int(self.chance.random() * 30_000))

    def _rename(self) -> Operation:
        return "rename", (self.file(), self.path())

    def _link(self) -> Operation:
        return "link", (self.file(), self.path())

    def _unlink(self) -> Operation:
        return "unlink", (self.file(),)

    def _rename2(self) -> Operation:
        return "rename2", (self.path(), self.path(), self.chance.choice((_RENAME_NOREPLACE, _RENAME_EXCHANGE)))

    def _mkdir(self) -> Operation:
        return "mkdir", (self.path(), self.chance.choice((0o755, 0o700, 0o777)))

    def _mkfifo(self) -> Operation:
        return "mkfifo", (self.path(), 0o644)

    def _symlink(self) -> Operation:
        return "symlink", (self.path(), self.path())  # never '..': it would lead out of the directory

    def _access(self) -> Operation:
        return "access", (self.path(), self.chance.choice((os.R_OK, os.W_OK, os.X_OK)))

    def _listdir(self) -> Operation:
        return "", (self.chance.choice((".", self.path())),)

    _scandir = _listdir

    def _attribute(self) -> str:
        return self.chance.choice(("user.one", "user.two"))

    def _setxattr(self) -> Operation:
        value = self.chance.randbytes(int(self.chance.random() * 60))
        return "setxattr", (self.file(), self._attribute(), value, self.chance.choice((0, 0, 1, 2)))

    def _getxattr(self) -> Operation:
        return "", (self.file(), self._attribute())

    _removexattr = _getxattr


def _outcome(world: World, operation: Operation) -> object:
    try:
        return getattr(world, operation[0])(*operation[1])
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, error.errno)
    except ValueError as error:  # mmap of a file that is empty, or was cut meanwhile
        return str(error)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:80]}… {len(text)} characters"


def _compare_trees(model: World, other: World) -> int:
    """The number of names; raises Differ at the first difference."""
    wanted, found = model.tree(), other.tree()
    if wanted.keys() != found.keys():
        raise Differ(f"names only in one: {sorted(wanted.keys() ^ found.keys())}")
    for path, entry in wanted.items():
        there = found[path]
        if entry[:4] != there[:4]:
            for what, one, two in zip(("type", "status", "content", "attributes"), entry, there, strict=False):
                if one != two:
                    raise Differ(f"{path}: {what}: {_short(one)} and {_short(two)}{_first_difference(one, two)}")
        # data through a fifo move its mtime natively, but no FUSE request says so
        if entry[0] != "other" and entry[-1] != there[-1] and (_is_marker(entry[-1]) or _is_marker(there[-1])):
            raise Differ(f"{path}: mtime: {entry[-1]} and {there[-1]}; a time that was set is kept or lost on one side")
    return len(wanted)


def _first_difference(one: object, two: object) -> str:
    if isinstance(one, bytes) and isinstance(two, bytes):
        at = next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
        return f" (lengths {len(one)} and {len(two)}, first difference at {at})"
    return ""


def _is_marker(time_ns: object) -> bool:
    return isinstance(time_ns, int) and MARKER_NS <= time_ns < MARKER_NS + 10**17


def _directories_count_links(root: str) -> bool:
    os.mkdir(f"{root}/d")
    before = os.stat(f"{root}/d").st_nlink
    os.mkdir(f"{root}/d/e")
    counts = os.stat(f"{root}/d").st_nlink == before + 1 == 3
    os.rmdir(f"{root}/d/e")
    os.rmdir(f"{root}/d")
    return counts


def run(model_root: str, other_root: str, seed: int, steps: int) -> str:
    """Do the steps; a line of figures. Raises Differ with the last operations."""
    links = _directories_count_links(model_root) and _directories_count_links(other_root)
    model, other = World(model_root, links), World(other_root, links)
    last: collections.deque[str] = collections.deque(maxlen=SHOWN)
    refused = resets = 0
    start = time.monotonic()
    os.umask(0o022)
    step = 0
    try:
        source = Steps(seed)
        for step, operation in enumerate(source, 1):
            expected = _outcome(model, operation)
            found = _outcome(other, operation)
            last.append(f"{step}: {operation[0]}({', '.join(map(_short, operation[1]))}) → {_short(expected)}")
            if expected != found:
                raise Differ(f"{_short(expected)} and {_short(found)}{_first_difference(expected, found)}")
            if isinstance(expected, str) and expected.startswith("E"):
                refused += 1
            else:
                source.learn(operation)
            if step % CHECK_EVERY == 0 and _compare_trees(model, other) > MOST_NAMES:
                if model.clear() != other.clear():
                    raise Differ("removing everything removed different numbers of names")
                resets += 1
            if step == steps:
                break
        _compare_trees(model, other)
        model.close_all()
        other.close_all()
        _compare_trees(model, other)
        model.clear()
        other.clear()
        if os.listdir(other_root):
            raise Differ(f"left after removing everything: {os.listdir(other_root)}")
    except Differ as difference:
        history = "\n".join(last)
        raise Differ(
            f"seed {seed}, step {step}: the model and the other differ: {difference}\nlast operations:\n{history}"
        ) from None
    finally:
        model.close_all()
        other.close_all()
    seconds = time.monotonic() - start
    return f"seed {seed}: {steps} steps in {seconds:.1f} s, {refused} refused, {resets} fresh starts"


def main() -> int:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("other")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--user", help="UID:GID to become; the two directories are given to it")
    options = parser.parse_args()
    if options.user:
        uid, gid = map(int, options.user.split(":"))
        for root in (options.model, options.other):
            os.chown(root, uid, gid)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self/fd stays ours
    try:
        print(run(options.model, options.other, options.seed, options.steps))
    except Differ as difference:
        print(difference)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The same random operations on two volumes, compared step by step: one is the model, the other is on trial.

Every choice comes from one seeded random.Random, so a difference can be repeated from its seed. Both volumes get the
same step, and must give the same result or the same errno. Every `compare_every` steps, and at the end, the two trees
are compared completely: names, attributes, hard links, xattrs, contents, holes.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from transfuse.testing.volume import OpenFile, Stat, Volume

__all__ = ["ALL_OPERATIONS", "Difference", "RandomOperations"]

NAMES = ("a", "b", "c", "dd", "e\udcff", "long-" + "n" * 60)
MAX_DEPTH = 4
MAX_OPEN = 6
MAX_SIZE = 96 * 1024
MODES = (0o777, 0o755, 0o700, 0o1777, 0o2775, 0o644, 0o600, 0o4755, 0o6711, 0o2644, 0o000, 0o070)
XATTRS = ("user.one", "user.two", "user.", "trusted.t", "nonsense.x")
SEEK_DATA, SEEK_HOLE = 3, 4

UNKNOWN_INOS = (0, 0xFFFF_FFFF)
"""What a listing may show for an inode whose number it does not know."""

ACLS = (
    # u::rwx u:1001:rw- g::r-x m::rwx o::---, and the same with a narrow mask
    bytes.fromhex("02000000 01000700ffffffff 02000600e9030000 04000500ffffffff 10000700ffffffff 20000000ffffffff"),
    bytes.fromhex("02000000 01000700ffffffff 02000700e9030000 04000700ffffffff 10000400ffffffff 20000400ffffffff"),
    # u::rw- g::r-- g:1002:rwx m::rwx o::r--
    bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 08000700ea030000 10000700ffffffff 20000400ffffffff"),
    # minimal: no more than mode bits
    bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000100ffffffff"),
    # broken: no entry for others
    bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff"),
)
ACL_NAMES = ("system.posix_acl_access", "system.posix_acl_default")


class Difference(AssertionError):
    """The two volumes do not agree."""


class RandomOperations:
    """Steps, and what came of them on both sides.

    `operations` limits the kinds of steps (see ALL_OPERATIONS); `users` are the (uid, gid, groups) that steps are taken
    as, root only by default. `exact_holes`: compare st_blocks and SEEK_DATA/SEEK_HOLE, too, and do not copy. Whether
    what was only allocated counts as data differs (tmpfs: when it was allocated twice), so leave out "fallocate" or
    "seek" where it matters. trusted.* `xattrs` need CAP_SYS_ADMIN, which a thread keeps that only changed its
    filesystem ids: leave them out with several users on an OsVolume.
    """

    def __init__(
        self,
        model: Volume,
        trial: Volume,
        rng: random.Random,
        *,
        operations: Sequence[str] | None = None,
        users: Sequence[tuple[int, int, tuple[int, ...]]] = ((0, 0, ()),),
        exact_holes: bool = True,
        xattrs: Sequence[str] = XATTRS,
        compare_every: int = 500,
    ) -> None:
        self.model = model
        self.trial = trial
        self.rng = rng
        self.operations = list(operations or ALL_OPERATIONS)
        self.users = list(users)
        self.exact_holes = exact_holes
        self.xattrs = list(xattrs)
        self.compare_every = compare_every
        self.open_files: list[tuple[OpenFile, OpenFile]] = []
        self.dirs = ["/"]
        """Paths that may be directories: where names are made."""
        self.steps = 0
        self.outcomes: dict[str, list[int]] = {}
        """Operation -> how many succeeded, how many failed."""
        self.log: list[str] = []

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Take `steps` steps; Difference at the first that differs."""
        try:
            for _ in range(steps):
                self.step()
                if self.steps % self.compare_every == 0:
                    self.compare_trees()
            self.compare_trees()
        finally:
            self.close()

    def close(self) -> None:
        """Close all files."""
        for pair in self.open_files:
            for file in pair:
                file.close()
        self.open_files.clear()

    def step(self) -> None:
        """One random operation on both."""
        self.steps += 1
        name = self.rng.choice(self.operations)
        user = self.rng.choice(self.users)
        getattr(self, f"_{name}")(name, user)

    def _both(self, name: str, user: Any, call: Callable[[Volume, int], Any], what: object = "") -> tuple[Any, Any]:
        """Make `call` on both volumes (its second argument says which) and compare what it gives."""
        self.log.append(f"{self.steps} {name} {what} as {user[0]}")
        del self.log[:-20]
        results: list[Any] = []
        failures: list[int] = []
        for side, volume in enumerate((self.model, self.trial)):
            with volume.identity(*user) if len(self.users) > 1 else ExitStack():
                try:
                    results.append(call(volume, side))
                    failures.append(0)
                except OSError as e:
                    results.append(None)
                    failures.append(e.errno or -1)
        self.outcomes.setdefault(name, [0, 0])[bool(failures[0])] += 1
        if failures[0] != failures[1]:
            model, trial = (errno.errorcode.get(n, "success") for n in failures)
            for result in results:
                if isinstance(result, OpenFile):
                    result.close()
            raise self._difference(f"model: {model}, on trial: {trial}")
        shown = [self._show(result) for result in results]
        if shown[0] != shown[1]:
            raise self._difference(f"model: {shown[0]!r}, on trial: {shown[1]!r}")
        return results[0], results[1]

    def _difference(self, text: str) -> Difference:
        return Difference(f"step {self.steps}: {text}; the last steps:\n  " + "\n  ".join(self.log))

    def _show(self, result: Any) -> Any:
        if isinstance(result, Stat):
            blocks = result.blocks if self.exact_holes and stat.S_ISREG(result.mode) else 0
            size = 0 if stat.S_ISDIR(result.mode) else result.size
            return (oct(result.mode), result.nlink, result.uid, result.gid, result.rdev, size, blocks)
        return None if isinstance(result, OpenFile) else result

    # -- choices -------------------------------------------------------------------------------------------------------

    def _path(self) -> str:
        above = self.rng.choice(self.dirs)
        return ("" if above == "/" else above) + "/" + self.rng.choice(NAMES)

    def _file(self) -> tuple[OpenFile, OpenFile] | None:
        return self.rng.choice(self.open_files) if self.open_files else None

    def _keep(self, pair: tuple[Any, Any]) -> None:
        if pair[0] is None:
            return
        self.open_files.append(pair)
        if len(self.open_files) > MAX_OPEN:
            for file in self.open_files.pop(self.rng.randrange(MAX_OPEN)):
                file.close()

    def _offset(self) -> int:
        if self.rng.random() < 0.3:
            return self.rng.randrange(MAX_SIZE // 4096) * 4096
        return self.rng.randrange(MAX_SIZE)

    # -- steps: names --------------------------------------------------------------------------------------------------

    def _mkdir(self, name: str, user: Any) -> None:
        path, mode = self._path(), self.rng.choice(MODES)
        done, _ = self._both(name, user, lambda v, _: v.mkdir(path, mode) or True, (path, oct(mode)))
        if done and path.count("/") < MAX_DEPTH and path not in self.dirs:
            self.dirs.append(path)

    def _rmdir(self, name: str, user: Any) -> None:
        path = self._path()
        self._both(name, user, lambda v, _: v.rmdir(path), path)

    def _unlink(self, name: str, user: Any) -> None:
        path = self._path()
        self._both(name, user, lambda v, _: v.unlink(path), path)

    def _rename(self, name: str, user: Any) -> None:
        old, new, flags = self._path(), self._path(), self.rng.choice((0, 0, 0, 1, 2, 3))
        self._both(name, user, lambda v, _: v.rename(old, new, flags), (old, new, flags))

    def _link(self, name: str, user: Any) -> None:
        old, new = self._path(), self._path()
        # fs.protected_hardlinks is the kernel's own rule, before any filesystem is asked
        user = self.users[0]
        self._both(name, user, lambda v, _: v.link(old, new), (old, new))

    def _symlink(self, name: str, user: Any) -> None:
        path, target = self._path(), "t" * self.rng.randrange(1, 200)
        self._both(name, user, lambda v, _: v.symlink(target, path), path)

    def _readlink(self, name: str, user: Any) -> None:
        path = self._path()
        self._both(name, user, lambda v, _: v.readlink(path), path)

    def _mknod(self, name: str, user: Any) -> None:
        path, perm = self._path(), self.rng.choice(MODES)
        kind, rdev = self.rng.choice(
            ((stat.S_IFREG, 0), (stat.S_IFIFO, 0), (stat.S_IFSOCK, 0), (stat.S_IFCHR, os.makedev(1, 3)))
        )
        self._both(name, user, lambda v, _: v.mknod(path, kind | perm, rdev), (path, oct(kind | perm)))

    def _stat(self, name: str, user: Any) -> None:
        path = self._path()
        self._both(name, user, lambda v, _: v.stat(path), path)

    def _listdir(self, name: str, user: Any) -> None:
        path = self.rng.choice(self.dirs)
        self._both(name, user, lambda v, _: sorted(v.listdir(path)), path)

    def _access(self, name: str, user: Any) -> None:
        path, mask = self._path(), self.rng.randrange(8)
        self._both(name, user, lambda v, _: not stat.S_ISLNK(v.stat(path).mode) and v.access(path, mask), (path, mask))

    # -- steps: attributes ---------------------------------------------------------------------------------------------

    def _chmod(self, name: str, user: Any) -> None:
        path, mode = self._path(), self.rng.choice(MODES)

        def call(volume: Volume, _: int) -> None:
            if not stat.S_ISLNK(volume.stat(path).mode):  # chmod(2) would follow it
                volume.chmod(path, mode)

        self._both(name, user, call, (path, oct(mode)))

    def _chown(self, name: str, user: Any) -> None:
        path = self._path()
        uid, gid = self.rng.choice((-1, 0, 1001, 1002)), self.rng.choice((-1, 0, 1001, 1002))
        if uid == gid == -1:
            gid = 0
        self._both(name, user, lambda v, _: v.chown(path, uid, gid), (path, uid, gid))

    def _utime(self, name: str, user: Any) -> None:
        path = self._path()
        times = self.rng.choice((None, (1, 2), (10**18 + 1, 10**18 + 2)))

        def call(volume: Volume, _: int) -> Any:
            volume.utime(path, times)
            return volume.stat(path)[8:10] if times is not None else None

        self._both(name, user, call, (path, times))

    def _truncate(self, name: str, user: Any) -> None:
        path, size = self._path(), self._offset()

        def call(volume: Volume, _: int) -> None:
            # truncate(2) would follow a symbolic link, and a device answers as it likes
            if stat.S_IFMT(volume.stat(path).mode) in (stat.S_IFREG, stat.S_IFDIR):
                volume.truncate(path, size)

        self._both(name, user, call, (path, size))

    def _setxattr(self, name: str, user: Any) -> None:
        path, attr, flags = self._path(), self.rng.choice(self.xattrs), self.rng.choice((0, 0, 1, 2))
        value = bytes(self.rng.randrange(40))
        self._both(name, user, lambda v, _: v.setxattr(path, attr, value, flags), (path, attr, flags))

    def _getxattr(self, name: str, user: Any) -> None:
        path, attr = self._path(), self.rng.choice([*self.xattrs, *ACL_NAMES])
        self._both(name, user, lambda v, _: v.getxattr(path, attr), (path, attr))

    def _removexattr(self, name: str, user: Any) -> None:
        path, attr = self._path(), self.rng.choice([*self.xattrs, *ACL_NAMES])
        self._both(name, user, lambda v, _: v.removexattr(path, attr), (path, attr))

    def _listxattr(self, name: str, user: Any) -> None:
        path = self._path()
        self._both(name, user, lambda v, _: sorted(v.listxattr(path)), path)

    def _setacl(self, name: str, user: Any) -> None:
        path, attr, value = self._path(), self.rng.choice(ACL_NAMES), self.rng.choice(ACLS)
        self._both(name, user, lambda v, _: v.setxattr(path, attr, value), (path, attr, ACLS.index(value)))

    # -- steps: open files ---------------------------------------------------------------------------------------------

    def _open(self, name: str, user: Any) -> None:
        path = self._path()
        flags = self.rng.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_APPEND))

        def call(volume: Volume, _: int) -> Any:
            # Opening a fifo or a device would reach its driver and never the filesystem.
            if stat.S_IFMT(volume.stat(path).mode) not in (stat.S_IFREG, stat.S_IFLNK):
                return None
            return volume.open(path, flags)

        self._keep(self._both(name, user, call, (path, oct(flags))))

    def _create(self, name: str, user: Any) -> None:
        path, mode = self._path(), self.rng.choice(MODES)
        flags = os.O_CREAT | os.O_EXCL | self.rng.choice((os.O_WRONLY, os.O_RDWR))
        self._keep(self._both(name, user, lambda v, _: v.open(path, flags, mode), (path, oct(mode))))

    def _tmpfile(self, name: str, user: Any) -> None:
        path, mode = self.rng.choice(self.dirs), self.rng.choice(MODES)
        self._keep(self._both(name, user, lambda v, _: v.tmpfile(path, os.O_RDWR, mode), (path, oct(mode))))

    def _link_open(self, name: str, user: Any) -> None:
        pair, path = self._file(), self._path()
        if pair is not None:
            self._both(name, self.users[0], lambda v, side: v.link_open(pair[side], path), path)

    def _close(self, name: str, user: Any) -> None:
        if self.open_files:
            pair = self.open_files.pop(self.rng.randrange(len(self.open_files)))
            self._both(name, user, lambda _, side: pair[side].close())

    def _pread(self, name: str, user: Any) -> None:
        pair, offset, size = self._file(), self._offset(), self.rng.randrange(20_000)
        if pair is not None:
            self._both(name, user, lambda _, side: pair[side].pread(size, offset), (offset, size))

    def _pwrite(self, name: str, user: Any) -> None:
        pair, offset, size = self._file(), self._offset(), self.rng.choice((1, 100, 4096, 8192, 9999))
        data = self.rng.randbytes(64) * (size // 64 + 1)
        if pair is not None:
            self._both(name, user, lambda _, side: pair[side].pwrite(data[:size], offset), (offset, size))

    def _ftruncate(self, name: str, user: Any) -> None:
        pair, size = self._file(), self._offset()
        if pair is not None:
            self._both(name, user, lambda _, side: pair[side].truncate(size), size)

    def _fstat(self, name: str, user: Any) -> None:
        pair = self._file()
        if pair is not None:
            self._both(name, user, lambda _, side: pair[side].stat())

    def _fallocate(self, name: str, user: Any) -> None:
        self._allocate(name, user, self.rng.choice((0, 1)))

    def _punch(self, name: str, user: Any) -> None:
        self._allocate(name, user, 3)

    def _allocate(self, kind: str, user: Any, mode: int) -> None:
        pair, offset, size = self._file(), self._offset(), self.rng.randrange(0, 20_000)
        if pair is not None:
            self._both(kind, user, lambda _, side: pair[side].allocate(mode, offset, size), (mode, offset, size))

    def _seek(self, name: str, user: Any) -> None:
        pair, offset, whence = self._file(), self._offset(), self.rng.choice((SEEK_DATA, SEEK_HOLE))
        if pair is not None and self.exact_holes:
            self._both(name, user, lambda _, side: pair[side].seek(offset, whence), (offset, whence))

    def _copy(self, name: str, user: Any) -> None:
        source, target = self._file(), self._file()
        offset, to, size = self._offset(), self._offset(), self.rng.randrange(1, 20_000)
        if self.exact_holes or source is None or target is None:
            return  # a copy may keep holes or fill them
        self._both(name, user, lambda _, side: source[side].copy_to(target[side], offset, to, size), (offset, to, size))

    # -- comparing -----------------------------------------------------------------------------------------------------

    def compare_trees(self) -> None:
        """Everything in both trees; also forgets directories that are gone."""
        model, trial = self._tree(self.model), self._tree(self.trial)
        if model != trial:
            paths = [p for p in sorted(model.keys() | trial.keys()) if model.get(p) != trial.get(p)]
            path = paths[0]
            raise self._difference(f"{path!r} is {model.get(path)!r} in the model, {trial.get(path)!r} on trial")
        self.dirs = [path for path in self.dirs if path == "/" or path in model]

    def _tree(self, volume: Volume) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first_name: dict[int, str] = {}
        ahead = [""]
        while ahead:
            above = ahead.pop()
            for name, ino, kind in sorted(volume.scandir(above or "/")):
                path = f"{above}/{name}"
                st = volume.stat(path)
                if ino not in (st.ino, *UNKNOWN_INOS) or kind not in (0, stat.S_IFMT(st.mode) >> 12):
                    raise self._difference(f"{path!r} is listed as inode {ino} of kind {kind}, but is {st}")
                content: Any = None
                if stat.S_ISREG(st.mode):
                    content = volume.read_bytes(path)
                elif stat.S_ISLNK(st.mode):
                    content = volume.readlink(path)
                elif stat.S_ISDIR(st.mode):
                    ahead.append(path)
                xattrs = {n: volume.getxattr(path, n) for n in volume.listxattr(path)}
                same = first_name.setdefault(st.ino, path)
                found[path] = (self._show(st), same, xattrs, content)
        return found


ALL_OPERATIONS = tuple(
    name[1:]
    for name, value in vars(RandomOperations).items()
    if name.startswith("_")
    and callable(value)
    and getattr(value, "__code__", None) is not None
    and value.__code__.co_varnames[:3] == ("self", "name", "user")
    and name != "_both"
)
"""Every kind of step."""

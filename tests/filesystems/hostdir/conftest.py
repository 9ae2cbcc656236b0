"""A host directory on each kind of filesystem there is here, served by root and by an ordinary user, and short ways to
call it as its session would.

Tests that use `source` run four times: in /tmp and in /dev/shm, as whoever runs the tests, and, where that is root, as
an ordinary user: the test's function is then called in a forked process that has given up its privileges, because the
interpreter itself may lie where other users can't start it. Marked with needs("root") it runs as root only.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pytest

from transfuse.filesystems.hostdir import HostDirectory
from transfuse.fs.request import Request
from transfuse.fs.values import Entry, FileRange, Opened

T = TypeVar("T")
USER = 65534
PLACES = ("/tmp", "/dev/shm")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "source" in metafunc.fixturenames:
        root_only = not getattr(metafunc.module, "AS_USER", True) or any(
            "root" in mark.args for mark in metafunc.definition.iter_markers("needs")
        )
        cases = [pytest.param((place, False), id=place) for place in PLACES]
        if not root_only:
            cases += [
                pytest.param((place, True), id=f"{place} as user", marks=pytest.mark.needs("user")) for place in PLACES
            ]
        metafunc.parametrize("source", cases, indirect=True)


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory, on the disk's filesystem or on tmpfs."""
    place, as_user_ = request.param
    path = Path(tempfile.mkdtemp(prefix="transfuse-hostdir-", dir=place))
    path.chmod(0o755)
    if as_user_:
        os.chown(path, USER, USER)
    yield path
    shutil.rmtree(path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    params = getattr(pyfuncitem, "callspec", None)
    if params is None or not params.params.get("source", ("", False))[1]:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    as_user(lambda: pyfuncitem.obj(**arguments))
    return True


def as_user(call: Callable[[], object]) -> None:
    """call() as an ordinary user in a process of its own; fails with its traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
            call()
            status = 0
        except BaseException:  # noqa: BLE001 - shown by the parent
            os.write(writer, traceback.format_exc().encode()[-8000:])
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if status:
        pytest.fail(f"as uid {USER}:\n{text or f'status {status:#x}'}", pytrace=False)


class Served:
    """A HostDirectory and the caller's side of a conversation with it. Made at its first use, by who then runs."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.options = options
        self._made: HostDirectory | None = None
        self._making = threading.Lock()

    @property
    def fs(self) -> HostDirectory:
        # Not a cached_property: that has had no lock since Python 3.12, so threads whose first use falls together would
        # each make a filesystem, and then ask one about the nodes and handles of another (ESTALE, EBADF).
        with self._making:
            if self._made is None:
                self._made = HostDirectory(self.path, **self.options)
            return self._made

    @cached_property
    def req(self) -> Request:
        return Request(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid())

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def hand_over(self) -> None:
        """What a fixture made, still as root, belongs to whoever the test runs as."""
        owner = self.path.stat()
        for path in self.path.iterdir():
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def look(self, name: str, parent: int = 1) -> int:
        entry = self.fs.lookup(self.req, parent, name.encode())
        assert entry.nodeid, f"{name} is not there"
        return entry.nodeid

    def missing(self, name: str, parent: int = 1) -> bool:
        return self.fs.lookup(self.req, parent, name.encode()).nodeid == 0

    def create(self, name: str, mode: int = 0o644, flags: int = os.O_RDWR) -> tuple[Entry, Opened]:
        return self.fs.create(self.req, 1, name.encode(), mode, 0, flags | os.O_CREAT)

    def mkdir(self, name: str, parent: int = 1, mode: int = 0o755) -> int:
        return self.fs.mkdir(self.req, parent, name.encode(), mode, 0).nodeid

    def open(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        return self.fs.open(self.req, nodeid, flags).fh

    def size(self, nodeid: int) -> int:
        return self.fs.getattr(self.req, nodeid, None).size

    def read(self, fh: int, size: int = 1 << 16, offset: int = 0) -> bytes:
        where = self.fs.read(self.req, 0, fh, size, offset)
        assert isinstance(where, FileRange)
        return os.pread(where.fd, where.length, where.offset)

    def write(self, nodeid: int, fh: int, data: bytes, offset: int = 0) -> int:
        return self.fs.write(self.req, nodeid, fh, memoryview(data), offset, 0)

    def release(self, nodeid: int, fh: int) -> None:
        self.fs.release(self.req, nodeid, fh, 0, 0, False)

    def names(self, nodeid: int = 1) -> list[bytes]:
        fh = self.fs.opendir(self.req, nodeid, 0).fh
        found, offset = [], 0
        while entries := self.fs.readdir(self.req, nodeid, fh, offset):
            found += [entry.name for entry in entries]
            offset = entries[-1].cookie
        self.fs.releasedir(self.req, nodeid, fh, 0)
        return sorted(found)


@pytest.fixture
def make(source: Path) -> Iterator[Callable[..., Served]]:
    """Serve the source with these options of HostDirectory."""
    made: list[Served] = []

    def one(**options: Any) -> Served:
        made.append(Served(source, **options))
        return made[-1]

    yield one
    for served in made:
        served.close()
    gc.collect()


@pytest.fixture
def served(make: Callable[..., Served]) -> Served:
    return make()


@pytest.fixture
def in_thread() -> Callable[[Callable[[], Any]], Any]:
    """Call something on a thread of its own, as a worker would; its exception is raised here."""

    def call_in_thread(call: Callable[[], T]) -> T:
        result: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                result.append(call())
            except BaseException as error:  # noqa: BLE001 - raised by the caller
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        if errors:
            raise errors[0]
        return result[0]

    return call_in_thread

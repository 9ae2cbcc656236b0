"""Files without OPEN: what is kept open, and that a peer notices nothing but the requests it does not send."""

from __future__ import annotations

import errno
import gc
import os
import stat
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.hostdir.unopened import MAX_KEPT
from transfuse.server import mount
from transfuse.session.server import ServerSession
from transfuse.wire.opcodes import opcode_name

GETFLAGS, SETFLAGS, APPEND_ONLY = 0x80086601, 0x40086602, 0x20
Served = Any
Make = Callable[..., Any]


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


@pytest.fixture
def lazy(make: Make) -> Served:
    """A file `a` with "hello"."""
    served = make(cache="always", no_open=True)
    (served.path / "a").write_text("hello")
    served.hand_over()
    return served


def read(served: Served, nodeid: int, size: int = 100, offset: int = 0) -> bytes:
    where = served.fs.read(served.req, nodeid, 0, size, offset)
    return os.pread(where.fd, where.length, where.offset)


def open_files(served: Served) -> int:
    """How many regular files on the source's filesystem this process has open."""
    gc.collect()
    device = served.path.stat().st_dev
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            st = os.fstat(int(fd))
        except OSError:
            continue
        count += stat.S_ISREG(st.st_mode) and st.st_dev == device
    return count


def test_reading_and_writing_without_open(lazy: Served) -> None:
    node = lazy.look("a")
    assert read(lazy, node) == b"hello"
    assert lazy.fs.write(lazy.req, node, 0, memoryview(b"J"), 0, 0) == 1
    assert read(lazy, node) == b"Jello" == (lazy.path / "a").read_bytes()


def test_what_else_names_an_open_file(lazy: Served) -> None:
    (lazy.path / "b").touch()
    lazy.hand_over()
    a, b = lazy.look("a"), lazy.look("b")
    fs, req = lazy.fs, lazy.req
    fs.fsync(req, a, 0, False)
    fs.fallocate(req, a, 0, 0, 0, 100)
    assert lazy.size(a) == 100
    assert fs.lseek(req, a, 0, 0, os.SEEK_DATA) == 0
    assert fs.copy_file_range(req, a, 0, 0, b, 0, 0, 5, 0) == 5
    assert read(lazy, b) == b"hello"


@pytest.mark.parametrize("access", [os.O_WRONLY, os.O_RDWR])
def test_a_created_file_has_no_handle_either(lazy: Served, access: int) -> None:
    entry, opened = lazy.create("new", flags=access)
    assert opened.fh == 0 and opened.noflush and opened.keep_cache
    assert lazy.write(entry.nodeid, 0, b"x") == 1
    lazy.release(entry.nodeid, 0)
    assert read(lazy, entry.nodeid) == b"x"


def test_created_files_do_not_stay_open(lazy: Served) -> None:
    before = open_files(lazy)
    for number in range(2 * MAX_KEPT):
        lazy.create(f"f{number}")
    assert open_files(lazy) - before <= MAX_KEPT


def test_an_existing_file_that_is_created_has_no_handle(lazy: Served) -> None:
    entry, opened = lazy.create("a", flags=os.O_RDWR | os.O_TRUNC)
    assert opened.fh == 0 and read(lazy, entry.nodeid) == b""


def test_a_file_without_name_is_read_and_linked(lazy: Served) -> None:
    entry, opened = lazy.fs.tmpfile(lazy.req, 1, 0o600, 0, os.O_RDWR)
    assert opened.fh == 0
    lazy.write(entry.nodeid, 0, b"x")
    for number in range(MAX_KEPT):
        lazy.create(f"f{number}")
    lazy.fs.link(lazy.req, entry.nodeid, 1, b"named")
    assert (lazy.path / "named").read_bytes() == b"x" == read(lazy, entry.nodeid)


def test_appending_goes_by_the_peers_offsets(lazy: Served) -> None:
    entry, _ = lazy.create("new", flags=os.O_WRONLY | os.O_APPEND)
    lazy.write(entry.nodeid, 0, b"two", 3)
    lazy.write(entry.nodeid, 0, b"one", 0)
    assert (lazy.path / "new").read_bytes() == b"onetwo"


def test_a_wrong_handle_is_ebadf(lazy: Served, make: Make) -> None:
    node = lazy.look("a")
    assert errno_of(lambda: lazy.fs.read(lazy.req, node, 99, 1, 0)) == errno.EBADF
    ordinary = make(cache="always")
    assert errno_of(lambda: ordinary.fs.read(ordinary.req, ordinary.look("a"), 0, 1, 0)) == errno.EBADF


def test_only_regular_files_are_opened_for_a_request_without_handle(lazy: Served) -> None:
    os.mkfifo(lazy.path / "fifo")
    lazy.mkdir("d")
    for name in ("fifo", "d"):
        node = lazy.look(name)
        assert errno_of(lambda node=node: lazy.fs.read(lazy.req, node, 0, 1, 0)) == errno.EBADF  # type: ignore[misc]


def test_a_bounded_number_of_files_is_kept_open(lazy: Served) -> None:
    names = [f"f{number}" for number in range(2 * MAX_KEPT)]
    for name in names:
        (lazy.path / name).write_text(name)
    lazy.hand_over()
    before = open_files(lazy)
    nodes = [lazy.look(name) for name in names]
    for name, node in zip(names, nodes, strict=True):
        assert read(lazy, node) == name.encode()
    assert open_files(lazy) - before == MAX_KEPT
    assert read(lazy, nodes[0]) == b"f0"


def test_the_file_used_last_stays_open(lazy: Served) -> None:
    node = lazy.look("a")
    fd = lazy.fs.read(lazy.req, node, 0, 1, 0).fd
    for number in range(MAX_KEPT - 1):
        (lazy.path / f"f{number}").touch()
        lazy.hand_over()
        read(lazy, lazy.look(f"f{number}"))
        assert lazy.fs.read(lazy.req, node, 0, 1, 0).fd == fd


def test_a_removed_file_is_read_until_it_is_forgotten(lazy: Served) -> None:
    node = lazy.look("a")
    before = open_files(lazy)
    assert read(lazy, node) == b"hello"
    lazy.fs.unlink(lazy.req, 1, b"a")
    assert read(lazy, node) == b"hello"
    lazy.fs.forget(lazy.req, node, 1)
    assert open_files(lazy) == before
    assert errno_of(lambda: read(lazy, node)) == errno.ESTALE


def test_a_file_that_was_never_read_can_be_once_it_is_removed(lazy: Served) -> None:
    node = lazy.look("a")
    lazy.fs.unlink(lazy.req, 1, b"a")
    assert read(lazy, node) == b"hello"


def test_a_name_that_changes_hands_does_not_change_the_file(lazy: Served) -> None:
    node = lazy.look("a")
    (lazy.path / "b").write_text("other")
    lazy.hand_over()
    lazy.fs.rename(lazy.req, 1, b"b", 1, b"a", 0)
    assert read(lazy, node) == b"hello"
    assert read(lazy, lazy.look("a")) == b"other"


@pytest.mark.needs("root")
def test_an_append_only_file_grows_at_its_end(lazy: Served) -> None:
    node = lazy.look("a")
    flags = struct.unpack("I", lazy.fs.ioctl(lazy.req, node, 0, GETFLAGS, 0, b"", 4, 0))[0]
    lazy.fs.ioctl(lazy.req, node, 0, SETFLAGS, 0, struct.pack("I", flags | APPEND_ONLY), 0, 0)
    try:
        assert lazy.fs.write(lazy.req, node, 0, memoryview(b" you"), 5, 0) == 4
        assert errno_of(lambda: lazy.fs.write(lazy.req, node, 0, memoryview(b"J"), 0, 0)) == errno.EPERM
        assert read(lazy, node) == b"hello you"
    finally:
        lazy.fs.ioctl(lazy.req, node, 0, SETFLAGS, 0, struct.pack("I", flags), 0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "auto"},
        {"cache": "always", "direct_io": True},
        {"cache": "always", "posix_locks": True},
    ],
)
def test_what_cannot_go_with_it_is_refused(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no_open"):
        _ = make(no_open=True, **options).fs


# ---- behind the kernel


class Mounted:
    def __init__(self, source: Path, point: Path, wire: Counter[str]) -> None:
        self.source = source
        self.point = point
        self.wire = wire


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounted]:
    wire: Counter[str] = Counter()
    original = ServerSession.handle

    def handle(self: ServerSession, buffer: Any, start: int, end: int, channel: Any) -> Any:
        wire[opcode_name(int.from_bytes(buffer[start + 4 : start + 8], sys.byteorder))] += 1
        return original(self, buffer, start, end, channel)

    monkeypatch.setattr(ServerSession, "handle", handle)
    point = Path(tempfile.mkdtemp(prefix="transfuse-no-open-"))
    fs = HostDirectory(tmp_path, cache="always", no_open=True)
    with mount(fs, point, ["default_permissions"]):
        yield Mounted(tmp_path, point, wire)
    fs.close()
    point.rmdir()


kernel = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]


def on_the_kernel(test: Any) -> Any:
    for mark in kernel:
        test = mark(test)
    return test


def read_whole(path: Path) -> bytes:
    """Without the ioctl by which open() asks whether the file is a terminal."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


@on_the_kernel
def test_a_small_file_costs_a_lookup_and_a_read(mounted: Mounted) -> None:
    for number in range(20):
        (mounted.source / f"f{number}").write_text(str(number))
    assert read_whole(mounted.point / "f0") == b"0"  # OPEN and FLUSH are told ENOSYS, once
    mounted.wire.clear()
    for number in range(1, 20):
        assert read_whole(mounted.point / f"f{number}") == str(number).encode()
    assert mounted.wire == Counter(LOOKUP=19, READ=19)
    for number in range(20):
        assert read_whole(mounted.point / f"f{number}") == str(number).encode()
    assert mounted.wire == Counter(LOOKUP=19, READ=19)


@on_the_kernel
def test_writing_truncating_and_appending_by_open(mounted: Mounted) -> None:
    (mounted.source / "a").write_text("hello")
    with open(mounted.point / "a", "r+b") as file:
        file.write(b"J")
    assert (mounted.source / "a").read_text() == "Jello"
    with open(mounted.point / "a", "ab") as file:
        file.write(b"!")
    assert (mounted.source / "a").read_text() == "Jello!"
    with open(mounted.point / "a", "wb") as file:
        assert (mounted.source / "a").read_bytes() == b""
        file.write(b"new")
    assert (mounted.source / "a").read_text() == "new" == (mounted.point / "a").read_text()
    assert mounted.wire["OPEN"] == 1


@on_the_kernel
def test_a_program_on_it_runs(mounted: Mounted) -> None:
    (mounted.source / "run").write_text("#!/bin/sh\necho ran\n")
    (mounted.source / "run").chmod(0o755)
    done = subprocess.run([mounted.point / "run"], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "ran\n"


@on_the_kernel
def test_locks_are_kept_by_the_kernel(mounted: Mounted) -> None:
    (mounted.source / "a").touch()
    code = (
        "import fcntl, sys\n"
        "one, two = open(sys.argv[1], 'r+'), open(sys.argv[1], 'r+')\n"
        "fcntl.flock(one, fcntl.LOCK_EX)\n"
        "try:\n"
        "    fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n"
        "    print('busy')\n"
        "fcntl.lockf(one, fcntl.LOCK_EX)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, mounted.point / "a"], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "busy\n"
    assert mounted.wire["SETLK"] == 0 and mounted.wire["FLUSH"] <= 1

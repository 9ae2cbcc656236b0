"""Opens, listings and data as the kernel asks for them."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from interop.counting import Counting, child
from interop.kernel import LONG, MAP_SHARED, drop_caches, later, mounted
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, FileRange, Opened
from transfuse.wire import flags as f

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]

# -- opens


def test_no_open_spares_open_and_release(place: Path, wire: Counter[str]) -> None:
    fs = Counting(no_open=True, **LONG)
    # Handles are 0 then, which the memory filesystem does not know.
    fs.answer["read"] = lambda inner, req, nodeid, fh, size, offset: b"data"[offset : offset + size]
    fs.answer["flush"] = lambda inner, req, nodeid, fh, lock_owner: None
    with mounted(fs, place) as made:
        assert made.connection.features.no_open
        (place / "file").write_bytes(b"data")
        for _ in range(3):
            assert (place / "file").read_bytes() == b"data"
        assert wire["OPEN"] <= 1  # the one that was told ENOSYS
        assert wire["RELEASE"] <= 1


def test_no_opendir_spares_opendir_and_releasedir(place: Path, wire: Counter[str]) -> None:
    with mounted(Counting(no_opendir=True, **LONG), place) as made:
        assert made.connection.features.no_opendir
        for number in range(300):
            (place / f"file{number}").touch()
        for _ in range(3):
            assert len(os.listdir(place)) == 300
        assert wire["OPENDIR"] == 1
        assert wire["RELEASEDIR"] == 0


def test_open_with_atomic_truncation(place: Path, wire: Counter[str]) -> None:
    with mounted(Counting(**LONG), place):
        (place / "file").write_bytes(b"data")
        wire.clear()
        (place / "file").open("wb").close()
        assert wire["SETATTR"] == 0
        assert os.stat(place / "file").st_size == 0


# -- listings


@pytest.mark.parametrize(
    ("wish", "listing", "again"),
    [(None, "READDIRPLUS", "READDIR"), (True, "READDIRPLUS", "READDIRPLUS"), (False, "READDIR", "READDIR")],
    ids=["auto", "always", "never"],
)
def test_readdirplus(place: Path, wire: Counter[str], wish: bool | None, listing: str, again: str) -> None:
    with mounted(Counting(readdirplus=wish, **LONG), place):
        for number in range(200):
            (place / f"file{number}").touch()
        drop_caches()
        wire.clear()
        names = os.listdir(place)
        assert len(names) == 200
        assert wire[listing] >= 1
        assert wire[again] >= 1
        other = {"READDIR", "READDIRPLUS"} - {listing, again}
        assert not any(wire[name] for name in other)
        wire.clear()
        for name in names:
            os.stat(place / name)
        if wish is True:
            assert wire["LOOKUP"] == 0
        elif wish is False:
            assert wire["LOOKUP"] == 200


def test_large_directory_is_listed_whole(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        inner: Any = fs.inner
        req = Request()
        for number in range(20_000):
            inner.mknod(req, 1, b"a-name-of-some-length-%06d" % number, 0o100644, 0, 0)
        made.notify.inval_inode(1)
        names = os.listdir(place)
        assert len(names) == len(set(names)) == 20_000


# -- data


def test_requests_of_a_megabyte(place: Path) -> None:
    fs = Counting(**LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, direct_io=True)
    data = mmap.mmap(-1, 1 << 20)  # page-aligned: else it lies on 257 pages, and a request has 256
    data[:] = os.urandom(1 << 20)
    with mounted(fs, place) as made:
        assert made.connection.max_write == 1 << 20
        (place / "file").touch()
        fd = os.open(place / "file", os.O_RDWR)
        try:
            assert os.write(fd, data) == 1 << 20
            assert len(fs.arguments["WRITE"][2]) == 1 << 20
            back = mmap.mmap(-1, 1 << 20)
            assert os.preadv(fd, [back], 0) == 1 << 20
            assert back[:] == data[:]
            assert fs.arguments["READ"][2] == 1 << 20
        finally:
            os.close(fd)


def test_file_ranges_are_fetched_by_the_transport(place: Path, tmp_path: Path) -> None:
    fs = Counting(**LONG)
    data = os.urandom(300_001)
    (tmp_path / "backing").write_bytes(data)
    backing = os.open(tmp_path / "backing", os.O_RDONLY)
    fs.answer["read"] = lambda inner, req, nodeid, fh, size, offset: FileRange(backing, offset, size)
    try:
        with mounted(fs, place):
            (place / "file").write_bytes(bytes(len(data)))
            with (place / "file").open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert (place / "file").read_bytes() == data
    finally:
        os.close(backing)


def test_file_range_that_cannot_be_read_is_its_error(place: Path) -> None:
    fs = Counting(**LONG)
    fs.answer["read"] = lambda inner, req, nodeid, fh, size, offset: FileRange(1_000_000, offset, size)
    with mounted(fs, place):
        (place / "file").write_bytes(bytes(10))
        os.truncate(place / "file", 5000)
        with (place / "file").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with pytest.raises(OSError) as caught:
                file.read()
        assert caught.value.errno == errno.EBADF or caught.value.errno == errno.EIO


def test_writeback_gathers_small_writes(place: Path) -> None:
    fs = Counting(writeback_cache=True, **LONG)
    with mounted(fs, place) as made:
        assert made.connection.features.writeback_cache
        with (place / "file").open("wb", buffering=0) as file:
            for _ in range(1000):
                file.write(b"x")
        assert fs.count("WRITE") < 10
        assert fs.arguments["WRITE"][4] & f.FUSE_WRITE_CACHE
        assert (place / "file").read_bytes() == b"x" * 1000


def test_write_through_sends_each_write(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        with (place / "file").open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"x")
        assert fs.count("WRITE") == 20


@pytest.mark.parametrize("allowed", [False, True])
def test_shared_mapping_of_a_direct_io_file(place: Path, allowed: bool) -> None:
    fs = Counting(direct_io_allow_mmap=allowed, **LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, direct_io=True)
    with mounted(fs, place):
        (place / "file").write_bytes(b"data" + bytes(4092))
        said = child(MAP_SHARED, place / "file")
        assert said == ("data" if allowed else str(errno.ENODEV))
        assert (place / "file").read_bytes()[:4] == (b"back" if allowed else b"data")


def test_memory_lets_the_kernel_keep_a_page_that_is_being_written(place: Path) -> None:
    """The kernel unlocks a page before it sends the write. If it dropped the page because mtime moved, another reader
    would fetch, and leave in the cache, what the write has not reached yet."""
    fs = Counting(**asdict(MemoryFilesystem().features) | {"attr_timeout_s": 0.0})
    began, held = threading.Event(), threading.Event()

    def slow_write(inner: Any, req: Request, *args: Any) -> int:
        began.set()
        assert held.wait(20)
        written: int = inner(req, *args)
        return written

    with mounted(fs, place):
        (place / "file").write_bytes(b"o" * 8192)
        with open(place / "file", "r+b", buffering=0) as file, open(place / "file", "rb", buffering=0) as other:
            other.read()
            fs.answer["write"] = slow_write
            thread, result = later(lambda: os.pwrite(file.fileno(), b"n" * 4096, 4096))
            assert began.wait(20)
            moved = os.stat(place / "file").st_mtime_ns + 1
            fs.answer["getattr"] = lambda inner, req, *args: _with_mtime(inner(req, *args), moved)
            fs.count("READ")
            seen = os.stat(place / "file").st_mtime_ns, os.pread(other.fileno(), 1, 8191), fs.count("READ")
            held.set()
            thread.join()
        assert seen == (moved, b"n", 0) and result == [4096]


def _with_mtime(attr: Attr, mtime_ns: int) -> Attr:
    attr.mtime_ns = mtime_ns
    return attr

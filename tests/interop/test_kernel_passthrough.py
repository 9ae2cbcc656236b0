"""Kernel passthrough: files whose reads and writes never reach the server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from interop.counting import Counting, child
from interop.kernel import LONG, MAP_SHARED, mounted
from session.peers import eventually
from transfuse.fs.values import Opened
from transfuse.server import Mount
from transfuse.wire import flags as f

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]


class Passing(Counting):
    """Every file's bytes are those of one file outside; `backed` says whether the next open offers it."""

    def __init__(self, backing: int) -> None:
        super().__init__(passthrough=True, **LONG)
        self.backed = True
        self.answer["open"] = lambda inner, req, nodeid, flags: Opened(
            inner(req, nodeid, flags).fh, backing_fd=backing if self.backed else None
        )
        self.answer["read"] = lambda inner, req, nodeid, fh, size, offset: os.pread(backing, size, offset)


@pytest.fixture
def passing(place: Path, tmp_path: Path) -> Iterator[tuple[Passing, Mount]]:
    # On tmpfs or the like: /tmp may itself be stacked too deep.
    data = b"passed through" * 1000
    path = tmp_path / "backing"
    path.write_bytes(data)
    backing = os.open(path, os.O_RDWR)
    fs = Passing(backing)
    try:
        with mounted(fs, place) as made:
            if not made.connection.has(f.FUSE_PASSTHROUGH):
                pytest.skip("the kernel has no passthrough (CONFIG_FUSE_PASSTHROUGH, since 6.9)")
            (place / "file").touch()
            os.truncate(place / "file", len(data))
            yield fs, made
    finally:
        os.close(backing)


def test_passthrough_reads_and_writes_without_requests(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, made = passing
    fs.seen.clear()
    with (place / "file").open("r+b", buffering=0) as file:
        assert file.read(14) == b"passed through"
        file.seek(0)
        file.write(b"PASSED")
        assert len(made.server.session.passthrough._opens) == 1
    assert fs.count("READ") == fs.count("WRITE") == 0
    assert (place.parent / "backing").read_bytes()[:14] == b"PASSED through"
    eventually(lambda: not made.server.session.passthrough._opens)
    assert made.server.session.passthrough.refused == 0


def test_cached_open_first_then_one_with_a_backing_file(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, made = passing
    fs.backed = False
    with (place / "file").open("rb", buffering=0) as cached:
        assert cached.read(6) == b"passed"
        fs.backed = True
        with (place / "file").open("rb", buffering=0) as second:
            assert second.read(6) == b"passed"
    eventually(lambda: not made.server.session.passthrough._opens)
    fs.seen.clear()
    with (place / "file").open("rb", buffering=0) as third:
        assert third.read(6) == b"passed"
    assert fs.count("READ") == 0


def test_backed_open_first_then_one_without(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, made = passing
    with (place / "file").open("rb", buffering=0) as backed:
        fs.backed = False
        fs.seen.clear()
        with (place / "file").open("rb", buffering=0) as second:
            assert second.read(6) == b"passed"
        assert backed.read(6) == b"passed"
    assert fs.count("READ") == 0
    eventually(lambda: not made.server.session.passthrough._opens)


def test_many_openers_at_once_never_see_an_error(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, made = passing
    failures: list[object] = []

    def work(number: int) -> None:
        for turn in range(60):
            fs.backed = (number + turn) % 3 > 0
            try:
                with (place / "file").open("rb", buffering=0) as file:
                    if file.read(6) != b"passed":
                        failures.append("data")
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    eventually(lambda: not made.server.session.passthrough._opens)


def test_mapped_passthrough_file(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, _ = passing
    assert child(MAP_SHARED, place / "file") == "pass"
    assert fs.count("READ") == 0
    assert (place.parent / "backing").read_bytes()[:4] == b"back"


def test_file_the_kernel_will_not_take_goes_through_the_server(place: Path) -> None:
    reading, writing = os.pipe()  # not a regular file: EINVAL
    fs = Passing(reading)
    del fs.answer["read"]
    try:
        with mounted(fs, place) as made:
            if not made.connection.has(f.FUSE_PASSTHROUGH):
                pytest.skip("the kernel has no passthrough (CONFIG_FUSE_PASSTHROUGH, since 6.9)")
            fs.backed = False
            (place / "file").write_bytes(b"data")
            eventually(lambda: not made.server.session.passthrough._opens)
            fs.backed = True
            assert (place / "file").read_bytes() == b"data"
            assert made.server.session.passthrough.refused == 1
    finally:
        os.close(reading)
        os.close(writing)


def test_passthrough_is_not_agreed_with_writeback(place: Path) -> None:
    with mounted(Counting(passthrough=True, writeback_cache=True), place) as made:
        assert made.connection.features.writeback_cache
        assert not made.connection.features.passthrough
        (place / "file").write_bytes(b"data")

"""The front-end's view of the DAX window."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.transports.vhost_user.mapped import WindowView

PAGE = 4096


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "data"
    path.write_bytes(b"a" * PAGE + b"b" * PAGE + b"c" * 10)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def window() -> Iterator[WindowView]:
    window = WindowView(16 * PAGE)
    yield window
    window.clear()


def test_bytes_of_a_file_are_seen_where_they_were_mapped(window: WindowView, fd: int) -> None:
    window.map(4 * PAGE, 2 * PAGE, fd, PAGE, False)
    assert bytes(window.at(4 * PAGE, 3)) == b"bbb"
    assert window.mapped == 2 * PAGE


def test_behind_the_end_of_the_file_there_is_nothing(window: WindowView, fd: int) -> None:
    window.map(0, 8 * PAGE, fd, 0, False)
    assert bytes(window.at(2 * PAGE, PAGE)) == b"c" * 10
    assert bytes(window.at(3 * PAGE, PAGE)) == b""


def test_writes_reach_the_file(window: WindowView, fd: int) -> None:
    window.map(0, PAGE, fd, 0, True)
    window.at(5, 3, writable=True)[:] = b"xyz"
    assert os.pread(fd, 9, 0) == b"aaaaaxyza"


def test_a_piece_for_reading_is_not_written(window: WindowView, fd: int) -> None:
    window.map(0, PAGE, fd, 0, False)
    with pytest.raises(OSError, match="mapped for reading"):
        window.at(0, 1, writable=True)
    assert window.at(0, 1).readonly


@pytest.mark.parametrize("at", [0, PAGE, 3 * PAGE])
def test_what_overlaps_is_refused(window: WindowView, fd: int, at: int) -> None:
    window.map(PAGE, 3 * PAGE, fd, 0, False)
    with pytest.raises(OSError, match="overlap") as raised:
        window.map(at, 2 * PAGE, fd, 0, False)
    assert raised.value.errno == errno.EEXIST


@pytest.mark.parametrize(
    ("at", "length", "offset"),
    [(1, PAGE, 0), (0, 1, 0), (0, PAGE, 1), (16 * PAGE, PAGE, 0), (8 * PAGE, 9 * PAGE, 0), (1 << 62, PAGE, 0)],
)
def test_what_is_not_whole_pages_of_the_window_is_refused(
    window: WindowView, fd: int, at: int, length: int, offset: int
) -> None:
    with pytest.raises(OSError, match="window of") as raised:
        window.map(at, length, fd, offset, False)
    assert raised.value.errno == errno.EINVAL


def test_only_files_are_mapped(window: WindowView) -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="a file of type"):
        window.map(0, PAGE, reading, 0, False)
    os.close(reading)
    os.close(writing)


def test_only_whole_pieces_are_unmapped(window: WindowView, fd: int) -> None:
    window.map(0, 2 * PAGE, fd, 0, False)
    for at, length in ((0, PAGE), (PAGE, PAGE), (4 * PAGE, PAGE)):
        with pytest.raises(OSError, match="no piece"):
            window.unmap(at, length)
    window.unmap(0, 2 * PAGE)
    with pytest.raises(OSError, match="nothing is mapped"):
        window.at(0, 1)


def test_a_reader_keeps_what_is_unmapped_under_it(window: WindowView, fd: int) -> None:
    window.map(0, PAGE, fd, 0, False)
    view = window.at(0, 4)
    window.unmap(0, PAGE)
    assert bytes(view) == b"aaaa"

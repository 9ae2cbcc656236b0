"""Where the bytes of a file are: map() of an open file, and of one that is to be mapped into memory."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any

import pytest

from transfuse.fs.values import MAP_CACHED, MAP_READ, MAP_SHARED, MAP_WRITE
from transfuse.fs.wrap import ReadOnly

Served = Any


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


@pytest.fixture
def text(served: Served) -> Served:
    """A file `a` with "hello"."""
    (served.path / "a").write_text("hello")
    served.hand_over()
    return served


def access(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


def test_an_open_file_is_where_it_is(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_RDWR)
    found = text.fs.map(text.req, node, fh, 1, 3, MAP_WRITE)
    assert (found.offset, found.length) == (1, 3)
    os.pwrite(found.fd, b"ELL", found.offset)
    assert (text.path / "a").read_text() == "hELLo"
    text.release(node, fh)


def test_the_place_outlives_the_handle(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node)
    found = text.fs.map(text.req, node, fh, 0, 5, MAP_READ)
    text.release(node, fh)
    assert os.pread(found.fd, 5, 0) == b"hello"


def test_a_cached_page_of_an_appending_file_has_its_place(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_WRONLY | os.O_APPEND)
    page = text.fs.map(text.req, node, fh, 0, 2, MAP_WRITE | MAP_CACHED)
    os.pwrite(page.fd, b"HE", 0)
    rest = text.fs.map(text.req, node, fh, 0, 1, MAP_WRITE)
    os.pwrite(rest.fd, b"!", 0)
    assert (text.path / "a").read_text() == "HEllo!"
    text.release(node, fh)


def test_an_unknown_handle_is_ebadf(text: Served) -> None:
    assert errno_of(lambda: text.fs.map(text.req, text.look("a"), 99, 0, 5, MAP_READ)) == errno.EBADF


def test_a_node_is_opened_to_be_mapped(text: Served) -> None:
    node = text.look("a")
    shared = text.fs.map(text.req, node, None, 0, 4096, MAP_SHARED | MAP_READ)
    assert access(shared.fd) == os.O_RDONLY
    assert os.pread(shared.fd, 5, 0) == b"hello"
    writable = text.fs.map(text.req, node, None, 4096, 4096, MAP_SHARED | MAP_READ | MAP_WRITE)
    assert (access(writable.fd), writable.offset) == (os.O_RDWR, 4096)


def test_its_fd_is_closed_with_the_place(text: Served) -> None:
    found = text.fs.map(text.req, text.look("a"), None, 0, 4096, MAP_SHARED | MAP_READ)
    fd = found.fd
    del found
    with pytest.raises(OSError):
        os.fstat(fd)


def test_only_regular_files_are_mapped(served: Served) -> None:
    assert errno_of(lambda: served.fs.map(served.req, 1, None, 0, 4096, MAP_SHARED | MAP_READ)) == errno.ENODEV


def test_a_removed_file_that_is_open_is_still_mapped(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node)
    text.fs.unlink(text.req, 1, b"a")
    found = text.fs.map(text.req, node, None, 0, 4096, MAP_SHARED | MAP_READ)
    assert os.pread(found.fd, 5, 0) == b"hello"
    text.release(node, fh)


def test_read_only_is_mapped_for_reading_only(text: Served) -> None:
    filesystem = ReadOnly(text.fs)
    node = text.look("a")
    assert filesystem.map(text.req, node, None, 0, 4096, MAP_SHARED | MAP_READ) is not None
    assert errno_of(lambda: filesystem.map(text.req, node, None, 0, 4096, MAP_SHARED | MAP_WRITE)) == errno.EROFS

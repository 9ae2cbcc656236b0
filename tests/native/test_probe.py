"""The compiled statx against the plain one (the steps built on it: tests/filesystems/hostdir/test_steps.py)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir import syscalls
from transfuse.fs.values import Attr

pytest.importorskip("transfuse._native.probe", reason="the plain form runs")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    """A directory with one of each kind that anybody can make."""
    (tmp_path / "file").write_bytes(b"abc")
    os.utime(tmp_path / "file", ns=(-1_500_000_001, 1_999_999_999))
    (tmp_path / "hard").hardlink_to(tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dir").mkdir(mode=0o2750)
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def both(fd: int, name: bytes, device: int) -> list[object]:
    results: list[object] = []
    for probe in (syscalls.make_probe(device), syscalls.make_plain_probe(device)):
        found = probe(fd, name)
        if found is None:
            results.append(None)
            continue
        attr, key = found
        results.append(({slot: getattr(attr, slot) for slot in Attr.__slots__}, key))
    return results


def device_of(fd: int) -> int:
    return os.fstat(fd).st_dev


@pytest.mark.parametrize("name", [b"file", b"hard", b"link", b"dir", b"fifo", b"socket", b"missing", b""])
def test_both_forms_tell_the_same(tree: int, name: bytes) -> None:
    compiled, plain = both(tree, name, device_of(tree))
    assert compiled == plain
    assert (compiled is None) == (name == b"missing")


@pytest.mark.parametrize("name", [b"null", b"zero", b"tty"])
def test_both_forms_tell_the_same_of_devices(name: bytes) -> None:
    fd = os.open("/dev", os.O_PATH)
    try:
        compiled, plain = both(fd, name, device_of(fd))
    finally:
        os.close(fd)
    assert compiled == plain and compiled is not None


@pytest.mark.parametrize("path", ["/proc/self", "/sys", "/"])
def test_both_forms_tell_the_same_of_another_device(tree: int, path: str) -> None:
    fd = os.open(path, os.O_PATH)
    try:
        compiled, plain = both(fd, b"", device_of(tree) + 1)
    finally:
        os.close(fd)
    assert compiled == plain
    assert isinstance(compiled, tuple) and isinstance(compiled[1], tuple)


@pytest.mark.parametrize(("name", "number"), [(b"x" * 256, errno.ENAMETOOLONG), (b"file/x", errno.ENOTDIR)])
def test_both_forms_raise_the_same(tree: int, name: bytes, number: int) -> None:
    for probe in (syscalls.make_probe(device_of(tree)), syscalls.make_plain_probe(device_of(tree))):
        with pytest.raises(OSError) as caught:
            probe(tree, name)
        assert caught.value.errno == number


def test_a_forked_child_opens_its_own_fds(tree: int) -> None:
    syscalls.proc_fd()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mine = os.open("file", os.O_PATH, dir_fd=tree)  # not open in the parent
            with os.fdopen(syscalls.reopen(mine, os.O_RDONLY), "rb") as file:
                status = 0 if file.read() == b"abc" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from transfuse.transports.mount import MountError, from_fd, parse_dev_fd


@pytest.mark.parametrize(("path", "fd"), [("/dev/fd/0", 0), ("/dev/fd/17", 17), (b"/dev/fd/3", 3)])
def test_dev_fd_path_gives_the_number(path: str | bytes, fd: int) -> None:
    assert parse_dev_fd(path) == fd


@pytest.mark.parametrize(
    "path",
    ["/dev/fd/", "/dev/fd/01", "/dev/fd/-1", "/dev/fd/3/", "/dev/fd/x", "dev/fd/3", "/dev/fd/9999999999", "/mnt"],
)
def test_other_paths_are_mount_points(path: str) -> None:
    assert parse_dev_fd(path) is None


def refusal(fd: int) -> MountError:
    with pytest.raises(MountError) as caught:
        from_fd(fd)
    return caught.value


@pytest.mark.needs("/dev/fuse")
def test_dev_fuse_is_recognised_and_not_passed_on() -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        os.set_inheritable(fd, True)
        assert from_fd(fd) == "dev_fuse"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.needs("/dev/fuse")
def test_dev_fuse_open_for_reading_only_is_refused() -> None:
    fd = os.open("/dev/fuse", os.O_RDONLY)
    try:
        assert "not open for reading and writing" in str(refusal(fd))
    finally:
        os.close(fd)


def test_seqpacket_socket_is_recognised_and_stays_open() -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        assert from_fd(a.fileno()) == "seqpacket"
        a.send(b"x")
        assert b.recv(1) == b"x"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_other_sockets_are_refused(kind: socket.SocketKind) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    with a, b:
        assert refusal(a.fileno()).errno == errno.EINVAL


def test_unconnected_socket_is_refused() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as a:
        assert refusal(a.fileno()).errno == errno.ENOTCONN


@pytest.mark.parametrize("fd", [-1, 99999, 1 << 40])
def test_closed_descriptor_is_ebadf(fd: int) -> None:
    assert refusal(fd).errno == errno.EBADF


def test_files_and_directories_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        fd = os.open(path, os.O_RDONLY)
        try:
            assert refusal(fd).errno == errno.EINVAL
        finally:
            os.close(fd)

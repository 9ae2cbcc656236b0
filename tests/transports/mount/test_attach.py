"""Choices and refusals before anything is mounted; real mounts are in interop/test_mount_real.py."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from transfuse.transports.mount import (
    MountError,
    attach,
    choose_method,
    open_and_attach,
    open_device,
    parse_options,
    syscalls,
)
from transfuse.transports.mount import attach as attach_function

module = __import__("sys").modules[attach_function.__module__]


def no_fsopen(code: int) -> classmethod:  # type: ignore[type-arg]
    def fsopen(cls: type, fstype: bytes) -> syscalls.FsContext:
        raise MountError(code, "fsopen")

    return classmethod(fsopen)


@pytest.mark.parametrize(
    ("code", "may", "method"),
    [
        (errno.ENOSYS, True, "mount"),
        (errno.ENOSYS, False, "fusermount3"),
        (errno.EPERM, False, "fusermount3"),
        (errno.EPERM, True, "mount"),
    ],
)
def test_method_without_fsopen(monkeypatch: pytest.MonkeyPatch, code: int, may: bool, method: str) -> None:
    monkeypatch.setattr(syscalls.FsContext, "open", no_fsopen(code))
    monkeypatch.setattr(syscalls, "may_mount", lambda: may)
    assert choose_method(parse_options([])) == method


def test_a_kernel_without_fuse_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls.FsContext, "open", no_fsopen(errno.ENODEV))
    with pytest.raises(MountError, match="modprobe fuse"):
        choose_method(parse_options([]))


@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.parametrize(("length", "method"), [(255, "fsmount"), (256, "mount")])
def test_root_uses_fsmount_unless_the_source_is_too_long_for_it(length: int, method: str) -> None:
    assert choose_method(parse_options(["fsname=" + "x" * length])) == method


@pytest.mark.parametrize(
    ("name", "code", "way_out"),
    [("missing", errno.ENOENT, "modprobe fuse"), ("socket", errno.ENXIO, "the kernel has no FUSE")],
)
def test_device_that_can_not_be_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, code: int, way_out: str
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        monkeypatch.setattr(module, "DEVICE", str(tmp_path / name))
        with pytest.raises(MountError, match=way_out) as caught:
            open_device()
    assert caught.value.errno == code
    assert caught.value.step.startswith("open ")


def test_mount_point_is_looked_at_before_the_device_is_opened(tmp_path: Path) -> None:
    called: list[int] = []
    with pytest.raises(MountError, match="look at the mount point"):
        open_and_attach(tmp_path / "missing", parse_options([]), "mount", called.append)
    assert called == []


def test_attaching_a_socket_is_refused(tmp_path: Path) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b, pytest.raises(MountError, match="a socket can't be mounted"):
        attach(a.fileno(), tmp_path, parse_options([]))


@pytest.mark.needs("/dev/fuse")
def test_attaching_by_the_helper_is_refused(tmp_path: Path) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        with pytest.raises(MountError, match="brings its own descriptor"):
            attach(fd, tmp_path, parse_options([]), method="fusermount3")
    finally:
        os.close(fd)


@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.parametrize("method", ["fsmount", "mount"])
def test_device_is_closed_when_before_mount_fails(tmp_path: Path, method: str) -> None:
    seen = []

    def before_mount(fd: int) -> None:
        seen.append(fd)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        open_and_attach(tmp_path, parse_options([]), method, before_mount)  # type: ignore[arg-type]
    with pytest.raises(OSError):
        os.fstat(seen[0])


@pytest.mark.needs("root", "/dev/fuse")
def test_device_is_the_callers_once_before_mount_returned(tmp_path: Path) -> None:
    seen: list[int] = []
    place = tmp_path / "gone"
    place.mkdir()

    def before_mount(fd: int) -> None:
        seen.append(fd)
        place.rmdir()  # so that the very last step fails

    with pytest.raises(MountError):
        open_and_attach(place, parse_options([]), "fsmount", before_mount)
    os.close(seen[0])


@pytest.mark.needs("root", "/dev/fuse")
def test_what_is_refused_before_the_superblock_never_reaches_before_mount(tmp_path: Path) -> None:
    seen: list[int] = []
    options = parse_options(["fsname=" + "x" * 300])  # too long for fsconfig
    with pytest.raises(MountError, match="fsconfig source") as caught:
        open_and_attach(tmp_path, options, "fsmount", seen.append)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert seen == []


@pytest.mark.needs("root", "/dev/fuse")
def test_fd_option_that_contradicts_the_descriptor_is_refused(tmp_path: Path) -> None:
    fd = open_device()
    try:
        with pytest.raises(MountError, match=r"option fd=\d+ contradicts descriptor"):
            attach(fd, tmp_path, parse_options([f"fd={fd + 1}"]))
    finally:
        os.close(fd)

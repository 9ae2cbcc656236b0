"""Options of a host directory that virtio-fs servers have: what is mounted inside, handles, open flags, features."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transfuse.filesystems.hostdir import HostDirectory, core, syscalls

Make = Callable[..., Any]
SUBMOUNT = 1
MS_BIND, MNT_DETACH = 4096, 2
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def mounted_inside(source: Path) -> Iterator[Path]:
    """Another filesystem on `m` in the source, and an ordinary directory `d`."""
    place = source / "m"
    place.mkdir()
    (source / "d").mkdir()
    assert libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, None) == 0, os.strerror(ctypes.get_errno())
    (place / "f").write_text("inside")
    yield place
    libc.umount2(os.fsencode(place), MNT_DETACH)


def flags_of(served: Any, name: bytes) -> int:
    attr = served.fs.lookup(served.req, 1, name).attr
    assert attr is not None
    return int(attr.flags)


def host_flags(served: Any, fh: int) -> int:
    """Flags of the host's open file."""
    return fcntl.fcntl(served.fs.opened[fh].ref.fd, fcntl.F_GETFL)


@pytest.mark.needs("root")
def test_what_is_mounted_inside_is_announced_where_that_is_asked_for(make: Make, mounted_inside: Path) -> None:
    for asked in (True, False):
        served = make(submounts=asked)
        assert served.fs.features.submounts is asked
        assert (flags_of(served, b"m"), flags_of(served, b"d")) == (SUBMOUNT if asked else 0, 0)
        inside = served.look("m")
        assert served.fs.lookup(served.req, inside, b"f").attr.flags == 0


@pytest.mark.needs("root")
def test_a_file_mounted_on_a_file_is_no_submount(make: Make, source: Path) -> None:
    (source / "a").touch()
    (source / "b").touch()
    assert libc.mount(os.fsencode(source / "a"), os.fsencode(source / "b"), None, MS_BIND, None) == 0
    try:
        assert flags_of(make(submounts=True), b"b") == 0
    finally:
        libc.umount2(os.fsencode(source / "b"), MNT_DETACH)


@pytest.mark.needs("root")
def test_syncfs_is_for_the_filesystem_of_its_node(
    make: Make, mounted_inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = syscalls.sync_filesystem

    def note(fd: int) -> None:
        synced.append(os.fstat(fd).st_dev)
        sync(fd)

    monkeypatch.setattr(syscalls, "sync_filesystem", note)
    served = make(submounts=True)
    served.fs.syncfs(served.req, 1)
    served.fs.syncfs(served.req, served.look("m"))
    assert synced == [mounted_inside.parent.stat().st_dev, mounted_inside.stat().st_dev]
    assert synced[0] != synced[1]


@pytest.mark.parametrize("works", [True, False])
def test_handles_are_used_as_asked(make: Make, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setattr(core, "_handles_work", lambda root: works)
    assert make().fs.nodes.keep_handles is works
    assert make(file_handles="never").fs.nodes.keep_handles is False
    if works:
        assert make(file_handles="mandatory").fs.nodes.keep_handles is True


def test_mandatory_handles_that_do_not_work_are_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_handles_work", lambda root: False)
    with pytest.raises(OSError, match="CAP_DAC_READ_SEARCH") as caught:
        HostDirectory(source, file_handles="mandatory")
    assert caught.value.errno == errno.EOPNOTSUPP


def test_unknown_handle_mode_is_refused(source: Path) -> None:
    with pytest.raises(ValueError, match="file_handles='sometimes' is none of never, prefer, mandatory"):
        HostDirectory(source, file_handles="sometimes")


@pytest.mark.parametrize("kept", [True, False])
def test_noatime_reaches_the_host_unless_it_is_to_be_dropped(make: Make, kept: bool) -> None:
    served = make(keep_noatime=kept)
    entry, made = served.create("f")
    fh = served.open(entry.nodeid, os.O_RDONLY | os.O_NOATIME)
    assert bool(host_flags(served, fh) & os.O_NOATIME) is kept
    served.release(entry.nodeid, fh)
    served.release(entry.nodeid, made.fh)


@pytest.mark.parametrize("asked", [True, False])
def test_o_direct_reaches_the_host_where_it_is_asked_for(make: Make, source: Path, asked: bool) -> None:
    (source / "f").write_bytes(bytes(8192))
    try:
        os.close(os.open(source / "f", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip(f"the filesystem of {source} has no O_DIRECT")
    served = make(o_direct=asked)
    fh = served.open(served.look("f"), os.O_RDONLY | os.O_DIRECT)
    assert bool(host_flags(served, fh) & os.O_DIRECT) is asked
    served.release(1, fh)


def test_features_are_as_asked(make: Make) -> None:
    usual = make(direct_io=True).fs.features
    assert (usual.handle_killpriv_v2, usual.readdirplus, usual.direct_io_allow_mmap) == (True, None, True)
    other = make(direct_io=True, killpriv=False, readdirplus=False, direct_mmap=False).fs.features
    assert (other.handle_killpriv_v2, other.readdirplus, other.direct_io_allow_mmap) == (False, False, False)

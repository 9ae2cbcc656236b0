"""A Mounted whose mount is not there; real mounts are in interop/test_mount_real.py."""

from __future__ import annotations

import errno

import pytest

from transfuse.transports.mount import Mounted, MountError, abort_connection, mounted, parse_options
from transfuse.transports.mount.mountinfo import Mount

GONE = Mount(1 << 30, 1, 0, 300, b"/no/such/place", b"rw", b"fuse.x", b"src", b"rw")


class Keeper:
    released = 0

    def release(self) -> None:
        self.released += 1


def gone() -> Mounted:
    return Mounted(GONE.mountpoint, -1, "mount", GONE, parse_options([]))


def test_connection_is_the_minor_number() -> None:
    assert gone().connection == 300


def test_a_mount_that_is_gone_is_not_mounted() -> None:
    assert not gone().is_mounted()


def test_unmounting_what_is_gone_releases_the_keeper_once() -> None:
    it, keeper = gone(), Keeper()
    it.keeper = keeper
    it.umount()
    it.umount()
    assert keeper.released == 1


def test_repr_names_place_method_and_connection() -> None:
    assert repr(gone()) == "<Mounted b'/no/such/place' by mount, connection 300, fd -1>"


def test_abort_without_fusectl_says_how_to_mount_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted.mountinfo, "mounts", lambda: [GONE])
    with pytest.raises(MountError, match="mount -t fusectl none /sys/fs/fuse/connections") as caught:
        abort_connection(300)
    assert caught.value.errno == errno.ENOENT

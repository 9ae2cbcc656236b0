"""What a real guest's kernel makes of submounts, translated ids and read-only service."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guests.guest import Guest
from guests.packages import Missing
from guests.servers import serving

pytestmark = [pytest.mark.interop, pytest.mark.needs("root"), pytest.mark.timeout(600)]

MNT_DETACH = 2
libc = ctypes.CDLL(None, use_errno=True)
OPTIONS = ["-o", "submounts=yes", "--translate-uid", "map:5:1005:1", "--translate-uid", "forbid-guest:6:1"]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A directory with another filesystem on `m`, which has a directory of its own."""
    place = tmp_path / "source" / "m"
    place.mkdir(parents=True)
    (tmp_path / "source" / "d").mkdir()
    assert libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, None) == 0, os.strerror(ctypes.get_errno())
    (place / "below").mkdir()
    (place / "f").write_text("inside\n")
    (tmp_path / "source" / "theirs").touch()
    os.chown(tmp_path / "source" / "theirs", 1005, 0)
    yield tmp_path / "source"
    libc.umount2(os.fsencode(place), MNT_DETACH)


def test_a_guest_sees_submounts_and_translated_owners(source: Path) -> None:
    try:
        with serving("transfuse", source, OPTIONS) as backend, Guest("amd64", [backend.filesystem()]) as guest:
            guest.run("mount -t virtiofs fs /mnt")
            devices = guest.run("stat -c %d /mnt /mnt/d /mnt/m/. /mnt/m/below").text.split()
            assert devices[0] == devices[1] != devices[2] == devices[3]
            assert guest.run("cat /mnt/m/f").text.strip() == "inside"
            assert "/mnt/m virtiofs" in guest.run("cat /proc/mounts").text
            guest.run("sync")
            assert guest.run("stat -c %u /mnt/theirs").text.strip() == "5"
            guest.run("touch /mnt/new && chown 5 /mnt/new")
            assert "refused" in guest.run("chown 6 /mnt/new || echo refused").text
            guest.run("umount /mnt")
    except Missing as why:
        pytest.skip(str(why))
    assert (source / "new").stat().st_uid == 1005

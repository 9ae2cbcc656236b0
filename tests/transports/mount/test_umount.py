"""What umount refuses; ending real mounts is in interop/test_mount_real.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from transfuse.transports.mount import MountError, umount


def test_a_plain_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="not a mount point") as caught:
        umount(tmp_path)
    assert caught.value.errno == errno.EINVAL


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="not a mount point"):
        umount(tmp_path / "none")


@pytest.mark.parametrize("flags", [{}, {"lazy": True}, {"force": True}])
def test_a_mount_that_is_not_fuse_is_refused(flags: dict[str, bool]) -> None:
    with pytest.raises(MountError, match="/proc: umount: Invalid argument .a proc mount, not FUSE."):
        umount("/proc", **flags)

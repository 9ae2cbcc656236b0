from __future__ import annotations

import errno
from pathlib import Path

import pytest

from transfuse.cli import remount
from transfuse.cli.errors import CommandError
from transfuse.transports.mount.errors import MountError
from transfuse.transports.mount.mountinfo import parse
from transfuse.transports.mount.options import parse_options

ROW = (
    b"30 27 0:40 / /mnt ro,nodev,noatime shared:1 - fuse.transfuse /srv/a\\040b "
    b"rw,user_id=5,group_id=6,default_permissions,allow_other,max_read=8192\n"
)


def test_options_are_read_from_the_kernels_table() -> None:
    options = remount.options_of(parse(ROW)[0])
    assert (options.source, options.subtype) == ("/srv/a b", "transfuse")
    assert (options.user_id, options.group_id, options.max_read) == (5, 6, 8192)
    assert options.default_permissions and options.allow_other
    assert (options.read_only, options.nosuid, options.nodev, options.atime) == (True, False, True, "noatime")


def test_place_without_a_mount_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MountError) as caught:
        remount.run(str(tmp_path), parse_options(["remount,ro"]))
    assert caught.value.errno == errno.EINVAL


def test_place_is_needed() -> None:
    with pytest.raises(CommandError, match="DIR is missing"):
        remount.run(None, parse_options(["remount"]))

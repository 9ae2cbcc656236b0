"""The three spellings of the same options."""

from __future__ import annotations

import os

import pytest

from transfuse.transports.mount import MountError, parse_options
from transfuse.transports.mount.parameters import (
    default_ids,
    fsconfig_parameters,
    fusermount_options,
    mount_attributes,
    mount_data,
    mount_flags,
)

IDS = (7, 0o40000, 1000, 100)


# name, mount(2) flag (linux/mount.h MS_*), fsmount attribute (MOUNT_ATTR_*)
@pytest.mark.parametrize(
    ("name", "flag", "attribute"),
    [
        ("ro", 1, 1),
        ("nosuid", 2, 2),
        ("nodev", 4, 4),
        ("noexec", 8, 8),
        ("sync", 16, 0),
        ("dirsync", 128, 0),
        ("nosymfollow", 256, 0x200000),
        ("noatime", 1024, 0x10),
        ("nodiratime", 2048, 0x80),
        ("strictatime", 1 << 24, 0x20),
        ("lazytime", 1 << 25, 0),
        ("relatime", 0, 0),
    ],
)
def test_flag_values(name: str, flag: int, attribute: int) -> None:
    options = parse_options(["suid,dev", name])
    assert (mount_flags(options), mount_attributes(options)) == (flag, attribute)


def test_nothing_asked_is_nosuid_and_nodev() -> None:
    options = parse_options([])
    assert (mount_flags(options), mount_attributes(options)) == (6, 6)


def test_mount_data_has_the_required_four_in_kernel_spelling() -> None:
    assert mount_data(parse_options([]), *IDS) == b"fd=7,rootmode=40000,user_id=1000,group_id=100"


def test_mount_data_carries_fuse_parameters_but_no_strings() -> None:
    data = mount_data(parse_options([r"default_permissions,allow_other,max_read=1,fsname=a\,b,subtype=s,ro"]), *IDS)
    assert data.split(b",")[4:] == [b"default_permissions", b"allow_other", b"max_read=1"]


def test_allow_root_is_allow_other_to_the_kernel() -> None:
    assert mount_data(parse_options(["allow_root"]), *IDS).endswith(b",allow_other")


def test_fsconfig_gets_source_subtype_and_superblock_flags() -> None:
    options = parse_options(["fsname=x,subtype=s,ro,sync,dirsync,lazytime,noexec"])
    assert fsconfig_parameters(options, *IDS) == [
        ("source", "x"), ("subtype", "s"), ("ro", None), ("sync", None), ("dirsync", None), ("lazytime", None),
        ("fd", "7"), ("rootmode", "40000"), ("user_id", "1000"), ("group_id", "100"),
    ]  # fmt: skip


def test_fusermount_gets_escaped_names() -> None:
    assert fusermount_options(parse_options([r"fsname=a\,b\\c"]), root=False) == r"fsname=a\,b\\c"


def test_fusermount_gets_dev_and_suid_from_root_only() -> None:
    options = parse_options(["dev,suid"])
    assert fusermount_options(options, root=True) == "fsname=fuse,suid,dev"
    assert fusermount_options(options, root=False) == "fsname=fuse"


def test_fusermount_gets_everything_it_knows() -> None:
    options = parse_options(
        ["ro,noexec,sync,dirsync,noatime,nodiratime,default_permissions,allow_other,auto_unmount,max_read=9,subtype=s"]
    )
    assert fusermount_options(options, root=False) == (
        "fsname=s,subtype=s,ro,noexec,sync,dirsync,noatime,nodiratime,default_permissions,allow_other,max_read=9"
    )


@pytest.mark.parametrize(
    "text", ["strictatime", "lazytime", "nosymfollow", "fd=3", "user_id=1", "group_id=1", "rootmode=20000"]
)
def test_what_fusermount_cannot_do_is_refused(text: str) -> None:
    with pytest.raises(MountError, match="fusermount3: .*(it can't set|it mounts)"):
        fusermount_options(parse_options([text]), root=False)


def test_ids_are_the_callers_unless_given() -> None:
    assert default_ids(parse_options([])) == (os.getuid(), os.getgid())
    assert default_ids(parse_options(["user_id=3,group_id=4"])) == (3, 4)

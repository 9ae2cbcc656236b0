"""Every rule of mount options, as a table; the kernel is not asked here."""

from __future__ import annotations

from typing import Any

import pytest

from transfuse.transports.mount import MountOptionError, MountOptions, check_remount, parse_options, unknown_option
from transfuse.transports.mount.options import FLAGS, FOR_MOUNT8


def parse(*strings: str) -> MountOptions:
    return parse_options(strings)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("fd=0", "fd", 0),
        ("fd=2147483647", "fd", 2147483647),
        ("rootmode=40000", "rootmode", 0o40000),
        ("rootmode=040755", "rootmode", 0o40755),
        ("rootmode=100000", "rootmode", 0o100000),
        ("user_id=0", "user_id", 0),
        ("user_id=4294967294", "user_id", 4294967294),
        ("group_id=1000", "group_id", 1000),
        ("max_read=0", "max_read", 0),
        ("max_read=4294967295", "max_read", 4294967295),
        ("source=a b", "source", "a b"),
        ("fsname=host:/x=y", "source", "host:/x=y"),
        ("subtype=sshfs.v2", "subtype", "sshfs.v2"),
        ("default_permissions", "default_permissions", True),
        ("allow_other", "allow_other", True),
        ("allow_root", "allow_root", True),
        ("auto_unmount", "auto_unmount", True),
        ("nonempty", "nonempty", True),
        ("remount", "remount", True),
        ("ro", "read_only", True),
        ("ro,rw", "read_only", False),
        ("suid", "nosuid", False),
        ("suid,nosuid", "nosuid", True),
        ("dev", "nodev", False),
        ("dev,nodev", "nodev", True),
        ("noexec", "noexec", True),
        ("noexec,exec", "noexec", False),
        ("noatime", "atime", "noatime"),
        ("strictatime", "atime", "strictatime"),
        ("noatime,strictatime", "atime", "strictatime"),
        ("strictatime,noatime", "atime", "noatime"),
        ("noatime,relatime", "atime", "relatime"),
        ("noatime,atime", "atime", "relatime"),
        ("strictatime,atime", "atime", "strictatime"),
        ("strictatime,nostrictatime", "atime", "relatime"),
        ("noatime,norelatime", "atime", "noatime"),
        ("nodiratime", "nodiratime", True),
        ("nodiratime,diratime", "nodiratime", False),
        ("sync", "sync", True),
        ("sync,async", "sync", False),
        ("dirsync", "dirsync", True),
        ("lazytime", "lazytime", True),
        ("lazytime,nolazytime", "lazytime", False),
        ("nosymfollow", "nosymfollow", True),
        ("nosymfollow,symfollow", "nosymfollow", False),
    ],
)
def test_option_sets_its_field(text: str, name: str, value: Any) -> None:
    assert getattr(parse(text), name) == value


def test_no_options_are_nosuid_nodev_relatime_and_nothing_else() -> None:
    assert parse() == MountOptions(nosuid=True, nodev=True, atime="relatime")


@pytest.mark.parametrize("name", ["fd", "user_id", "group_id", "max_read"])
@pytest.mark.parametrize("value", ["", "-1", "+1", " 1", "1 ", "0x10", "010", "1k", "1.0", "٣", "99999999999"])
def test_numbers_are_plain_decimal(name: str, value: str) -> None:
    with pytest.raises(MountOptionError, match=f"^option {name}=.*: takes a decimal"):
        parse(f"{name}={value}")


@pytest.mark.parametrize("text", ["fd=2147483648", "user_id=4294967295", "group_id=4294967295", "max_read=4294967296"])
def test_number_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(MountOptionError, match="takes a decimal"):
        parse(text)


@pytest.mark.parametrize("value", ["", "0", "755", "8", "0o40000", "-40000", "30000", "170000", "1040000", "40000000"])
def test_rootmode_is_octal_with_a_valid_type(value: str) -> None:
    with pytest.raises(MountOptionError, match="rootmode.*octal"):
        parse(f"rootmode={value}")


@pytest.mark.parametrize("kind", ["40000", "100000", "120000", "20000", "60000", "10000", "140000"])
def test_rootmode_takes_every_file_type(kind: str) -> None:
    assert parse(f"rootmode={kind}").rootmode == int(kind, 8)


@pytest.mark.parametrize("name", ["fd", "rootmode", "user_id", "group_id", "max_read", "source", "fsname", "subtype"])
def test_parameter_without_value_is_refused(name: str) -> None:
    with pytest.raises(MountOptionError, match=f"^option {name}: needs a value"):
        parse(name)


@pytest.mark.parametrize("name", [*FLAGS, "atime"])
def test_flag_with_a_value_is_refused(name: str) -> None:
    with pytest.raises(MountOptionError, match=f"^option {name}=1: takes no value"):
        parse(f"{name}=1")


@pytest.mark.parametrize("value", ["", "a/b", "a\\,b", "a b", "a\tb", "a\nb", "a\x7f", "x" * 251])
def test_subtype_that_is_no_part_of_a_type_is_refused(value: str) -> None:
    with pytest.raises(MountOptionError, match="subtype"):
        parse(f"subtype={value}")


@pytest.mark.parametrize("value", ["", "x" * 4096, "é" * 2048])
def test_source_of_no_or_too_many_bytes_is_refused(value: str) -> None:
    with pytest.raises(MountOptionError, match=r"1 to 4095 bytes"):
        parse(f"fsname={value}")


@pytest.mark.parametrize(
    "text", ["source=a,source=a", "fsname=a,fsname=b", "source=a,fsname=b", "subtype=a,subtype=a", "fd=3,fd=3"]
)
def test_source_subtype_and_fd_may_be_given_once(text: str) -> None:
    with pytest.raises(MountOptionError, match="was given already"):
        parse(text)


def test_a_repeat_is_found_across_strings() -> None:
    with pytest.raises(MountOptionError, match="was given already"):
        parse("fsname=a", "source=b")


@pytest.mark.parametrize(
    ("text", "name", "last"),
    [
        ("max_read=1,max_read=8192", "max_read", 8192),
        ("user_id=1,user_id=2", "user_id", 2),
        ("ro,rw,ro", "read_only", True),
    ],
)
def test_the_last_of_other_repeats_counts(text: str, name: str, last: Any) -> None:
    assert getattr(parse(text), name) == last


def test_allow_root_excludes_allow_other() -> None:
    with pytest.raises(MountOptionError, match="allow_root: excludes allow_other"):
        parse("allow_other", "allow_root")


def test_blksize_is_for_block_devices() -> None:
    with pytest.raises(MountOptionError, match="blksize=512: is for block-device mounts"):
        parse("blksize=512")


def test_mandatory_locking_is_refused() -> None:
    with pytest.raises(MountOptionError, match="mand"):
        parse("mand")


@pytest.mark.parametrize(
    ("text", "effective"),
    [("", 0xFFFFFFFF), ("max_read=0", 4096), ("max_read=4095", 4096), ("max_read=4097", 4097)],
)
def test_max_read_is_at_least_4096(text: str, effective: int) -> None:
    assert parse(text).effective_max_read == effective


@pytest.mark.parametrize("item", [*sorted(FOR_MOUNT8), "x-systemd.automount", "x-gvfs-name=a b", "X-mount.mkdir",
                                  "comment=hello", "user=me", "uhelper=udisks2"])  # fmt: skip
def test_options_for_mount8_are_accepted_and_set_nothing(item: str) -> None:
    assert parse(item) == MountOptions(accepted=[item])


def test_what_mount_fuse_appends_allows_devices_and_suid() -> None:
    options = parse("rw,noauto,_netdev,dev,suid")
    assert (options.nodev, options.nosuid) == (False, False)


def test_unknown_options_are_left_to_the_filesystem_in_order() -> None:
    assert parse("cache=always,ro,writeback", "cache=", "a=b=c").rest == [
        ("cache", "always"), ("writeback", None), ("cache", ""), ("a", "b=c"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (r"fsname=a\,b,ro", "a,b"),
        (r"fsname=a\\b", "a\\b"),
        (r"fsname=a\b", "ab"),
        (r"fsname=a\054b", "a,b"),
        (r"fsname=\303\251", "é"),
        (r"fsname=\377", "\udcff"),
        (r"fsname=\400", "400"),
        (r"fsname=\08", "08"),
    ],
)
def test_escapes_in_values(text: str, source: str) -> None:
    assert parse(text).source == source


@pytest.mark.parametrize("text", ["fsname=a\\", "a\0b", r"fsname=\000"])
def test_text_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(MountOptionError):
        parse(text)


def test_empty_items_are_skipped() -> None:
    assert parse(",,ro,", "") == MountOptions(read_only=True)


def test_item_without_a_name_is_refused() -> None:
    with pytest.raises(MountOptionError, match="no name"):
        parse("=5")


def test_error_names_option_value_and_what_it_takes() -> None:
    with pytest.raises(MountOptionError) as caught:
        parse("max_read=lots")
    error = caught.value
    assert (error.option, error.value) == ("max_read", "lots")
    assert error.takes.startswith("takes a decimal number of bytes, 0 to 4294967295")
    assert str(error) == f"option max_read=lots: {error.takes}"


@pytest.mark.parametrize(
    ("name", "known", "close"),
    [
        ("alow_other", (), "allow_other"),
        ("wrteback", ("writeback",), "writeback"),
        ("default_permision", (), "default_permissions"),
    ],
)
def test_unknown_option_names_the_closest(name: str, known: tuple[str, ...], close: str) -> None:
    assert str(unknown_option(name, None, known)) == f"option {name}: is not known; did you mean {close}?"


def test_unknown_option_far_from_everything_names_none() -> None:
    assert str(unknown_option("qqqqqq", "1")) == "option qqqqqq=1: is not known"


@pytest.mark.parametrize(
    ("text", "fstype", "source"),
    [("", "fuse", "fuse"), ("subtype=x", "fuse.x", "x"), ("subtype=x,fsname=y", "fuse.x", "y")],
)
def test_type_and_source_shown(text: str, fstype: str, source: str) -> None:
    options = parse(text)
    assert (options.fstype, options.shown_source) == (fstype, source)


# ---- remount

OLD = "fsname=src,subtype=t,allow_other,max_read=100,user_id=5,rootmode=40000,default_permissions,auto_unmount,dirsync"


def test_remount_changes_generic_flags() -> None:
    new = "ro,suid,dev,noexec,noatime,nodiratime,nosymfollow,sync,lazytime"
    assert check_remount(parse(""), parse(new)).changes == (
        "read_only", "nosuid", "nodev", "noexec", "atime", "nodiratime", "nosymfollow", "sync", "lazytime",
    )  # fmt: skip


def test_remount_ignores_parameters_that_stay_the_same() -> None:
    outcome = check_remount(parse(OLD), parse(OLD + ",ro"))
    assert outcome.changes == ("read_only",)
    assert set(outcome.ignored) == {
        "source", "subtype", "rootmode", "user_id", "default_permissions", "allow_other", "max_read", "auto_unmount",
        "dirsync",
    }  # fmt: skip


def test_remount_ignores_max_read_of_the_same_effect() -> None:
    assert check_remount(parse("max_read=100"), parse("max_read=4096")).ignored == ("max_read",)


def test_remount_ignores_the_source_that_proc_mounts_shows() -> None:
    assert check_remount(parse("subtype=t"), parse("fsname=t")).ignored == ("source",)


def test_remount_ignores_ids_that_the_mount_chose() -> None:
    new = parse("fd=3,rootmode=40000,user_id=0,group_id=0")
    assert check_remount(parse(""), new).ignored == ("fd", "rootmode", "user_id", "group_id")


def test_remount_without_parameters_keeps_them() -> None:
    outcome = check_remount(parse(OLD), parse(""))
    assert (outcome.changes, outcome.ignored) == ((), ())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "allow_other"), ("", "allow_root"), ("", "default_permissions"), ("", "max_read=8192"), ("", "fsname=b"),
        ("", "subtype=b"), ("", "auto_unmount"), ("", "dirsync"), ("user_id=1", "user_id=2"),
        ("group_id=1", "group_id=2"),
        ("rootmode=40000", "rootmode=100000"), ("max_read=8192", "max_read=4096"), ("fd=3", "fd=4"),
    ],
)  # fmt: skip
def test_remount_that_would_change_a_parameter_is_refused(old: str, new: str) -> None:
    with pytest.raises(MountOptionError, match="can't be changed by a remount"):
        check_remount(parse(old), parse(new))

"""The values that filesystems give and take: their defaults."""

from __future__ import annotations

import os
import stat
from dataclasses import fields
from pathlib import Path

import pytest

from transfuse.fs.values import (
    ROOT_ID,
    Attr,
    AttrChanges,
    DirEntry,
    Entry,
    Features,
    FileRange,
    IoctlResult,
    Lock,
    Opened,
    Statfs,
)


def test_root_is_node_1() -> None:
    assert ROOT_ID == 1


@pytest.mark.parametrize(
    ("attr", "mode", "nlink"),
    [
        (Attr.file(5), stat.S_IFREG | 0o644, 1),
        (Attr.file(5, mode=0o600), stat.S_IFREG | 0o600, 1),
        (Attr.directory(5), stat.S_IFDIR | 0o755, 2),
        (Attr.symlink(5, 3), stat.S_IFLNK | 0o777, 1),
        (Attr(5, stat.S_IFIFO | 0o600), stat.S_IFIFO | 0o600, 1),
    ],
)
def test_attributes_of_each_kind(attr: Attr, mode: int, nlink: int) -> None:
    assert (attr.ino, attr.mode, attr.nlink) == (5, mode, nlink)


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (512, 1), (513, 2), (1 << 40, 1 << 31)])
def test_blocks_count_512_bytes(size: int, blocks: int) -> None:
    assert Attr.file(2, size=size).blocks == blocks


def test_blocks_of_a_sparse_file_are_its_own() -> None:
    assert Attr.file(2, size=1 << 40, blocks=8).blocks == 8
    assert Attr.file(2, size=1 << 40, blocks=0).blocks == 0


def test_times_and_timeout_are_unknown_until_told() -> None:
    attr = Attr.file(2)
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns, attr.btime_ns, attr.timeout_s) == (0, 0, 0, None, None)


def test_attributes_from_stat(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    os.utime(path, ns=(-1, 1_000_000_007))
    st = os.stat(path)
    attr = Attr.from_stat(st)
    assert (attr.ino, attr.mode, attr.size, attr.nlink) == (st.st_ino, st.st_mode, 1000, 1)
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (-1, 1_000_000_007, st.st_ctime_ns)
    assert (attr.uid, attr.gid, attr.blocks, attr.blksize) == (st.st_uid, st.st_gid, st.st_blocks, st.st_blksize)
    assert Attr.from_stat(st, ino=7).ino == 7


def test_attributes_from_stat_have_every_field(tmp_path: Path) -> None:
    attr = Attr.from_stat(os.stat(tmp_path))
    assert all(hasattr(attr, name) for name in Attr.__slots__)


def test_entry_is_the_node_of_its_inode() -> None:
    assert Entry(Attr.file(7)).nodeid == 7
    assert Entry(Attr.file(7), nodeid=9).nodeid == 9
    assert Entry(Attr.file(7), nodeid=0).nodeid == 0


@pytest.mark.parametrize("timeout", [None, 0, 5.5])
def test_negative_entry_has_no_node(timeout: float | None) -> None:
    entry = Entry.negative(timeout)
    assert (entry.attr, entry.nodeid, entry.timeout_s) == (None, 0, timeout)


def test_directory_entry_has_no_cookie_and_no_kind_until_told() -> None:
    entry = DirEntry(b"x", 5)
    assert (entry.name, entry.ino, entry.kind, entry.cookie) == (b"x", 5, 0, 0)


def test_open_file_has_handle_0_and_an_ordinary_cache() -> None:
    opened = Opened()
    assert (opened.fh, opened.backing_fd) == (0, None)
    assert not any(getattr(opened, name) for name in Opened.__slots__ if name not in ("fh", "backing_fd"))


def test_options_of_an_open_are_named() -> None:
    with pytest.raises(TypeError):
        Opened(1, True)  # type: ignore[misc]


def test_nothing_changes_until_told() -> None:
    assert all(getattr(AttrChanges(), field.name) in (None, False) for field in fields(AttrChanges))


@pytest.mark.parametrize("field", [field.name for field in fields(AttrChanges)])
def test_any_change_but_that_of_ctime_is_one(field: str) -> None:
    about_changes = ("ctime_ns", "lock_owner", "kill_suidgid")
    changes = AttrChanges()
    assert changes.is_empty
    setattr(changes, field, True if isinstance(getattr(changes, field), bool) else 0)
    assert changes.is_empty == (field in about_changes)


def test_lock_to_the_end() -> None:
    assert Lock.MAX_END == 2**63 - 1
    assert Lock(1, 0, 9) == Lock(1, 0, 9, 0)


def test_empty_statfs_names_a_usual_limit() -> None:
    assert (Statfs().namelen, Statfs().bsize, Statfs().frsize) == (255, 4096, 4096)


def test_ioctl_result_is_success_without_data() -> None:
    assert IoctlResult() == IoctlResult(0, b"")


def test_file_range_keeps_what_it_is_given() -> None:
    found = FileRange(3, 4, 5)
    assert (found.fd, found.offset, found.length) == (3, 4, 5)


def test_features_do_not_share_their_extras() -> None:
    Features().extra["x"] = 1
    assert Features().extra == {}


@pytest.mark.parametrize(
    "value", [Attr.file(2), Entry(Attr.file(2)), DirEntry(b"x", 1), Opened(), FileRange(1, 2, 3), Statfs(), Features()]
)
def test_values_have_slots_only(value: object) -> None:
    with pytest.raises(AttributeError):
        value.other = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [Attr.file(2), Entry(Attr.file(2)), DirEntry(b"x", 5), Opened(5)])
def test_values_say_what_they_are(value: object) -> None:
    assert repr(value).startswith(type(value).__name__ + "(")

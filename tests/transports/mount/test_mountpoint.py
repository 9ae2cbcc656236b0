from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from transfuse.transports.mount import MountError, parse_options
from transfuse.transports.mount.mountpoint import MountPoint, resolve


def code_of(path: Path, *options: str) -> int | None:
    with pytest.raises(MountError) as caught:
        MountPoint(path, parse_options(options))
    assert "\n" not in str(caught.value)
    return caught.value.errno


def test_resolve_follows_links_in_every_place(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "point").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "last").symlink_to("../link/point")
    assert resolve(tmp_path / "link" / "last") == os.fsencode(tmp_path / "real" / "point")


def test_resolve_of_a_relative_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("x") == os.fsencode(tmp_path / "x")


@pytest.mark.parametrize("spelling", ["d/", "d/.", "d/../d", "./d//"])
def test_resolve_takes_dots_and_slashes(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "d").mkdir()
    assert resolve(f"{tmp_path}/{spelling}") == os.fsencode(tmp_path / "d")


def test_resolve_of_root() -> None:
    assert resolve("/") == b"/"


def test_resolve_takes_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    assert resolve(os.fsencode(tmp_path) + b"/\xff") == os.fsencode(tmp_path) + b"/\xff"


@pytest.mark.parametrize(("path", "code"), [("", errno.ENOENT), (b"a\0b", errno.EINVAL)])
def test_resolve_refuses_what_is_no_path(path: str | bytes, code: int) -> None:
    with pytest.raises(MountError) as caught:
        resolve(path)
    assert caught.value.errno == code


def test_a_loop_of_links_is_eloop(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(MountError) as caught:
        resolve(tmp_path / "a")
    assert caught.value.errno == errno.ELOOP


def test_missing_mount_point_says_mkdir(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=r"No such file or directory; make it first: mkdir ") as caught:
        MountPoint(tmp_path / "x", parse_options([]))
    assert caught.value.errno == errno.ENOENT


def test_directory_gives_its_type_and_is_held(tmp_path: Path) -> None:
    with MountPoint(tmp_path, parse_options([])) as point:
        assert point.rootmode == stat.S_IFDIR
        assert os.stat(point.fd).st_ino == tmp_path.stat().st_ino
    assert point.fd == -1


def test_empty_file_gives_its_type(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with MountPoint(tmp_path / "f", parse_options([])) as point:
        assert point.rootmode == stat.S_IFREG


def test_rootmode_option_is_kept(tmp_path: Path) -> None:
    with MountPoint(tmp_path, parse_options(["rootmode=40700"])) as point:
        assert point.rootmode == 0o40700


def test_file_for_a_directory_root_is_enotdir(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert code_of(tmp_path / "f", "rootmode=40000") == errno.ENOTDIR


def test_directory_for_a_file_root_is_eisdir(tmp_path: Path) -> None:
    assert code_of(tmp_path, "rootmode=100000") == errno.EISDIR


def test_directory_with_entries_is_enotempty(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert code_of(tmp_path) == errno.ENOTEMPTY


def test_file_with_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("data")
    assert code_of(tmp_path / "f") == errno.EEXIST


def test_nonempty_allows_both(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("data")
    for path in (tmp_path, tmp_path / "f"):
        MountPoint(path, parse_options(["nonempty"])).close()

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from transfuse.transports.mount import MountError, fusermount


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("user_allow_other\n", True),
        ("  user_allow_other  # yes\n", True),
        ("mount_max = 10\nuser_allow_other", True),
        ("#user_allow_other\n", False),
        ("user_allow_other = 1\n", False),
        ("", False),
    ],
)
def test_fuse_conf_allows_others_by_a_line_of_its_own(tmp_path: Path, text: str, allowed: bool) -> None:
    (tmp_path / "fuse.conf").write_text(text)
    assert fusermount.user_allow_other(str(tmp_path / "fuse.conf")) is allowed


def test_missing_fuse_conf_allows_nothing(tmp_path: Path) -> None:
    assert not fusermount.user_allow_other(str(tmp_path / "none"))


def test_missing_helper_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fusermount, "SEARCH", str(tmp_path))
    with pytest.raises(MountError, match="apt-get install fuse3") as caught:
        fusermount.mount_by_helper(b"/nowhere", "")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.needs("fusermount3")
def test_helpers_words_and_errno_are_kept(tmp_path: Path) -> None:
    with pytest.raises(MountError) as caught:
        fusermount.mount_by_helper(bytes(tmp_path / "missing"), "fsname=x")
    assert caught.value.step == "fusermount3"
    assert caught.value.errno in {errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM}
    assert caught.value.text and not caught.value.text.startswith("fusermount3:")


@pytest.mark.needs("fusermount3")
def test_unmounting_what_is_not_mounted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MountError) as caught:
        fusermount.umount_by_helper(bytes(tmp_path), lazy=False)
    assert caught.value.step == "fusermount3 -u"


def test_helper_that_says_nothing_and_fails_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fusermount3").symlink_to("/bin/false")
    monkeypatch.setattr(fusermount, "SEARCH", str(tmp_path))
    with pytest.raises(MountError, match="it ended without a word"):
        fusermount.mount_by_helper(b"/nowhere", "")

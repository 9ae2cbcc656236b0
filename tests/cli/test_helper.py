from __future__ import annotations

import pytest

from transfuse.cli import helper
from transfuse.cli.errors import CommandError

NAMES = ["mount", "ls"]


@pytest.mark.parametrize(
    ("words", "is_call"),
    [
        (["/a", "/b", "-o", "rw"], True),
        (["/a", "-o", "rw", "/b"], True),
        (["python:x:Y", "/b"], True),
        (["mount", "/a", "/b"], False),
        (["ls", "/a"], False),
        (["--help"], False),
        (["lss"], False),
        ([], False),
        (["/a", "/b", "--unknown"], True),
    ],
)
def test_two_words_that_are_no_command_are_mount8s_form(words: list[str], is_call: bool) -> None:
    assert helper.is_call(words, NAMES) is is_call


def test_options_become_options_of_mount() -> None:
    assert helper.as_mount(["/a", "/b", "-o", "rw,x-a=1", "-o", "dev"]) == [
        "mount", "--called-by-mount", "-orw,x-a=1", "-odev", "--", "/a", "/b",
    ]  # fmt: skip


def test_flags_of_mount8_mean_what_they_mean_there() -> None:
    words = helper.as_mount(["/a", "/b", "-snfrv", "-t", "fuse.transfuse", "-N", "3"])
    assert words == ["mount", "--called-by-mount", "--sloppy", "--fake", "-o", "ro", "--", "/a", "/b"]


@pytest.mark.parametrize("words", [["/a"], ["/a", "/b", "/c"], ["/a", "/b", "--cache", "auto"], ["/a", "/b", "-z"]])
def test_other_words_are_refused(words: list[str]) -> None:
    with pytest.raises(CommandError):
        helper.as_mount(words)


def test_a_source_may_begin_with_a_dash_only_behind_dashes() -> None:
    assert helper.as_mount(["--", "-a", "/b"])[-3:] == ["--", "-a", "/b"]


def test_names_of_mount_helpers_are_known() -> None:
    assert helper.is_helper_name("/sbin/mount.transfuse")
    assert not helper.is_helper_name("/usr/bin/transfuse")

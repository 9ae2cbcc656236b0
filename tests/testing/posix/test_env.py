"""The checks and helpers that the cases are written with."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from transfuse.testing.posix import CheckFailed, Env
from transfuse.testing.posix.env import check, equal, eventually, get, mode_of, put, refused


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Env:
    monkeypatch.chdir(tmp_path)
    return Env(str(tmp_path), frozenset(), 0.02)


def test_equal_shows_modes_in_octal() -> None:
    with pytest.raises(CheckFailed, match="mode: expected 0o644, found 0o600"):
        equal(0o600, 0o644, "mode")


def test_refused_accepts_one_of_several_errnos(env: Env) -> None:
    refused((errno.EEXIST, errno.ENOENT), os.stat, "missing")


def test_put_gives_the_exact_mode_and_content(env: Env) -> None:
    put("f", b"data", 0o626)
    assert (get("f"), mode_of("f")) == (b"data", 0o626)


def test_changed_names_the_times_that_moved(env: Env) -> None:
    put("f")
    put("gone")
    os.mkdir("d")

    def action() -> None:
        os.chmod("f", 0o600)
        put("d/new")
        os.unlink("gone")

    assert env.changed(action, "f", "d", "gone") == ["c", "mc", "gone"]
    assert env.changed(lambda: None, "f", "d", atime=True) == ["", ""]


def test_changed_refuses_a_time_that_goes_backwards(env: Env) -> None:
    put("f")
    with pytest.raises(CheckFailed, match="went backwards"):
        env.changed(lambda: os.utime("f", (1, 1)), "f")


def test_eventually_waits_and_gives_up() -> None:
    answers = iter([False, False, True])
    eventually(lambda: next(answers), "never")
    with pytest.raises(CheckFailed, match="never"):
        eventually(lambda: False, "never", within_s=0.1)


def test_check_fails_with_its_text() -> None:
    with pytest.raises(CheckFailed, match="the text"):
        check(False, "the text")


def test_spawned_process_waits_for_its_turn(env: Env) -> None:
    child = env.spawn(lambda other: (other.ready("here"), other.wait(), "done")[2])
    assert child.wait_ready() == "here"
    assert child.is_quiet(0.05)
    child.go()
    assert child.result() == "done"

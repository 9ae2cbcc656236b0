"""The command line of the POSIX cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfuse.testing.posix.__main__ import main


def test_command_line_lists_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "-k", "flock."]) == 0
    assert "flock.exclusive_excludes" in capsys.readouterr().out


def test_command_line_runs_and_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "-k", "statvfs.pathconf"]) == 0
    assert capsys.readouterr().out.startswith("1 passed, 0 failed, 0 skipped")


def test_command_line_refuses_what_is_no_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/nowhere"]) == 2
    assert "is not a directory" in capsys.readouterr().err

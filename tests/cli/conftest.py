"""Fixtures of the command line's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import transfuse.filesystems.hostdir  # noqa: F401  it opens an fd for the life of the process when it is imported
from cli.runs import Cli, is_mounted
from transfuse.transports.mount.umount import umount


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command in this process."""
    return Cli(capsys)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A mount point; what is left mounted there is taken away."""
    directory = tmp_path / "mount"
    directory.mkdir()
    yield directory
    while is_mounted(directory):
        umount(directory, lazy=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small directory: two files, a subdirectory, a link, a hidden name."""
    top = tmp_path / "data"
    (top / "sub").mkdir(parents=True)
    (top / "a.txt").write_text("first\n")
    (top / "sub" / "b.bin").write_bytes(bytes(range(256)) * 20)
    (top / ".hidden").write_text("")
    (top / "link").symlink_to("sub/b.bin")
    os.chmod(top / "a.txt", 0o640)
    return top

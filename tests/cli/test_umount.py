from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cli.runs import Cli, foreground, is_mounted

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse")]


def test_mount_that_lives_is_unmounted_and_its_server_ends_with_0(data: Path, place: Path, cli: Cli) -> None:
    with foreground(data, place) as (process, _):
        said = cli("umount", place)
        assert (said.code, said.err) == (0, "")
        assert not is_mounted(place)
        assert process.wait(10) == 0


def test_mount_whose_server_was_killed_is_cleared(data: Path, place: Path, cli: Cli) -> None:
    with foreground(data, place) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with pytest.raises(OSError, match="not connected"):
            os.listdir(place)
        assert cli("umount", place).code == 0
    assert os.listdir(place) == []


def test_busy_mount_says_so_and_lazy_takes_it_away(data: Path, place: Path, cli: Cli) -> None:
    with foreground(data, place) as (process, _):
        with open(place / "a.txt") as held:
            said = cli("umount", place)
            assert said.code == 32
            assert said.err.count("\n") == 1 and "Device or resource busy" in said.err and "--lazy" in said.err
            assert cli("umount", "--lazy", place).code == 0
            assert not is_mounted(place)
            assert held.read() == "first\n"
        assert process.wait(10) == 0


def test_hanging_server_is_cut_off_by_force(data: Path, place: Path, cli: Cli) -> None:
    with foreground(data, place) as (process, _):
        process.send_signal(signal.SIGSTOP)
        try:
            assert cli("umount", "--force", place).code == 0
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.wait(10) == 0


def test_what_is_no_mount_is_one_line_and_32_and_others_are_done(data: Path, place: Path, cli: Cli) -> None:
    with foreground(data, place) as (process, _):
        said = cli("umount", place.parent, place)
        assert said.code == 32
        assert said.err == f"transfuse: {place.parent}: umount: Invalid argument (not a mount point)\n"
        assert process.wait(10) == 0


def test_other_kinds_of_mounts_are_left_alone(cli: Cli) -> None:
    said = cli("umount", "/proc")
    assert said.code == 32 and "umount(8)" in said.err

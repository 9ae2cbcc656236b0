"""What a filesystem has is found by trying."""

from __future__ import annotations

import os
from pathlib import Path

from transfuse.testing.posix import Need, lost, probe
from transfuse.testing.posix.needs import time_tick_s


def test_lost_names_only_what_the_mount_lost() -> None:
    assert lost({Need.ROOT: "x"}, {Need.ROOT: "x", Need.ACL: "y"}) == [Need.ACL]


def test_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    probe(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_every_need_is_probed(tmp_path: Path) -> None:
    from transfuse.testing.posix import needs

    assert set(needs._PROBES) == set(Need)


def test_missing_need_has_a_reason() -> None:
    missing = probe("/dev/shm") if os.path.isdir("/dev/shm") else {}
    assert all(missing.values())
    assert (Need.ROOT in missing) != (Need.ORDINARY in missing)


def test_tick_is_long_enough_for_two_different_times(tmp_path: Path) -> None:
    assert 0.01 <= time_tick_s(str(tmp_path)) <= 2.2

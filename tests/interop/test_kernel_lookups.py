"""Lookups, forgets and what the kernel remembers, on real mounts."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from interop.counting import Counting
from interop.kernel import LONG, drop_caches, mounted
from session.peers import eventually
from transfuse.fs.values import Entry

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]

# -- lookups and forgets


def test_every_lookup_is_forgotten(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        for number in range(50):
            (place / f"file{number}").write_bytes(b"x")
        (place / "dir").mkdir()
        os.link(place / "file0", place / "dir" / "other")
        os.listdir(place / "dir")
        assert sum(fs.lookups.values()) >= 51

        def all_forgotten() -> bool:
            drop_caches()
            return not any(fs.lookups.values())

        eventually(all_forgotten)


def test_forgets_come_in_batches(place: Path, wire: Counter[str]) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        for number in range(200):
            (place / f"file{number}").write_bytes(b"x")

        def all_forgotten() -> bool:
            drop_caches()
            return not any(fs.lookups.values())

        eventually(all_forgotten)
        assert wire["BATCH_FORGET"] >= 1


def test_open_file_is_not_forgotten(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        with (place / "file").open("wb") as held:
            nodeid = os.fstat(held.fileno()).st_ino
            drop_caches()
            assert fs.lookups[nodeid] == 1
            os.unlink(place / "file")
            held.write(b"still here")
            held.flush()
            assert os.fstat(held.fileno()).st_size == 10
        eventually(lambda: fs.lookups[nodeid] == 0)


# -- what the kernel remembers


@pytest.mark.parametrize(
    ("method", "opcode", "use"),
    [
        ("fsync", "FSYNC", os.fsync),
        ("getxattr", "GETXATTR", lambda fd: pytest.raises(OSError, os.getxattr, fd, "user.a")),
        ("lseek", "LSEEK", lambda fd: os.lseek(fd, 0, os.SEEK_HOLE)),
        ("fallocate", "FALLOCATE", lambda fd: ctypes.CDLL(None).fallocate(fd, 0, 0, 10)),  # glibc's posix_ emulates
        ("statx", "STATX", None),
    ],
)
def test_missing_operation_is_asked_for_once(
    place: Path, wire: Counter[str], method: str, opcode: str, use: Any
) -> None:
    with mounted(Counting(without=frozenset({method}), attr_timeout_s=0.0), place):
        (place / "file").write_bytes(b"data")
        if use is None:
            for _ in range(2):
                subprocess.run(["stat", "-c", "%W", place / "file"], check=True, timeout=10, capture_output=True)
        else:
            with (place / "file").open("r+b") as file:
                for _ in range(3):
                    use(file.fileno())
        assert wire[opcode] == 1


def test_missing_flush_is_asked_for_once(place: Path, wire: Counter[str]) -> None:
    with mounted(Counting(without=frozenset({"flush"})), place):
        for _ in range(3):
            (place / "file").write_bytes(b"data")
        assert wire["FLUSH"] == 1


def test_missing_create_is_mknod_and_open(place: Path, wire: Counter[str]) -> None:
    with mounted(Counting(without=frozenset({"create"})), place):
        for name in "ab":
            (place / name).write_bytes(b"data")
        assert (wire["CREATE"], wire["MKNOD"]) == (1, 2)


def test_entry_with_a_node_of_its_own_is_the_same_file_after_rename(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        (place / "a").write_bytes(b"data")
        before = os.stat(place / "a").st_ino
        os.rename(place / "a", place / "b")
        assert os.stat(place / "b").st_ino == before
        assert (place / "b").read_bytes() == b"data"


def test_negative_entries_are_remembered_only_where_allowed(place: Path) -> None:
    fs = Counting(negative_timeout_s=3600.0)
    fs.answer["lookup"] = lambda inner, req, parent, name: Entry.negative()
    with mounted(fs, place):
        fs.seen.clear()
        for _ in range(3):
            assert not (place / "missing").exists()
        assert fs.count("LOOKUP") == 1
    fs = Counting()
    with mounted(fs, place):
        fs.seen.clear()
        for _ in range(3):
            assert not (place / "missing").exists()
        assert fs.count("LOOKUP") == 3

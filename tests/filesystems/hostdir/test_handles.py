from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir.handles import OpenDirectory
from transfuse.filesystems.hostdir.nodes import DIRECTORY, HeldFd, Node

AS_USER = False
COUNT = 2500


@pytest.fixture
def directory(source: Path) -> Iterator[OpenDirectory]:
    for number in range(COUNT):
        (source / f"n{number}").touch()
    opened = OpenDirectory(HeldFd(os.open(source, os.O_RDONLY | os.O_DIRECTORY)), Node(1, DIRECTORY << 64, None, None))
    yield opened
    del opened.ref


def read_all(directory: OpenDirectory, at_a_time: int) -> list[bytes]:
    names, offset = [], 0
    while entries := directory.read(offset)[:at_a_time]:
        names += [entry.name for entry in entries]
        offset = entries[-1].cookie
    return names


@pytest.mark.parametrize("at_a_time", [1, 7, 100, 10_000])
def test_small_replies_get_every_name_once(directory: OpenDirectory, at_a_time: int) -> None:
    names = read_all(directory, at_a_time)
    assert len(names) == len(set(names)) == COUNT + 2


def test_offset_0_starts_again_and_sees_new_names(source: Path, directory: OpenDirectory) -> None:
    read_all(directory, 100)
    (source / "new").touch()
    assert b"new" in read_all(directory, 100)


def test_an_earlier_offset_can_be_gone_back_to(directory: OpenDirectory) -> None:
    first = directory.read(0)
    cookie, expected = first[10].cookie, first[11].name
    while entries := directory.read(directory.position):
        assert entries
    assert directory.read(cookie)[0].name == expected


def test_the_end_stays_the_end(directory: OpenDirectory) -> None:
    offset = 0
    while entries := directory.read(offset):
        offset = entries[-1].cookie
    assert directory.read(offset) == []


def test_what_is_kept_does_not_grow_with_the_directory(directory: OpenDirectory) -> None:
    most = 0
    offset = 0
    while entries := directory.read(offset):
        most = max(most, len(directory.entries))
        offset = entries[-1].cookie
    assert most < COUNT / 2


def test_names_removed_while_reading_do_not_hide_others(source: Path, directory: OpenDirectory) -> None:
    names, offset = [], 0
    while entries := directory.read(offset)[:50]:
        for entry in entries:
            if entry.name not in (b".", b".."):
                names.append(entry.name)
                os.unlink(source / os.fsdecode(entry.name))
        offset = entries[-1].cookie
    assert len(names) == COUNT and os.listdir(source) == []

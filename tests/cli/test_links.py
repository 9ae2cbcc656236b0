"""Which names are names of one file."""

from __future__ import annotations

import os
from pathlib import Path

from transfuse.cli.links import LinkTable


def made(path: Path, *names: str) -> list[os.stat_result]:
    """A file with these further names; the stat of each name."""
    path.write_text("text")
    for name in names:
        os.link(path, path.parent / name)
    return [os.lstat(path), *(os.lstat(path.parent / name) for name in names)]


def test_further_names_are_found_until_all_have_come(tmp_path: Path) -> None:
    table = LinkTable()
    a, b, c = made(tmp_path / "a", "b", "c")
    assert table.find(a) is None
    assert table.add(a, "/copy")
    assert table.find(b) == "/copy"
    table.seen(b)
    assert table.find(c) == "/copy"
    table.seen(c)
    assert len(table) == 0 and table.find(a) is None


def test_another_file_of_the_same_number_is_another_file(tmp_path: Path) -> None:
    table = LinkTable()
    a, b = made(tmp_path / "a", "b")
    table.add(a, "/copy")
    os.utime(tmp_path / "b", ns=(1, 1))
    assert table.find(os.lstat(tmp_path / "b")) is None
    assert table.find(b) == "/copy"
    other = list(a)
    other[6] += 1  # st_size
    assert table.find(os.stat_result(other)) is None


def test_reading_a_file_makes_it_no_other(tmp_path: Path) -> None:
    table = LinkTable()
    a, _ = made(tmp_path / "a", "b")
    table.add(a, "/copy")
    os.utime(tmp_path / "a", ns=(0, a.st_mtime_ns))
    before = os.lstat(tmp_path / "a")
    table.add(before, "/copy")
    (tmp_path / "b").read_text()
    after = os.lstat(tmp_path / "b")
    assert after.st_atime_ns != before.st_atime_ns
    assert table.find(after) == "/copy"


def test_the_table_is_bounded(tmp_path: Path) -> None:
    table = LinkTable(bound=2)
    first, second, third = (made(tmp_path / name, f"{name}2")[0] for name in "abc")
    assert table.add(first, "/a") and table.add(second, "/b")
    assert not table.add(third, "/c")
    assert table.add(first, "/a again")
    assert table.find(third) is None
    table.seen(second)
    assert table.add(third, "/c")

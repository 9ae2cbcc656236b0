from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from cli.runs import Cli, command, environment


def test_file_out_of_a_source(data: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli("cp", "--from", data, "a.txt", tmp_path / "copy")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert (tmp_path / "copy").read_text() == "first\n"


def test_several_into_a_directory(data: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "to").mkdir()
    assert cli("cp", "--from", data, "a.txt", "sub/b.bin", tmp_path / "to").code == 0
    assert sorted(os.listdir(tmp_path / "to")) == ["a.txt", "b.bin"]


def test_whole_source_into_a_directory(data: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("cp", "-r", "--from", data, "/", tmp_path / "all").code == 0
    assert sorted(os.listdir(tmp_path / "all")) == [".hidden", "a.txt", "link", "sub"]


def test_file_into_a_source(data: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "new").write_text("new")
    assert cli("cp", "--to", data, tmp_path / "new", "sub").code == 0
    assert (data / "sub/new").read_text() == "new"


def test_from_source_to_source(data: Path, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert cli("cp", "-r", "--from", data, "--to", other, "/", "x").code == 0
    assert (other / "x/sub/b.bin").read_bytes() == (data / "sub/b.bin").read_bytes()


def test_no_source_at_all_is_refused(tmp_path: Path, cli: Cli) -> None:
    said = cli("cp", tmp_path / "a", tmp_path / "b")
    assert said.code == 1 and "--from SOURCE or --to SOURCE" in said.err


def test_several_files_need_a_directory(data: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli("cp", "--from", data, "a.txt", "link", tmp_path / "none")
    assert said.code == 1 and "is no directory" in said.err


def test_what_fails_is_a_line_and_the_rest_is_copied(data: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "to").mkdir()
    said = cli("cp", "--from", data, "none", "sub", "a.txt", tmp_path / "to")
    assert said.code == 1
    assert said.err.splitlines() == [
        "transfuse: /none: No such file or directory",
        "transfuse: /sub: it is a directory; give -r to copy it with what is in it (Is a directory)",
    ]
    assert os.listdir(tmp_path / "to") == ["a.txt"]


def on_a_terminal(words: list[str]) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(words, stderr=theirs, env=environment(TERM="xterm", COLUMNS="100"))
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # EIO: the other end is closed
                break
        return process.wait(30), shown.decode()
    finally:
        os.close(ours)


def test_summary_and_progress_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/big").write_bytes(bytes(30 << 20))
    code, shown = on_a_terminal(command("cp", "-r", "--from", tmp_path, "d", tmp_path / "copy"))
    assert code == 0
    assert "1 file, 1 directory, 30 MiB in " in shown
    assert "copying" in shown


def test_quiet_is_quiet_on_a_terminal(data: Path, tmp_path: Path) -> None:
    assert on_a_terminal(command("cp", "-q", "--from", data, "a.txt", tmp_path / "copy")) == (0, "")


@pytest.fixture
def linked(data: Path) -> Path:
    """`data`, with a second name of a file and an extended attribute."""
    os.link(data / "a.txt", data / "sub/again.txt")
    os.setxattr(data / "a.txt", "user.a", b"value")
    os.utime(data / "a.txt", ns=(5, 7))
    return data


@pytest.mark.parametrize("direction", ["out", "in", "between"])
def test_archive_keeps_links_attributes_and_times(linked: Path, tmp_path: Path, cli: Cli, direction: str) -> None:
    (tmp_path / "other").mkdir()
    words = {
        "out": ("--from", linked, "/", tmp_path / "other/x"),
        "in": ("--to", tmp_path / "other", linked, "x"),
        "between": ("--from", linked, "--to", tmp_path / "other", "/", "x"),
    }
    said = cli("cp", "-a", *words[direction])
    assert (said.code, said.out, said.err) == (0, "", "")
    copy = tmp_path / "other/x"
    assert os.path.samefile(copy / "a.txt", copy / "sub/again.txt")
    assert os.getxattr(copy / "a.txt", "user.a") == b"value"
    assert os.stat(copy / "a.txt").st_mtime_ns == 7
    assert os.stat(copy / "a.txt").st_mode == os.stat(linked / "a.txt").st_mode


def test_each_of_the_parts_of_an_archive_alone(linked: Path, tmp_path: Path, cli: Cli) -> None:
    for flag in ("-H", "-X", "-p"):
        assert cli("cp", "-r", flag, "--from", linked, "/", tmp_path / flag).code == 0
    found = {
        flag: (
            os.stat(tmp_path / flag / "a.txt").st_nlink,
            "user.a" in os.listxattr(tmp_path / flag / "a.txt"),
            os.stat(tmp_path / flag / "a.txt").st_mtime_ns == 7,
        )
        for flag in ("-H", "-X", "-p")
    }
    assert found == {"-H": (2, False, False), "-X": (1, True, False), "-p": (1, False, True)}


NO_ATTRIBUTES = """
from transfuse.filesystems.memory import MemoryFilesystem
class Plain(MemoryFilesystem):
    def operations(self):
        return super().operations() - {"setxattr", "link"}
"""


def test_what_could_not_be_kept_is_one_line(linked: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "plain.py").write_text(NO_ATTRIBUTES)
    words = ("cp", "-a", "--from", linked, "--to", f"python:{tmp_path}/plain.py:Plain", "/", "x")
    said = cli(*words)
    assert said.code == 0
    assert said.err == (
        "transfuse: 3 things could not be kept: /x/a.txt: user.a: Operation not supported; "
        "/x/sub/again.txt: as another name of /x/a.txt: Operation not permitted; "
        "/x/sub/again.txt: user.a: Operation not supported\n"
    )
    assert cli(*words[:2], "-q", *words[2:]).err == ""


def test_progress_of_an_archive_counts_further_names(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/big").write_bytes(bytes(30 << 20))
    os.link(tmp_path / "d/big", tmp_path / "d/again")
    code, shown = on_a_terminal(command("cp", "-a", "--from", tmp_path, "d", tmp_path / "copy"))
    assert code == 0
    assert "1 file, 1 directory, 1 hard link, 30 MiB in " in shown

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

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

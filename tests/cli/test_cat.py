from __future__ import annotations

import subprocess
from pathlib import Path

from cli.runs import Cli, command, environment


def test_files_are_printed_one_after_the_other(data: Path) -> None:
    words = command("cat", data, "a.txt", "/sub/b.bin", "link")
    done = subprocess.run(words, capture_output=True, timeout=30, env=environment(), check=True)
    content = (data / "sub/b.bin").read_bytes()
    assert done.stdout == b"first\n" + content + content


def test_big_file_comes_whole(tmp_path: Path) -> None:
    content = bytes(range(251)) * 20_000
    (tmp_path / "big").write_bytes(content)
    done = subprocess.run(
        command("cat", tmp_path, "big"), capture_output=True, timeout=30, env=environment(), check=True
    )
    assert done.stdout == content


def test_missing_file_and_directory_are_lines_and_the_rest_is_printed(data: Path, cli: Cli) -> None:
    said = cli("cat", data, "none", "sub", "a.txt")
    assert said.code == 1
    assert said.out == "first\n"
    assert said.err.splitlines() == [
        "transfuse: /none: No such file or directory", "transfuse: /sub: Is a directory",
    ]  # fmt: skip

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cli.runs import Cli, command, environment


def test_names_one_to_a_line_without_hidden_ones(data: Path, cli: Cli) -> None:
    said = cli("ls", data)
    assert (said.code, said.out, said.err) == (0, "a.txt\nlink\nsub\n", "")


def test_all_shows_hidden_names(data: Path, cli: Cli) -> None:
    assert ".hidden" in cli("ls", "-a", data).out.split()


def test_long_listing_has_mode_owner_size_time_and_target(data: Path, cli: Cli) -> None:
    lines = cli("ls", "-l", data).out.splitlines()
    assert lines[0].split()[0] == "-rw-r-----"
    assert " 6 B " in lines[0]
    assert lines[1].endswith("link -> sub/b.bin") and lines[1].startswith("lrwxrwxrwx")
    assert lines[2].startswith("drwx")


def test_long_listing_shows_device_numbers(tmp_path: Path, cli: Cli) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a device node")
    os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    assert " 1, 3 " in cli("ls", "-l", tmp_path).out


def test_file_as_path_is_listed_itself(data: Path, cli: Cli) -> None:
    assert cli("ls", data, "sub/b.bin").out == "/sub/b.bin\n"


def test_several_paths_get_titles(data: Path, cli: Cli) -> None:
    assert cli("ls", data, "sub", "/").out == "/sub:\nb.bin\n\n/:\na.txt\nlink\nsub\n"


def test_recursive(data: Path, cli: Cli) -> None:
    assert cli("ls", "-R", data).out == "/:\na.txt\nlink\nsub\n\n/sub:\nb.bin\n"


def test_json_has_exact_values(data: Path, cli: Cli) -> None:
    found = {item["path"]: item for item in json.loads(cli("ls", "-R", "--json", data).out)}
    st = (data / "sub/b.bin").stat()
    item = found["/sub/b.bin"]
    assert (item["type"], item["size"], item["mtime_ns"], item["ino"]) == ("file", 5120, st.st_mtime_ns, st.st_ino)
    assert found["/a.txt"]["mode"] == "0640"
    assert found["/link"]["target"] == "sub/b.bin"


def test_missing_path_is_one_line_and_the_others_are_listed(data: Path, cli: Cli) -> None:
    said = cli("ls", data, "nothing", "sub")
    assert said.code == 1
    assert said.err == "transfuse: /nothing: No such file or directory\n"
    assert "b.bin" in said.out


def test_undecodable_names_leave_as_they_came(tmp_path: Path) -> None:
    name = b"\xff\xfe-name"
    open(os.fsencode(tmp_path) + b"/" + name, "w").close()
    raw = subprocess.run(command("ls", tmp_path), capture_output=True, timeout=30, env=environment(), check=True)
    assert raw.stdout == name + b"\n"


def test_empty_source_lists_nothing(cli: Cli) -> None:
    assert cli("ls", "memory:").out == ""

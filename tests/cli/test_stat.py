from __future__ import annotations

import json
from pathlib import Path

from cli.runs import Cli


def test_json_is_what_stat_says(data: Path, cli: Cli) -> None:
    (found,) = json.loads(cli("stat", "--json", data, "sub/b.bin").out)
    st = (data / "sub/b.bin").stat()
    assert found["ino"] == st.st_ino
    assert found["blocks"] == st.st_blocks
    assert (found["uid"], found["gid"], found["nlink"]) == (st.st_uid, st.st_gid, st.st_nlink)
    assert (found["mtime_ns"], found["ctime_ns"]) == (st.st_mtime_ns, st.st_ctime_ns)
    assert found["btime_ns"] is None or 0 < found["btime_ns"] <= st.st_ctime_ns


def test_link_is_itself_unless_followed(data: Path, cli: Cli) -> None:
    (itself,) = json.loads(cli("stat", "--json", data, "link").out)
    (followed,) = json.loads(cli("stat", "-L", "--json", data, "link").out)
    assert (itself["type"], itself["target"]) == ("symlink", "sub/b.bin")
    assert (followed["type"], followed["size"]) == ("file", 5120)


def test_text_is_for_people(data: Path, cli: Cli) -> None:
    text = cli("stat", data, "sub/b.bin").out
    assert text.startswith("/sub/b.bin\n  type      file\n  size      5.0 KiB (5,120 bytes), ")
    assert "-rw-" in text


def test_root_is_the_default(data: Path, cli: Cli) -> None:
    assert cli("stat", data).out.startswith("/\n  type      directory\n")


def test_missing_name_is_one_line(data: Path, cli: Cli) -> None:
    said = cli("stat", data, "none")
    assert (said.code, said.err) == (1, "transfuse: /none: No such file or directory\n")

from __future__ import annotations

import json
from pathlib import Path

from cli.runs import Cli


def test_drawing_has_sizes_targets_and_a_sum(data: Path, cli: Cli) -> None:
    assert cli("tree", data).out == (
        "/\n├── a.txt  (6 B)\n├── link -> sub/b.bin\n└── sub\n    └── b.bin  (5.0 KiB)\n\n"
        "1 directory, 3 files, 5.0 KiB\n"
    )


def test_depth_is_limited(data: Path, cli: Cli) -> None:
    assert "b.bin  " not in cli("tree", "-L", "1", data).out


def test_subtree(data: Path, cli: Cli) -> None:
    assert cli("tree", data, "sub").out.splitlines()[:2] == ["/sub", "└── b.bin  (5.0 KiB)"]


def test_json_is_nested(data: Path, cli: Cli) -> None:
    top = json.loads(cli("tree", "--json", data).out)
    assert [child["path"] for child in top["children"]] == ["/a.txt", "/link", "/sub"]
    assert top["children"][2]["children"][0]["size"] == 5120


def test_a_file_is_no_tree(data: Path, cli: Cli) -> None:
    said = cli("tree", data, "a.txt")
    assert said.code == 1 and "is no directory" in said.err


def test_no_levels_are_refused(data: Path, cli: Cli) -> None:
    assert cli("tree", "-L", "0", data).code == 1

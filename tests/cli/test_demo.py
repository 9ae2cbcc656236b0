from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.runs import Cli
from transfuse.cli import demo
from transfuse.cli.sides import Local
from transfuse.transports.mount.errors import MountError


@pytest.mark.interop
@pytest.mark.needs("root", "/dev/fuse")
def test_kernel_and_client_read_the_same_tree(cli: Cli) -> None:
    said = cli("demo")
    assert said.code == 0, said.out
    lines = said.out.splitlines()
    assert [line.split(" ")[0] for line in lines if line[0] != " "] == ["tree", "form", "kernel", "client", "result"]
    assert "mounted by" in said.out and "requests; unmounted" in said.out
    assert lines[-1] == "result    the same names, attributes and bytes each way; nothing is left behind"


def test_directory_of_ones_own_is_only_read(data: Path, cli: Cli) -> None:
    before = demo.read(Local(), str(data)).names
    said = cli("demo", "--no-kernel", data)
    assert said.code == 0
    assert "3 files" in said.out or "4 files" in said.out
    assert demo.read(Local(), str(data)).names == before


def test_without_dev_fuse_the_client_part_runs(data: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **rest: object) -> None:
        raise MountError(2, "open /dev/fuse", hint="modprobe fuse")

    monkeypatch.setattr("transfuse.server.mount", refuse)
    said = cli("demo", data)
    assert said.code == 0
    assert "no mount here: open /dev/fuse: No such file or directory; modprobe fuse" in said.out
    assert "client    the same protocol in this process" in said.out


def test_difference_fails_the_demo(data: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo.read

    def other(side, top):
        found = real(side, top)
        if not isinstance(side, Local):
            found.names["/a.txt"] = (*found.names["/a.txt"][:-1], "0" * 64)
            found.names["/more"] = found.names.pop("/sub")
        return found

    monkeypatch.setattr(demo, "read", other)
    said = cli("demo", "--no-kernel", data)
    assert said.code == 1
    assert "DIFFERENT /a.txt: content differs by way of the client" in said.out
    assert "DIFFERENT /more: only client" in said.out
    assert "DIFFERENT /sub: only in the directory" in said.out
    assert said.out.splitlines()[-1] == "result    different"


def test_missing_directory_is_one_line(cli: Cli) -> None:
    said = cli("demo", "/no/such/place")
    assert said.code == 1 and said.err == "transfuse: /no/such/place: is no directory; name an existing one, or none\n"


def test_generated_tree_has_something_of_everything(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    demo.generate(str(top))
    names = [os.fsencode(path) for path in top.rglob("*")]
    assert any(b"\xff" in name for name in names)
    assert (top / "odd/one").stat().st_nlink == 2
    assert (top / "odd/holes").stat().st_blocks * 512 < demo.SPARSE_BYTES // 4
    assert (top / "transfuse/cli/demo.py").exists()


def test_unreadable_file_is_the_same_error_each_way() -> None:
    one, two = demo.Snapshot(), demo.Snapshot()
    one.names["/x"] = two.names["/x"] = ("error", 13)
    assert demo.compare(one, two, "client") == []
    two.names["/x"] = ("error", 5)
    assert demo.compare(one, two, "client") == ["/x: readability differs by way of the client"]

from __future__ import annotations

from pathlib import Path

import pytest

from cli.runs import Cli
from transfuse import Attr, DirEntry, Entry, Filesystem
from transfuse.cli import inner
from transfuse.cli.options import read_settings
from transfuse.cli.sources import connected
from transfuse.client import Client
from transfuse.server import Server
from transfuse.transports.memory import MemoryTransport


@pytest.mark.parametrize(("path", "expected"), [("a", "/a"), ("/a", "/a"), ("", "/"), ("/", "/"), ("//a/b", "/a/b")])
def test_paths_are_meant_from_the_root(path: str, expected: str) -> None:
    assert inner.inside(path) == expected


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(OSError, match="no file's name"):
        inner.check_name(name)


def test_children_are_sorted_by_bytes_and_have_attributes(data: Path) -> None:
    with connected(str(data), read_settings([])) as client:
        found = inner.children(client, "/")
    assert [child.name for child in found] == [".hidden", "a.txt", "link", "sub"]
    assert [child.is_dir for child in found] == [False, False, False, True]
    assert found[1].st.st_size == 6


def test_walk_gives_parents_first_in_order(tmp_path: Path) -> None:
    for name in ("b/c", "a/d", "a/b"):
        (tmp_path / name).mkdir(parents=True)
    with connected(str(tmp_path), read_settings([])) as client:
        paths = [path for path, _ in inner.walk(client, "/", inner.Errors(False))]
    assert paths == ["/", "/a", "/a/b", "/a/d", "/b", "/b/c"]


class Endless(Filesystem):
    """Each directory holds another one."""

    def lookup(self, req, parent, name):
        return Entry(Attr.directory(parent + 1))

    def getattr(self, req, nodeid, fh):
        return Attr.directory(nodeid)

    def readdir(self, req, nodeid, fh, offset):
        return [DirEntry(b"d", nodeid + 1, 4)]


def test_endless_tree_is_given_up_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    transport = MemoryTransport()
    errors = inner.Errors(False)
    with Server(Endless(), transport), Client(transport.client) as client:
        directories = sum(1 for _ in inner.walk(client, "/", errors))
    assert directories <= inner.MAX_DEPTH
    assert errors.count == 1 and capsys.readouterr().err.count("\n") == 1


def test_options_of_a_mount_are_refused_where_nothing_is_mounted(data: Path, cli: Cli) -> None:
    for option in ("ro", "allow_other", "workers=3", "fsname=x"):
        said = cli("ls", data, "-o", option)
        assert said.code == 1 and "nothing is mounted here" in said.err

"""Paths: links, dots, slashes, limits."""

from __future__ import annotations

import errno
import os
from pathlib import PurePosixPath
from typing import Any

import pytest

from transfuse.client import Client
from transfuse.client.walk import MAX_LINKS, split_path


def number(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    return errno.errorcode[caught.value.errno or 0]


@pytest.fixture
def tree(mem: Client) -> Client:
    """/d/e/f, /d/link -> e, /abs -> /d/e, /dangling -> nowhere, /loop -> loop, /file."""
    mem.makedirs("/d/e")
    mem.write_bytes("/d/e/f", b"deep")
    mem.write_bytes("/file", b"top")
    mem.symlink("e", "/d/link")
    mem.symlink("/d/e", "/abs")
    mem.symlink("nowhere", "/dangling")
    mem.symlink("loop", "/loop")
    return mem


@pytest.mark.parametrize(
    "path",
    [
        "/d/e/f",
        "d/e/f",
        "//d///e/f",
        "/d/./e/./f",
        "/d/link/f",
        "/abs/f",
        "/abs/../e/f",
        "/d/link/../link/f",
        "/../../d/e/f",
        "/d/e/../../d/e/f",
        b"/d/e/f",
        PurePosixPath("/d/e/f"),
    ],
)
def test_every_way_leads_to_the_file(tree: Client, path: Any) -> None:
    for _ in range(2):
        assert tree.read_bytes(path) == b"deep"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/nope", "ENOENT"),
        ("/d/nope/f", "ENOENT"),
        ("/dangling", "ENOENT"),
        ("/file/", "ENOTDIR"),
        ("/file/.", "ENOTDIR"),
        ("/file/..", "ENOTDIR"),
        ("/file/x", "ENOTDIR"),
        ("/loop", "ELOOP"),
        ("/loop/x", "ELOOP"),
        ("", "ENOENT"),
        ("x" * 4096, "ENAMETOOLONG"),
        ("/" + "d/../" * 900, "ENAMETOOLONG"),
        ("/" + "n" * 300, "ENAMETOOLONG"),
    ],
)
def test_where_no_way_leads(tree: Client, path: str, expected: str) -> None:
    for _ in range(2):
        assert number(tree.stat, path) == expected


def test_a_name_too_long_for_every_server_is_not_even_asked(peer: Any, client: Client) -> None:
    client.name_max = 1024
    assert number(client.stat, "/" + "n" * 1025) == "ENAMETOOLONG"


def test_a_slash_behind_a_link_follows_it_even_for_lstat(tree: Client) -> None:
    assert tree.lstat("/abs").st_mode & 0o170000 == 0o120000
    assert tree.lstat("/abs/").st_mode & 0o170000 == 0o040000


@pytest.mark.parametrize("count", [MAX_LINKS, MAX_LINKS + 1])
def test_forty_links_are_followed_and_no_more(mem: Client, count: int) -> None:
    mem.write_bytes("/0", b"end")
    for link in range(count):
        mem.symlink(str(link), f"/{link + 1}")
    if count <= MAX_LINKS:
        assert mem.read_bytes(f"/{count}") == b"end"
    else:
        assert number(mem.read_bytes, f"/{count}") == "ELOOP"


def test_a_link_that_ends_in_a_slash_must_lead_to_a_directory(tree: Client) -> None:
    tree.symlink("file/", "/bad")
    tree.symlink("d/", "/good")
    assert number(tree.stat, "/bad") == "ENOTDIR"
    assert tree.listdir("/good") == tree.listdir("/d")


def test_dots_are_never_asked_of_the_server(tree: Client) -> None:
    tree.drop_caches()
    tree.counts.take()  # type: ignore[attr-defined]
    tree.stat("/d/../d/./e/..")
    assert tree.counts["LOOKUP"] == 2  # type: ignore[attr-defined]


def test_nul_in_a_path_is_a_value_error(mem: Client) -> None:
    with pytest.raises(ValueError, match="null"):
        mem.stat("/a\0b")


def test_a_name_that_is_no_utf8_comes_and_goes_as_surrogates(mem: Client) -> None:
    mem.write_bytes(b"/\xff", b"x")
    assert mem.listdir("/") == ["\udcff"] and mem.listdir(b"/") == [b"\xff"]
    assert mem.read_bytes("/\udcff") == b"x"


def test_the_error_names_the_callers_path(mem: Client) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mem.stat("a/b")
    assert caught.value.filename == "a/b" and caught.value.strerror == os.strerror(errno.ENOENT)


def test_split_path() -> None:
    assert split_path(b"/a//b/./c") == ([b"a", b"b", b"c"], False)
    assert split_path(b"a/") == ([b"a"], True)
    assert split_path(b"a/..") == ([b"a", b".."], True)

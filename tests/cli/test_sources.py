from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from cli.runs import Cli
from transfuse.cli.errors import CommandError
from transfuse.cli.options import read_settings
from transfuse.cli.sources import check_extra, connected, convert, make_filesystem, parse_source
from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import Server
from transfuse.transports.mount.errors import MountOptionError
from transfuse.transports.stream import StreamListener

MODULE = """
from transfuse import Attr, Entry, Features, Filesystem
from transfuse.fs.path import PathFilesystem

class Small(Filesystem):
    def __init__(self, greeting: str, copies: int = 1, ratio: float = 0.5, shout: bool = False, untyped=3):
        self.got = (greeting, copies, ratio, shout, untyped)
    def lookup(self, req, parent, name): return Entry.negative()
    def getattr(self, req, nodeid, fh): return Attr.directory(nodeid)
    def readdir(self, req, nodeid, fh, offset): return []

class ByPath(PathFilesystem):
    def getattr(self, req, path, fh): return Attr.directory(1)
    def listdir(self, req, path): return []

class OwnTimeout(Small):
    def __init__(self, entry_timeout: float = 9.0):
        self.got = entry_timeout

class Broken(Small):
    def __init__(self): raise RuntimeError("no\\nway")

class Picky(Small):
    def __init__(self): raise FileNotFoundError(2, "No such file or directory", "/its/data")

class Plain: pass
number = 3
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "ours.py"
    path.write_text(MODULE)
    return str(path)


def made(text: str, *options: str) -> object:
    return make_filesystem(parse_source(text), read_settings(options))


def refusal(text: str, *options: str) -> str:
    with pytest.raises((CommandError, MountOptionError)) as caught:
        made(text, *options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what a SOURCE is --


def test_directory_is_a_host_directory(tmp_path: Path) -> None:
    assert isinstance(made(str(tmp_path)), HostDirectory)


def test_what_exists_is_a_path_whatever_it_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("memory:")
    os.mkdir("python:a:B")
    assert parse_source("memory:").kind == "path"
    assert parse_source("./python:a:B").kind == "path"


def test_memory_is_a_memory_filesystem() -> None:
    assert isinstance(made("memory:"), MemoryFilesystem)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("/no/such/place", "no such directory; SOURCE can be a directory, memory:"),
        ("./memory:", "no such directory"),
        ("s3://bucket/x", "no kind of source called s3:"),
        ("memory:big", "nothing after the colon"),
        ("python:", "names no class"),
        ("python:json", "names no class"),
        ("python:json:", "names no class"),
        ("python:a-b:C", "is no module name"),
        ("python:no.such.module:C", "no module no"),
        ("python:json:JSONDecoder", "JSONDecoder is not a Filesystem"),
        ("python:json:loads", "loads is no class"),
        ("python:/no/such/file.py:C", "no such file"),
        ("unix:/run/x", "is a server already"),
    ],
)
def test_bad_source_is_refused_in_one_line(text: str, words: str) -> None:
    assert words in refusal(text)


def test_file_is_refused(module: str) -> None:
    assert "is no directory" in refusal(module)


def test_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    assert "symbolic link to nothing" in refusal(str(tmp_path / "link"))


# -- classes --


def test_class_from_a_file_gets_its_arguments_converted(module: str) -> None:
    small = made(f"python:{module}:Small", "greeting=a\\,b,copies=3K,ratio=0.25,shout,untyped=7")
    assert small.got == ("a,b", 3072, 0.25, True, 7)  # type: ignore[attr-defined]


def test_class_from_a_module_in_the_current_directory(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(module).parent)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert type(made("python:ours:ByPath")).__name__ == "ByPath"


def test_mount8_does_not_search_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match="no module elsewhere"):
        make_filesystem(parse_source("python:elsewhere:ByPath"), read_settings([]), search_here=False)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Smal", (), "did you mean Small?"),
        ("Zzz", (), "it has Small, ByPath"),
        ("Plain", (), "Plain is not a Filesystem"),
        ("number", (), "number is no class"),
        ("Small", (), "Small needs greeting; give -o greeting=..."),
        ("Small", ("greeting=x,copies=many",), "option copies=many: takes a whole number"),
        ("Small", ("greeting=x,shout=perhaps",), "option shout=perhaps: takes yes or no"),
        ("Small", ("greeting",), "option greeting: needs a value"),
        ("Small", ("greeting=x,copy=2",), "option copy=2: is not known; did you mean copies?"),
        ("Small", ("greeting=x,cache=auto",), "option cache: is for directories"),
        ("Broken", (), "Broken can't be made: RuntimeError: no; way"),
    ],
)
def test_trouble_with_a_class_is_one_line(module: str, name: str, options: tuple[str, ...], words: str) -> None:
    assert words in refusal(f"python:{module}:{name}", *options)


def test_os_error_of_a_constructor_keeps_its_file(module: str, cli: Cli) -> None:
    assert cli("ls", f"python:{module}:Picky").err == "transfuse: /its/data: No such file or directory\n"


def test_module_that_fails_to_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1/0\n")
    assert "ZeroDivisionError while loading" in refusal(f"python:{tmp_path}/bad.py:X")


def test_module_that_needs_another_names_it(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import not_there_at_all\n")
    assert "needs the module not_there_at_all" in refusal(f"python:{tmp_path}/bad.py:X")


# -- options of a source --


def test_timeouts_and_writeback_go_to_the_features_of_any_class(module: str) -> None:
    small = made(f"python:{module}:Small", "greeting=x,entry_timeout=5,attr_timeout=6,negative_timeout=7,writeback")
    features = small.features  # type: ignore[attr-defined]
    assert (features.entry_timeout_s, features.attr_timeout_s, features.negative_timeout_s) == (5, 6, 7)
    assert features.writeback_cache


def test_class_with_an_argument_of_that_name_decides_itself(module: str) -> None:
    own = made(f"python:{module}:OwnTimeout", "entry_timeout=5")
    assert own.got == 5.0 and own.features.entry_timeout_s == 1.0  # type: ignore[attr-defined]


def test_options_of_a_directory_reach_it(tmp_path: Path) -> None:
    made_one = made(str(tmp_path), "cache=always,entry_timeout=3,no_passthrough,xattr=no")
    assert isinstance(made_one, HostDirectory)
    assert made_one.cache == "always"
    assert made_one.features.entry_timeout_s == 3
    assert not made_one.features.passthrough
    assert not made_one.features.posix_acl


@pytest.mark.parametrize("option", ["entry_timeout_s=3", "passthrough=no", "source=/etc"])
def test_what_the_table_has_can_not_be_given_a_second_way(tmp_path: Path, option: str) -> None:
    if option.startswith("source"):
        assert read_settings([option]).mount.source == "/etc"
    else:
        assert "is not known" in refusal(str(tmp_path), option)


def test_memory_takes_its_size() -> None:
    with connected("memory:", read_settings(["size_bytes=1M"])) as client:
        vfs = client.statvfs("/")
        assert vfs.f_frsize * vfs.f_blocks == 1 << 20


def test_unknown_option_is_found_without_making_the_filesystem(tmp_path: Path) -> None:
    for text in ("memory:", str(tmp_path)):
        with pytest.raises(MountOptionError, match="bogus"):
            check_extra(parse_source(text), read_settings(["bogus=1"]))
    check_extra(parse_source("memory:"), read_settings(["size_bytes=1M"]))
    check_extra(parse_source("python:a:B"), read_settings(["bogus=1"]))


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("5", int, 5), ("64M", int, 64 << 20), ("64MiB", int, 64 << 20), ("1.5", float, 1.5), ("yes", bool, True),
        ("OFF", bool, False), (None, bool, True), ("x", str, "x"), ("x", bytes, b"x"), ("/a", Path, Path("/a")),
        ("5", int | None, 5), ("x", int | str, "x"), ("a", Literal["a", "b"], "a"), ("7", str | None, "7"),
        ("no", bool | None, False),
    ],
)  # fmt: skip
def test_values_are_made_from_text_by_annotation(text: str | None, hint: object, value: object) -> None:
    assert convert(text, hint) == value


@pytest.mark.parametrize(
    ("text", "hint"),
    [("x", int), ("-1", int), ("9" * 30, int), ("x", float), ("maybe", bool), (None, int), (None, str),
     ("c", Literal["a", "b"]), ("x", Callable[[], int])],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused(text: str | None, hint: object) -> None:
    with pytest.raises(ValueError, match=r"takes|needs|can't"):
        convert(text, hint)


# -- a server as a source --


@pytest.fixture
def socket_path(tmp_path: Path, data: Path) -> Iterator[Path]:
    path = tmp_path / "s.sock"
    with StreamListener(path, lambda transport: Server(HostDirectory(data), transport).start()):
        yield path


def test_server_on_a_socket_is_looked_into(socket_path: Path, cli: Cli) -> None:
    assert cli("cat", f"unix:{socket_path}", "a.txt").out == "first\n"


def test_socket_without_a_server_is_one_line(tmp_path: Path, cli: Cli) -> None:
    said = cli("ls", f"unix:{tmp_path}/none.sock")
    assert said.code == 1
    assert said.err.startswith(
        f"transfuse: unix:{tmp_path}/none.sock: No such file or directory; is a server listening"
    )


def test_options_for_a_server_elsewhere_are_refused(socket_path: Path, cli: Cli) -> None:
    assert "option size_bytes=1M: is not known" in cli("ls", f"unix:{socket_path}", "-o", "size_bytes=1M").err

"""The base class: which operations a filesystem has, and what happens to a name that is misspelt."""

from __future__ import annotations

import errno
import inspect
from typing import Any

import pytest

from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry, Features
from transfuse.wire.opcodes import Opcode


class Small(Filesystem):
    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        return Entry(Attr.file(2))


# Requests that the session answers by itself, or by the operation beside them.
WITHOUT_METHOD = {
    "INIT": None,
    "DESTROY": None,
    "INTERRUPT": None,
    "NOTIFY_REPLY": None,
    "CUSE_INIT": None,
    "SETUPMAPPING": None,
    "REMOVEMAPPING": None,
    "BATCH_FORGET": "forget",
    "RENAME2": "rename",
    "SETLKW": "setlk",
    "READDIRPLUS": "readdir",
    "COPY_FILE_RANGE_64": "copy_file_range",
}


def test_operations_are_the_opcodes_in_lower_case() -> None:
    expected = {opcode.name.lower() for opcode in Opcode if opcode.name not in WITHOUT_METHOD}
    assert expected | {"flock", "map"} == OPERATION_NAMES
    assert {name for name in WITHOUT_METHOD.values() if name} <= OPERATION_NAMES


def test_operations_are_those_that_were_overridden() -> None:
    assert Small().operations() == {"lookup"}


def test_inherited_operations_count() -> None:
    class Larger(Small):
        def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
            return Attr.directory(1)

    assert Larger().operations() == {"lookup", "getattr"}


@pytest.mark.parametrize("name", sorted(OPERATION_NAMES))
def test_operation_left_alone_is_enosys(name: str) -> None:
    method = getattr(Filesystem(), name)
    arguments = [None] * len(inspect.signature(method).parameters)
    with pytest.raises(OSError, match="not implemented") as caught:
        method(*arguments)
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize("name", sorted(OPERATION_NAMES))
def test_every_operation_takes_the_request_first_and_is_documented(name: str) -> None:
    method = getattr(Filesystem, name)
    assert list(inspect.signature(method).parameters)[:2] == ["self", "req"]
    assert method.__doc__


def method(self: Any, req: Request, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("lookpu", "lookup"), ("getatr", "getattr"), ("read_dir", "readdir"), ("copy_range", "copy_file_range")],
)
def test_misspelt_operation_is_refused_when_the_class_is_made(misspelt: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"did you mean '{meant}'"):
        type("Typo", (Filesystem,), {misspelt: method})


def test_operation_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="Odd.frobnicate takes a request but 'frobnicate' is not an operation"):
        type("Odd", (Filesystem,), {"frobnicate": method})


def test_misspelt_coroutine_is_refused() -> None:
    async def later(self: Any, req: Request) -> None: ...

    with pytest.raises(TypeError, match="did you mean 'statfs'"):
        type("Typo", (Filesystem,), {"stafs": later})


def test_nearly_an_operation_is_refused_even_without_a_request() -> None:
    with pytest.raises(TypeError, match="did you mean 'readlink'"):
        type("Typo", (Filesystem,), {"readlinks": lambda self, node: None})


@pytest.mark.parametrize("name", ["_helper", "__len__", "size_of", "mounted", "destroyed"])
def test_helpers_are_allowed(name: str) -> None:
    type("Fine", (Filesystem,), {name: lambda self, *args: None})


def test_helper_with_an_underscore_may_take_a_request() -> None:
    type("Fine", (Filesystem,), {"_helper": method})


def test_attributes_and_nested_classes_are_allowed() -> None:
    type("Fine", (Filesystem,), {"lookups": {}, "Reader": type("Reader", (), {})})


def test_life_of_the_connection_needs_no_override() -> None:
    fs = Filesystem()
    fs.mounted(None)
    fs.destroyed()


def test_changing_features_of_one_filesystem_leaves_the_others_alone() -> None:
    first, second = Small(), Small()
    first.features.passthrough = True
    assert not second.features.passthrough
    assert not Filesystem.features.passthrough
    assert not Small.features.passthrough


def test_features_of_the_class_are_where_an_instance_begins() -> None:
    class Wishing(Filesystem):
        features = Features(writeback_cache=True)

        def __init__(self, name: str, *, size: int) -> None:
            self.name = name

    fs = Wishing("x", size=1)
    assert fs.features == Features(writeback_cache=True)
    assert fs.features is not Wishing.features


def test_features_may_be_a_property() -> None:
    class Computed(Filesystem):
        @property
        def features(self) -> Features:  # type: ignore[override]
            return Features(no_open=True)

    assert Computed().features.no_open

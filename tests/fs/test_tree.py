from __future__ import annotations

import errno
import os

import pytest

from transfuse.fs.tree import Symlink, TreeFilesystem
from transfuse.testing import conformance
from transfuse.testing.direct import DirectVolume

TREE = {
    "hello.txt": b"Hello, world!\n",
    "text": "h\u00e4",
    "empty": b"",
    "made": lambda: "made at open",
    "proc": {"load": lambda: b"0.1 " * 30_000, "deep": {"er": {"leaf": b"x" * 200_000}}, "nothing": {}},
    "link": Symlink("proc/deep"),
    "bytes-link": Symlink(b"\xff"),
    "odd \n name": b"1",
}


class TestTreeConforms(conformance.ReadOnly):
    transports = ("direct", "memory", "stream", "dev_fuse")

    def make_filesystem(self, tmp_path):
        return TreeFilesystem(TREE)

    def expected(self):
        return TREE


def volume(tree):
    return DirectVolume(TreeFilesystem(tree))


def test_a_callable_is_called_at_every_open():
    numbers = iter(range(10))
    v = volume({"n": lambda: str(next(numbers))})
    assert [v.read_bytes("/n"), v.read_bytes("/n")] == [b"0", b"1"]


def test_what_was_made_stays_for_the_life_of_the_handle():
    numbers = iter(range(10))
    with volume({"n": lambda: str(next(numbers))}).open("/n", os.O_RDONLY) as file:
        assert file.pread(9, 0) == file.pread(9, 0) == b"0"


def test_a_callable_that_fails_with_oserror_fails_the_open():
    def fail():
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        volume({"n": fail}).read_bytes("/n")


def test_a_callable_that_returns_something_else_is_a_typeerror():
    with pytest.raises(TypeError, match="int"):
        volume({"n": lambda: 5}).read_bytes("/n")


def test_opening_for_writing_is_erofs():
    with pytest.raises(OSError) as caught:
        volume({"f": b""}).open("/f", os.O_WRONLY)
    assert caught.value.errno == errno.EROFS


def test_there_are_no_operations_that_change_anything():
    assert not {"write", "create", "mkdir", "unlink", "setattr"} & TreeFilesystem({}).operations()


def test_directories_count_their_subdirectories():
    assert volume({"a": {}, "b": {}, "c": b""}).stat("/").nlink == 4


def test_owner_and_time_are_those_given():
    st = DirectVolume(TreeFilesystem({"f": b""}, time_ns=5, uid=7, gid=8)).stat("/f")
    assert (st.uid, st.gid, st.mtime_ns) == (7, 8, 5)


def test_changing_the_dict_later_changes_nothing():
    tree = {"a": b"1"}
    v = volume(tree)
    tree["b"] = b"2"
    assert v.listdir("/") == ["a"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "n" * 256, 5])
def test_names_that_can_not_be_are_refused(name):
    with pytest.raises(ValueError):
        TreeFilesystem({name: b""})


@pytest.mark.parametrize("value", [5, None, ["x"]])
def test_values_of_other_types_are_refused(value):
    with pytest.raises(TypeError, match="/x/y"):
        TreeFilesystem({"x": {"y": value}})


def test_a_dict_that_contains_itself_is_refused():
    tree = {}
    tree["again"] = tree
    with pytest.raises(ValueError, match="nested deeper"):
        TreeFilesystem(tree)

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import os

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.request import Request
from transfuse.fs.tree import TreeFilesystem
from transfuse.fs.values import Attr, AttrChanges, Entry, Opened
from transfuse.fs.wrap import NODE_ARGUMENTS, ReadOnly, Subdirectory, Wrapper
from transfuse.testing import conformance
from transfuse.testing.direct import DirectVolume

REQ = Request()
TREE = {"f": b"data", "d": {"g": b"more"}}


def filled(where=""):
    fs = MemoryFilesystem(size_bytes=64 << 20)
    volume = DirectVolume(fs)
    if where:
        path = ""
        for name in where.strip("/").split("/"):
            path += f"/{name}"
            volume.mkdir(path)
    volume.write_bytes(f"{where}/f", b"data")
    volume.mkdir(f"{where}/d")
    volume.write_bytes(f"{where}/d/g", b"more")
    return fs


class TestWrapperConforms(conformance.ReadWrite):
    transports = ("direct",)

    def make_filesystem(self, tmp_path):
        return Wrapper(MemoryFilesystem(size_bytes=64 << 20))


class TestReadOnlyConforms(conformance.ReadOnly):
    transports = ("direct", "memory", "dev_fuse")

    def make_filesystem(self, tmp_path):
        return ReadOnly(filled())

    def expected(self):
        return TREE


class TestSubdirectoryConforms(conformance.ReadWrite):
    transports = ("direct", "memory")

    def make_filesystem(self, tmp_path):
        fs = MemoryFilesystem(size_bytes=64 << 20)
        volume = DirectVolume(fs)
        volume.mkdir("/a")
        volume.mkdir("/a/b")
        volume.write_bytes("/outside", b"secret")
        return Subdirectory(fs, "a/b")


class Partial(Filesystem):
    def getattr(self, req, nodeid, fh):
        return Attr.directory(1)

    def mkdir(self, req, parent, name, mode, umask):
        return Entry(Attr.directory(2))

    def open(self, req, nodeid, flags):
        return Opened(5)


@pytest.mark.parametrize("wrap", [Wrapper, ReadOnly, lambda fs: Subdirectory(fs, "")])
def test_a_wrapper_has_exactly_the_operations_of_what_it_wraps(wrap):
    assert wrap(Partial()).operations() == {"getattr", "mkdir", "open"}


def test_unchanged_operations_are_the_wrapped_ones_themselves():
    inner = Partial()
    assert Wrapper(inner).getattr == inner.getattr


def test_life_is_passed_on():
    seen = []

    class Noting(Partial):
        def mounted(self, connection):
            seen.append(connection)

        def destroyed(self):
            seen.append("end")

    wrapper = Wrapper(Noting())
    wrapper.mounted("up")
    wrapper.destroyed()
    assert seen == ["up", "end"]


def test_a_changed_operation_over_a_coroutine_shows_as_one():
    class Later(Filesystem):
        async def open(self, req, nodeid, flags):
            await asyncio.sleep(0)
            return Opened(7)

    wrapper = ReadOnly(Later())
    assert inspect.iscoroutinefunction(wrapper.open)
    assert asyncio.run(wrapper.open(REQ, 2, os.O_RDONLY)).fh == 7
    with pytest.raises(OSError):
        asyncio.run(wrapper.open(REQ, 2, os.O_WRONLY))


# ---- ReadOnly

ARGUMENTS = {
    "symlink": (1, b"x", b"t"),
    "mknod": (1, b"x", 0o100644, 0, 0),
    "mkdir": (1, b"x", 0o755, 0),
    "unlink": (1, b"f"),
    "rmdir": (1, b"d"),
    "rename": (1, b"f", 1, b"x", 0),
    "link": (2, 1, b"x"),
    "setattr": (2, AttrChanges(mode=0), None),
    "setxattr": (2, b"user.a", b"", 0, False),
    "removexattr": (2, b"user.a"),
    "create": (1, b"x", 0o644, 0, os.O_RDWR),
    "tmpfile": (1, 0o644, 0, os.O_RDWR),
    "write": (2, 1, b"x", 0, 0),
    "fallocate": (2, 1, 0, 0, 10),
    "copy_file_range": (2, 1, 0, 2, 1, 10, 1, 0),
    "open": (2, os.O_WRONLY),
    "access": (2, 2),
    "ioctl": (2, 1, 0x40086602, 0, bytes(8), 0, 0),
}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_every_change_is_erofs(name):
    with pytest.raises(OSError) as caught:
        getattr(ReadOnly(filled()), name)(REQ, *ARGUMENTS[name])
    assert caught.value.errno == errno.EROFS


def test_every_mutation_is_in_the_table():
    assert set(ARGUMENTS) - {"open", "access", "ioctl"} == ReadOnly.MUTATIONS


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_TRUNC, 3])
def test_opening_for_anything_but_reading_is_erofs(flags):
    with pytest.raises(OSError) as caught:
        ReadOnly(filled()).open(REQ, 2, flags)
    assert caught.value.errno == errno.EROFS


def test_reading_file_flags_is_allowed():
    fs = ReadOnly(filled())
    opened = fs.open(REQ, 2, os.O_RDONLY)
    assert fs.ioctl(REQ, 2, opened.fh, 0x80086601, 0, b"", 8, 0).data == bytes(8)


def test_write_back_is_not_asked_for():
    inner = filled()
    inner.features.writeback_cache = True
    assert ReadOnly(inner).features.writeback_cache is False and inner.features.writeback_cache is True


# ---- Subdirectory


@pytest.fixture
def inside():
    fs = filled("/a/b")
    return fs, Subdirectory(fs, "/a/b/")


def test_the_directory_is_node_1(inside):
    fs, sub = inside
    assert DirectVolume(sub).read_bytes("/d/g") == b"more"


def test_a_missing_path_is_enoent():
    with pytest.raises(FileNotFoundError):
        Subdirectory(filled(), "missing")


def test_a_file_is_enotdir():
    with pytest.raises(NotADirectoryError):
        Subdirectory(filled(), "f")


def test_a_symbolic_link_is_not_followed():
    fs = filled()
    DirectVolume(fs).symlink("d", "/link")
    with pytest.raises(NotADirectoryError):
        Subdirectory(fs, "link")


def test_dots_in_the_path_are_refused():
    with pytest.raises(ValueError):
        Subdirectory(filled(), "d/../d")


@pytest.mark.parametrize("path", ["missing", "f", "d/missing", "d/g"])
def test_a_failed_walk_gives_its_lookups_back(path):
    fs = filled()
    with pytest.raises(OSError):
        Subdirectory(fs, path)
    assert fs.lookup_count() == 0


def test_dotdot_of_the_root_is_the_root(inside):
    _, sub = inside
    assert sub.lookup(REQ, 1, b"..").nodeid == 1


def test_dotdot_of_a_child_is_the_root(inside):
    _, sub = inside
    child = sub.lookup(REQ, 1, b"d")
    assert sub.lookup(REQ, child.nodeid, b"..").nodeid == 1


def test_dotdot_of_the_root_is_listed_as_the_root(inside):
    _, sub = inside
    listed = {entry.name: entry.ino for entry in sub.readdir(REQ, 1, 0, 0)}
    assert listed[b".."] == listed[b"."]


def test_the_real_number_of_the_directory_is_not_known(inside):
    _, sub = inside
    with pytest.raises(OSError) as caught:
        sub.getattr(REQ, sub.getattr(REQ, 1, None).ino, None)
    assert caught.value.errno == errno.ESTALE


def test_forgets_of_the_root_leave_the_wrapper_its_own(inside, caplog):
    fs, sub = inside
    sub.lookup(REQ, 1, b"..")
    with caplog.at_level(logging.WARNING):
        sub.forget(REQ, 1, 1)
        sub.forget(REQ, 1, 5)
    assert fs.lookup_count() == 1 and caplog.text == "" and sub.getattr(REQ, 1, None).nlink == 3


def test_forgets_of_others_are_passed_on(inside):
    fs, sub = inside
    entry = sub.lookup(REQ, 1, b"f")
    sub.forget(REQ, entry.nodeid, 1)
    assert fs.lookup_count() == 1


def test_a_second_connection_walks_again(inside):
    fs, sub = inside

    class Up:
        order = "<"
        notify = None
        features = sub.features

    sub.destroyed()
    assert fs.lookup_count() == 0
    sub.mounted(Up)
    assert DirectVolume(sub).read_bytes("/f") == b"data" and fs.lookup_count() == 1


def test_a_rename_within_is_translated_on_both_sides(inside):
    fs, sub = inside
    DirectVolume(sub).rename("/f", "/d/f")
    assert DirectVolume(fs).read_bytes("/a/b/d/f") == b"data"


def test_a_tree_can_be_cut():
    assert DirectVolume(Subdirectory(TreeFilesystem(TREE), "d")).read_bytes("/g") == b"more"


def test_nodeids_are_found_in_the_signatures():
    assert NODE_ARGUMENTS["rename"] == (2, 4) and NODE_ARGUMENTS["link"] == (2, 3)
    assert NODE_ARGUMENTS["copy_file_range"] == (2, 5)
    assert all(NODE_ARGUMENTS[name] for name in OPERATION_NAMES)

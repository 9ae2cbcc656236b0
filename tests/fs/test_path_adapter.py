"""The adapter, tried with a directory of this machine behind it."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib.util
import inspect
import os
import threading
from pathlib import Path

import pytest

from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, DirEntry, Opened
from transfuse.testing import conformance
from transfuse.testing.direct import DirectVolume
from transfuse.testing.model import ALL_OPERATIONS, RandomOperations
from transfuse.testing.volume import OsVolume

_spec = importlib.util.spec_from_file_location("host_paths", Path(__file__).with_name("host_paths.py"))
host_paths = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(host_paths)
HostPaths = host_paths.HostPaths

WITHOUT_PATHS = ("access",)


class TestPathsConform(conformance.ReadWrite):
    transports = ("direct", "memory", "dev_fuse")
    unsupported = frozenset({"test_a_default_acl_is_inherited"})  # the host's umask-less mkdir is not the server's

    def make_filesystem(self, tmp_path):
        return HostPaths(tmp_path)


@pytest.fixture
def host(tmp_path):
    return HostPaths(tmp_path)


@pytest.fixture
def volume(host):
    return DirectVolume(host.as_filesystem())


@pytest.mark.needs("root")
@pytest.mark.parametrize("inode_numbers", [True, False])
def test_random_operations_give_what_the_directory_gives(tmp_path, rng, inode_numbers):
    umask = os.umask(0)
    try:
        (tmp_path / "model").mkdir()
        (tmp_path / "trial").mkdir()
        host = HostPaths(tmp_path / "trial", inode_numbers)
        adapter = host.as_filesystem()
        operations = [name for name in ALL_OPERATIONS if name not in WITHOUT_PATHS]
        if not inode_numbers:
            # What has two names shows the model's link in both attributes.
            operations = [name for name in operations if name not in ("link", "link_open")]
        runner = RandomOperations(
            OsVolume(str(tmp_path / "model")), DirectVolume(adapter), rng, operations=operations, exact_holes=False
        )
        runner.run(4000)
        assert adapter.node_count() == 1 and not host.open_fds
    finally:
        os.umask(umask)


def test_getattr_of_an_unlinked_open_file_uses_its_handle(volume):
    with volume.open("/f", os.O_CREAT | os.O_RDWR) as file:
        file.pwrite(b"12345", 0)
        volume.unlink("/f")
        assert volume.fs.getattr(Request(), file.nodeid, None).size == 5


def test_an_unlinked_file_without_a_handle_is_estale(volume):
    volume.write_bytes("/f", b"x")
    with volume.node("/f") as (nodeid, _):
        volume.unlink("/f")
        with pytest.raises(OSError) as caught:
            volume.fs.getattr(Request(), nodeid, None)
    assert caught.value.errno == errno.ESTALE


def test_a_new_file_of_an_unlinked_name_is_not_taken_for_the_old(volume):
    with volume.open("/f", os.O_CREAT | os.O_RDWR) as old:
        old.pwrite(b"old", 0)
        volume.unlink("/f")
        volume.write_bytes("/f", b"newer")
        assert (old.stat().size, volume.stat("/f").size) == (3, 5)


def test_a_name_removed_behind_our_back_is_enoent(volume, tmp_path):
    volume.write_bytes("/f", b"x")
    with volume.node("/f") as (nodeid, _):
        (tmp_path / "f").unlink()
        with pytest.raises(FileNotFoundError):
            volume.stat("/f")
        with pytest.raises(OSError) as caught:
            volume.fs.getattr(Request(), nodeid, None)
    assert caught.value.errno == errno.ESTALE


def test_hard_links_are_one_node_by_inode_number(volume):
    volume.write_bytes("/a", b"x")
    volume.link("/a", "/b")
    with volume.node("/a") as (first, _), volume.node("/b") as (second, _):
        assert first == second


def test_without_inode_numbers_hard_links_are_two_nodes(tmp_path):
    volume = DirectVolume(HostPaths(tmp_path, inode_numbers=False).as_filesystem())
    volume.write_bytes("/a", b"x")
    volume.link("/a", "/b")
    with volume.node("/a") as (first, _), volume.node("/b") as (second, _):
        assert first != second


def test_names_that_are_not_utf_8_reach_the_author_as_surrogates(volume, tmp_path):
    name = os.fsdecode(b"\xff")
    volume.write_bytes(f"/{name}", b"")
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff"]


def test_a_rename_waits_for_what_is_under_way_and_then_is_alone():
    inside, go_on, log = threading.Event(), threading.Event(), []

    class Slow(PathFilesystem):
        def getattr(self, req, path, fh):
            return Attr.directory(0) if path.count("/") == 1 and "f" not in path else Attr.file(0)

        def read(self, req, path, fh, size, offset):
            inside.set()
            go_on.wait(10)
            log.append("read ends")
            return b""

        def rename(self, req, path, newpath, flags):
            log.append("rename")

    fs = Slow().as_filesystem()
    nodeid = fs.lookup(Request(), 1, b"f").nodeid
    reader = threading.Thread(target=lambda: fs.read(Request(), nodeid, 0, 1, 0))
    reader.start()
    inside.wait(10)
    renamer = threading.Thread(target=lambda: fs.rename(Request(), 1, b"f", 1, b"g", 0))
    renamer.start()
    renamer.join(0.05)
    go_on.set()
    reader.join(10)
    renamer.join(10)
    assert log == ["read ends", "rename"]


def test_what_create_returns_is_looked_at_by_its_handle():
    asked = []

    class Creating(PathFilesystem):
        def getattr(self, req, path, fh):
            asked.append((path, fh))
            return Attr.file(0)

        def create(self, req, path, mode, umask, flags):
            return Opened(42)

    entry, opened = Creating().as_filesystem().create(Request(), 1, b"f", 0o644, 0, 0)
    assert (entry.nodeid, opened.fh, asked) == (2, 42, [("/f", 42)])


def test_mkdir_that_returns_attributes_is_not_asked_for_them():
    class Making(PathFilesystem):
        def getattr(self, req, path, fh):
            raise AssertionError("asked")

        def mkdir(self, req, path, mode, umask):
            return Attr.directory(0, mode)

    assert Making().as_filesystem().mkdir(Request(), 1, b"d", 0o700, 0).attr.mode == 0o40700


def test_readdir_of_the_author_is_passed_on():
    class Listing(PathFilesystem):
        def getattr(self, req, path, fh):
            return Attr.directory(0)

        def readdir(self, req, path, fh, offset):
            return [DirEntry(b"x", 5, 8, offset + 1)]

    found = list(Listing().as_filesystem().readdir(Request(), 1, 0, 7))
    assert [(e.name, e.ino, e.kind, e.cookie) for e in found] == [(b"x", 5, 8, 8)]


class Coroutines(PathFilesystem):
    async def getattr(self, req, path, fh):
        await asyncio.sleep(0)
        return Attr.directory(0) if path == "/" else Attr.file(0, 5)

    async def listdir(self, req, path):
        return ["f"]

    async def read(self, req, path, fh, size, offset):
        await asyncio.sleep(0)
        return path.encode()

    async def setattr(self, req, path, changes, fh):
        return None


def test_coroutines_of_the_author_show_as_coroutine_functions():
    fs = Coroutines().as_filesystem()
    assert all(inspect.iscoroutinefunction(getattr(fs, name)) for name in ("lookup", "getattr", "read", "readdir"))
    assert not inspect.iscoroutinefunction(fs.forget)


def test_coroutines_of_the_author_are_awaited():
    fs = Coroutines().as_filesystem()

    async def use():
        entry = await fs.lookup(Request(), 1, b"f")
        listed = await fs.readdir(Request(), 1, 0, 0)
        return entry.nodeid, await fs.read(Request(), entry.nodeid, 0, 9, 0), [e.name for e in listed]

    assert asyncio.run(use()) == (2, b"/f", [b"f"])


def test_a_method_that_returns_an_awaitable_unannounced_is_a_bug():
    class Sneaky(PathFilesystem):
        def getattr(self, req, path, fh):
            async def later():
                await asyncio.sleep(0)

            return later()

    with pytest.raises(RuntimeError):
        Sneaky().as_filesystem().getattr(Request(), 1, None)


def test_a_file_without_a_name_is_reached_by_its_handle(volume, tmp_path):
    with volume.tmpfile("/", os.O_RDWR) as file:
        file.pwrite(b"12345", 0)
        file.truncate(3)
        assert volume.fs.getattr(Request(), file.nodeid, None).size == 3
        assert file.pread(9, 0) == b"123" and os.listdir(tmp_path) == []


def test_a_file_without_a_name_has_the_path_of_its_directory_until_it_is_linked(tmp_path):
    seen = []

    class Seeing(HostPaths):
        def read(self, req, path, fh, size, offset):
            seen.append(path)
            return super().read(req, path, fh, size, offset)

    volume = DirectVolume(Seeing(tmp_path).as_filesystem())
    volume.mkdir("/d")
    with volume.tmpfile("/d", os.O_RDWR) as file:
        file.pread(1, 0)
        volume.link_open(file, "/name")
        file.pread(1, 0)
    assert seen == ["/d", "/name"]


@pytest.mark.parametrize("inode_numbers", [True, False])
def test_a_file_that_gets_its_first_name_stays_the_node_it_was(tmp_path, inode_numbers):
    volume = DirectVolume(HostPaths(tmp_path, inode_numbers).as_filesystem())
    with volume.tmpfile("/", os.O_RDWR) as file:
        volume.link_open(file, "/f")
        with volume.node("/f") as (nodeid, _):
            assert nodeid == file.nodeid
    assert volume.fs.node_count() == 1


def test_a_file_without_name_and_handle_is_estale(volume):
    file = volume.tmpfile("/", os.O_RDWR)
    nodeid = file.nodeid
    volume.fs.release(Request(), nodeid, file.fh, 0, 0, False)
    for call in (
        lambda: volume.fs.getattr(Request(), nodeid, None),
        lambda: volume.fs.link(Request(), nodeid, 1, b"f"),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ESTALE


class Handles(PathFilesystem):
    """Handles of one number, and what became of them."""

    def __init__(self):
        self.closed = []
        self.at_the_end = None

    def getattr(self, req, path, fh):
        return Attr.directory(0) if path in ("/", "/d") else Attr.file(0)

    def open(self, req, path, flags):
        return Opened(7)

    def release(self, req, path, fh, flags, lock_owner, flock_unlock):
        self.closed.append((path, fh, flags))

    def opendir(self, req, path, flags):
        return Opened(8)

    def releasedir(self, req, path, fh, flags):
        self.closed.append((path, fh, flags))

    def unlink(self, req, path):
        pass

    def destroyed(self):
        self.at_the_end = list(self.closed)


def test_a_tmpfile_without_a_handle_is_a_bug():
    class Handleless(Handles):
        def tmpfile(self, req, path, mode, umask, flags):
            return Opened()

    with pytest.raises(RuntimeError, match="no handle"):
        Handleless().as_filesystem().tmpfile(Request(), 1, 0o600, 0, os.O_RDWR)


def test_the_end_of_the_connection_empties_the_table(volume):
    volume.write_bytes("/f", b"")
    volume.fs.lookup(Request(), 1, b"f")
    volume.fs.destroyed()
    assert volume.fs.node_count() == 1


def test_what_is_open_at_the_end_of_the_connection_is_closed():
    fs = Handles()
    adapter = fs.as_filesystem()
    node, directory = (adapter.lookup(Request(), 1, name).nodeid for name in (b"f", b"d"))
    for flags in (1, 2):
        adapter.open(Request(), node, flags)
    adapter.opendir(Request(), directory, 3)
    adapter.opendir(Request(), 1, 4)
    adapter.unlink(Request(), 1, b"f")
    adapter.destroyed()
    assert sorted(fs.at_the_end) == [("/", 8, 4), ("/d", 8, 3), ("/f", 7, 2), ("/f", 7, 2)]
    adapter.destroyed()
    assert fs.closed == fs.at_the_end


def test_what_was_closed_is_not_closed_again_at_the_end():
    fs = Handles()
    adapter = fs.as_filesystem()
    node = adapter.lookup(Request(), 1, b"f").nodeid
    adapter.release(Request(), node, adapter.open(Request(), node, 1).fh, 1, 0, False)
    adapter.releasedir(Request(), 1, adapter.opendir(Request(), 1, 0).fh, 0)
    fs.closed.clear()
    adapter.destroyed()
    assert fs.at_the_end == []


def test_a_file_that_is_forgotten_while_it_is_open_can_be_closed():
    fs = Handles()
    adapter = fs.as_filesystem()
    node = adapter.lookup(Request(), 1, b"f").nodeid
    fh = adapter.open(Request(), node, 1).fh
    adapter.forget(Request(), node, 1)
    adapter.release(Request(), node, fh, 1, 0, False)
    assert fs.closed == [("/f", 7, 1)] and adapter.node_count() == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), ZeroDivisionError()])
def test_a_handle_that_fails_to_close_at_the_end_does_not_keep_the_others_open(error):
    class Failing(Handles):
        def release(self, req, path, fh, flags, lock_owner, flock_unlock):
            super().release(req, path, fh, flags, lock_owner, flock_unlock)
            if flags == 1:
                raise error

    fs = Failing()
    adapter = fs.as_filesystem()
    for number, name in enumerate((b"f", b"g"), 1):
        adapter.open(Request(), adapter.lookup(Request(), 1, name).nodeid, number)
    if isinstance(error, OSError):
        adapter.destroyed()
    else:
        with pytest.raises(ZeroDivisionError):
            adapter.destroyed()
    assert fs.at_the_end == [("/f", 7, 1), ("/g", 7, 2)]


@pytest.mark.parametrize("operation", ["open", "opendir"])
def test_a_file_that_opens_after_the_end_is_closed_at_once(operation):
    class Late(Handles):
        def open(self, req, path, flags):
            adapter.destroyed()
            return Opened(7)

        opendir = open

    fs = Late()
    adapter = fs.as_filesystem()
    node = adapter.lookup(Request(), 1, b"f" if operation == "open" else b"d").nodeid
    with pytest.raises(OSError) as caught:
        getattr(adapter, operation)(Request(), node, 5)
    assert caught.value.errno == errno.ESTALE and [(fh, flags) for _, fh, flags in fs.closed] == [(7, 5)]


@pytest.mark.parametrize("operation", ["create", "tmpfile"])
def test_a_new_file_that_cannot_be_looked_at_is_closed(operation):
    class Blind(Handles):
        def getattr(self, req, path, fh):
            if fh:
                raise OSError(errno.EIO, "no")
            return super().getattr(req, path, fh)

        def create(self, req, path, mode, umask, flags):
            return Opened(9)

        tmpfile = create

    fs = Blind()
    adapter = fs.as_filesystem()
    arguments = (b"f", 0o600, 0, 2) if operation == "create" else (0o600, 0, 2)
    with pytest.raises(OSError) as caught:
        getattr(adapter, operation)(Request(), 1, *arguments)
    assert caught.value.errno == errno.EIO and [fh for _, fh, _ in fs.closed] == [9]


def test_at_the_end_a_release_that_is_a_coroutine_is_left_to_the_author(recwarn):
    class Awaited(Handles):
        async def release(self, req, path, fh, flags, lock_owner, flock_unlock):
            raise AssertionError("called, but nobody waits for it")

    fs = Awaited()
    adapter = fs.as_filesystem()

    async def use():
        node = (await adapter.lookup(Request(), 1, b"f")).nodeid
        await adapter.open(Request(), node, 1)
        await adapter.opendir(Request(), 1, 2)

    asyncio.run(use())
    adapter.destroyed()
    gc.collect()
    assert fs.at_the_end == [("/", 8, 2)] and not recwarn.list

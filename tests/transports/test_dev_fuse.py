"""/dev/fuse channels on a real mount, in both forms of the loop."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from transfuse import Server, mount
from transfuse.transports import dev_fuse
from transfuse.transports.dev_fuse import DevFuse
from transfuse.transports.mount import attach, open_device, parse_options
from transports.device_files import BIG, Files

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse")]

@pytest.fixture(params=["native", "plain"])
def form(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(dev_fuse, "_devloop", None)
    elif dev_fuse._devloop is None:
        pytest.skip("the plain form runs")
    return request.param


@pytest.fixture
def files(tmp_path, form):
    source = tmp_path / "source"
    source.write_bytes(BIG)
    fd = os.open(source, os.O_RDONLY)
    write_only = os.open(source, os.O_WRONLY)
    filesystem = Files(fd, write_only)
    place = tmp_path / "mnt"
    place.mkdir()
    with mount(filesystem, place) as mounted:
        yield filesystem, place, mounted
    os.close(fd)
    os.close(write_only)


@pytest.mark.parametrize("name", ["bytes", "range"])
def test_reads_of_all_sizes_arrive_whole(files, name):
    _, place, _ = files
    with open(place / name, "rb", buffering=0) as file:
        for size in (1, 511, 512, 4096, 4097, 1 << 20):
            assert os.pread(file.fileno(), size, 3) == BIG[3 : 3 + size]


def test_a_range_that_cannot_be_read_is_an_error(files):
    _, place, _ = files
    with open(place / "broken", "rb", buffering=0) as file, pytest.raises(OSError) as caught:
        file.read(10)
    assert caught.value.errno == errno.EBADF


def test_a_write_of_the_largest_size_arrives_in_one_piece(files):
    filesystem, place, mounted = files
    with open(place / "small", "r+b", buffering=0) as file:
        assert file.write(BIG[: 1 << 20]) == 1 << 20
    assert filesystem.written[2] == BIG[: 1 << 20]
    assert mounted.connection.max_write == 1 << 20


def test_a_held_up_read_does_not_hold_up_others(files):
    filesystem, place, mounted = files
    slow = open(place / "slow", "rb", buffering=0)
    reader = threading.Thread(target=slow.read, args=(10,))
    reader.start()
    try:
        assert filesystem.waiting.acquire(timeout=10)
        assert sorted(os.listdir(place)) == sorted(os.fsdecode(name) for name in Files.NAMES)
        assert len(mounted.server.pool.workers) >= 2
    finally:
        filesystem.gate.set()
        reader.join()
        slow.close()


def test_an_inherited_connection_is_served_until_closed_and_stays_mounted(tmp_path, form):
    fd = open_device()
    mounted = attach(fd, tmp_path, parse_options([]))
    null = os.open("/dev/null", os.O_RDONLY)
    transport = DevFuse(fd, wakeable=True)
    server = Server(Files(null), transport)
    try:
        with server:
            assert server.wait_connected(10)
            assert (tmp_path / "small").read_bytes() == b"tiny"
        assert mounted.is_mounted(), "closing the server must not unmount what somebody else mounted"
    finally:
        mounted.umount(lazy=True)
        transport.dispose()
        os.close(null)


def test_groups_of_a_process_are_read_from_proc(tmp_path):
    fd = open_device()
    try:
        transport = DevFuse(fd)
        assert transport.groups_of(os.getpid()) == tuple(os.getgroups())
        assert transport.groups_of(1 << 22) == ()
    finally:
        os.close(fd)


def test_a_backing_file_needs_a_connection(tmp_path):
    fd = open_device()
    try:
        with pytest.raises(OSError):
            DevFuse(fd).register_backing(fd)
    finally:
        os.close(fd)

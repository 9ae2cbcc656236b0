"""Files read through the DAX window of a virtio-fs device: what is on the wire, and what is not."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from transfuse.client import Client
from transfuse.client.dax import RANGE, DaxRanges
from transfuse.filesystems.hostdir import HostDirectory, syscalls
from transfuse.server import Server
from transfuse.testing.counts import CountingTransport
from transfuse.transports.vhost_user.backend import VhostUserTransport
from transfuse.transports.vhost_user.driver import VhostUserClientTransport
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.wire.opcodes import Opcode


@pytest.fixture(autouse=True, scope="module")
def _kept_by_every_host_directory() -> None:
    syscalls.proc_fd()  # opened once for the process


class Shared:
    """A directory behind a device with a window of some ranges."""

    def __init__(self, folder: Path, ranges: int) -> None:
        self.folder = folder
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.source = HostDirectory(folder)
        self.server = Server(self.source, VhostUserTransport(ours, window=ranges * RANGE)).start()
        self.counts = CountingTransport(VhostUserClientTransport(MessageSocket(theirs)))
        self.client = Client(self.counts).connect()

    def close(self) -> None:
        self.client.close()
        self.server.close()
        self.source.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    shared = Shared(tmp_path, 4)
    yield shared
    shared.close()


def test_no_read_is_sent(shared: Shared) -> None:
    data = random.Random(1).randbytes(5_000_001)
    (shared.folder / "big").write_bytes(data)
    assert shared.client.read_bytes("/big") == data
    assert shared.counts["READ"] == 0
    assert shared.counts["SETUPMAPPING"] == 3


def test_a_second_reading_asks_for_nothing_more(shared: Shared) -> None:
    (shared.folder / "x").write_bytes(b"data")
    with closing(shared.client.open_file("/x")) as file:
        assert file.pread(10, 0) == b"data"
        before = shared.counts.total
        assert file.pread(2, 1) == b"at"
        assert shared.counts.total == before


def test_what_is_written_is_seen_in_the_window(shared: Shared) -> None:
    (shared.folder / "x").write_bytes(b"data")
    with closing(shared.client.open_file("/x", os.O_RDWR)) as file:
        assert file.pread(10, 0) == b"data"
        file.pwrite(b"DA", 0)
        assert file.pread(10, 0) == b"DAta"


def test_a_file_that_grew_is_read_to_its_new_end(shared: Shared) -> None:
    (shared.folder / "x").write_bytes(b"data")
    with closing(shared.client.open_file("/x", os.O_RDWR)) as file:
        assert file.pread(10, 0) == b"data"
        file.pwrite(b"z" * 20_000, 4)
        assert file.pread(30_000, 0) == b"data" + b"z" * 20_000
    assert shared.counts["READ"] == 0


def test_ranges_are_taken_back_when_the_window_is_full(shared: Shared) -> None:
    for number in range(6):
        (shared.folder / str(number)).write_bytes(bytes([number]) * 100)
    for _ in range(2):
        for number in range(6):
            assert shared.client.read_bytes(f"/{number}") == bytes([number]) * 100
    assert shared.counts["REMOVEMAPPING"] == 8
    assert shared.counts["READ"] == 0
    assert shared.client.dax is not None
    assert shared.client.dax.mapped == 4


def test_threads_share_the_window(shared: Shared) -> None:
    data = [random.Random(number).randbytes(RANGE * 2 + 17) for number in range(4)]
    for number, content in enumerate(data):
        (shared.folder / str(number)).write_bytes(content)
    wrong: list[int] = []

    def read(number: int) -> None:
        for _ in range(3):
            if shared.client.read_bytes(f"/{number}") != data[number]:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_an_empty_file_needs_no_mapping(shared: Shared) -> None:
    (shared.folder / "empty").write_bytes(b"")
    assert shared.client.read_bytes("/empty") == b""
    assert shared.counts["SETUPMAPPING"] == 0


def test_a_server_without_a_window_gets_reads(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"data")
    shared = Shared(tmp_path, 0)
    assert shared.client.dax is None
    assert shared.client.read_bytes("/x") == b"data"
    assert shared.counts["READ"] > 0
    shared.close()


class NoWindow:
    size = RANGE

    def at(self, at: int, length: int, writable: bool = False) -> memoryview:
        raise OSError(errno.ENXIO, "nothing is mapped")


def test_a_server_that_maps_nothing_costs_no_place() -> None:
    asked: list[int] = []

    def refuse(opcode: int, nodeid: int, args: Any, payload: Any) -> None:
        asked.append(opcode)
        raise OSError(errno.ENOSPC, "refused")

    ranges = DaxRanges(NoWindow(), refuse, "<")
    for _ in range(3):
        with pytest.raises(OSError, match="refused"):
            ranges.read(5, 10, 0, 10)
    assert asked == [Opcode.SETUPMAPPING] * 3
    assert ranges.mapped == 0


def test_forget_gives_all_ranges_of_a_file_back(shared: Shared) -> None:
    (shared.folder / "x").write_bytes(bytes(RANGE + 1))
    shared.client.read_bytes("/x")
    dax = shared.client.dax
    assert dax is not None
    assert dax.mapped == 2
    for nodeid in {key[0] for key in dax._ranges}:
        dax.forget(nodeid)
    assert dax.mapped == 0
    assert shared.counts["REMOVEMAPPING"] == 1

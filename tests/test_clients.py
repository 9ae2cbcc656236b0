"""One way to a client, whatever there is to be read."""

from __future__ import annotations

from pathlib import Path

import pytest

import transfuse
from transfuse.clients import open_wire
from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import Server
from transfuse.transports.stream import StreamListener
from transfuse.transports.vhost_user.backend import VhostUserTransport


@pytest.fixture(autouse=True, scope="module")
def _kept_by_every_host_directory() -> None:
    syscalls.proc_fd()  # opened once for the process


def test_a_directory_is_served_here(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"data")
    with transfuse.connect(tmp_path) as client:
        assert client.read_bytes("/x") == b"data"
    assert client.closed


def test_what_exists_is_a_path_whatever_it_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unix:x").mkdir()
    with transfuse.connect("unix:x") as client:
        assert client.listdir("/") == []


def test_a_filesystem_is_served_here_and_told_of_the_end() -> None:
    filesystem = MemoryFilesystem()
    client = transfuse.connect(filesystem)
    client.write_bytes("/x", b"data")
    assert filesystem.lookup_count() > 0
    client.close()
    assert filesystem.lookup_count() == 0


def test_a_virtio_fs_server_by_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "fs.sock"
    with Server(MemoryFilesystem(), VhostUserTransport(path, queues=2)):
        with transfuse.connect(f"vhost-user:{path}", wire={"queues": 2, "packed": True}) as client:
            client.write_bytes("/x", b"data")
            assert client.read_bytes("/x") == b"data"


def test_a_stream_server_by_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "fs.sock"
    filesystem = MemoryFilesystem()
    with StreamListener(path, lambda transport: Server(filesystem, transport).start()):
        with transfuse.connect(f"unix:{path}", timeout_s=5) as client:
            assert client.listdir("/") == []


def test_nobody_there_is_an_oserror(tmp_path: Path) -> None:
    for kind in ("unix", "vhost-user"):
        with pytest.raises(FileNotFoundError):
            transfuse.connect(f"{kind}:{tmp_path}/none")


def test_options_of_a_wire_need_one(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="wire="):
        transfuse.connect(tmp_path, wire={"queues": 2})


def test_unknown_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is none of unix, vhost-user"):
        open_wire("tcp", "x")

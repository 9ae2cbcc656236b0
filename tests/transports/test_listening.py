"""Socket files to listen on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from transfuse.transports.listening import identity, listen


@pytest.fixture(params=[socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["stream", "seqpacket"])
def kind(request: pytest.FixtureRequest) -> socket.SocketKind:
    found: socket.SocketKind = request.param
    return found


def test_a_socket_file_is_for_its_owner(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = str(tmp_path / "s")
    with listen(path, kind):
        assert os.stat(path).st_mode & 0o777 == 0o600
    os.unlink(path)
    with listen(path, kind, 0o660):
        assert os.stat(path).st_mode & 0o777 == 0o660 & ~_umask()


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_living_server_is_left_alone_and_hears_nothing(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = str(tmp_path / "s")
    with listen(path, kind) as living:
        before = identity(path)
        with pytest.raises(OSError, match="a server listens there"):
            listen(path, kind)
        assert identity(path) == before
        living.setblocking(False)
        with pytest.raises(BlockingIOError):
            living.accept()


def test_a_dead_servers_file_is_replaced(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = str(tmp_path / "s")
    listen(path, kind).close()
    with listen(path, kind) as sock:
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(path)
            sock.accept()[0].close()


def test_another_kind_of_file_is_left_alone(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="is no socket"):
        listen(str(path), kind)
    assert path.read_text() == "precious"


def test_where_nothing_is_there_is_no_identity(tmp_path: Path) -> None:
    assert identity(str(tmp_path / "s")) is None

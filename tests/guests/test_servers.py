"""Back-ends as processes: their command lines, and how one is seen to listen."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from guests import servers
from guests.packages import Missing
from guests.servers import arguments, listening


def test_listening_is_told_from_a_socket_file_that_a_dead_server_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert not listening(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        assert not listening(path)
        server.listen()
        assert listening(path)
    assert path.exists() and not listening(path)


def test_transfuse_is_started_as_users_start_it(tmp_path: Path) -> None:
    words = arguments("transfuse", Path("/srv"), Path("/run/s"), ["--queues", "4"])
    assert words[1:] == ["-m", "transfuse", "serve", "/srv", "--socket-path", "/run/s", "--queues", "4"]


def test_back_end_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(servers, "C_VIRTIOFSD", tmp_path / "virtiofsd")
    with pytest.raises(Missing, match="needs .*virtiofsd of qemu-system-common 7.2: it is missing"):
        arguments("virtiofsd-c", Path("/srv"), Path("/run/s"))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no kind of back-end is called 'nfs'"):
        arguments("nfs", Path("/srv"), Path("/run/s"))

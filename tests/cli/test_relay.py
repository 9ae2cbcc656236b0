from __future__ import annotations

import os
import signal
from pathlib import Path

from cli.runs import Cli, run, started
from transfuse.cli.errors import USAGE
from transfuse.filesystems.hostdir import HostDirectory
from transfuse.server import Server
from transfuse.transports.vhost_user.backend import VhostUserTransport
from transports.vhost_user.raw_frontend import RawFrontend


def test_a_machine_reaches_the_server_through_it(tmp_path: Path) -> None:
    share, front, back = tmp_path / "share", tmp_path / "front", tmp_path / "back"
    share.mkdir()
    (share / "x").write_bytes(b"data")
    with started("relay", front, f"vhost-user:{back}") as (process, line):
        assert line == f"{front} leads to {back}\n"
        filesystem = HostDirectory(share)
        with Server(filesystem, VhostUserTransport(back)), RawFrontend(front) as frontend:
            frontend.handshake()
            frontend.begin()
            frontend.init()
            assert frontend.lookup(b"x").errno == 0
        filesystem.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not front.exists()


def test_it_says_why_it_cannot(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "file"
    file.touch()
    said = cli("relay", file, tmp_path / "back")
    assert (said.code, said.out) == (1, "")
    assert "is no socket" in said.err
    assert file.exists()
    assert cli("relay", "same", "./same").code == USAGE
    assert cli("relay", "vhost-user:", "back").code == USAGE
    assert cli("relay", "x" * 200, "back").code == USAGE


def test_help_shows_how(tmp_path: Path) -> None:
    said = run("relay", "--help")
    assert said.returncode == 0
    assert "--state-file" in said.stdout
    assert os.listdir(tmp_path) == []

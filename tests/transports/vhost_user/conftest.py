"""A served host directory, and raw front-ends that go to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transfuse.filesystems.hostdir import HostDirectory
from transfuse.server import Server
from transfuse.transports.vhost_user.backend import VhostUserTransport
from transports.vhost_user.raw_frontend import RawFrontend


class Serving:
    """A server on a socket, its directory, and its front-ends."""

    def __init__(self, folder: Path, make: Callable[[], Any] | None = None, **options: Any) -> None:
        self.folder = folder / "share"
        self.folder.mkdir(exist_ok=True)
        self.path = str(folder / "socket")
        self.make = make or (lambda: HostDirectory(self.folder))
        self.options = options
        self.bugs: list[BaseException] = []
        self.frontends: list[RawFrontend] = []
        self.filesystems: list[Any] = []
        self.server = self.start()

    def start(self) -> Server:
        """A (new) server."""
        transport = VhostUserTransport(self.path, **self.options)
        filesystem = self.make()
        self.filesystems.append(filesystem)
        self.server = Server(filesystem, transport, on_bug=lambda req, error: self.bugs.append(error))
        return self.server.start()

    def connect(
        self, *, begin: bool = True, init: bool = True, protocol: int | None = None, **options: Any
    ) -> RawFrontend:
        """A front-end, ready to ask."""
        frontend = RawFrontend(self.path, **options)
        self.frontends.append(frontend)
        frontend.handshake(protocol)
        if begin:
            frontend.begin()
            if init:
                frontend.init()
        return frontend

    def file(self, name: str, data: bytes = b"") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def close(self) -> None:
        for frontend in self.frontends:
            frontend.close()
        self.server.close()
        for filesystem in self.filesystems:
            if isinstance(filesystem, HostDirectory):
                filesystem.close()
        assert self.bugs == []


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Make a Serving with these options; closed at the end."""
    made: list[Serving] = []

    def make(filesystem: Callable[[], Any] | None = None, **options: Any) -> Serving:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        serving = Serving(folder, filesystem, **options)
        made.append(serving)
        return serving

    yield make
    for serving in made:
        serving.close()


@pytest.fixture
def serving(serve: Callable[..., Serving]) -> Serving:
    return serve()


@pytest.fixture
def frontend(serving: Serving) -> RawFrontend:
    """With INIT answered."""
    return serving.connect()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))

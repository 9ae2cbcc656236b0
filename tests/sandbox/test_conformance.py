"""The conformance suite over a host directory whose server is contained, with the filter that kills."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transfuse.client import Client
from transfuse.filesystems.hostdir import HostDirectory, syscalls
from transfuse.sandbox import Containment, Source, contain
from transfuse.server import Server
from transfuse.testing import conformance
from transfuse.testing.client_volume import ClientVolume
from transfuse.testing.conformance.places import Place
from transfuse.testing.ledger import Ledger
from transfuse.transports.stream import StreamClientTransport, StreamTransport


def serve_contained(source: str, sandbox: str, control: socket.socket) -> None:
    """In a forked child: contain it, and serve every socket that comes with the name of a directory. Never returns."""
    code = 1
    try:
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != control.fileno():
                try:
                    os.close(int(name))
                except OSError:
                    continue
        for number in (signal.SIGALRM, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

        def prepare(where: Callable[[str], str]) -> str:
            syscalls._proc.open()  # a server imports the module here, and not before
            return where(source)

        place = contain(Containment(sandbox=sandbox, sources=(Source(source),)), prepare).value
        os.umask(0)
        control.send(b"inside")
        while True:
            name, fds, _, _ = socket.recv_fds(control, 256, 1)
            if not name:
                break
            filesystem = HostDirectory(os.path.join(place, os.fsdecode(name)))
            server = Server(filesystem, StreamTransport(socket.socket(fileno=fds[0]))).start()
            server.wait()
            server.close()
            filesystem.close()
            control.send(b"served")
        code = 0
    finally:
        os._exit(code)


@pytest.fixture(scope="class")
def contained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, socket.socket]]:
    """What it serves, and the socket that it takes other sockets from."""
    source = tmp_path_factory.mktemp("contained")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = os.fork()
    if server == 0:
        ours.close()
        serve_contained(str(source), request.cls.sandbox, theirs)
    theirs.close()
    with ours:
        assert ours.recv(100) == b"inside"
        yield source, ours
    _, status = os.waitpid(server, 0)
    assert os.waitstatus_to_exitcode(status) == 0


class Contained(conformance.ReadWrite):
    """One server process for all cases, with a directory for each; books can't be kept over there."""

    sandbox = ""
    transports = ("stream",)

    @pytest.fixture
    def place(
        self, request: pytest.FixtureRequest, tmp_path: Path, transport: str, contained: tuple[Path, socket.socket]
    ) -> Iterator[Place]:
        """As the suite's, over a real process."""
        top, control = contained
        folder = top / str(len(os.listdir(top)))
        folder.mkdir()
        filesystem = HostDirectory(folder)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            socket.send_fds(control, [folder.name.encode()], [ours.fileno()])
        umask = os.umask(0)
        try:
            with Client(StreamClientTransport(theirs)) as client:
                found = Place(ClientVolume(client), Ledger(filesystem), transport, [])
                if missing := self._missing(request.function, found):
                    pytest.skip(f"the filesystem has no {', no '.join(missing)}")
                self.populate(found.volume)
                yield found
        finally:
            os.umask(umask)
            filesystem.close()
            assert control.recv(100) == b"served"


@pytest.mark.needs("root")
class TestHostDirectoryInNamespacesConforms(Contained):
    """A new root and file handles."""

    sandbox = "namespace"


@pytest.mark.needs("root")
class TestHostDirectoryUnderLandlockConforms(Contained):
    """The old root, and no file handles."""

    sandbox = "landlock"

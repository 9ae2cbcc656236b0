"""The front-end's control side against our back-end, and against one that lies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import Server
from transfuse.transports.vhost_user import config
from transfuse.transports.vhost_user.backend import VhostUserTransport
from transfuse.transports.vhost_user.frontend import Frontend
from transfuse.transports.vhost_user.messages import (
    REPLY,
    U64,
    BackendRequest,
    FrontendRequest,
    ProtocolFeature,
    ShmemMapping,
)
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.transports.virtqueue.layout import F_RING_PACKED, F_VERSION_1

GOOD = F_VERSION_1 | config.F_PROTOCOL_FEATURES


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., str]]:
    servers = []

    def serve(**options: object) -> str:
        path = str(tmp_path / "fs.sock")
        servers.append(Server(MemoryFilesystem(), VhostUserTransport(path, **options)).start())  # type: ignore[arg-type]
        return path

    yield serve
    for server in servers:
        server.close()


def test_tag_and_queues_come_from_the_device(device: Callable[..., str]) -> None:
    frontend = Frontend(device(tag="pictures", queues=2), queues=5)
    frontend.handshake()
    assert (frontend.tag, len(frontend.rings)) == ("pictures", 3)
    frontend.close()


def test_no_more_queues_are_used_than_wanted(device: Callable[..., str]) -> None:
    frontend = Frontend(device(queues=4), queues=2)
    frontend.handshake()
    assert len(frontend.rings) == 3
    frontend.close()


@pytest.mark.parametrize("packed", [False, True])
def test_rings_are_given_and_taken_back(device: Callable[..., str], packed: bool) -> None:
    frontend = Frontend(device(), packed=packed)
    frontend.handshake()
    frontend.begin()
    assert bool(frontend.features & F_RING_PACKED) == packed
    frontend.stop()
    frontend.close()


def test_the_window_has_the_devices_size(device: Callable[..., str]) -> None:
    frontend = Frontend(device(window=8 << 20))
    frontend.handshake()
    assert frontend.window is not None
    assert frontend.window.size == 8 << 20
    frontend.close()


def test_without_a_window_there_is_none(device: Callable[..., str]) -> None:
    frontend = Frontend(device())
    frontend.handshake()
    assert frontend.window is None
    frontend.close()


# -- a back-end that lies ---------------------------------------------------------------------------------------------


class Liar:
    """Answers each request with what the table says, or hangs up."""

    def __init__(self, answers: dict[int, bytes | None]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.frontend = Frontend(MessageSocket(ours))
        self.socket = MessageSocket(theirs)
        self.answers = answers
        self.thread = threading.Thread(target=self.talk, daemon=True)
        self.thread.start()

    def talk(self) -> None:
        while (message := self.socket.receive()) is not None:
            message.fds.close()
            if message.request in self.answers:
                answer = self.answers[message.request]
                if answer is None:
                    break
                self.socket.send(message.request, answer, flags=REPLY)
            elif message.need_reply:
                self.socket.send(message.request, U64(value=0).encode(), flags=REPLY)
        self.socket.close()

    def close(self) -> None:
        self.frontend.close()
        self.thread.join(10)


def u64(value: int) -> bytes:
    return U64(value=value).encode()


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ({FrontendRequest.GET_FEATURES: u64(config.F_PROTOCOL_FEATURES)}, "VERSION_1"),
        ({FrontendRequest.GET_FEATURES: u64(F_VERSION_1)}, "protocol features"),
        ({FrontendRequest.GET_FEATURES: b"short"}, "5 bytes of payload"),
        (
            {
                FrontendRequest.GET_FEATURES: u64(GOOD),
                FrontendRequest.GET_PROTOCOL_FEATURES: u64(ProtocolFeature.CONFIG.bit),
                FrontendRequest.GET_CONFIG: bytes(12),
            },
            "GET_CONFIG answered 0 bytes",
        ),
        (
            {
                FrontendRequest.GET_FEATURES: u64(GOOD),
                FrontendRequest.GET_PROTOCOL_FEATURES: u64(ProtocolFeature.REPLY_ACK.bit),
                FrontendRequest.SET_OWNER: u64(1),
            },
            "refused SET_OWNER",
        ),
    ],
)
def test_a_back_end_that_makes_no_sense_is_refused(answers: dict[int, bytes | None], text: str) -> None:
    liar = Liar(answers)
    with pytest.raises(RemoteProtocolError, match=text):
        liar.frontend.handshake()
    liar.close()


def test_one_that_hangs_up_is_a_connection_error() -> None:
    liar = Liar({FrontendRequest.GET_FEATURES: None})
    with pytest.raises(ConnectionError):
        liar.frontend.handshake()
    liar.close()


def test_one_that_says_nothing_is_a_connection_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    frontend = Frontend(MessageSocket(ours))
    with pytest.raises(ConnectionError, match="does not answer GET_FEATURES"):
        frontend._ask(FrontendRequest.GET_FEATURES, timeout_s=0.05)
    frontend.close()
    theirs.close()


def test_a_mapping_outside_the_window_is_refused_and_inside_is_made(device: Callable[..., str], tmp_path: Path) -> None:
    frontend = Frontend(device(window=4 << 20))
    frontend.handshake()
    assert frontend.window is not None
    path = tmp_path / "data"
    path.write_bytes(b"data" * 1024)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    back_end = MessageSocket(theirs)
    channel = MessageSocket(ours)
    thread = threading.Thread(target=frontend._serve_channel, args=(channel,))
    thread.start()
    answers = []
    with path.open("rb") as file:
        for at in (4 << 20, 0):
            mapping = ShmemMapping(shm_offset=at, length=4096)
            back_end.send(BackendRequest.SHMEM_MAP, mapping.encode(), [file.fileno()], 1 << 3)
            answer = back_end.receive()
            assert answer is not None
            answers.append(U64.decode(answer.payload).value)
    assert answers == [1, 0]
    assert bytes(frontend.window.at(0, 8)) == b"datadata"
    back_end.close()
    thread.join(10)
    frontend.close()

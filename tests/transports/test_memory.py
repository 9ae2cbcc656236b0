"""The wire inside one process."""

from __future__ import annotations

import os
import threading

import pytest

from transfuse.transports.memory import MemoryTransport
from transfuse.wire.encode import RangeReply


def echo(buffer: bytes, start: int, end: int, channel: object) -> bytes:
    return b"re:" + bytes(buffer[start:end])


@pytest.fixture
def transport() -> MemoryTransport:
    made = MemoryTransport()
    made.bind(echo, lambda buffer, start, message: None)  # type: ignore[arg-type]
    return made


def test_a_reply_comes_inside_send_in_the_callers_thread(transport: MemoryTransport) -> None:
    got: list[tuple[bytes, int]] = []
    transport.client.start(lambda message: got.append((bytes(message), threading.get_ident())), lambda why: None)
    transport.client.send([b"ab", b"cd"])
    assert got == [(b"re:abcd", threading.get_ident())]


def test_send_after_close_is_a_connection_error(transport: MemoryTransport) -> None:
    ended: list[object] = []
    transport.client.start(lambda message: None, ended.append)
    transport.client.close()
    assert ended == [None]
    with pytest.raises(ConnectionError):
        transport.client.send([b"ab"])


def test_an_answer_nobody_takes_is_given_back() -> None:
    transport = MemoryTransport()
    back: list[bytes] = []
    transport.bind(echo, lambda buffer, start, message: back.append(message))  # type: ignore[arg-type]
    transport.client.send([b"ab"])
    assert back == [b"re:ab"]


def test_a_range_is_read_from_its_file(transport: MemoryTransport, tmp_path: os.PathLike[str]) -> None:
    got: list[bytes] = []
    transport.client.start(lambda message: got.append(bytes(message)), lambda why: None)
    path = os.path.join(tmp_path, "f")
    with open(path, "wb+") as file:
        file.write(b"0123456789")
        file.flush()
        assert transport.send(RangeReply(8, "<", file.fileno(), 7, 100))
    # out_header: len 19, error 0, unique 8; then the three bytes there are
    assert got == [(19).to_bytes(4, "little") + bytes(4) + (8).to_bytes(8, "little") + b"789"]


def test_what_the_client_says_to_a_notification_reaches_the_server(transport: MemoryTransport) -> None:
    def refuse(message: object) -> None:
        raise FileNotFoundError(2, "unknown node")

    transport.client.start(refuse, lambda why: None)
    with pytest.raises(FileNotFoundError):
        transport.notify([b"notification"])


def test_a_notification_without_a_client_is_a_connection_error(transport: MemoryTransport) -> None:
    with pytest.raises(ConnectionError):
        transport.notify([b"notification"])


def test_a_memory_wire_has_no_channel(transport: MemoryTransport) -> None:
    assert transport.open_channel() is None
    assert transport.groups_of(1) == ()

"""A session's state through a pipe."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable

import pytest

from transfuse.transports.vhost_user import transfer as module
from transfuse.transports.vhost_user.transfer import StateTransfer


def test_state_goes_out_whole_and_the_pipe_ends() -> None:
    pieces = [b"abc", bytes(1 << 18), b"end"]
    transfer = StateTransfer(lambda: pieces, lambda state: None)
    read, write = os.pipe()
    transfer.begin(False, write)
    with open(read, "rb") as file:
        assert file.read() == b"".join(pieces)
    assert transfer.end()


def test_state_comes_in_whole() -> None:
    got: list[bytes] = []
    transfer = StateTransfer(list, got.extend)
    read, write = os.pipe()
    transfer.begin(True, read)
    with open(write, "wb") as file:
        file.write(b"x" * 200_000)
    assert transfer.end()
    assert b"".join(got) == b"x" * 200_000


def test_state_that_cannot_be_read_is_no_success() -> None:
    def load(state: Iterable[bytes]) -> None:
        list(state)
        raise ValueError("nonsense")

    transfer = StateTransfer(list, load)
    read, write = os.pipe()
    transfer.begin(True, read)
    os.close(write)
    assert not transfer.end()


def test_a_reader_that_goes_away_is_no_success() -> None:
    transfer = StateTransfer(lambda: [bytes(1 << 20)], lambda state: None)
    read, write = os.pipe()
    os.close(read)
    transfer.begin(False, write)
    assert not transfer.end()


def test_one_transfer_at_a_time() -> None:
    go = threading.Event()

    def save() -> Iterable[bytes]:
        go.wait(10)
        return [b"x"]

    transfer = StateTransfer(save, lambda state: None)
    read, write = os.pipe()
    transfer.begin(False, os.dup(write))
    with pytest.raises(OSError, match="under way") as caught:
        transfer.begin(False, write)
    assert caught.value.errno == errno.EBUSY
    go.set()
    assert transfer.end()
    assert not transfer.end()  # nothing was begun since
    os.close(read)


def test_what_is_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STATE", 1000)
    transfer = StateTransfer(list, lambda state: list(state) and None)
    read, write = os.pipe()
    os.write(write, bytes(1001))
    os.close(write)
    transfer.begin(True, read)
    assert not transfer.end()

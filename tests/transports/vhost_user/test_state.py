"""The file by which a server goes on where the last one stopped."""

from __future__ import annotations

import errno
import os

import pytest

from transfuse.transports.vhost_user.state import MAX_EPOCH, StateFile


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "state")


def one_server(path: str, leave: list[bytes] | None) -> tuple[int, bytes | None]:
    """A server that begins, reads what there is, and leaves something."""
    state = StateFile(path)
    pieces = state.begin()
    found = None if pieces is None else b"".join(pieces)
    state.write(leave)
    epoch = state.epoch
    state.close()
    return epoch, found


def test_every_server_sees_another_epoch_and_what_the_last_one_left(path: str) -> None:
    assert one_server(path, [b"a", b"b"]) == (0, None)
    assert one_server(path, None) == (1, b"ab")
    assert one_server(path, [bytes(200_000)]) == (2, None)
    assert one_server(path, None) == (3, bytes(200_000))


def test_a_server_that_dies_before_it_writes_has_counted(path: str) -> None:
    one_server(path, [b"left"])
    state = StateFile(path)
    assert b"".join(state.begin() or ()) == b"left"
    state.close()
    assert one_server(path, None) == (2, b"left")


def test_two_servers_cannot_use_one_file(path: str) -> None:
    state = StateFile(path)
    with pytest.raises(OSError, match="another server") as caught:
        StateFile(path)
    assert caught.value.errno == errno.EBUSY
    state.close()
    StateFile(path).close()


def test_the_file_is_for_its_owner(path: str) -> None:
    one_server(path, None)
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_another_file_is_refused_and_left_alone(path: str) -> None:
    with open(path, "w") as file:
        file.write("precious contents")
    state = StateFile(path)
    with pytest.raises(OSError, match="no state"):
        state.begin()
    state.close()
    with open(path) as file:
        assert file.read() == "precious contents"


def test_a_symbolic_link_is_not_followed(path: str, tmp_path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    os.symlink(target, path)
    state = StateFile(path)
    with pytest.raises(OSError):
        state.begin()
    state.close()
    assert target.read_text() == "precious"


def test_the_file_is_used_although_its_folder_is_renamed(tmp_path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    state = StateFile(folder / "state")
    state.begin()
    folder.rename(tmp_path / "b")
    state.write([b"x"])
    state.close()
    assert (tmp_path / "b" / "state").read_bytes().endswith(b"x")


def test_epochs_begin_again_after_the_last(path: str) -> None:
    state = StateFile(path)
    state.begin()
    state.epoch = MAX_EPOCH
    state.write(None)
    state.close()
    assert one_server(path, None) == (1, None)

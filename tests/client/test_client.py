"""The client as a whole: its life, its users, the same things over every wire."""

from __future__ import annotations

import pytest

from transfuse.client import Client, Credentials
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing import ScriptedPeer, connect


def test_one_session_of_everything_leaves_no_debts(fs_client: Client) -> None:
    for number in range(200):
        fs_client.makedirs(f"/d{number % 7}/{number}", exist_ok=True)
        fs_client.write_text(f"/d{number % 7}/{number}/f", str(number))
    for number in range(0, 200, 3):
        fs_client.unlink(f"/d{number % 7}/{number}/f")
    assert sum(len(files) for _, _, files in fs_client.walk("/")) == 200 - 67


def test_a_small_cache_gives_the_same_answers(mem: Client) -> None:
    mem.cache.max_names = 2
    mem.makedirs("/a/b/c/d")
    mem.write_bytes("/a/b/c/d/f", b"deep")
    assert mem.read_bytes("/a/b/c/d/f") == b"deep" and len(mem.cache) <= 2
    mem.exchange.flush_forgets()
    assert mem.cache.known_nodes <= 8


def test_a_closed_client_is_a_connection_error() -> None:
    with connect(MemoryFilesystem()) as client:
        pass
    assert client.closed
    with pytest.raises(ConnectionError):
        client.stat("/")


def test_before_connect_there_is_no_connection() -> None:
    client = Client(ScriptedPeer())
    with pytest.raises(ConnectionError):
        client.connection  # noqa: B018


def test_users_are_told_apart() -> None:
    with connect(MemoryFilesystem(), uid=0) as root:
        root.chmod("/", 0o1777)
        alice = root.as_user(1000, 1000, (50,), umask=0o077)
        assert alice.creds == Credentials(1000, 1000, root.creds.pid, (50,), 0o077)
        alice.write_bytes("/f", b"")
        assert (root.stat("/f").st_mode, root.stat("/f").st_uid) == (0o100600, 1000)
        assert alice.lock_owner != root.lock_owner and alice.cache is root.cache


def test_a_view_may_be_used_after_others_were_closed() -> None:
    with connect(MemoryFilesystem()) as client:
        with client.as_user(5) as view:
            view.stat("/")
        client.stat("/")


def test_remembered_names_and_attributes_need_no_requests(mem: Client) -> None:
    mem.makedirs("/a/b")
    mem.write_bytes("/a/b/f", b"x")
    mem.stat("/a/b/f")
    mem.counts.take()  # type: ignore[attr-defined]
    for _ in range(10):
        assert mem.stat("/a/b/f").st_size == 1
    assert mem.counts.total == 0  # type: ignore[attr-defined]


def test_text_round_trips_count_characters(mem: Client) -> None:
    assert mem.write_text("/t", "äöü") == 3
    assert mem.stat("/t").st_size == 6 and mem.read_text("/t") == "äöü"

"""A clock that stands still, a scripted server, and clients before a real filesystem over several wires."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from transfuse.client import Client, Credentials
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing import ScriptedPeer, connect


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def peer() -> Iterator[ScriptedPeer]:
    """A scripted server; the script must be used up at the end."""
    with ScriptedPeer() as scripted:
        yield scripted


@pytest.fixture
def client(peer: ScriptedPeer, clock: Clock) -> Iterator[Client]:
    """A client before the scripted server."""
    with Client(peer, clock=clock, creds=Credentials(1000, 100, 42, (7,), 0o022), timeout_s=5) as made:
        yield made


WIRES: list[dict[str, Any]] = [
    {"over": "memory", "order": "<", "minor": 45},
    {"over": "memory", "order": ">", "minor": 41},
    {"over": "memory", "order": "<", "minor": 36},
    {"over": "memory", "order": ">", "minor": 31},
    {"over": "memory", "order": "<", "minor": 27},
    {"over": "memory", "order": ">", "minor": 27},
    {"over": "stream", "order": "<", "minor": 45},
    {"over": "stream", "order": ">", "minor": 36},
]


@pytest.fixture(params=WIRES, ids=lambda wire: "{over}-{order}-{minor}".format(**wire))
def fs_client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client (root) before an empty MemoryFilesystem, over every kind of wire."""
    with connect(MemoryFilesystem(), uid=0, **request.param) as made:
        yield made


@pytest.fixture
def mem(clock: Clock) -> Iterator[Client]:
    """A client (root) before an empty MemoryFilesystem in this process, with the clock standing still."""
    with connect(MemoryFilesystem(), uid=0, clock=clock) as made:
        yield made

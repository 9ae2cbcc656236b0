"""A hostile guest before a real server process; the cases and what is watched are in hostile_guest.py.

`make test` runs a short part with the seed in the header of the run, `make soak` a million cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuzz.hostile_guest import HostileGuest

RING_CASES, MESSAGE_CASES = 6_000, 4_000
SOAK_RING_CASES, SOAK_MESSAGE_CASES = 400_000, 100_000
"""For each kind of ring: a million in all."""

Make = Callable[..., HostileGuest]


@pytest.fixture
def hostile(tmp_path: Path, seed: int) -> Iterator[Make]:
    made: list[HostileGuest] = []

    def make(**options: Any) -> HostileGuest:
        made.append(HostileGuest(tmp_path, str(seed), **options))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_spoilt_rings_and_requests_harm_nobody_else(hostile: Make, packed: bool) -> None:
    assert hostile(packed=packed).rings(RING_CASES) > 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_messages_at_random_harm_nobody_else(hostile: Make, packed: bool) -> None:
    hostile(packed=packed).messages(MESSAGE_CASES)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_half_a_million_cases_of_both_kinds(hostile: Make, packed: bool) -> None:
    guest = hostile(packed=packed)
    guest.rings(SOAK_RING_CASES)
    guest.messages(SOAK_MESSAGE_CASES)

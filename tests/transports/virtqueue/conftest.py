"""Each test of the rings runs in both forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from transports.virtqueue.rings import Arena, form_named


@pytest.fixture(params=["plain", "compiled"])
def form(request: pytest.FixtureRequest) -> SimpleNamespace:
    return form_named(request.param)


@pytest.fixture
def make_arena(form: SimpleNamespace) -> Iterator[Callable[..., Arena]]:
    made: list[Arena] = []

    def make(size: int = 1 << 22) -> Arena:
        arena = Arena(form, size)
        made.append(arena)
        return arena

    yield make
    for arena in made:
        arena.close()


@pytest.fixture
def arena(make_arena: Callable[..., Arena]) -> Arena:
    return make_arena()

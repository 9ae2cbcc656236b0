"""Counting what a client asks."""

from __future__ import annotations

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing import connect
from transfuse.wire.layout import ByteOrder


@pytest.mark.parametrize("order", ["<", ">"])
def test_requests_are_counted_by_name(order: ByteOrder) -> None:
    with connect(MemoryFilesystem(), order=order) as client:
        counts = client.counts  # type: ignore[attr-defined]
        assert counts.take() == {"INIT": 1}
        client.mkdir("/d")
        assert counts.take() == {"LOOKUP": 1, "MKDIR": 1}
        assert counts.total == 0


def test_a_cold_read_of_a_small_file_is_five_requests() -> None:
    with connect(MemoryFilesystem()) as client:
        client.write_bytes("/f", b"x")
        client.drop_caches()
        client.counts.take()  # type: ignore[attr-defined]
        client.read_bytes("/f")
        expected = {"LOOKUP": 1, "OPEN": 1, "READ": 1, "FLUSH": 1, "RELEASE": 1}
        assert client.counts.take() == expected  # type: ignore[attr-defined]

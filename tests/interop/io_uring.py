"""Switching FUSE over io_uring on for a test, and back to what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from transfuse.transports import uring


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """The module parameter as `on` says; skips where this machine does not have it, or does not let us."""
    try:
        before = uring.PARAMETER.read_text()
        uring.PARAMETER.write_text("Y" if on else "N")
    except OSError as error:
        pytest.skip(f"FUSE over io_uring: {error.strerror} ({uring.PARAMETER})")
    try:
        reason = uring.obstacle()
        if on and reason is not None:
            pytest.skip(f"FUSE over io_uring: {reason}")
        yield
    finally:
        uring.PARAMETER.write_text(before)

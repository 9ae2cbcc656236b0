"""Fixtures of the tests against this machine's kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from interop.kernel import CONNECTIONS
from transfuse.session.server import ServerSession
from transfuse.wire.opcodes import opcode_name


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A mount point."""
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts requests by opcode as they arrive, those without a method included."""
    counted: Counter[str] = Counter()
    original = ServerSession.handle

    def handle(self: ServerSession, buffer: Any, start: int, end: int, channel: Any) -> Any:
        counted[opcode_name(int.from_bytes(buffer[start + 4 : start + 8], sys.byteorder))] += 1
        return original(self, buffer, start, end, channel)

    monkeypatch.setattr(ServerSession, "handle", handle)
    return counted


@pytest.fixture
def control() -> Path:
    """The control filesystem, mounted if it is not."""
    if not os.path.ismount(CONNECTIONS):
        subprocess.run(["mount", "-t", "fusectl", "fusectl", CONNECTIONS], check=True, timeout=10)
    return CONNECTIONS

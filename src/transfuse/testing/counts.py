"""A wire that counts: what a cache saves is seen in the requests that are not sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from transfuse.transports.base import ClientTransport
from transfuse.wire.decode import IN_HEADER
from transfuse.wire.layout import Buffer
from transfuse.wire.opcodes import OPERATIONS, opcode_name

__all__ = ["CountingTransport"]


class CountingTransport:
    """Passes everything on to `inner`. As a mapping: opcode name → requests sent."""

    def __init__(self, inner: ClientTransport) -> None:
        self.inner = inner
        self.max_write = inner.max_write
        self.counter: Counter[str] = Counter()

    def __getitem__(self, name: str) -> int:
        return self.counter[name]

    def __getattr__(self, name: str) -> Any:
        """What only some wires have (a window) is asked of the inner one."""
        return getattr(self.inner, name)

    @property
    def total(self) -> int:
        """All requests."""
        return self.counter.total()

    def take(self) -> dict[str, int]:
        """What was sent since the last call."""
        taken = dict(self.counter)
        self.counter.clear()
        return taken

    def start(self, on_message: Callable[[Buffer], None], on_closed: Callable[[BaseException | None], None]) -> None:
        """Pass on."""
        self.inner.start(on_message, on_closed)

    def send(self, message: list[Buffer]) -> None:
        """Count and pass on."""
        opcode = IN_HEADER["<"].unpack_from(message[0], 0)[1]
        if opcode not in OPERATIONS:
            opcode = IN_HEADER[">"].unpack_from(message[0], 0)[1]
        self.counter[opcode_name(opcode)] += 1
        self.inner.send(message)

    def close(self) -> None:
        """Pass on."""
        self.inner.close()

"""What the rings cost: `python -m bench.virtqueue`, both forms side by side, no session, no other process.

A lane serves a queue full of requests shaped like GETATTR (40 + 16 bytes there, 16 + 104 back, in an indirect table)
with a handler that gives the same bytes each time; what the handler alone costs is subtracted. File data is read into
4 KiB, and into 1 MiB of 256 pages, and compared with os.preadv into one buffer. CPU time of this thread, best of many
rounds, so that a busy machine does not show; believe ratios only.
"""

from __future__ import annotations

import importlib
import os
import struct
import time
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import transfuse  # noqa: F401  chooses the form
from transfuse.transports.virtqueue import layout

MODULES = {
    "plain": "transfuse.transports.virtqueue.",
    "compiled": "transfuse._native.",
}
PARTS = {
    "plain": ("memory", "split", "packed", "lane"),
    "compiled": ("guestmem", "virtdevice", "virtdriver", "lane"),
}
WANTED = ("Region", "GuestMemory", "SplitDevice", "SplitDriver", "PackedDevice", "PackedDriver", "Lane")
SIZE = 128
ENTRIES = 300
MEMORY = 1 << 24
ROUNDS = 40


def form(name: str) -> SimpleNamespace:
    """The classes of one form; ImportError where it was not built."""
    modules = [importlib.import_module(MODULES[name] + part) for part in PARTS[name]]
    return SimpleNamespace(**{item: getattr(m, item) for item in WANTED for m in modules if hasattr(m, item)})


class Worker:
    """Serves until the handler says that it was the last request."""

    step_at, park_at = 1, 2

    def __init__(self) -> None:
        self.counters = array("Q", bytes(24))

    def wake(self) -> None:
        """There is no monitor."""

    def park(self) -> bool:
        """Go home."""
        return False


class Pair:
    """A driver and a device over one memory; guest addresses are offsets in it."""

    def __init__(self, kinds: SimpleNamespace, packed: bool) -> None:
        fd = os.memfd_create("bench", os.MFD_CLOEXEC)
        os.ftruncate(fd, MEMORY)
        memory = kinds.GuestMemory([kinds.Region(0, 0, MEMORY, fd)])
        os.close(fd)
        features = layout.F_VERSION_1 | layout.F_EVENT_IDX | layout.F_INDIRECT_DESC
        areas = (0, 0x10000, 0x20000)
        driver, device = (kinds.PackedDriver, kinds.PackedDevice) if packed else (kinds.SplitDriver, kinds.SplitDevice)
        self.driver: Any = driver(memory, SIZE, *areas, features, tables=0x100000, table_entries=ENTRIES)
        base = layout.packed_base(0, 1, 0, 1) if packed else 0
        self.device: Any = device(memory, SIZE, *areas, features, base)
        memory.at_guest(0x30000, 40)[:] = struct.pack("<IIQQIIIHH", 56, 3, 1, 1, 0, 0, 0, 0, 0)


def best(call: Callable[[], object], count: int, rounds: int = ROUNDS) -> float:
    """Microseconds of one of the `count` things that `call` does."""
    found = []
    for _ in range(rounds):
        start = time.thread_time()
        call()
        found.append(time.thread_time() - start)
    return min(found) / count * 1e6


def lane(kinds: SimpleNamespace, packed: bool) -> float:
    """One request through a lane, without the handler."""
    pair = Pair(kinds, packed)
    call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    served = kinds.Lane(pair.device, 1 << 20, call=call)
    worker = Worker()
    reply = bytes(120)
    seen = 0

    def handle(buffer: object, start: int, end: int, chain: object) -> bytes:
        nonlocal seen
        seen += 1
        if not seen % SIZE:
            worker.counters[2] = 1
        return reply

    spent = []
    for _ in range(ROUNDS):
        for _ in range(SIZE):
            pair.driver.add([(0x30000, 40), (0x30040, 16)], [(0x31000, 16), (0x31010, 104)], None)
        pair.driver.publish()
        worker.counters[2] = 0
        start = time.thread_time()
        served.serve(handle, None, None, worker)
        spent.append(time.thread_time() - start)
        while pair.driver.take_used() is not None:
            continue
    served.close()
    os.close(call)
    alone = best(lambda: [handle(None, 0, 56, None) for _ in range(SIZE)], SIZE)
    return min(spent) / SIZE * 1e6 - alone


def fetch(kinds: SimpleNamespace, pieces: int) -> tuple[float, float]:
    """Reading `pieces` pages into a chain, and into one buffer."""
    pair = Pair(kinds, packed=False)
    size = 4096 * pieces
    fd = os.memfd_create("file", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    segments = [(0x400000 + 8192 * i, 4096) for i in range(pieces)]
    pair.driver.add([(0x30000, 40)], [(0x31000, 16), *segments], None)
    pair.driver.publish()
    chain = pair.device.pop()
    buffer = [memoryview(bytearray(size))]
    count = max(10, 2000 // pieces)
    ours = best(lambda: [chain.pread(fd, 0, 16, size) for _ in range(count)], count)
    theirs = best(lambda: [os.preadv(fd, buffer, 0) for _ in range(count)], count)
    os.close(fd)
    return ours, theirs


def main() -> None:
    """Print one line for each measurement and form."""
    for name in MODULES:
        try:
            kinds = form(name)
        except ImportError:
            print(f"{name}: not built")
            continue
        for packed in (False, True):
            spent = lane(kinds, packed)
            print(f"{name} {'packed' if packed else 'split'}: {spent:.2f} µs per request without its handler")
        for pieces in (1, 256):
            ours, theirs = fetch(kinds, pieces)
            print(f"{name}: {4 * pieces} KiB into {pieces} pages {ours:.2f} µs, into one buffer {theirs:.2f} µs")


if __name__ == "__main__":
    main()

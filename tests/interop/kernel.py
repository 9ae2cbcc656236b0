"""What the tests of the protocol against this machine's kernel share (their fixtures are in conftest.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transfuse.server import Mount, mount

LONG = {"entry_timeout_s": 3600.0, "attr_timeout_s": 3600.0}
CONNECTIONS = Path("/sys/fs/fuse/connections")

# For `counting.child`: maps a file shared, prints its first four bytes and changes them; or prints the errno.
MAP_SHARED = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    with mmap.mmap(fd, 4096, mmap.MAP_SHARED) as area:
        print(area[:4].decode())
        area[:4] = b"back"
        area.flush()
except OSError as error:
    print(error.errno)
"""


@contextmanager
def mounted(fs: Any, place: Path, *options: str, **more: Any) -> Iterator[Mount]:
    """A mount that is gone afterwards, come what may."""
    made = mount(fs, place, options, **more)
    try:
        yield made
    finally:
        made.close()


def drop_caches() -> None:
    """Have the kernel forget every name and node that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def later(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run `call` on a thread; its result or exception is in the list once the thread has ended."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result

"""A filesystem for tests on the real kernel: the memory filesystem, with books of every request.

`seen` counts calls by opcode (the lookups behind a READDIRPLUS count as READDIRPLUS), `lookups` is what the kernel
holds of each node. `answer[name]` is called instead of an operation, with (inner method, req, *args).

The kernel client runs in the same process as the server. That is safe as long as the client's system calls give the
interpreter lock away: no page of a mapped file may be touched here (`child` runs code in another process), and no
process may be started while a file of the mount is open (vfork keeps the lock while the child closes it).
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import OPERATION_NAMES
from transfuse.fs.request import Request
from transfuse.fs.values import Entry, Features
from transfuse.fs.wrap import Wrapper
from transfuse.wire.opcodes import opcode_name

CHILD_LIMIT_S = 30


class Counting(Wrapper):
    """MemoryFilesystem with books; `features` are given by name."""

    def __init__(self, without: frozenset[str] = frozenset(), **features: Any) -> None:
        super().__init__(MemoryFilesystem())
        self.features = replace(Features(), **features)
        self.without = without
        self.seen: Counter[str] = Counter()
        self.lookups: Counter[int] = Counter()
        self.requests: dict[str, Request] = {}
        """The last request of each kind."""
        self.arguments: dict[str, tuple[Any, ...]] = {}
        self.threads: set[int] = set()
        self.answer: dict[str, Callable[..., Any]] = {}
        self.gone = threading.Event()
        self._books = threading.Lock()

    def operations(self) -> frozenset[str]:
        """The memory filesystem's and those in `answer`, less `without`."""
        return (self.inner.operations() | self.answer.keys()) - self.without

    def destroyed(self) -> None:
        """The connection is over."""
        super().destroyed()
        self.gone.set()

    def count(self, name: str) -> int:
        """How many requests of this kind came since the last time."""
        with self._books:
            return self.seen.pop(name, 0)


def _booked(name: str) -> Callable[..., Any]:
    def method(self: Counting, req: Request, *args: Any) -> Any:
        kind = opcode_name(req.opcode)
        with self._books:
            self.seen[kind] += 1
            self.requests[kind] = req
            self.arguments[kind] = tuple(bytes(arg) if isinstance(arg, memoryview) else arg for arg in args)
            self.threads.add(threading.get_ident())
            if name == "forget":
                self.lookups[args[0]] -= args[1]
        inner = getattr(self.inner, name)
        own = self.answer.get(name)
        found = own(inner, req, *args) if own is not None else inner(req, *args)
        entry = found[0] if isinstance(found, tuple) else found
        if isinstance(entry, Entry) and entry.attr is not None:
            with self._books:
                self.lookups[entry.nodeid] += 1
        return found

    return method


for _name in OPERATION_NAMES:
    setattr(Counting, _name, _booked(_name))


def child(code: str, *arguments: str | Path, limit_s: float = CHILD_LIMIT_S) -> str:
    """Run `code` in another process (`sys.argv[1:]` are the arguments); its output. Fails with its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

"""What all cases of the conformance suite share: the class that authors inherit, its fixtures, and skipping.

For each case a fresh filesystem is made, put where the transport says, used, and taken down. Then the case fails if
requests were left unanswered, nodes not given back, handles or file descriptors left open, or if a method raised
something that is no OSError. A case that needs an operation which the filesystem does not have is skipped, and says so.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from transfuse.fs.base import Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.tree import Symlink, Tree
from transfuse.testing.conformance.places import MOUNT_OPTIONS, Place, place, why_not
from transfuse.testing.volume import Volume

__all__ = ["Conformance", "fails_with", "needs"]

F = TypeVar("F", bound=Callable[..., object])
GRACE_S = 3.0
"""How long forgets and releases, which nobody waits for, may take to arrive."""


def needs(*operations: str) -> Callable[[F], F]:
    """The case needs these operations (names of Filesystem methods; "a|b": one of them)."""

    def mark(case: F) -> F:
        case.__dict__["operations_needed"] = operations
        return case

    return mark


@contextmanager
def fails_with(*numbers: int) -> Iterator[None]:
    """What is inside raises OSError with one of these errnos."""
    with pytest.raises(OSError) as caught:
        yield
    names = [errno.errorcode[number] for number in numbers]
    found = errno.errorcode.get(caught.value.errno or 0, str(caught.value.errno))
    assert caught.value.errno in numbers, f"{found}, expected {' or '.join(names)}"


def open_fds() -> set[tuple[int, str]]:
    """The file descriptors of this process, and what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            continue  # the one of this listing
    return found


class Conformance:
    """Base of ReadOnly and ReadWrite. Say what to try in make_filesystem(), and where in `transports`."""

    transports: ClassVar[Sequence[str]] = ("memory", "stream", "dev_fuse")
    """Of "direct" (method calls), "memory", "stream", "virtio" (a virtual machine's wire, without the machine) and
    "dev_fuse" (a kernel mount, which needs root)."""
    mount_options: ClassVar[Sequence[str]] = MOUNT_OPTIONS
    unsupported: ClassVar[frozenset[str]] = frozenset()
    """Names of cases that can't hold for this filesystem; they are skipped, with this as the reason."""

    def make_filesystem(self, tmp_path: Path) -> Filesystem | PathFilesystem:
        """A new filesystem; `tmp_path` is an empty folder for whatever it needs."""
        raise TypeError(f"{type(self).__name__} does not say what to try: it has no make_filesystem()")

    def close_filesystem(self, filesystem: Filesystem | PathFilesystem) -> None:
        """Let go of what the filesystem itself holds (its source, say): by its close(), if it has one."""
        close = getattr(filesystem, "close", None)
        if callable(close):
            close()

    def expected(self) -> Tree:
        """What the filesystem holds at first: nested dicts of bytes, str, Symlink (as for TreeFilesystem)."""
        return {}

    def populate(self, volume: Volume) -> None:
        """Make what expected() says, where the filesystem starts empty."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every case over every transport."""
        if "place" in metafunc.fixturenames:
            metafunc.parametrize("transport", list(self.transports), indirect=True)

    @pytest.fixture
    def transport(self, request: pytest.FixtureRequest) -> str:
        """The transport of this run."""
        reason = why_not(request.param)
        if reason is not None:
            pytest.skip(reason)
        return str(request.param)

    @pytest.fixture
    def place(self, request: pytest.FixtureRequest, tmp_path: Path, transport: str) -> Iterator[Place]:
        """The filesystem, up and running; checked for leftovers at the end."""
        if request.function.__name__ in self.unsupported:
            pytest.skip("this filesystem says that it does not support the case")
        source = tmp_path / "source"
        source.mkdir()
        before = open_fds()
        filesystem = self.make_filesystem(source)
        with place(transport, filesystem, tmp_path, self.mount_options) as found:
            missing = self._missing(request.function, found)
            if missing:
                self.close_filesystem(filesystem)
                pytest.skip(f"the filesystem has no {', no '.join(missing)}")
            self.populate(found.volume)
            yield found
        self.close_filesystem(filesystem)
        self._check_leftovers(found, before)

    @staticmethod
    def _missing(case: Any, found: Place) -> list[str]:
        has = found.ledger.operations() - found.volume.lacks
        needed: Sequence[str] = getattr(case, "operations_needed", ())
        return [f"{operation}()" for operation in needed if not has & set(operation.split("|"))]

    @staticmethod
    def _check_leftovers(found: Place, before: set[tuple[int, str]]) -> None:
        # Linux unmounts without paying its lookups back: DESTROY ends them all.
        lookups = found.transport != "dev_fuse"
        deadline = time.monotonic() + GRACE_S
        while True:
            problems = found.ledger.problems(lookups=lookups)
            problems += [f"fd {fd} ({what}) is still open" for fd, what in sorted(open_fds() - before)]
            if not problems or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        problems += [f"a method raised {bug!r}" for bug in found.bugs]
        assert not problems, "; ".join(problems)

    @pytest.fixture
    def volume(self, place: Place) -> Volume:
        """The filesystem's volume: what the cases speak to."""
        return place.volume


def flatten(tree: Tree, above: str = "") -> Iterator[tuple[str, object]]:
    """(path, value) of everything in a tree, directories before what is in them."""
    for name, value in tree.items():
        path = f"{above}/{name}"
        yield path, value
        if isinstance(value, dict):
            yield from flatten(value, path)


def content(value: object) -> bytes:
    """The bytes of a file in an expected tree."""
    if isinstance(value, (bytes, str)):
        return value.encode() if isinstance(value, str) else value
    assert callable(value)
    made = value()
    return made.encode() if isinstance(made, str) else bytes(made)


def target(link: Symlink) -> str:
    """A link's target as str."""
    return link.target if isinstance(link.target, str) else os.fsdecode(link.target)

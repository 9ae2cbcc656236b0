"""System calls that belong together, as one step each: take hold of a name, open, make or remove one.

Every step ends with a look at what it got (statx on the fd), so that its result is certain whatever happens to the name
meanwhile. Both forms do the same calls in the same order; _native.probe.Steps does each step without coming back into
Python in between.

Opening is the one that needs care. To open a device or a fifo does things, and a name may lead to one by now. So the
name is first opened as O_PATH, which does nothing, and what it led to is opened again through /proc/self/fd: 10 µs on
tmpfs, 6 of them for the walk through /proc. Opening the name itself and looking afterwards takes 4 µs. It is done where
nothing can come of it (`direct`): on a view of the source in which the kernel opens no devices, or by a server that is
not root, which can open no more than its user. O_NONBLOCK keeps a fifo from holding up the thread; for a regular file
it means nothing but that a lease is not waited for.
"""

from __future__ import annotations

import os
from typing import Protocol

from transfuse.filesystems.hostdir.syscalls import Key, Probe, proc_fd, reopen
from transfuse.fs.values import Attr

try:
    from transfuse._native import probe as _native
except ImportError:
    _native = None  # type: ignore[assignment]  # the plain form: PlainSteps

__all__ = ["PlainSteps", "Steps", "make_steps"]

O_PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECT_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Steps(Protocol):
    """`fd` is a directory and `name` in it one component. The fds returned are the caller's."""

    @property
    def direct(self) -> bool:
        """open() opens by the name itself: cheaper than any other way."""
        ...

    def grasp(self, fd: int, name: bytes) -> tuple[int, Attr, Key]:
        """An O_PATH fd of `name`, with the attributes and identity of what it leads to. OSError if there is none."""
        ...

    def remove(self, fd: int, name: bytes, directory: bool) -> tuple[int, Attr, Key]:
        """unlink(2) or (`directory`) rmdir(2), and what grasp() gave right before. OSError: nothing is removed."""
        ...

    def create(self, fd: int, name: bytes, flags: int, mode: int) -> tuple[int, Attr, Key]:
        """Open `name` with `flags`, which make it, and look at it."""
        ...

    def open(self, fd: int, name: bytes, key: Key, flags: int) -> tuple[int, Attr] | None:
        """Open `name` for reading or writing if it still leads to the regular file with identity `key`.

        None for anything out of the ordinary, without any effect: the caller takes the long way, which knows about
        retries and says what is wrong. `flags` have no O_TRUNC: it would be done before the look.
        """
        ...


class PlainSteps:
    """The steps by way of the os module."""

    def __init__(self, probe: Probe, direct: bool) -> None:
        self._probe = probe
        self.direct = direct

    def _look(self, at: int) -> tuple[int, Attr, Key]:
        try:
            found = self._probe(at, b"")
            assert found is not None  # b"" is not looked up
        except BaseException:
            os.close(at)
            raise
        return at, found[0], found[1]

    def grasp(self, fd: int, name: bytes) -> tuple[int, Attr, Key]:
        return self._look(os.open(name, O_PATH_FLAGS, dir_fd=fd))

    def remove(self, fd: int, name: bytes, directory: bool) -> tuple[int, Attr, Key]:
        found = self.grasp(fd, name)
        try:
            (os.rmdir if directory else os.unlink)(name, dir_fd=fd)
        except BaseException:
            os.close(found[0])
            raise
        return found

    def create(self, fd: int, name: bytes, flags: int, mode: int) -> tuple[int, Attr, Key]:
        return self._look(os.open(name, flags, mode, dir_fd=fd))

    def open(self, fd: int, name: bytes, key: Key, flags: int) -> tuple[int, Attr] | None:
        try:
            at = os.open(name, flags | DIRECT_FLAGS if self.direct else O_PATH_FLAGS, dir_fd=fd)
        except OSError:
            return None
        found = self._look(at)
        keep = False
        try:
            if found[2] == key:
                keep = self.direct
                return (at if keep else reopen(at, flags)), found[1]
        except OSError:
            pass
        finally:
            if not keep:
                os.close(at)
        return None


def make_steps(probe: Probe, direct: bool) -> Steps:
    """The steps that go with `probe`. `direct`: to open what a name leads to by now can do no harm (see above)."""
    if _native is not None and isinstance(probe, _native.Probe):
        return _native.Steps(probe, direct, proc_fd)
    return PlainSteps(probe, direct)

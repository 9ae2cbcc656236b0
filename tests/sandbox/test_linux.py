"""The system calls: errors name the step, ints are not cut."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from transfuse.sandbox import linux


def test_an_error_names_the_step() -> None:
    with pytest.raises(OSError, match="bind /no/such: No such file or directory") as caught:
        linux.clone_tree(b"/no/such")
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)
    with pytest.raises(OSError, match="Landlock rule for x: "):
        linux.landlock_add_path(-1, 1, -1, "x")
    with pytest.raises(OSError, match="capability 63 in the bounding set: "):
        linux.drop_bounding(63)


def test_capabilities_are_those_of_proc() -> None:
    effective, permitted, inheritable = linux.capget()
    with open("/proc/self/status") as file:
        sets = dict(line.split() for line in file if line.startswith("Cap"))
    assert (effective, permitted, inheritable) == tuple(int(sets[f"Cap{name}:"], 16) for name in ("Eff", "Prm", "Inh"))


def test_capset_of_what_is_there_changes_nothing() -> None:
    before = linux.capget()
    linux.capset(*before)
    assert linux.capget() == before


def test_the_abi_of_landlock_is_no_error() -> None:
    assert 0 <= linux.landlock_abi() < 100


def test_a_child_is_killed_with_its_parent() -> None:
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            linux.set_death_signal(signal.SIGKILL)
            os.write(writer, b"x")
            signal.pause()
        signal.pause()
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    assert os.read(reader, 1) == b""  # both are gone
    os.close(reader)

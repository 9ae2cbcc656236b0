from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir.locks import READ, UNLOCK, WRITE, PosixLocks, Waiters, flock
from transfuse.filesystems.hostdir.nodes import HeldFd
from transfuse.fs.request import Request
from transfuse.fs.values import Lock

AS_USER = False
A, B, C = 11, 22, 33
"""Lock owners."""


@pytest.fixture
def path(source: Path) -> Path:
    (source / "file").touch()
    return source / "file"


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


@pytest.fixture
def locks(path: Path, waiters: Waiters) -> Iterator[PosixLocks]:
    table = PosixLocks(lambda nodeid, writable: HeldFd(os.open(path, os.O_RDWR)), waiters, 3)
    yield table
    table.clear()


def test_two_readers_share(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(READ, 0, 9))
    locks.set(5, B, Lock(READ, 0, 9))
    assert locks.get(5, C, Lock(READ, 0, 9)) is None


def test_a_writer_excludes(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    with pytest.raises(BlockingIOError):
        locks.set(5, B, Lock(READ, 9, 9))
    locks.set(5, B, Lock(READ, 10, 19))


def test_an_owner_is_not_in_its_own_way(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    locks.set(5, A, Lock(READ, 5, 20))
    assert locks.get(5, A, Lock(WRITE, 0, 100)) is None


def test_the_holder_of_a_conflict_is_named(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9, pid=101))
    locks.set(5, B, Lock(WRITE, 20, 29, pid=202))
    found = locks.get(5, C, Lock(READ, 25, 25))
    assert found == Lock(WRITE, 20, 29, 202)


def test_unlocking_the_middle_leaves_both_ends(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 29, pid=7))
    locks.set(5, A, Lock(UNLOCK, 10, 19, pid=7))
    locks.set(5, B, Lock(WRITE, 10, 19))
    assert locks.get(5, C, Lock(WRITE, 0, 5)) == Lock(WRITE, 0, 9, 7)
    assert locks.get(5, C, Lock(WRITE, 20, 25)) == Lock(WRITE, 20, 29, 7)


def test_a_lock_to_the_end_reaches_the_end(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 100, Lock.MAX_END, 3))
    assert locks.get(5, B, Lock(READ, 1 << 40, 1 << 40)) == Lock(WRITE, 100, Lock.MAX_END, 3)


def test_closing_drops_the_owners_locks_only(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    locks.set(5, B, Lock(WRITE, 10, 19))
    locks.drop(5, A)
    assert locks.get(5, C, Lock(WRITE, 0, 9)) is None
    assert locks.get(5, C, Lock(WRITE, 10, 19)) is not None


def test_an_unlocked_owner_costs_no_fd(locks: PosixLocks) -> None:
    before = len(os.listdir("/proc/self/fd"))
    locks.set(5, A, Lock(WRITE, 0, 9))
    locks.set(5, A, Lock(UNLOCK, 0, Lock.MAX_END))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_refused_first_lock_costs_no_fd(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BlockingIOError):
        locks.set(5, B, Lock(WRITE, 0, 9))
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_owners_is_enolck(locks: PosixLocks) -> None:
    for owner in (A, B, C):
        locks.set(5, owner, Lock(READ, 0, 9))
    with pytest.raises(OSError) as caught:
        locks.set(5, 44, Lock(READ, 0, 9))
    assert caught.value.errno == errno.ENOLCK


def test_unlocking_what_was_never_locked_is_nothing(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(UNLOCK, 0, 9))


def test_a_forgotten_node_has_no_locks(locks: PosixLocks, path: Path) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    locks.drop_node(5)
    assert host_can_lock(path)


def host_can_lock(path: Path) -> bool:
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_process_of_the_host_sees_the_lock(locks: PosixLocks, path: Path) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    assert not host_can_lock(path)
    locks.drop(5, A)
    assert host_can_lock(path)


@contextmanager
def locked_elsewhere(path: Path) -> Iterator[int]:
    """Another process holds a POSIX lock on all of the file. (Ours would go with any fd of it that we close.)"""
    code = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def test_a_lock_of_a_process_of_the_host_is_seen(locks: PosixLocks, path: Path) -> None:
    with locked_elsewhere(path) as pid:
        assert locks.get(5, A, Lock(WRITE, 0, 0)) == Lock(WRITE, 0, Lock.MAX_END, pid)
        with pytest.raises(BlockingIOError):
            locks.set(5, A, Lock(WRITE, 0, 0))


def start(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException | None]]:
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except OSError as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_a_waiting_lock_is_taken_soon_after_it_is_free(locks: PosixLocks, waiters: Waiters) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    thread, outcome = start(lambda: waiters.wait(Request(), 5, lambda: locks.set(5, B, Lock(WRITE, 0, 9))))
    time.sleep(0.2)
    assert not outcome
    locks.drop(5, A)
    thread.join(10)
    assert outcome == [None]


def test_a_waiting_lock_is_taken_when_a_process_of_the_host_lets_go(
    locks: PosixLocks, waiters: Waiters, path: Path
) -> None:
    with locked_elsewhere(path):
        thread, outcome = start(lambda: waiters.wait(Request(), 5, lambda: locks.set(5, B, Lock(WRITE, 0, 9))))
        time.sleep(0.1)
        assert not outcome
    thread.join(10)
    assert outcome == [None]


def test_an_interrupted_wait_ends_at_once_without_the_lock(locks: PosixLocks, waiters: Waiters) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9, pid=1))
    req = Request()
    thread, outcome = start(lambda: waiters.wait(req, 5, lambda: locks.set(5, B, Lock(WRITE, 0, 9))))
    time.sleep(0.1)
    req.interrupt()
    thread.join(10)
    assert isinstance(outcome[0], InterruptedError)
    assert locks.get(5, C, Lock(READ, 0, 0)) == Lock(WRITE, 0, 9, 1)


def test_a_request_interrupted_before_it_waits_does_not_lock(locks: PosixLocks, waiters: Waiters) -> None:
    req = Request()
    req.interrupt()
    with pytest.raises(InterruptedError):
        waiters.wait(req, 5, lambda: locks.set(5, B, Lock(WRITE, 0, 9)))
    assert locks.get(5, C, Lock(READ, 0, 0)) is None


def test_waiting_leaves_nothing_behind(waiters: Waiters) -> None:
    waiters.wait(Request(), 5, lambda: None)
    assert waiters._events == {}


def test_flock_excludes_between_open_files(path: Path) -> None:
    with open(path) as one, open(path) as two:
        flock(one.fileno(), WRITE)
        with pytest.raises(BlockingIOError):
            flock(two.fileno(), READ)
        flock(one.fileno(), UNLOCK)
        flock(two.fileno(), WRITE)

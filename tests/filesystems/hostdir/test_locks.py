from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir import locks as hostdir_locks
from transfuse.filesystems.hostdir.locks import READ, UNLOCK, WRITE, PosixLocks, Waiters, flock
from transfuse.filesystems.hostdir.nodes import HeldFd
from transfuse.fs.request import Request
from transfuse.fs.values import Lock

AS_USER = False
A, B, C = 11, 22, 33
"""Lock owners."""
LIMIT = 6


@pytest.fixture
def path(source: Path) -> Path:
    (source / "file").touch()
    return source / "file"


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


@pytest.fixture
def locks(path: Path, waiters: Waiters) -> Iterator[PosixLocks]:
    """Of node 5, which is `path`, and of node 6."""
    (path.parent / "6").touch()

    def open_fd(nodeid: int, writable: bool) -> HeldFd:
        return HeldFd(os.open(path if nodeid == 5 else path.parent / str(nodeid), os.O_RDWR))

    table = PosixLocks(open_fd, waiters, LIMIT)
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
    for owner in range(LIMIT):
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


def test_a_waiting_lock_is_taken_soon_after_it_is_free(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    thread, outcome = start(lambda: locks.wait(Request(), 5, B, Lock(WRITE, 0, 9)))
    time.sleep(0.2)
    assert not outcome
    locks.drop(5, A)
    thread.join(10)
    assert outcome == [None]


def test_a_waiting_lock_is_taken_when_a_process_of_the_host_lets_go(locks: PosixLocks, path: Path) -> None:
    with locked_elsewhere(path):
        thread, outcome = start(lambda: locks.wait(Request(), 5, B, Lock(WRITE, 0, 9)))
        time.sleep(0.1)
        assert not outcome
    thread.join(10)
    assert outcome == [None]


def test_an_interrupted_wait_ends_at_once_without_the_lock(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9, pid=1))
    req = Request()
    thread, outcome = start(lambda: locks.wait(req, 5, B, Lock(WRITE, 0, 9)))
    time.sleep(0.1)
    req.interrupt()
    thread.join(10)
    assert isinstance(outcome[0], InterruptedError)
    assert locks.get(5, C, Lock(READ, 0, 0)) == Lock(WRITE, 0, 9, 1)


def test_a_request_interrupted_before_it_waits_does_not_lock(locks: PosixLocks) -> None:
    req = Request()
    req.interrupt()
    with pytest.raises(InterruptedError):
        locks.wait(req, 5, B, Lock(WRITE, 0, 9))
    assert locks.get(5, C, Lock(READ, 0, 0)) is None


def test_waiting_leaves_nothing_behind(locks: PosixLocks, waiters: Waiters) -> None:
    locks.set(5, A, Lock(WRITE, 0, 9))
    thread, outcome = waiting(locks, B, Lock(WRITE, 0, 9))
    locks.drop(5, A)
    thread.join(10)
    assert outcome == [None] and waiters._events == {} and locks._waits == {}


def waiting(
    locks: PosixLocks, owner: int, lock: Lock, req: Request | None = None, nodeid: int = 5
) -> tuple[threading.Thread, list[BaseException | None]]:
    """A thread that surely waits for the lock by now."""
    before = len(locks._waits.get(owner, ()))
    thread, outcome = start(lambda: locks.wait(req or Request(), nodeid, owner, lock))
    limit = time.monotonic() + 10
    while len(locks._waits.get(owner, ())) == before:
        assert time.monotonic() < limit and not outcome
        time.sleep(0.001)
    return thread, outcome


def deadlock(locks: PosixLocks, owner: int, lock: Lock, nodeid: int = 5) -> bool:
    """Is waiting for the lock refused? It must not have to wait for anything else."""
    req = Request()
    timer = threading.Timer(10, req.interrupt)
    timer.start()
    try:
        locks.wait(req, nodeid, owner, lock)
    except OSError as error:
        return error.errno == errno.EDEADLK
    finally:
        timer.cancel()
    return False


def test_the_last_of_two_that_would_wait_for_each_other_is_edeadlk(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 0))
    locks.set(5, B, Lock(WRITE, 1, 1))
    thread, outcome = waiting(locks, A, Lock(WRITE, 1, 1))
    assert deadlock(locks, B, Lock(WRITE, 0, 0))
    time.sleep(0.1)
    assert not outcome  # only one of them is told
    locks.drop(5, B)
    thread.join(10)
    assert outcome == [None]


def test_a_circle_of_three_over_two_nodes_is_edeadlk(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 0))
    locks.set(6, B, Lock(WRITE, 10, 19))
    locks.set(5, C, Lock(READ, 2, 2))
    first, _ = waiting(locks, A, Lock(READ, 15, 15), nodeid=6)
    second, _ = waiting(locks, C, Lock(WRITE, 0, 0))
    assert deadlock(locks, B, Lock(WRITE, 0, 5))
    for nodeid, owner in ((6, B), (5, A), (5, C)):
        locks.drop(nodeid, owner)
    first.join(10)
    second.join(10)


def test_two_readers_that_both_want_to_write_are_edeadlk(locks: PosixLocks) -> None:
    for owner in (A, B):
        locks.set(5, owner, Lock(READ, 0, 9))
    thread, outcome = waiting(locks, A, Lock(WRITE, 0, 9))
    assert deadlock(locks, B, Lock(WRITE, 0, 9))
    locks.drop(5, B)
    thread.join(10)
    assert outcome == [None]


def test_readers_in_each_others_ranges_do_not_wait(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(READ, 0, 9))
    locks.set(5, C, Lock(WRITE, 20, 29))
    thread, outcome = waiting(locks, A, Lock(WRITE, 20, 29))
    locks.wait(Request(), 5, B, Lock(READ, 0, 9))
    locks.drop(5, C)
    thread.join(10)
    assert outcome == [None]


def test_one_thread_of_an_owner_that_stops_waiting_leaves_the_others_wait_known(locks: PosixLocks) -> None:
    locks.set(5, A, Lock(WRITE, 0, 0))
    locks.set(5, B, Lock(WRITE, 1, 1))
    locks.set(5, C, Lock(WRITE, 2, 2))
    for_b, _ = waiting(locks, A, Lock(WRITE, 1, 1))
    req = Request()
    for_c, _ = waiting(locks, A, Lock(WRITE, 2, 2), req)
    req.interrupt()
    for_c.join(10)
    assert deadlock(locks, B, Lock(WRITE, 0, 0))
    locks.drop(5, B)
    for_b.join(10)


def test_a_circle_that_a_lock_without_waiting_closes_is_found_by_who_waits(locks: PosixLocks) -> None:
    """A second thread of A's takes what B waits for too: nobody begins to wait, and yet there is a circle."""
    locks.set(5, B, Lock(WRITE, 1, 1))
    locks.set(5, C, Lock(WRITE, 2, 3))
    a, a_outcome = waiting(locks, A, Lock(WRITE, 1, 1))
    b, b_outcome = waiting(locks, B, Lock(WRITE, 2, 4))
    locks.set(5, A, Lock(WRITE, 4, 4))
    locks.drop(5, C)
    limit = time.monotonic() + 10
    while not a_outcome and not b_outcome and time.monotonic() < limit:
        time.sleep(0.001)
    told = (a_outcome or b_outcome)[0]
    assert isinstance(told, OSError) and told.errno == errno.EDEADLK
    locks.drop(5, A)
    locks.drop(5, B)
    a.join(10)
    b.join(10)


def test_a_search_for_deadlocks_has_an_end(locks: PosixLocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound a lock waits as if there were no detection, until the peer interrupts it."""
    monkeypatch.setattr(hostdir_locks, "MAX_SEARCH", 1)
    locks.set(5, A, Lock(WRITE, 0, 0))
    locks.set(5, B, Lock(WRITE, 1, 1))
    a_req, b_req = Request(), Request()
    a, a_outcome = waiting(locks, A, Lock(WRITE, 1, 1), a_req)
    b, b_outcome = waiting(locks, B, Lock(WRITE, 0, 0), b_req)
    time.sleep(0.2)
    assert not a_outcome and not b_outcome
    a_req.interrupt()
    b_req.interrupt()
    a.join(10)
    b.join(10)
    assert isinstance(a_outcome[0], InterruptedError) and isinstance(b_outcome[0], InterruptedError)


def test_ranges_that_touch_are_kept_as_one(locks: PosixLocks) -> None:
    for at in (0, 2, 1, 4, 3):
        locks.set(5, A, Lock(WRITE, at, at, pid=7))
    assert locks._nodes[5][A].ranges == [(WRITE, 0, 4, 7)]


def test_what_is_recorded_is_what_the_kernel_holds(locks: PosixLocks) -> None:
    """Random locks of one owner, byte for byte against what F_OFD_GETLK finds."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(300):
        start = rng.randrange(16)
        lock = Lock(rng.choice((READ, WRITE, UNLOCK)), start, start + rng.randrange(6), pid=rng.choice((7, 8)))
        locks.set(5, A, lock)
        held = locks._nodes.get(5, {}).get(A)
        for byte in range(24):
            found = locks.get(5, B, Lock(WRITE, byte, byte))
            kinds = [r[0] for r in held.ranges if r[1] <= byte <= r[2]] if held else []
            assert kinds == ([found.kind] if found else []), f"seed {seed}, byte {byte}"


def test_flock_excludes_between_open_files(path: Path) -> None:
    with open(path) as one, open(path) as two:
        flock(one.fileno(), WRITE)
        with pytest.raises(BlockingIOError):
            flock(two.fileno(), READ)
        flock(one.fileno(), UNLOCK)
        flock(two.fileno(), WRITE)

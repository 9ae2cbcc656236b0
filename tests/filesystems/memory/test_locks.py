from __future__ import annotations

import errno
import threading
import time

import pytest

from transfuse.filesystems.memory.locks import F_RDLCK, F_UNLCK, F_WRLCK, LockTable
from transfuse.fs.request import Request
from transfuse.fs.values import Lock

INO = 5
END = Lock.MAX_END


@pytest.fixture
def table():
    return LockTable()


def take(table, owner, kind, start, end, wait=False, req=None):
    table.acquire(req or Request(), INO, owner, Lock(kind, start, end, owner + 100), wait)


def held(table, kind=F_WRLCK):
    """Everything that keeps a stranger from `kind`, in order."""
    found, at = [], 0
    while (lock := table.conflict(INO, 999, Lock(kind, at, END))) is not None:
        found.append((lock.kind, lock.start, lock.end))
        if lock.end == END:
            break
        at = lock.end + 1
    return found


def refused(table, *args):
    with pytest.raises(BlockingIOError) as caught:
        take(table, *args)
    assert caught.value.errno == errno.EAGAIN


def test_read_locks_share(table):
    take(table, 1, F_RDLCK, 0, 10)
    take(table, 2, F_RDLCK, 0, 10)
    assert len(table) == 2


def test_write_locks_do_not(table):
    take(table, 1, F_RDLCK, 0, 10)
    refused(table, 2, F_WRLCK, 10, 20)
    take(table, 2, F_WRLCK, 11, 20)
    refused(table, 1, F_RDLCK, 20, 20)


def test_own_locks_are_never_in_the_way(table):
    take(table, 1, F_RDLCK, 0, 10)
    take(table, 1, F_WRLCK, 0, 10)
    assert held(table) == [(F_WRLCK, 0, 10)]


def test_the_lock_in_the_way_says_who_holds_it(table):
    take(table, 1, F_WRLCK, 5, 9)
    found = table.conflict(INO, 2, Lock(F_RDLCK, 0, END))
    assert (found.kind, found.start, found.end, found.pid) == (F_WRLCK, 5, 9, 101)


def test_neighbours_merge(table):
    take(table, 1, F_WRLCK, 0, 9)
    take(table, 1, F_WRLCK, 20, 29)
    take(table, 1, F_WRLCK, 10, 19)
    assert held(table) == [(F_WRLCK, 0, 29)] and len(table) == 1


def test_unlocking_the_middle_splits(table):
    take(table, 1, F_WRLCK, 0, END)
    take(table, 1, F_UNLCK, 10, 19)
    assert held(table) == [(F_WRLCK, 0, 9), (F_WRLCK, 20, END)]


def test_downgrading_a_part_splits(table):
    take(table, 1, F_WRLCK, 0, 29)
    take(table, 1, F_RDLCK, 10, 19)
    assert held(table, F_WRLCK) == [(F_WRLCK, 0, 9), (F_RDLCK, 10, 19), (F_WRLCK, 20, 29)]


def test_a_stranger_between_does_not_stop_a_merge(table):
    take(table, 1, F_RDLCK, 0, 9)
    take(table, 2, F_RDLCK, 5, 15)
    take(table, 1, F_RDLCK, 10, 19)
    assert len(table) == 2


def test_closing_drops_all_of_one_owner(table):
    take(table, 1, F_RDLCK, 0, 9)
    take(table, 1, F_RDLCK, 20, 29)
    take(table, 2, F_RDLCK, 0, 5)
    table.drop_owner(INO, 1)
    assert held(table) == [(F_RDLCK, 0, 5)] and len(table) == 1


def test_random_locks_are_what_a_byte_by_byte_model_says(table, rng):
    model: dict[int, list[int]] = {owner: [F_UNLCK] * 40 for owner in (1, 2, 3)}
    for _ in range(5000):
        owner, kind = rng.choice((1, 2, 3)), rng.choice((F_RDLCK, F_WRLCK, F_UNLCK, F_UNLCK))
        start = rng.randrange(40)
        end = rng.randrange(start, 40)
        others = [model[other][at] for other in model if other != owner for at in range(start, end + 1)]
        free = kind == F_UNLCK or (F_WRLCK not in others and (kind == F_RDLCK or F_RDLCK not in others))
        if free:
            take(table, owner, kind, start, end)
            model[owner][start : end + 1] = [kind] * (end - start + 1)
        else:
            refused(table, owner, kind, start, end)
    runs = sum(
        model[owner][at] != F_UNLCK and (at == 0 or model[owner][at - 1] != model[owner][at])
        for owner in model
        for at in range(40)
    )
    assert len(table) == runs


def test_locks_of_another_file_do_not_matter(table):
    take(table, 1, F_WRLCK, 0, END)
    table.acquire(Request(), INO + 1, 2, Lock(F_WRLCK, 0, END), False)
    assert len(table) == 2


@pytest.mark.parametrize("lock", [Lock(7, 0, 1), Lock(F_WRLCK, 5, 4), Lock(F_WRLCK, -1, 4)])
def test_locks_that_make_no_sense_are_einval(table, lock):
    with pytest.raises(OSError) as caught:
        table.acquire(Request(), INO, 1, lock, False)
    assert caught.value.errno == errno.EINVAL


def test_too_many_locks_are_enolck():
    table = LockTable(max_locks=2)
    take(table, 1, F_WRLCK, 0, 0)
    take(table, 1, F_WRLCK, 10, 10)
    with pytest.raises(OSError) as caught:
        take(table, 1, F_WRLCK, 20, 20)
    assert caught.value.errno == errno.ENOLCK
    take(table, 1, F_UNLCK, 0, END)
    assert len(table) == 0


class Waiter(threading.Thread):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.error = None
        self.start()

    def run(self):
        try:
            self.call()
        except OSError as error:
            self.error = error

    def result(self):
        self.join(10)
        assert not self.is_alive()
        return self.error.errno if self.error else 0


def until_waiting(table, count=1):
    deadline = time.monotonic() + 10
    while table._waiters < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_waiter_gets_the_lock_when_it_is_dropped(table):
    take(table, 1, F_WRLCK, 0, 9)
    waiter = Waiter(lambda: take(table, 2, F_WRLCK, 0, 9, wait=True))
    until_waiting(table)
    take(table, 1, F_UNLCK, 0, 9)
    assert waiter.result() == 0
    refused(table, 1, F_RDLCK, 0, 0)


def test_an_interrupted_waiter_leaves_with_eintr_at_once(table):
    take(table, 1, F_WRLCK, 0, 9)
    req = Request()
    waiter = Waiter(lambda: take(table, 2, F_WRLCK, 0, 9, wait=True, req=req))
    until_waiting(table)
    before = time.monotonic()
    req.interrupt()
    assert waiter.result() == errno.EINTR and time.monotonic() - before < 2


def test_a_request_interrupted_before_it_waits_does_not(table):
    take(table, 1, F_WRLCK, 0, 9)
    req = Request()
    req.interrupt()
    before = time.monotonic()
    with pytest.raises(InterruptedError):
        take(table, 2, F_WRLCK, 0, 9, wait=True, req=req)
    assert time.monotonic() - before < 2


def test_two_that_wait_for_each_other_are_edeadlk(table):
    take(table, 1, F_WRLCK, 0, 0)
    take(table, 2, F_WRLCK, 1, 1)
    waiter = Waiter(lambda: take(table, 1, F_WRLCK, 1, 1, wait=True))
    until_waiting(table)
    with pytest.raises(OSError) as caught:
        take(table, 2, F_WRLCK, 0, 0, wait=True)
    assert caught.value.errno == errno.EDEADLK
    take(table, 2, F_UNLCK, 1, 1)
    assert waiter.result() == 0


def test_three_that_wait_in_a_circle_are_edeadlk(table):
    for owner in (1, 2, 3):
        take(table, owner, F_WRLCK, owner, owner)
    first = Waiter(lambda: take(table, 1, F_WRLCK, 2, 2, wait=True))
    second = Waiter(lambda: take(table, 2, F_WRLCK, 3, 3, wait=True))
    until_waiting(table, 2)
    with pytest.raises(OSError) as caught:
        take(table, 3, F_WRLCK, 1, 1, wait=True)
    assert caught.value.errno == errno.EDEADLK
    table.clear()
    assert {first.result(), second.result()} == {errno.EINTR}


def test_one_thread_of_an_owner_that_stops_waiting_leaves_the_others_wait_known(table):
    for owner in (1, 2, 3):
        take(table, owner, F_WRLCK, owner, owner)
    for_two = Waiter(lambda: take(table, 1, F_WRLCK, 2, 2, wait=True))
    until_waiting(table)
    req = Request()
    for_three = Waiter(lambda: take(table, 1, F_WRLCK, 3, 3, wait=True, req=req))
    until_waiting(table, 2)
    req.interrupt()
    assert for_three.result() == errno.EINTR
    with pytest.raises(OSError) as caught:
        take(table, 2, F_WRLCK, 1, 1, wait=True)
    assert caught.value.errno == errno.EDEADLK
    take(table, 2, F_UNLCK, 2, 2)
    assert for_two.result() == 0 and not table._waits


def test_the_end_of_the_connection_sends_waiters_home(table):
    take(table, 1, F_WRLCK, 0, 9)
    waiter = Waiter(lambda: take(table, 2, F_WRLCK, 0, 9, wait=True))
    until_waiting(table)
    table.clear()
    assert waiter.result() == errno.EINTR and len(table) == 0


def test_flocks_share_and_exclude(table):
    table.flock(Request(), INO, 1, F_RDLCK, False)
    table.flock(Request(), INO, 2, F_RDLCK, False)
    with pytest.raises(BlockingIOError):
        table.flock(Request(), INO, 3, F_WRLCK, False)
    table.drop_flock(INO, 1)
    table.flock(Request(), INO, 2, F_WRLCK, False)
    with pytest.raises(BlockingIOError):
        table.flock(Request(), INO, 1, F_RDLCK, False)
    assert len(table) == 1


def test_flocks_and_posix_locks_do_not_meet(table):
    table.flock(Request(), INO, 1, F_WRLCK, False)
    take(table, 2, F_WRLCK, 0, END)
    assert len(table) == 2


def test_a_flock_is_waited_for(table):
    table.flock(Request(), INO, 1, F_WRLCK, False)
    waiter = Waiter(lambda: table.flock(Request(), INO, 2, F_WRLCK, True))
    until_waiting(table)
    table.flock(Request(), INO, 1, F_UNLCK, False)
    assert waiter.result() == 0


def test_an_interrupted_flock_leaves_with_eintr(table):
    table.flock(Request(), INO, 1, F_WRLCK, False)
    req = Request()
    waiter = Waiter(lambda: table.flock(req, INO, 2, F_WRLCK, True))
    until_waiting(table)
    req.interrupt()
    assert waiter.result() == errno.EINTR

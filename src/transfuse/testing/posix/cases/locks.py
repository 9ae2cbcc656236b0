"""POSIX record locks (fcntl) and open file description locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable

from transfuse.testing.posix.calls import F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, get_lock, set_lock
from transfuse.testing.posix.env import Env, Other, check, equal, needs, opened, put, refused
from transfuse.testing.posix.needs import Need

_READ, _WRITE, _NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
_BUSY = (errno.EAGAIN, errno.EACCES)


def _hold(kind: int, start: int, length: int) -> Callable[[Other], None]:
    """A function for spawn: lock, say so, wait, end."""

    def run(other: Other) -> None:
        with opened("f", os.O_RDWR) as fd:
            set_lock(fd, kind, start, length)
            other.ready()
            other.wait()

    return run


def _free(start: int, length: int, kind: int = _WRITE) -> bool:
    """Whether another process (this function's caller) could lock the range."""
    with opened("f", os.O_RDWR) as fd:
        return get_lock(fd, kind, start, length).type == _NONE


@needs(Need.LOCKS)
def case_write_lock_excludes(env: Env) -> None:
    """Neither a read nor a write lock goes beside a write lock of another process."""
    put("f")
    child = env.spawn(_hold(_WRITE, 0, 10))
    child.wait_ready()
    with opened("f", os.O_RDWR) as fd:
        for kind in (_READ, _WRITE):
            refused(_BUSY, set_lock, fd, kind, 5, 1)
        set_lock(fd, _WRITE, 10, 5)
    child.go()
    child.result()


@needs(Need.LOCKS)
def case_read_locks_share(env: Env) -> None:
    """Read locks go together, a write lock doesn't."""
    put("f")
    child = env.spawn(_hold(_READ, 0, 10))
    child.wait_ready()
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _READ, 0, 10)
        refused(_BUSY, set_lock, fd, _WRITE, 0, 10)
    child.go()
    child.result()


@needs(Need.LOCKS)
def case_getlk_names_the_holder(env: Env) -> None:
    """F_GETLK gives type, range and pid of the lock in the way."""
    put("f")
    child = env.spawn(_hold(_WRITE, 100, 50))
    child.wait_ready()
    with opened("f", os.O_RDWR) as fd:
        found = get_lock(fd, _READ, 0, 0)
        equal((found.type, found.start, found.length, found.pid), (_WRITE, 100, 50, child.pid), "lock")
        equal(get_lock(fd, _READ, 0, 100).type, _NONE, "type for a free range")
    child.go()
    child.result()


@needs(Need.LOCKS)
def case_own_locks_do_not_conflict(env: Env) -> None:
    """A process never stands in its own way, through whatever descriptor."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        set_lock(one, _WRITE, 0, 10)
        set_lock(two, _WRITE, 5, 10)
        equal(get_lock(two, _WRITE, 0, 20).type, _NONE, "type of a lock in the way")


@needs(Need.LOCKS)
def case_close_of_any_descriptor_releases(env: Env) -> None:
    """POSIX: closing any descriptor of the file drops all the process's locks."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 10)
        equal(env.spawn(lambda _other: _free(0, 10)).result(), False, "free before")
        os.close(os.open("f", os.O_RDONLY))
        equal(env.spawn(lambda _other: _free(0, 10)).result(), True, "free after another descriptor was closed")


@needs(Need.LOCKS)
def case_end_of_process_releases(env: Env) -> None:
    """Also when it is killed."""
    put("f")
    child = env.spawn(_hold(_WRITE, 0, 0))
    child.wait_ready()
    equal(_free(0, 1), False, "free before")
    child.kill()
    with opened("f", os.O_RDWR) as fd:
        signal.alarm(10)
        set_lock(fd, _WRITE, 0, 0, fcntl.F_SETLKW)
        signal.alarm(0)


@needs(Need.LOCKS)
def case_not_inherited_by_fork(env: Env) -> None:
    """A child doesn't own its parent's locks."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 10)

        def attempt(_other: Other) -> None:
            refused(_BUSY, set_lock, fd, _WRITE, 0, 10)

        env.spawn(attempt).result()


@needs(Need.LOCKS)
def case_unlock_in_the_middle_splits(env: Env) -> None:
    """0–99 without 40–59: both ends stay locked."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 100)
        set_lock(fd, _NONE, 40, 20)

        def ranges(_other: Other) -> list[bool]:
            return [_free(start, length) for start, length in ((0, 40), (39, 1), (40, 20), (60, 1), (99, 1), (100, 1))]

        equal(env.spawn(ranges).result(), [False, False, True, False, False, True], "free ranges")


@needs(Need.LOCKS)
def case_adjacent_ranges_merge(env: Env) -> None:
    """Two touching locks are seen as one."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 10)
        set_lock(fd, _WRITE, 10, 10)

        def seen(_other: Other) -> tuple[int, int]:
            with opened("f", os.O_RDWR) as there:
                found = get_lock(there, _WRITE, 0, 0)
            return found.start, found.length

        equal(env.spawn(seen).result(), (0, 20), "range")


@needs(Need.LOCKS)
def case_downgrade_and_upgrade(env: Env) -> None:
    """A write lock made a read lock lets readers in; up again keeps them out."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        states = []
        for kind in (_WRITE, _READ, _WRITE):
            set_lock(fd, kind, 0, 10)
            states.append(env.spawn(lambda _other: (_free(0, 10, _READ), _free(0, 10, _WRITE))).result())
        equal(states, [(False, False), (True, False), (False, False)], "free for readers, for writers")


@needs(Need.LOCKS)
def case_upgrade_against_a_reader_fails_and_keeps_the_read_lock(env: Env) -> None:
    """A refused upgrade loses nothing."""
    put("f")
    child = env.spawn(_hold(_READ, 0, 10))
    child.wait_ready()
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _READ, 0, 10)
        refused(_BUSY, set_lock, fd, _WRITE, 0, 10)
        child.go()
        child.result()
        equal(env.spawn(lambda _other: _free(0, 10, _WRITE)).result(), False, "free for writers")


@needs(Need.LOCKS)
def case_part_of_a_write_lock_downgraded(env: Env) -> None:
    """Changing a part changes only that."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 30)
        set_lock(fd, _READ, 10, 10)

        def ranges(_other: Other) -> list[bool]:
            return [_free(start, 10, _READ) for start in (0, 10, 20)]

        equal(env.spawn(ranges).result(), [False, True, False], "free for readers")


@needs(Need.LOCKS)
def case_length_zero_reaches_to_the_end_of_all(env: Env) -> None:
    """Also far behind the end of the file."""
    put("f", b"x")
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 5, 0)
        equal(env.spawn(lambda _other: [_free(0, 5), _free(1 << 40, 1)]).result(), [True, False], "free ranges")


@needs(Need.LOCKS)
def case_blocking_waits_until_release(env: Env) -> None:
    """F_SETLKW sleeps and gets the lock when it is free."""
    put("f")

    def wait(other: Other) -> None:
        with opened("f", os.O_RDWR) as fd:
            other.ready()
            set_lock(fd, _WRITE, 0, 10, fcntl.F_SETLKW)
            other.ready("locked")

    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 10)
        child = env.spawn(wait)
        child.wait_ready()
        check(child.is_quiet(0.1), "the other process got a lock that was held")
        set_lock(fd, _NONE, 0, 10)
        equal(child.wait_ready(), "locked", "the other process")
        child.result()


@needs(Need.LOCKS)
def case_blocking_is_interrupted_by_a_signal(env: Env) -> None:
    """A handler without SA_RESTART ends F_SETLKW with EINTR, and no lock is left behind."""
    put("f")

    def wait(other: Other) -> int:
        class Alarm(Exception):
            pass

        def wake(_number: int, _frame: object) -> None:
            raise Alarm

        signal.signal(signal.SIGALRM, wake)
        with opened("f", os.O_RDWR) as fd:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            try:
                set_lock(fd, _WRITE, 0, 10, fcntl.F_SETLKW)
            except Alarm:
                return errno.EINTR
        return 0

    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 10)
        equal(env.spawn(wait).result(), errno.EINTR, "how the wait ended")
        set_lock(fd, _NONE, 0, 10)
        equal(env.spawn(lambda _other: _free(0, 10)).result(), True, "free afterwards")


@needs(Need.LOCKS)
def case_waiting_process_can_be_killed(env: Env) -> None:
    """SIGKILL ends a process that waits for a lock."""
    put("f")

    def wait(other: Other) -> None:
        with opened("f", os.O_RDWR) as fd:
            other.ready()
            set_lock(fd, _WRITE, 0, 10, fcntl.F_SETLKW)

    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 10)
        child = env.spawn(wait)
        child.wait_ready()
        check(child.is_quiet(0.05), "the other process got a lock that was held")
        equal(os.waitstatus_to_exitcode(child.kill()), -signal.SIGKILL, "how it ended")
        set_lock(fd, _NONE, 0, 10)
        equal(env.spawn(lambda _other: _free(0, 10)).result(), True, "free afterwards")


@needs(Need.LOCKS, Need.DEADLOCK)
def case_deadlock_is_edeadlk(env: Env) -> None:
    """Two processes that would wait for each other: one is told."""
    put("f", b"ab")

    def other_side(other: Other) -> None:
        with opened("f", os.O_RDWR) as fd:
            set_lock(fd, _WRITE, 1, 1)
            other.ready()
            set_lock(fd, _WRITE, 0, 1, fcntl.F_SETLKW)

    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 1)
        child = env.spawn(other_side)
        child.wait_ready()
        check(child.is_quiet(0.1), "the other process does not wait")
        refused(errno.EDEADLK, set_lock, fd, _WRITE, 1, 1, fcntl.F_SETLKW)
        set_lock(fd, _NONE, 0, 1)
        child.result()


def _wait_for_byte(mine: int, wanted: int, name: str = "f") -> Callable[[Other], None]:
    """A function for spawn: lock one byte of "f", say so, and wait for another byte, perhaps of another file."""

    def run(other: Other) -> None:
        with opened("f", os.O_RDWR) as fd, opened(name, os.O_RDWR) as there:
            set_lock(fd, _WRITE, mine, 1)
            other.ready()
            set_lock(there, _WRITE, wanted, 1, fcntl.F_SETLKW)

    return run


@needs(Need.LOCKS, Need.DEADLOCK)
def case_deadlock_of_three_over_two_files_is_edeadlk(env: Env) -> None:
    """A circle is found whatever files it runs through; the one who is told keeps its locks."""
    put("f", b"abc")
    put("g", b"a")
    with opened("f", os.O_RDWR) as fd, opened("g", os.O_RDWR) as other_file:
        set_lock(other_file, _WRITE, 0, 1)
        first = env.spawn(_wait_for_byte(1, 0, "g"))
        first.wait_ready()
        check(first.is_quiet(0.1), "the first process does not wait")
        second = env.spawn(_wait_for_byte(2, 1))
        second.wait_ready()
        check(second.is_quiet(0.1), "the second process does not wait")
        signal.alarm(10)
        refused(errno.EDEADLK, set_lock, fd, _WRITE, 2, 1, fcntl.F_SETLKW)
        signal.alarm(0)
        check(first.is_quiet(0.1), "the first process got a lock that was held")
        set_lock(other_file, _NONE, 0, 1)
        first.result()
        second.result()


@needs(Need.LOCKS, Need.DEADLOCK)
def case_readers_that_both_want_to_write_are_edeadlk(env: Env) -> None:
    """Each waits for the other's read lock to go: the classic of upgrading."""
    put("f", b"a")

    def upgrade(other: Other) -> None:
        with opened("f", os.O_RDWR) as fd:
            set_lock(fd, _READ, 0, 1)
            other.ready()
            set_lock(fd, _WRITE, 0, 1, fcntl.F_SETLKW)

    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _READ, 0, 1)
        child = env.spawn(upgrade)
        child.wait_ready()
        check(child.is_quiet(0.1), "the other process does not wait")
        signal.alarm(10)
        refused(errno.EDEADLK, set_lock, fd, _WRITE, 0, 1, fcntl.F_SETLKW)
        signal.alarm(0)
        set_lock(fd, _NONE, 0, 1)
        child.result()


@needs(Need.LOCKS)
def case_a_chain_of_waiters_is_no_deadlock(env: Env) -> None:
    """Who waits for a process that waits itself gets the lock in the end."""
    put("f", b"abc")
    holder = env.spawn(_hold(_WRITE, 0, 1))
    holder.wait_ready()
    waiting = env.spawn(_wait_for_byte(1, 0))
    waiting.wait_ready()
    last = env.spawn(_wait_for_byte(2, 1))
    last.wait_ready()
    check(waiting.is_quiet(0.1) and last.is_quiet(0.1), "a process does not wait")
    holder.go()
    for child in (holder, waiting, last):
        child.result()


@needs(Need.LOCKS)
def case_write_lock_needs_a_writable_descriptor(env: Env) -> None:
    """EBADF, and the same for a read lock on a write-only one."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        refused(errno.EBADF, set_lock, fd, _WRITE, 0, 1)
        set_lock(fd, _READ, 0, 1)
    with opened("f", os.O_WRONLY) as fd:
        refused(errno.EBADF, set_lock, fd, _READ, 0, 1)


@needs(Need.LOCKS)
def case_negative_ranges(env: Env) -> None:
    """A negative length locks before the start; a start before 0 is EINVAL."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 20, -10)
        equal(
            env.spawn(lambda _other: [_free(9, 1), _free(10, 1), _free(19, 1), _free(20, 1)]).result(),
            [True, False, False, True],
            "free ranges",
        )
        refused(errno.EINVAL, set_lock, fd, _WRITE, -1, 1)
        refused(errno.EINVAL, set_lock, fd, _WRITE, 5, -10)


@needs(Need.LOCKS)
def case_whence_end(env: Env) -> None:
    """lockf relative to the end of the file uses the real size."""
    put("f", b"x" * 100)
    with opened("f", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, -10, os.SEEK_END)
        equal(env.spawn(lambda _other: [_free(89, 1), _free(90, 10)]).result(), [True, False], "free ranges")


@needs(Need.LOCKS)
def case_of_unlinked_file(env: Env) -> None:
    """Locks work on a file without a name."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        os.unlink("f")
        set_lock(fd, _WRITE, 0, 10)

        def attempt(_other: Other) -> None:
            refused(_BUSY, set_lock, fd, _WRITE, 0, 10)

        env.spawn(attempt).result()


@needs(Need.LOCKS, Need.HARD_LINK)
def case_through_another_name(env: Env) -> None:
    """The file is locked, not the name."""
    put("f")
    os.link("f", "g")
    child = env.spawn(_hold(_WRITE, 0, 10))
    child.wait_ready()
    with opened("g", os.O_RDWR) as fd:
        refused(_BUSY, set_lock, fd, _WRITE, 0, 10)
    child.go()
    child.result()


@needs(Need.LOCKS)
def case_counter_under_contention(env: Env) -> None:
    """Four processes add 50 each to a number in the file under F_SETLKW: the sum is exact."""
    put("f", b"%08d" % 0)

    def add(_other: Other) -> None:
        with opened("f", os.O_RDWR) as fd:
            for _ in range(50):
                set_lock(fd, _WRITE, 0, 0, fcntl.F_SETLKW)
                value = int(os.pread(fd, 8, 0))
                os.pwrite(fd, b"%08d" % (value + 1), 0)
                set_lock(fd, _NONE, 0, 0)

    children = [env.spawn(add) for _ in range(4)]
    for child in children:
        child.result()
    with opened("f", os.O_RDONLY) as fd:
        equal(int(os.pread(fd, 8, 0)), 200, "sum")


@needs(Need.OFD_LOCKS)
def case_ofd_conflict_within_a_process(env: Env) -> None:
    """Two open file descriptions exclude each other; a dup shares."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        set_lock(one, _WRITE, 0, 10, F_OFD_SETLK)
        refused(_BUSY, set_lock, two, _WRITE, 0, 10, F_OFD_SETLK)
        copy = os.dup(one)
        set_lock(copy, _WRITE, 0, 20, F_OFD_SETLK)
        os.close(copy)
        refused(_BUSY, set_lock, two, _WRITE, 15, 1, F_OFD_SETLK)


@needs(Need.OFD_LOCKS)
def case_ofd_survives_close_of_other_descriptors(env: Env) -> None:
    """Only the last close of the description releases."""
    put("f")
    with opened("f", os.O_RDWR) as two:
        one = os.open("f", os.O_RDWR)
        set_lock(one, _WRITE, 0, 10, F_OFD_SETLK)
        os.close(os.open("f", os.O_RDONLY))
        refused(_BUSY, set_lock, two, _WRITE, 0, 10, F_OFD_SETLK)
        os.close(one)
        signal.alarm(10)  # a FUSE server hears of the last close a moment later, so this may wait
        set_lock(two, _WRITE, 0, 10, F_OFD_SETLKW)
        signal.alarm(0)


@needs(Need.OFD_LOCKS, Need.LOCKS)
def case_ofd_and_posix_exclude_each_other(env: Env) -> None:
    """F_GETLK shows the range of an OFD lock, and no other process as its holder."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        set_lock(one, _WRITE, 0, 10, F_OFD_SETLK)
        refused(_BUSY, set_lock, two, _WRITE, 0, 10)
        found = get_lock(two, _WRITE, 0, 0)
        equal((found.type, found.start, found.length), (_WRITE, 0, 10), "lock")
        # -1 natively; FUSE's GETLK tells the server nothing of the kind of lock and can't bring back -1
        check(found.pid in (-1, 0, os.getpid()), f"pid {found.pid}")
        equal(get_lock(one, _WRITE, 0, 10, F_OFD_GETLK).type, _NONE, "for the holder")


@needs(Need.OFD_LOCKS)
def case_ofd_blocking(env: Env) -> None:
    """F_OFD_SETLKW waits for the release in another process."""
    put("f")

    def wait(other: Other) -> None:
        with opened("f", os.O_RDWR) as there:
            other.ready()
            set_lock(there, _WRITE, 0, 10, F_OFD_SETLKW)

    with opened("f", os.O_RDWR) as fd:
        set_lock(fd, _WRITE, 0, 10, F_OFD_SETLK)
        child = env.spawn(wait)
        child.wait_ready()
        check(child.is_quiet(0.1), "the other process got a lock that was held")
        set_lock(fd, _NONE, 0, 10, F_OFD_SETLK)
        child.result()

"""flock(2): whole-file locks that belong to the open file description."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from transfuse.testing.posix.env import Env, Other, check, equal, needs, opened, put, refused
from transfuse.testing.posix.needs import Need

_TRY_EX = fcntl.LOCK_EX | fcntl.LOCK_NB
_TRY_SH = fcntl.LOCK_SH | fcntl.LOCK_NB


@needs(Need.FLOCK)
def case_exclusive_excludes(env: Env) -> None:
    """Within a process and between two."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        fcntl.flock(one, _TRY_EX)
        refused(errno.EWOULDBLOCK, fcntl.flock, two, _TRY_EX)
        refused(errno.EWOULDBLOCK, fcntl.flock, two, _TRY_SH)

        def attempt(_other: Other) -> None:
            with opened("f", os.O_RDWR) as there:
                refused(errno.EWOULDBLOCK, fcntl.flock, there, _TRY_SH)

        env.spawn(attempt).result()
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, _TRY_EX)


@needs(Need.FLOCK)
def case_shared_shares(env: Env) -> None:
    """Two shared locks, then no exclusive one."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        fcntl.flock(one, _TRY_SH)
        fcntl.flock(two, _TRY_SH)
        refused(errno.EWOULDBLOCK, fcntl.flock, two, _TRY_EX)


@needs(Need.FLOCK)
def case_close_releases(env: Env) -> None:
    """The last close of the description, not of another one."""
    put("f")
    with opened("f", os.O_RDWR) as two:
        one = os.open("f", os.O_RDWR)
        fcntl.flock(one, _TRY_EX)
        os.close(os.open("f", os.O_RDWR))
        refused(errno.EWOULDBLOCK, fcntl.flock, two, _TRY_EX)
        copy = os.dup(one)
        os.close(one)
        refused(errno.EWOULDBLOCK, fcntl.flock, two, _TRY_EX)
        os.close(copy)
        signal.alarm(10)  # a FUSE server hears of the last close a moment later, so this may wait
        fcntl.flock(two, fcntl.LOCK_EX)
        signal.alarm(0)


@needs(Need.FLOCK)
def case_inherited_by_fork(env: Env) -> None:
    """A child shares the description and may unlock it."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        fcntl.flock(one, _TRY_EX)
        env.spawn(lambda _other: fcntl.flock(one, fcntl.LOCK_UN)).result()
        fcntl.flock(two, _TRY_EX)


@needs(Need.FLOCK)
def case_end_of_process_releases(env: Env) -> None:
    """Also when it is killed."""
    put("f")

    def hold(other: Other) -> None:
        with opened("f", os.O_RDWR) as there:
            fcntl.flock(there, _TRY_EX)
            other.ready()
            other.wait()

    child = env.spawn(hold)
    child.wait_ready()
    with opened("f", os.O_RDWR) as fd:
        refused(errno.EWOULDBLOCK, fcntl.flock, fd, _TRY_EX)
        child.kill()
        signal.alarm(10)
        fcntl.flock(fd, fcntl.LOCK_EX)
        signal.alarm(0)


@needs(Need.FLOCK)
def case_works_on_read_only_descriptors_and_directories(env: Env) -> None:
    """flock doesn't ask for write access."""
    put("f")
    os.mkdir("d")
    for name in ("f", "d"):
        with opened(name, os.O_RDONLY) as one, opened(name, os.O_RDONLY) as two:
            fcntl.flock(one, _TRY_EX)
            refused(errno.EWOULDBLOCK, fcntl.flock, two, _TRY_SH)


@needs(Need.FLOCK)
def case_conversion(env: Env) -> None:
    """Exclusive to shared lets another in; back again doesn't work beside it."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        fcntl.flock(one, _TRY_EX)
        fcntl.flock(one, _TRY_SH)
        fcntl.flock(two, _TRY_SH)
        refused(errno.EWOULDBLOCK, fcntl.flock, one, _TRY_EX)


@needs(Need.FLOCK)
def case_blocking_waits_until_release(env: Env) -> None:
    """LOCK_EX sleeps."""
    put("f")

    def wait(other: Other) -> None:
        with opened("f", os.O_RDWR) as there:
            other.ready()
            fcntl.flock(there, fcntl.LOCK_EX)

    with opened("f", os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        child = env.spawn(wait)
        child.wait_ready()
        check(child.is_quiet(0.1), "the other process got a lock that was held")
        fcntl.flock(fd, fcntl.LOCK_UN)
        child.result()


@needs(Need.FLOCK)
def case_blocking_is_interrupted_by_alarm(env: Env) -> None:
    """A signal handler ends the wait, and no lock is left behind."""
    put("f")

    def wait(_other: Other) -> int:
        def wake(_number: int, _frame: object) -> None:
            raise InterruptedError(errno.EINTR, "alarm")

        signal.signal(signal.SIGALRM, wake)
        with opened("f", os.O_RDWR) as there:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            try:
                fcntl.flock(there, fcntl.LOCK_EX)
            except InterruptedError:
                return errno.EINTR
        return 0

    with opened("f", os.O_RDWR) as fd, opened("f", os.O_RDWR) as second:
        fcntl.flock(fd, fcntl.LOCK_EX)
        equal(env.spawn(wait).result(), errno.EINTR, "how the wait ended")
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.flock(second, _TRY_EX)


@needs(Need.FLOCK, Need.LOCKS)
def case_independent_of_record_locks(env: Env) -> None:
    """On Linux the two kinds don't see each other."""
    put("f")

    def both(_other: Other) -> None:
        with opened("f", os.O_RDWR) as there:
            fcntl.lockf(there, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)

    with opened("f", os.O_RDWR) as fd:
        fcntl.flock(fd, _TRY_EX)
        env.spawn(both).result()


@needs(Need.FLOCK)
def case_on_unlinked_file(env: Env) -> None:
    """A file without a name can still be locked."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        os.unlink("f")
        fcntl.flock(one, _TRY_EX)
        refused(errno.EWOULDBLOCK, fcntl.flock, two, _TRY_EX)

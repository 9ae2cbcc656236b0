"""atime, mtime, ctime and btime; utimensat(2) and statx(2)."""

from __future__ import annotations

import errno
import os
import time

from transfuse.testing.posix.calls import (
    AT_STATX_DONT_SYNC,
    AT_STATX_FORCE_SYNC,
    AT_SYMLINK_NOFOLLOW,
    STATX_BASIC_STATS,
    UTIME_NOW,
    UTIME_OMIT,
    statx,
    utimensat,
)
from transfuse.testing.posix.env import (
    ALICE,
    BOB,
    Env,
    check,
    equal,
    make_directory,
    needs,
    opened,
    put,
    put_owned,
    refused,
)
from transfuse.testing.posix.needs import Need

_NOW = (0, UTIME_NOW)
_OMIT = (0, UTIME_OMIT)


def _times(name: str) -> tuple[int, int]:
    found = os.lstat(name)
    return found.st_atime_ns, found.st_mtime_ns


@needs(Need.NANOSECONDS)
def case_nanoseconds_are_kept(env: Env) -> None:
    """atime and mtime independently, to the nanosecond."""
    put("f")
    os.utime("f", ns=(1_500_000_000_123_456_789, 1_600_000_000_987_654_321))
    equal(_times("f"), (1_500_000_000_123_456_789, 1_600_000_000_987_654_321), "times")


def case_setting_moves_ctime(env: Env) -> None:
    """ctime can't be set, it shows when the others were."""
    put("f")
    start = os.stat("f").st_ctime_ns
    env.tick()
    os.utime("f", (1, 1))
    check(os.stat("f").st_ctime_ns > start, "ctime did not move")


def case_of_directory_link_and_fifo(env: Env) -> None:
    """Every type has times."""
    os.mkdir("d")
    os.mkfifo("p")
    os.symlink("d", "l")
    for name in ("d", "p", "l"):
        os.utime(name, ns=(10**18, 10**18 + 10**9), follow_symlinks=False)
        equal(_times(name), (10**18, 10**18 + 10**9), f"times of {name}")


def case_by_descriptor(env: Env) -> None:
    """futimens works on a read-only descriptor."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        os.utime(fd, ns=(10**18, 2 * 10**18))
        equal(os.fstat(fd).st_mtime_ns, 2 * 10**18, "mtime by fstat")
    equal(_times("f"), (10**18, 2 * 10**18), "times by name")


def case_omit(env: Env) -> None:
    """UTIME_OMIT leaves one time; both omitted leave even ctime."""
    put("f")
    os.utime("f", ns=(10**18, 10**18))
    utimensat("f", _OMIT, (2_000_000_000, 5 * 10**8))
    equal(_times("f"), (10**18, 2_000_000_000 * 10**9 + 5 * 10**8), "times after omitting atime")
    utimensat("f", (3, 0), _OMIT)
    equal(_times("f"), (3 * 10**9, 2_000_000_000 * 10**9 + 5 * 10**8), "times after omitting mtime")
    equal(env.changed(lambda: utimensat("f", _OMIT, _OMIT), "f"), [""], "times moved by omitting both")


def case_now(env: Env) -> None:
    """UTIME_NOW takes the current time, for one or both."""
    put("f")
    os.utime("f", (1, 1))
    utimensat("f", _NOW, (7, 0))
    atime, mtime = _times("f")
    check(abs(atime - time.time_ns()) < 60 * 10**9, f"atime is {atime}")
    equal(mtime, 7 * 10**9, "mtime")
    os.utime("f")
    atime, mtime = _times("f")
    check(abs(mtime - time.time_ns()) < 60 * 10**9, f"mtime is {mtime}")


def case_no_follow(env: Env) -> None:
    """AT_SYMLINK_NOFOLLOW sets the link's own times."""
    put("f")
    os.symlink("f", "l")
    before = _times("f")
    utimensat("l", (5, 0), (6, 0), AT_SYMLINK_NOFOLLOW)
    equal((os.lstat("l").st_mtime_ns, _times("f")), (6 * 10**9, before), "link and target")


def case_bad_nanoseconds_are_einval(env: Env) -> None:
    """More than 999,999,999 that is neither NOW nor OMIT."""
    put("f")
    refused(errno.EINVAL, utimensat, "f", (1, 10**9), (1, 0))
    refused(errno.EINVAL, utimensat, "f", (1, 0), (1, -1))


@needs(Need.NEGATIVE_TIMES)
def case_before_1970(env: Env) -> None:
    """Negative seconds, with a positive fraction."""
    put("f")
    os.utime("f", ns=(-315_593_940 * 10**9, -1))
    equal(_times("f"), (-315_593_940 * 10**9, -1), "times")


def case_after_2038(env: Env) -> None:
    """Seconds need more than 31 bits."""
    put("f")
    wanted = (1 << 32) * 10**9 + 7 * 10**9
    os.utime("f", ns=(wanted, wanted))
    equal(_times("f"), (wanted, wanted), "times")


def case_survive_a_later_read(env: Env) -> None:
    """An mtime that was set stays after open and close, also when data were written before (write-back caches)."""
    with opened("f", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"x" * 10_000)
        os.utime("f", ns=(10**18, 10**18))
        equal(os.fstat(fd).st_mtime_ns, 10**18, "mtime while open")
    equal(os.stat("f").st_mtime_ns, 10**18, "mtime after close")
    with opened("f", os.O_RDONLY) as fd:
        os.read(fd, 100)
    equal(os.stat("f").st_mtime_ns, 10**18, "mtime after a read")


def case_survive_fsync_and_other_attributes(env: Env) -> None:
    """chmod, fsync and a rename leave mtime."""
    put("f", b"x")
    os.utime("f", ns=(10**18, 10**18))
    with opened("f", os.O_RDWR) as fd:
        os.fsync(fd)
    os.chmod("f", 0o600)
    os.rename("f", "g")
    equal(os.stat("g").st_mtime_ns, 10**18, "mtime")


def case_write_after_setting_moves_mtime(env: Env) -> None:
    """A set mtime is no bar for the next write."""
    put("f", b"x")
    os.utime("f", ns=(10**18, 10**18))
    put("f", b"yy")
    check(os.stat("f").st_mtime_ns > 10**18, "mtime is still the old one")


@needs(Need.USERS)
def case_owner_may_set_any_time(env: Env) -> None:
    """The owner may, even without write permission."""
    put_owned("f", ALICE, 0o444)
    env.as_user(*ALICE)(os.utime, "f", (5, 6))
    equal(_times("f"), (5 * 10**9, 6 * 10**9), "times")


@needs(Need.USERS)
def case_writer_may_set_to_now_only(env: Env) -> None:
    """With w but not owner: both to now works, a given time is EPERM, one of the two alone is EPERM."""
    put_owned("f", ALICE, 0o666)
    bob = env.as_user(*BOB)
    os.utime("f", (1, 1))
    bob(os.utime, "f")
    check(os.stat("f").st_mtime > 10, "mtime is not now")
    bob.refused(errno.EPERM, os.utime, "f", (5, 6))
    bob.refused(errno.EPERM, utimensat, "f", _NOW, _OMIT)
    bob.refused(errno.EPERM, utimensat, "f", _NOW, (5, 0))
    bob(utimensat, "f", _OMIT, _OMIT)


@needs(Need.USERS)
def case_reader_may_set_nothing(env: Env) -> None:
    """Without w: now is EACCES, a given time is EPERM."""
    put_owned("f", ALICE, 0o644)
    bob = env.as_user(*BOB)
    bob.refused(errno.EACCES, os.utime, "f")
    bob.refused(errno.EPERM, os.utime, "f", (5, 6))


@needs(Need.USERS)
def case_of_directory_by_group_writer(env: Env) -> None:
    """touch on a directory one may write to."""
    make_directory("d", 0o775, (ALICE.uid, BOB.gid))
    env.as_user(*BOB)(os.utime, "d")
    env.as_user(*BOB).refused(errno.EPERM, os.utime, "d", (5, 6))


@needs(Need.BTIME)
def case_birth_time_stays(env: Env) -> None:
    """btime is the creation, whatever happens later."""
    before = time.time_ns()
    put("f", b"x")
    born = statx("f").btime_ns
    check(abs(born - before) < 60 * 10**9, f"btime is {born}")
    env.tick()
    put("f", b"yy")
    os.chmod("f", 0o600)
    os.utime("f", (1, 1))
    os.rename("f", "g")
    equal(statx("g").btime_ns, born, "btime later")


def case_statx_agrees_with_stat(env: Env) -> None:
    """Mode, owner, links, size, inode, times; and the basic fields are all given."""
    put("f", b"12345", 0o640)
    found, wide = os.stat("f"), statx("f")
    check(wide.mask & STATX_BASIC_STATS == STATX_BASIC_STATS, f"mask is {wide.mask:#x}")
    equal(
        (wide.mode, wide.uid, wide.gid, wide.nlink, wide.size, wide.ino, wide.blocks, wide.mtime_ns, wide.ctime_ns),
        (
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_nlink,
            found.st_size,
            found.st_ino,
            found.st_blocks,
            found.st_mtime_ns,
            found.st_ctime_ns,
        ),
        "fields",
    )


def case_statx_sync_modes_agree(env: Env) -> None:
    """FORCE_SYNC and DONT_SYNC see the same quiet file."""
    put("f", b"12345")
    equal((statx("f", AT_STATX_FORCE_SYNC).size, statx("f", AT_STATX_DONT_SYNC).size), (5, 5), "sizes")


def case_clock_of_the_filesystem_is_ours(env: Env) -> None:
    """A new file's times lie between the clock before and after, within the granularity."""
    before = time.time_ns()
    put("f", b"x")
    found = os.stat("f")
    after = time.time_ns()
    slack = int(max(env.tick_s, 0.02) * 10**9)
    for stamp in (found.st_mtime_ns, found.st_ctime_ns):
        check(before - slack <= stamp <= after + slack, f"{stamp} is not between {before} and {after}")

"""When set-user-id and set-group-id vanish: writing, truncating, copying into a file by an ordinary user."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable

from transfuse.testing.posix.calls import copy_file_range, fallocate
from transfuse.testing.posix.env import (
    ALICE,
    BOB,
    Env,
    Other,
    User,
    equal,
    make_directory,
    mode_of,
    needs,
    opened,
    put,
    put_owned,
)
from transfuse.testing.posix.needs import Need


def _write(name: str) -> None:
    with opened(name, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def _append(name: str) -> None:
    with opened(name, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")


def _ftruncate(name: str) -> None:
    with opened(name, os.O_WRONLY) as fd:
        os.ftruncate(fd, 1)


def _open_trunc(name: str) -> None:
    with opened(name, os.O_WRONLY | os.O_TRUNC):
        pass


def _fallocate(name: str) -> None:
    with opened(name, os.O_WRONLY) as fd:
        fallocate(fd, 0, 0, 10_000)


def _copy(name: str) -> None:
    with opened("source", os.O_RDONLY) as source, opened(name, os.O_WRONLY) as target:
        copy_file_range(source, 0, target, 0, 4)


def _after_by_user(env: Env, mode: int, action: Callable[[str], None]) -> int:
    put("source", b"data", 0o644)
    put_owned("f", (0, 0), mode, b"0123456789" * 1000)
    env.as_user(*ALICE)(action, "f")
    return mode_of("f")


@needs(Need.USERS)
def case_write_by_user_clears_both(env: Env) -> None:
    """suid and sgid of an executable file go with the first write by a user."""
    equal(_after_by_user(env, 0o6777, _write), 0o777, "mode")


@needs(Need.USERS)
def case_write_by_owner_clears_both(env: Env) -> None:
    """The owner is no exception."""
    put_owned("f", ALICE, 0o6755, b"x")
    env.as_user(*ALICE)(_write, "f")
    equal(mode_of("f"), 0o755, "mode")


@needs(Need.USERS)
def case_append_by_user_clears_both(env: Env) -> None:
    """Appending as well."""
    equal(_after_by_user(env, 0o6777, _append), 0o777, "mode")


@needs(Need.USERS)
def case_truncate_by_user_clears_both(env: Env) -> None:
    """truncate(2) by name."""
    equal(_after_by_user(env, 0o6777, lambda name: os.truncate(name, 3)), 0o777, "mode")


@needs(Need.USERS)
def case_ftruncate_by_user_clears_both(env: Env) -> None:
    """ftruncate(2)."""
    equal(_after_by_user(env, 0o6777, _ftruncate), 0o777, "mode")


@needs(Need.USERS)
def case_o_trunc_by_user_clears_both(env: Env) -> None:
    """open O_TRUNC."""
    equal(_after_by_user(env, 0o6777, _open_trunc), 0o777, "mode")


@needs(Need.USERS, Need.FALLOCATE)
def case_fallocate_by_user_clears_both(env: Env) -> None:
    """fallocate changes the file: the bits go."""
    equal(_after_by_user(env, 0o6777, _fallocate), 0o777, "mode")


@needs(Need.USERS, Need.COPY_FILE_RANGE)
def case_copy_file_range_by_user_clears_both(env: Env) -> None:
    """copy_file_range into the file is a write."""
    equal(_after_by_user(env, 0o6777, _copy), 0o777, "mode")


@needs(Need.USERS)
def case_setgid_without_group_execute_stays(env: Env) -> None:
    """S_ISGID without x for the group stays when a member of the group writes."""
    put_owned("f", ALICE, 0o2666, b"x")
    env.as_user(*ALICE)(_write, "f")
    equal(mode_of("f"), 0o2666, "mode")


@needs(Need.USERS)
def case_suid_without_execute_goes(env: Env) -> None:
    """S_ISUID goes whatever the x bits are."""
    equal(_after_by_user(env, 0o4666, _write), 0o666, "mode")


@needs(Need.ROOT)
def case_write_by_root_keeps_both(env: Env) -> None:
    """CAP_FSETID keeps the bits on write and truncate."""
    put_owned("f", ALICE, 0o6755, b"0123456789")
    _write("f")
    equal(mode_of("f"), 0o6755, "mode after write")
    _ftruncate("f")
    equal(mode_of("f"), 0o6755, "mode after ftruncate")


@needs(Need.USERS)
def case_other_bits_are_untouched(env: Env) -> None:
    """Permission and sticky bits stay."""
    equal(_after_by_user(env, 0o7767, _write) & 0o1777, 0o1767, "mode")


@needs(Need.USERS)
def case_reading_keeps_both(env: Env) -> None:
    """Only changes matter."""
    equal(_after_by_user(env, 0o6755, lambda name: os.close(os.open(name, os.O_RDONLY))), 0o6755, "mode")


@needs(Need.USERS)
def case_write_of_nothing_keeps_both(env: Env) -> None:
    """A write of no bytes isn't a change."""

    def nothing(name: str) -> None:
        with opened(name, os.O_WRONLY) as fd:
            os.write(fd, b"")

    equal(_after_by_user(env, 0o6777, nothing), 0o6777, "mode")


@needs(Need.USERS, Need.MMAP_SHARED)
def case_second_write_after_chmod_clears_again(env: Env) -> None:
    """The bits set again are cleared again, through the same descriptor."""
    put_owned("f", ALICE, 0o6755, b"x" * 10)

    def twice() -> list[int]:
        modes = []
        with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, 10):
            for _ in range(2):
                os.pwrite(fd, b"y", 0)
                modes.append(mode_of("f"))
                os.fchmod(fd, 0o4755)
        return modes

    equal(env.as_user(*ALICE)(twice), [0o755, 0o755], "modes")


def _after_late_chmod(env: Env, mode: int, writer: User, root_opens_first: bool) -> int:
    """The mode of ALICE's file that got `mode` while root and `writer` had it open, after a write by `writer`."""
    put_owned("f", ALICE, 0o666, b"0123456789")

    def write(other: Other) -> None:
        with opened("f", os.O_RDWR) as fd:
            other.ready()
            other.wait()
            os.pwrite(fd, b"x", 0)

    first = os.open("f", os.O_RDWR) if root_opens_first else None
    child = env.spawn(write, writer)
    child.wait_ready()
    try:
        os.chmod("f", mode)
        child.go()
        child.result()
    finally:
        if first is not None:
            os.close(first)
    return mode_of("f")


@needs(Need.USERS)
def case_bits_added_to_an_open_file_go_with_the_next_write(env: Env) -> None:
    """By the owner or anybody else, whoever was the first to open the file."""
    for writer in (ALICE, BOB):
        for root_opens_first in (False, True):
            equal(_after_late_chmod(env, 0o6777, writer, root_opens_first), 0o777, f"mode after {writer}")


@needs(Need.USERS)
def case_setgid_without_group_execute_added_to_an_open_file(env: Env) -> None:
    """It stays when a member of the group writes, and goes when a stranger does."""
    equal(_after_late_chmod(env, 0o2666, ALICE, True), 0o2666, "mode after a member's write")
    equal(_after_late_chmod(env, 0o2666, BOB, True), 0o666, "mode after a stranger's write")


@needs(Need.ROOT)
def case_bits_added_to_an_open_file_stay_with_a_write_by_root(env: Env) -> None:
    """Through a descriptor from before the change of mode."""
    put("f", b"0123456789", 0o666)
    with opened("f", os.O_RDWR) as fd:
        os.fchmod(fd, 0o6755)
        os.pwrite(fd, b"x", 0)
    equal(mode_of("f"), 0o6755, "mode")


@needs(Need.ROOT)
def case_chown_to_nobody_new_by_root_clears_both(env: Env) -> None:
    """chown(path, -1, -1) is a change of owner in that; directories keep setgid."""
    put("f", b"", 0o6755)
    make_directory("d", 0o2755)
    for name in ("f", "d"):
        os.chown(name, -1, -1)
    equal((mode_of("f"), mode_of("d")), (0o755, 0o2755), "modes")


@needs(Need.USERS)
def case_chown_to_nobody_new_by_a_stranger_changes_nothing(env: Env) -> None:
    """Whether it is refused or does nothing, the bits of others are safe."""
    put_owned("f", ALICE, 0o6777, b"x")

    def attempt() -> None:
        with contextlib.suppress(PermissionError):
            os.chown("f", -1, -1)

    env.as_user(*BOB)(attempt)
    equal(mode_of("f"), 0o6777, "mode")


@needs(Need.USERS, Need.SECURITY_XATTR)
def case_write_clears_file_capabilities(env: Env) -> None:
    """security.capability goes with a write, as it must."""
    # VFS_CAP_REVISION_2 with CAP_NET_RAW permitted
    value = bytes.fromhex("0000000200200000000000000000000000000000")
    put("f", b"x", 0o777)
    os.setxattr("f", "security.capability", value)
    equal(os.getxattr("f", "security.capability")[:4], value[:4], "capability before")
    env.as_user(*ALICE)(_write, "f")
    equal("security.capability" in os.listxattr("f"), False, "capability after the write")

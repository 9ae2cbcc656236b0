"""When set-user-id and set-group-id vanish: writing, truncating, copying into a file by an ordinary user."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from transfuse.testing.posix.calls import copy_file_range, fallocate
from transfuse.testing.posix.env import ALICE, Env, equal, mode_of, needs, opened, put, put_owned
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

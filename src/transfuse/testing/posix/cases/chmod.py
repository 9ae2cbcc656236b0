"""chmod(2), fchmod(2)."""

from __future__ import annotations

import errno
import os
import stat

from transfuse.testing.posix.env import (
    ALICE,
    BOB,
    PROJECT_GID,
    Env,
    equal,
    get,
    make_directory,
    mode_of,
    needs,
    opened,
    put,
    put_owned,
    refused,
)
from transfuse.testing.posix.needs import Need


def case_every_mode(env: Env) -> None:
    """A selection of modes with all twelve bits, on a file and a directory."""
    put("f")
    os.mkdir("d")
    for mode in (0o000, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777, 0o421, 0o124):
        for name in ("f", "d"):
            os.chmod(name, mode)
            equal(mode_of(name), mode, f"mode of {name}")


def case_by_descriptor(env: Env) -> None:
    """fchmod works on a read-only descriptor and is seen by name."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o640)
    equal(mode_of("f"), 0o640, "mode")


def case_changes_ctime_only(env: Env) -> None:
    """ctime moves, mtime stays."""
    put("f")
    os.mkdir("d")
    equal(env.changed(lambda: os.chmod("f", 0o600), "f"), ["c"], "times of a file")
    equal(env.changed(lambda: os.chmod("d", 0o700), "d"), ["c"], "times of a directory")


def case_same_mode_changes_ctime(env: Env) -> None:
    """Setting the mode it has already still moves ctime."""
    put("f", mode=0o644)
    equal(env.changed(lambda: os.chmod("f", 0o644), "f"), ["c"], "times")


def case_leaves_parent_times(env: Env) -> None:
    """The directory isn't touched."""
    os.mkdir("p")
    put("p/f")
    equal(env.changed(lambda: os.chmod("p/f", 0o600), "p"), [""], "times")


def case_follows_links(env: Env) -> None:
    """chmod of a link changes the target."""
    put("f")
    os.symlink("f", "l")
    os.chmod("l", 0o604)
    equal((mode_of("f"), stat.S_ISLNK(os.lstat("l").st_mode)), (0o604, True), "mode of the target")


def case_type_bits_are_ignored(env: Env) -> None:
    """A mode with type bits in it doesn't change the type."""
    put("f")
    os.chmod("f", stat.S_IFDIR | 0o600)
    equal(os.stat("f").st_mode, stat.S_IFREG | 0o600, "mode")


@needs(Need.USERS)
def case_by_others_is_eperm(env: Env) -> None:
    """Only the owner and root; write permission doesn't help."""
    put_owned("f", ALICE, 0o666)
    env.as_user(*BOB).refused(errno.EPERM, os.chmod, "f", 0o600)
    env.as_user(*ALICE)(os.chmod, "f", 0o600)
    equal(mode_of("f"), 0o600, "mode")


@needs(Need.USERS)
def case_by_descriptor_of_others_is_eperm(env: Env) -> None:
    """A writable descriptor gives no right to change the mode."""
    put_owned("f", ALICE, 0o666)

    def change() -> None:
        with opened("f", os.O_RDWR) as fd:
            refused(errno.EPERM, os.fchmod, fd, 0o600)

    env.as_user(*BOB)(change)


@needs(Need.USERS)
def case_set_group_id_is_cleared_for_strangers_to_the_group(env: Env) -> None:
    """The owner outside the file's group silently loses S_ISGID; S_ISUID is given."""
    put_owned("f", (ALICE.uid, PROJECT_GID), 0o755)
    env.as_user(*ALICE)(os.chmod, "f", 0o6755)
    equal(mode_of("f"), 0o4755, "mode")


@needs(Need.USERS)
def case_set_group_id_is_kept_for_members(env: Env) -> None:
    """A supplementary group is enough."""
    put_owned("f", (ALICE.uid, PROJECT_GID), 0o755)
    env.as_user(*ALICE, (PROJECT_GID,))(os.chmod, "f", 0o2755)
    equal(mode_of("f"), 0o2755, "mode")


@needs(Need.USERS)
def case_set_group_id_of_directory_for_strangers(env: Env) -> None:
    """Linux clears it on directories too."""
    make_directory("d", 0o755, (ALICE.uid, PROJECT_GID))
    env.as_user(*ALICE)(os.chmod, "d", 0o2755)
    equal(mode_of("d"), 0o755, "mode")
    env.as_user(*ALICE, (PROJECT_GID,))(os.chmod, "d", 0o2755)
    equal(mode_of("d"), 0o2755, "mode for a member")


@needs(Need.ROOT)
def case_root_keeps_set_group_id(env: Env) -> None:
    """Root may set it with any group."""
    put_owned("f", (ALICE.uid, PROJECT_GID), 0o755)
    os.chmod("f", 0o6755)
    equal(mode_of("f"), 0o6755, "mode")


@needs(Need.USERS)
def case_sticky_bit_on_a_file_by_a_user(env: Env) -> None:
    """Linux lets the owner set the sticky bit of a file."""
    put_owned("f", ALICE, 0o644)
    env.as_user(*ALICE)(os.chmod, "f", 0o1644)
    equal(mode_of("f"), 0o1644, "mode")


@needs(Need.USERS)
def case_takes_effect_at_once(env: Env) -> None:
    """The next open by a user obeys the new mode, in both directions."""
    put("f", b"x", 0o644)
    alice = env.as_user(*ALICE)
    for _ in range(5):
        equal(alice(get, "f"), b"x", "content")
        os.chmod("f", 0o600)
        alice.refused(errno.EACCES, get, "f")
        os.chmod("f", 0o644)


@needs(Need.USERS)
def case_without_search_permission_is_eacces(env: Env) -> None:
    """An owner who can't reach the file."""
    make_directory("d", 0o700)
    put_owned("d/f", ALICE)
    env.as_user(*ALICE).refused(errno.EACCES, os.chmod, "d/f", 0o600)

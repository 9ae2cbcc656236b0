"""chown(2), lchown(2), fchown(2)."""

from __future__ import annotations

import errno
import os

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


def _owner(name: str) -> tuple[int, int]:
    found = os.lstat(name)
    return found.st_uid, found.st_gid


@needs(Need.ROOT)
def case_root_gives_away(env: Env) -> None:
    """Files, directories, fifos and links, by name."""
    put("f")
    os.mkdir("d")
    os.mkfifo("p")
    os.symlink("f", "l")
    for name in ("f", "d", "p"):
        os.chown(name, *ALICE)
        equal(_owner(name), tuple(ALICE), f"owner of {name}")
    os.lchown("l", *BOB)
    equal((_owner("l"), _owner("f")), (tuple(BOB), tuple(ALICE)), "owners of link and target")


@needs(Need.ROOT)
def case_minus_one_leaves(env: Env) -> None:
    """-1 leaves the uid or the gid."""
    put_owned("f", ALICE)
    os.chown("f", BOB.uid, -1)
    equal(_owner("f"), (BOB.uid, ALICE.gid), "owner")
    os.chown("f", -1, BOB.gid)
    equal(_owner("f"), tuple(BOB), "owner")


@needs(Need.ROOT)
def case_large_ids(env: Env) -> None:
    """Ids use 32 bits."""
    put("f")
    os.chown("f", 2**32 - 3, 2**31 + 5)
    equal(_owner("f"), (2**32 - 3, 2**31 + 5), "owner")


@needs(Need.ROOT)
def case_by_descriptor(env: Env) -> None:
    """fchown on a read-only descriptor."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        os.fchown(fd, *ALICE)
        found = os.fstat(fd)
    equal((found.st_uid, found.st_gid), tuple(ALICE), "owner by fstat")
    equal(_owner("f"), tuple(ALICE), "owner by name")


@needs(Need.ROOT)
def case_follows_links(env: Env) -> None:
    """chown of a link changes the target."""
    put("f")
    os.symlink("f", "l")
    os.chown("l", *ALICE)
    equal((_owner("f"), _owner("l")[0]), (tuple(ALICE), 0), "owners")


@needs(Need.ROOT)
def case_changes_ctime_only(env: Env) -> None:
    """ctime moves, mtime stays."""
    put("f")
    equal(env.changed(lambda: os.chown("f", *ALICE), "f"), ["c"], "times")


@needs(Need.USERS)
def case_of_uid_by_owner_is_eperm(env: Env) -> None:
    """Owners can't give files away, nor take them."""
    put_owned("f", ALICE)
    env.as_user(*ALICE).refused(errno.EPERM, os.chown, "f", BOB.uid, -1)
    env.as_user(*BOB).refused(errno.EPERM, os.chown, "f", BOB.uid, -1)
    equal(_owner("f"), tuple(ALICE), "owner")


@needs(Need.USERS)
def case_to_own_group(env: Env) -> None:
    """The owner may choose any group they are in: the primary, or a supplementary one."""
    put_owned("f", (ALICE.uid, PROJECT_GID))
    env.as_user(*ALICE)(os.chown, "f", -1, ALICE.gid)
    equal(_owner("f"), tuple(ALICE), "owner")
    env.as_user(*ALICE, (PROJECT_GID,))(os.chown, "f", ALICE.uid, PROJECT_GID)
    equal(_owner("f"), (ALICE.uid, PROJECT_GID), "owner")


@needs(Need.USERS)
def case_to_foreign_group_is_eperm(env: Env) -> None:
    """Not a group the owner isn't in."""
    put_owned("f", ALICE)
    env.as_user(*ALICE).refused(errno.EPERM, os.chown, "f", -1, PROJECT_GID)


@needs(Need.USERS)
def case_group_by_member_who_does_not_own_is_eperm(env: Env) -> None:
    """Being in the group isn't enough."""
    put_owned("f", (ALICE.uid, PROJECT_GID), 0o666)
    env.as_user(*BOB, (PROJECT_GID,)).refused(errno.EPERM, os.chown, "f", -1, BOB.gid)


@needs(Need.USERS)
def case_to_the_same_ids_by_owner_works(env: Env) -> None:
    """Setting what is set already is allowed to the owner, who must be in the group for that."""
    put_owned("f", ALICE)
    env.as_user(*ALICE)(os.chown, "f", ALICE.uid, ALICE.gid)


@needs(Need.USERS)
def case_by_user_clears_set_id_bits(env: Env) -> None:
    """The owner changing the group loses S_ISUID and S_ISGID of a file executable by group."""
    put_owned("f", (ALICE.uid, ALICE.gid), 0o6755)
    env.as_user(*ALICE, (PROJECT_GID,))(os.chown, "f", -1, PROJECT_GID)
    equal(mode_of("f"), 0o755, "mode")


@needs(Need.ROOT)
def case_by_root_clears_set_id_bits(env: Env) -> None:
    """Linux clears them for root too, on executable files."""
    put_owned("f", ALICE, 0o6755)
    os.chown("f", *BOB)
    equal(mode_of("f"), 0o755, "mode")


@needs(Need.ROOT)
def case_keeps_set_group_id_without_group_execute(env: Env) -> None:
    """S_ISGID without x for the group isn't a privilege and stays for root."""
    put_owned("f", ALICE, 0o2644)
    os.chown("f", *BOB)
    equal(mode_of("f"), 0o2644, "mode")


@needs(Need.ROOT)
def case_of_directory_keeps_set_group_id(env: Env) -> None:
    """On a directory S_ISGID means inheritance, and stays."""
    make_directory("d", 0o2775)
    os.chown("d", *ALICE)
    equal(mode_of("d"), 0o2775, "mode")


@needs(Need.USERS)
def case_takes_effect_at_once(env: Env) -> None:
    """The next open obeys the new owner."""
    put_owned("f", ALICE, 0o600, b"x")
    equal(env.as_user(*ALICE)(get, "f"), b"x", "content")
    os.chown("f", *BOB)
    env.as_user(*ALICE).refused(errno.EACCES, get, "f")
    equal(env.as_user(*BOB)(get, "f"), b"x", "content")


def case_to_own_ids_works_for_everybody(env: Env) -> None:
    """The owner naming the own uid and gid."""
    put("f")
    os.chown("f", os.geteuid(), os.getegid())
    equal(_owner("f"), (os.geteuid(), os.getegid()), "owner")


@needs(Need.ORDINARY)
def case_giving_away_without_privilege_is_eperm(env: Env) -> None:
    """As the process is."""
    put("f")
    refused(errno.EPERM, os.chown, "f", os.geteuid() + 1, -1)

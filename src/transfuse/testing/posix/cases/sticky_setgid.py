"""Sticky directories (restricted deletion) and set-group-id directories (inheritance)."""

from __future__ import annotations

import errno
import os

from transfuse.testing.posix.calls import RENAME_EXCHANGE, renameat2
from transfuse.testing.posix.env import (
    ALICE,
    BOB,
    PROJECT_GID,
    Env,
    equal,
    make_directory,
    mode_of,
    needs,
    put,
    put_owned,
)
from transfuse.testing.posix.needs import Need

_REFUSALS = (errno.EPERM, errno.EACCES)


def _sticky(owner: tuple[int, int] = (0, 0)) -> None:
    make_directory("t", 0o1777, owner)


@needs(Need.USERS)
def case_sticky_unlink_by_another_is_eperm(env: Env) -> None:
    """Write permission on the directory isn't enough."""
    _sticky()
    put_owned("t/f", ALICE, 0o666)
    env.as_user(*BOB).refused(_REFUSALS, os.unlink, "t/f")


@needs(Need.USERS)
def case_sticky_unlink_by_owner_of_file(env: Env) -> None:
    """The owner of the file may."""
    _sticky()
    put_owned("t/f", ALICE)
    env.as_user(*ALICE)(os.unlink, "t/f")


@needs(Need.USERS)
def case_sticky_unlink_by_owner_of_directory(env: Env) -> None:
    """The owner of the directory may, and root."""
    _sticky(BOB)
    put_owned("t/f", ALICE)
    put_owned("t/g", ALICE)
    env.as_user(*BOB)(os.unlink, "t/f")
    os.unlink("t/g")


@needs(Need.USERS)
def case_sticky_rmdir(env: Env) -> None:
    """The same for sub-directories."""
    _sticky()
    make_directory("t/d", 0o777, ALICE)
    env.as_user(*BOB).refused(_REFUSALS, os.rmdir, "t/d")
    env.as_user(*ALICE)(os.rmdir, "t/d")


@needs(Need.USERS)
def case_sticky_rename_from(env: Env) -> None:
    """Renaming away another's file is refused, within the directory and out of it."""
    _sticky()
    make_directory("open", 0o777)
    put_owned("t/f", ALICE, 0o666)
    bob = env.as_user(*BOB)
    bob.refused(_REFUSALS, os.rename, "t/f", "t/g")
    bob.refused(_REFUSALS, os.rename, "t/f", "open/g")
    env.as_user(*ALICE)(os.rename, "t/f", "open/g")


@needs(Need.USERS)
def case_sticky_rename_over(env: Env) -> None:
    """Replacing another's file is refused, a new name is fine."""
    _sticky()
    put_owned("t/theirs", ALICE, 0o666)
    put_owned("t/mine", BOB, 0o666)
    bob = env.as_user(*BOB)
    bob.refused(_REFUSALS, os.rename, "t/mine", "t/theirs")
    bob(os.rename, "t/mine", "t/new")


@needs(Need.USERS)
def case_sticky_rename_of_directory_over_directory(env: Env) -> None:
    """The same with directories."""
    _sticky()
    make_directory("t/theirs", 0o777, ALICE)
    make_directory("t/mine", 0o777, BOB)
    env.as_user(*BOB).refused(_REFUSALS, os.rename, "t/mine", "t/theirs")


@needs(Need.USERS, Need.RENAME_EXCHANGE)
def case_sticky_exchange(env: Env) -> None:
    """An exchange needs the right on both."""
    _sticky()
    put_owned("t/theirs", ALICE, 0o666)
    put_owned("t/mine", BOB, 0o666)
    env.as_user(*BOB).refused(_REFUSALS, renameat2, "t/mine", "t/theirs", RENAME_EXCHANGE)


@needs(Need.USERS)
def case_sticky_create_and_link_are_free(env: Env) -> None:
    """The bit restricts removal only."""
    _sticky()
    put_owned("t/f", ALICE, 0o666)
    bob = env.as_user(*BOB)
    bob(put, "t/new")
    bob(os.mkdir, "t/d")


@needs(Need.USERS)
def case_sticky_symlink_of_another(env: Env) -> None:
    """The owner of the link counts, not of its target."""
    _sticky()
    put_owned("t/f", BOB)
    os.symlink("f", "t/l")
    os.lchown("t/l", *ALICE)
    env.as_user(*BOB).refused(_REFUSALS, os.unlink, "t/l")
    env.as_user(*ALICE)(os.unlink, "t/l")


@needs(Need.USERS)
def case_setgid_directory_gives_its_group_to_files(env: Env) -> None:
    """A new file has the directory's group, without S_ISGID."""
    make_directory("d", 0o2777, (0, PROJECT_GID))
    env.as_user(*ALICE)(put, "d/f")
    found = os.stat("d/f")
    equal((found.st_uid, found.st_gid, mode_of("d/f")), (ALICE.uid, PROJECT_GID, 0o644), "owner and mode")


@needs(Need.USERS)
def case_setgid_directory_gives_group_and_bit_to_directories(env: Env) -> None:
    """A new directory inherits the group and S_ISGID, and so its own children."""
    make_directory("d", 0o2777, (0, PROJECT_GID))
    alice = env.as_user(*ALICE)
    alice(os.mkdir, "d/e", 0o700)
    alice(os.mkdir, "d/e/f", 0o755)
    alice(put, "d/e/f/g")
    equal(
        [(os.stat(name).st_gid, mode_of(name)) for name in ("d/e", "d/e/f", "d/e/f/g")],
        [(PROJECT_GID, 0o2700), (PROJECT_GID, 0o2755), (PROJECT_GID, 0o644)],
        "groups and modes",
    )


@needs(Need.USERS)
def case_setgid_directory_and_other_types(env: Env) -> None:
    """Links, fifos and hard-created nodes inherit the group too."""
    make_directory("d", 0o2777, (0, PROJECT_GID))
    alice = env.as_user(*ALICE)
    alice(os.symlink, "x", "d/l")
    alice(os.mkfifo, "d/p")
    equal([os.lstat(name).st_gid for name in ("d/l", "d/p")], [PROJECT_GID, PROJECT_GID], "groups")


@needs(Need.USERS)
def case_setgid_file_in_setgid_directory_by_stranger(env: Env) -> None:
    """Asking for S_ISGID with x for a group one isn't in: the bit is dropped; a member keeps it."""
    make_directory("d", 0o2777, (0, PROJECT_GID))

    def create(name: str) -> None:
        os.umask(0)
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o2775))

    env.as_user(*ALICE)(create, "d/stranger")
    env.as_user(*ALICE, (PROJECT_GID,))(create, "d/member")
    equal((mode_of("d/stranger"), mode_of("d/member")), (0o775, 0o2775), "modes")


@needs(Need.ROOT)
def case_setgid_directory_for_root(env: Env) -> None:
    """Root's files get the group as well."""
    make_directory("d", 0o2755, (0, PROJECT_GID))
    put("d/f")
    os.mkdir("d/e")
    equal(
        (os.stat("d/f").st_gid, os.stat("d/e").st_gid, mode_of("d/e") & 0o2000),
        (PROJECT_GID, PROJECT_GID, 0o2000),
        "groups and bit",
    )


@needs(Need.USERS)
def case_plain_directory_gives_the_creators_group(env: Env) -> None:
    """Without S_ISGID the effective gid counts."""
    make_directory("d", 0o777, (0, PROJECT_GID))
    env.as_user(*ALICE)(put, "d/f")
    equal(os.stat("d/f").st_gid, ALICE.gid, "group")


@needs(Need.USERS)
def case_rename_into_setgid_directory_keeps_the_group(env: Env) -> None:
    """Inheritance is for new inodes."""
    make_directory("d", 0o2777, (0, PROJECT_GID))
    put_owned("f", ALICE)
    os.rename("f", "d/f")
    equal(os.stat("d/f").st_gid, ALICE.gid, "group")

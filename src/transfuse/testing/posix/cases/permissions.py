"""Who may do what: classes of users, groups, access(2), directories."""

from __future__ import annotations

import errno
import os

from transfuse.testing.posix import calls
from transfuse.testing.posix.env import (
    ALICE,
    BOB,
    CAROL,
    PROJECT_GID,
    Env,
    equal,
    get,
    make_directory,
    needs,
    put,
    put_owned,
    refused,
    try_open,
)
from transfuse.testing.posix.needs import Need


def _rights(name: str) -> str:
    text = ""
    for letter, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY)):
        try:
            try_open(name, flags)
            text += letter
        except PermissionError:
            continue
    return text


@needs(Need.USERS)
def case_first_matching_class_decides(env: Env) -> None:
    """The owner gets the owner's bits even if others have more; the same for the group."""
    put_owned("owner-none", ALICE, 0o066)
    put_owned("group-none", (BOB.uid, ALICE.gid), 0o606)
    put_owned("other-none", BOB, 0o660)
    alice = env.as_user(*ALICE)
    equal([alice(_rights, name) for name in ("owner-none", "group-none", "other-none")], ["", "", ""], "rights")
    equal(env.as_user(*CAROL)(_rights, "owner-none"), "rw", "rights of others")


@needs(Need.USERS)
def case_group_bits(env: Env) -> None:
    """Primary and supplementary groups count alike."""
    put_owned("f", (0, PROJECT_GID), 0o640)
    equal(env.as_user(*ALICE)(_rights, "f"), "", "rights of a stranger")
    equal(env.as_user(*ALICE, (PROJECT_GID,))(_rights, "f"), "r", "rights of a supplementary member")
    equal(env.as_user(ALICE.uid, PROJECT_GID)(_rights, "f"), "r", "rights of a primary member")


@needs(Need.USERS)
def case_many_supplementary_groups(env: Env) -> None:
    """The last of 300 groups counts too."""
    put_owned("f", (0, 70_299), 0o060)
    equal(env.as_user(*ALICE, tuple(range(70_000, 70_300)))(_rights, "f"), "rw", "rights")


@needs(Need.ROOT)
def case_root_reads_and_writes_everything(env: Env) -> None:
    """CAP_DAC_OVERRIDE."""
    put_owned("f", ALICE, 0o000, b"x")
    equal(_rights("f"), "rw", "rights")
    make_directory("d", 0o000, ALICE)
    put("d/f")
    equal(os.listdir("d"), ["f"], "names")


@needs(Need.USERS)
def case_access_uses_the_real_ids(env: Env) -> None:
    """access(2) answers for the real user, open for the effective."""
    put_owned("f", ALICE, 0o600)

    def ask() -> bool:
        os.setresuid(BOB.uid, ALICE.uid, -1)
        try_open("f", os.O_RDWR)
        return os.access("f", os.R_OK)

    child = env.spawn(lambda _other: ask())
    equal(child.result(), False, "access for the real user")


@needs(Need.USERS)
def case_access_answers(env: Env) -> None:
    """R_OK, W_OK, X_OK for owner, group and others; F_OK needs nothing."""
    put_owned("f", (ALICE.uid, BOB.gid), 0o751)

    def answers() -> str:
        pairs = (("r", os.R_OK), ("w", os.W_OK), ("x", os.X_OK), ("e", os.F_OK))
        return "".join(letter for letter, mode in pairs if os.access("f", mode))

    equal([env.as_user(*user)(answers) for user in (ALICE, BOB, CAROL)], ["rwxe", "rxe", "xe"], "answers")


@needs(Need.USERS)
def case_access_refuses_with_eacces(env: Env) -> None:
    """The errno of a refusal."""
    put("f", mode=0o640)
    env.as_user(*ALICE).refused(errno.EACCES, calls.access, "f", os.R_OK)


@needs(Need.ROOT)
def case_root_executes_only_what_is_executable(env: Env) -> None:
    """X_OK for root needs one x bit on a file, none on a directory."""
    put("f", mode=0o666)
    make_directory("d", 0o000)
    equal((os.access("f", os.X_OK), os.access("d", os.X_OK)), (False, True), "access")
    os.chmod("f", 0o001)
    equal(os.access("f", os.X_OK), True, "access with one x bit")


@needs(Need.USERS)
def case_write_without_search_on_directory(env: Env) -> None:
    """A directory with rw but no x: names are listed, nothing can be made, removed or reached."""
    make_directory("d", 0o766)
    put("d/f", mode=0o666)
    alice = env.as_user(*ALICE)
    equal(alice(os.listdir, "d"), ["f"], "names")
    alice.refused(errno.EACCES, os.unlink, "d/f")
    alice.refused(errno.EACCES, put, "d/g")
    alice.refused(errno.EACCES, get, "d/f")


@needs(Need.USERS)
def case_drop_box(env: Env) -> None:
    """A directory with wx but no r: files go in and are found by name, but not listed."""
    make_directory("d", 0o733)
    alice = env.as_user(*ALICE)
    alice(put, "d/f", b"x")
    equal(alice(get, "d/f"), b"x", "content")
    alice.refused(errno.EACCES, os.listdir, "d")


@needs(Need.USERS)
def case_stat_needs_no_permission_on_the_file(env: Env) -> None:
    """Only the way to it."""
    put("f", b"x", 0o000)
    equal(env.as_user(*ALICE)(lambda: os.stat("f").st_size), 1, "size")


@needs(Need.USERS)
def case_chdir_needs_search(env: Env) -> None:
    """chdir needs x, not r."""
    make_directory("r", 0o744)
    make_directory("x", 0o711)
    alice = env.as_user(*ALICE)
    alice.refused(errno.EACCES, os.chdir, "r")
    alice(os.chdir, "x")


@needs(Need.USERS)
def case_permission_lost_on_the_way(env: Env) -> None:
    """When a directory above closes, names known before are out of reach at once."""
    os.makedirs("a/b")
    put("a/b/f", b"x", 0o644)
    alice = env.as_user(*ALICE)
    for _ in range(5):
        equal(alice(get, "a/b/f"), b"x", "content")
        os.chmod("a", 0o700)
        alice.refused(errno.EACCES, get, "a/b/f")
        os.chmod("a", 0o755)


@needs(Need.USERS)
def case_missing_is_enoent_before_eacces(env: Env) -> None:
    """In a readable, unwritable directory a missing name is ENOENT for reading and EACCES for creating."""
    make_directory("d", 0o755)
    alice = env.as_user(*ALICE)
    alice.refused(errno.ENOENT, try_open, "d/missing", os.O_RDONLY)
    alice.refused(errno.EACCES, try_open, "d/missing", os.O_WRONLY | os.O_CREAT)
    alice.refused(errno.ENOENT, os.unlink, "d/missing")


@needs(Need.USERS)
def case_existing_is_eexist_before_eacces(env: Env) -> None:
    """mkdir over an existing name in an unwritable directory is EEXIST on Linux."""
    os.makedirs("d/e")
    env.as_user(*ALICE).refused((errno.EEXIST, errno.EACCES), os.mkdir, "d/e")


@needs(Need.USERS)
def case_two_users_in_turn(env: Env) -> None:
    """What one user was allowed says nothing about another: no answer is shared between them."""
    put_owned("f", ALICE, 0o600, b"x")
    make_directory("d", 0o700, ALICE)
    put_owned("d/g", ALICE, 0o666, b"y")
    alice, bob = env.as_user(*ALICE), env.as_user(*BOB)
    for _ in range(3):
        equal((alice(get, "f"), alice(get, "d/g")), (b"x", b"y"), "what Alice reads")
        bob.refused(errno.EACCES, get, "f")
        bob.refused(errno.EACCES, get, "d/g")


@needs(Need.ORDINARY)
def case_own_bits_bind_the_owner(env: Env) -> None:
    """As an ordinary process: one's own 0000 file is closed until chmod."""
    put("f", b"x", 0o000)
    refused(errno.EACCES, get, "f")
    os.chmod("f", 0o400)
    equal(get("f"), b"x", "content")
    refused(errno.EACCES, put, "f", b"y")


@needs(Need.ORDINARY)
def case_own_directory_without_search(env: Env) -> None:
    """As an ordinary process: one's own directory without x or w."""
    os.mkdir("d")
    put("d/f")
    os.chmod("d", 0o600)
    refused(errno.EACCES, os.stat, "d/f")
    os.chmod("d", 0o500)
    refused(errno.EACCES, os.unlink, "d/f")
    refused(errno.EACCES, os.mkdir, "d/e")
    os.chmod("d", 0o700)
    os.unlink("d/f")

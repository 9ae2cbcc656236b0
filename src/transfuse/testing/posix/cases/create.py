"""open(2) with O_CREAT: new files, their owner, mode and times."""

from __future__ import annotations

import errno
import os
import stat

from transfuse.testing.posix.env import (
    ALICE,
    BOB,
    PROJECT_GID,
    Env,
    check,
    equal,
    get,
    make_directory,
    mode_of,
    needs,
    opened,
    put,
    refused,
    try_open,
)
from transfuse.testing.posix.needs import Need

_NEW = os.O_CREAT | os.O_RDWR


def case_new_file_is_empty_and_regular(env: Env) -> None:
    """A created file is regular, empty, with one link."""
    try_open("f", _NEW)
    found = os.stat("f")
    equal((stat.S_ISREG(found.st_mode), found.st_size, found.st_nlink), (True, 0, 1), "regular, size, links")


def case_mode_is_masked(env: Env) -> None:
    """The mode is the wanted one without the bits of the umask."""
    for mask in (0o000, 0o022, 0o027, 0o077, 0o151):
        os.umask(mask)
        try_open(f"f{mask}", _NEW, 0o777)
        equal(mode_of(f"f{mask}"), 0o777 & ~mask, f"mode under umask {mask:o}")


def case_each_mode_bit_is_kept(env: Env) -> None:
    """Each permission bit alone survives creation."""
    os.umask(0)
    for bit in range(9):
        try_open(f"f{bit}", os.O_CREAT | os.O_WRONLY, 1 << bit)
        equal(mode_of(f"f{bit}"), 1 << bit, "mode")


def case_set_id_and_sticky_bits_at_creation(env: Env) -> None:
    """suid and sgid asked for at creation are given (the group is ours)."""
    os.umask(0)
    try_open("f", _NEW, 0o6755)
    equal(mode_of("f"), 0o6755, "mode")


def case_mode_zero_still_gives_a_writable_descriptor(env: Env) -> None:
    """The mode binds later opens, not the creating one."""
    with opened("f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o000) as fd:
        equal(os.write(fd, b"abc"), 3, "bytes written")
        equal(os.pread(fd, 3, 0), b"abc", "content")


@needs(Need.USERS)
def case_read_only_mode_gives_a_writable_descriptor_to_a_user(env: Env) -> None:
    """As a user who could not open the file a second time (git makes its objects so)."""
    os.chmod(".", 0o777)

    def create() -> None:
        with opened("f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444) as fd:
            os.write(fd, b"abc")
        refused(errno.EACCES, try_open, "f", os.O_WRONLY)

    env.as_user(*ALICE)(create)
    equal(get("f"), b"abc", "content")


def case_excl_of_existing_is_eexist(env: Env) -> None:
    """O_EXCL fails on a file, a directory, a dangling link."""
    put("f")
    os.mkdir("d")
    os.symlink("nowhere", "l")
    for name in ("f", "d", "l"):
        refused(errno.EEXIST, try_open, name, _NEW | os.O_EXCL)
    check(not os.path.lexists("nowhere"), "O_EXCL created the target of a dangling link")


def case_create_through_dangling_link(env: Env) -> None:
    """Without O_EXCL the target of a dangling link is created."""
    os.symlink("target", "l")
    try_open("l", _NEW)
    check(stat.S_ISREG(os.lstat("target").st_mode), "the target is not a file")
    check(os.path.islink("l"), "the link is gone")


def case_creat_of_existing_keeps_it(env: Env) -> None:
    """O_CREAT on an existing file changes neither content nor mode."""
    put("f", b"data", 0o640)
    try_open("f", _NEW, 0o777)
    equal((get("f"), mode_of("f")), (b"data", 0o640), "content, mode")


def case_create_updates_parent_times(env: Env) -> None:
    """A new name moves mtime and ctime of the directory."""
    os.mkdir("d")
    equal(env.changed(lambda: try_open("d/f", _NEW), "d"), ["mc"], "times")


def case_creat_of_existing_leaves_parent_times(env: Env) -> None:
    """No new name, no new times."""
    os.mkdir("d")
    put("d/f")
    equal(env.changed(lambda: try_open("d/f", _NEW), "d", "d/f"), ["", ""], "times")


def case_failed_excl_leaves_parent_times(env: Env) -> None:
    """An EEXIST changes nothing."""
    os.mkdir("d")
    put("d/f")
    equal(env.changed(lambda: refused(errno.EEXIST, try_open, "d/f", _NEW | os.O_EXCL), "d", "d/f"), ["", ""], "times")


def case_three_times_of_a_new_file_agree(env: Env) -> None:
    """atime, mtime and ctime of a new file are about the same and not before the directory's old ctime."""
    before = os.stat(".").st_ctime_ns
    try_open("f", _NEW)
    found = os.stat("f")
    times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    check(min(times) >= before, "a time lies before the creation")
    check(max(times) - min(times) < 2 * 10**9, f"the times differ: {times}")


def case_trailing_slash_is_eisdir(env: Env) -> None:
    """open("new/", O_CREAT) is EISDIR and makes nothing."""
    refused(errno.EISDIR, try_open, "new/", _NEW)
    check(not os.path.lexists("new"), "a file was made")


def case_trailing_slash_on_file_is_enotdir(env: Env) -> None:
    """open("file/") is ENOTDIR."""
    put("f")
    refused(errno.ENOTDIR, try_open, "f/", os.O_RDONLY)


def case_creat_with_o_directory_is_refused(env: Env) -> None:
    """O_CREAT | O_DIRECTORY is EINVAL since Linux 6.4 and makes nothing."""
    refused((errno.EINVAL, errno.ENOTDIR, errno.EISDIR), try_open, "new", os.O_CREAT | os.O_DIRECTORY)


@needs(Need.USERS)
def case_owner_is_the_creator(env: Env) -> None:
    """uid and gid are those of the calling process."""
    os.chmod(".", 0o777)
    env.as_user(*ALICE)(try_open, "f", _NEW)
    found = os.stat("f")
    equal((found.st_uid, found.st_gid), tuple(ALICE), "owner")


@needs(Need.USERS)
def case_owner_of_new_file_may_use_it(env: Env) -> None:
    """The creator reads and writes a 0600 file again, others don't."""
    os.chmod(".", 0o777)
    env.as_user(*ALICE)(put, "f", b"mine", 0o600)
    equal(env.as_user(*ALICE)(get, "f"), b"mine", "content")
    env.as_user(*BOB).refused(errno.EACCES, get, "f")


@needs(Need.USERS)
def case_in_directory_writable_by_group(env: Env) -> None:
    """A member of the directory's group by supplementary group may create, with their own gid."""
    make_directory("d", 0o770, (0, PROJECT_GID))
    env.as_user(*ALICE, (PROJECT_GID,))(try_open, "d/f", _NEW)
    equal(os.stat("d/f").st_gid, ALICE.gid, "group of the new file")
    env.as_user(*BOB).refused(errno.EACCES, try_open, "d/g", _NEW)


@needs(Need.USERS)
def case_existing_file_needs_no_write_permission_on_directory(env: Env) -> None:
    """O_CREAT on an existing, writable file works in a read-only directory."""
    make_directory("d", 0o755)
    put("d/f", mode=0o666)
    os.chmod("d", 0o555)
    env.as_user(*ALICE)(try_open, "d/f", _NEW)


def case_many_files(env: Env) -> None:
    """1,000 files are all there, each with its content."""
    for index in range(1000):
        put(f"file-{index}", b"%d" % index)
    equal(len(os.listdir(".")), 1000, "names")
    for index in range(0, 1000, 37):
        equal(get(f"file-{index}"), b"%d" % index, "content")


def case_racing_excl_has_one_winner(env: Env) -> None:
    """Of four processes creating the same name with O_EXCL, 50 times, each time exactly one wins."""

    def compete() -> list[int]:
        won = []
        for index in range(50):
            try:
                try_open(f"f{index}", _NEW | os.O_EXCL)
                won.append(index)
            except FileExistsError:
                continue
        return won

    children = [env.spawn(lambda _other: compete()) for _ in range(4)]
    winners = [child.result() for child in children]
    total = sorted(index for won in winners if isinstance(won, list) for index in won)
    equal(total, list(range(50)), "names won")

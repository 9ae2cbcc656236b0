"""mkdir(2)."""

from __future__ import annotations

import errno
import os
import stat

from transfuse.testing.posix.env import ALICE, Env, check, equal, mode_of, needs, put, refused
from transfuse.testing.posix.needs import Need


def case_existing_name_is_eexist(env: Env) -> None:
    """mkdir over anything is EEXIST: file, directory, link (also dangling), fifo."""
    put("f")
    os.mkdir("d")
    os.symlink("d", "l")
    os.symlink("nowhere", "dangling")
    for name in ("f", "d", "l", "dangling", ".", "..", "/"):
        refused(errno.EEXIST, os.mkdir, name)


def case_mode_is_masked(env: Env) -> None:
    """The umask is taken away from the wanted mode."""
    for mask in (0o000, 0o022, 0o077, 0o351):
        os.umask(mask)
        os.mkdir(f"d{mask}", 0o777)
        equal(mode_of(f"d{mask}"), 0o777 & ~mask, f"mode under umask {mask:o}")


def case_sticky_bit_is_kept(env: Env) -> None:
    """Linux keeps the sticky bit asked for at creation."""
    os.umask(0)
    os.mkdir("d", 0o1777)
    equal(mode_of("d"), 0o1777, "mode")


def case_set_id_bits_are_dropped(env: Env) -> None:
    """mkdir takes only the permission bits and the sticky bit."""
    os.umask(0)
    os.mkdir("d", 0o6755)
    equal(mode_of("d"), 0o755, "mode")


def case_updates_parent_times(env: Env) -> None:
    """mtime and ctime of the parent move."""
    os.mkdir("p")
    equal(env.changed(lambda: os.mkdir("p/d"), "p"), ["mc"], "times")


@needs(Need.DIRECTORY_NLINK)
def case_raises_link_count_of_parent(env: Env) -> None:
    """A new directory has two links and gives its parent one."""
    os.mkdir("p")
    equal(os.stat("p").st_nlink, 2, "links of an empty directory")
    os.mkdir("p/d")
    os.mkdir("p/e")
    equal(os.stat("p").st_nlink, 4, "links of a directory with two")
    equal(os.stat("p/d").st_nlink, 2, "links of the new one")


def case_file_does_not_raise_link_count(env: Env) -> None:
    """Files don't count."""
    os.mkdir("p")
    before = os.stat("p").st_nlink
    put("p/f")
    equal(os.stat("p").st_nlink, before, "links")


def case_new_directory_is_empty(env: Env) -> None:
    """Only '.' and '..' are in it."""
    os.mkdir("d")
    equal(os.listdir("d"), [], "names")
    check(stat.S_ISDIR(os.lstat("d").st_mode), "not a directory")


def case_dot_and_dotdot_name_the_right_inodes(env: Env) -> None:
    """stat of d/. is d, of d/.. its parent."""
    os.mkdir("d")
    equal(os.stat("d/.").st_ino, os.stat("d").st_ino, "inode of d/.")
    equal(os.stat("d/..").st_ino, os.stat(".").st_ino, "inode of d/..")


def case_trailing_slash_works(env: Env) -> None:
    """mkdir("d/") makes d."""
    os.mkdir("d/")
    check(os.path.isdir("d"), "no directory")


def case_trailing_dot_is_enoent(env: Env) -> None:
    """mkdir("new/.") is ENOENT."""
    refused(errno.ENOENT, os.mkdir, "new/.")


def case_in_removed_directory_is_enoent(env: Env) -> None:
    """A working directory that was removed takes no new names."""
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    refused(errno.ENOENT, os.mkdir, "e")
    refused(errno.ENOENT, put, "f")


@needs(Need.USERS)
def case_owner_is_the_creator(env: Env) -> None:
    """uid and gid of the caller."""
    os.chmod(".", 0o777)
    env.as_user(*ALICE)(os.mkdir, "d", 0o700)
    found = os.stat("d")
    equal((found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)), (*ALICE, 0o700), "owner and mode")
    env.as_user(*ALICE)(put, "d/f")


def case_deep_tree(env: Env) -> None:
    """200 levels down and up again."""
    start = os.stat(".").st_ino
    for level in range(200):
        os.mkdir(f"level-{level}")
        os.chdir(f"level-{level}")
    put("bottom", b"here")
    equal(os.listdir("."), ["bottom"], "names at the bottom")
    os.unlink("bottom")
    for level in reversed(range(200)):
        os.chdir("..")
        os.rmdir(f"level-{level}")
    equal(os.stat(".").st_ino, start, "inode of the start")


def case_getcwd_follows_renames(env: Env) -> None:
    """The working directory's name is the new one after a rename of its parent."""
    os.makedirs("a/b")
    os.chdir("a/b")
    os.rename("../../a", "../../c")
    check(os.getcwd().endswith("/c/b"), f"getcwd is {os.getcwd()}")

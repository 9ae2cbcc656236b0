"""unlink(2)."""

from __future__ import annotations

import errno
import os

from transfuse.testing.posix.env import ALICE, Env, check, equal, get, make_directory, needs, put, put_owned, refused
from transfuse.testing.posix.needs import Need


def case_directory_is_eisdir(env: Env) -> None:
    """Linux says EISDIR, POSIX allows EPERM."""
    os.mkdir("d")
    refused((errno.EISDIR, errno.EPERM), os.unlink, "d")
    check(os.path.isdir("d"), "the directory is gone")


def case_removes_the_link_not_the_target(env: Env) -> None:
    """unlink of a symbolic link leaves its target."""
    put("f", b"x")
    os.symlink("f", "l")
    os.unlink("l")
    equal(get("f"), b"x", "content of the target")
    check(not os.path.lexists("l"), "the link is still there")


def case_updates_parent_times(env: Env) -> None:
    """mtime and ctime of the parent move."""
    os.mkdir("p")
    put("p/f")
    equal(env.changed(lambda: os.unlink("p/f"), "p"), ["mc"], "times")


@needs(Need.HARD_LINK)
def case_updates_ctime_of_remaining_link(env: Env) -> None:
    """The other name's inode gets a new ctime and one link less."""
    put("f")
    os.link("f", "g")
    equal(env.changed(lambda: os.unlink("g"), "f"), ["c"], "times")
    equal(os.stat("f").st_nlink, 1, "links")


@needs(Need.HARD_LINK)
def case_last_link_keeps_data(env: Env) -> None:
    """Data live as long as one name does."""
    put("a", b"data")
    os.link("a", "b")
    os.link("a", "c")
    os.unlink("a")
    os.unlink("c")
    equal(get("b"), b"data", "content")


def case_name_is_free_again(env: Env) -> None:
    """A new file of the same name is a new file."""
    put("f", b"old content", 0o600)
    os.unlink("f")
    refused(errno.ENOENT, os.stat, "f")
    put("f", b"new", 0o644)
    equal(get("f"), b"new", "content")
    equal(os.stat("f").st_mode & 0o777, 0o644, "mode")


def case_trailing_slash_is_enotdir(env: Env) -> None:
    """unlink("f/") is ENOTDIR."""
    put("f")
    refused(errno.ENOTDIR, os.unlink, "f/")
    check(os.path.exists("f"), "the file is gone")


def case_special_files(env: Env) -> None:
    """A fifo is removed like a file."""
    os.mkfifo("p")
    os.unlink("p")
    equal(os.listdir("."), [], "names")


@needs(Need.USERS)
def case_needs_write_permission_on_parent(env: Env) -> None:
    """Owning the file is not enough."""
    make_directory("p", 0o755)
    put_owned("p/f", ALICE, 0o666)
    env.as_user(*ALICE).refused(errno.EACCES, os.unlink, "p/f")


@needs(Need.USERS)
def case_needs_no_permission_on_the_file(env: Env) -> None:
    """A writable directory is enough, whatever the mode of the file."""
    make_directory("p", 0o777)
    put_owned("p/f", (0, 0), 0o000)
    env.as_user(*ALICE)(os.unlink, "p/f")
    equal(os.listdir("p"), [], "names")


def case_create_unlink_cycle(env: Env) -> None:
    """500 times the same name; each time the file is new."""
    for index in range(500):
        put("f", b"%d" % index)
        equal(os.stat("f").st_size, len(b"%d" % index), "size")
        os.unlink("f")
    refused(errno.ENOENT, os.unlink, "f")

"""rmdir(2)."""

from __future__ import annotations

import errno
import os

from transfuse.testing.posix.env import ALICE, Env, Other, check, equal, make_directory, needs, opened, put, refused
from transfuse.testing.posix.needs import Need


def case_non_empty_is_enotempty(env: Env) -> None:
    """A directory with anything in it stays."""
    os.makedirs("d/sub")
    os.mkdir("e")
    put("e/f")
    os.mkdir("g")
    os.symlink("nowhere", "g/l")
    for name in ("d", "e", "g"):
        refused((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, name)


def case_file_is_enotdir(env: Env) -> None:
    """rmdir of a file or a link is ENOTDIR."""
    put("f")
    os.mkdir("d")
    os.symlink("d", "l")
    refused(errno.ENOTDIR, os.rmdir, "f")
    refused(errno.ENOTDIR, os.rmdir, "l")
    check(os.path.isdir("d"), "the target of the link is gone")


def case_dot_is_einval(env: Env) -> None:
    """rmdir("d/.") is EINVAL, rmdir("d/..") ENOTEMPTY."""
    os.mkdir("d")
    refused(errno.EINVAL, os.rmdir, "d/.")
    refused((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, "d/..")


def case_updates_parent_times(env: Env) -> None:
    """mtime and ctime of the parent move."""
    os.makedirs("p/d")
    equal(env.changed(lambda: os.rmdir("p/d"), "p"), ["mc"], "times")


def case_failed_leaves_times(env: Env) -> None:
    """ENOTEMPTY changes no time."""
    os.makedirs("p/d/e")
    equal(env.changed(lambda: refused((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, "p/d"), "p", "p/d"), ["", ""], "times")


@needs(Need.DIRECTORY_NLINK)
def case_lowers_link_count_of_parent(env: Env) -> None:
    """The parent loses a link."""
    os.makedirs("p/d")
    equal(os.stat("p").st_nlink, 3, "links before")
    os.rmdir("p/d")
    equal(os.stat("p").st_nlink, 2, "links after")


def case_name_is_free_again(env: Env) -> None:
    """The name can be taken by a file, and by a new directory."""
    os.mkdir("x")
    os.rmdir("x")
    put("x", b"file")
    os.unlink("x")
    os.mkdir("x")
    equal(os.listdir("x"), [], "names")


def case_open_directory_can_be_removed(env: Env) -> None:
    """A descriptor keeps the directory: no links, listing it is empty or ENOENT, creating is ENOENT."""
    os.mkdir("d")
    with opened("d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir("d")
        equal(os.fstat(fd).st_nlink, 0, "links of the removed directory")
        try:
            equal(os.listdir(fd), [], "names of the removed directory")
        except FileNotFoundError:
            pass
        refused(errno.ENOENT, os.mkdir, "new", dir_fd=fd)


def case_emptied_directory_can_be_removed(env: Env) -> None:
    """After 100 names came and went."""
    os.mkdir("d")
    for index in range(100):
        put(f"d/{index}")
    for index in range(100):
        os.unlink(f"d/{index}")
    os.rmdir("d")
    refused(errno.ENOENT, os.stat, "d")


@needs(Need.USERS)
def case_needs_write_permission_on_parent(env: Env) -> None:
    """Owning the directory is not enough."""
    make_directory("p", 0o755)
    make_directory("p/d", 0o777, ALICE)
    env.as_user(*ALICE).refused(errno.EACCES, os.rmdir, "p/d")


@needs(Need.USERS)
def case_needs_no_permission_on_itself(env: Env) -> None:
    """The mode of the directory and its owner don't matter."""
    make_directory("p", 0o777)
    make_directory("p/d", 0o000)
    env.as_user(*ALICE)(os.rmdir, "p/d")
    equal(os.listdir("p"), [], "names")


def case_root_of_working_directory(env: Env) -> None:
    """A directory that is somebody's working directory can be removed; '.' there is then ENOENT to create in."""

    def inside(other: Other) -> list[str]:
        os.chdir("d")
        other.ready()
        other.wait()
        refused(errno.ENOENT, put, "f")
        return os.listdir(".")

    os.mkdir("d")
    child = env.spawn(inside)
    child.wait_ready()
    os.rmdir("d")
    child.go()
    try:
        equal(child.result(), [], "names seen from inside")
    except FileNotFoundError:
        pass

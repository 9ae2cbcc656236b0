"""link(2), linkat(2): hard links."""

from __future__ import annotations

import errno
import os

from transfuse.testing.posix.calls import AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, linkat
from transfuse.testing.posix.env import (
    ALICE,
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
)
from transfuse.testing.posix.needs import Need


@needs(Need.HARD_LINK)
def case_shares_the_inode(env: Env) -> None:
    """Both names have the same inode and count 2."""
    put("a", b"x")
    os.link("a", "b")
    first, second = os.stat("a"), os.stat("b")
    equal((first.st_ino, first.st_dev, first.st_nlink), (second.st_ino, second.st_dev, 2), "inode, device, links")


@needs(Need.HARD_LINK)
def case_changes_are_seen_through_both_names(env: Env) -> None:
    """Content, mode and size."""
    put("a", b"x")
    os.link("a", "b")
    equal(os.stat("b").st_size, 1, "size before")
    put("b", b"longer", 0o600)
    equal((get("a"), mode_of("a"), os.stat("a").st_size), (b"longer", 0o600, 6), "content, mode, size")


@needs(Need.HARD_LINK)
def case_existing_target_is_eexist(env: Env) -> None:
    """Any existing name, the same file included."""
    put("a")
    put("b")
    os.mkdir("d")
    os.symlink("nowhere", "l")
    for name in ("a", "b", "d", "l"):
        refused(errno.EEXIST, os.link, "a", name)


@needs(Need.HARD_LINK)
def case_directory_is_eperm(env: Env) -> None:
    """Directories have no hard links."""
    os.mkdir("d")
    refused(errno.EPERM, os.link, "d", "e")


@needs(Need.HARD_LINK)
def case_link_to_symlink(env: Env) -> None:
    """link(2) on Linux links the symbolic link itself."""
    os.symlink("nowhere", "l")
    linkat("l", "m")
    equal((os.readlink("m"), os.lstat("l").st_nlink), ("nowhere", 2), "target and links")


@needs(Need.HARD_LINK)
def case_follow_links_the_target(env: Env) -> None:
    """AT_SYMLINK_FOLLOW links what the symbolic link points to."""
    put("f", b"x")
    os.symlink("f", "l")
    linkat("l", "g", AT_SYMLINK_FOLLOW)
    equal(os.lstat("g").st_ino, os.stat("f").st_ino, "inode")


@needs(Need.HARD_LINK, Need.ROOT)
def case_by_descriptor(env: Env) -> None:
    """AT_EMPTY_PATH links an open file (with CAP_DAC_READ_SEARCH)."""
    put("f", b"x")
    with opened("f", os.O_RDONLY) as fd:
        linkat("", "g", AT_EMPTY_PATH, old_dirfd=fd)
    equal((get("g"), os.stat("f").st_nlink), (b"x", 2), "content and links")


@needs(Need.HARD_LINK)
def case_unlinked_file_cannot_come_back(env: Env) -> None:
    """A file whose last name is gone gets no new one by /proc: ENOENT."""
    put("f", b"x")
    with opened("f", os.O_RDONLY) as fd:
        os.unlink("f")
        refused(errno.ENOENT, linkat, f"/proc/self/fd/{fd}", "g", AT_SYMLINK_FOLLOW)


@needs(Need.HARD_LINK)
def case_updates_times(env: Env) -> None:
    """ctime of the inode; mtime and ctime of the directory that got the name."""
    os.mkdir("p")
    put("f")
    equal(env.changed(lambda: os.link("f", "p/g"), "f", "p"), ["c", "mc"], "times")


@needs(Need.HARD_LINK)
def case_failed_leaves_times(env: Env) -> None:
    """EEXIST changes nothing."""
    os.mkdir("p")
    put("p/f")
    put("p/g")
    equal(env.changed(lambda: refused(errno.EEXIST, os.link, "p/f", "p/g"), "p/f", "p"), ["", ""], "times")


@needs(Need.HARD_LINK)
def case_special_files(env: Env) -> None:
    """A fifo can have two names."""
    os.mkfifo("p")
    os.link("p", "q")
    equal(os.lstat("q").st_nlink, 2, "links")


@needs(Need.HARD_LINK)
def case_500_links(env: Env) -> None:
    """A file with 500 names counts them, up and down."""
    put("f", b"x")
    for index in range(499):
        os.link("f", f"link-{index}")
    equal(os.stat("link-498").st_nlink, 500, "links")
    for index in range(499):
        os.unlink(f"link-{index}")
    equal(os.stat("f").st_nlink, 1, "links at the end")


@needs(Need.HARD_LINK)
def case_rename_of_one_name_keeps_the_other(env: Env) -> None:
    """Names are independent."""
    put("a", b"x")
    os.link("a", "b")
    os.rename("a", "c")
    equal(
        (sorted(os.listdir(".")), os.stat("b").st_ino, os.stat("b").st_nlink),
        (["b", "c"], os.stat("c").st_ino, 2),
        "names, inode, links",
    )


@needs(Need.HARD_LINK)
def case_across_directories(env: Env) -> None:
    """A link into a sub-directory, found again under '..'."""
    os.mkdir("d")
    put("f", b"x")
    os.link("f", "d/g")
    os.chdir("d")
    equal(os.stat("g").st_ino, os.stat("../f").st_ino, "inode")


@needs(Need.HARD_LINK)
def case_trailing_slash_is_refused(env: Env) -> None:
    """A file has no trailing slash: ENOTDIR from, ENOENT to."""
    put("f")
    refused(errno.ENOTDIR, os.link, "f/", "g")
    refused((errno.ENOENT, errno.ENOTDIR), os.link, "f", "g/")


@needs(Need.HARD_LINK, Need.USERS)
def case_needs_write_permission_on_target_directory(env: Env) -> None:
    """EACCES, even for the owner of the file."""
    put("f", mode=0o666)
    os.chown("f", *ALICE)
    make_directory("d", 0o755)
    env.as_user(*ALICE).refused(errno.EACCES, os.link, "f", "d/g")


@needs(Need.HARD_LINK)
def case_two_devices_is_exdev(env: Env) -> None:
    """A link to another filesystem is EXDEV."""
    put("f")
    refused((errno.EXDEV, errno.EPERM), os.link, "/proc/self/status", "g")
    check(not os.path.lexists("g"), "a link was made")


def case_rename_to_another_device_is_exdev(env: Env) -> None:
    """A rename to another filesystem is EXDEV."""
    put("f")
    refused(errno.EXDEV, os.rename, "f", "/proc/transfuse-posix")
    check(os.path.exists("f"), "the file is gone")

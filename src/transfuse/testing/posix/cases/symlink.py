"""symlink(2) and readlink(2)."""

from __future__ import annotations

import errno
import os
import stat

from transfuse.testing.posix.env import ALICE, Env, check, equal, get, make_directory, needs, put, refused
from transfuse.testing.posix.needs import Need


def case_target_is_kept_as_it_is(env: Env) -> None:
    """Any bytes but NUL come back, and need not exist."""
    for index, target in enumerate(
        (b"x", b"/", b"../..", b"a//b/./c", b"\xff\xfe", b" space ", b"new\nline", b"t" * 1000)
    ):
        os.symlink(target, b"l%d" % index)
        equal(os.readlink(b"l%d" % index), target, "target")


def case_size_is_length_of_target(env: Env) -> None:
    """lstat's size is the number of bytes."""
    for length in (1, 59, 60, 61, 255, 1000, 4000):
        os.symlink("t" * length, f"l{length}")
        equal(os.lstat(f"l{length}").st_size, length, "size")
        equal(len(os.readlink(f"l{length}")), length, "length of the target")


def case_longest_target(env: Env) -> None:
    """4,095 bytes work on a filesystem that has them; 4,096 are ENAMETOOLONG."""
    refused(errno.ENAMETOOLONG, os.symlink, "t" * 4096, "l")
    os.symlink("t" * 4095, "l")
    equal(len(os.readlink("l")), 4095, "length")


def case_empty_target_is_enoent(env: Env) -> None:
    """An empty target is ENOENT."""
    refused(errno.ENOENT, os.symlink, "", "l")


def case_existing_name_is_eexist(env: Env) -> None:
    """symlink over anything is EEXIST."""
    put("f")
    os.mkdir("d")
    os.symlink("nowhere", "l")
    for name in ("f", "d", "l"):
        refused(errno.EEXIST, os.symlink, "target", name)


def case_readlink_of_others_is_einval(env: Env) -> None:
    """Only links can be read."""
    put("f")
    os.mkdir("d")
    refused(errno.EINVAL, os.readlink, "f")
    refused(errno.EINVAL, os.readlink, "d")


def case_is_followed(env: Env) -> None:
    """open, stat and chdir go to the target, relative to the link's directory."""
    os.makedirs("d/e")
    put("d/f", b"x")
    os.symlink("../f", "d/e/l")
    os.symlink("d/e", "way")
    equal(get("way/l"), b"x", "content through two links")
    equal(os.stat("way/l").st_ino, os.stat("d/f").st_ino, "inode")


def case_absolute_target(env: Env) -> None:
    """An absolute target starts at the root of the caller."""
    os.symlink("/proc/self/status", "l")
    check(get("l").startswith(b"Name:"), "the target was not read")


def case_dangling_is_enoent(env: Env) -> None:
    """Opening or statting a dangling link is ENOENT, lstat works."""
    os.symlink("nowhere", "l")
    refused(errno.ENOENT, os.stat, "l")
    refused(errno.ENOENT, get, "l")
    check(stat.S_ISLNK(os.lstat("l").st_mode), "not a link")


def case_chain_of_40_works_and_41_is_eloop(env: Env) -> None:
    """Linux follows 40 links in one path."""
    put("l0", b"end")
    for index in range(1, 42):
        os.symlink(f"l{index - 1}", f"l{index}")
    equal(get("l40"), b"end", "content through 40 links")
    refused(errno.ELOOP, os.stat, "l41")


def case_mode_is_0777(env: Env) -> None:
    """A link has all permission bits, whatever the umask."""
    os.umask(0o077)
    os.symlink("x", "l")
    equal(stat.S_IMODE(os.lstat("l").st_mode), 0o777, "mode")


def case_updates_parent_times(env: Env) -> None:
    """mtime and ctime of the directory move."""
    os.mkdir("p")
    equal(env.changed(lambda: os.symlink("x", "p/l"), "p"), ["mc"], "times")


def case_reading_leaves_mtime_and_ctime(env: Env) -> None:
    """readlink changes at most atime."""
    os.symlink("x", "l")
    equal(env.changed(lambda: os.readlink("l"), "l"), [""], "times")


def case_own_times_can_be_set(env: Env) -> None:
    """utimensat with AT_SYMLINK_NOFOLLOW sets the link's times, not the target's."""
    put("f")
    os.symlink("f", "l")
    before = os.stat("f").st_mtime_ns
    os.utime("l", ns=(10**18, 2 * 10**18), follow_symlinks=False)
    equal((os.lstat("l").st_mtime_ns, os.stat("f").st_mtime_ns), (2 * 10**18, before), "mtime of link and target")


def case_slash_after_link_to_file_is_enotdir(env: Env) -> None:
    """ "link/" must be a directory."""
    put("f")
    os.mkdir("d")
    os.symlink("f", "l")
    os.symlink("d", "m")
    refused(errno.ENOTDIR, os.stat, "l/")
    check(stat.S_ISDIR(os.lstat("m/").st_mode), "lstat of link/ is not the directory")


def case_unlink_and_new_target(env: Env) -> None:
    """A link made again under the same name has the new target at once."""
    for index in range(100):
        os.symlink(f"target-{index}", "l")
        equal(os.readlink("l"), f"target-{index}", "target")
        os.unlink("l")


def case_replaced_by_rename(env: Env) -> None:
    """The way ln -sfn works: the new link replaces the old in one step."""
    os.symlink("old", "current")
    equal(os.readlink("current"), "old", "target before")
    os.symlink("new", "tmp")
    os.rename("tmp", "current")
    equal(os.readlink("current"), "new", "target after")


@needs(Need.USERS)
def case_owner_is_the_creator(env: Env) -> None:
    """uid and gid of the caller, and lchown by root changes the link only."""
    os.chmod(".", 0o777)
    env.as_user(*ALICE)(os.symlink, "f", "l")
    put("f")
    found = os.lstat("l")
    equal((found.st_uid, found.st_gid), tuple(ALICE), "owner")
    os.lchown("l", 7, 8)
    equal((os.lstat("l").st_uid, os.stat("f").st_uid), (7, os.geteuid()), "owner of link and target")


@needs(Need.USERS)
def case_permissions_of_the_way_count(env: Env) -> None:
    """A link doesn't lead around a closed directory."""
    make_directory("closed", 0o700)
    put("closed/f", mode=0o666)
    os.symlink("closed/f", "l")
    env.as_user(*ALICE).refused(errno.EACCES, get, "l")

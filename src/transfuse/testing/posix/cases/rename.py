"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from transfuse.testing.posix.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2
from transfuse.testing.posix.env import (
    ALICE,
    Env,
    check,
    equal,
    get,
    make_directory,
    needs,
    opened,
    put,
    put_owned,
    read_all,
    refused,
)
from transfuse.testing.posix.needs import Need

_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


def _inode(name: str) -> int:
    return os.lstat(name).st_ino


def case_file_keeps_inode_and_content(env: Env) -> None:
    """The same inode has the new name, and no more the old."""
    put("a", b"data")
    ino = _inode("a")
    os.rename("a", "b")
    equal((_inode("b"), get("b"), os.listdir(".")), (ino, b"data", ["b"]), "inode, content, names")


def case_to_another_directory(env: Env) -> None:
    """A file moves between directories."""
    os.mkdir("p")
    os.mkdir("q")
    put("p/f", b"x")
    os.rename("p/f", "q/g")
    equal((os.listdir("p"), os.listdir("q"), get("q/g")), ([], ["g"], b"x"), "names and content")


def case_over_existing_file(env: Env) -> None:
    """The target is replaced."""
    put("a", b"new")
    put("b", b"old")
    os.rename("a", "b")
    equal((os.listdir("."), get("b")), (["b"], b"new"), "names and content")


def case_over_open_file_keeps_its_data(env: Env) -> None:
    """Whoever has the replaced file open keeps it, with no link left."""
    put("a", b"new")
    put("b", b"old")
    with opened("b", os.O_RDONLY) as fd:
        os.rename("a", "b")
        equal((read_all(fd), os.fstat(fd).st_nlink), (b"old", 0), "content and links of the replaced file")


def case_open_file_follows(env: Env) -> None:
    """A descriptor goes on with its file under the new name."""
    put("a", b"1")
    with opened("a", os.O_WRONLY | os.O_APPEND) as fd:
        os.rename("a", "b")
        os.write(fd, b"2")
    equal(get("b"), b"12", "content")


@needs(Need.HARD_LINK)
def case_over_other_link_of_same_file_does_nothing(env: Env) -> None:
    """POSIX: both names stay."""
    put("a", b"x")
    os.link("a", "b")
    os.rename("a", "b")
    equal((sorted(os.listdir(".")), os.stat("a").st_nlink), (["a", "b"], 2), "names and links")


def case_onto_itself_does_nothing(env: Env) -> None:
    """rename(x, x) succeeds for a file and a directory."""
    put("a", b"x")
    os.mkdir("d")
    os.rename("a", "a")
    os.rename("d", "d")
    equal((sorted(os.listdir(".")), get("a")), (["a", "d"], b"x"), "names and content")


@needs(Need.HARD_LINK)
def case_over_file_with_other_links(env: Env) -> None:
    """The replaced inode loses one link and gets a new ctime."""
    put("a")
    put("b")
    os.link("b", "c")
    equal(env.changed(lambda: os.rename("a", "b"), "c"), ["c"], "times of the replaced inode")
    equal(os.stat("c").st_nlink, 1, "links")


def case_file_over_directory_is_eisdir(env: Env) -> None:
    """A file doesn't replace a directory."""
    put("f")
    os.mkdir("d")
    refused(errno.EISDIR, os.rename, "f", "d")


def case_directory_over_file_is_enotdir(env: Env) -> None:
    """A directory doesn't replace a file, a link or a fifo."""
    os.mkdir("d")
    put("f")
    os.symlink("d", "l")
    os.mkfifo("p")
    for name in ("f", "l", "p"):
        refused(errno.ENOTDIR, os.rename, "d", name)


def case_directory_over_empty_directory(env: Env) -> None:
    """An empty directory is replaced."""
    os.makedirs("a/sub")
    os.mkdir("b")
    ino = _inode("a")
    os.rename("a", "b")
    equal((os.listdir("."), os.listdir("b"), _inode("b")), (["b"], ["sub"], ino), "names and inode")


def case_directory_over_non_empty_is_enotempty(env: Env) -> None:
    """A directory with something in it stays."""
    os.mkdir("a")
    os.makedirs("b/sub")
    refused(_NOT_EMPTY, os.rename, "a", "b")


def case_directory_into_itself_is_einval(env: Env) -> None:
    """A directory can't become its own descendant."""
    os.makedirs("d/e/f")
    refused(errno.EINVAL, os.rename, "d", "d/x")
    refused(errno.EINVAL, os.rename, "d", "d/e/f/x")
    refused(errno.EINVAL, os.rename, "d", "d/e")


def case_directory_over_its_ancestor_is_enotempty(env: Env) -> None:
    """An ancestor is never empty."""
    os.makedirs("d/e/f")
    refused(_NOT_EMPTY, os.rename, "d/e/f", "d/e")
    refused(_NOT_EMPTY, os.rename, "d/e/f", "d")


def case_dot_is_ebusy(env: Env) -> None:
    """'.' and '..' can't be renamed (EBUSY on Linux, POSIX also allows EINVAL)."""
    os.mkdir("d")
    for name in ("d/.", "d/.."):
        refused((errno.EBUSY, errno.EINVAL), os.rename, name, "x")
        refused((errno.EBUSY, errno.EINVAL, errno.EEXIST, errno.ENOTEMPTY), os.rename, "d", name)


def case_symlink_itself_moves(env: Env) -> None:
    """rename doesn't follow the link, neither as source nor as target."""
    put("f", b"target")
    os.symlink("f", "l")
    os.rename("l", "m")
    equal(os.readlink("m"), "f", "target of the moved link")
    put("g", b"g")
    os.rename("g", "m")
    check(stat.S_ISREG(os.lstat("m").st_mode), "the link was followed")
    equal(get("f"), b"target", "content of the old target")


def case_every_type_over_every_file_type(env: Env) -> None:
    """File, link and fifo replace each other."""
    makers: dict[str, Callable[[str], None]] = {
        "file": put,
        "link": lambda name: os.symlink("to", name),
        "fifo": os.mkfifo,
    }
    for old, make_old in makers.items():
        for new, make_new in makers.items():
            make_old("a")
            make_new("b")
            ino = _inode("a")
            os.rename("a", "b")
            equal(_inode("b"), ino, f"inode after {old} over {new}")
            refused(errno.ENOENT, os.lstat, "a")
            os.unlink("b")


def case_trailing_slash_on_file_is_enotdir(env: Env) -> None:
    """A file has no trailing slash, on either side."""
    put("f")
    refused(errno.ENOTDIR, os.rename, "f/", "g")
    refused(errno.ENOTDIR, os.rename, "f", "g/")


def case_trailing_slash_on_directory_works(env: Env) -> None:
    """A directory may have one on both sides."""
    os.mkdir("d")
    os.rename("d/", "e/")
    equal(os.listdir("."), ["e"], "names")


def case_updates_times(env: Env) -> None:
    """Both parents get mtime and ctime, the moved inode ctime at most."""
    os.mkdir("p")
    os.mkdir("q")
    put("p/f")
    before = os.stat("p/f")
    equal(env.changed(lambda: os.rename("p/f", "q/f"), "p", "q"), ["mc", "mc"], "times of the parents")
    after = os.stat("q/f")
    equal(after.st_mtime_ns, before.st_mtime_ns, "mtime of the file")
    check(after.st_ctime_ns > before.st_ctime_ns, "ctime of the file did not move")


def case_updates_times_in_one_directory(env: Env) -> None:
    """A rename within a directory moves its times."""
    os.mkdir("p")
    put("p/f")
    equal(env.changed(lambda: os.rename("p/f", "p/g"), "p"), ["mc"], "times")


@needs(Need.DIRECTORY_NLINK)
def case_directory_moves_link_counts(env: Env) -> None:
    """'..' of the moved directory counts at the new parent."""
    os.makedirs("p/d")
    os.mkdir("q")
    os.rename("p/d", "q/d")
    equal((os.stat("p").st_nlink, os.stat("q").st_nlink), (2, 3), "links of the parents")
    equal(os.stat("q/d/..").st_ino, os.stat("q").st_ino, "inode of ..")


@needs(Need.DIRECTORY_NLINK)
def case_directory_over_directory_lowers_link_count(env: Env) -> None:
    """The replaced directory takes its '..' with it."""
    os.makedirs("p/d")
    os.makedirs("p/e")
    os.rename("p/d", "p/e")
    equal(os.stat("p").st_nlink, 3, "links of the parent")


def case_subtree_is_reached_under_the_new_name(env: Env) -> None:
    """Deep names work at once under the new path, and not under the old."""
    os.makedirs("a/b/c")
    put("a/b/c/f", b"deep")
    equal(os.stat("a/b/c/f").st_size, 4, "size before")
    os.rename("a", "z")
    equal(get("z/b/c/f"), b"deep", "content")
    refused(errno.ENOENT, os.stat, "a/b/c/f")


def case_failed_leaves_everything(env: Env) -> None:
    """A refused rename changes neither names nor times."""
    os.makedirs("p/d/e")
    put("p/f")
    equal(env.changed(lambda: refused(errno.EISDIR, os.rename, "p/f", "p/d"), "p", "p/f", "p/d"), ["", "", ""], "times")


@needs(Need.RENAME_NOREPLACE)
def case_noreplace_of_existing_is_eexist(env: Env) -> None:
    """RENAME_NOREPLACE never replaces, not even an empty directory or a dangling link."""
    put("a", b"a")
    put("b", b"b")
    os.mkdir("d")
    os.symlink("nowhere", "l")
    for name in ("b", "d", "l"):
        refused(errno.EEXIST, renameat2, "a", name, RENAME_NOREPLACE)
    renameat2("a", "new", RENAME_NOREPLACE)
    equal((get("new"), get("b")), (b"a", b"b"), "contents")


@needs(Need.RENAME_EXCHANGE)
def case_exchange_files(env: Env) -> None:
    """Two files change names."""
    put("a", b"a")
    put("b", b"b")
    inodes = (_inode("a"), _inode("b"))
    renameat2("a", "b", RENAME_EXCHANGE)
    equal((get("a"), get("b")), (b"b", b"a"), "contents")
    equal((_inode("b"), _inode("a")), inodes, "inodes")


@needs(Need.RENAME_EXCHANGE)
def case_exchange_file_and_directory(env: Env) -> None:
    """Different types may be exchanged, between directories, non-empty or not."""
    os.makedirs("p/d/sub")
    os.mkdir("q")
    put("q/f", b"file")
    renameat2("p/d", "q/f", RENAME_EXCHANGE)
    equal((get("p/d"), os.listdir("q/f")), (b"file", ["sub"]), "contents")
    equal(os.stat("q/f/..").st_ino, _inode("q"), "inode of ..")


@needs(Need.RENAME_EXCHANGE, Need.DIRECTORY_NLINK)
def case_exchange_moves_link_counts(env: Env) -> None:
    """A directory exchanged with a file takes its '..' along."""
    os.makedirs("p/d")
    os.mkdir("q")
    put("q/f")
    renameat2("p/d", "q/f", RENAME_EXCHANGE)
    equal((os.stat("p").st_nlink, os.stat("q").st_nlink), (2, 3), "links")


@needs(Need.RENAME_EXCHANGE)
def case_exchange_with_missing_is_enoent(env: Env) -> None:
    """Both must exist."""
    put("a")
    refused(errno.ENOENT, renameat2, "a", "missing", RENAME_EXCHANGE)
    refused(errno.ENOENT, renameat2, "missing", "a", RENAME_EXCHANGE)


@needs(Need.RENAME_EXCHANGE)
def case_exchange_with_own_descendant_is_einval(env: Env) -> None:
    """A directory can't change places with what is in it."""
    os.makedirs("d/e")
    refused(errno.EINVAL, renameat2, "d", "d/e", RENAME_EXCHANGE)
    refused(errno.EINVAL, renameat2, "d/e", "d", RENAME_EXCHANGE)


@needs(Need.RENAME_EXCHANGE)
def case_exchange_updates_times(env: Env) -> None:
    """ctime of both inodes, mtime and ctime of both parents."""
    os.mkdir("p")
    os.mkdir("q")
    put("p/a")
    put("q/b")
    old = {name: os.stat(name).st_ctime_ns for name in ("p/a", "q/b")}
    equal(env.changed(lambda: renameat2("p/a", "q/b", RENAME_EXCHANGE), "p", "q"), ["mc", "mc"], "times of parents")
    check(os.stat("q/b").st_ctime_ns > old["p/a"] and os.stat("p/a").st_ctime_ns > old["q/b"], "ctime did not move")


@needs(Need.RENAME_EXCHANGE)
def case_noreplace_with_exchange_is_einval(env: Env) -> None:
    """The flags exclude each other; unknown flags are EINVAL."""
    put("a")
    put("b")
    refused(errno.EINVAL, renameat2, "a", "b", RENAME_NOREPLACE | RENAME_EXCHANGE)
    refused(errno.EINVAL, renameat2, "a", "b", 1 << 10)


@needs(Need.RENAME_WHITEOUT, Need.ROOT)
def case_whiteout_leaves_a_device(env: Env) -> None:
    """RENAME_WHITEOUT leaves a character device 0:0 at the old name."""
    put("a", b"x")
    renameat2("a", "b", RENAME_WHITEOUT)
    left = os.lstat("a")
    equal((stat.S_ISCHR(left.st_mode), left.st_rdev, get("b")), (True, 0, b"x"), "what is left, and the content")


@needs(Need.USERS)
def case_needs_write_permission_on_both_parents(env: Env) -> None:
    """EACCES if one of the two directories isn't writable."""
    make_directory("mine", 0o777)
    make_directory("theirs", 0o755)
    put_owned("mine/f", ALICE)
    put_owned("theirs/g", ALICE)
    alice = env.as_user(*ALICE)
    alice.refused(errno.EACCES, os.rename, "mine/f", "theirs/f")
    alice.refused(errno.EACCES, os.rename, "theirs/g", "mine/g")
    alice.refused(errno.EACCES, os.rename, "theirs/g", "theirs/h")
    alice(os.rename, "mine/f", "mine/h")


@needs(Need.USERS)
def case_directory_to_another_parent_needs_write_on_itself(env: Env) -> None:
    """'..' changes, so the directory itself must be writable (Linux); within its parent it need not."""
    make_directory("p", 0o777)
    make_directory("q", 0o777)
    make_directory("p/d", 0o755)
    alice = env.as_user(*ALICE)
    alice.refused(errno.EACCES, os.rename, "p/d", "q/d")
    alice(os.rename, "p/d", "p/e")


def case_chain_of_replacements(env: Env) -> None:
    """Write to a temporary name and rename over, 300 times: readers never miss the file and see whole contents."""

    def watch(other: object) -> int:
        del other
        seen = 0
        while True:
            content = get("f")
            check(len(content) == 1000 and len(set(content)) == 1, f"a mixed content of {len(content)} bytes")
            seen += 1
            if content[0] == ord("z"):
                return seen

    put("f", b"a" * 1000)
    child = env.spawn(watch)
    for index in range(300):
        put("new", bytes([ord("a") + index % 20]) * 1000)
        os.rename("new", "f")
    put("new", b"z" * 1000)
    os.rename("new", "f")
    child.result()

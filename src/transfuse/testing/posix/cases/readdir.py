"""Listing directories: getdents64, positions, types, listing while changing."""

from __future__ import annotations

import errno
import os
import socket
import stat

from transfuse.testing.posix.calls import DirectoryEntry, getdents
from transfuse.testing.posix.env import ALICE, Env, check, equal, make_directory, needs, opened, put, refused
from transfuse.testing.posix.needs import Need


def _all_entries(fd: int, size_bytes: int = 32768) -> list[DirectoryEntry]:
    entries: list[DirectoryEntry] = []
    while part := getdents(fd, size_bytes):
        entries += part
    return entries


def _names(fd: int, size_bytes: int = 32768) -> list[bytes]:
    return [entry.name for entry in _all_entries(fd, size_bytes)]


def _fill(count: int, directory: str = ".") -> list[bytes]:
    for index in range(count):
        put(f"{directory}/name-{index:05}")
    return [b"name-%05d" % index for index in range(count)]


def case_dot_and_dotdot_are_listed(env: Env) -> None:
    """Both are there once, with the right inode numbers and types."""
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        entries = {entry.name: entry for entry in _all_entries(fd)}
    equal(sorted(entries), [b".", b".."], "names")
    equal(entries[b"."].ino, os.stat("d").st_ino, "inode of .")
    equal(entries[b".."].ino, os.stat(".").st_ino, "inode of ..")


def case_inode_numbers_agree_with_stat(env: Env) -> None:
    """d_ino is st_ino for every type."""
    put("f")
    os.mkdir("d")
    os.symlink("f", "l")
    os.mkfifo("p")
    with opened(".", os.O_RDONLY) as fd:
        for entry in _all_entries(fd):
            if entry.name not in (b".", b".."):
                equal(entry.ino, os.lstat(entry.name).st_ino, f"inode of {entry.name!r}")


def case_types_agree_with_stat(env: Env) -> None:
    """d_type is the file type (or unknown, which POSIX allows, but then for all)."""
    put("f")
    os.mkdir("d")
    os.symlink("f", "l")
    os.mkfifo("p")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
    with opened(".", os.O_RDONLY) as fd:
        for entry in _all_entries(fd):
            if entry.type:
                equal(entry.type, stat.S_IFMT(os.lstat(entry.name).st_mode) >> 12, f"type of {entry.name!r}")


@needs(Need.DEVICE, Need.ROOT)
def case_types_of_devices(env: Env) -> None:
    """Character and block devices too."""
    os.mknod("c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod("b", stat.S_IFBLK | 0o600, os.makedev(7, 99))
    with opened(".", os.O_RDONLY) as fd:
        found = {entry.name: entry.type for entry in _all_entries(fd)}
    check(found[b"c"] in (0, 2) and found[b"b"] in (0, 6), f"types: {found}")


def case_3000_names(env: Env) -> None:
    """Every name exactly once."""
    wanted = _fill(3000)
    equal(sorted(os.listdir(b".")), wanted, "names")


def case_small_buffers(env: Env) -> None:
    """A reader with a buffer for one or two entries gets the same names, once each."""
    wanted = _fill(200)
    with opened(".", os.O_RDONLY) as fd:
        equal(sorted(_names(fd, 64)), [b".", b"..", *wanted], "names")


def case_buffer_too_small_is_einval(env: Env) -> None:
    """A buffer that takes no entry is EINVAL."""
    put("a-name-that-does-not-fit-into-a-few-bytes")
    with opened(".", os.O_RDONLY) as fd:
        refused(errno.EINVAL, _names, fd, 24)


def case_delete_while_listing(env: Env) -> None:
    """3,000 names, each removed as it is read: all are met, none twice, the directory is empty (rm -r)."""
    _fill(3000)
    met = []
    with os.scandir(".") as entries:
        for entry in entries:
            os.unlink(entry.name)
            met.append(entry.name)
    equal((len(met), len(set(met))), (3000, 3000), "names met, different names")
    equal(os.listdir("."), [], "names left")


def case_create_while_listing(env: Env) -> None:
    """Names made meanwhile may or may not appear; the old ones all do, and the listing ends."""
    wanted = set(_fill(500))
    seen: list[bytes] = []
    with opened(".", os.O_RDONLY) as fd:
        while part := getdents(fd, 512):
            seen += [entry.name for entry in part]
            if len(seen) < 2000:
                put(f"extra-{len(seen)}")
    check(wanted <= set(seen), f"{len(wanted - set(seen))} names are missing")
    equal(len(seen), len(set(seen)), "names, repeated or not")


def case_rename_while_listing(env: Env) -> None:
    """A file that keeps its name is listed once, though others are renamed meanwhile."""
    _fill(300)
    for index in range(100):
        put(f"moving-{index}")
    seen: list[bytes] = []
    with opened(".", os.O_RDONLY) as fd:
        step = 0
        while part := getdents(fd, 1024):
            seen += [entry.name for entry in part]
            if step < 100:
                os.rename(f"moving-{step}", f"moved-{step}")
            step += 1
    steady = [name for name in seen if name.startswith(b"name-")]
    equal((len(steady), len(set(steady))), (300, 300), "steady names seen, different ones")


def case_renaming_what_is_listed_ends(env: Env) -> None:
    """1,000 files, each renamed away and back as it is met: all are met, and the listing ends."""
    wanted = set(_fill(1000))
    met: list[bytes] = []
    with opened(".", os.O_RDONLY) as fd:
        while part := getdents(fd, 4096):
            met += (names := [entry.name for entry in part if entry.name in wanted])
            check(len(met) <= 2000, f"{len(met)} names listed of 1,000, and no end")
            for name in names:
                os.rename(name, b"aside")
                os.rename(b"aside", name)
    equal(set(met), wanted, "names met")


def case_rewind(env: Env) -> None:
    """lseek to 0 starts again and shows what is new."""
    put("a")
    with opened(".", os.O_RDONLY) as fd:
        equal(sorted(_names(fd)), [b".", b"..", b"a"], "first reading")
        put("b")
        os.unlink("a")
        os.lseek(fd, 0, os.SEEK_SET)
        equal(sorted(_names(fd)), [b".", b"..", b"b"], "second reading")


def case_seek_to_remembered_positions(env: Env) -> None:
    """From each entry's d_off the listing goes on with exactly the entries that followed (telldir, seekdir)."""
    _fill(100)
    with opened(".", os.O_RDONLY) as fd:
        entries = _all_entries(fd, 256)
        for index in (0, 1, 2, 50, 100, 101):
            os.lseek(fd, entries[index].offset, os.SEEK_SET)
            equal(_names(fd, 512), [entry.name for entry in entries[index + 1 :]], f"names after entry {index}")


def case_seek_position_survives_deletions_before_it(env: Env) -> None:
    """Names read before the position are removed; what follows is still complete."""
    _fill(200)
    with opened(".", os.O_RDONLY) as fd:
        first: list[DirectoryEntry] = []
        while len(first) < 100:
            first += getdents(fd, 512)
        position = first[-1].offset
        for entry in first:
            if entry.name.startswith(b"name"):
                os.unlink(entry.name)
        os.lseek(fd, position, os.SEEK_SET)
        rest = _names(fd)
    equal(len(set(rest) | {entry.name for entry in first}), 202, "different names in both parts")
    check(not set(rest) & {entry.name for entry in first}, "a name was listed twice")


def case_two_readers_have_their_own_positions(env: Env) -> None:
    """Two descriptors of one directory don't disturb each other; a dup shares its position."""
    _fill(50)
    with opened(".", os.O_RDONLY) as one, opened(".", os.O_RDONLY) as two:
        getdents(one, 256)
        equal(len(_names(two)), 52, "names from the second")
        copy = os.dup(one)
        rest = len(_names(copy))
        os.close(copy)
        check(0 < rest < 52, f"the dup started at its own position: {rest} names")
        equal(_names(one), [], "names left after the dup")


def case_end_stays_the_end(env: Env) -> None:
    """After the end, getdents gives nothing again and again."""
    put("a")
    with opened(".", os.O_RDONLY) as fd:
        _names(fd)
        equal((getdents(fd), getdents(fd)), ([], []), "after the end")


def case_listing_leaves_mtime_and_ctime(env: Env) -> None:
    """Reading a directory changes at most its atime."""
    os.mkdir("d")
    put("d/f")
    equal(env.changed(lambda: os.listdir("d"), "d"), [""], "times")


@needs(Need.ATIME)
def case_listing_updates_atime(env: Env) -> None:
    """A directory changed since it was last read gets a new atime."""
    os.mkdir("d")
    os.utime("d", ns=(10**18, os.stat("d").st_mtime_ns))
    os.listdir("d")
    check(os.stat("d").st_atime_ns != 10**18, "atime did not move")


def case_long_names(env: Env) -> None:
    """100 names of 255 bytes."""
    wanted = sorted(f"{index:03}" + "n" * 252 for index in range(100))
    for name in wanted:
        put(name)
    equal(sorted(os.listdir(".")), wanted, "names")


def case_of_removed_names_are_gone(env: Env) -> None:
    """A new listing never shows a name removed before it."""
    for index in range(50):
        put(f"f{index}")
        os.listdir(".")
        os.unlink(f"f{index}")
        equal(os.listdir("."), [], "names")


def case_new_names_are_there(env: Env) -> None:
    """A new listing shows a name made before it, also by another process."""
    for index in range(20):
        env.spawn(lambda _other, index=index: put(f"f{index}")).result()  # type: ignore[misc]
        equal(len(os.listdir(".")), index + 1, "number of names")


def case_walk(env: Env) -> None:
    """os.walk over 5 × 5 × 5 directories finds each file."""
    for one in range(5):
        for two in range(5):
            for three in range(5):
                os.makedirs(f"{one}/{two}/{three}")
                put(f"{one}/{two}/{three}/f")
    equal(sum(len(files) for _top, _dirs, files in os.walk(".")), 125, "files")
    equal(sum(len(dirs) for _top, dirs, _files in os.walk(".")), 5 + 25 + 125, "directories")


@needs(Need.USERS)
def case_needs_read_permission(env: Env) -> None:
    """x without r allows access by name but no listing; r without x lists names that can't be statted."""
    make_directory("x-only", 0o711)
    put("x-only/f")
    make_directory("r-only", 0o744)
    put("r-only/f")
    alice = env.as_user(*ALICE)
    alice.refused(errno.EACCES, os.listdir, "x-only")
    equal(alice(os.path.exists, "x-only/f"), True, "a known name under x")
    equal(alice(os.listdir, "r-only"), ["f"], "names under r")
    alice.refused(errno.EACCES, os.stat, "r-only/f")


def case_getdents_of_file_is_enotdir(env: Env) -> None:
    """A file can't be listed."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        refused(errno.ENOTDIR, getdents, fd)

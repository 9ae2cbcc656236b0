"""open(2) with O_TMPFILE, and giving such a file a name."""

from __future__ import annotations

import errno
import os
import stat

from transfuse.testing.posix.calls import link_descriptor
from transfuse.testing.posix.env import (
    ALICE,
    PROJECT_GID,
    Env,
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

_NEW = os.O_TMPFILE | os.O_RDWR


@needs(Need.TMPFILE)
def case_has_no_name(env: Env) -> None:
    """The directory stays empty, the file works, with no links."""
    with opened(".", _NEW, 0o600) as fd:
        os.write(fd, b"data")
        found = os.fstat(fd)
        equal((found.st_nlink, found.st_size, stat.S_IMODE(found.st_mode)), (0, 4, 0o600), "stat")
        equal((os.pread(fd, 10, 0), os.listdir(".")), (b"data", []), "content and names")


@needs(Need.TMPFILE)
def case_gets_a_name(env: Env) -> None:
    """linkat through /proc makes it an ordinary file, complete from the start."""
    with opened(".", _NEW, 0o644) as fd:
        os.write(fd, b"complete")
        link_descriptor(fd, "f")
        equal(os.fstat(fd).st_nlink, 1, "links")
        os.write(fd, b"!")
    equal((get("f"), mode_of("f")), (b"complete!", 0o644), "content and mode")


@needs(Need.TMPFILE)
def case_never_replaces(env: Env) -> None:
    """linkat over an existing name is EEXIST."""
    put("f", b"old")
    with opened(".", _NEW) as fd:
        refused(errno.EEXIST, link_descriptor, fd, "f")
    equal(get("f"), b"old", "content")


@needs(Need.TMPFILE)
def case_several_names(env: Env) -> None:
    """Two links, one unlinked again."""
    with opened(".", _NEW) as fd:
        link_descriptor(fd, "a")
        os.link("a", "b")
        equal(os.fstat(fd).st_nlink, 2, "links")
        os.unlink("a")
        equal(os.stat("b").st_nlink, 1, "links of the other")


@needs(Need.TMPFILE)
def case_excl_forbids_a_name(env: Env) -> None:
    """With O_EXCL it can never get one: ENOENT."""
    with opened(".", _NEW | os.O_EXCL) as fd:
        refused(errno.ENOENT, link_descriptor, fd, "f")


@needs(Need.TMPFILE)
def case_mode_is_masked(env: Env) -> None:
    """The umask counts."""
    os.umask(0o027)
    with opened(".", _NEW, 0o666) as fd:
        equal(stat.S_IMODE(os.fstat(fd).st_mode), 0o640, "mode")


@needs(Need.TMPFILE)
def case_needs_write_access(env: Env) -> None:
    """O_RDONLY | O_TMPFILE is EINVAL, a file as directory ENOTDIR, a missing one ENOENT."""
    put("f")
    refused(errno.EINVAL, try_open, ".", os.O_TMPFILE | os.O_RDONLY)
    refused(errno.ENOTDIR, try_open, "f", _NEW)
    refused(errno.ENOENT, try_open, "missing", _NEW)


@needs(Need.TMPFILE)
def case_leaves_directory_times(env: Env) -> None:
    """No name, no change; with the link they move."""
    os.mkdir("d")
    with opened("d", _NEW) as fd:
        equal(env.changed(lambda: try_open("d", _NEW), "d"), [""], "times")
        equal(env.changed(lambda: link_descriptor(fd, "d/f"), "d"), ["mc"], "times with the link")


@needs(Need.TMPFILE, Need.USERS)
def case_by_user(env: Env) -> None:
    """Owner and group of the caller; an unwritable directory is EACCES; S_ISGID gives the directory's group."""
    make_directory("closed", 0o755)
    make_directory("open", 0o777)
    make_directory("group", 0o2777, (0, PROJECT_GID))
    alice = env.as_user(*ALICE)
    alice.refused(errno.EACCES, try_open, "closed", _NEW)

    def owner(directory: str) -> tuple[int, int]:
        with opened(directory, _NEW, 0o600) as fd:
            link_descriptor(fd, f"{directory}/f")
            found = os.fstat(fd)
        return found.st_uid, found.st_gid

    equal((alice(owner, "open"), alice(owner, "group")), (tuple(ALICE), (ALICE.uid, PROJECT_GID)), "owners")

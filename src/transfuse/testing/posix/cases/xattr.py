"""Extended attributes: setxattr, getxattr, listxattr, removexattr and their sizes."""

from __future__ import annotations

import ctypes
import errno
import os

from transfuse.testing.posix.env import (
    ALICE,
    BOB,
    Env,
    check,
    equal,
    get,
    make_directory,
    needs,
    opened,
    put,
    put_owned,
    refused,
)
from transfuse.testing.posix.needs import Need


@needs(Need.USER_XATTR)
def case_roundtrip(env: Env) -> None:
    """Text, bytes with NUL, an empty value."""
    put("f")
    for name, value in (("user.a", b"text"), ("user.b", b"\0\xff\0"), ("user.empty", b"")):
        os.setxattr("f", name, value)
        equal(os.getxattr("f", name), value, f"value of {name}")
    equal(sorted(n for n in os.listxattr("f") if n.startswith("user.")), ["user.a", "user.b", "user.empty"], "names")


@needs(Need.USER_XATTR)
def case_missing_is_enodata(env: Env) -> None:
    """Reading and removing."""
    put("f")
    refused(errno.ENODATA, os.getxattr, "f", "user.missing")
    refused(errno.ENODATA, os.removexattr, "f", "user.missing")


@needs(Need.USER_XATTR)
def case_create_and_replace(env: Env) -> None:
    """XATTR_CREATE of an existing name is EEXIST, XATTR_REPLACE of a missing one ENODATA."""
    put("f")
    refused(errno.ENODATA, os.setxattr, "f", "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr("f", "user.a", b"1", os.XATTR_CREATE)
    refused(errno.EEXIST, os.setxattr, "f", "user.a", b"2", os.XATTR_CREATE)
    os.setxattr("f", "user.a", b"3", os.XATTR_REPLACE)
    equal(os.getxattr("f", "user.a"), b"3", "value")


@needs(Need.USER_XATTR)
def case_unknown_flags_are_einval(env: Env) -> None:
    """Flags beyond the two."""
    put("f")
    refused(errno.EINVAL, os.setxattr, "f", "user.a", b"1", 8)


@needs(Need.USER_XATTR)
def case_remove(env: Env) -> None:
    """A removed name is gone, the others stay."""
    put("f")
    os.setxattr("f", "user.a", b"1")
    os.setxattr("f", "user.b", b"2")
    os.removexattr("f", "user.a")
    refused(errno.ENODATA, os.getxattr, "f", "user.a")
    equal([name for name in os.listxattr("f") if name.startswith("user.")], ["user.b"], "names")


def _raw(call: str, name: str, attribute: str | None, size: int) -> tuple[int, bytes]:
    """getxattr or listxattr with a buffer of this size; (result or -errno, buffer)."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(max(size, 1))
    function = getattr(libc, call)
    function.restype = ctypes.c_ssize_t
    arguments = [os.fsencode(name)] if attribute is None else [os.fsencode(name), attribute.encode()]
    result = int(function(*arguments, buffer, ctypes.c_size_t(size)))
    return (result if result >= 0 else -ctypes.get_errno()), buffer.raw


@needs(Need.USER_XATTR)
def case_size_query_and_erange(env: Env) -> None:
    """A size of 0 asks, one byte too few is ERANGE, the exact size works; for get and list."""
    put("f")
    os.setxattr("f", "user.a", b"12345")
    equal(_raw("getxattr", "f", "user.a", 0)[0], 5, "size asked for")
    equal(_raw("getxattr", "f", "user.a", 4)[0], -errno.ERANGE, "with 4 bytes")
    equal(_raw("getxattr", "f", "user.a", 5), (5, b"12345"), "with 5 bytes")
    size = _raw("listxattr", "f", None, 0)[0]
    check(size >= 7, f"size of the list is {size}")
    equal(_raw("listxattr", "f", None, size - 1)[0], -errno.ERANGE, "list with one byte too few")
    result, names = _raw("listxattr", "f", None, size)
    equal((result, b"user.a" in names.split(b"\0")), (size, True), "list with the exact size")


@needs(Need.USER_XATTR)
def case_value_sizes(env: Env) -> None:
    """Values up to 3 KiB fit everywhere; 64 KiB or ENOSPC; one byte more is E2BIG."""
    put("f")
    for size in (1, 100, 1000, 3000):
        os.setxattr("f", "user.a", b"v" * size)
        equal(os.getxattr("f", "user.a"), b"v" * size, f"value of {size} bytes")
    try:
        os.setxattr("f", "user.a", b"w" * 65_536)
    except OSError as error:
        check(error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EDQUOT), f"errno {error.errno}")
        equal(os.getxattr("f", "user.a"), b"v" * 3000, "value after the refusal")
    else:
        equal(os.getxattr("f", "user.a"), b"w" * 65_536, "value of 64 KiB")
    refused(errno.E2BIG, os.setxattr, "f", "user.a", b"x" * 65_537)


@needs(Need.USER_XATTR)
def case_name_sizes(env: Env) -> None:
    """255 bytes for the whole name, 256 are ERANGE, an empty one is ERANGE."""
    put("f")
    name = "user." + "n" * 250
    os.setxattr("f", name, b"x")
    equal(os.getxattr("f", name), b"x", "value")
    refused(errno.ERANGE, os.setxattr, "f", name + "n", b"x")
    refused(errno.ERANGE, os.setxattr, "f", "", b"x")


@needs(Need.USER_XATTR)
def case_unknown_namespace_is_eopnotsupp(env: Env) -> None:
    """A name without a known prefix, and "user." alone (EINVAL)."""
    put("f")
    refused(errno.EOPNOTSUPP, os.setxattr, "f", "nonsense.a", b"x")
    refused(errno.EOPNOTSUPP, os.setxattr, "f", "plain", b"x")
    refused((errno.EINVAL, errno.EOPNOTSUPP), os.setxattr, "f", "user.", b"x")


@needs(Need.USER_XATTR)
def case_changes_ctime_only(env: Env) -> None:
    """Setting and removing move ctime, getting and listing nothing."""
    put("f")
    equal(env.changed(lambda: os.setxattr("f", "user.a", b"x"), "f"), ["c"], "times when set")
    equal(env.changed(lambda: (os.getxattr("f", "user.a"), os.listxattr("f")), "f"), [""], "times when read")
    equal(env.changed(lambda: os.removexattr("f", "user.a"), "f"), ["c"], "times when removed")


@needs(Need.USER_XATTR)
def case_on_directories(env: Env) -> None:
    """Directories have them too."""
    os.mkdir("d")
    os.setxattr("d", "user.a", b"x")
    put("d/f")
    equal(
        (os.getxattr("d", "user.a"), [n for n in os.listxattr("d/f") if n.startswith("user.")]),
        (b"x", []),
        "value, and the names of a file below",
    )


@needs(Need.USER_XATTR)
def case_user_names_only_on_files_and_directories(env: Env) -> None:
    """user.* on a link, a fifo is EPERM."""
    os.symlink("x", "l")
    os.mkfifo("p")
    refused(errno.EPERM, os.setxattr, "l", "user.a", b"x", follow_symlinks=False)
    refused(errno.EPERM, os.setxattr, "p", "user.a", b"x")


@needs(Need.USER_XATTR)
def case_follow_links(env: Env) -> None:
    """setxattr goes through a link, lsetxattr doesn't."""
    put("f")
    os.symlink("f", "l")
    os.setxattr("l", "user.a", b"x")
    equal(os.getxattr("f", "user.a"), b"x", "value at the target")
    equal([n for n in os.listxattr("l", follow_symlinks=False) if n.startswith("user.")], [], "names at the link")


@needs(Need.USER_XATTR)
def case_by_descriptor(env: Env) -> None:
    """fsetxattr on a read-only descriptor of one's own file."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        os.setxattr(fd, "user.a", b"x")
        equal((os.getxattr(fd, "user.a"), "user.a" in os.listxattr(fd)), (b"x", True), "value")
    equal(os.getxattr("f", "user.a"), b"x", "value by name")


@needs(Need.USER_XATTR, Need.HARD_LINK)
def case_belong_to_the_inode(env: Env) -> None:
    """Seen by all names, kept over rename and write, gone with the file."""
    put("f")
    os.setxattr("f", "user.a", b"x")
    os.link("f", "g")
    os.rename("f", "h")
    put("h", b"data")
    equal((os.getxattr("g", "user.a"), os.getxattr("h", "user.a")), (b"x", b"x"), "values")
    os.unlink("g")
    os.unlink("h")
    put("h")
    refused(errno.ENODATA, os.getxattr, "h", "user.a")


@needs(Need.USER_XATTR)
def case_many_names(env: Env) -> None:
    """50 names with small values."""
    put("f")
    for index in range(50):
        os.setxattr("f", f"user.name-{index:02}", b"%d" % index)
    found = sorted(name for name in os.listxattr("f") if name.startswith("user."))
    equal(found, [f"user.name-{index:02}" for index in range(50)], "names")
    equal(os.getxattr("f", "user.name-37"), b"37", "value")


@needs(Need.USER_XATTR)
def case_value_replaced_by_shorter_and_longer(env: Env) -> None:
    """A new value leaves nothing of the old."""
    put("f")
    for size in (100, 1, 2000, 0, 50):
        os.setxattr("f", "user.a", b"%c" % (65 + size % 26) * size)
        equal(os.getxattr("f", "user.a"), b"%c" % (65 + size % 26) * size, "value")


@needs(Need.USER_XATTR, Need.USERS)
def case_user_names_obey_the_mode(env: Env) -> None:
    """user.* needs r to read and w to write: EACCES."""
    put_owned("f", ALICE, 0o640)
    os.setxattr("f", "user.a", b"x")
    bob = env.as_user(*BOB)
    bob.refused(errno.EACCES, os.setxattr, "f", "user.a", b"y")
    bob.refused(errno.EACCES, os.getxattr, "f", "user.a")
    env.as_user(*ALICE)(os.setxattr, "f", "user.a", b"z")
    equal(os.getxattr("f", "user.a"), b"z", "value")


@needs(Need.USER_XATTR, Need.USERS)
def case_user_names_in_sticky_directory(env: Env) -> None:
    """On a sticky directory only its owner may set them."""
    make_directory("t", 0o1777)
    env.as_user(*BOB).refused((errno.EPERM, errno.EACCES), os.setxattr, "t", "user.a", b"y")


@needs(Need.TRUSTED_XATTR, Need.ROOT)
def case_trusted_for_root(env: Env) -> None:
    """trusted.* works for root on every type."""
    put("f")
    os.symlink("x", "l")
    for name in ("f", "l"):
        os.setxattr(name, "trusted.a", b"x", follow_symlinks=False)
        equal(os.getxattr(name, "trusted.a", follow_symlinks=False), b"x", "value")
        check("trusted.a" in os.listxattr(name, follow_symlinks=False), "the name isn't listed")


@needs(Need.TRUSTED_XATTR, Need.USERS)
def case_trusted_is_hidden_from_users(env: Env) -> None:
    """Setting is EPERM, getting ENODATA, listing doesn't show it."""
    put_owned("f", ALICE, 0o666)
    os.setxattr("f", "trusted.a", b"x")
    alice = env.as_user(*ALICE)
    alice.refused(errno.EPERM, os.setxattr, "f", "trusted.b", b"x")
    alice.refused(errno.ENODATA, os.getxattr, "f", "trusted.a")
    equal("trusted.a" in alice(os.listxattr, "f"), False, "listed for a user")


@needs(Need.SECURITY_XATTR, Need.USERS)
def case_security_is_readable_but_not_writable_by_users(env: Env) -> None:
    """security.*: anyone reads, only root writes."""
    put_owned("f", ALICE, 0o666)
    os.setxattr("f", "security.test", b"x")
    alice = env.as_user(*ALICE)
    equal(alice(os.getxattr, "f", "security.test"), b"x", "value")
    alice.refused(errno.EPERM, os.setxattr, "f", "security.test", b"y")


@needs(Need.USER_XATTR)
def case_data_and_attributes_are_independent(env: Env) -> None:
    """Writing data doesn't touch attributes and the other way round."""
    put("f", b"data")
    os.setxattr("f", "user.a", b"x")
    os.truncate("f", 2)
    equal((get("f"), os.getxattr("f", "user.a")), (b"da", b"x"), "content and value")


@needs(Need.USER_XATTR)
def case_another_process_sees_changes(env: Env) -> None:
    """Set in one process, read in another, removed in a third."""
    put("f")
    refused(errno.ENODATA, os.getxattr, "f", "user.a")
    env.spawn(lambda _other: os.setxattr("f", "user.a", b"x")).result()
    equal(os.getxattr("f", "user.a"), b"x", "value")
    env.spawn(lambda _other: os.removexattr("f", "user.a")).result()
    refused(errno.ENODATA, os.getxattr, "f", "user.a")

"""POSIX access control lists through their extended attributes (acl(5))."""

from __future__ import annotations

import errno
import os
import struct

from transfuse.testing.posix.env import (
    ALICE,
    BOB,
    CAROL,
    PROJECT_GID,
    Env,
    equal,
    get,
    make_directory,
    mode_of,
    needs,
    put,
    put_owned,
    refused,
    try_open,
)
from transfuse.testing.posix.needs import ACCESS_ACL, DEFAULT_ACL, Need

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_TAGS = {"u": (_USER_OBJ, _USER), "g": (_GROUP_OBJ, _GROUP), "m": (_MASK, _MASK), "o": (_OTHER, _OTHER)}


def _acl(text: str) -> bytes:
    """The binary form of "u::rw u:54321:r g::r m::rw o::-": version 2, then 8-byte entries, little-endian."""
    entries = []
    for part in text.split():
        kind, who, letters = part.split(":")
        bits = 4 * ("r" in letters) + 2 * ("w" in letters) + ("x" in letters)
        tag = _TAGS[kind][1 if who else 0]
        entries.append((tag, int(who) if who else _NOBODY, bits))
    entries.sort()
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, who) for tag, who, bits in entries)


def _text(value: bytes) -> str:
    parts = []
    for tag, bits, who in struct.iter_unpack("<HHI", value[4:]):
        kind = next(letter for letter, tags in _TAGS.items() if tag in tags)
        letters = "".join(letter for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if bits & bit)
        parts.append(f"{kind}:{'' if who == _NOBODY else who}:{letters or '-'}")
    return " ".join(parts)


def _set(name: str, text: str, kind: str = ACCESS_ACL) -> None:
    os.setxattr(name, kind, _acl(text))


def _get(name: str, kind: str = ACCESS_ACL) -> str:
    return _text(os.getxattr(name, kind))


def _rights(name: str) -> str:
    text = ""
    for letter, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY)):
        try:
            try_open(name, flags)
            text += letter
        except PermissionError:
            continue
    return text


@needs(Need.ACL)
def case_roundtrip(env: Env) -> None:
    """A list is read back as it was set, and is listed."""
    put("f")
    text = f"u::rw u:{ALICE.uid}:r u:{BOB.uid}:rw g::r g:{PROJECT_GID}:- m::rw o::-"
    _set("f", text)
    equal((_get("f"), ACCESS_ACL in os.listxattr("f")), (text, True), "list")


@needs(Need.ACL)
def case_mask_is_the_group_bits(env: Env) -> None:
    """The mode shows the mask; chmod changes the mask."""
    put("f", mode=0o600)
    _set("f", f"u::rw u:{ALICE.uid}:rw g::r m::rw o::r")
    equal(mode_of("f"), 0o664, "mode")
    os.chmod("f", 0o640)
    equal(_get("f"), f"u::rw u:{ALICE.uid}:rw g::r m::r o::-", "list after chmod")


@needs(Need.ACL)
def case_list_equal_to_a_mode_is_the_mode(env: Env) -> None:
    """Three entries only set the mode; nothing is kept."""
    put("f", mode=0o600)
    _set("f", "u::rw g::r o::r")
    equal(mode_of("f"), 0o644, "mode")
    refused(errno.ENODATA, os.getxattr, "f", ACCESS_ACL)


@needs(Need.ACL, Need.USERS)
def case_named_user(env: Env) -> None:
    """A named user gets their entry, not more and not less."""
    put("f", mode=0o600)
    _set("f", f"u::rw u:{ALICE.uid}:r u:{BOB.uid}:- g::rw m::rw o::rw")
    equal([env.as_user(*user)(_rights, "f") for user in (ALICE, BOB, CAROL)], ["r", "", "rw"], "rights")


@needs(Need.ACL, Need.USERS)
def case_named_group(env: Env) -> None:
    """A supplementary group named in the list."""
    put("f", mode=0o600)
    _set("f", f"u::rw g::- g:{PROJECT_GID}:rw m::rw o::-")
    equal((env.as_user(*ALICE, (PROJECT_GID,))(_rights, "f"), env.as_user(*ALICE)(_rights, "f")), ("rw", ""), "rights")


@needs(Need.ACL, Need.USERS)
def case_mask_limits(env: Env) -> None:
    """The mask cuts named users and groups, not the owner and others."""
    put_owned("f", CAROL, 0o600)
    _set("f", f"u::rw u:{ALICE.uid}:rw g::rw m::r o::rw")
    equal([env.as_user(*user)(_rights, "f") for user in (ALICE, BOB, CAROL)], ["r", "rw", "rw"], "rights")


@needs(Need.ACL)
def case_invalid_lists_are_einval(env: Env) -> None:
    """No owner entry, a named entry without a mask, wrong version, wrong length."""
    put("f")
    for text in ("g::r o::r", f"u::rw u:{ALICE.uid}:r g::r o::r"):
        refused(errno.EINVAL, _set, "f", text)
    refused((errno.EINVAL, errno.EOPNOTSUPP), os.setxattr, "f", ACCESS_ACL, struct.pack("<I", 9) + _acl("u::rw")[4:])
    refused(errno.EINVAL, os.setxattr, "f", ACCESS_ACL, _acl("u::rw g::r o::r")[:-1])


@needs(Need.ACL)
def case_remove(env: Env) -> None:
    """Removing the list leaves the mode it showed."""
    put("f", mode=0o600)
    _set("f", f"u::rw u:{ALICE.uid}:r g::r m::r o::-")
    os.removexattr("f", ACCESS_ACL)
    refused(errno.ENODATA, os.getxattr, "f", ACCESS_ACL)
    equal(mode_of("f"), 0o640, "mode")


@needs(Need.ACL, Need.USERS)
def case_only_the_owner_sets(env: Env) -> None:
    """Another user with w gets EPERM, the owner may."""
    put_owned("f", ALICE, 0o666)
    env.as_user(*BOB).refused(errno.EPERM, _set, "f", f"u::rw u:{BOB.uid}:rw g::r m::rw o::r")
    env.as_user(*ALICE)(_set, "f", f"u::rw u:{BOB.uid}:rw g::r m::rw o::r")
    equal(_get("f"), f"u::rw u:{BOB.uid}:rw g::r m::rw o::r", "list")


@needs(Need.ACL, Need.USERS)
def case_setting_clears_set_group_id_for_strangers(env: Env) -> None:
    """As chmod does: the owner outside the group loses S_ISGID."""
    put_owned("f", (ALICE.uid, PROJECT_GID), 0o2755)
    env.as_user(*ALICE)(_set, "f", "u::rwx g::rx o::rx")
    equal(mode_of("f"), 0o755, "mode")
    put_owned("g", (ALICE.uid, PROJECT_GID), 0o2755)
    env.as_user(*ALICE, (PROJECT_GID,))(_set, "g", "u::rwx g::rx o::rx")
    equal(mode_of("g"), 0o2755, "mode for a member")


@needs(Need.ACL)
def case_default_only_on_directories(env: Env) -> None:
    """A default list on a file is EACCES."""
    put("f")
    refused((errno.EACCES, errno.EPERM, errno.ENOTDIR), _set, "f", "u::rw g::r o::r", DEFAULT_ACL)


@needs(Need.ACL)
def case_default_is_inherited_by_files(env: Env) -> None:
    """A new file gets the default list, cut by the wanted mode; the umask has no say."""
    os.mkdir("d")
    _set("d", f"u::rwx u:{ALICE.uid}:rwx g::rx m::rwx o::-", DEFAULT_ACL)
    os.umask(0o077)
    try_open("d/f", os.O_CREAT | os.O_WRONLY, 0o666)
    equal((mode_of("d/f"), _get("d/f")), (0o660, f"u::rw u:{ALICE.uid}:rwx g::rx m::rw o::-"), "mode and list")


@needs(Need.ACL)
def case_default_is_inherited_by_directories(env: Env) -> None:
    """A new directory gets it as access list and as its own default."""
    os.mkdir("d")
    text = f"u::rwx u:{ALICE.uid}:rx g::rx m::rx o::-"
    _set("d", text, DEFAULT_ACL)
    os.umask(0o077)
    os.mkdir("d/e", 0o777)
    equal((_get("d/e"), _get("d/e", DEFAULT_ACL), mode_of("d/e")), (text, text, 0o750), "lists and mode")


@needs(Need.ACL)
def case_minimal_default_replaces_the_umask(env: Env) -> None:
    """A default list of three entries works like a umask of its own."""
    os.mkdir("d")
    _set("d", "u::rwx g::rwx o::rx", DEFAULT_ACL)
    os.umask(0o077)
    try_open("d/f", os.O_CREAT | os.O_WRONLY, 0o666)
    os.mkdir("d/e", 0o777)
    os.mkfifo("d/p", 0o666)
    equal((mode_of("d/f"), mode_of("d/e"), mode_of("d/p")), (0o664, 0o775, 0o664), "modes")


@needs(Need.ACL)
def case_umask_counts_without_default(env: Env) -> None:
    """An access list of the directory alone doesn't change how files are made."""
    os.mkdir("d")
    _set("d", f"u::rwx u:{ALICE.uid}:rwx g::rx m::rwx o::rx")
    os.umask(0o027)
    try_open("d/f", os.O_CREAT | os.O_WRONLY, 0o666)
    equal(mode_of("d/f"), 0o640, "mode")


@needs(Need.ACL)
def case_removing_the_default_ends_inheritance(env: Env) -> None:
    """The umask counts again."""
    os.mkdir("d")
    _set("d", "u::rwx g::rwx o::rwx", DEFAULT_ACL)
    os.removexattr("d", DEFAULT_ACL)
    os.umask(0o077)
    put("d/f", mode=0o600)
    try_open("d/g", os.O_CREAT | os.O_WRONLY, 0o666)
    equal(mode_of("d/g"), 0o600, "mode")


@needs(Need.ACL)
def case_symbolic_links_inherit_nothing(env: Env) -> None:
    """A link has no list."""
    os.mkdir("d")
    _set("d", f"u::rwx u:{ALICE.uid}:rwx g::rx m::rwx o::-", DEFAULT_ACL)
    os.symlink("x", "d/l")
    equal(ACCESS_ACL in os.listxattr("d/l", follow_symlinks=False), False, "a list on the link")


@needs(Need.ACL, Need.USERS)
def case_search_on_directory(env: Env) -> None:
    """A named user may enter a directory closed to others."""
    make_directory("d", 0o700)
    put("d/f", b"x", 0o644)
    _set("d", f"u::rwx u:{ALICE.uid}:x g::- m::x o::-")
    equal(env.as_user(*ALICE)(get, "d/f"), b"x", "content")
    env.as_user(*ALICE).refused(errno.EACCES, os.listdir, "d")
    env.as_user(*BOB).refused(errno.EACCES, get, "d/f")


@needs(Need.ACL, Need.USERS)
def case_change_takes_effect_at_once(env: Env) -> None:
    """A list set and removed is obeyed by the next open."""
    put("f", b"x", 0o600)
    alice = env.as_user(*ALICE)
    for _ in range(3):
        alice.refused(errno.EACCES, get, "f")
        _set("f", f"u::rw u:{ALICE.uid}:r g::- m::r o::-")
        equal(alice(get, "f"), b"x", "content")
        os.removexattr("f", ACCESS_ACL)
        os.chmod("f", 0o600)


@needs(Need.ACL)
def case_changes_ctime(env: Env) -> None:
    """Setting a list moves ctime."""
    put("f")
    equal(env.changed(lambda: _set("f", f"u::rw u:{ALICE.uid}:r g::r m::r o::-"), "f"), ["c"], "times")

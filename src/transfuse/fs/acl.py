"""POSIX access control lists as they travel in the xattrs system.posix_acl_access and system.posix_acl_default.

The bytes are a 4-byte version (2) and n × 8-byte entries {tag u16, permissions u16, id u32}, little-endian on every
machine (<linux/posix_acl_xattr.h>). Semantics are those of acl(5): which entry decides, how the mask limits it, what a
new file inherits, and what an ACL leaves in the nine permission bits. Nothing here knows a filesystem.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterable

__all__ = [
    "ACCESS_XATTR",
    "DEFAULT_XATTR",
    "Acl",
    "acl_allows",
    "acl_inherit",
    "acl_to_mode",
    "acl_with_mode",
    "decode_acl",
    "encode_acl",
    "is_minimal",
    "map_acl_ids",
]

ACCESS_XATTR = b"system.posix_acl_access"
DEFAULT_XATTR = b"system.posix_acl_default"

VERSION = 2
MAX_ENTRIES = 8191
"""As many as fit in one xattr of 64 KiB."""
NO_ID = 0xFFFF_FFFF

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_HEAD = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")

Acl = tuple[tuple[int, int, int], ...]
"""(tag, permissions 0…7, id) in the order of the tags; the id of a tag that has none is NO_ID."""


def decode_acl(value: bytes) -> Acl:
    """The entries of an ACL xattr, checked (EINVAL): version, order, one of each class, a mask where one is needed."""
    count, rest = divmod(len(value) - _HEAD.size, _ENTRY.size)
    if rest or not 0 <= count <= MAX_ENTRIES:
        raise OSError(errno.EINVAL, f"ACL of {len(value)} bytes is not a header and whole entries")
    (version,) = _HEAD.unpack_from(value)
    if version != VERSION:
        raise OSError(errno.EOPNOTSUPP, f"ACL version {version}")
    acl = tuple(
        (tag, perm, who if tag in (USER, GROUP) else NO_ID)
        for tag, perm, who in _ENTRY.iter_unpack(memoryview(value)[_HEAD.size :])
    )
    if not acl:
        return acl
    tags = [tag for tag, _, _ in acl]
    named = USER in tags or GROUP in tags
    if (
        tags != sorted(tags)
        or any(tag not in (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER) or perm > 7 for tag, perm, _ in acl)
        or any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
        or any(tag in (USER, GROUP) and who == NO_ID for tag, _, who in acl)
        or (named and MASK not in tags)
    ):
        raise OSError(errno.EINVAL, "ACL entries are not a valid list in order")
    return acl


def encode_acl(acl: Acl) -> bytes:
    """The bytes of the xattr."""
    return _HEAD.pack(VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def is_minimal(acl: Acl) -> bool:
    """Does the ACL say no more than nine mode bits can?"""
    return all(tag in (USER_OBJ, GROUP_OBJ, OTHER) for tag, _, _ in acl)


def acl_to_mode(acl: Acl, mode: int) -> int:
    """`mode` with the permission bits that `acl` shows: the mask stands where the group bits are, if there is one."""
    perms = {tag: perm for tag, perm, _ in acl if tag not in (USER, GROUP)}
    group = perms.get(MASK, perms[GROUP_OBJ])
    return mode & ~0o777 | perms[USER_OBJ] << 6 | group << 3 | perms[OTHER]


def acl_with_mode(acl: Acl, mode: int) -> Acl:
    """What chmod() makes of an ACL: owner, other, and the mask (the group where there is no mask) follow the mode."""
    group_tag = MASK if any(tag == MASK for tag, _, _ in acl) else GROUP_OBJ
    new = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return tuple((tag, new.get(tag, perm), who) for tag, perm, who in acl)


def acl_inherit(default: Acl, mode: int) -> tuple[int, Acl]:
    """The mode and access ACL of a file made with `mode` in a directory with this default ACL; no umask applies."""
    group_tag = MASK if any(tag == MASK for tag, _, _ in default) else GROUP_OBJ
    limit = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    acl = tuple((tag, perm & limit.get(tag, 7), who) for tag, perm, who in default)
    return acl_to_mode(acl, mode), acl


def acl_allows(acl: Acl, want: int, uid: int, groups: Collection[int], owner: int, group: int) -> bool:
    """Does the ACL of a file of `owner` and `group` grant `want` (R 4, W 2, X 1)? The first matching class decides."""
    perms = {tag: perm for tag, perm, _ in acl if tag not in (USER, GROUP)}
    mask = perms.get(MASK, 7)
    if uid == owner:
        return perms[USER_OBJ] & want == want
    for tag, perm, who in acl:
        if tag == USER and who == uid:
            return perm & mask & want == want
    matching = [perm for tag, perm, who in acl if tag == GROUP and who in groups]
    if group in groups:
        matching.append(perms[GROUP_OBJ])
    if matching:
        return any(perm & mask & want == want for perm in matching)
    return perms[OTHER] & want == want


def map_acl_ids(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """The same xattr with its ids put through the two functions, and sorted again."""
    entries: Iterable[tuple[int, int, int]] = decode_acl(value)
    mapped = ((t, p, uid(who) if t == USER else gid(who) if t == GROUP else who) for t, p, who in entries)
    return encode_acl(tuple(sorted(mapped, key=lambda entry: (entry[0], entry[2]))))

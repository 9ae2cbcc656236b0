from __future__ import annotations

import errno
import os
import struct

import pytest

from transfuse.fs import acl as a

NO = a.NO_ID
BASE = ((a.USER_OBJ, 7, NO), (a.GROUP_OBJ, 5, NO), (a.OTHER, 1, NO))
FULL = (
    (a.USER_OBJ, 7, NO),
    (a.USER, 6, 1001),
    (a.GROUP_OBJ, 5, NO),
    (a.GROUP, 7, 2001),
    (a.MASK, 6, NO),
    (a.OTHER, 0, NO),
)
LITERAL = (
    b"\x02\0\0\0"  # version
    b"\x01\0\x07\0\xff\xff\xff\xff"  # user::rwx
    b"\x02\0\x06\0\xe9\x03\0\0"  # user:1001:rw-
    b"\x04\0\x05\0\xff\xff\xff\xff"  # group::r-x
    b"\x08\0\x07\0\xd1\x07\0\0"  # group:2001:rwx
    b"\x10\0\x06\0\xff\xff\xff\xff"  # mask::rw-
    b"\x20\0\x00\0\xff\xff\xff\xff"  # other::---
)


def test_bytes_become_entries_and_bytes_again():
    assert a.decode_acl(LITERAL) == FULL and a.encode_acl(FULL) == LITERAL


def test_a_header_alone_is_an_empty_acl():
    assert a.decode_acl(b"\x02\0\0\0") == ()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"", errno.EINVAL),
        (LITERAL[:-1], errno.EINVAL),
        (b"\x03" + LITERAL[1:], errno.EOPNOTSUPP),
        (a.encode_acl(FULL[:4] + FULL[5:]), errno.EINVAL),  # named entries and no mask
        (a.encode_acl(BASE[1:]), errno.EINVAL),  # no owner
        (a.encode_acl(BASE[:2]), errno.EINVAL),  # no others
        (a.encode_acl(BASE[::-1]), errno.EINVAL),  # out of order
        (a.encode_acl((*BASE[:2], (0x40, 1, NO))), errno.EINVAL),  # unknown tag
        (a.encode_acl(((a.USER_OBJ, 8, NO), *BASE[1:])), errno.EINVAL),  # unknown permission
        (a.encode_acl((BASE[0], (a.USER, 7, NO), BASE[1], (a.MASK, 7, NO), BASE[2])), errno.EINVAL),  # no id
    ],
)
def test_broken_acls_are_refused(value, number):
    with pytest.raises(OSError) as caught:
        a.decode_acl(value)
    assert caught.value.errno == number


def test_random_bytes_are_an_acl_or_an_oserror(rng):
    for _ in range(5000):
        value = struct.pack("<I", 2) + rng.randbytes(8 * rng.randrange(5) + rng.choice((0, 0, 0, 3)))
        try:
            a.decode_acl(value)
        except OSError as error:
            assert error.errno in (errno.EINVAL, errno.EOPNOTSUPP)


def test_minimal_is_what_mode_bits_can_say():
    assert a.is_minimal(BASE) and not a.is_minimal(FULL)


def test_the_mask_shows_as_the_group_bits():
    assert a.acl_to_mode(FULL, 0o100644) == 0o100760 and a.acl_to_mode(BASE, 0o4000) == 0o4751


def test_chmod_changes_the_mask_and_not_the_group():
    changed = a.acl_with_mode(FULL, 0o741)
    assert changed[2] == (a.GROUP_OBJ, 5, NO) and changed[4] == (a.MASK, 4, NO) and changed[5] == (a.OTHER, 1, NO)


def test_inheritance_limits_by_the_mode():
    mode, acl = a.acl_inherit(FULL, 0o100640)
    assert mode == 0o100640 and acl[0] == (a.USER_OBJ, 6, NO) and acl[4] == (a.MASK, 4, NO) and acl[1] == FULL[1]


@pytest.mark.parametrize(
    ("uid", "groups", "want", "allowed"),
    [
        (1, (), 7, True),  # the owner, whatever the mask says
        (1001, (), 6, True),
        (1001, (2001,), 1, False),  # the entry of the user decides, groups are not looked at
        (5, (1,), 4, True),
        (5, (1,), 1, False),  # r-x of the group, limited by mask rw-
        (5, (2001,), 6, True),
        (5, (1, 2001), 6, True),  # any one group entry that grants it all
        (5, (9,), 4, False),  # others
    ],
)
def test_the_first_class_that_matches_decides(uid, groups, want, allowed):
    assert a.acl_allows(FULL, want, uid, groups, owner=1, group=1) is allowed


def test_ids_are_mapped_and_sorted_again():
    value = a.encode_acl((BASE[0], (a.USER, 1, 10), (a.USER, 2, 20), BASE[1], (a.MASK, 7, NO), BASE[2]))
    mapped = a.decode_acl(a.map_acl_ids(value, lambda n: 100 - n, lambda n: n))
    assert [entry for entry in mapped if entry[0] == a.USER] == [(a.USER, 2, 80), (a.USER, 1, 90)]


@pytest.mark.needs("root")
def test_the_kernel_takes_our_bytes_and_gives_them_back(tmp_path):
    file = tmp_path / "f"
    file.touch()
    try:
        os.setxattr(file, a.ACCESS_XATTR, LITERAL)
    except OSError as error:
        pytest.skip(f"no ACLs on {tmp_path}: {error.strerror}")
    assert os.getxattr(file, a.ACCESS_XATTR) == LITERAL and file.stat().st_mode & 0o777 == 0o760

from __future__ import annotations

import errno
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.acl import ACCESS_XATTR, MASK, NO_ID, USER, USER_OBJ, decode_acl, encode_acl
from transfuse.fs.idmap import OVERFLOW_ID, IdMap, IdMapped, Translation
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry
from transfuse.fs.wrap import Wrapper
from transfuse.testing import conformance
from transfuse.testing.direct import DirectVolume

SHIFT = IdMap([(0, 100_000, 2000), (5000, 7000, 1)])


class TestIdMappedConforms(conformance.ReadWrite):
    transports = ("direct", "memory")

    def make_filesystem(self, tmp_path):
        return IdMapped(MemoryFilesystem(size_bytes=64 << 20, root_uid=100_000, root_gid=100_000), SHIFT)


@pytest.fixture
def fs():
    return MemoryFilesystem(check_permissions=True, root_mode=0o777)


@pytest.fixture
def mapped(fs):
    return DirectVolume(IdMapped(fs, SHIFT))


def test_a_new_file_belongs_to_the_mapped_caller(fs, mapped):
    with mapped.identity(1, 2):
        mapped.write_bytes("/f", b"")
    st = DirectVolume(fs).stat("/f")
    assert (st.uid, st.gid) == (100_001, 100_002)


def test_owners_show_as_the_peer_knows_them(fs, mapped):
    plain = DirectVolume(fs)
    plain.write_bytes("/f", b"")
    plain.chown("/f", 100_007, 7000)
    st = mapped.stat("/f")
    assert (st.uid, st.gid) == (7, 5000)


def test_an_owner_without_a_counterpart_shows_as_the_overflow_id(fs, mapped):
    DirectVolume(fs).write_bytes("/f", b"")
    st = mapped.stat("/f")
    assert (st.uid, st.gid) == (OVERFLOW_ID, OVERFLOW_ID)


def test_chown_is_mapped(fs):
    with_rights = DirectVolume(IdMapped(fs, IdMap([(0, 0, 1), (10, 20, 5)])))
    with_rights.write_bytes("/f", b"")
    with_rights.chown("/f", 12, -1)
    assert DirectVolume(fs).stat("/f").uid == 22


def test_chown_to_an_id_without_a_counterpart_is_eoverflow(mapped):
    mapped.write_bytes("/f", b"")
    with pytest.raises(OSError) as caught:
        mapped.chown("/f", 9999, -1)
    assert caught.value.errno == errno.EOVERFLOW


@pytest.mark.parametrize("make", ["mkdir", "write_bytes", "symlink", "mknod"])
def test_nothing_is_made_for_a_caller_without_a_counterpart(mapped, make):
    arguments = {"mkdir": ("/x",), "write_bytes": ("/x", b""), "symlink": ("t", "/x"), "mknod": ("/x", 0o10644)}
    with mapped.identity(9999, 0), pytest.raises(OSError) as caught:
        getattr(mapped, make)(*arguments[make])
    assert caught.value.errno == errno.EOVERFLOW


def test_a_caller_without_a_counterpart_acts_as_the_overflow_id(fs, mapped):
    DirectVolume(fs).write_bytes("/f", b"x", 0o604)
    DirectVolume(fs).write_bytes("/g", b"x", 0o600)
    with mapped.identity(9999, 9999):
        assert mapped.read_bytes("/f") == b"x"
        with pytest.raises(PermissionError):
            mapped.read_bytes("/g")


def test_supplementary_groups_are_mapped(fs, mapped):
    plain = DirectVolume(fs)
    plain.write_bytes("/f", b"x", 0o040)
    plain.chown("/f", 1, 100_055)
    with mapped.identity(1, 2, (2, 55)):
        assert mapped.read_bytes("/f") == b"x"


def test_ids_in_an_acl_are_mapped_both_ways(fs, mapped):
    mapped.write_bytes("/f", b"")
    acl = ((USER_OBJ, 6, NO_ID), (USER, 4, 33), (4, 4, NO_ID), (MASK, 7, NO_ID), (0x20, 0, NO_ID))
    mapped.setxattr("/f", ACCESS_XATTR.decode(), encode_acl(acl))
    stored = decode_acl(DirectVolume(fs).getxattr("/f", ACCESS_XATTR.decode()))
    assert stored[1] == (USER, 4, 100_033)
    assert decode_acl(mapped.getxattr("/f", ACCESS_XATTR.decode())) == acl


def test_an_acl_for_an_id_without_a_counterpart_is_eoverflow(mapped):
    mapped.write_bytes("/f", b"")
    acl = ((USER_OBJ, 6, NO_ID), (USER, 4, 9999), (4, 4, NO_ID), (MASK, 7, NO_ID), (0x20, 0, NO_ID))
    with pytest.raises(OSError) as caught:
        mapped.setxattr("/f", ACCESS_XATTR.decode(), encode_acl(acl))
    assert caught.value.errno == errno.EOVERFLOW


def test_other_attributes_are_left_alone(mapped):
    mapped.write_bytes("/f", b"")
    mapped.setxattr("/f", "user.a", b"\x01\x02")
    assert mapped.getxattr("/f", "user.a") == b"\x01\x02"


def test_the_filesystems_own_values_are_not_changed():
    shared = Attr.file(2, uid=100_001)

    class Sharing(Wrapper):
        def getattr(self, req, nodeid, fh):
            return shared

        def lookup(self, req, parent, name):
            return Entry(shared)

    fs = IdMapped(Sharing(MemoryFilesystem()), SHIFT)
    assert fs.getattr(Request(), 2, None).uid == fs.lookup(Request(), 1, b"f").attr.uid == 1
    assert shared.uid == 100_001


def test_a_negative_entry_passes():
    class Negative(Wrapper):
        def lookup(self, req, parent, name):
            return Entry.negative()

    assert IdMapped(Negative(MemoryFilesystem()), SHIFT).lookup(Request(), 1, b"x").attr is None


def test_an_interruption_reaches_the_filesystem():
    seen = []

    class Waiting(Wrapper):
        def getattr(self, req, nodeid, fh):
            req.on_interrupt(lambda: seen.append("callback"))
            seen.append(req.interrupted)
            return Attr.directory(1)

    req = Request()
    req.interrupt()
    IdMapped(Waiting(MemoryFilesystem()), SHIFT).getattr(req, 1, None)
    assert seen == ["callback", True]


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 0, 0)],
        [(0, 0, 10), (5, 100, 10)],
        [(0, 0, 10), (100, 5, 10)],
        [(-1, 0, 5)],
        [(0, 0, 1 << 32)],
        [(n * 2, n * 2, 1) for n in range(341)],
    ],
)
def test_maps_that_make_no_sense_are_refused(ranges):
    with pytest.raises(ValueError):
        IdMap(ranges)


# -- virtiofsd's rules --

TOP = 0xFFFF_FFFE


@pytest.mark.parametrize(
    ("rules", "inward", "outward"),
    [
        ([], {0: 0, 7: 7, TOP: TOP}, {0: 0, 7: 7}),
        (["guest:10:20:5"], {9: 9, 10: 20, 14: 24, 15: 15, 20: 20}, {20: 20, 10: 10}),
        (["host:20:10:5"], {10: 10, 20: 20}, {19: 19, 20: 10, 24: 14, 25: 25}),
        (["map:10:20:5"], {10: 20, 14: 24, 20: 20}, {20: 10, 24: 14, 10: 10}),
        (["squash-guest:10:3:5"], {9: 9, 10: 3, 14: 3, 15: 15}, {3: 3}),
        (["squash-host:10:3:5"], {10: 10}, {9: 9, 10: 3, 14: 3, 15: 15}),
        (["forbid-guest:10:5"], {9: 9, 10: None, 14: None, 15: 15}, {10: 10}),
        (["squash-guest:0:1001:4294967295", "host:1001:1000:1"], {0: 1001, 55: 1001, TOP: 1001}, {1001: 1000, 5: 5}),
        (["map:0:100:10", "forbid-guest:10:1", "guest:11:0:1"], {0: 100, 10: None, 11: 0}, {100: 0, 0: 0}),
    ],
)
def test_each_rule_of_a_translation(rules, inward, outward):
    ids = Translation(rules)
    assert {number: ids.to_filesystem(number) for number in inward} == inward
    assert {number: ids.to_peer(number) for number in outward} == outward


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        (["0:1:2"], "0:1:2: '0' is none of guest, host, squash-guest, squash-host, forbid-guest, map"),
        (["guest:0:1"], "guest:0:1: guest:GUEST:HOST:COUNT belongs there, in numbers"),
        (["forbid-guest:0:1:2"], "forbid-guest:GUEST:COUNT belongs there"),
        (["host:-1:1:1"], "host:HOST:GUEST:COUNT belongs there"),
        (["map:0:0:0"], "0 ids from 0 are not within"),
        (["map:4294967295:0:1"], "1 ids from 4294967295 are not within 0 to 4294967294"),
        (["guest:0:4294967290:100"], "ids from 4294967290 are not within"),
        (["guest:0:5:10", "forbid-guest:9:1"], "ids 0 to 9 and 9 to 9 overlap"),
        (["map:0:5:10", "host:14:100:1"], "ids 5 to 14 and 14 to 14 overlap"),
        (["guest:0:0:1"] * 341, "more than 340 rules"),
    ],
)
def test_what_is_no_translation_is_refused(rules, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        Translation(rules)


def test_the_directions_of_a_translation_may_overlap():
    ids = Translation(["guest:0:5:10", "host:5:0:1", "host:0:77:5"])
    assert (ids.to_filesystem(0), ids.to_peer(5), ids.to_peer(4)) == (5, 0, 81)


KINDS = st.sampled_from(["guest", "host", "squash-guest", "squash-host", "map"])


@given(st.lists(st.tuples(KINDS, st.integers(0, 20), st.integers(0, 20), st.integers(1, 6)), max_size=4))
def test_a_translation_is_its_table(rules):
    """Against one dict per direction, filled id by id."""
    tables: dict[str, dict[int, int]] = {"guest": {}, "host": {}}
    overlap = False
    for kind, first, second, count in rules:
        ways = [("guest", first, second), ("host", second, first)] if kind == "map" else [(kind, first, second)]
        for way, start, target in ways:
            table = tables[way.removeprefix("squash-")]
            for at in range(count):
                overlap |= start + at in table
                table[start + at] = target if way.startswith("squash") else target + at
    texts = [f"{kind}:{first}:{second}:{count}" for kind, first, second, count in rules]
    if overlap:
        with pytest.raises(ValueError, match="overlap"):
            Translation(texts)
        return
    ids = Translation(texts)
    for number in range(40):
        assert ids.to_filesystem(number) == tables["guest"].get(number, number)
        assert ids.to_peer(number) == tables["host"].get(number, number)


def test_squashed_callers_make_files_of_one_owner_who_shows_as_another(fs):
    ids = Translation(["squash-guest:0:1001:4294967295", "host:1001:1000:1"])
    seen = DirectVolume(IdMapped(fs, ids))
    with seen.identity(5, 6, (7,)):
        seen.write_bytes("/f", b"")
    assert (DirectVolume(fs).stat("/f").uid, DirectVolume(fs).stat("/f").gid) == (1001, 1001)
    assert (seen.stat("/f").uid, seen.stat("/f").gid) == (1000, 1000)


def test_users_and_groups_are_translated_by_themselves(fs):
    seen = DirectVolume(IdMapped(fs, Translation(["map:1:11:1"]), Translation(["map:1:21:1"])))
    with seen.identity(1, 1):
        seen.write_bytes("/f", b"")
    assert (DirectVolume(fs).stat("/f").uid, DirectVolume(fs).stat("/f").gid) == (11, 21)
    assert (seen.stat("/f").uid, seen.stat("/f").gid) == (1, 1)


def test_a_forbidden_id_neither_makes_nor_gets_anything(fs):
    seen = DirectVolume(IdMapped(fs, Translation(["forbid-guest:500:10"]), Translation([])))
    seen.write_bytes("/f", b"")
    with pytest.raises(PermissionError), seen.identity(505, 0):
        seen.write_bytes("/g", b"")
    with pytest.raises(PermissionError):
        seen.chown("/f", 509, -1)
    seen.chown("/f", 510, 505)
    assert (seen.stat("/f").uid, seen.stat("/f").gid) == (510, 505)

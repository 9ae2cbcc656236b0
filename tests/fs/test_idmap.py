from __future__ import annotations

import errno

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.acl import ACCESS_XATTR, MASK, NO_ID, USER, USER_OBJ, decode_acl, encode_acl
from transfuse.fs.idmap import OVERFLOW_ID, IdMap, IdMapped
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

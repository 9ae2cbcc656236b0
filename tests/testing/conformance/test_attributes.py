"""Every kind of case about attributes finds its defect."""

from __future__ import annotations

import pytest

from testing.conformance.defects import finds_fault
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing.conformance.attributes import AttributeCases


class SecondsOnly(MemoryFilesystem):
    def setattr(self, req, nodeid, changes, fh):
        for name in ("atime_ns", "mtime_ns"):
            value = getattr(changes, name)
            if value is not None:
                setattr(changes, name, value // 10**9 * 10**9)
        return super().setattr(req, nodeid, changes, fh)


class TimesStandStill(MemoryFilesystem):
    def __init__(self):
        super().__init__(clock=lambda: 0)


class ChownSetsBoth(MemoryFilesystem):
    def setattr(self, req, nodeid, changes, fh):
        if changes.uid is not None and changes.gid is None:
            changes.gid = 0
        return super().setattr(req, nodeid, changes, fh)


class KeepsSetuid(MemoryFilesystem):
    def _kill_suidgid(self, req, inode):
        pass


class NoSetgidDirectories(MemoryFilesystem):
    def _make(self, req, parent, mode, umask):
        inode = super()._make(req, parent, mode & ~0o2000, umask)
        inode.gid = req.gid
        inode.mode &= ~0o2000
        return inode


class AttributesAreStrings(MemoryFilesystem):
    def setxattr(self, req, nodeid, name, value, flags, kill_sgid):
        super().setxattr(req, nodeid, name, value.partition(b"\0")[0], 0, kill_sgid)


class AclsAreJustAttributes(MemoryFilesystem):
    def setxattr(self, req, nodeid, name, value, flags, kill_sgid):
        super().setxattr(req, nodeid, name.replace(b"system.", b"user."), value, flags, kill_sgid)

    def getxattr(self, req, nodeid, name):
        return super().getxattr(req, nodeid, name.replace(b"system.", b"user."))


class NoBlocks(MemoryFilesystem):
    def getattr(self, req, nodeid, fh):
        attr = super().getattr(req, nodeid, fh)
        attr.blocks = 0
        return attr


DEFECTS = [
    (SecondsOnly, "test_utime_keeps_nanoseconds"),
    (SecondsOnly, "test_times_before_1970"),
    (TimesStandStill, "test_utime_without_times_is_now"),
    (TimesStandStill, "test_writing_changes_mtime"),
    (TimesStandStill, "test_truncating_changes_mtime"),
    (TimesStandStill, "test_chmod_changes_ctime"),
    (TimesStandStill, "test_link_changes_ctime"),
    (TimesStandStill, "test_names_that_come_and_go_change_the_mtime_of_the_directory"),
    (ChownSetsBoth, "test_chown_of_one_id_leaves_the_other"),
    (KeepsSetuid, "test_chown_clears_setuid_and_setgid"),
    (NoSetgidDirectories, "test_a_setgid_directory_gives_its_group"),
    (NoSetgidDirectories, "test_a_directory_in_a_setgid_directory_is_setgid"),
    (AttributesAreStrings, "test_an_attribute_is_set_and_got"),
    (AttributesAreStrings, "test_xattr_create_of_an_existing_attribute_is_eexist"),
    (AttributesAreStrings, "test_xattr_replace_of_a_missing_attribute_is_enodata"),
    (AclsAreJustAttributes, "test_an_access_acl_shows_in_the_mode"),
    (AclsAreJustAttributes, "test_chmod_changes_the_mask_of_an_acl"),
    (AclsAreJustAttributes, "test_a_default_acl_is_inherited"),
    (NoBlocks, "test_blocks_count_what_is_stored"),
]


@pytest.mark.parametrize(("defect", "case"), DEFECTS, ids=[f"{d.__name__}-{c}" for d, c in DEFECTS])
def test_the_case_finds_the_defect(tmp_path, defect, case):
    assert hasattr(AttributeCases, case) and finds_fault(case, defect(), tmp_path)


@pytest.mark.parametrize("case", sorted({case for _, case in DEFECTS}))
def test_the_case_passes_without_the_defect(tmp_path, case):
    assert not finds_fault(case, MemoryFilesystem(), tmp_path)

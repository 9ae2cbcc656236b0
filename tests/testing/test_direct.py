from __future__ import annotations

import errno
import os

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import Filesystem
from transfuse.fs.values import Attr, DirEntry, Entry
from transfuse.testing.direct import DirectVolume


@pytest.fixture
def fs():
    return MemoryFilesystem(check_permissions=True)


@pytest.fixture
def volume(fs):
    return DirectVolume(fs)


def test_every_lookup_is_paid_back(fs, volume):
    volume.mkdir("/d")
    volume.write_bytes("/d/f", b"x")
    volume.symlink("d", "/l")
    volume.read_bytes("/l/f")
    volume.rename("/d/f", "/g")
    for call in (lambda: volume.stat("/d/missing"), lambda: volume.open("/l", os.O_RDONLY), lambda: volume.rmdir("/g")):
        with pytest.raises(OSError):
            call()
    assert fs.lookup_count() == 0


def test_an_open_file_keeps_its_node(fs, volume):
    with volume.open("/f", os.O_CREAT | os.O_RDWR):
        assert fs.lookup_count() == 1
    assert fs.lookup_count() == 0


def test_links_on_the_way_are_followed_with_dots(volume):
    volume.mkdir("/a")
    volume.mkdir("/a/b")
    volume.write_bytes("/f", b"x")
    volume.symlink("../../f", "/a/b/up")
    volume.symlink("/a/./b/..", "/to-a")
    assert volume.listdir("/to-a") == ["b"] and volume.stat("/to-a/b/up").mode >> 12 == 10


def test_a_link_to_itself_is_eloop(volume):
    volume.symlink("l", "/l")
    with pytest.raises(OSError) as caught:
        volume.listdir("/l")
    assert caught.value.errno == errno.ELOOP


def test_a_directory_must_be_searchable(volume):
    volume.mkdir("/d", 0o700)
    volume.write_bytes("/d/f", b"")
    with volume.identity(1001, 1001), pytest.raises(PermissionError):
        volume.unlink("/d/f")


def test_listings_without_cookies_are_taken_whole():
    class Plain(Filesystem):
        def lookup(self, req, parent, name):
            return Entry(Attr.file(2))

        def readdir(self, req, nodeid, fh, offset):
            return [DirEntry(b"%d" % number, number + 2) for number in range(250)]

    assert len(DirectVolume(Plain()).listdir("/")) == 250


def test_without_create_a_file_is_made_by_mknod():
    made = []

    class Old(Filesystem):
        def lookup(self, req, parent, name):
            if not made:
                raise FileNotFoundError(errno.ENOENT, "")
            return Entry(Attr.file(2))

        def mknod(self, req, parent, name, mode, rdev, umask):
            made.append((name, mode))
            return Entry(Attr.file(2))

    DirectVolume(Old()).open("/f", os.O_CREAT | os.O_RDWR, 0o640).close()
    assert made == [(b"f", 0o100640)]

from __future__ import annotations

import errno
import os

import pytest

from transfuse.testing.volume import LOCK_EXCLUSIVE, LOCK_NONE, LOCK_SHARED, OsVolume


@pytest.fixture
def volume(tmp_path):
    umask = os.umask(0)
    yield OsVolume(str(tmp_path))
    os.umask(umask)


def test_paths_are_inside_the_directory(volume, tmp_path):
    volume.write_bytes("/f", b"x")
    assert (tmp_path / "f").read_bytes() == b"x" and volume.at("/f") == f"{tmp_path}/f"


def test_exists_is_false_below_a_file(volume):
    volume.write_bytes("/f", b"")
    assert volume.exists("/f") and not volume.exists("/f/g") and not volume.exists("/g")


def test_the_last_link_is_not_followed(volume):
    volume.symlink("missing", "/l")
    assert volume.stat("/l").mode >> 12 == 10
    with pytest.raises(OSError) as caught:
        volume.open("/l", os.O_RDONLY)
    assert caught.value.errno == errno.ELOOP


def test_errors_of_calls_made_without_os_have_their_errno(volume):
    with pytest.raises(FileNotFoundError):
        volume.rename("/missing", "/x")
    with volume.open("/f", os.O_CREAT | os.O_RDWR) as file, pytest.raises(OSError) as caught:
        file.allocate(0, 0, 0)
    assert caught.value.errno == errno.EINVAL


def test_kinds_are_listed(volume):
    volume.mkdir("/d")
    volume.write_bytes("/f", b"")
    volume.symlink("x", "/l")
    assert sorted((name, kind) for name, _, kind in volume.scandir("/")) == [("d", 4), ("f", 8), ("l", 10)]


def test_locks_belong_to_open_files(volume):
    with volume.open("/f", os.O_CREAT | os.O_RDWR) as first, volume.open("/f", os.O_RDWR) as second:
        first.lock(LOCK_EXCLUSIVE, 5, 10)
        assert second.lock_in_the_way(LOCK_SHARED, 0, 0) == (LOCK_EXCLUSIVE, 5, 10)
        with pytest.raises(BlockingIOError):
            second.lock(LOCK_SHARED, 0, 0)
        first.lock(LOCK_NONE, 0, 0)
        assert second.lock_in_the_way(LOCK_SHARED, 0, 0) is None


def test_closing_twice_is_harmless(volume):
    file = volume.open("/f", os.O_CREAT | os.O_RDWR)
    file.close()
    file.close()


@pytest.mark.needs("root")
def test_an_identity_is_the_threads_and_ends(volume, tmp_path):
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == 0 and folder != folder.parent and "pytest" in str(folder):
            folder.chmod(folder.stat().st_mode | 0o055)
    with volume.identity(1001, 1002, (1002,)):
        volume.write_bytes("/f", b"")
    volume.write_bytes("/g", b"")
    assert (volume.stat("/f").uid, volume.stat("/f").gid, volume.stat("/g").uid) == (1001, 1002, 0)

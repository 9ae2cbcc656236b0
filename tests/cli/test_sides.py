"""Both sides of a copy do the same under the same names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.cli.sides import Local, Remote, Side, join
from transfuse.client import Client
from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import Server
from transfuse.transports.memory import MemoryTransport


@pytest.mark.parametrize(
    ("directory", "name", "path"), [("/", "a", "/a"), ("/b", "a", "/b/a"), ("/b/", "a", "/b/a"), (".", "a", "./a")]
)
def test_join(directory: str, name: str, path: str) -> None:
    assert join(directory, name) == path


@pytest.fixture(params=["local", "directory", "memory"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Side, str]]:
    """A side, and a directory of it to work in."""
    if request.param == "local":
        yield Local(), str(tmp_path)
        return
    directory = HostDirectory(tmp_path) if request.param == "directory" else None
    transport = MemoryTransport()
    filesystem = directory or MemoryFilesystem()
    with Server(filesystem, transport), Client(transport.client) as client:
        yield Remote(client), ""
    if directory is not None:
        directory.close()


def test_everything_a_copy_needs(side: tuple[Side, str]) -> None:
    end, top = side
    end.mkdir(f"{top}/d", 0o755)
    with end.open_raw(f"{top}/d/f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644) as file:
        file.write(b"text")
    with end.open_raw(f"{top}/d/f", os.O_RDONLY, 0) as file:
        assert file.read() == b"text"
    end.link(f"{top}/d/f", f"{top}/d/g")
    assert end.lstat(f"{top}/d/g").st_nlink == 2
    end.symlink("f", f"{top}/d/l")
    assert end.readlink(f"{top}/d/l") == "f"
    assert stat.S_ISLNK(end.lstat(f"{top}/d/l").st_mode) and stat.S_ISREG(end.stat(f"{top}/d/l").st_mode)
    end.mknod(f"{top}/d/p", stat.S_IFIFO | 0o600, 0)
    assert sorted(end.names(f"{top}/d")) == ["f", "g", "l", "p"]
    end.chmod(f"{top}/d/f", 0o604)
    end.lchown(f"{top}/d/f", os.geteuid(), os.getegid())
    end.utime_ns(f"{top}/d/f", 5, 1_000_000_007)
    st = end.stat(f"{top}/d/g")
    assert (stat.S_IMODE(st.st_mode), st.st_atime_ns, st.st_mtime_ns) == (0o604, 5, 1_000_000_007)
    end.unlink(f"{top}/d/p")
    assert sorted(end.names(f"{top}/d")) == ["f", "g", "l"]


def test_a_hard_link_of_a_link_is_one_of_the_link(side: tuple[Side, str]) -> None:
    end, top = side
    end.symlink("nowhere", f"{top}/l")
    end.link(f"{top}/l", f"{top}/m")
    assert end.readlink(f"{top}/m") == "nowhere"


def test_extended_attributes_with_and_without_following(side: tuple[Side, str]) -> None:
    end, top = side
    with end.open_raw(f"{top}/f", os.O_RDWR | os.O_CREAT, 0o644):
        pass
    end.symlink("f", f"{top}/l")
    end.setxattr(f"{top}/l", "user.a", b"value", True)
    assert end.listxattr(f"{top}/f", False) == ["user.a"]
    assert end.getxattr(f"{top}/l", "user.a", True) == b"value"
    assert end.listxattr(f"{top}/l", False) == []
    end.removexattr(f"{top}/l", "user.a", True)
    assert end.listxattr(f"{top}/f", False) == []

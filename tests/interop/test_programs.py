"""Real programs on a real kernel mount: git, tar, rsync, cp, sqlite, fio, locks, mmap, venv, stress-ng."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from interop.mounts import PROGRAM_KINDS, Mounted, mounted
from interop.programs import PROGRAMS, Program

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(180)]

# "native" checks the programs themselves: the same functions on the plain directory.
_KINDS = [*PROGRAM_KINDS, pytest.param("native", marks=pytest.mark.soak)]


@pytest.fixture(scope="module", params=_KINDS)
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One server for all programs on a kind; it must end well at the end."""
    with mounted(request.param, tmp_path_factory.mktemp(request.param)) as result:
        yield result


@pytest.fixture
def mounted_dir(mount: Mounted, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on the mount, removed afterwards; the server must be alive before and after."""
    mount.check_alive()
    directory = mount.directory / f"work-{abs(hash(request.node.name)):x}"
    directory.mkdir()
    try:
        yield directory
    finally:
        mount.check_alive()
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    "program", [pytest.param(each, id=each.name, marks=pytest.mark.needs(*each.needs)) for each in PROGRAMS]
)
def test_program_does_its_work(
    program: Program, mounted_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if program.name == "stress_seek" and "writeback" in request.node.name:
        # fs/fuse/file.c, fuse_lseek: the server is asked about data that the kernel still keeps from it.
        pytest.skip("kernel has no SEEK_DATA for data that is not written back")
    program.function(mounted_dir, tmp_path)

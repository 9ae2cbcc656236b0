"""100,000 random operations on a mount and, in the same order, on a native tmpfs: the two must never differ."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from interop import random_ops
from interop.mounts import PROGRAM_KINDS, mounted

pytestmark = pytest.mark.interop

STEPS = 100_000
USER_STEPS = 20_000
SOAK_STEPS = 1_000_000
LIMIT_S = 170


@pytest.fixture
def model() -> Iterator[str]:
    """An empty directory on tmpfs, the kernel's own filesystem in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        yield place


def _compare(model: str, other: Path, seed: int, steps: int, *more: str, limit_s: float = LIMIT_S) -> str:
    command = [sys.executable, random_ops.__file__, model, str(other), "--seed", str(seed), "--steps", str(steps)]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=limit_s, check=False)
    print(done.stdout)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", (*PROGRAM_KINDS, "hostdir-io-uring"))
def test_mount_agrees_with_tmpfs(kind: str, model: str, tmp_path: Path, seed: int) -> None:
    with mounted(kind, tmp_path) as mount:
        place = mount.directory / "work"
        place.mkdir()
        assert f"{STEPS} steps" in _compare(model, place, seed, STEPS)


@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", PROGRAM_KINDS)
def test_mount_agrees_with_tmpfs_for_an_ordinary_user(kind: str, model: str, tmp_path: Path, seed: int) -> None:
    with mounted(kind, tmp_path) as mount:
        _open_the_way(mount.directory)
        place = mount.directory / "work"
        place.mkdir()
        assert f"{USER_STEPS} steps" in _compare(model, place, seed, USER_STEPS, "--user", "54321:54331")


@pytest.mark.soak
@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", PROGRAM_KINDS)
def test_mount_agrees_with_tmpfs_for_a_million_steps(kind: str, model: str, tmp_path: Path, seed: int) -> None:
    with mounted(kind, tmp_path) as mount:
        place = mount.directory / "work"
        place.mkdir()
        _compare(model, place, seed, SOAK_STEPS, limit_s=3500)


def test_native_filesystems_agree(model: str, tmp_path: Path, seed: int) -> None:
    """The check of the check: where no server is between, there is no difference."""
    assert "20000 steps" in _compare(model, tmp_path, seed, 20_000)


def test_same_seed_gives_the_same_steps(seed: int) -> None:
    one, two = iter(random_ops.Steps(seed)), iter(random_ops.Steps(seed))
    assert [next(one) for _ in range(2000)] == [next(two) for _ in range(2000)]


def test_every_operation_is_drawn(seed: int) -> None:
    steps = iter(random_ops.Steps(seed))
    drawn = {next(steps)[0] for _ in range(5000)}
    assert drawn == set(random_ops.Steps.WEIGHTS) - {"create"}


def test_difference_in_an_answer_is_reported_with_the_last_operations(model: str, tmp_path: Path, seed: int) -> None:
    (tmp_path / "a").write_bytes(b"only here")
    with pytest.raises(random_ops.Differ, match=rf"(?s)seed {seed}, step \d+: .*last operations:\n\d+: \w+\("):
        random_ops.run(model, str(tmp_path), seed, 1000)


@pytest.mark.parametrize("what", ["content", "mode", "attribute", "marker", "target", "name"])
def test_difference_in_a_tree_is_found(what: str, model: str, tmp_path: Path) -> None:
    worlds = [random_ops.World(place, True) for place in (model, str(tmp_path))]
    for world in worlds:
        Path(world.root, "f").write_bytes(b"same")
        Path(world.root, "l").symlink_to("f")
        os.utime(Path(world.root, "f"), ns=(random_ops.MARKER_NS, random_ops.MARKER_NS))
    assert random_ops._compare_trees(*worlds) == 2
    path, marker = tmp_path / "f", random_ops.MARKER_NS
    if what == "content":
        path.write_bytes(b"samE")
        os.utime(path, ns=(marker, marker))
    elif what == "mode":
        path.chmod(0o600)
    elif what == "attribute":
        os.setxattr(path, "user.x", b"1")
    elif what == "marker":
        os.utime(path)
    elif what == "target":
        (tmp_path / "l").unlink()
        (tmp_path / "l").symlink_to("g")
    else:
        (tmp_path / "extra").touch()
    with pytest.raises(random_ops.Differ):
        random_ops._compare_trees(*worlds)


def _open_the_way(directory: Path) -> None:
    """Let other users reach the directory: pytest makes its temporary directories for their owner only."""
    for parent in directory.parents:
        status = parent.stat()
        if parent.name.startswith("pytest-") or parent.parent.name.startswith("pytest-"):
            parent.chmod((status.st_mode & 0o7777) | 0o711)

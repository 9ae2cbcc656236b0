"""The POSIX cases on kernel mounts, as root and as an ordinary user, and what a mount may lose of its source."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from interop.mounts import KINDS, Mounted, mounted
from transfuse.testing.posix import ALICE, Case, Need, Suite, User, all_cases, lost, probe

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(180)]

_GROUPS = sorted({case.group for case in all_cases()})
# The kernel's FUSE has no request for these (fs/fuse/file.c refuses the modes before asking the server).
_NOT_IN_FUSE = {Need.COLLAPSE_RANGE, Need.INSERT_RANGE}

# With write-back the kernel keeps ctime of regular files itself (fs/fuse/inode.c, fuse_get_cache_mask) and does not
# move it for an ioctl; nothing a server sends changes that.
_KEPT_BY_THE_KERNEL = {
    ("hostdir-writeback", "ioctl_attrs.setting_flags_moves_ctime"),
    ("memory-writeback", "ioctl_attrs.setting_flags_moves_ctime"),
    # Without OPEN the source is not asked: it does not hear of O_NOATIME, and refuses only the writing.
    ("hostdir-no-open", "read_write.reading_with_o_noatime_leaves_atime"),
    ("hostdir-no-open", "ioctl_attrs.immutable"),
    ("hostdir-no-open", "ioctl_attrs.append_only"),
}


_SOAK_KINDS = ("memory-writeback", "hostdir-no-open", "native")


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=pytest.mark.soak if k in _SOAK_KINDS else ()) for k in (*KINDS, "native")],
)
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(request.param, tmp_path_factory.mktemp(request.param)) as result:
        yield result


@pytest.fixture(scope="module")
def as_root(mount: Mounted) -> Suite:
    return Suite(str(mount.directory))


@pytest.fixture(scope="module")
def as_user(mount: Mounted) -> Suite:
    return Suite(str(mount.directory), User(*ALICE))


def _run(suite: Suite, mount: Mounted, group: str) -> None:
    cases: list[Case] = [
        case for case in all_cases() if case.group == group and (mount.kind, case.id) not in _KEPT_BY_THE_KERNEL
    ]
    failures = [f"{outcome.case.id}: {outcome.message}" for outcome in suite.run(cases) if outcome.status == "fail"]
    mount.check_alive()
    assert not failures, f"{len(failures)} of {len(cases)}:\n" + "\n".join(failures)


@pytest.mark.parametrize("group", _GROUPS)
def test_root_finds_posix_behaviour(group: str, mount: Mounted, as_root: Suite) -> None:
    _run(as_root, mount, group)


@pytest.mark.parametrize("group", _GROUPS)
def test_ordinary_user_finds_posix_behaviour(group: str, mount: Mounted, as_user: Suite) -> None:
    _run(as_user, mount, group)


def test_mount_has_what_its_source_has(mount: Mounted, as_root: Suite) -> None:
    """A hostdir mount loses nothing but what the kernel's FUSE can't ask for; memory is held to a tmpfs."""
    if mount.source is not None:
        reference = probe(str(mount.source))
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
            reference = probe(place)
    allowed = _NOT_IN_FUSE
    if mount.kind.endswith("-writeback"):
        allowed = allowed | {Need.SEEK_HOLE}  # the kernel doesn't write back before it asks, so it is told not to ask
    if mount.kind == "memory-writeback":
        allowed = allowed | {Need.ATIME}  # what was just written is read from the kernel's pages
    gone = [need for need in lost(reference, as_root.missing) if need not in allowed]
    assert not gone, "\n".join(f"{need.name}: {as_root.missing[need]}" for need in gone)


def test_files_on_the_mount_are_the_files_of_the_source(mount: Mounted) -> None:
    """What is written through the mount is in the source, and the other way round."""
    if mount.source is None:
        pytest.skip("the memory filesystem has no source directory")
    (mount.directory / "through-mount").write_bytes(b"one")
    assert (mount.source / "through-mount").read_bytes() == b"one"
    (mount.source / "in-source").write_bytes(b"two")
    assert (mount.directory / "in-source").read_bytes() == b"two"
    for path in (Path(mount.directory / "through-mount"), mount.directory / "in-source"):
        path.unlink()
    assert not list(mount.source.glob("*-*ource")) and not (mount.source / "through-mount").exists()

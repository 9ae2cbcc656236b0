from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from transfuse.transports.mount import MountError, syscalls


@pytest.mark.parametrize(
    ("machine", "pointer_bytes", "offset"),
    [("x86_64", 8, 0), ("aarch64", 8, 0), ("s390x", 8, 0), ("mips64", 8, 5000), ("mips", 4, 4000), ("alpha", 8, 110)],
)
def test_numbers_per_architecture(machine: str, pointer_bytes: int, offset: int) -> None:
    assert syscalls.syscall_offset(machine, pointer_bytes) == offset


def test_umount2_of_nothing_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        syscalls.umount2(os.fsencode(tmp_path), 0)
    assert caught.value.errno in {errno.EINVAL, errno.EPERM}


@pytest.mark.needs("root")
def test_root_may_mount() -> None:
    assert syscalls.may_mount()


@pytest.mark.needs("root")
def test_unknown_filesystem_type_is_enodev_of_fsopen() -> None:
    with pytest.raises(MountError) as caught:
        syscalls.FsContext.open(b"no-such-type")
    assert (caught.value.errno, caught.value.step) == (errno.ENODEV, "fsopen")


@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("fd", "abc", "Bad value for 'fd'"),
        ("max_read", "-1", "Bad value for 'max_read'"),
        ("nonsense", "1", "Unknown parameter 'nonsense'"),
        ("subtype", "", "Bad value for 'subtype'"),
    ],
)
def test_the_kernels_own_words_are_kept(key: str, value: str, words: str) -> None:
    with syscalls.FsContext.open(b"fuse") as context, pytest.raises(MountError) as caught:
        context.set_string(key, value)
    assert (caught.value.errno, caught.value.step) == (errno.EINVAL, f"fsconfig {key}")
    assert words in caught.value.text


@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.parametrize("key", ["source", "subtype"])
def test_the_kernel_refuses_a_second_source_or_subtype(key: str) -> None:
    with syscalls.FsContext.open(b"fuse") as context:
        context.set_string(key, "a")
        with pytest.raises(MountError) as caught:
            context.set_string(key, "a")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.needs("root", "/dev/fuse")
def test_creating_without_required_parameters_is_einval() -> None:
    with syscalls.FsContext.open(b"fuse") as context:
        context.set_string("source", "x")
        with pytest.raises(MountError) as caught:
            context.create()
    assert (caught.value.errno, caught.value.step) == (errno.EINVAL, "fsconfig create")


@pytest.mark.needs("root", "/dev/fuse")
def test_closing_twice_is_harmless() -> None:
    context = syscalls.FsContext.open(b"fuse")
    context.close()
    context.close()

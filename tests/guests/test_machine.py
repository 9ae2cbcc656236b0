"""QEMU's command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from guests.machine import MACHINES, Filesystem, command, qemu_of
from guests.packages import Missing


def _words(name: str, *filesystems: Filesystem) -> list[str]:
    here = Path("/x")
    return command(
        MACHINES[name],
        qemu=["qemu"],
        kernel=here / "kernel",
        initrd=here / "initrd",
        console=here / "console",
        sockets=here,
        filesystems=filesystems,
        memory_mib=256,
        cpus=2,
    )


@pytest.mark.parametrize("name", MACHINES)
def test_memory_is_a_shared_memfd_on_every_machine(name: str) -> None:
    words = _words(name)
    assert "memory-backend-memfd,id=ram,share=on,size=256M" in words
    assert words[words.index("memory-backend=ram") - 1] == "-machine"


@pytest.mark.parametrize("name", MACHINES)
def test_kernel_speaks_on_the_console_that_the_machine_has(name: str) -> None:
    words = _words(name)
    assert words[words.index("-append") + 1].startswith(f"console={MACHINES[name].console} ")
    assert "file,id=console,path=/x/console" in words


def test_filesystems_are_attached_by_the_bus_of_the_machine() -> None:
    here = Filesystem(Path("/s/one"), "one", queues=4, queue_size=1024)
    assert _words("s390x", here)[-4:] == [
        "-chardev", "socket,id=fs0,path=/s/one",
        "-device", "vhost-user-fs-ccw,chardev=fs0,tag=one,queue-size=1024,num-request-queues=4",
    ]  # fmt: skip
    assert _words("amd64", here, Filesystem(Path("/s/two"), "two"))[-1] == (
        "vhost-user-fs-pci,chardev=fs1,tag=two,queue-size=128,num-request-queues=1"
    )


def test_generic_device_counts_the_hiprio_queue_and_has_no_tag() -> None:
    device = Filesystem(Path("/s/dax"), queues=2, generic=True).arguments(0, "pci")[-1]
    assert device == "vhost-user-test-device-pci,chardev=fs0,virtio-id=26,num_vqs=3,vq_size=128,config_size=40"


def test_other_accelerator_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _words("amd64")[_words("amd64").index("-accel") + 1] == "tcg"
    monkeypatch.setenv("TRANSFUSE_GUEST_ACCEL", "kvm")
    assert _words("amd64")[_words("amd64").index("-accel") + 1] == "kvm"
    monkeypatch.setenv("TRANSFUSE_GUEST_ACCEL", "kvm,path=/etc")
    with pytest.raises(ValueError, match="not the name of an accelerator"):
        _words("amd64")


def test_qemu_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="needs the program qemu-system-ppc64: not found on PATH"):
        qemu_of(MACHINES["ppc64el"])


def test_every_machine_names_what_it_is() -> None:
    assert {(machine.page_size, machine.byte_order) for machine in MACHINES.values()} == {
        (4096, "little"), (4096, "big"), (16384, "little"), (65536, "little"),
    }  # fmt: skip
    assert all(name == machine.name for name, machine in MACHINES.items())

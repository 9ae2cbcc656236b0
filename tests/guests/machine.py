"""The machines guests run on: per architecture a Debian kernel, a QEMU and its command line; the devices they get.

Theory: every guest is a `Machine`, one row of MACHINES. All run under TCG, because KVM is rarely to be had where tests
run, and where it can be opened it does not always work; `TRANSFUSE_GUEST_ACCEL=kvm` asks for it. Memory is a memfd that
vhost-user back-ends map. Everything that talks to the outside is a Unix socket on which *we* listen and QEMU connects
at its start, so a harness that has accepted knows that QEMU is there, and one that ends takes the connection along.

Why these: Debian's cloud kernels are LZ4-compressed and start in half the time of the ordinary ones; 6.12 (trixie) is
the first that uses several request queues; arm64 has kernels with pages of 4 and 16 KiB, ppc64el has 64 KiB pages,
s390x is big-endian. QEMU's own firmware for pseries takes 6 s longer than x-vof.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guests.packages import Missing

KERNEL_OPTIONS = "loglevel=6 panic=-1 nokaslr mitigations=off"
QUEUE_SIZE = 128


@dataclass(slots=True, frozen=True)
class Machine:
    """A kind of guest."""

    name: str
    architecture: str
    """Debian's word: amd64, ppc64el."""
    suite: str
    kernel: str
    """The package, usually a meta-package that depends on the current one."""
    qemu: str
    """The QEMU target: qemu-system-..."""
    options: str
    console: str
    bus: str = "pci"
    """How virtio devices are attached: pci, ccw, or device (mmio)."""
    page_size: int = 4096
    byte_order: str = "little"
    userland: str = "bookworm"
    """The suite that programs come from: one of an older suite than the kernel does."""


_POWER = (
    "-M pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off -cpu power9"
)  # without x-vof the firmware alone takes 6 s; the capabilities are what TCG hasn't
_ARM = "-M virt -cpu neoverse-n1"  # has 16 KiB pages; -cpu max is slower

MACHINES = {
    machine.name: machine
    for machine in (
        Machine("amd64", "amd64", "bookworm", "linux-image-cloud-amd64", "x86_64", "-M q35 -cpu max", "ttyS0"),
        Machine("amd64-6.12", "amd64", "trixie", "linux-image-cloud-amd64", "x86_64", "-M q35 -cpu max", "ttyS0"),
        Machine("arm64", "arm64", "bookworm", "linux-image-cloud-arm64", "aarch64", _ARM, "ttyAMA0"),
        Machine(
            "arm64-16k", "arm64", "trixie", "linux-image-arm64-16k", "aarch64", _ARM, "ttyAMA0", page_size=16384
        ),
        Machine(
            "ppc64el", "ppc64el", "bookworm", "linux-image-powerpc64le", "ppc64", _POWER, "hvc0", page_size=65536
        ),
        Machine(
            "s390x", "s390x", "bookworm", "linux-image-s390x", "s390x", "-M s390-ccw-virtio -cpu max", "ttysclp0",
            bus="ccw", byte_order="big",
        ),  # fmt: skip
        Machine("i386", "i386", "bookworm", "linux-image-686-pae", "i386", "-M q35 -cpu max", "ttyS0"),
        Machine("armhf", "armhf", "bookworm", "linux-image-armmp-lpae", "arm", "-M virt -cpu cortex-a15", "ttyAMA0"),
        Machine(
            "riscv64", "riscv64", "trixie", "linux-image-riscv64", "riscv64", "-M virt", "ttyS0", userland="trixie"
        ),
        Machine(
            "mips64el", "mips64el", "bookworm", "linux-image-5kc-malta", "mips64el", "-M malta -cpu MIPS64R2-generic",
            "ttyS0",
        ),  # fmt: skip
    )
}


@dataclass(slots=True, frozen=True)
class Filesystem:
    """A virtio-fs device: who listens on its socket, the tag it is mounted by."""

    socket: Path
    tag: str = "fs"
    queues: int = 1
    queue_size: int = QUEUE_SIZE
    generic: bool = False
    """QEMU 11's generic vhost-user device: the one that has a DAX window. Its tag is the back-end's."""

    def arguments(self, number: int, bus: str) -> list[str]:
        """QEMU's."""
        chardev = f"socket,id=fs{number},path={self.socket}"
        if self.generic:
            size = 40  # struct virtio_fs_config without notify_buf_size
            device = (
                f"vhost-user-test-device-{bus},chardev=fs{number},virtio-id=26,num_vqs={self.queues + 1},"
                f"vq_size={self.queue_size},config_size={size}"
            )
        else:
            device = (
                f"vhost-user-fs-{bus},chardev=fs{number},tag={self.tag},queue-size={self.queue_size},"
                f"num-request-queues={self.queues}"
            )
        return ["-chardev", chardev, "-device", device]


def qemu_of(machine: Machine) -> list[str]:
    """The command that starts this machine's QEMU; Missing if it is not installed."""
    name = f"qemu-system-{machine.qemu}"
    if shutil.which(name) is None:
        raise Missing(f"needs the program {name}: not found on PATH")
    return [name]


def command(
    machine: Machine,
    *,
    qemu: Sequence[str],
    kernel: Path,
    initrd: Path,
    console: Path,
    sockets: Path,
    filesystems: Sequence[Filesystem] = (),
    memory_mib: int = 512,
    cpus: int = 1,
    kernel_options: str = "",
    extra: Sequence[str] = (),
) -> list[str]:
    """QEMU's command line.

    `sockets` is a folder where the harness listens on "commands", "keys" and "monitor"; `console` a file that gets what
    the kernel prints.
    """
    accel = os.environ.get("TRANSFUSE_GUEST_ACCEL", "tcg")
    if not re.fullmatch(r"[a-z]+", accel):
        raise ValueError(f"TRANSFUSE_GUEST_ACCEL={accel!r}: not the name of an accelerator")
    words = [*qemu, *machine.options.split(), "-accel", accel, "-m", f"{memory_mib}M", "-smp", str(cpus)]
    words += ["-object", f"memory-backend-memfd,id=ram,share=on,size={memory_mib}M", "-machine", "memory-backend=ram"]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-action", "reboot=shutdown"]
    words += ["-kernel", str(kernel), "-initrd", str(initrd)]
    words += ["-append", f"console={machine.console} {KERNEL_OPTIONS} {kernel_options}".strip()]
    words += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
    words += ["-device", f"virtio-serial-{machine.bus}"]
    for port in ("commands", "keys"):
        words += ["-chardev", f"socket,id={port},path={sockets / port}"]
        words += ["-device", f"virtserialport,chardev={port},name=guest.{port}"]
    words += ["-qmp", f"unix:{sockets / 'monitor'}"]
    for number, filesystem in enumerate(filesystems):
        words += filesystem.arguments(number, machine.bus)
    return [*words, *extra]

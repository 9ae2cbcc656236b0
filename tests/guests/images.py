"""What guests are made of, in the cache: kernels with their modules, Python for a guest, QEMU and virtiofsd of sid.

Theory: each is made once from Debian's packages (see `packages.prepared`) and then only read. How programs get into a
guest, the cheapest way first:

- a file of ours: `Guest.put`, or `files=` of a boot;
- Python of the guest's own architecture with this source tree beside it: `interpreter` and `source_tree`, appended to
  the initramfs (30 MB, a second of a guest's time), so that one script runs on every machine;
- any Debian package with all it depends on: `programs`, appended likewise;
- on amd64, everything this machine has: "/" served read-only to the guest, which changes its root to it (servers.py).
"""

from __future__ import annotations

import hashlib
import importlib.util
import lzma
import os
import py_compile
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guests import initramfs
from guests.initramfs import Cpio
from guests.machine import Machine
from guests.packages import Archive, Missing, members, prepared, unpack

MODULES = ("virtio_pci", "virtio_mmio", "virtio_console", "virtiofs")
_MODULE = re.compile(r"/modules/([^/]+)/kernel/(fs|lib|crypto|drivers/(virtio|char|dax|md))/.*\.ko(\.xz)?$")
_IMAGE = re.compile(r"^boot/vmlinu[xz]-|^usr/lib/modules/[^/]+/vmlinu[xz]$")
_KERNEL_PARTS = re.compile(r"^linux-(image|base|binary|modules)-\S*\d")

PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
# of the standard library: what no test in a guest imports, half of its size
_NOT_NEEDED = re.compile(
    r"/(test|tests|idlelib|lib2to3|distutils|tkinter|turtledemo|ensurepip|pydoc_data|config-\S+|__pycache__|venv|"
    r"wsgiref|xmlrpc|curses|dbm|sqlite3|gconv|audit)/|/usr/(share|sbin)/|/_pydecimal|/turtle.py|lib-dynload/_codecs_"
)

ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True, frozen=True)
class Kernel:
    """A kernel ready to boot: its image, an archive with busybox, modules and init, and its release."""

    image: Path
    archive: Path
    release: str


def kernel(machine: Machine) -> Kernel:
    """The machine's kernel. Missing if it can't be fetched."""
    folder = prepared(f"kernels/{machine.name}", lambda to: _make_kernel(machine, to))
    return Kernel(folder / "image", folder / "archive", (folder / "release").read_text().strip())


def _make_kernel(machine: Machine, to: Path) -> None:
    with Archive(machine.suite, machine.architecture) as archive:
        images = [name for name in archive.depends(machine.kernel) if _KERNEL_PARTS.match(name)]
        if not images:
            raise Missing(f"{archive}: no kernel behind {machine.kernel}, a needed package is missing")
        # newer Debian packs image, modules and their list apart
        parts = [name for name in archive.depends(images[0]) if _KERNEL_PARTS.match(name)]
        debs = archive.download([*parts, *(images if not parts else ())])
        image = b""
        release = ""
        builtin: frozenset[str] = frozenset()
        modules: dict[str, bytes] = {}
        for deb in debs:
            for entry, read in members(deb):
                if not entry.isfile():
                    continue
                if _IMAGE.search(entry.name):
                    image = read()
                elif entry.name.endswith("/modules.builtin"):
                    release = entry.name.split("/")[-2]
                    builtin = frozenset(initramfs.module_name(line) for line in read().decode().split())
                elif _MODULE.search(entry.name):
                    data = read()
                    name = initramfs.module_name(entry.name)
                    modules[name] = lzma.decompress(data) if entry.name.endswith(".xz") else data
    if not image or not release:
        raise Missing(f"{machine.kernel} of {machine.suite}: the kernel or its list of modules is missing")
    out = initramfs.skeleton()
    order = initramfs.load_order(MODULES, modules, builtin)
    out.file("modules/order", "".join(f"{name}.ko\n" for name in order).encode())
    for name in order:
        out.file(f"modules/{name}.ko", modules[name])
    out.file("usr/bin/busybox", _busybox(machine), 0o755)
    (to / "image").write_bytes(image)
    (to / "archive").write_bytes(bytes(out))
    (to / "release").write_text(release + "\n")


def _busybox(machine: Machine) -> bytes:
    with Archive(machine.userland, machine.architecture) as archive:
        for deb in archive.download(["busybox-static"]):
            for entry, read in members(deb):
                if entry.name.endswith("bin/busybox") and entry.isfile():
                    return read()
    raise Missing(f"busybox-static of {machine.userland} {machine.architecture} is missing a busybox")


def interpreter(machine: Machine) -> Path:
    """An archive with Python as /usr/bin/python3 and its standard library, and C library, of the machine's userland."""
    version = PYTHON[machine.userland]
    names = [f"python{version}-minimal", f"libpython{version}-minimal", f"libpython{version}-stdlib"]
    names += ["libc6", "libgcc-s1", "zlib1g", "libexpat1", "libffi8", "liblzma5", "libbz2-1.0"]

    def make(to: Path) -> None:
        out = Cpio()
        with Archive(machine.userland, machine.architecture) as archive:
            for deb in archive.download(names):
                _add_package(out, deb, version)
        out.link("usr/bin/python3", f"python{version}")
        (to / "archive").write_bytes(bytes(out))

    # compiled here if this is the same version, which saves the guest the slowest part of its start
    compiled = "compiled" if sys.version_info[:2] == tuple(map(int, version.split("."))) else "source"
    return prepared(f"python/{machine.userland}-{machine.architecture}-{compiled}", make) / "archive"


def programs(machine: Machine, packages: Sequence[str], *, without: Sequence[str] = ()) -> Path:
    """An archive with Debian packages and all they depend on, except `without` and what is documentation only."""
    key = hashlib.sha256(" ".join([*packages, "-", *without]).encode()).hexdigest()[:12]

    def make(to: Path) -> None:
        out = Cpio()
        with Archive(machine.userland, machine.architecture) as archive:
            names = [name for name in archive.closure(packages) if name not in without]
            for deb in archive.download(names):
                _add_package(out, deb, None)
        (to / "archive").write_bytes(bytes(out))

    return prepared(f"programs/{machine.userland}-{machine.architecture}-{packages[0]}-{key}", make) / "archive"


def _add_package(out: Cpio, deb: Path, python: str | None) -> None:
    for entry, read in members(deb):
        name = initramfs.merged(entry.name)
        if name.startswith(("usr/share/doc", "usr/share/man", "usr/share/locale")) or _NOT_NEEDED.search(f"/{name}"):
            continue
        if entry.issym():
            out.link(name, entry.linkname)
        elif entry.isfile() and python and name.startswith(f"usr/lib/python{python}/") and name.endswith(".py"):
            _add_module(out, name, read(), python)
        elif entry.isfile():
            out.file(name, read(), entry.mode & 0o755)


def _add_module(out: Cpio, name: str, source: bytes, python: str) -> None:
    """A module of the standard library: its compiled form alone, where this Python makes what the guest's reads."""
    if sys.version_info[:2] != tuple(map(int, python.split("."))):
        out.file(name, source)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "module.py")
        place.write_bytes(source)
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        done = py_compile.compile(
            str(place), str(place.with_suffix(".pyc")), f"/{name}", doraise=False, quiet=2, invalidation_mode=unchecked
        )
        if done is not None:  # the library holds files that are no Python on purpose
            out.file(f"{name}c", place.with_suffix(".pyc").read_bytes())


def source_tree() -> bytes:
    """An archive with this package as /opt/transfuse and the guests' own scripts as /opt/guest, for python3 -m.

    What Python has compiled here goes along; it is valid in a guest with the same version, as the times go along, too.
    """
    source = ROOT / "src"
    files = [path for path in sorted((source / "transfuse").rglob("*.py")) if "_c" not in path.parts]
    files += [
        compiled
        for path in files
        if (compiled := Path(importlib.util.cache_from_source(str(path)))).exists()
    ]  # fmt: skip
    files += sorted((source / "transfuse").rglob("*.json"))
    scripts = sorted((ROOT / "tests" / "guests" / "inside").glob("*.py"))
    inside = initramfs.tree(ROOT / "tests" / "guests" / "inside", "opt/guest", scripts)
    return bytes(initramfs.tree(source, "opt/transfuse", files)) + bytes(inside)


@dataclass(slots=True, frozen=True)
class Newer:
    """Programs of Debian sid that run here by sid's own loader and libraries, whatever this machine's are."""

    folder: Path

    @property
    def _loader(self) -> list[str]:
        libraries = next((self.folder / "usr/lib").glob("*-linux-gnu*"))
        loader = next(each for each in sorted(libraries.glob("ld-linux*.so.*")))
        return [str(loader), "--library-path", f"{libraries}:{libraries / 'qemu'}:{libraries / 'systemd'}"]

    def virtiofsd(self) -> list[str]:
        """The command that starts virtiofsd."""
        return [*self._loader, str(self.folder / "usr/libexec/virtiofsd")]

    def qemu(self, target: str) -> list[str]:
        """The command that starts qemu-system-TARGET, with its own firmware."""
        share = self.folder / "usr/share"
        return [
            *self._loader, str(self.folder / f"usr/bin/qemu-system-{target}"),
            "-L", str(share / "qemu"), "-L", str(share / "seabios"),
        ]  # fmt: skip


def virtiofsd_of_sid() -> Newer:
    """virtiofsd, the Rust one, of sid. Missing if it can't be fetched or doesn't run here."""
    newer = Newer(prepared("sid/virtiofsd", lambda to: _make_newer(to, ["virtiofsd"])))
    return _checked(newer, [*newer.virtiofsd(), "--version"])


def qemu_of_sid(target: str = "x86_64") -> Newer:
    """QEMU of sid (11.1 or newer), whose generic vhost-user device has a DAX window."""
    package = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}[target]
    newer = Newer(prepared(f"sid/qemu-{target}", lambda to: _make_newer(to, [package, "seabios"])))
    return _checked(newer, [*newer.qemu(target), "--version"])


def _checked(newer: Newer, command: list[str]) -> Newer:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        raise Missing(f"sid's {os.path.basename(command[3])}, which is needed, doesn't start here: {error}") from None
    if done.returncode:
        raise Missing(f"sid's {os.path.basename(command[3])}, which is needed, doesn't run here: {done.stderr[-300:]}")
    return newer


# in the closures, of no use to a program that is run by its path
_LEFT_OUT = ("debconf", "systemd", "uidmap", "gcc-16-base", "libc-gconv-modules-extra", "perl-base", "ipxe-qemu")


def _make_newer(to: Path, packages: Sequence[str]) -> None:
    def wanted(name: str) -> bool:
        return not name.startswith(("usr/share/doc", "usr/share/man", "usr/share/locale", "etc/", "var/"))

    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=False)
    with Archive("sid", architecture.stdout.strip() or "amd64") as archive:
        names = [name for name in archive.closure(packages) if name not in _LEFT_OUT]
        unpack(archive.download(names), to, wanted)

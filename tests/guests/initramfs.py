"""A guest's first files: archives in the kernel's "newc" format, and the order in which its modules must be loaded.

Theory: the kernel unpacks any number of archives that follow each other into one memory filesystem, later entries
replacing earlier ones. So what is slow to make (modules, an interpreter) is made once and kept, and what a single boot
needs is appended. The layout is usr-merged: /bin, /lib and /sbin are links, as Debian has it since bookworm.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
# 8 hexadecimal digits hold a field; the kernel refuses names above PATH_MAX
LARGEST_FILE = 0xFFFFFFFF


def merged(name: str) -> str:
    """A name relative to "/" as the merged layout has it: lib/x is usr/lib/x."""
    first = name.partition("/")[0]
    return f"usr/{name}" if first in MERGED else name


class Cpio:
    """An archive that grows; `bytes(...)` gives it with its end mark. Parents of a name are made as needed."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._number = 0
        self._folders: set[str] = set()

    def folder(self, name: str, mode: int = 0o755) -> None:
        """A directory and its parents; one that was added already is left as it is."""
        name = name.strip("/")
        if not name or name in self._folders:
            return
        self._folders.add(name)
        self.folder(os.path.dirname(name))
        self._entry(name, stat.S_IFDIR | mode, b"", 0)

    def file(self, name: str, data: bytes, mode: int = 0o644, mtime_s: int = 0) -> None:
        """A file, in place of what an earlier archive had under that name."""
        self.folder(os.path.dirname(name.strip("/")))
        self._entry(name.strip("/"), stat.S_IFREG | mode, data, mtime_s)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self.folder(os.path.dirname(name.strip("/")))
        self._entry(name.strip("/"), stat.S_IFLNK | 0o777, os.fsencode(target), 0)

    def _entry(self, name: str, mode: int, data: bytes, mtime_s: int) -> None:
        if len(data) > LARGEST_FILE:
            raise ValueError(f"{name}: {len(data)} bytes don't fit the format")
        self._number += 1
        self._out += self._header(name, self._number, mode, data, mtime_s)

    @staticmethod
    def _header(name: str, number: int, mode: int, data: bytes, mtime_s: int) -> bytes:
        path = os.fsencode(name) + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        fields = (number, mode, 0, 0, 1, mtime_s & 0xFFFFFFFF, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        head += bytes(-len(head) % 4)
        return head + data + bytes(-len(data) % 4)

    def __bytes__(self) -> bytes:
        return bytes(self._out) + self._header("TRAILER!!!", 0, 0, b"", 0)


def skeleton() -> Cpio:
    """An archive with the directories and links that every guest starts from."""
    out = Cpio()
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "host", "etc", "usr/bin", "usr/sbin"):
        out.folder(name)
    for name in MERGED:
        out.folder(f"usr/{name}")
        out.link(name, f"usr/{name}")
    out.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    out.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    return out


def tree(root: Path, below: str, wanted: Iterable[Path]) -> Cpio:
    """Files of a directory with their modification times, so that compiled Python stays valid beside its source."""
    out = Cpio()
    for path in wanted:
        status = path.stat()
        out.file(f"{below}/{path.relative_to(root)}", path.read_bytes(), status.st_mode & 0o755, int(status.st_mtime))
    return out


def module_name(path: str) -> str:
    """The name a module goes by in `depends=`: of .../virtio-rng.ko.xz, virtio_rng."""
    return re.sub(r"\.ko(\.\w+)?$", "", os.path.basename(path)).replace("-", "_")


def load_order(wanted: Iterable[str], modules: Mapping[str, bytes], builtin: frozenset[str]) -> list[str]:
    """Modules to load, each behind those that its .modinfo says it needs. LookupError if the kernel lacks one."""
    order: list[str] = []

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in order or name in builtin:
            return
        if name not in modules:
            raise LookupError(f"this kernel has no module {name}{f' ({path[-1]} needs it)' if path else ''}")
        if name in path:
            raise LookupError(f"modules that need each other: {' '.join((*path, name))}")
        found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", modules[name])
        for need in found[1].decode().split(",") if found else ():
            if need:
                add(need.replace("-", "_"), (*path, name))
        order.append(name)

    for name in wanted:
        add(name, ())
    return order

"""A directory tree with all that copying programs must carry over, and a comparison that misses none of it.

Theory: two trees are the same if the same names have the same type, mode, owner, times, content, target, device number,
extended attributes, and if the same names share an inode. Directory sizes, inode numbers and ctime are not compared:
they belong to the filesystem.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import struct
from pathlib import Path

PAST_NS = 1_500_000_000_123_456_789


def build(root: Path, *, seed: int = 7, devices: bool = True) -> None:
    """Files of many sizes, deep directories, hard and symbolic links, odd names, a fifo, holes, attributes, lists."""
    chance = random.Random(seed)
    root.mkdir(exist_ok=True)
    for number in range(60):
        folder = root / f"dir-{number % 7}" / f"sub-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        size = chance.choice((0, 1, 100, 4095, 4096, 4097, 20_000, 150_000))
        (folder / f"file-{number}").write_bytes(chance.randbytes(size))
    for name in ("with space", "new\nline", "ünïcode-é", "-dash", "quote'\"", "x" * 255):
        (root / name).write_bytes(name.encode())
    (root / os.fsdecode(b"invalid-\xff\xfe")).write_bytes(b"bytes")
    (root / "empty-directory").mkdir()
    os.link(root / "with space", root / "dir-1" / "hard-link")
    os.link(root / "with space", root / "hard-link-2")
    os.symlink("dir-1/sub-1", root / "link-to-directory")
    os.symlink("nowhere/at/all", root / "dangling")
    os.symlink("t" * 3000, root / "long-target")
    os.mkfifo(root / "fifo", 0o640)
    with open(root / "sparse", "wb") as file:
        file.write(b"head")
        file.truncate(3_000_000)
        file.seek(2_000_000)
        file.write(b"middle")
    for mode in (0o400, 0o777, 0o4755, 0o2755, 0o644):
        path = root / f"mode-{mode:o}"
        path.write_bytes(b"x")
        path.chmod(mode)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "setgid").mkdir()
    (root / "setgid").chmod(0o2775)
    os.setxattr(root / "with space", "user.note", b"value \x00\xff")
    os.setxattr(root / "dir-2", "user.empty", b"")
    os.setxattr(root / "sparse", "user.long", b"v" * 1000)
    acl = ((1, 6, -1), (2, 4, 4321), (4, 4, -1), (0x10, 6, -1), (0x20, 0, -1))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, who & 0xFFFFFFFF) for tag, bits, who in acl)
    os.setxattr(root / "mode-644", "system.posix_acl_access", value)
    if os.geteuid() == 0:
        os.chown(root / "mode-400", 1234, 5678)
        os.lchown(root / "dangling", 4321, 8765)
        os.chown(root / "dir-3", 1234, 5678)
        if devices:
            os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    # not rglob: before 3.11.4 it fails on a link whose target is longer than a name may be
    names = [Path(folder, name) for folder, folders, files in os.walk(root) for name in (*folders, *files)]
    for number, path in enumerate(sorted(sorted(names), key=lambda each: -len(each.parts))):
        os.utime(path, ns=(PAST_NS, PAST_NS + number * 1_000_000_007), follow_symlinks=False)
    os.utime(root, ns=(PAST_NS, PAST_NS))


def _attributes(path: str) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if not name.startswith("security.")}


def snapshot(
    root: Path | str, *, mtimes: bool = True, owners: bool = True, whole_seconds: bool = False
) -> dict[str, dict[str, object]]:
    """What can be known of every name below root, for comparison."""
    found: dict[str, dict[str, object]] = {}
    groups: dict[tuple[int, int], list[str]] = {}
    for folder, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = os.path.join(folder, name)
            key = os.path.relpath(path, root)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            entry: dict[str, object] = {"mode": oct(status.st_mode), "attributes": _attributes(path)}
            if owners:
                entry["owner"] = (status.st_uid, status.st_gid)
            if mtimes:
                entry["mtime"] = status.st_mtime_ns // 10**9 if whole_seconds else status.st_mtime_ns
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    entry["content"] = (status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
            elif kind == stat.S_IFLNK:
                entry["target"] = os.readlink(path)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                entry["device"] = status.st_rdev
            if kind != stat.S_IFDIR:
                entry["links"] = status.st_nlink
                groups.setdefault((status.st_dev, status.st_ino), []).append(key)
            found[key] = entry
    for names in groups.values():
        for key in names:
            found[key]["same inode"] = sorted(names)
    return found


def differences(
    one: Path | str, other: Path | str, *, mtimes: bool = True, owners: bool = True, whole_seconds: bool = False
) -> list[str]:
    """One line for each name and property that differs; empty if the trees are the same."""
    first = snapshot(one, mtimes=mtimes, owners=owners, whole_seconds=whole_seconds)
    second = snapshot(other, mtimes=mtimes, owners=owners, whole_seconds=whole_seconds)
    lines = [f"{name!r} only in the first" for name in sorted(first.keys() - second.keys())]
    lines += [f"{name!r} only in the second" for name in sorted(second.keys() - first.keys())]
    for name in sorted(first.keys() & second.keys()):
        for what, value in first[name].items():
            if second[name].get(what) != value:
                lines.append(f"{name!r}: {what} is {value!r} in the first, {second[name].get(what)!r} in the second")
    return lines

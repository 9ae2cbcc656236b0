"""A small root of its own for a process that serves, in new namespaces.

    begin()   in the process that stays outside: the next child is in a new PID namespace (and a user namespace, unless
              root), while this one stays where it is
    enter()   in that child: new mount, network, IPC, UTS and cgroup namespaces; a tmpfs, read-only when done, with what
              is bound into it; /proc of the new PID namespace; the old root is taken away

An fd of a directory of the old root would lead back by "..", so there must be none: enter() refuses when it finds one.
Open files and sockets are fine. The source is opened again, inside, by its place.

As root there is no user namespace: other users' ids, device nodes and file handles need the first one. An ordinary user
is mapped to the same uid and gid. The supplementary groups keep their say over files, but can't be changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transfuse.sandbox import linux
from transfuse.sandbox.linux import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY

__all__ = ["NAMES", "Bind", "begin", "enter", "refusal"]

NAMES = ("mount", "pid", "net", "ipc", "uts", "cgroup")
INNER = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
NULL = "/dev/null"
PROC = "/proc"
MAX_REASON = 4096
"""Bytes of the reason that a trial gives."""


@dataclass(frozen=True, slots=True)
class Bind:
    """`path` of the old root is seen as `place` (absolute, "": the same path)."""

    path: str
    place: str = ""
    read_only: bool = True
    device: bool = False
    """It is a device that may be opened."""

    @property
    def attributes(self) -> int:
        """MOUNT_ATTR_* of the mount and all below."""
        attributes = MOUNT_ATTR_NOSUID
        if not self.device:
            attributes |= MOUNT_ATTR_NODEV
        if self.read_only:
            attributes |= MOUNT_ATTR_RDONLY
        return attributes


def begin() -> None:
    """Have the next child start in new namespaces. OSError where that is not allowed."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        linux.unshare(linux.CLONE_NEWPID, "pid")
        return
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWPID, "user")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def enter(binds: Iterable[Bind]) -> None:
    """Make the new root and go there. OSError names the step; the process is then good for nothing but _exit()."""
    linux.unshare(INNER, "mount")
    linux.make_private()
    binds = [*binds, Bind(NULL, read_only=False, device=True)]
    links, trees = _links(binds), _clone(binds)
    try:
        nothing_special = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        root = linux.new_filesystem(b"tmpfs", nothing_special, (b"mode", b"755"))
        try:
            _attach(root, "/", os.open("/", os.O_PATH | os.O_CLOEXEC))
            for place, target in links:
                _make_directories(root, os.path.dirname(place))
                os.symlink(target, place[1:], dir_fd=root)
            trees.append((PROC, True, _new_proc()))
            # Outer mounts first: what lies inside one is mounted on a directory of it.
            for place, is_directory, tree in sorted(trees):
                _make_place(root, place, is_directory)
                _attach(tree, place, os.open(place[1:], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root))
            linux.set_mount_attributes(root, MOUNT_ATTR_RDONLY, recursive=False)
            linux.pivot_to(root)
            linux.detach_old_root()
        finally:
            os.close(root)
    finally:
        for _, _, tree in trees:
            os.close(tree)
    if left := _open_directories():
        raise OSError(f"new root: directories of the old one are open: {', '.join(left)}")


def _clone(binds: Sequence[Bind]) -> list[tuple[str, bool, int]]:
    """(place, is it a directory, fd of the detached mounts) of each; one that is not there is left out."""
    trees: dict[str, tuple[str, bool, int]] = {}
    try:
        for bind in binds:
            path = os.path.realpath(bind.path)
            place = bind.place or path
            if place in trees or not os.path.exists(path):
                continue
            tree = linux.clone_tree(os.fsencode(path))
            trees[place] = place, os.path.isdir(path), tree
            linux.set_mount_attributes(tree, bind.attributes)
    except BaseException:
        for _, _, tree in trees.values():
            os.close(tree)
        raise
    return list(trees.values())


def _links(binds: Sequence[Bind]) -> list[tuple[str, str]]:
    """(place, target) of symbolic links by which binds are known: /lib, for one. None lies behind another."""
    links: dict[str, str] = {}
    for path in sorted({bind.path for bind in binds if not bind.place}):
        real = os.path.realpath(path)
        if real != path and not any(path.startswith(f"{known}/") for known in links):
            links[path] = real
    return list(links.items())


def _make_directories(root: int, place: str) -> None:
    at = ""
    for part in place.strip("/").split("/"):
        at = f"{at}/{part}" if at else part
        if at:
            try:
                os.mkdir(at, 0o755, dir_fd=root)
            except FileExistsError:
                continue


def _make_place(root: int, place: str, is_directory: bool) -> None:
    """What is mounted on. Inside of something that is bound already it is there."""
    try:
        os.stat(place[1:], dir_fd=root, follow_symlinks=False)
        return
    except FileNotFoundError:
        pass
    if is_directory:
        _make_directories(root, place)
    else:
        _make_directories(root, os.path.dirname(place))
        os.close(os.open(place[1:], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=root))


def _attach(tree: int, what: str, at: int) -> None:
    try:
        linux.attach_tree(tree, at, what)
    finally:
        os.close(at)


def _new_proc() -> int:
    """/proc of this PID namespace; read-only, and without the kernel's settings where it can be (Linux 5.8)."""
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY
    try:
        return linux.new_filesystem(b"proc", attributes, (b"subset", b"pid"))
    except OSError:
        return linux.new_filesystem(b"proc", attributes)


def _open_directories() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISDIR(os.fstat(int(name)).st_mode):
                found.append(f"fd {name} ({os.readlink(f'/proc/self/fd/{name}')})")
        except OSError:  # the listing's own
            continue
    return found


def refusal(binds: Sequence[Bind]) -> str | None:
    """Why these namespaces are not to be had here, found out by making them in a process that is thrown away; None if
    they are. The process must have a single thread."""
    reader, writer = os.pipe()
    trial = os.fork()
    if trial == 0:
        os.close(reader)
        _try(binds, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read(MAX_REASON)
    _, status = os.waitpid(trial, 0)
    if status == 0 and said == b"":
        return None
    return said.decode(errors="replace") or f"a trial ended with status {status:#x}"


def _try(binds: Sequence[Bind], writer: int) -> None:
    """Never returns."""
    code = 1
    try:
        begin()
        child = os.fork()
        if child == 0:
            enter(binds)
        else:
            _, status = os.waitpid(child, 0)
            os._exit(1 if status else 0)
        code = 0
    except BaseException as error:  # noqa: BLE001  nothing may escape into the caller's own clean-up
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        os.write(writer, why.encode()[:MAX_REASON])
    finally:
        os._exit(code)

"""The system calls of containment that the os module does not have, by ctypes. Nothing here decides anything.

Each raises OSError whose text begins with the step that failed. Numbers of calls since Linux 5.1 are the same on every
architecture; seccomp(2) is older and has two.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

__all__ = [
    "ABI_VERSION",
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_RDONLY",
    "attach_tree",
    "capget",
    "capset",
    "clone_tree",
    "detach_old_root",
    "drop_ambient",
    "drop_bounding",
    "install_filter",
    "landlock_abi",
    "landlock_add_path",
    "landlock_create",
    "landlock_restrict",
    "make_private",
    "new_filesystem",
    "pivot_to",
    "set_death_signal",
    "set_mount_attributes",
    "set_no_new_privs",
    "unshare",
]

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT, SYS_MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 444, 445, 446
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "loongarch64": 277}.get(platform.machine())
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
AT_FDCWD = -100
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2
ABI_VERSION = 1
"""LANDLOCK_CREATE_RULESET_VERSION."""
RULE_PATH_BENEATH = 1
CAP_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _check(step: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result


def _call(step: str, number: int, *args: int | bytes | None) -> int:
    """syscall(2); ints become longs, so that none is cut to 32 bits."""
    longs = (ctypes.c_long(a) if isinstance(a, int) else a for a in args)
    return _check(step, int(_syscall(ctypes.c_long(number), *longs)))


def _prctl(step: str, option: int, *args: int) -> int:
    longs = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    return _check(step, _libc.prctl(option, *longs))


# -- privileges --


def set_no_new_privs() -> None:
    """No execve() gives more rights from now on; cannot be taken back."""
    _prctl("no_new_privs", PR_SET_NO_NEW_PRIVS, 1)


def set_death_signal(number: int) -> None:
    """Have `number` sent to this process when its parent thread ends."""
    _prctl("parent death signal", PR_SET_PDEATHSIG, number)


def drop_bounding(capability: int) -> None:
    """Take a capability from the bounding set. EINVAL: the kernel has none of this number."""
    _prctl(f"capability {capability} in the bounding set", PR_CAPBSET_DROP, capability)


def drop_ambient() -> None:
    """Empty the ambient set."""
    _prctl("ambient capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of the calling thread, a bit per capability."""
    data = ctypes.create_string_buffer(24)
    _check("capget", _libc.capget(struct.pack("=Ii", CAP_VERSION_3, 0), data))
    low = struct.unpack("=6I", data.raw)
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's three sets."""
    sets = (effective, permitted, inheritable)
    words = [s & 0xFFFF_FFFF for s in sets] + [s >> 32 for s in sets]
    _check("capset", _libc.capset(struct.pack("=Ii", CAP_VERSION_3, 0), struct.pack("=6I", *words)))


def install_filter(program: bytes) -> None:
    """Install a seccomp filter (n × 8-byte sock_filter) for every thread. ENOSYS where its number is not known."""
    if SYS_SECCOMP is None:
        raise OSError(errno.ENOSYS, f"seccomp: not known on {platform.machine()}")
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    if stuck := _call("seccomp", SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, header):
        raise OSError(errno.EBUSY, f"seccomp: thread {stuck} has a filter of its own")


# -- namespaces and mounts --


def unshare(flags: int, what: str) -> None:
    """unshare(2); `what` names the namespaces in the error."""
    _check(f"new {what} namespace", _libc.unshare(flags))


def make_private() -> None:
    """Nothing that is mounted from here on is seen by other mount namespaces."""
    _check("private mounts", _libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))


def clone_tree(path: bytes) -> int:
    """An fd of a detached copy of what is mounted at `path` and below."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    return _call(f"bind {os.fsdecode(path)}", SYS_OPEN_TREE, AT_FDCWD, path, flags)


def set_mount_attributes(fd: int, attributes: int, *, recursive: bool = True) -> None:
    """Add MOUNT_ATTR_* to the mount at `fd`, and to those below. Since Linux 5.12."""
    attr = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call("mount attributes", SYS_MOUNT_SETATTR, fd, b"", flags, attr, len(attr))


def attach_tree(tree_fd: int, to_fd: int, what: str) -> None:
    """Mount a detached tree on the directory or file `to_fd`."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _call(f"mount {what}", SYS_MOVE_MOUNT, tree_fd, b"", to_fd, b"", flags)


def new_filesystem(kind: bytes, attributes: int, *options: tuple[bytes, bytes]) -> int:
    """An fd of a new, detached mount of filesystem `kind`."""
    step = f"new {kind.decode()}"
    context = _call(step, SYS_FSOPEN, kind, FSOPEN_CLOEXEC)
    try:
        for name, value in options:
            _call(f"{step}, {name.decode()}", SYS_FSCONFIG, context, FSCONFIG_SET_STRING, name, value, 0)
        _call(step, SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(step, SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def pivot_to(fd: int) -> None:
    """Make the mount at `fd` the root; the old root is stacked on it, and "." is the old one."""
    os.fchdir(fd)
    _check("pivot_root", _libc.pivot_root(b".", b"."))


def detach_old_root() -> None:
    """Take away what `pivot_to` left at "."."""
    _check("old root", _libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


# -- Landlock --


def landlock_abi() -> int:
    """The version of Landlock's interface; 0 where there is none (ENOSYS) or it is switched off (EOPNOTSUPP)."""
    result = int(_syscall(ctypes.c_long(SYS_LANDLOCK_CREATE), None, ctypes.c_long(0), ctypes.c_long(ABI_VERSION)))
    return max(result, 0)


def landlock_create(attributes: bytes) -> int:
    """A ruleset's fd; `attributes` is as much of struct landlock_ruleset_attr as the ABI knows."""
    return _call("Landlock ruleset", SYS_LANDLOCK_CREATE, attributes, len(attributes), 0)


def landlock_add_path(ruleset: int, access: int, path_fd: int, what: str) -> None:
    """Allow `access` at and below `path_fd`."""
    rule = struct.pack("=Qi", access, path_fd)
    _call(f"Landlock rule for {what}", SYS_LANDLOCK_ADD, ruleset, RULE_PATH_BENEATH, rule, 0)


def landlock_restrict(ruleset: int) -> None:
    """The calling thread, and those it starts, can do no more than the ruleset says. Needs no_new_privs."""
    _call("Landlock", SYS_LANDLOCK_RESTRICT, ruleset, 0)

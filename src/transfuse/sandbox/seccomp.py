"""The filter on system calls: a BPF program of our own, for every thread.

By number a call is allowed, refused, examined, or unknown (`calls`). What refused means is the mode's: "kill" ends the
process at once, "log" lets everything pass and leaves a line in the audit log for what would not, "trap" sends SIGSYS,
"errno" answers EPERM. An examined call is judged by arguments that are numbers; what a pointer leads to could be
changed behind the filter's back, so clone3() does not exist here (glibc then uses clone()).

The order of the program: architecture, x32 calls, allowed ranges, refused ranges, examined calls, ENOSYS. Since Linux
5.11 the kernel remembers which calls pass whatever their arguments are, and does not run it for them.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from transfuse.sandbox import linux
from transfuse.sandbox.calls import ALLOWED, EXAMINED, REFUSED, Table

__all__ = ["MODES", "build", "install", "unavailable"]

MODES = ("none", "kill", "log", "trap", "errno")
X86_64, GENERIC = 0, 1
"""Columns of the tables."""
ARCHITECTURES = {
    "x86_64": (0xC000_003E, X86_64),
    "aarch64": (0xC000_00B7, GENERIC),
    "riscv64": (0xC000_00F3, GENERIC),
    "loongarch64": (0xC000_0102, GENERIC),
}
"""Machine -> AUDIT_ARCH_* of <linux/audit.h>, and the column."""
X32_BIT = 0x4000_0000

RET_KILL_PROCESS, RET_TRAP, RET_ERRNO, RET_LOG, RET_ALLOW = 0x8000_0000, 0x3_0000, 0x5_0000, 0x7FFC_0000, 0x7FFF_0000
LD_ABS, AND, JEQ, JGE, JGT, RET = 0x20, 0x54, 0x15, 0x35, 0x25, 0x06
NR_AT, ARCH_AT, ARGS_AT = 0, 4, 16
"""Offsets in struct seccomp_data; an argument's low half is first on these architectures, all little-endian."""
MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS."""

AF_UNIX, SOCK_STREAM, SOCK_SEQPACKET, SOCK_TYPE_MASK = 1, 1, 5, 0xF
CLONE_FS, CLONE_THREAD, CLONE_NEWTIME = 0x200, 0x10000, 0x80
CLONE_NEW_ANY = (
    linux.CLONE_NEWNS | linux.CLONE_NEWCGROUP | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWUSER
    | linux.CLONE_NEWPID | linux.CLONE_NEWNET | CLONE_NEWTIME
)  # fmt: skip
PR_ALLOWED = (3, 15, 16, 21, 23, 39, 0x5356_4D41)
"""PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS, PR_SET_VMA (glibc's
malloc names its areas)."""
TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: they type into the terminal that the server was started from."""

_INSTRUCTION = struct.Struct("=HBBI")


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, jt, jf, k)


@dataclass(frozen=True, slots=True)
class _Actions:
    """What the program returns for what is not allowed."""

    refused: int
    rest: int
    gentle: Callable[[int], int]
    """For an errno: where libraries may well try and must live on."""


def _actions(mode: str) -> _Actions:
    enosys = RET_ERRNO | errno.ENOSYS
    match mode:
        case "kill":
            return _Actions(RET_KILL_PROCESS, enosys, lambda number: RET_ERRNO | number)
        case "trap":
            return _Actions(RET_TRAP, enosys, lambda number: RET_ERRNO | number)
        case "errno":
            return _Actions(RET_ERRNO | errno.EPERM, enosys, lambda number: RET_ERRNO | number)
        case "log":
            return _Actions(RET_LOG, RET_LOG, lambda number: RET_LOG)
    raise ValueError(f"seccomp mode {mode!r} is none of {', '.join(MODES)}")


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def _for_ranges(numbers: Iterable[int], action: int) -> bytes:
    program = b""
    for low, high in _ranges(numbers):
        if low == high:
            program += _op(JEQ, low, 0, 1)
        else:
            program += _op(JGE, low, 0, 2) + _op(JGT, high, 1, 0)
        program += _op(RET, action)
    return program


def _argument(index: int, mask: int = 0xFFFF_FFFF) -> bytes:
    """Load the low half of an argument. ints and unsigned ints have no more; flags of clone() and unshare() use none
    of the high half."""
    load = _op(LD_ABS, ARGS_AT + 8 * index)
    return load if mask == 0xFFFF_FFFF else load + _op(AND, mask)


def _one_of(values: Iterable[int], then: int, otherwise: int) -> bytes:
    """Return `then` if what is loaded is one of `values`, else `otherwise`."""
    return b"".join(_op(JEQ, value, 0, 1) + _op(RET, then) for value in values) + _op(RET, otherwise)


def _examine(name: str, pid: int, actions: _Actions) -> bytes:
    """The end of the program for one call of EXAMINED; every way through it returns."""
    refused, denied, eperm = actions.refused, actions.gentle(errno.EACCES), actions.gentle(errno.EPERM)
    match name:
        case "clone":  # threads, and nothing else
            wanted = _argument(0, CLONE_THREAD | CLONE_NEW_ANY)
            return wanted + _one_of([CLONE_THREAD], RET_ALLOW, refused)
        case "clone3":
            return _op(RET, actions.gentle(errno.ENOSYS))
        case "unshare":  # a thread's own umask (filesystems.hostdir.credentials)
            return _argument(0) + _one_of([CLONE_FS], RET_ALLOW, refused)
        case "socket":  # loggers make Unix sockets anew when they can't write: an error for these
            return _argument(0) + _one_of([AF_UNIX], denied, refused)
        case "socketpair":  # not of datagrams: these can be sent to an address
            kinds = _argument(1, SOCK_TYPE_MASK) + _one_of([SOCK_STREAM, SOCK_SEQPACKET], RET_ALLOW, denied)
            return _argument(0) + _op(JEQ, AF_UNIX, 1, 0) + _op(RET, refused) + kinds
        case "connect" | "bind" | "listen":
            return _op(RET, denied)
        case "prctl":
            return _argument(0) + _one_of(PR_ALLOWED, RET_ALLOW, eperm)
        case "prlimit64":
            return _argument(0) + _one_of([0, pid], RET_ALLOW, eperm)
        case "kill" | "tgkill" | "rt_sigqueueinfo" | "rt_tgsigqueueinfo":  # itself
            return _argument(0) + _one_of([pid], RET_ALLOW, eperm)
        case "tkill":
            return _op(RET, eperm)
        case "ioctl":
            return _argument(1) + _one_of(TERMINAL_INPUT, eperm, RET_ALLOW)
    raise AssertionError(f"{name} is in EXAMINED and is not examined")


def build(mode: str, pid: int, machine: str) -> bytes:
    """The program for a process that is `pid` to itself: n × 8-byte struct sock_filter."""
    arch, column = ARCHITECTURES[machine]
    actions = _actions(mode)

    def numbers(table: Table) -> list[int]:
        return [number for row in table.values() if (number := row[column]) is not None]

    program = _op(LD_ABS, ARCH_AT) + _op(JEQ, arch, 1, 0) + _op(RET, actions.refused) + _op(LD_ABS, NR_AT)
    if column == X86_64:
        program += _op(JGE, X32_BIT, 0, 1) + _op(RET, actions.refused)
    program += _for_ranges(numbers(ALLOWED), RET_ALLOW) + _for_ranges(numbers(REFUSED), actions.refused)
    for name, row in EXAMINED.items():
        if (number := row[column]) is not None:
            examined = _examine(name, pid, actions)
            program += _op(JEQ, number, 0, len(examined) // _INSTRUCTION.size) + examined
    program += _op(RET, actions.rest)
    assert len(program) // _INSTRUCTION.size <= MAX_INSTRUCTIONS
    return program


def unavailable() -> str | None:
    """Why there can be no filter on this machine, or None."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return f"the calls of {machine} are not in its tables"
    return None


def install(mode: str, pid: int) -> None:
    """Put the filter in force for every thread. Needs no_new_privs. OSError where the kernel has no seccomp."""
    linux.install_filter(build(mode, pid, platform.machine()))

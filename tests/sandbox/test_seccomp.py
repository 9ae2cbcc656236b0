"""The filter: what real calls come to under it, in every mode, and the program itself on other machines."""

from __future__ import annotations

import errno
import platform
import signal
import struct

import pytest

from sandbox.inside import found_inside, run_inside
from transfuse.sandbox.calls import ALLOWED, EXAMINED, REFUSED
from transfuse.sandbox.seccomp import ARCHITECTURES, MODES, build, unavailable

MACHINE = platform.machine()
COLUMN = ARCHITECTURES[MACHINE][1] if MACHINE in ARCHITECTURES else 0
here = pytest.mark.skipif(unavailable() is not None, reason=f"needs seccomp tables: {unavailable()}")
CALLS = """
calls, signal_number = given["calls"], 0
import fcntl, threading
def number(name): return calls[name]
def hostile():
    raw(number("ptrace"), 0x4206, os.getppid(), 0, 0)
attempt("execve", lambda: os.execv("/bin/true", ["true"]))
attempt("fork", os.fork)
attempt("ptrace", hostile)
attempt("mount", lambda: raw(number("mount"), b"x", b"/", b"tmpfs", 0, None))
attempt("setns", lambda: raw(number("setns"), 0, 0))
attempt("bpf", lambda: raw(number("bpf"), 0, None, 0))
attempt("keyctl", lambda: raw(number("keyctl"), 0, 0))
attempt("kexec", lambda: raw(number("kexec_load"), 0, 0, None, 0))
attempt("module", lambda: raw(number("init_module"), None, 0, b""))
attempt("userfaultfd", lambda: raw(number("userfaultfd"), 0))
attempt("perf", lambda: raw(number("perf_event_open"), None, 0, 0, -1, 0))
attempt("user namespace", lambda: raw(number("unshare"), 0x10000000))
attempt("own umask", lambda: raw(number("unshare"), 0x200))
attempt("tcp", lambda: socket.socket(socket.AF_INET))
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("stream pair", lambda: [s.close() for s in socket.socketpair()])
attempt("datagram pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt("clone3", lambda: raw(number("clone3"), None, 0))
attempt("io_uring", lambda: raw(425, 1, None))
attempt("newer", lambda: raw(4000))
attempt("signal another", lambda: os.kill(os.getppid(), 0))
attempt("signal itself", lambda: os.kill(os.getpid(), 0))
attempt("terminal", lambda: fcntl.ioctl(0, 0x5412, b"x"))
attempt("limits of another", lambda: __import__("resource").prlimit(os.getppid(), 7))
attempt("set uid", lambda: os.setuid(1))
attempt("thread", lambda: threading.Thread(target=print).start())
"""


def calls() -> dict[str, int | None]:
    return {name: row[COLUMN] for table in (ALLOWED, REFUSED, EXAMINED) for name, row in table.items()}


@here
def test_hostile_calls_fail_and_harmless_ones_work() -> None:
    found = found_inside(CALLS, wanted={"sandbox": "none", "seccomp": "errno"}, calls=calls())
    assert found == {
        **dict.fromkeys(
            ["execve", "fork", "ptrace", "mount", "setns", "bpf", "keyctl", "kexec", "module", "userfaultfd", "perf",
             "user namespace", "tcp", "signal another", "terminal", "limits of another"], errno.EPERM,
        ),
        "unix": errno.EACCES, "datagram pair": errno.EACCES,
        "clone3": errno.ENOSYS, "io_uring": errno.ENOSYS, "newer": errno.ENOSYS, "set uid": errno.ENOSYS,
        **dict.fromkeys(["own umask", "stream pair", "signal itself", "thread"], "done"),
    }  # fmt: skip


@here
def test_a_thread_that_ran_before_is_filtered_as_well() -> None:
    before = """
import os, threading
go, said = threading.Event(), []
def late():
    go.wait()
    try:
        os.execv("/bin/true", ["true"])
    except OSError as error:
        said.append(error.errno)
thread = threading.Thread(target=late)
thread.start()
"""
    body = "go.set(); thread.join(); found['late'] = said[0]"
    assert found_inside(body, before=before, wanted={"sandbox": "none", "seccomp": "errno"}) == {"late": errno.EPERM}


@here
@pytest.mark.parametrize(
    "call", ["os.execv('/bin/true', ['true'])", "socket.socket(socket.AF_INET)", "os.fork()", "os.setns(0)"]
)
def test_kill_ends_the_process(call: str) -> None:
    call = call.replace("os.setns(0)", f"raw({calls()['setns']}, 0, 0)")
    done = run_inside(f"print('before', flush=True)\n{call}", wanted={"sandbox": "none", "seccomp": "kill"})
    assert (done.returncode, done.stdout) == (-signal.SIGSYS, "before\n")


@here
def test_trap_is_a_signal_and_log_lets_pass() -> None:
    body = "os.execv('/bin/true', ['true'])"
    assert run_inside(body, wanted={"sandbox": "none", "seccomp": "trap"}).returncode == -signal.SIGSYS
    assert run_inside(body, wanted={"sandbox": "none", "seccomp": "log"}).returncode == 0


# -- the program, run here for each machine --


def run(program: bytes, number: int, *args: int, arch: int) -> int:
    """What the kernel's interpreter would return for a call."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    at, loaded = 0, 0
    while True:
        code, jt, jf, k = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        match code:
            case 0x20:
                loaded = struct.unpack_from("=I", data, k)[0]
            case 0x54:
                loaded &= k
            case 0x06:
                return int(k)
            case 0x15:
                at += jt if loaded == k else jf
            case 0x35:
                at += jt if loaded >= k else jf
            case 0x25:
                at += jt if loaded > k else jf


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_program_says_what_the_tables_say(machine: str) -> None:
    arch, column = ARCHITECTURES[machine]
    program = build("kill", 77, machine)
    known = {row[column]: 0x7FFF0000 for row in ALLOWED.values() if row[column] is not None}
    known |= {row[column]: 0x80000000 for row in REFUSED.values() if row[column] is not None}
    examined = {row[column] for row in EXAMINED.values()}
    for number in range(600):
        if number not in examined:
            assert run(program, number, arch=arch) == known.get(number, 0x50000 | errno.ENOSYS), number
    assert run(program, 1, arch=0x40000003) == 0x80000000  # i386


def test_x32_calls_are_refused() -> None:
    assert run(build("kill", 77, "x86_64"), 0x40000000 | 1, arch=0xC000003E) == 0x80000000


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("clone", [0x3D0F00], 0x7FFF0000),  # glibc's pthread_create()
        ("clone", [0x11], 0x80000000),
        ("clone", [0x10000 | 0x10000000], 0x80000000),
        ("kill", [77], 0x7FFF0000),
        ("kill", [0], 0x50001),
        ("kill", [0xFFFFFFFF], 0x50001),
        ("tgkill", [77, 78, 6], 0x7FFF0000),
        ("ioctl", [0, 0x5412], 0x50001),
        ("ioctl", [0, 0x541B], 0x7FFF0000),
        ("prctl", [15], 0x7FFF0000),
        ("prctl", [22], 0x50001),
    ],
)
def test_arguments_are_examined(name: str, args: list[int], expected: int, machine: str) -> None:
    arch, column = ARCHITECTURES[machine]
    number = EXAMINED[name][column]
    assert number is not None
    assert run(build("kill", 77, machine), number, *args, arch=arch) == expected


def test_every_mode_but_none_has_a_program() -> None:
    for mode in MODES[1:]:
        assert build(mode, 1, "aarch64")
    with pytest.raises(ValueError, match="seccomp mode 'soft' is none of"):
        build("soft", 1, "aarch64")

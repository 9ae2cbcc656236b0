"""contain(): attacks from inside, by a process that runs what it likes."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.inside import USER, found_inside, run_inside
from transfuse.sandbox import Part, Report

ATTACKS = """
source = places[0]
def climb():
    fd = os.open(source, os.O_PATH)
    for _ in range(40):
        fd = os.open("..", os.O_PATH, dir_fd=fd)
    os.open("etc/passwd", os.O_RDONLY, dir_fd=fd)
def by_handle():
    fd = os.open(source, os.O_RDONLY)
    if libc.open_by_handle_at(fd, bytes.fromhex(given["handle"]), os.O_RDONLY) < 0:
        raise OSError(ctypes.get_errno(), "")
def connect(family, address):
    with socket.socket(family) as sock:
        sock.connect(address)
attempt("read", lambda: os.read(os.open(source + "/file", os.O_RDONLY), 100).decode())
attempt("write", lambda: os.open(f"{source}/new-{os.getuid()}", os.O_WRONLY | os.O_CREAT))
attempt("passwd", lambda: os.open("/etc/passwd", os.O_RDONLY))
attempt("list /", lambda: ",".join(os.listdir("/")))
attempt("climb", climb)
attempt("root of 1", lambda: os.open("/proc/1/root/etc/passwd", os.O_RDONLY))
attempt("root of tests", lambda: os.open("/proc/%d/root/etc/passwd" % given["pid"], os.O_RDONLY))
attempt("handle", by_handle)
attempt("tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", given["port"])))
attempt("abstract", lambda: connect(socket.AF_UNIX, given["abstract"]))
attempt("kill", lambda: os.kill(given["pid"], 0))
attempt("ptrace", lambda: raw({"x86_64": 101}.get(os.uname().machine, 117), 0x4206, given["pid"], 0, 0))
attempt("make outside", lambda: os.open(given["outside"] + "/x", os.O_WRONLY | os.O_CREAT))
attempt("mount", lambda: raw({"x86_64": 165}.get(os.uname().machine, 40), b"x", source.encode(), b"tmpfs", 0, None))
attempt("core pattern", lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
attempt("import", lambda: __import__("decimal").__name__ + __import__("sqlite3").__name__)
attempt("null", lambda: os.write(os.open("/dev/null", os.O_WRONLY), b"x"))
import subprocess
attempt("exec", lambda: os.execv("/bin/sh", ["sh", "-c", "exit 3"]))
"""
WAYS = [
    pytest.param((sandbox, user), id=f"{sandbox}-{'user' if user else 'root'}", marks=pytest.mark.needs("root"))
    for sandbox in ("namespace", "landlock")
    for user in (False, True)
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A source that an ordinary user can reach, and another folder beside it."""
    top = Path(tempfile.mkdtemp(prefix="contained-", dir="/tmp"))
    top.chmod(0o755)
    for name in ("source", "outside"):
        (top / name).mkdir()
        (top / name / "file").write_text("text")
        for path in (top / name, top / name / "file"):
            os.chown(path, USER, USER)
    yield top
    shutil.rmtree(top)


def handle_of(path: str) -> str:
    """Its file handle, in hexadecimal."""
    buffer = ctypes.create_string_buffer(b"\x80\0\0\0", 136)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.name_to_handle_at(-100, path.encode(), buffer, ctypes.create_string_buffer(8), 0):
        pytest.skip(f"the filesystem of {path} has no file handles")
    return buffer.raw[: 8 + buffer.raw[0]].hex()


def attack(folder: Path, sandbox: str, user: bool, read_only: bool = False, **wanted: Any) -> dict[str, Any]:
    name = f"\0transfuse-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        return found_inside(
            ATTACKS, user=user, sources=[(str(folder / "source"), read_only)],
            wanted={"sandbox": sandbox, "seccomp": "none", **wanted},
            pid=os.getpid(), port=tcp.getsockname()[1], abstract=name, outside=str(folder / "outside"),
            handle=handle_of(str(folder / "outside" / "file")),
        )  # fmt: skip


@pytest.fixture(scope="module", params=WAYS)
def found(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """What each attack came to, without a filter on system calls; handles are given up as root."""
    return attack(folder, *request.param, modcaps=(("dac_read_search", False),))


def test_the_source_is_served_and_the_interpreter_works(found: dict[str, Any]) -> None:
    assert found["read"] == "text"
    assert found["write"] == "done"
    assert found["import"] == "decimalsqlite3"
    assert found["null"] == "done"


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("passwd", {errno.ENOENT, errno.EACCES}),
        ("climb", {errno.ENOENT, errno.EACCES}),
        ("root of 1", {errno.ENOENT, errno.EACCES}),
        ("root of tests", {errno.ENOENT, errno.EACCES}),
        ("handle", {errno.EPERM}),
        ("tcp", {errno.ENETUNREACH, errno.EACCES}),
        ("abstract", {errno.ECONNREFUSED, errno.EPERM}),
        ("kill", {errno.ESRCH, errno.EPERM}),
        ("ptrace", {errno.ESRCH, errno.EPERM}),
        ("make outside", {errno.ENOENT, errno.EACCES}),
        ("mount", {errno.EPERM}),
        ("core pattern", {errno.ENOENT, errno.EACCES}),
        ("exec", {errno.ENOENT, errno.EACCES}),
    ],
)
def test_from_inside_there_is_no_way_out(name: str, numbers: set[int], found: dict[str, Any]) -> None:
    assert found[name] in numbers


@pytest.mark.needs("root")
def test_a_new_root_shows_code_and_the_source_only(folder: Path) -> None:
    listed = set(attack(folder, "namespace", False)["list /"].split(","))
    assert "source" in listed and not listed & {"home", "tmp", "boot", "var", "run", "srv", "sys"}


@pytest.mark.parametrize("sandbox", ["namespace", "landlock"])
@pytest.mark.needs("root")
def test_a_read_only_source_can_not_be_written_by_root(sandbox: str, folder: Path) -> None:
    found = attack(folder, sandbox, False, read_only=True)
    assert found["read"] == "text"
    assert found["write"] in (errno.EROFS, errno.EACCES)


@pytest.mark.needs("root")
def test_file_handles_reach_the_whole_filesystem_as_long_as_root_may_open_them(folder: Path) -> None:
    """What docs/containment.md warns of; `--modcaps=-dac_read_search` is the other case above."""
    assert attack(folder, "namespace", False)["handle"] == "done"
    assert attack(folder, "landlock", False)["handle"] == errno.EPERM


@pytest.mark.needs("root")
def test_an_open_directory_of_the_old_root_is_refused(folder: Path) -> None:
    done = run_inside("", before="import os; os.open('/etc', os.O_RDONLY)", wanted={"sandbox": "namespace"})
    assert done.returncode != 0 and "directories of the old one are open" in done.stderr


def test_the_limit_of_open_files_holds() -> None:
    body = """
import resource
attempt("limit", lambda: str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
def use_up():
    while True:
        os.dup(1)
attempt("too many", use_up)
"""
    found = found_inside(body, wanted={"sandbox": "none", "nofile": 100})
    assert found == {"limit": "100", "too many": errno.EMFILE}


@pytest.mark.needs("root")
def test_root_keeps_what_serving_takes_and_gains_nothing() -> None:
    body = """
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
for name in ("CapEff", "CapBnd", "CapInh", "NoNewPrivs", "Groups"):
    found[name] = status[name].strip()
found["report"] = list(report.capabilities)
"""
    found = found_inside(body, wanted={"sandbox": "none", "seccomp": "none", "modcaps": [["chown", False]]})
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 0x880000DE  # virtiofsd's set, less chown
    assert (int(found["CapInh"], 16), found["NoNewPrivs"], found["Groups"]) == (0, "1", "")
    assert "chown" not in found["report"] and "dac_read_search" in found["report"]


def test_what_is_asked_for_by_name_and_not_to_be_had_is_an_error() -> None:
    before = "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    done = run_inside("", before=before, wanted={"sandbox": "landlock"})
    found = found_inside("found['line'] = report.line()", before=before, wanted={})
    assert done.returncode == 1 and "--sandbox landlock: 2 threads run already" in done.stderr
    assert found["line"].endswith("; no sandbox: 2 threads run already")


def test_the_report_is_one_line_and_json() -> None:
    report = Report("landlock", "kill", ("chown",), 64)
    report.parts += [Part("sandbox", True, "Landlock 7 (files)"), Part("sandbox", False, "no namespaces (why)")]
    assert report.line() == "contained: Landlock 7 (files); no namespaces (why)"
    assert '"capabilities": ["chown"], "nofile": 64' in report.as_json()
    assert Report().line() == "not contained"

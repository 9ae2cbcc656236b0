"""Real programs at work in a directory, each as a function of the directory and of a scratch place elsewhere.

Theory: the functions know nothing of mounts. `directory` is empty and on the filesystem under test; `scratch` is empty
and on an ordinary one. A function ends normally if the program did its work and what it left is right; otherwise it
raises AssertionError with what the program said. Every program is run with a time limit.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interop import trees

LIMIT_S = 90.0
_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def run(*command: str | Path, cwd: Path, limit_s: float = LIMIT_S, status: int = 0) -> str:
    """Run to the end; what it wrote to stdout and stderr. Another exit status is an AssertionError."""
    words = [str(word) for word in command]
    with subprocess.Popen(
        words,
        cwd=cwd,
        env={**_ENVIRONMENT, "HOME": str(cwd)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{' '.join(words)} was not done after {limit_s} s") from None
    text = output.decode(errors="replace")
    if process.returncode != status:
        raise AssertionError(f"{' '.join(words)} ended with {process.returncode}:\n{text[-3000:]}")
    return text


def python(code: str, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start this interpreter on the code, beside the caller."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """What each wrote; all must end with 0 in time."""
    outputs = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=LIMIT_S)
            if process.returncode:
                raise AssertionError(f"a process ended with {process.returncode}:\n{output[-3000:]}")
            outputs.append(output)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
    return outputs


def _same(one: Path, other: Path, **how: bool) -> None:
    found = trees.differences(one, other, **how)
    if found:
        raise AssertionError(f"{len(found)} differences:\n" + "\n".join(found[:20]))


def program_git(directory: Path, scratch: Path) -> None:
    """init, commit, status, branch and merge, clone (by hard links and by copy), gc, fsck."""
    repository = directory / "repository"
    run("git", "init", "-q", "-b", "main", repository, cwd=directory)
    for number in range(120):
        path = repository / f"d{number % 5}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"line {number}\n" * (number + 1))
    (repository / "run").write_text("#!/bin/sh\n")
    (repository / "run").chmod(0o755)
    (repository / "link").symlink_to("d1/f1")
    run("git", "add", ".", cwd=repository)
    run("git", "commit", "-qm", "first", cwd=repository)
    assert run("git", "status", "--porcelain", cwd=repository) == "", "status after the commit"
    (repository / "d1" / "f1").write_text("changed\n")
    (repository / "d2" / "f2").unlink()
    (repository / "new").write_text("new\n")
    changes = run("git", "status", "--porcelain", cwd=repository).splitlines()
    assert sorted(changes) == [" D d2/f2", " M d1/f1", "?? new"], changes
    run("git", "checkout", "-qb", "branch", cwd=repository)
    run("git", "add", "-A", cwd=repository)
    run("git", "commit", "-qm", "second", cwd=repository)
    run("git", "checkout", "-q", "main", cwd=repository)
    assert (repository / "d2" / "f2").exists(), "checkout brought no file back"
    (repository / "d3" / "f3").write_text("on main\n")
    run("git", "commit", "-qam", "third", cwd=repository)
    run("git", "merge", "-q", "--no-edit", "branch", cwd=repository)
    run("git", "clone", "-q", repository, directory / "by-links", cwd=directory)
    run("git", "clone", "-q", "--no-hardlinks", repository, directory / "by-copy", cwd=directory)
    run("git", "clone", "-q", f"file://{repository}", scratch / "outside", cwd=scratch)
    run("git", "gc", "-q", "--prune=now", cwd=repository)
    for clone in (repository, directory / "by-links", directory / "by-copy", scratch / "outside"):
        run("git", "fsck", "--full", "--strict", cwd=clone)
        assert run("git", "status", "--porcelain", cwd=clone) == "", f"status of {clone}"
    head = run("git", "rev-parse", "HEAD", cwd=repository)
    assert run("git", "rev-parse", "HEAD", cwd=directory / "by-links") == head, "the clone has another commit"


_TAR = ("--xattrs", "--xattrs-include=*", "--acls", "--sparse")


def program_tar_in(directory: Path, scratch: Path) -> None:
    """An archive made elsewhere is unpacked here; tar's own compare and ours find no difference."""
    trees.build(scratch / "tree")
    archive = scratch / "tree.tar"
    run("tar", *_TAR, "--format=posix", "-cf", archive, "-C", scratch, "tree", cwd=scratch)
    run("tar", *_TAR, "-xpf", archive, "-C", directory, cwd=scratch)
    assert run("tar", "--compare", "-f", archive, "-C", directory, cwd=scratch) == "", "tar sees a difference"
    _same(scratch / "tree", directory / "tree")


def program_tar_out(directory: Path, scratch: Path) -> None:
    """A tree here is packed and unpacked elsewhere."""
    trees.build(directory / "tree")
    archive = scratch / "tree.tar"
    run("tar", *_TAR, "--format=posix", "-cf", archive, "-C", directory, "tree", cwd=scratch)
    run("tar", *_TAR, "-xpf", archive, "-C", scratch, cwd=scratch)
    assert run("tar", "--compare", "-f", archive, "-C", directory, cwd=scratch) == "", "tar sees a difference"
    _same(directory / "tree", scratch / "tree")


def program_rsync(directory: Path, scratch: Path) -> None:
    """rsync -aHAX in, again without any change, a change, and back out."""
    trees.build(scratch / "tree")
    copy = directory / "copy"
    run("rsync", "-aHAX", f"{scratch}/tree/", f"{copy}/", cwd=scratch)
    again = run("rsync", "-aHAXi", f"{scratch}/tree/", f"{copy}/", cwd=scratch)
    assert again == "", f"the second run changed:\n{again}"
    _same(scratch / "tree", copy)
    (scratch / "tree" / "with space").write_bytes(b"changed in the source")
    (scratch / "tree" / "hard-link-2").unlink()
    run("rsync", "-aHAX", "--delete", "--inplace", f"{scratch}/tree/", f"{copy}/", cwd=scratch)
    _same(scratch / "tree", copy)
    run("rsync", "-aHAX", f"{copy}/", f"{scratch}/back/", cwd=scratch)
    _same(copy, scratch / "back")


def program_rsync_checksum_after_copy_inside(directory: Path, scratch: Path) -> None:
    """From the directory to itself, compared by checksum."""
    del scratch
    trees.build(directory / "tree")
    run("rsync", "-aHAX", f"{directory}/tree/", f"{directory}/copy/", cwd=directory)
    again = run("rsync", "-aHAXic", f"{directory}/tree/", f"{directory}/copy/", cwd=directory)
    assert again == "", again


def program_cp(directory: Path, scratch: Path) -> None:
    """cp -a in, inside and out keeps links, attributes, modes, owners and times."""
    trees.build(scratch / "tree")
    run("cp", "-a", scratch / "tree", directory / "in", cwd=scratch)
    _same(scratch / "tree", directory / "in")
    run("cp", "-a", directory / "in", directory / "inside", cwd=scratch)
    _same(directory / "in", directory / "inside")
    run("cp", "-a", directory / "inside", scratch / "out", cwd=scratch)
    _same(directory / "inside", scratch / "out")
    run(
        "diff",
        "-r",
        "--no-dereference",
        "--exclude=fifo",
        "--exclude=device",
        directory / "in",
        scratch / "out",
        cwd=scratch,
    )
    run("rm", "-r", directory / "in", cwd=scratch)
    assert sorted(os.listdir(directory)) == ["inside"], "rm -r left something"


_WRITER = """
    import sqlite3, sys, time
    path, who = sys.argv[1:]
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    for number in range(60):
        connection.execute("begin immediate")
        (before,) = connection.execute("select value from counter").fetchone()
        connection.execute("insert into rows values (?, ?, ?)", (who, number, "x" * (number * 37 % 2000)))
        connection.execute("update counter set value = ?", (before + 1,))
        connection.execute("rollback" if number % 10 == 9 else "commit")
    connection.close()
"""


def _sqlite(directory: Path, mode: str) -> None:
    path = directory / f"{mode}.db"
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        (found,) = connection.execute(f"pragma journal_mode={mode}").fetchone()
        assert found == mode, f"the journal mode is {found}"
        connection.execute("create table rows (who text, number integer, filling text)")
        connection.execute("create index by_number on rows (number, who)")
        connection.execute("create table counter (value integer)")
        connection.execute("insert into counter values (0)")
    finally:
        connection.close()
    finish(*(python(_WRITER, path, who, cwd=directory) for who in ("one", "two")))
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("select value from counter").fetchone() == (108,), "transactions were lost"
        assert connection.execute("select who, count(*) from rows group by who").fetchall() == [
            ("one", 54),
            ("two", 54),
        ]
        connection.execute("delete from rows where number % 2")
        connection.commit()
        connection.execute("vacuum")
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


def program_sqlite_wal(directory: Path, scratch: Path) -> None:
    """Two writers on a write-ahead log, which needs shared memory and locks."""
    del scratch
    _sqlite(directory, "wal")


def program_sqlite_rollback_journal(directory: Path, scratch: Path) -> None:
    """Two writers with the rollback journal deleted, truncated or kept."""
    del scratch
    for mode in ("delete", "truncate", "persist"):
        _sqlite(directory, mode)


def _fio(directory: Path, *options: str) -> None:
    output = run(
        "fio",
        "--name=job",
        f"--directory={directory}",
        "--size=4m",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--fallocate=none",
        "--randrepeat=1",
        "--minimal",
        *options,
        cwd=directory,
    )
    assert "verify" not in output, output


def program_fio_buffered(directory: Path, scratch: Path) -> None:
    """Random writes of mixed sizes, verified; two files."""
    del scratch
    _fio(directory, "--rw=randwrite", "--bsrange=512-64k", "--ioengine=psync", "--nrfiles=2", "--end_fsync=1")


def program_fio_direct(directory: Path, scratch: Path) -> None:
    """O_DIRECT with eight requests in flight."""
    del scratch
    _fio(directory, "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=8", "--direct=1")


def program_fio_mmap(directory: Path, scratch: Path) -> None:
    """Through a shared mapping."""
    del scratch
    _fio(directory, "--rw=randwrite", "--bs=4k", "--ioengine=mmap")


def program_fio_mixed(directory: Path, scratch: Path) -> None:
    """Reads and writes mixed, with fallocate and fsync between."""
    del scratch
    _fio(directory, "--rw=randrw", "--bs=8k", "--ioengine=psync", "--fsync=16", "--fallocate=posix")


_LOCKER = """
    import fcntl, os, sys
    kind, rounds = sys.argv[1], int(sys.argv[2])
    lock = fcntl.flock if kind == "flock" else fcntl.lockf
    fd = os.open("counter", os.O_RDWR)
    for _ in range(rounds):
        lock(fd, fcntl.LOCK_EX)
        value = int(os.pread(fd, 20, 0))
        os.pwrite(fd, b"%020d" % (value + 1), 0)
        lock(fd, fcntl.LOCK_UN)
"""


def _counted(directory: Path, kind: str) -> None:
    (directory / "counter").write_bytes(b"%020d" % 0)
    finish(*(python(_LOCKER, kind, "300", cwd=directory) for _ in range(2)))
    assert int((directory / "counter").read_bytes()) == 600, "a step was lost: the lock does not exclude"


def program_flock(directory: Path, scratch: Path) -> None:
    """Two processes count under flock; flock(1) refuses while another holds it."""
    del scratch
    _counted(directory, "flock")
    run("flock", "lock", "flock", "--nonblock", "--conflict-exit-code", "9", "lock", "true", cwd=directory, status=9)
    run("flock", "--nonblock", "lock", "true", cwd=directory)


def program_fcntl_locks(directory: Path, scratch: Path) -> None:
    """Two processes count under record locks."""
    del scratch
    _counted(directory, "lockf")


_MAPPER = """
    import mmap, os, sys, time
    ours, theirs = int(sys.argv[1]), int(sys.argv[2])
    fd = os.open("shared", os.O_RDWR)
    view = mmap.mmap(fd, 65536)
    limit = time.monotonic() + 60
    for step in range(1, 201):
        view[ours * 4096 + step * 8 : ours * 4096 + step * 8 + 8] = b"%08d" % step
        view[ours * 4096] = step  # last: it says that the bytes above are there
        while view[theirs * 4096] < step:
            if time.monotonic() > limit:
                raise SystemExit(f"step {step}: the other side is not seen")
            os.sched_yield()
        seen = bytes(view[theirs * 4096 + step * 8 : theirs * 4096 + step * 8 + 8])
        if seen != b"%08d" % step:
            raise SystemExit(f"step {step}: {seen}")
    view.flush()
"""


def program_mmap_between_processes(directory: Path, scratch: Path) -> None:
    """Two processes answer each other 200 times through a shared mapping; read sees it all afterwards."""
    del scratch
    (directory / "shared").write_bytes(bytes(65536))
    finish(python(_MAPPER, "1", "9", cwd=directory), python(_MAPPER, "9", "1", cwd=directory))
    content = (directory / "shared").read_bytes()
    expected = b"".join(b"%08d" % step for step in range(1, 201))
    for page in (1, 9):
        assert content[page * 4096 + 8 : page * 4096 + 8 * 201] == expected, f"page {page}"


def _wheel(path: Path) -> None:
    info = "tiny_demo-1.0.dist-info"
    members = {
        "tiny_demo/__init__.py": "ANSWER = 42\n",
        "tiny_demo/__main__.py": "from tiny_demo import ANSWER\ndef main():\n    print(ANSWER)\nmain()\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntiny-demo = tiny_demo.__main__:main\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"]))


def program_venv(directory: Path, scratch: Path) -> None:
    """A virtual environment with pip is made here, a wheel is installed into it, run, and removed again."""
    wheel = scratch / "tiny_demo-1.0-py3-none-any.whl"
    _wheel(wheel)
    run(sys.executable, "-m", "venv", directory / "venv", cwd=scratch)
    interpreter = directory / "venv" / "bin" / "python"
    pip = (interpreter, "-m", "pip", "--disable-pip-version-check", "--no-input")
    run(*pip, "install", "-q", "--no-index", "--no-deps", wheel, cwd=scratch)
    assert run(interpreter, "-m", "tiny_demo", cwd=scratch).strip() == "42", "the installed module"
    assert "42" in run(directory / "venv" / "bin" / "tiny-demo", cwd=scratch), "the installed script"
    place = run(interpreter, "-c", "import sys, tiny_demo; print(sys.prefix, tiny_demo.__file__)", cwd=scratch).split()
    assert all(each.startswith(str(directory / "venv")) for each in place), place
    assert list((directory / "venv").rglob("tiny_demo/__pycache__/*.pyc")), "no compiled module was written"
    run(*pip, "uninstall", "-qy", "tiny-demo", cwd=scratch)
    assert not list((directory / "venv").rglob("tiny_demo/__init__.py")), "pip left the module behind"


def program_compile_and_run(directory: Path, scratch: Path) -> None:
    """A C program is compiled and linked here, and run from here."""
    del scratch
    (directory / "main.c").write_text(
        '#include <stdio.h>\nint part(void);\nint main(void){ printf("%d\\n", part()); return 0; }\n'
    )
    (directory / "part.c").write_text("int part(void) { return 42; }\n")
    run("gcc", "-c", "main.c", "part.c", cwd=directory)
    run("gcc", "-o", "program", "main.o", "part.o", cwd=directory)
    assert run(directory / "program", cwd=directory).strip() == "42"


def program_find_and_remove(directory: Path, scratch: Path) -> None:
    """find -newer, -links, -perm and -delete over 1,000 files."""
    del scratch
    for number in range(1000):
        folder = directory / f"d{number % 10}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}").touch()
    os.link(directory / "d0" / "f0", directory / "d0" / "second")
    (directory / "d1" / "f1").chmod(0o751)
    assert len(run("find", ".", "-type", "f", cwd=directory).split()) == 1001
    assert sorted(run("find", ".", "-links", "2", "-type", "f", cwd=directory).split()) == ["./d0/f0", "./d0/second"]
    assert run("find", ".", "-perm", "751", "-type", "f", cwd=directory).split() == ["./d1/f1"]
    run("find", ".", "-mindepth", "1", "-delete", cwd=directory)
    assert os.listdir(directory) == []


STRESSORS = (
    "access", "aiol", "chdir", "chmod", "chown", "dentry", "dir", "dirdeep", "dirmany", "fallocate", "fcntl",
    "file-ioctl", "filename", "flock", "fpunch", "fstat", "getdent", "hdd", "inode-flags", "iomix", "lease",
    "link", "locka", "lockf", "lockofd", "mknod", "msync", "open", "readahead", "rename", "revio", "seek",
    "sendfile", "symlink", "sync-file", "touch", "utime", "xattr",
)  # fmt: skip


def _stress(name: str) -> Callable[[Path, Path], None]:
    def program(directory: Path, scratch: Path) -> None:
        run(
            "stress-ng",
            f"--{name}",
            "1",
            "--timeout",
            "1",
            "--verify",
            "--temp-path",
            directory,
            *_STRESS_OPTIONS.get(name, ()),
            cwd=scratch,
        )
        left = [each for each in os.listdir(directory) if not each.startswith(".fuse_hidden")]
        assert left == [], f"left behind: {left}"

    program.__doc__ = f"stress-ng --{name} for a second, verified."
    return program


_STRESS_OPTIONS: dict[str, tuple[str, ...]] = {
    "hdd": ("--hdd-bytes", "4m"),
    "iomix": ("--iomix-bytes", "4m"),
    "fallocate": ("--fallocate-bytes", "4m"),
    "readahead": ("--readahead-bytes", "4m"),
    "revio": ("--revio-bytes", "4m"),
    "seek": ("--seek-size", "4m"),
    "sendfile": ("--sendfile-size", "1m"),
    "sync-file": ("--sync-file-bytes", "2m"),
    "dentry": ("--dentries", "200"),
    "dirmany": ("--dirmany-bytes", "0"),
}


@dataclass(slots=True, frozen=True)
class Program:
    """One function and the programs it runs."""

    name: str
    needs: tuple[str, ...]
    function: Callable[[Path, Path], None]


_NEEDS = {
    "git": ("git",),
    "tar_in": ("tar",),
    "tar_out": ("tar",),
    "rsync": ("rsync",),
    "rsync_checksum_after_copy_inside": ("rsync",),
    "flock": ("flock",),
    "compile_and_run": ("gcc",),
}

PROGRAMS = [
    Program(name.removeprefix("program_"), _NEEDS.get(name.removeprefix("program_"), ()), function)
    for name, function in list(globals().items())
    if name.startswith("program_")
]
PROGRAMS = [
    Program(each.name, ("fio",), each.function) if each.name.startswith("fio_") else each for each in PROGRAMS
] + [Program(f"stress_{name}", ("stress-ng",), _stress(name)) for name in STRESSORS]

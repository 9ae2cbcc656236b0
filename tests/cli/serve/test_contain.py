"""The options of containment, and servers that are contained."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import tempfile
import textwrap
from pathlib import Path

import pytest

from cli.runs import LIMIT_S, environment, run, started
from sandbox.inside import USER, user_python
from transfuse.cli.serve.contain import add_flags, read_flags
from transfuse.cli.sources import Source
from transfuse.client import Client
from transfuse.sandbox import Containment
from transfuse.transports.stream import StreamClientTransport


def wanted(source: Source, *words: str, read_only: bool = False) -> Containment | None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_flags(parser.parse_args(words), source, read_only=read_only)


def test_a_directory_is_contained_by_default_and_a_class_is_not() -> None:
    assert wanted(Source("x", "path", "/x")) == Containment(sources=(plan_source("/x"),))
    assert wanted(Source("memory:", "memory", "")) == Containment()
    assert wanted(Source("python:a:B", "python", "a:B")) is None


def plan_source(path: str) -> object:
    from transfuse.sandbox import Source as Served

    return Served(path)


def test_a_class_is_contained_as_far_as_is_asked_for() -> None:
    found = wanted(Source("python:a:B", "python", "a:B"), "--seccomp", "errno")
    assert found == Containment(sandbox="none", seccomp="errno", keep_capabilities=True)


def test_options_say_what_is_wanted() -> None:
    words = ("--sandbox", "landlock", "--seccomp", "log", "--modcaps=+sys_admin:-chown", "--rlimit-nofile", "100")
    found = wanted(Source("memory:", "memory", ""), *words)
    changes = (("sys_admin", True), ("chown", False))
    assert found == Containment(sandbox="landlock", seccomp="log", modcaps=changes, nofile=100)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--sandbox", "chroot"], "--sandbox"),
        (["--seccomp", "maybe"], "--seccomp"),
        (["--modcaps=+fly"], "there is no capability 'fly'; write +sys_admin:-chown"),
        (["--rlimit-nofile", "3"], "takes a number of files, 64 to "),
    ],
)
def test_wrong_words_are_one_line(words: list[str], text: str, data: Path, tmp_path: Path) -> None:
    done = run("serve", data, f"unix:{tmp_path}/s", *words)
    assert done.returncode == 1 and text in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("sandbox", ["namespace", "landlock", "none"])
@pytest.mark.needs("root")
def test_the_line_says_what_is_in_force_and_it_serves(sandbox: str, data: Path, tmp_path: Path) -> None:
    sock = tmp_path / "s"
    with started("serve", data, f"unix:{sock}", "--sandbox", sandbox, "--rlimit-nofile", "512") as (process, line):
        words = {"namespace": "namespaces (mount, ", "landlock": "Landlock ", "none": "seccomp kill"}[sandbox]
        assert f"contained: {words}" in line and "seccomp kill, " in line and ", 512 files" in line
        assert ("; no sandbox (--sandbox none)" in line) == (sandbox == "none")
        with Client(StreamClientTransport.connect(sock)) as client:
            client.write_text("/new", "text")
            assert client.read_text("/a.txt") == "first\n"
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    assert (data / "new").read_text() == "text"
    assert not sock.exists()


@pytest.mark.parametrize("sandbox", ["namespace", "landlock"])
@pytest.mark.needs("root")
def test_a_bug_is_logged_with_its_lines_and_the_server_lives_on(sandbox: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        textwrap.dedent("""
            from transfuse.filesystems.memory import MemoryFilesystem
            class Bad(MemoryFilesystem):
                def statfs(self, req, nodeid):
                    raise KeyError("a bug of the class")
        """)
    )
    sock = tmp_path / "s"
    words = ("serve", f"python:{tmp_path}/bad.py:Bad", f"unix:{sock}", "--sandbox", sandbox, "--seccomp", "kill")
    with started(*words) as (process, _):
        with Client(StreamClientTransport.connect(sock)) as client:
            with pytest.raises(OSError, match="Input/output error"):
                client.statvfs("/")
            client.write_text("/f", "lives")
        process.terminate()
        assert process.wait(LIMIT_S) == 0
        assert process.stderr is not None
        assert 'raise KeyError("a bug of the class")' in process.stderr.read()


@pytest.mark.needs("root")
def test_a_class_that_runs_a_program_is_killed_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs.py").write_text(
        textwrap.dedent("""
            import os
            from transfuse.filesystems.memory import MemoryFilesystem
            class Runs(MemoryFilesystem):
                def statfs(self, req, nodeid):
                    os.execv("/bin/true", ["true"])
        """)
    )
    sock = tmp_path / "s"
    words = ("serve", f"python:{tmp_path}/runs.py:Runs", f"unix:{sock}", "--sandbox", "namespace", "--seccomp", "kill")
    with started(*words) as (process, _):
        client = Client(StreamClientTransport.connect(sock)).connect()
        with pytest.raises(ConnectionError):
            client.statvfs("/")
        client.close()
        assert process.wait(LIMIT_S) == 128 + signal.SIGSYS
        assert process.stderr is not None and "it made a system call that it may not make" in process.stderr.read()
    assert not sock.exists()


@pytest.mark.needs("user")
@pytest.mark.parametrize("sandbox", ["namespace", "landlock"])
def test_an_ordinary_user_is_contained_as_well(sandbox: str) -> None:
    python = user_python()
    if python is None:
        pytest.skip("needs a Python that an ordinary user can run: not found")
    top = Path(tempfile.mkdtemp(prefix="contained-", dir="/tmp"))
    try:
        (top / "data").mkdir()
        for path in (top, top / "data"):
            os.chown(path, USER, USER)
        words = [python, "-m", "transfuse", "serve", str(top / "data"), f"unix:{top}/s", "--sandbox", sandbox]
        process = subprocess.Popen(
            words, user=USER, group=USER, extra_groups=(), cwd="/", env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert {"namespace": "namespaces (user, mount, ", "landlock": "Landlock "}[sandbox] in line
            assert "seccomp kill, no capabilities" in line
            with Client(StreamClientTransport.connect(top / "s")) as client:
                client.write_text("/new", "text")
                assert client.listdir("/") == ["new"]
        finally:
            process.terminate()
            _, err = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, err) == (0, "")
        assert (top / "data" / "new").stat().st_uid == USER
        assert not (top / "s").exists()
    finally:
        shutil.rmtree(top)

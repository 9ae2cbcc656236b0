"""The new root: what is bound where, and what happens where it can't be made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from transfuse.sandbox import linux, namespaces
from transfuse.sandbox.namespaces import Bind, refusal


def in_new_root(binds: list[Bind], look: str) -> str:
    """What eval(look) says inside."""
    reader, writer = os.pipe()
    outer = os.fork()
    if outer == 0:
        try:
            os.close(reader)
            for name in os.listdir("/proc/self/fd"):  # the tests hold directories open
                if int(name) > 2 and int(name) != writer:
                    try:
                        os.close(int(name))
                    except OSError:
                        continue
            namespaces.begin()
            if os.fork() == 0:
                namespaces.enter(binds)
                os.write(writer, repr(eval(look)).encode())
                os._exit(0)
            os.wait()
        except BaseException as error:  # noqa: BLE001  the child must not go on with the tests
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(outer, 0)
    return said


@pytest.mark.needs("root")
def test_links_lead_to_what_is_bound_and_inner_mounts_lie_on_outer(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "real" / "file").write_text("in real")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "here").write_text("in other")
    (tmp_path / "link").symlink_to("real")
    binds = [
        Bind(str(tmp_path / "other"), str(tmp_path / "real" / "inner")),
        Bind(str(tmp_path / "link")),
        Bind(str(tmp_path / "real" / "file"), "/one"),
        Bind(str(tmp_path / "absent")),
    ]
    look = f"[open(p).read() for p in ('{tmp_path}/link/file', '{tmp_path}/real/inner/here', '/one')]"
    assert in_new_root(binds, look) == repr(["in real", "in other", "in real"])
    assert in_new_root(binds, "sorted(os.listdir('/'))") == repr(sorted(["dev", "one", "proc", tmp_path.parts[1]]))


@pytest.mark.needs("root")
def test_nothing_but_what_is_writable_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    binds = [Bind(str(tmp_path / "a"), "/a"), Bind(str(tmp_path / "b"), "/b", read_only=False)]
    flags = "(os.ST_RDONLY, os.ST_NODEV, os.ST_NOSUID)"
    look = f"[bool(os.statvfs(p).f_flag & f) for p in ('/', '/a', '/b', '/proc') for f in {flags}]"
    assert in_new_root(binds, look) == repr([True] * 6 + [False, True, True] + [True] * 3)


@pytest.mark.needs("root")
def test_proc_shows_its_own_processes_only() -> None:
    assert in_new_root([], "(os.getpid(), os.listdir('/proc'))") == repr((1, ["self", "thread-self", "1"]))


@pytest.mark.needs("root")
def test_a_directory_left_open_is_an_error(tmp_path: Path) -> None:
    said = in_new_root_with_open(tmp_path)
    assert "directories of the old one are open: fd " in said and str(tmp_path.name) in said


def in_new_root_with_open(folder: Path) -> str:
    """The error of enter() with an fd of `folder`."""
    reader, writer = os.pipe()
    outer = os.fork()
    if outer == 0:
        os.close(reader)
        try:
            namespaces.begin()
            if os.fork() == 0:
                os.open(folder, os.O_RDONLY)
                try:
                    namespaces.enter([])
                except OSError as error:
                    os.write(writer, str(error.args[0]).encode())
                os._exit(0)
            os.wait()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(outer, 0)
    return said


@pytest.mark.needs("root")
def test_a_trial_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(1, "new user namespace: Operation not permitted")

    monkeypatch.setattr(linux, "make_private", refuse)
    assert refusal([]) == "new user namespace: Operation not permitted"


def test_a_trial_that_dies_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "begin", lambda: os._exit(9))
    assert refusal([]) == "a trial ended with status 0x900"
    assert "pytest" in sys.modules  # and it was not this process

"""Running programs: x bits, scripts, set-id programs, text busy."""

from __future__ import annotations

import errno
import os
import shutil

from transfuse.testing.posix.env import ALICE, BOB, Env, Other, equal, needs, opened, put, put_owned, refused, try_open
from transfuse.testing.posix.needs import Need

_SCRIPT = b"#!/bin/sh\nexit 7\n"


def _run(path: str, *arguments: str) -> int:
    quiet = [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    pid = os.posix_spawn(path, [path, *arguments], {"PATH": "/usr/bin:/bin"}, file_actions=quiet)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _program(name: str, program: str, mode: int = 0o755) -> None:
    found = shutil.which(program, path="/usr/bin:/bin")
    if found is None:
        raise FileNotFoundError(errno.ENOENT, f"no {program} on this machine")
    shutil.copyfile(found, name)
    os.chmod(name, mode)


@needs(Need.EXEC)
def case_script_runs(env: Env) -> None:
    """A script with an interpreter."""
    put("f", _SCRIPT, 0o755)
    equal(_run("./f"), 7, "exit status")


@needs(Need.EXEC)
def case_binary_runs(env: Env) -> None:
    """A copied program is mapped and run."""
    _program("true", "true")
    _program("false", "false")
    equal((_run("./true"), _run("./false")), (0, 1), "exit status")


@needs(Need.EXEC)
def case_without_x_is_eacces(env: Env) -> None:
    """No x bit at all: EACCES even for root."""
    put("f", _SCRIPT, 0o644)
    refused(errno.EACCES, _run, "./f")


@needs(Need.EXEC, Need.USERS)
def case_x_of_the_right_class(env: Env) -> None:
    """Owner, group and others need their own x."""
    _program("owner", "true", 0o700)
    _program("others", "true", 0o701)
    os.chown("owner", *ALICE)
    os.chown("others", *ALICE)
    equal((env.as_user(*ALICE)(_run, "./owner"), env.as_user(*BOB)(_run, "./others")), (0, 0), "exit status")
    env.as_user(*BOB).refused(errno.EACCES, _run, "./owner")


@needs(Need.EXEC, Need.USERS)
def case_binary_needs_no_read_permission(env: Env) -> None:
    """x alone runs a program."""
    _program("true", "true", 0o711)
    equal(env.as_user(*ALICE)(_run, "./true"), 0, "exit status")
    env.as_user(*ALICE).refused(errno.EACCES, try_open, "true", os.O_RDONLY)


@needs(Need.EXEC)
def case_directory_is_eacces(env: Env) -> None:
    """A directory isn't a program."""
    os.mkdir("d")
    refused(errno.EACCES, _run, "./d")


@needs(Need.EXEC)
def case_garbage_is_enoexec(env: Env) -> None:
    """No known format."""
    put("f", b"\0\1\2\3 no program", 0o755)
    refused(errno.ENOEXEC, _run, "./f")


@needs(Need.EXEC)
def case_missing_interpreter_is_enoent(env: Env) -> None:
    """The script is there, its interpreter isn't."""
    put("f", b"#!/nowhere/interpreter\n", 0o755)
    refused(errno.ENOENT, _run, "./f")


@needs(Need.EXEC)
def case_running_program_is_text_busy(env: Env) -> None:
    """Opening it for writing is ETXTBSY while it runs, and works afterwards."""
    _program("sleep", "sleep")

    def run(other: Other) -> None:
        pid = os.posix_spawn("./sleep", ["sleep", "20"], {})
        other.ready(pid)
        other.wait()
        os.kill(pid, 9)
        os.waitpid(pid, 0)

    child = env.spawn(run)
    child.wait_ready()
    try:
        refused(errno.ETXTBSY, try_open, "sleep", os.O_WRONLY)
    finally:
        child.go()
        child.result()
    try_open("sleep", os.O_WRONLY)


@needs(Need.EXEC)
def case_program_open_for_writing_is_text_busy(env: Env) -> None:
    """The other way round."""
    _program("true", "true")
    with opened("true", os.O_RDWR):
        refused(errno.ETXTBSY, _run, "./true")
    equal(_run("./true"), 0, "exit status after close")


@needs(Need.EXEC)
def case_running_program_can_be_replaced(env: Env) -> None:
    """Unlink and rename over work while it runs."""
    _program("sleep", "sleep")
    _program("new", "true")
    pid = os.posix_spawn("./sleep", ["sleep", "20"], {})
    try:
        os.rename("new", "sleep")
        equal(_run("./sleep"), 0, "exit status of the new one")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _ids_of(path: str) -> list[int]:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    pid = os.posix_spawn(path, [path, "-u"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)])
    os.close(writing)
    text = b""
    while part := os.read(reading, 100):
        text += part
    os.close(reading)
    os.waitpid(pid, 0)
    return [int(word) for word in text.split()]


@needs(Need.EXEC, Need.SUID, Need.USERS)
def case_set_user_id_program(env: Env) -> None:
    """id -u of a set-user-id copy of id shows its owner."""
    _program("id", "id")
    os.chown("id", *BOB)
    os.chmod("id", 0o4755)
    equal(env.as_user(*ALICE)(_ids_of, "./id"), [BOB.uid], "effective uid")


@needs(Need.EXEC, Need.SUID, Need.USERS)
def case_set_user_id_gone_after_a_write(env: Env) -> None:
    """A write by a user takes the privilege away."""
    _program("id", "id")
    os.chown("id", *BOB)
    os.chmod("id", 0o4777)

    def touch_it() -> None:
        with opened("id", os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"\0")

    env.as_user(*ALICE)(touch_it)
    equal(env.as_user(*ALICE)(_ids_of, "./id"), [ALICE.uid], "effective uid")


@needs(Need.EXEC)
def case_file_changed_is_run_as_changed(env: Env) -> None:
    """A script written again runs its new text, 20 times."""
    for status in range(1, 21):
        put("f", b"#!/bin/sh\nexit %d\n" % status, 0o755)
        equal(_run("./f"), status, "exit status")


@needs(Need.EXEC, Need.USERS)
def case_script_needs_read_permission(env: Env) -> None:
    """The interpreter must read it."""
    put_owned("f", (0, 0), 0o711, _SCRIPT)
    equal(env.as_user(*ALICE)(_run, "./f") != 7, True, "the script did not run")

"""Finding the cases and running each in a process of its own.

Theory: a case is a function `case_NAME(env)` in a module of transfuse.testing.posix.cases; the module is its group,
the decorator `needs` says what it depends on, its docstring's first line says what it asserts. The order is that of
the source.

A run is: probe the needs once; for each case whose needs are met make a directory, fork, enter it, call the function,
and read the outcome from a pipe; then remove the directory. A case that exceeds its time is killed; one that can't be
killed (a server that never answers leaves a process in uninterruptible sleep) is reported as hanging and left behind,
so that the run itself always ends.
"""

from __future__ import annotations

import importlib
import os
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn

from transfuse.testing.posix import env as environment
from transfuse.testing.posix.env import CheckFailed, Env, Skip, User
from transfuse.testing.posix.needs import Need, probe, time_tick_s

GROUPS = (
    "paths",
    "open",
    "create",
    "mkdir",
    "rmdir",
    "unlink",
    "rename",
    "link",
    "symlink",
    "readdir",
    "chmod",
    "chown",
    "truncate",
    "read_write",
    "append",
    "times",
    "permissions",
    "sticky_setgid",
    "set_id_bits",
    "names",
    "xattr",
    "acl",
    "locks",
    "flock",
    "fallocate_seek",
    "copy_range",
    "mappings",
    "fifo_socket_device",
    "statvfs",
    "unlinked",
    "tmpfile",
    "exec_bits",
    "ioctl_attrs",
)

CASE_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 3.0

CaseFunction = Callable[[Env], None]


@dataclass(slots=True, frozen=True)
class Case:
    """One case: `group.name`, what it asserts in a line, what it needs."""

    group: str
    name: str
    about: str
    needs: tuple[Need, ...]
    function: CaseFunction

    @property
    def id(self) -> str:
        """group.name"""
        return f"{self.group}.{self.name}"

    def unmet(self, missing: dict[Need, str]) -> str | None:
        """Why the case can't run where these needs are missing; None if it can."""
        for need in self.needs:
            if need in missing:
                return f"needs {need.value}: {missing[need]}"
        return None


@dataclass(slots=True, frozen=True)
class Outcome:
    """How a case ended: status "pass", "fail" or "skip", the reason of the latter two, seconds it took."""

    case: Case
    status: str
    message: str
    elapsed_s: float


def all_cases(pattern: str = "") -> list[Case]:
    """Every case in order, or those whose id contains the pattern."""
    found: list[Case] = []
    for group in GROUPS:
        module = importlib.import_module(f"transfuse.testing.posix.cases.{group}")
        for name, function in vars(module).items():
            if name.startswith("case_") and callable(function):
                about = (function.__doc__ or "").strip().split("\n")[0]
                needed = environment.needs_of(function)
                found.append(Case(group, name.removeprefix("case_"), about, needed, function))
    return [case for case in found if pattern in case.id]


class Suite:
    """The cases over one directory. `user` runs them as an ordinary user; that takes root."""

    def __init__(self, root: str, user: User | None = None) -> None:
        self.root = os.path.abspath(root)
        self.user = user
        self.missing = self._probe()
        """Needs not met, with reasons."""
        self.tick_s = time_tick_s(self.root)

    def run(self, cases: Iterable[Case]) -> Iterator[Outcome]:
        """Run the cases in order; outcomes as they come."""
        for case in cases:
            yield self.run_case(case)

    def run_case(self, case: Case, timeout_s: float = CASE_TIMEOUT_S) -> Outcome:
        """Run one case in a process of its own."""
        reason = case.unmet(self.missing)
        if reason is not None:
            return Outcome(case, "skip", reason, 0.0)
        start = time.monotonic()
        directory = tempfile.mkdtemp(prefix=f"{case.group}-", dir=self.root)
        try:
            status, message = self._run_in(directory, case, timeout_s)
        finally:
            remove_tree(directory)
        return Outcome(case, status, message, time.monotonic() - start)

    def _run_in(self, directory: str, case: Case, timeout_s: float) -> tuple[str, str]:
        os.chmod(directory, 0o755)
        if self.user is not None:
            os.chown(directory, *self.user)
        met = frozenset(need for need in Need if need not in self.missing)
        here, there = Pipe()
        pid = os.fork()
        if pid == 0:
            here.close()
            _run_here(case, Env(directory, met, self.tick_s), there, self.user)
        there.close()
        try:
            if not here.poll(timeout_s):
                return "fail", f"hangs: no outcome after {timeout_s} s{_kill(pid)}"
            status, message = here.recv()
            return str(status), str(message)
        except EOFError:
            return "fail", "the process of the case died"
        finally:
            here.close()
            _kill(pid)

    def _probe(self) -> dict[Need, str]:
        if self.user is None:
            return probe(self.root)
        place = tempfile.mkdtemp(prefix=".probe-", dir=self.root)
        os.chown(place, *self.user)
        os.chmod(place, 0o755)
        user = self.user

        def probe_here(_other: environment.Other) -> dict[Need, str]:
            os.fchdir(directory)
            environment.become(user)
            return probe(".")

        directory = os.open(place, os.O_RDONLY)
        try:
            missing = environment.Child(probe_here, None, ()).result(CASE_TIMEOUT_S)
        finally:
            os.close(directory)
            remove_tree(place)
        if not isinstance(missing, dict):
            raise TypeError(f"the probe returned {missing!r}")
        return missing


def _run_here(case: Case, env: Env, connection: Connection, user: User | None) -> NoReturn:
    outcome = ("pass", "")
    try:
        os.setpgid(0, 0)  # so that what the case leaves behind can be ended with it
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.chdir(env.directory)
        os.umask(0o022)
        if user is not None:
            environment.become(user)
        case.function(env)
    except CheckFailed as error:
        outcome = ("fail", str(error))
    except Skip as reason:
        outcome = ("skip", str(reason))
    except OSError as error:
        where = _line_of(error)
        outcome = ("fail", f"unexpected {environment.errno_name(error.errno)}: {error} ({where})")
    except Exception as error:  # noqa: BLE001  a defect of the case itself must not be taken for a pass
        outcome = ("fail", f"{type(error).__name__}: {error} ({_line_of(error)})")
    finally:
        connection.send(outcome)
        os._exit(0)


def _line_of(error: BaseException) -> str:
    trace = error.__traceback__
    place = "?"
    while trace is not None:
        place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
        if place.startswith(("env.py", "calls.py")):
            break
    return place


def _kill(pid: int) -> str:
    """End the process group of a case; says so if its process can't be ended."""
    for target in (-pid, pid):
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            continue
    limit = time.monotonic() + KILL_TIMEOUT_S
    while time.monotonic() < limit:
        try:
            found, _status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return ""
        if found:
            return ""
        time.sleep(0.001)
    return "; its process can't be killed"


def remove_tree(directory: str) -> None:
    """Remove a tree whatever modes a case left, without following links. What can't be removed is left."""
    try:
        os.chmod(directory, 0o700)
        with os.scandir(os.fsencode(directory)) as entries:
            names = [(entry.path, stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode)) for entry in entries]
    except OSError:
        return
    for path, is_directory in names:
        try:
            if is_directory:
                remove_tree(os.fsdecode(path))
            else:
                os.unlink(path)
        except OSError:
            continue
    try:
        os.rmdir(directory)
    except OSError:
        return

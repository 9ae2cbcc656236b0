"""contain(): what a serving process gives up, in which order, and the report of it.

The order, and why it is this one:

    limit of open files      may need rights that go later
    supplementary groups
    namespaces, or none      a fork: the server is the child, its supervisor stays outside
    `prepare`                the source is opened inside, by its place; with Landlock after the next step
    capabilities             those that made the namespaces, at the latest now
    no_new_privs             what Landlock and seccomp ask for
    Landlock
    seccomp                  last: it forbids what the others need

Called when the sockets are open and while the process has one thread: capabilities and Landlock are a thread's own, and
a fork copies one only. Each part that can't be had is left out and reported with its reason, unless it was asked for by
name: then that is an error, found before anything is given up.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from transfuse.sandbox import capabilities, interpreter, landlock, linux, namespaces, seccomp, supervise
from transfuse.sandbox.supervise import Outside

__all__ = ["SANDBOXES", "Contained", "Containment", "ContainmentError", "Part", "Report", "Source", "contain"]

T = TypeVar("T")

SANDBOXES = ("auto", "namespace", "landlock", "none")
PLACE = "/source"
"""Where the first source is in a new root; the others have a number."""
MAX_NOFILE = 1_000_000
"""Open files that root's servers may have: as virtiofsd."""
NR_OPEN = "/proc/sys/fs/nr_open"


class ContainmentError(Exception):
    """A part that was asked for by name is not to be had; the text says which, and why."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file or directory that is served."""

    path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Containment:
    """What is wanted."""

    sandbox: str = "auto"
    """One of SANDBOXES; auto: the first of the others that works."""
    seccomp: str | None = None
    """One of seccomp.MODES; None: kill where there is seccomp."""
    sources: tuple[Source, ...] = ()
    readable: tuple[str, ...] = ()
    """Further files and directories that the server reads, besides the interpreter's."""
    keep_capabilities: bool = False
    """The process keeps those it has, and may gain some by execve()."""
    modcaps: tuple[tuple[str, bool], ...] = ()
    """Changes to the capabilities that are kept: see capabilities.parse_changes."""
    nofile: int | None = None
    """The limit of open files; None: a million as root, else as many as the user may."""
    sockets: tuple[str, ...] = ()
    """Sockets that are removed when the server has ended."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the containment."""

    name: str
    """sandbox, seccomp, capabilities or files."""
    in_force: bool
    text: str
    """What is in force, or why it is not."""


@dataclass(slots=True)
class Report:
    """What is in force and what is not."""

    sandbox: str = "none"
    seccomp: str = "none"
    capabilities: tuple[str, ...] | None = None
    """Those that are left; None: nothing was given up."""
    nofile: int = 0
    parts: list[Part] = field(default_factory=list)

    def add(self, name: str, in_force: bool, text: str) -> None:
        """Note a part."""
        self.parts.append(Part(name, in_force, text))

    def line(self) -> str:
        """For people: one line."""
        there = [part.text for part in self.parts if part.in_force]
        lacking = [part.text for part in self.parts if not part.in_force]
        contained = any(part.in_force for part in self.parts if part.name != "files")
        words = f"contained: {', '.join(there)}" if contained else "not contained"
        return f"{words}; {'; '.join(lacking)}" if lacking else words

    def as_json(self) -> str:
        """For scripts: one object."""
        return json.dumps(
            {
                "sandbox": self.sandbox, "seccomp": self.seccomp, "capabilities": self.capabilities,
                "nofile": self.nofile,
                "parts": [{"name": p.name, "in_force": p.in_force, "text": p.text} for p in self.parts],
            }
        )  # fmt: skip


@dataclass(slots=True)
class Contained(Generic[T]):
    """The process is inside now."""

    report: Report
    value: T
    """What `prepare` returned."""
    outside: Outside | None
    """The way to the supervisor; None where there is none."""


def contain(
    wanted: Containment,
    prepare: Callable[[Callable[[str], str]], T],
    *,
    notify: Callable[[str], object] = lambda text: None,
) -> Contained[T]:
    """Contain this process. With namespaces and Landlock it returns in a child; the caller becomes the supervisor.

    `prepare` opens the sources; it is given a function from a source's path to where it is now, and must not start a
    thread; a directory that is open before stands in the way of namespaces (transfuse.filesystems.hostdir opens one
    when it is imported: do that here, too). `notify` is called in the supervisor and passes a text to the service
    manager. ContainmentError: see there; whatever `prepare` raises passes.
    """
    assert wanted.sandbox in SANDBOXES
    binds = _binds(wanted)
    report = Report()
    sandbox = _choose_sandbox(wanted, binds, report)
    mode = _choose_seccomp(wanted, report)
    _limit_files(wanted, report)
    time.localtime()  # reads the time zone's file while it can be read
    outside = None
    begin = namespaces.begin if sandbox == "namespace" else _nothing
    if sandbox != "none":
        outside = supervise.fork(begin, wanted.sockets, notify)
    if not wanted.keep_capabilities:
        _drop_groups()
    if sandbox == "namespace":
        try:
            namespaces.enter(binds)
        except OSError as error:
            raise ContainmentError(f"--sandbox namespace: {error.strerror or error}") from error
    if sandbox == "landlock":
        _give_up(wanted, report, without=frozenset({capabilities.FILE_HANDLES}))
        value = prepare(lambda path: path)
        linux.set_no_new_privs()
        landlock.restrict(_openings(wanted), linux.landlock_abi())
    else:
        value = prepare(lambda path: _place(wanted, path) if sandbox == "namespace" else path)
        _give_up(wanted, report)
    if outside is not None:
        outside.die_with()
    if mode != "none":
        linux.set_no_new_privs()
        seccomp.install(mode, os.getpid())
    report.sandbox, report.seccomp = sandbox, mode
    report.parts.sort(key=lambda part: ("sandbox", "seccomp", "capabilities", "files").index(part.name))
    return Contained(report, value, outside)


def _nothing() -> None:
    pass


# -- what is to be had --


def _choose_sandbox(wanted: Containment, binds: list[namespaces.Bind], report: Report) -> str:
    if wanted.sandbox == "none":
        report.add("sandbox", False, "no sandbox (--sandbox none)")
        return "none"
    if (threads := _threads()) > 1:
        return _refused(wanted, report, f"{threads} threads run already")
    reasons = []
    if wanted.sandbox in ("auto", "namespace"):
        why = namespaces.refusal(binds)
        if why is None:
            own = "" if os.geteuid() == 0 else "user, "
            report.add("sandbox", True, f"namespaces ({own}{', '.join(namespaces.NAMES)})")
            return "namespace"
        reasons.append(f"no namespaces ({why})")
    if wanted.sandbox in ("auto", "landlock"):
        abi = linux.landlock_abi()
        if abi:
            report.add("sandbox", True, f"Landlock {abi} ({', '.join(landlock.what_is_denied(abi))})")
            for reason in reasons:
                report.add("sandbox", False, reason)
            return "landlock"
        reasons.append("no Landlock (the kernel has none)")
    return _refused(wanted, report, ", ".join(reasons))


def _refused(wanted: Containment, report: Report, why: str) -> str:
    if wanted.sandbox != "auto":
        raise ContainmentError(f"--sandbox {wanted.sandbox}: {why}")
    report.add("sandbox", False, f"no sandbox: {why}")
    return "none"


def _choose_seccomp(wanted: Containment, report: Report) -> str:
    mode = "kill" if wanted.seccomp is None else wanted.seccomp
    assert mode in seccomp.MODES
    if mode == "none":
        report.add("seccomp", False, "no seccomp (--seccomp none)")
        return mode
    why = seccomp.unavailable()
    if why is None:
        report.add("seccomp", mode != "log", f"seccomp {mode}")
        return mode
    if wanted.seccomp is not None:
        raise ContainmentError(f"--seccomp {mode}: {why}")
    report.add("seccomp", False, f"no seccomp ({why})")
    return "none"


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return len(sys._current_frames())


def _limit_files(wanted: Containment, report: Report) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = hard == resource.RLIM_INFINITY
    if wanted.nofile is not None:
        limit = wanted.nofile
    elif os.geteuid() == 0:
        limit = min(MAX_NOFILE, _nr_open())
    else:
        limit = MAX_NOFILE if infinite else min(hard, MAX_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (OSError, ValueError) as error:
        if wanted.nofile is not None:
            raise ContainmentError(f"--rlimit-nofile {limit}: {error}") from error
        limit = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    report.nofile = limit
    report.add("files", True, f"{limit} files")


def _nr_open() -> int:
    try:
        with open(NR_OPEN) as file:
            return int(file.read())
    except (OSError, ValueError):
        return MAX_NOFILE


# -- what is given up --


def _drop_groups() -> None:
    """Root's server has no use for the groups of whoever started it; an ordinary user can't drop them."""
    if os.geteuid() == 0:
        try:
            os.setgroups(())
        except PermissionError:
            return


def _give_up(wanted: Containment, report: Report, without: frozenset[str] = frozenset()) -> None:
    if wanted.keep_capabilities:
        report.add("capabilities", False, "capabilities kept")
        return
    kept = capabilities.SERVING | {capabilities.FILE_HANDLES} if os.geteuid() == 0 else frozenset()
    left = capabilities.keep_only(capabilities.change(kept, wanted.modcaps) - without)
    linux.set_no_new_privs()
    report.capabilities = left
    report.add("capabilities", True, f"{len(left) or 'no'} capabilit{'y' if len(left) == 1 else 'ies'}")


# -- what is left to see --


def _place(wanted: Containment, path: str) -> str:
    for number, source in enumerate(wanted.sources):
        if source.path == path:
            return f"{PLACE}{number or ''}"
    return path


def _binds(wanted: Containment) -> list[namespaces.Bind]:
    binds = [namespaces.Bind(s.path, _place(wanted, s.path), s.read_only) for s in wanted.sources]
    return binds + [namespaces.Bind(path) for path in (*interpreter.paths(), *wanted.readable)]


def _openings(wanted: Containment) -> list[landlock.Opening]:
    readable = (*interpreter.paths(), *wanted.readable, "/proc/self")
    openings = [landlock.Opening(path, landlock.READ) for path in readable]
    openings.append(landlock.Opening("/dev/null", landlock.READ | landlock.WRITE))
    for source in wanted.sources:
        openings.append(landlock.Opening(source.path, landlock.READ if source.read_only else landlock.WRITE))
    return openings

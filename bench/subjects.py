"""What is compared: how each server is started, found mounted, watched and ended.

A subject owns one mount point and one server process in its own process group. ``mount`` waits until the kernel lists
the mount and a child process has got an answer from it; ``unmount`` always succeeds, if need be by aborting the
connection. A server that dies only costs its own cells.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import prepare

MOUNT_TIMEOUT_S = 15.0
EXIT_TIMEOUT_S = 5.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class SubjectError(Exception):
    """The subject can't be started or has died; the message is the reason shown in the report."""


def mounted_device(path: Path) -> int | None:
    """Minor device number of the topmost mount on path (its FUSE connection's number); None if nothing is mounted."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[4] == str(path):
            found = int(fields[2].partition(":")[2])
    return found


def cpu_seconds(pid: int) -> float:
    """User + system seconds of a process and its waited-for children, all threads; 0.0 once it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    return sum(int(value) for value in stat.rpartition(")")[2].split()[11:15]) / CLOCK_TICKS


@dataclass
class Subject:
    """One row of the comparison."""

    name: str
    what: str
    """One line for the report: how it is run."""
    command: Callable[[Path, Path], list[str]] | None
    """(source, mount point) → argv in the foreground; None is native: the source itself."""
    kind: str = "peer"
    """native, ours or peer."""
    check: Callable[[], str | None] = lambda: None
    """None, or the reason why this subject can't be had."""
    env: dict[str, str] = field(default_factory=dict)
    source: Path = Path()
    mount_point: Path = Path()
    _process: subprocess.Popen[bytes] | None = None
    _log: str = ""

    def place(self, source: Path, mounts: Path) -> None:
        """Tell the subject where its source and its mount point are."""
        self.source, self.mount_point = source, mounts / self.name
        if self.command is None:
            self.mount_point = source
        else:
            self.mount_point.mkdir(parents=True, exist_ok=True)
            self._log = str(mounts / f"{self.name}.log")

    @property
    def root(self) -> Path:
        """Where workloads see the source tree."""
        return self.mount_point

    def alive(self) -> bool:
        """Whether the server runs and the mount is there (native: always)."""
        if self.command is None:
            return True
        return (
            self._process is not None and self._process.poll() is None and mounted_device(self.mount_point) is not None
        )

    def cpu(self) -> float:
        """CPU seconds of the server so far."""
        return 0.0 if self._process is None else cpu_seconds(self._process.pid)

    def complaint(self) -> str:
        """The last line the server wrote, for error messages."""
        with contextlib.suppress(OSError):
            lines = Path(self._log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            if lines:
                return lines[-1][:160]
        return "no message"

    def mount(self) -> None:
        """Start the server and wait until its mount answers; SubjectError says what went wrong."""
        if self.command is None:
            return
        argv = self.command(self.source, self.mount_point)
        with open(self._log, "wb") as log:
            try:
                self._process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    env={**os.environ, **self.env}, cwd=tempfile.gettempdir(),
                )  # fmt: skip
            except OSError as error:
                raise SubjectError(f"{argv[0]}: {error.strerror}") from None
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while mounted_device(self.mount_point) is None:
            if self._process.poll() is not None:
                raise SubjectError(f"did not start (exit {self._process.returncode}): {self.complaint()}")
            if time.monotonic() > deadline:
                self.unmount()
                raise SubjectError(f"not mounted after {MOUNT_TIMEOUT_S:.0f} s: {self.complaint()}")
            time.sleep(0.005)
        try:
            subprocess.run(
                ["ls", str(self.mount_point)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=MOUNT_TIMEOUT_S, check=True,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
            reason = self.complaint()
            self.unmount()
            raise SubjectError(f"the mount does not answer: {reason}") from None

    def abort(self) -> None:
        """Fail all requests of this subject's own connection, so that nothing can hang on it."""
        if self.command is None:
            return
        minor = mounted_device(self.mount_point)
        if minor is not None:
            with contextlib.suppress(OSError):
                Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1", encoding="utf-8")

    def unmount(self) -> None:
        """Unmount and end the server, whatever state they are in. Never raises, may be called at any time."""
        if self.command is None:
            return
        for attempt in range(8):
            if mounted_device(self.mount_point) is None:
                break
            flags = [] if attempt < 3 else ["-l"]
            if attempt >= 3:
                self.abort()
            with contextlib.suppress(subprocess.TimeoutExpired, FileNotFoundError):
                subprocess.run(["umount", *flags, str(self.mount_point)], capture_output=True, timeout=10, check=False)
            if mounted_device(self.mount_point) is not None:
                time.sleep(0.05)
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_TIMEOUT_S)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(EXIT_TIMEOUT_S)


def _installed(program: str) -> Callable[[], str | None]:
    def check() -> str | None:
        return None if shutil.which(program) else f"{program} is not installed (apt install {program})"

    return check


def _prepared(name: str) -> Callable[[], str | None]:
    return lambda: prepare.ready(name)


def _python_environment() -> dict[str, str]:
    """Our server from this source tree, if it is not installed in the running interpreter."""
    paths = [str(prepare.PROJECT / "src"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


COMPILED_PROBE = """
import json
from transfuse._native.loader import read_copies
copies = read_copies()
print(json.dumps([sorted(copies.usable), copies.unusable]))
"""


def compiled_modules() -> tuple[list[str], str]:
    """Names of the modules that run compiled, and why others (or all of them) do not: "" if nothing is amiss."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_PROBE], capture_output=True, text=True, check=False, timeout=30,
        env={**os.environ, **_python_environment()},
    )  # fmt: skip
    if done.returncode:
        return [], (done.stderr.strip().splitlines() or ["no message"])[-1][:160]
    usable, unusable = json.loads(done.stdout)
    return usable, "; ".join(f"{name}: {why}" for name, why in sorted(unusable.items()))[:300]


def compiled_form_present() -> str | None:
    """None if at least one module runs compiled, else the reason."""
    usable, why = compiled_modules()
    return None if usable else f"no compiled form: {why or 'no module is compiled'}"


def io_uring_possible() -> str | None:
    """None if requests can come over io_uring here, else the reason."""
    done = subprocess.run(
        [sys.executable, "-c", "from transfuse.transports.uring import obstacle; print(obstacle() or '')"],
        capture_output=True, text=True, check=False, timeout=30, env={**os.environ, **_python_environment()},
    )  # fmt: skip
    return done.stdout.strip() or (done.stderr.strip().splitlines() or [None])[-1]


def _prepared_for_io_uring(name: str) -> Callable[[], str | None]:
    return lambda: io_uring_possible() or prepare.ready(name)


def ours(name: str, what: str, *, compiled: bool, options: str, io_uring: bool = False) -> Subject:
    """Our own mount of a directory in one form; over io_uring or not, whatever this machine would do by itself."""
    return Subject(
        name=name,
        what=what,
        kind="ours",
        command=lambda source, target: [
            sys.executable,
            "-m",
            "transfuse",
            "mount",
            str(source),
            str(target),
            "--foreground",
            "-o",
            f"{options},io_uring" if io_uring else options,
        ],  # fmt: skip
        check=io_uring_possible if io_uring else compiled_form_present if compiled else lambda: None,
        env={**_python_environment(), "TRANSFUSE_NATIVE": "1" if compiled else "0"},
    )


def all_subjects() -> list[Subject]:
    """Every subject known, in the order of the report's columns."""
    binary, peers = prepare.BIN, prepare.HERE / "peers"
    python = str(prepare.VENV_PYTHON)
    return [
        Subject("native", "the tmpfs directory itself", None, kind="native"),
        ours("transfuse", "compiled form, cache=always, kernel passthrough", compiled=True, options="cache=always"),
        ours("transfuse-nopass", "compiled form, cache=always, no passthrough", compiled=True,
             options="cache=always,no_passthrough"),
        ours("transfuse-uring", "compiled form, cache=always, kernel passthrough, over io_uring", compiled=True,
             options="cache=always", io_uring=True),
        ours("transfuse-uring-nopass", "compiled form, cache=always, no passthrough, over io_uring", compiled=True,
             options="cache=always,no_passthrough", io_uring=True),
        ours("transfuse-noopen", "compiled form, cache=always, no_open (no passthrough)", compiled=True,
             options="cache=always,no_open"),
        ours("transfuse-lean", "compiled form, cache=always, no xattrs and no permission checks, like libfuse-ll",
             compiled=True, options="cache=always,xattr=no,no_default_permissions"),
        ours("plain", "pure Python, cache=always, kernel passthrough", compiled=False, options="cache=always"),
        ours("plain-nopass", "pure Python, cache=always, no passthrough", compiled=False,
             options="cache=always,no_passthrough"),
        Subject("bindfs", "bindfs -f, its defaults (it sets attr_timeout=0)",
                lambda source, target: ["bindfs", "-f", str(source), str(target)], check=_installed("bindfs")),
        Subject("libfuse-ll", "libfuse example passthrough_ll, -o cache=always",
                lambda source, target: [str(binary / "passthrough_ll"), "-f", "-o", f"source={source},cache=always",
                                        str(target)],
                check=_prepared("passthrough_ll")),
        Subject("libfuse-hp", "libfuse example passthrough_hp, defaults (caches for a day, write-back)",
                lambda source, target: [str(binary / "passthrough_hp"), "--foreground", str(source), str(target)],
                check=_prepared("passthrough_hp")),
        Subject("libfuse-hp-uring", "libfuse 3.18 example passthrough_hp, requests over io_uring",
                lambda source, target: [str(binary / "passthrough_hp_uring"), "--foreground", str(source), str(target)],
                check=_prepared_for_io_uring("passthrough_hp_uring"), env={"FUSE_URING_ENABLE": "1"}),
        Subject("mfusepy", "own pass-through on mfusepy, caches for an hour",
                lambda source, target: [python, str(peers / "mfusepy_passthrough.py"), str(source), str(target)],
                check=_prepared("mfusepy")),
        Subject("pyfuse3", "own pass-through on pyfuse3, caches for an hour",
                lambda source, target: [python, str(peers / "pyfuse3_passthrough.py"), str(source), str(target)],
                check=_prepared("pyfuse3")),
        Subject("pyfuse3-example", "pyfuse3's own example passthroughfs.py as it is (no caches)",
                lambda source, target: [python, str(binary / "passthroughfs.py"), str(source), str(target)],
                check=_prepared("pyfuse3-example")),
    ]  # fmt: skip

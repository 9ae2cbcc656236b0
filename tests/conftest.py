"""What every test gets: a header that says what runs, a seed that is printed, and a check that nothing is left open.

A test says what it needs with @pytest.mark.needs("root", "/dev/fuse", "git", ...). Where that is missing it is
skipped with the reason; under TRANSFUSE_REQUIRE=1 (continuous integration) it fails instead.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REQUIRE = os.environ.get("TRANSFUSE_REQUIRE", "") not in ("", "0")
# A skip for one of these reasons is the machine's fault, not the kernel version's: continuous integration must not
# have it.
MACHINE_REASON = re.compile(
    r"\broot\b|/dev/fuse|privilege|not installed|not found|no such program|missing|\bneeds\b|could not import",
    re.I,
)
LEAK_GRACE_S = 3.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of all randomness (default: a new one, printed)")
    parser.addoption("--soak", action="store_true", help="also run the tests that take minutes")
    parser.addoption(
        "--skip-report", type=Path, default=None, help="append skipped tests to this file, one JSON line each"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(1 << 32)
    if getattr(config.option, "hypothesis_seed", 0) is None:
        config.option.hypothesis_seed = config.option.seed


def _form() -> str:
    try:
        from transfuse._native import loader
    except ImportError as e:
        return f"unknown ({e})"
    import transfuse  # noqa: F401  its first act is to choose the form

    finders = [f for f in sys.meta_path if isinstance(f, loader.CopyFinder)]
    copies = sorted(finders[0].files) if finders else []
    if copies:
        return f"compiled ({len(copies)}): {' '.join(name.removeprefix('transfuse.') for name in copies)}"
    return f"plain ({loader.VARIABLE}={os.environ.get(loader.VARIABLE, '')!s})"


def _dev_fuse() -> str:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        return e.strerror or "no"
    return "yes"


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"form: {_form()}",
        f"machine: Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores, "
        f"root: {'yes' if os.geteuid() == 0 else 'no'}, /dev/fuse: {_dev_fuse()}, "
        f"what is missing: {'fails' if REQUIRE else 'skips'}",
        f"seed: {config.option.seed} (repeat with --seed {config.option.seed})",
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.soak:
        return
    left_out = [item for item in items if item.get_closest_marker("soak")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


def pytest_collection_finish(session: pytest.Session) -> None:
    # Thousands of collected tests live to the end; looking through them at each collection took most of a test's time.
    gc.collect()
    gc.freeze()


# ---- needs and skips


def _lack(need: str) -> str | None:
    if need == "root":
        return None if os.geteuid() == 0 else "needs root"
    if need == "user":
        return None if os.geteuid() == 0 else "needs root to become another user"
    if need == "/dev/fuse":
        answer = _dev_fuse()
        return None if answer == "yes" else f"needs /dev/fuse: {answer}"
    return None if shutil.which(need) else f"needs the program {need}: not found on PATH"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for need in mark.args:
            why = _lack(need)
            if why:
                pytest.skip(why)


def _demand(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip for something the machine lacks into a failure, where everything has to run."""
    if REQUIRE and report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if MACHINE_REASON.search(reason):
            report.outcome = "failed"
            report.longrepr = f"skipped although TRANSFUSE_REQUIRE is set: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    _demand(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _demand(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    path = config.option.skip_report
    if path is None:
        return
    with path.open("a") as out:
        for report in terminalreporter.stats.get("skipped", []):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            out.write(json.dumps({"test": report.nodeid, "reason": reason.removeprefix("Skipped: ")}) + "\n")


# ---- randomness


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """The session's seed; it is in the header of the run."""
    return int(pytestconfig.option.seed)


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Randomness that depends on the seed and the test's name only, not on which tests ran before."""
    return random.Random(f"{seed}:{request.node.nodeid}")


# ---- nothing left open


def _open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one listdir itself had open
    return found


def _mounts_under(folder: bytes) -> list[bytes]:
    with open("/proc/self/mountinfo", "rb") as f:
        return [point for line in f if (point := line.split()[4]) == folder or point.startswith(folder + b"/")]


@pytest.fixture(autouse=True)
def _nothing_left_open(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails a test that leaves fds, threads or mounts (below its tmp_path) behind. Costs others about 0.1 ms."""
    if request.node.get_closest_marker("may_leak"):
        yield
        return
    base = os.fsencode(tmp_path_factory.getbasetemp())
    fds, threads, mounts = _open_fds(), set(threading.enumerate()), set(_mounts_under(base))
    yield
    deadline = time.monotonic() + LEAK_GRACE_S
    collected = False
    while True:
        new_fds = {fd: what for fd, what in _open_fds().items() if fds.get(fd) != what}
        new_threads = [t for t in threading.enumerate() if t not in threads]
        new_mounts = [point for point in _mounts_under(base) if point not in mounts]
        if not new_fds and not new_threads and not new_mounts:
            return
        if not collected:
            gc.collect()
            collected = True
        elif time.monotonic() > deadline:
            break
        else:
            time.sleep(0.02)
    for point in reversed(new_mounts):  # a dead mount would hang whoever cleans the folder up
        subprocess.run(["umount", "-l", os.fsdecode(point)], check=False, timeout=20)
    pytest.fail(
        f"left open: fds {new_fds}, threads {[t.name for t in new_threads]}, mounts {new_mounts}", pytrace=False
    )

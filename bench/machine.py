"""What the benchmark ran on: processor, kernel, versions of everything compared."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from pathlib import Path

from bench import prepare
from bench.subjects import compiled_modules


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else "not installed"


def _python_package(name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return _first_line(str(prepare.VENV_PYTHON), "-c", code)


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / (1 << 30):.0f} GiB"


def _compiled() -> str:
    names, why = compiled_modules()
    return (", ".join(names) or "none") + (f" (not: {why})" if why else "")


def describe(client: str, scale: str) -> list[tuple[str, str]]:
    """(what, value) lines for the report."""
    return [
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("processor", f"{_cpu_model()}, {os.cpu_count()} cores"),
        ("memory", _memory()),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("compiled modules", _compiled()),
        ("data", f"tmpfs; {scale}"),
        ("timing client", client),
        ("load on the machine at the start", " ".join(f"{load:.2f}" for load in os.getloadavg())),
        ("bindfs", _first_line("bindfs", "--version")),
        ("libfuse", _first_line("pkg-config", "--modversion", "fuse3")),
        ("mfusepy", _python_package("mfusepy")),
        ("pyfuse3", _python_package("pyfuse3")),
        ("fio", _first_line("fio", "--version")),
        ("git", _first_line("git", "--version")),
    ]

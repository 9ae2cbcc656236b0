"""What `make test` runs after tools/bootstrap.sh: lint, types, both forms, every Python found, real kernels and guests.

Two lanes run side by side. In one, what needs the machine for itself (mounts, fusectl, guests) goes one test after the
other, and waits most of the time; in the other everything else: the compiled form on this Python, then the plain form
with coverage on the newest other Python, then the layers below the command line on the Python that is left. The output
of each of its steps is shown when the step is over.

Every step runs even if an earlier one failed. The last lines say what was skipped and why, what each step took, and
one verdict.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ("3.11", "3.12", "3.13")
PLAIN = ("wire", "session", "client", "transports", "fs", "filesystems", "fuzz", "test_server.py", "test_workers.py")
"""What of tests/ runs in the plain form: all that the compiled modules are behind."""
SLICE = ("wire", "session", "client", "fs")
"""What runs on the Python that is left."""
STEPS = ("lint", "native", "interop", "compiled", "plain", "slice")
REQUIRE = os.environ.get("TRANSFUSE_REQUIRE", "") not in ("", "0")
# Long enough for a slow machine, short enough that a hang is told from a slow run. Seconds.
SUITE_LIMIT_S = 3000
STEP_LIMIT_S = 1500


@dataclass
class Run:
    folder: Path
    results: list[tuple[str, str, float, str]] = field(default_factory=list)  # name, ok/FAILED/skipped, seconds, remark
    skip_files: dict[str, Path] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def step(
        self, name: str, command: list[str], env: Mapping[str, str] | None = None, limit_s: float = STEP_LIMIT_S
    ) -> bool:
        """Run one command. Its output is shown as it comes in the main thread, else when it is over."""
        title = f"\n==== {name}: {' '.join(str(c).removeprefix(str(ROOT) + '/') for c in command)}"
        start = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            print(title, flush=True)
            status, remark = self._wait(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}), limit_s)
        else:
            with tempfile.TemporaryFile("w+", errors="replace") as output:
                child = subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=output, stderr=output
                )
                status, remark = self._wait(child, limit_s)
                output.seek(0)
                with self.lock:
                    print(title, output.read(), sep="\n", flush=True)
        with self.lock:
            self.results.append((name, "FAILED" if status else "ok", time.monotonic() - start, remark))
        return status == 0

    @staticmethod
    def _wait(child: subprocess.Popen[bytes] | subprocess.Popen[str], limit_s: float) -> tuple[int, str]:
        remark = ""
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
            status, remark = 1, f"stopped after {limit_s:.0f} s"
        except KeyboardInterrupt:
            child.wait(20)
            raise
        return status, remark

    def pytest(self, name: str, python: Path, args: list[str], native: str, *, spread: bool = True) -> bool:
        report = self.folder / f"{len(self.skip_files)}.jsonl"
        self.skip_files[name] = report
        command = [str(python), "-m", "pytest", "-q", "--skip-report", str(report)]
        # A test that fails once and passes at once afterwards met the machine's load (timeouts, the order of the
        # kernel's background work); it is counted as "rerun" in the last line, and two failures are a failure.
        command += ["--reruns", "1"]
        if spread:
            command += ["-n", str(os.cpu_count() or 1), "--dist", "worksteal"]
        return self.step(name, [*command, *args], {"TRANSFUSE_NATIVE": native}, SUITE_LIMIT_S)

    def skip(self, name: str, why: str, *, fatal: bool = False) -> None:
        self.results.append((name, "FAILED" if fatal else "skipped", 0.0, why))
        print(f"\n==== {name}: skipped, {why}", flush=True)


def python_for(version: str) -> Path | None:
    """A working interpreter of that version: on PATH, or made by pyenv (whose shims exist for unselected ones too)."""
    candidates = [Path(found)] if (found := shutil.which(f"python{version}")) else []
    candidates += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"), reverse=True)
    probe = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        answer = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:
            return candidate
    return None


def build_native(run: Run, python: Path, name: str) -> str:
    """Build the compiled form in place; returns the TRANSFUSE_NATIVE to test with: 'require', or '0'."""
    why = subprocess.run(
        [python, "setup.py", "-q", "--name"],
        cwd=ROOT, env={**os.environ, "TRANSFUSE_NATIVE": "require"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if why.returncode:
        reason = (why.stderr.strip().splitlines() or ["?"])[-1].removeprefix("transfuse: ")
        run.skip(f"compiled form, {name}", reason, fatal=REQUIRE)
        return "0"
    command = [str(python), "setup.py", "-q", "build_ext", "--inplace"]
    built = run.step(f"build the compiled form, {name}", command, {"TRANSFUSE_NATIVE": "require"})
    return "require" if built else "0"


def ready_venv(run: Run, version: str, base: Path) -> Path | None:
    """The cached environment .venvs/VERSION with the test tools; made anew when pyproject.toml or setup.py changed."""
    folder = ROOT / ".venvs" / version
    python, stamp = folder / "bin" / "python", folder / "transfuse-stamp"
    want = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "setup.py").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == want and python.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-e", ".[dev,cli,fsspec]"]
    if run.step(f"make .venvs/{version}", [str(base), "-m", "venv", str(folder)]) and run.step(
        f"install into .venvs/{version}", install, {"TRANSFUSE_NATIVE": "0"}
    ):
        stamp.write_text(want)
        return python
    return None


def others(run: Run) -> list[tuple[str, Path]]:
    """The other supported Pythons on this machine, newest first: (version, interpreter of its environment)."""
    mine = ".".join(platform.python_version_tuple()[:2])
    found = []
    for version in reversed(SUPPORTED):
        if version == mine:
            continue
        base = python_for(version)
        if base is None:
            run.skip(f"tests on Python {version}", f"no python{version} on this machine")
        elif (python := ready_venv(run, version, base)) is not None:
            found.append((version, python))
    return found


def quick_lane(run: Run, steps: list[str], native: str, args: list[str]) -> None:
    """Everything that does not need the machine for itself."""
    python = Path(sys.executable)
    if "compiled" in steps:
        form = "compiled form" if native == "require" else "plain form, for want of a compiled one"
        run.pytest(f"tests without interop, {form}", python, ["-m", "not interop", *args], native)
    if not {"plain", "slice"} & set(steps):
        return
    found = others(run)
    if "plain" in steps:
        version, other = found[0] if found else ("of this machine", python)
        folders = [f"tests/{name}" for name in PLAIN]
        run.pytest(f"plain form, Python {version}", other, ["-m", "not interop", *folders, *args], "0")
    if "slice" in steps:
        for version, other in found[1:]:
            folders = [f"tests/{name}" for name in SLICE]
            run.pytest(f"some layers, Python {version}", other, ["-m", "not interop", *folders, *args], "0")


def summary(run: Run) -> int:
    by_reason: dict[str, Counter[str]] = defaultdict(Counter)
    for name, path in run.skip_files.items():
        for line in path.read_text().splitlines() if path.exists() else []:
            by_reason[json.loads(line)["reason"]][name] += 1
    print("\n==== skipped")
    for reason, runs in sorted(by_reason.items()):
        print(f"  {sum(runs.values()):4} × {reason}  ({', '.join(f'{n} in {name}' for name, n in runs.items())})")
    for name, status, _, remark in run.results:
        if status == "skipped":
            print(f"  {name}: {remark}")
    if not by_reason and not any(r[1] == "skipped" for r in run.results):
        print("  nothing")
    print("  soak tests are not part of this: make soak")
    print("\n==== steps")
    for name, status, seconds, remark in run.results:
        print(f"  {status:8}{seconds:7.1f} s  {name}{f'  ({remark})' if remark else ''}")
    failed = [r[0] for r in run.results if r[1] == "FAILED"]
    total = time.monotonic() - run.began
    print()
    if failed:
        print(f"FAILED: {', '.join(failed)} ({total / 60:.1f} min)")
        return 1
    print(f"PASSED: {sum(r[1] == 'ok' for r in run.results)} steps in {total / 60:.1f} min")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=STEPS, action="append", help="run this step only (may be repeated)")
    parser.add_argument("pytest_args", nargs="*", help="passed on to pytest (after --)")
    options = parser.parse_args()
    steps = options.only or list(STEPS)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  it is a TextIOWrapper
    python = Path(sys.executable)
    dev_fuse = "opens" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "does not open"
    print(
        f"==== transfuse: {' '.join(steps)}; Python {platform.python_version()}, Linux {platform.release()}, "
        f"{os.cpu_count()} cores, {'root' if os.geteuid() == 0 else 'not root'}, /dev/fuse {dev_fuse}"
    )
    with tempfile.TemporaryDirectory(prefix="transfuse-check-") as folder:
        run = Run(Path(folder))
        if "lint" in steps:
            run.step("ruff", [str(python), "-m", "ruff", "check", "."])
            run.step("mypy", [str(python), "-m", "mypy", "--strict", "src"])
        native = "0"
        if {"native", "interop", "compiled"} & set(steps):
            native = build_native(run, python, "this Python")
        lanes: list[Callable[[], None]] = []
        if {"compiled", "plain", "slice"} & set(steps):
            lanes.append(lambda: quick_lane(run, steps, native, options.pytest_args))
        threads = [threading.Thread(target=lane, daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        if "interop" in steps:
            # One after the other: mounts, fusectl, guests, the kernel's caches and log belong to the whole machine.
            form = "compiled form" if native == "require" else "plain form"
            run.pytest(f"interop, {form}", python, ["-m", "interop", *options.pytest_args], native, spread=False)
        for thread in threads:
            thread.join()
        return summary(run)


if __name__ == "__main__":
    sys.exit(main())

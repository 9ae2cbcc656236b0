"""What is measured. A Workload does one thing on one subject's tree and yields one Sample per metric.

Cold means: a freshly started server on a fresh mount, so that neither the kernel's caches nor the server's know
anything (dropping caches by /proc would disturb the whole machine and send a flood of FORGETs into the next figure).
Native has no such state: its cold figures are its warm ones. Every sample carries a check string (bytes read, files
found, git's answer); a subject whose check differs from native's has failed the workload, however fast it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.subjects import Subject

MILLION = 1_000_000
FIO_CAP_S = 4
"""A fio job ends here at the latest; its figure stays valid because it is a rate."""
GIT = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false"]
ENVIRONMENT = {"LC_ALL": "C", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
WORDS = "lorem ipsum dolor sit amet consetetur sadipscing elitr sed diam nonumy eirmod tempor ut labore".split()


class WorkloadError(Exception):
    """A workload failed to produce its figure; the message is the reason shown in the report."""


@dataclass(frozen=True)
class Scale:
    """How big the data and how long the loops are."""

    stat_files: int = 20_000
    text_files: int = 3_000
    git_files: int = 2_000
    new_files: int = 5_000
    open_files: int = 200
    loop_s: float = 0.4
    new_files_s: float = 8.0
    big_bytes: int = 256 << 20
    random_bytes: int = 48 << 20
    command_timeout_s: float = 45.0


QUICK = Scale(stat_files=5_000, text_files=800, git_files=1_000, new_files=1_000, loop_s=0.15, new_files_s=2.0,
              big_bytes=128 << 20, random_bytes=12 << 20, command_timeout_s=15.0)  # fmt: skip


@dataclass
class Bench:
    """What workloads need besides the subject: sizes, the timing client, scratch files."""

    scale: Scale
    client: list[str]
    source: Path
    scratch: Path
    _fresh: int = 0

    def fresh(self, stem: str) -> str:
        """A name never used before: old ones are removed behind the mounts, whose caches still know them."""
        self._fresh += 1
        return f"{stem}-{self._fresh:05}"

    def command(self, subject: Subject, argv: list[str], ok: tuple[int, ...] = (0,)) -> tuple[float, str]:
        """Run a program: (seconds, stdout). WorkloadError on failure or timeout; a hanging mount is aborted."""
        started = time.perf_counter()
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True, env={**os.environ, **ENVIRONMENT},
        ) as process:  # fmt: skip
            try:
                out, err = process.communicate(timeout=self.scale.command_timeout_s)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                subject.abort()
                process.communicate()
                raise WorkloadError(
                    f"{Path(argv[0]).name} took more than {self.scale.command_timeout_s:.0f} s"
                ) from None
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
            seconds = time.perf_counter() - started
        if process.returncode not in ok:
            lines = err.strip().splitlines() or out.strip().splitlines() or [f"exit {process.returncode}"]
            raise WorkloadError(lines[-1][:160])
        return seconds, out

    def timed(self, subject: Subject, mode: str, *args: object) -> tuple[int, float, int]:
        """Run the timing client: (operations, microseconds per operation, bytes)."""
        _, out = self.command(subject, [*self.client, mode, *map(str, args)])
        try:
            ops, nanoseconds, size = (int(word) for word in out.split())
        except ValueError:
            raise WorkloadError(f"the timing client answered {out[:80]!r}") from None
        if ops == 0:
            raise WorkloadError("no operation was done")
        return ops, nanoseconds / ops / 1000, size


@dataclass(frozen=True)
class Sample:
    """One figure of one subject in one round."""

    metric: str
    value: float
    ops: int = 1
    check: str = ""


@dataclass(frozen=True)
class Metric:
    """One row of the report."""

    name: str
    title: str
    unit: str
    higher_is_better: bool = False


@dataclass(frozen=True)
class Workload:
    """A function over a mounted subject, the metrics it yields and whether it starts on a fresh mount."""

    name: str
    metrics: tuple[Metric, ...]
    run: Callable[[Bench, Subject], Iterator[Sample]]
    cold: bool = False
    needs: str = ""
    """A program without which the workload is left out."""


# ---------------------------------------------------------------------------------------------------------------- data


def make_data(bench: Bench) -> None:
    """Write the source trees: stat/ (many tiny files), text/ (small texts), repo/ (git); big and written for fio."""
    rng = random.Random(7)
    scale, source, old = bench.scale, bench.source, time.time() - 7200
    lists: dict[str, list[str]] = {"stat": [], "text": []}
    for name, count, per_dir in (("stat", scale.stat_files, 100), ("text", scale.text_files, 50)):
        for index in range(count):
            relative = f"{name}/d{index // per_dir:03}/file-{index:05}.txt"
            path = source / relative
            if index % per_dir == 0:
                path.parent.mkdir(parents=True)
            words = 20 if name == "stat" else rng.randint(100, 2000)
            text = " ".join(rng.choices(WORDS, k=words)) + (" needle\n" if index % 97 == 0 else "\n")
            path.write_text(text, encoding="ascii")
            os.utime(path, (old, old))
            lists[name].append(relative)
    for name, relatives in lists.items():
        (bench.scratch / f"{name}.list").write_text("\n".join(relatives) + "\n", encoding="ascii")
    (bench.scratch / "open.list").write_text("\n".join(lists["text"][: scale.open_files]) + "\n", encoding="ascii")
    if shutil.which("git"):
        _make_repository(source / "repo", scale.git_files, rng, old)
    block = rng.randbytes(1 << 20)
    # "written" is overwritten in place by every subject: on a virtual machine the first use of a page is slow, and
    # would be measured instead of the write
    for name in ("big", "written"):
        with open(source / name, "wb") as file:
            for _ in range(scale.big_bytes >> 20):
                file.write(block)


def _make_repository(repo: Path, count: int, rng: random.Random, old: float) -> None:
    """A repository whose index trusts mtime and size alone: inode numbers differ between some of the subjects."""
    for index in range(count):
        path = repo / f"dir{index // 25:03}" / f"source_{index:05}.c"
        if index % 25 == 0:
            path.parent.mkdir(parents=True)
        path.write_text(" ".join(rng.choices(WORDS, k=150)) + "\n", encoding="ascii")
        os.utime(path, (old, old))
    settings = ["-c", "core.checkStat=minimal", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for argv in (
        ["init", "-q", "."], ["config", "core.checkStat", "minimal"], ["config", "core.trustctime", "false"],
        ["config", "gc.auto", "0"], ["add", "."], ["commit", "-q", "-m", "tree"], ["status"],
    ):  # fmt: skip
        subprocess.run([*GIT, *settings, *argv], cwd=repo, check=True, capture_output=True,
                       env={**os.environ, **ENVIRONMENT})  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- workloads


def _latency(bench: Bench, subject: Subject) -> Iterator[Sample]:
    for metric in ("getattr", "negative"):
        ops, micros, _ = bench.timed(subject, metric, subject.root / "text", bench.scale.loop_s)
        yield Sample(metric, micros, ops)


def _stat(bench: Bench, subject: Subject) -> Iterator[Sample]:
    for metric in ("stat-cold", "stat-warm"):
        ops, micros, size = bench.timed(subject, "statlist", subject.root, bench.scratch / "stat.list")
        yield Sample(metric, micros, ops, f"{ops} files of {size} bytes")


def _find(bench: Bench, subject: Subject) -> Iterator[Sample]:
    for metric in ("find-cold", "find-warm"):
        seconds, out = bench.command(subject, ["find", str(subject.root / "stat"), "-type", "f", "-printf", "%s\n"])
        yield Sample(metric, seconds * 1000, bench.scale.stat_files, f"{out.count(chr(10))} lines of {len(out)} bytes")


def _open(bench: Bench, subject: Subject) -> Iterator[Sample]:
    target = bench.scratch / "open.list"
    bench.timed(subject, "openclose", subject.root, target, 0.05)  # looks the names up
    ops, micros, _ = bench.timed(subject, "openclose", subject.root, target, bench.scale.loop_s)
    yield Sample("open", micros, ops)


def _small(bench: Bench, subject: Subject) -> Iterator[Sample]:
    ops, micros, size = bench.timed(subject, "readlist", subject.root, bench.scratch / "text.list")
    yield Sample("small-cold", micros, ops, f"{ops} files of {size} bytes")


def _create(bench: Bench, subject: Subject) -> Iterator[Sample]:
    name = bench.fresh("new")
    directory = bench.source / name
    directory.mkdir()
    try:
        target = subject.root / name
        ops, micros, size = bench.timed(subject, "create", target, bench.scale.new_files, bench.scale.new_files_s)
        landed = sum(entry.stat().st_size for entry in os.scandir(directory))
        if landed != size:
            raise WorkloadError(f"{size} bytes written, {landed} bytes in the source")
        yield Sample("create", micros, ops)
        ops, micros, _ = bench.timed(subject, "unlink", target, ops, bench.scale.new_files_s * 2)
        yield Sample("unlink", micros, ops)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _git(bench: Bench, subject: Subject) -> Iterator[Sample]:
    for metric in ("git-cold", "git-warm"):
        seconds, out = bench.command(subject, [*GIT, "-C", str(subject.root / "repo"), "status", "--porcelain"])
        yield Sample(metric, seconds * 1000, 1, f"status {out[:80]!r}")


def _tar(bench: Bench, subject: Subject) -> Iterator[Sample]:
    for metric in ("tar-cold", "tar-warm"):
        # into a pipe: tar notices /dev/null and would not read the files at all
        script = 'set -o pipefail; tar -C "$1" -cf - text | wc -c'
        seconds, out = bench.command(subject, ["bash", "-c", script, "tar", str(subject.root)])
        yield Sample(metric, seconds * 1000, bench.scale.text_files, f"{out.strip()} bytes")


def _grep(bench: Bench, subject: Subject) -> Iterator[Sample]:
    for metric in ("grep-cold", "grep-warm"):
        seconds, out = bench.command(subject, ["grep", "-r", "-l", "needle", str(subject.root / "text")])
        yield Sample(metric, seconds * 1000, bench.scale.text_files, f"{out.count(chr(10))} matches")


def _fio(metric: str, mode: str, block: str, *, direct: bool) -> Callable[[Bench, Subject], Iterator[Sample]]:
    def run(bench: Bench, subject: Subject) -> Iterator[Sample]:
        writes, size = "write" in mode, bench.scale.big_bytes
        io_size = bench.scale.random_bytes if mode.startswith("rand") else size
        argv = [
            "fio", "--name=x", f"--filename={subject.root / ('written' if writes else 'big')}", f"--rw={mode}",
            f"--bs={block}", f"--direct={int(direct)}", f"--size={size}", f"--io_size={io_size}",
            f"--runtime={FIO_CAP_S}", "--ioengine=psync", "--thread", "--invalidate=1", "--fallocate=none",
            "--allow_file_create=0", "--end_fsync=1", "--randrepeat=1", "--output-format=json", "--eta=never",
        ]  # fmt: skip
        _, out = bench.command(subject, argv)
        job = json.loads(out[out.index("{") :])["jobs"][0]
        side = job["write" if writes else "read"]
        if job["error"] or not side["io_bytes"]:
            raise WorkloadError(f"fio error {job['error']}, {side['io_bytes']} bytes moved")
        yield Sample(metric, side["bw_bytes"] / MILLION, side["total_ios"])

    return run


def _data(name: str, title: str, mode: str, block: str, *, direct: bool = False) -> Workload:
    metric = Metric(name, title, "MB/s", higher_is_better=True)
    return Workload(name, (metric,), _fio(name, mode, block, direct=direct), needs="fio")


WORKLOADS: tuple[Workload, ...] = (
    Workload("latency", (
        Metric("getattr", "forced GETATTR", "µs"),
        Metric("negative", "lookup of a missing name", "µs"),
    ), _latency),
    Workload("stat", (
        Metric("stat-cold", "stat of many files by name, cold", "µs/file"),
        Metric("stat-warm", "the same again, warm", "µs/file"),
    ), _stat, cold=True),
    Workload("find", (
        Metric("find-cold", "find + stat of the same tree, cold", "ms"),
        Metric("find-warm", "the same again, warm", "ms"),
    ), _find, cold=True, needs="find"),
    Workload("open", (Metric("open", "open + close", "µs"),), _open),
    Workload("small", (Metric("small-cold", "open, read, close of small files, cold", "µs/file"),), _small, cold=True),
    Workload("create", (
        Metric("create", "create, write 1 KiB, close", "µs/file"),
        Metric("unlink", "unlink of these files", "µs/file"),
    ), _create),
    Workload("git", (
        Metric("git-cold", "git status, cold", "ms"),
        Metric("git-warm", "git status, warm", "ms"),
    ), _git, cold=True, needs="git"),
    Workload("tar", (
        Metric("tar-cold", "tar of a tree of small texts, cold", "ms"),
        Metric("tar-warm", "the same again, warm", "ms"),
    ), _tar, cold=True, needs="tar"),
    Workload("grep", (
        Metric("grep-cold", "grep -r over that tree, cold", "ms"),
        Metric("grep-warm", "the same again, warm", "ms"),
    ), _grep, cold=True, needs="grep"),
    _data("read-128k", "sequential read, buffered, 128 KiB", "read", "128k"),
    _data("read-1m", "sequential read, buffered, 1 MiB", "read", "1m"),
    _data("read-direct", "sequential read, direct, 1 MiB", "read", "1m", direct=True),
    _data("randread-4k", "random read, buffered, 4 KiB", "randread", "4k"),
    _data("write-128k", "sequential write, buffered, 128 KiB", "write", "128k"),
    _data("write-1m", "sequential write, buffered, 1 MiB", "write", "1m"),
    _data("write-direct", "sequential write, direct, 1 MiB", "write", "1m", direct=True),
    _data("randwrite-4k", "random write, buffered, 4 KiB", "randwrite", "4k"),
)  # fmt: skip


def metrics_of(workloads: tuple[Workload, ...]) -> list[Metric]:
    """All metrics in the order of the report."""
    return [metric for workload in workloads for metric in workload.metrics]

"""The command line of the benchmark: choose, prepare, run, report, clean up."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from bench import machine, prepare, report
from bench.results import Results
from bench.runner import Run
from bench.subjects import Subject, all_subjects
from bench.workloads import QUICK, WORKLOADS, Bench, Scale, Workload, make_data, metrics_of

DEFAULT_BUDGET_S = 840.0
QUICK_BUDGET_S = 150.0
DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 3
DESCRIPTORS = 262_144
"""Pass-through servers in C hold one descriptor for each known inode."""
DESCRIPTOR_MARGIN = 1_500
"""Descriptors these servers need besides those of the files in stat/: directories, text files, themselves."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; unknown names of workloads and subjects are refused here."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="small data, few rounds: under three minutes")
    parser.add_argument("--only", metavar="LIST", help="workloads, comma separated: "
                        + ", ".join(workload.name for workload in WORKLOADS))  # fmt: skip
    parser.add_argument("--subjects", metavar="LIST", help="subjects, comma separated: "
                        + ", ".join(subject.name for subject in all_subjects()))  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds (default {DEFAULT_ROUNDS})")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="no new round starts that would pass this "
                        f"(default {DEFAULT_BUDGET_S:.0f}, quick {QUICK_BUDGET_S:.0f})")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument("--doc", type=Path, metavar="FILE",
                        help="write the report to FILE (default: docs/benchmarks.md after a complete run)")  # fmt: skip
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), metavar="DIR", help="where the data lie")
    parser.add_argument("--prepare", action="store_true", help="build or fetch the peers again, then stop")
    options = parser.parse_args(argv)
    for name, known in (("only", {workload.name for workload in WORKLOADS}),
                        ("subjects", {subject.name for subject in all_subjects()})):  # fmt: skip
        text = getattr(options, name)
        chosen = None if text is None else [word for word in text.split(",") if word]
        if chosen is not None and (not chosen or set(chosen) - known):
            unknown = ", ".join(sorted(set(chosen) - known)) or "empty"
            parser.error(f"--{name}: {unknown}; known: {', '.join(sorted(known))}")
        setattr(options, name, chosen)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


class Progress:
    """One line on stderr that overwrites itself on a terminal; one line per round and workload elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        """Show where the run is."""
        text = f"[{time.monotonic() - self._started:4.0f} s] {text}"
        if self._terminal:
            sys.stderr.write(f"\r\033[K{text}")
        elif (head := text.partition("]")[2].rpartition(":")[0]) != self._last:
            self._last = head
            sys.stderr.write(f"{text.rpartition(':')[0] or text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            sys.stderr.write("\r\033[K")


def choose(options: argparse.Namespace) -> tuple[list[Subject], dict[str, str], list[Workload], dict[str, str]]:
    """Subjects that can be had, reasons for the others; workloads whose program is there, reasons for the others."""
    subjects, skipped = [], {}
    for subject in all_subjects():
        # native is always there: checks and doubts refer to it
        if options.subjects is None or subject.name in options.subjects or subject.kind == "native":
            reason = subject.check()
            if subject.command is not None and reason is None and not os.access("/dev/fuse", os.R_OK | os.W_OK):
                reason = "/dev/fuse can't be opened by this user"
            if reason is None:
                subjects.append(subject)
            else:
                skipped[subject.name] = reason
    workloads, missing = [], {}
    for workload in WORKLOADS:
        if options.only is None or workload.name in options.only:
            if workload.needs and not shutil.which(workload.needs):
                missing[workload.name] = f"{workload.needs} is not installed"
            else:
                workloads.append(workload)
    return subjects, skipped, workloads, missing


def _raise_descriptor_limit() -> int:
    """Raise the limit as far as this user may; the limit now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, DESCRIPTORS)
    for new_hard in (max(hard, wanted), hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, new_hard), new_hard))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. 0: done; 1: nothing could be measured; 130: interrupted (what was measured is reported)."""
    options = arguments(argv)
    if options.prepare:
        for name in prepare.STEPS:
            print(f"{name}: {prepare.ready(name, again=True) or 'ready'}")
        return 0
    scale: Scale = QUICK if options.quick else Scale()
    progress = Progress()
    progress("preparing the peers")
    subjects, skipped, workloads, missing = choose(options)
    if not workloads:
        print("bench: nothing to run: " + "; ".join(missing.values()), file=sys.stderr)
        return 1
    client, client_name = prepare.timing_client()
    if not options.tmpfs.is_dir() or not os.access(options.tmpfs, os.W_OK):
        print(f"bench: {options.tmpfs} is not a writable directory; choose another with --tmpfs", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _on_sigterm)
    # where the limit is low, everyone gets fewer files: else the C servers could not take part
    room = max(100, (_raise_descriptor_limit() - DESCRIPTOR_MARGIN) // 100 * 100)
    scale = replace(scale, stat_files=min(scale.stat_files, room))
    metrics = {metric.name: metric for metric in metrics_of(tuple(workloads))}
    results = Results({subject.name: subject.kind for subject in subjects},
                      {name: metric.higher_is_better for name, metric in metrics.items()})  # fmt: skip
    work = Path(tempfile.mkdtemp(prefix="transfuse-bench-", dir=options.tmpfs)).resolve()
    bench = Bench(scale, client, work / "source", work)
    run = Run(bench, subjects, workloads, results, progress, skipped)
    size = (f"{scale.stat_files} files to stat, {scale.text_files} small texts, {scale.git_files} files in git, "
            f"{scale.new_files} files created, {scale.big_bytes >> 20} MiB file")  # fmt: skip
    about = machine.describe(client_name, size)
    interrupted = False
    try:
        (work / "mounts").mkdir()
        bench.source.mkdir()
        progress("writing the data")
        make_data(bench)
        for subject in subjects:
            subject.place(bench.source, work / "mounts")
        budget = options.budget or (QUICK_BUDGET_S if options.quick else DEFAULT_BUDGET_S)
        run.go(options.rounds or (QUICK_ROUNDS if options.quick else DEFAULT_ROUNDS), budget)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress("cleaning up")
        _clean(subjects, work)
        progress.end()
    results.leave_out(run.skipped)
    skipped = {**run.skipped, **missing}
    print(report.terminal(results, metrics, skipped), end="")
    print(f"\n{run.rounds_done} complete rounds; timing client: {client_name}")
    if options.json is not None:
        everything = {"machine": dict(about), "rounds": run.rounds_done, "skipped": skipped}
        everything["results"] = results.as_json()
        options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    complete = not (options.quick or options.only or options.subjects or interrupted)
    shown = [(subject.name, subject.what) for subject in subjects if subject.name in results.kinds]
    doc = options.doc or (prepare.PROJECT / "docs" / "benchmarks.md" if complete else None)
    if doc is not None:
        doc.parent.mkdir(parents=True, exist_ok=True)
        doc.write_text(
            report.markdown(
                results, metrics, machine=about, subjects=shown,
                skipped=skipped, rounds=run.rounds_done,
            ),
            encoding="utf-8",
        )  # fmt: skip
        print(f"written: {doc}")
    if interrupted:
        return 130
    return 0 if any(cell.values for cell in results.cells.values()) else 1


def _clean(subjects: Sequence[Subject], work: Path) -> None:
    """Unmount everything and remove the data; a second Ctrl-C can't stop it half-way."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for subject in subjects:
            if subject.mount_point != Path():
                subject.unmount()
        shutil.rmtree(work, ignore_errors=True)
    finally:
        signal.signal(signal.SIGINT, previous)

"""The interleaved run: round by round, workload by workload, subject by subject, within a time budget.

The order of subjects turns by one from cell to cell so that nobody always runs after the same neighbour. A failing
subject costs its own cells only; one that can't start twice in a row is left out with the reason. A cell that was slow
is not repeated often, so that one slow peer doesn't take the others' rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.results import Results
from bench.subjects import Subject, SubjectError
from bench.workloads import Bench, Workload, WorkloadError

SLOW_CELL_S = 6.0
SLOW_CELL_ROUNDS = 2
START_ATTEMPTS = 2


@dataclass
class Run:
    """One benchmark run; `results` and `skipped` can be read at any time, also after an interruption."""

    bench: Bench
    subjects: Sequence[Subject]
    workloads: Sequence[Workload]
    results: Results
    progress: Callable[[str], None]
    skipped: dict[str, str] = field(default_factory=dict)
    rounds_done: int = 0
    _failed_starts: dict[str, int] = field(default_factory=dict)
    _checks: dict[str, str] = field(default_factory=dict)
    _slow: dict[tuple[str, str], int] = field(default_factory=dict)

    def go(self, rounds: int, budget_s: float) -> None:
        """Run up to `rounds` rounds; no new round starts if it would pass the budget, no cell starts after it."""
        started = time.monotonic()
        deadline = started + budget_s
        longest = 0.0
        for number in range(rounds):
            begun = time.monotonic()
            if number and begun + longest > deadline:
                break
            if not self._round(number, rounds, deadline):
                break
            self.rounds_done = number + 1
            longest = max(longest, time.monotonic() - begun)

    def _round(self, number: int, rounds: int, deadline: float) -> bool:
        for index, workload in enumerate(self.workloads):
            native = [subject for subject in self.subjects if subject.kind == "native"]
            others = [subject for subject in self.subjects if subject.kind != "native"]
            turn = (number + index) % len(others) if others else 0
            # native first: its check string is the reference of the others
            for subject in [*native, *others[turn:], *others[:turn]]:
                if time.monotonic() > deadline:
                    self.progress("time is up")
                    self._mark_missing()
                    return False
                if subject.name in self.skipped:
                    continue
                if self._slow.get((workload.name, subject.name), 0) >= SLOW_CELL_ROUNDS:
                    continue
                self.progress(f"round {number + 1}/{rounds}  {workload.name}: {subject.name}")
                begun = time.monotonic()
                self._cell(workload, subject)
                if time.monotonic() - begun > SLOW_CELL_S:
                    key = workload.name, subject.name
                    self._slow[key] = self._slow.get(key, 0) + 1
        return True

    def _mark_missing(self) -> None:
        for workload in self.workloads:
            for metric in workload.metrics:
                for subject in self.subjects:
                    cell = self.results.cell(metric.name, subject.name)
                    if not cell.values and not cell.failures and subject.name not in self.skipped:
                        cell.failures.append("not run: time was up")

    def _mounted(self, workload: Workload, subject: Subject) -> str | None:
        """Bring the subject up, fresh if the workload is cold; the reason if it can't be."""
        if not workload.cold and subject.alive():
            return None
        try:
            subject.unmount()
            subject.mount()
        except SubjectError as error:
            subject.unmount()
            count = self._failed_starts.get(subject.name, 0) + 1
            self._failed_starts[subject.name] = count
            if count >= START_ATTEMPTS:
                self.skipped[subject.name] = str(error)
            return str(error)
        self._failed_starts[subject.name] = 0
        return None

    def _cell(self, workload: Workload, subject: Subject) -> None:
        missing = [metric.name for metric in workload.metrics]
        reason = self._mounted(workload, subject)
        if reason is None:
            cpu = subject.cpu()
            try:
                for sample in workload.run(self.bench, subject):
                    if subject.kind == "native":
                        self._checks.setdefault(sample.metric, sample.check)
                    expected = self._checks.get(sample.metric, sample.check)
                    if sample.check != expected:
                        raise WorkloadError(f"answer is {sample.check}, native's is {expected}")
                    cell = self.results.cell(sample.metric, subject.name)
                    cell.values.append(sample.value)
                    now = subject.cpu()
                    cell.cpu_s.append(max(0.0, now - cpu))
                    cpu = now
                    missing.remove(sample.metric)
            except WorkloadError as error:
                reason = str(error)
            except OSError as error:
                reason = f"{error.strerror}: {error.filename}"
            if reason is not None and not subject.alive():
                reason = f"{reason}; the server died: {subject.complaint()}"
            if reason is not None:
                subject.unmount()  # whatever state broke this cell must not break the next
        for name in missing:
            self.results.cell(name, subject.name).failures.append(reason or "no figure came")

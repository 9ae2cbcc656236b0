"""The record of a run and what is derived from it: medians, ratios, best peer, doubts. Pure: no clock, no I/O."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

SUSPICION = 1.2
"""A subject faster than native by more than this factor did not do the work, or the cell is noise: not believed."""


@dataclass
class Cell:
    """All samples of one metric on one subject."""

    values: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Server CPU seconds, one per value."""
    failures: list[str] = field(default_factory=list)

    def median(self) -> float | None:
        """The median of the rounds; None if no round produced a figure."""
        return statistics.median(self.values) if self.values else None


@dataclass
class Row:
    """One metric as derived from the cells."""

    metric: str
    higher_is_better: bool
    medians: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Subject → reason, for cells with no figure."""
    doubtful: set[str] = field(default_factory=set)
    best_peer: str | None = None

    def ratio(self, subject: str, reference: str | None) -> float | None:
        """Median of subject / median of reference; None where one is missing or not believed."""
        if reference is None or subject in self.doubtful or reference in self.doubtful:
            return None
        value, base = self.medians.get(subject), self.medians.get(reference)
        return value / base if value is not None and base else None


def is_doubtful(value: float, native: float | None, *, higher_is_better: bool) -> bool:
    """Whether a figure beats native by more than SUSPICION."""
    if native is None:
        return False
    return value > native * SUSPICION if higher_is_better else value * SUSPICION < native


class Results:
    """Cells by (metric, subject), with the kinds of the subjects."""

    def __init__(self, kinds: dict[str, str], metrics: dict[str, bool]) -> None:
        """kinds: subject → native, ours or peer; metrics: name → higher is better."""
        self.kinds = kinds
        self.metrics = metrics
        self.cells: dict[tuple[str, str], Cell] = {}

    def cell(self, metric: str, subject: str) -> Cell:
        """The cell, made on first use."""
        return self.cells.setdefault((metric, subject), Cell())

    def leave_out(self, subjects: Collection[str]) -> None:
        """Forget subjects that produced no figure at all: they are named beside the tables, not in them."""
        for subject in subjects:
            if not any(cell.values for (_, name), cell in self.cells.items() if name == subject):
                self.kinds.pop(subject, None)
                self.cells = {key: cell for key, cell in self.cells.items() if key[1] != subject}

    def row(self, metric: str) -> Row:
        """Medians, failures, doubts and the best peer of one metric."""
        higher = self.metrics[metric]
        row = Row(metric, higher)
        for subject in self.kinds:
            cell = self.cells.get((metric, subject))
            median = cell.median() if cell else None
            if median is not None:
                row.medians[subject] = median
            elif cell and cell.failures:
                row.failed[subject] = cell.failures[0]
        natives = [name for name, kind in self.kinds.items() if kind == "native"]
        native = row.medians.get(natives[0]) if natives else None
        row.doubtful = {
            name
            for name, value in row.medians.items()
            if self.kinds[name] != "native" and is_doubtful(value, native, higher_is_better=higher)
        }
        peers = [name for name in row.medians if self.kinds[name] == "peer" and name not in row.doubtful]
        if peers:
            choose = max if higher else min
            row.best_peer = choose(peers, key=lambda name: row.medians[name])
        return row

    def rows(self) -> list[Row]:
        """Rows of all metrics that have at least one figure or failure."""
        found = {metric for metric, _ in self.cells}
        return [self.row(metric) for metric in self.metrics if metric in found]

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured, for --json."""
        return {
            metric: {
                subject: {"values": cell.values, "cpu_s": cell.cpu_s, "failures": cell.failures}
                for subject in self.kinds
                if (cell := self.cells.get((metric, subject))) is not None
            }
            for metric in self.metrics
            if any(name == metric for name, _ in self.cells)
        }

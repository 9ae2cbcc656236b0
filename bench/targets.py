"""What the directory mount should reach, as ratios within one run, and whether a run reached it. Pure.

Two bounds: the one to reach first and the one to reach in the end. Times must be at most, rates at least the bound
times the reference. "best" is the fastest peer of the run that is believed.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.results import Results, Row


@dataclass(frozen=True)
class Target:
    """metric of subject against a reference: a subject's name, or best."""

    metric: str
    subject: str
    reference: str
    first: float
    final: float


@dataclass(frozen=True)
class Verdict:
    """A target and what became of it; met_* is None where the ratio could not be formed."""

    target: Target
    reference: str
    ratio: float | None
    met_first: bool | None
    met_final: bool | None
    why: str = ""


DATA = ("read-128k", "read-1m", "read-direct", "randread-4k", "write-128k", "write-1m", "write-direct", "randwrite-4k")
PLAIN_LIMIT = 2.0
"""The pure Python form may take at most this many times as long as the compiled one."""
PYFUSE3_LIMIT = 0.1
"""At least ten times faster than pyfuse3, measured on its own example. Our pass-through on pyfuse3, which caches as
long as we do, is a harder reference: it is shown beside it."""


def _targets() -> tuple[Target, ...]:
    found = [Target(metric, "transfuse", "native", 0.95, 0.98) for metric in DATA]
    found += [Target(metric, "transfuse-nopass", "best", 0.9, 1.0) for metric in DATA]
    found += [
        Target("getattr", "transfuse", "bindfs", 1.0, 1.0),
        Target("getattr", "transfuse", "best", 1.0, 1.0),
    ]
    for first, final, metrics in (
        (1.2, 0.8, ("stat-cold", "find-cold")),
        (1.2, 0.6, ("open", "small-cold")),
        (1.0, 0.8, ("create", "unlink")),
        (1.2, 0.8, ("git-cold", "git-warm", "tar-cold", "grep-cold")),
    ):
        found += [Target(metric, "transfuse", "best", first, final) for metric in metrics]
    found += [Target(metric, "transfuse-noopen", "best", 1.2, 0.6) for metric in ("open", "small-cold")]
    found += [Target(metric, "transfuse-noopen", "best", 1.2, 0.8) for metric in ("git-cold", "tar-cold", "grep-cold")]
    # The fastest peer here answers no xattrs and checks no permissions, which saves it two requests a file.
    found += [Target(metric, "transfuse-lean", "best", 1.0, 0.8) for metric in ("create", "unlink")]
    for metric in ("getattr", "create", "unlink", "git-cold", "tar-cold"):
        found += [
            Target(metric, "transfuse", reference, PYFUSE3_LIMIT, PYFUSE3_LIMIT)
            for reference in ("pyfuse3-example", "pyfuse3")
        ]
    for metric in ("getattr", "stat-cold", "find-cold", "open", "small-cold", "create", "unlink", "git-cold",
                   "tar-cold", "grep-cold"):  # fmt: skip
        found.append(Target(metric, "plain", "transfuse", PLAIN_LIMIT, PLAIN_LIMIT))
    return tuple(found)


TARGETS = _targets()


def judge(target: Target, row: Row) -> Verdict:
    """Compare one row with one target."""
    reference = row.best_peer if target.reference == "best" else target.reference
    ratio = row.ratio(target.subject, reference)
    if ratio is None:
        for name in (target.subject, reference):
            if name is None:
                return Verdict(target, "best", None, None, None, "no peer has a figure")
            if name in row.doubtful:
                return Verdict(target, reference or "best", None, None, None, f"{name}'s figure is not believed")
            if name not in row.medians:
                return Verdict(target, reference or "best", None, None, None, f"{name} has no figure")

    def met(bound: float) -> bool | None:
        return None if ratio is None else ratio >= bound if row.higher_is_better else ratio <= bound

    return Verdict(target, reference or "best", ratio, met(target.first), met(target.final))


def judge_all(results: Results) -> list[Verdict]:
    """Verdicts for all targets whose metric and subjects were part of the run."""
    rows = {row.metric: row for row in results.rows()}
    present = {*results.kinds, "best"}
    return [
        judge(target, rows[target.metric])
        for target in TARGETS
        if target.metric in rows and target.subject in present and target.reference in present
    ]

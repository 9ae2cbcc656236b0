"""Tables: for the terminal in plain text, for docs/benchmarks.md in Markdown. Pure: text in, text out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bench.results import Results, Row
from bench.targets import Verdict, judge_all
from bench.workloads import Metric

FAILED = "failed"
ABSENT = "–"


def number(value: float) -> str:
    """Three significant digits, no exponent: 0.41, 12.3, 987, 5429."""
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.2f}"


def ratio_text(ratio: float | None) -> str:
    """A ratio with its sign: ×0.87; a dash where there is none."""
    return ABSENT if ratio is None else f"×{number(ratio)}"


def value_text(row: Row, subject: str) -> str:
    """A cell of the medians table: figure, figure with '?' where it is not believed, failed, or a dash."""
    if subject in row.medians:
        return number(row.medians[subject]) + (" ?" if subject in row.doubtful else "")
    return FAILED if subject in row.failed else ABSENT


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns aligned by blanks; the first `left` columns to the left, the others to the right."""
    widths = [max(len(line[index]) for line in [header, *rows]) for index in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *(line(cells) for cells in rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The same table in Markdown; '|' in a cell is escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join("---" if index < left else "---:" for index in range(len(header))) + "|"
    return "\n".join([line(header), rule, *(line(cells) for cells in rows)])


def _label(metrics: dict[str, Metric], row: Row) -> list[str]:
    metric = metrics[row.metric]
    return [metric.title, metric.unit]


def medians_table(results: Results, metrics: dict[str, Metric]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one metric per row, one subject per column."""
    subjects = list(results.kinds)
    rows = [[*_label(metrics, row), *(value_text(row, subject) for subject in subjects)] for row in results.rows()]
    return ["workload", "unit", *subjects], rows


def ratios_table(results: Results, metrics: dict[str, Metric]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: our subjects against the best peer, and against native in brackets."""
    ours = [name for name, kind in results.kinds.items() if kind == "ours"]
    native = next((name for name, kind in results.kinds.items() if kind == "native"), None)
    rows = []
    for row in results.rows():
        cells = [
            f"{ratio_text(row.ratio(name, row.best_peer))} ({ratio_text(row.ratio(name, native))})" for name in ours
        ]
        direction = "more" if row.higher_is_better else "less"
        against_native = ratio_text(row.ratio(row.best_peer, native)) if row.best_peer else ABSENT
        rows.append([metrics[row.metric].title, direction, row.best_peer or ABSENT, against_native, *cells])
    return ["workload", "better is", "best peer", "best peer/native", *ours], rows


def cpu_table(results: Results, metrics: dict[str, Metric]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean CPU milliseconds of the server per run of the workload (clock ticks of 10 ms)."""
    subjects = [name for name, kind in results.kinds.items() if kind != "native"]
    rows = []
    for row in results.rows():
        cells = []
        for name in subjects:
            spent = results.cell(row.metric, name).cpu_s
            cells.append(number(1000 * sum(spent) / len(spent)) if spent else ABSENT)
        rows.append([metrics[row.metric].title, *cells])
    return ["workload", *subjects], rows


def yes_no(met: bool | None) -> str:
    """yes, no, or a dash where nothing can be said."""
    return ABSENT if met is None else "yes" if met else "no"


def targets_table(verdicts: Sequence[Verdict], results: Results, metrics: dict[str, Metric]) -> list[list[str]]:
    """Rows of: workload, subject, against, ratio, first bound, met, final bound, met."""
    rows = []
    for verdict in verdicts:
        target = verdict.target
        sign = "≥" if results.metrics[target.metric] else "≤"
        against = verdict.reference if target.reference != "best" else f"best peer ({verdict.reference})"
        rows.append([
            metrics[target.metric].title, target.subject, against,
            ratio_text(verdict.ratio) if verdict.ratio is not None else verdict.why,
            f"{sign} {target.first:g}", yes_no(verdict.met_first), f"{sign} {target.final:g}",
            yes_no(verdict.met_final),
        ])  # fmt: skip
    return rows


TARGETS_HEADER = ["workload", "subject", "against", "ratio", "first target", "met", "final target", "met"]


def failures(results: Results, skipped: Collection[str] = ()) -> list[str]:
    """One line per failed or doubtful cell, with its reason; not for subjects left out as a whole."""
    lines = []
    for row in results.rows():
        lines += [
            f"{row.metric} on {subject}: failed: {why}" for subject, why in row.failed.items() if subject not in skipped
        ]
        for subject in results.kinds:
            cell = results.cells.get((row.metric, subject))
            if subject in row.doubtful:
                lines.append(f"{row.metric} on {subject}: faster than native by more than 20 %, not believed")
            elif cell and cell.values and cell.failures:
                lines.append(f"{row.metric} on {subject}: {len(cell.failures)} round(s) failed: {cell.failures[0]}")
    return lines


def terminal(results: Results, metrics: dict[str, Metric], skipped: dict[str, str]) -> str:
    """The whole report in plain text."""
    parts = ["Medians", plain_table(*medians_table(results, metrics), left=2)]
    if any(kind == "ours" for kind in results.kinds.values()):
        parts += ["", "Ratio to the best peer (and to native)", plain_table(*ratios_table(results, metrics), left=3)]
        rows = targets_table(judge_all(results), results, metrics)
        parts += ["", "Targets", plain_table(TARGETS_HEADER, rows, left=3)]
    parts += ["", "Server CPU, ms per run of the workload", plain_table(*cpu_table(results, metrics))]
    notes = [f"{name}: left out: {why}" for name, why in skipped.items()] + failures(results, skipped)
    return "\n".join(parts + ([""] + notes if notes else [])) + "\n"


INTRODUCTION = """# Benchmarks

Written by `make bench`. Everything was measured in one run on tmpfs: each workload on every subject in turn, then the
next round, and the median over {rounds} rounds. The machine is noisy; read the ratios, not the absolute figures.

"Cold" means a freshly started server on a fresh mount. Native has no such state, so its cold figures are warm ones.
A figure counts only if the subject's answer (bytes, files, matches) is the same as native's. "?" marks a cell that
is faster than native by more than 20 %: it is not believed and takes no part in any ratio.
"""


def markdown(
    results: Results,
    metrics: dict[str, Metric],
    *,
    machine: Sequence[tuple[str, str]],
    subjects: Sequence[tuple[str, str]],
    skipped: dict[str, str],
    rounds: int,
) -> str:
    """docs/benchmarks.md. machine: (what, value) lines; subjects: (name, how it is run) lines."""
    parts = [INTRODUCTION.format(rounds=rounds), "## The machine\n", markdown_table(["", ""], machine, left=2)]
    parts += ["\n## The subjects\n", markdown_table(["name", "how it is run"], subjects, left=2)]
    parts += [""] + [f"- {name} was left out: {why}" for name, why in skipped.items()]
    parts += ["\n## Medians\n", markdown_table(*medians_table(results, metrics), left=2)]
    parts += [
        "\n## Ratio to the best peer (and to native)\n",
        "Times: less is better. Rates (MB/s): more is better.\n",
        markdown_table(*ratios_table(results, metrics), left=3),
    ]
    parts += [
        "\n## Targets\n",
        "A time must be at most, a rate at least the target times its reference. The first target is for the first "
        "release, the final one is where the project wants to be. Subjects that were left out "
        "have no rows here. `transfuse` is the compiled form with kernel "
        "passthrough, `transfuse-nopass` the same without, `transfuse-noopen` without OPEN, `transfuse-lean` without "
        "what libfuse-ll lacks too; `plain` is the pure Python form.\n",
        markdown_table(TARGETS_HEADER, targets_table(judge_all(results), results, metrics), left=3),
    ]
    parts += [
        "\n## Server CPU\n", "Milliseconds per run of the workload (resolution 10 ms).\n",
        markdown_table(*cpu_table(results, metrics)),
    ]  # fmt: skip
    notes = failures(results, skipped)
    if notes:
        parts += ["\n## Failed and doubtful cells\n", "\n".join(f"- {note}" for note in notes)]
    return "\n".join(parts) + "\n"

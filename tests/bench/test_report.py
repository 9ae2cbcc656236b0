"""The benchmark's arithmetic and tables, and how it treats subjects that fail, cheat or can't start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.results import Results, is_doubtful
from bench.runner import START_ATTEMPTS, Run
from bench.subjects import Subject, SubjectError, all_subjects
from bench.targets import TARGETS, Target, judge
from bench.workloads import QUICK, WORKLOADS, Bench, Metric, Sample, Workload, WorkloadError, metrics_of

from bench import cli, report

KINDS = {"native": "native", "transfuse": "ours", "bindfs": "peer", "pyfuse3": "peer"}
METRICS = {"getattr": Metric("getattr", "forced GETATTR", "µs"), "read": Metric("read", "read", "MB/s", True)}


def results(**cells: dict[str, list[float]]) -> Results:
    """Results with the given values: metric={subject: values}."""
    found = Results(dict(KINDS), {name: metric.higher_is_better for name, metric in METRICS.items()})
    for metric, by_subject in cells.items():
        for subject, values in by_subject.items():
            found.cell(metric, subject).values.extend(values)
    return found


def latency(**values: float) -> Results:
    return results(getattr={subject: [value] for subject, value in values.items()})


# ------------------------------------------------------------------------------------------------- medians and ratios


def test_median_ignores_one_wild_round() -> None:
    assert results(getattr={"bindfs": [15.0, 900.0, 16.0]}).row("getattr").medians["bindfs"] == 16.0


def test_cell_without_figure_has_no_median() -> None:
    assert results().cell("getattr", "bindfs").median() is None


def test_best_peer_of_a_time_is_the_smallest() -> None:
    row = latency(native=0.4, transfuse=5.0, bindfs=15.0, pyfuse3=70.0).row("getattr")
    assert row.best_peer == "bindfs"


def test_best_peer_of_a_rate_is_the_largest() -> None:
    row = results(read={"native": [5000.0], "bindfs": [1900.0], "pyfuse3": [2000.0]}).row("read")
    assert row.best_peer == "pyfuse3"


def test_our_own_subject_is_never_the_best_peer() -> None:
    assert latency(native=0.4, transfuse=5.0).row("getattr").best_peer is None


def test_ratio_is_subject_over_reference() -> None:
    row = latency(native=0.5, transfuse=12.0, bindfs=16.0).row("getattr")
    assert row.ratio("transfuse", "bindfs") == 0.75


def test_ratio_to_a_failed_reference_is_none() -> None:
    assert latency(transfuse=12.0).row("getattr").ratio("transfuse", "bindfs") is None


@pytest.mark.parametrize(
    ("value", "native", "higher", "doubtful"),
    [
        (1201.0, 1000.0, True, True),
        (1199.0, 1000.0, True, False),
        (0.8, 1.0, False, True),
        (0.9, 1.0, False, False),
        (0.1, None, False, False),
    ],
)
def test_faster_than_native_by_a_fifth_is_doubtful(
    value: float, native: float | None, higher: bool, doubtful: bool
) -> None:
    assert is_doubtful(value, native, higher_is_better=higher) is doubtful


def test_doubtful_peer_is_not_the_best_peer() -> None:
    row = latency(native=10.0, bindfs=5.0, pyfuse3=70.0).row("getattr")
    assert (row.doubtful, row.best_peer) == ({"bindfs"}, "pyfuse3")


def test_doubtful_figure_takes_part_in_no_ratio() -> None:
    assert latency(native=10.0, transfuse=5.0, bindfs=20.0).row("getattr").ratio("transfuse", "bindfs") is None


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("value", "text"), [(0.412, "0.41"), (9.994, "9.99"), (12.34, "12.3"), (99.96, "100.0"), (5429.4, "5429")]
)
def test_number_has_about_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_plain_table_aligns_numbers_to_the_right() -> None:
    table = report.plain_table(["workload", "µs"], [["getattr", "12.3"], ["open", "1.20"]])
    assert table.splitlines() == ["workload    µs", "--------  ----", "getattr   12.3", "open      1.20"]


def test_markdown_table_escapes_bars() -> None:
    assert "a\\|b" in report.markdown_table(["x"], [["a|b"]])


def test_failed_cell_is_shown_as_failed_with_its_reason() -> None:
    found = latency(native=0.4)
    found.cell("getattr", "bindfs").failures.append("server died")
    text = report.terminal(found, METRICS, {})
    assert "failed" in text.splitlines()[3]
    assert "getattr on bindfs: failed: server died" in text


def test_doubtful_cell_is_marked() -> None:
    header, rows = report.medians_table(latency(native=10.0, bindfs=5.0), METRICS)
    assert rows[0][header.index("bindfs")] == "5.00 ?"


def test_cell_that_never_ran_is_a_dash() -> None:
    header, rows = report.medians_table(latency(native=10.0), METRICS)
    assert rows[0][header.index("pyfuse3")] == report.ABSENT


def test_ratios_table_shows_best_peer_and_native() -> None:
    _, rows = report.ratios_table(latency(native=0.5, transfuse=12.0, bindfs=16.0), METRICS)
    assert rows == [["forced GETATTR", "less", "bindfs", "×32.0", "×0.75 (×24.0)"]]


def test_subject_without_any_figure_is_taken_out_of_the_tables() -> None:
    found = latency(native=0.4)
    found.cell("getattr", "bindfs").failures.append("did not start")
    found.leave_out(["bindfs"])
    assert "bindfs" not in report.medians_table(found, METRICS)[0]


def test_subject_left_out_late_keeps_its_figures() -> None:
    found = latency(native=0.4, bindfs=15.0)
    found.leave_out(["bindfs"])
    assert found.row("getattr").medians["bindfs"] == 15.0


def test_report_names_subjects_that_were_left_out() -> None:
    assert "pyfuse3: left out: no libfuse3" in report.terminal(latency(native=1.0), METRICS, {"pyfuse3": "no libfuse3"})


def test_markdown_report_has_machine_and_targets() -> None:
    text = report.markdown(
        latency(native=0.5, transfuse=12.0, bindfs=16.0), METRICS,
        machine=[("kernel", "Linux 6.18")], subjects=[("bindfs", "bindfs -f")], skipped={}, rounds=3,
    )  # fmt: skip
    assert "| kernel | Linux 6.18 |" in text
    assert "| forced GETATTR | transfuse | bindfs | ×0.75 | ≤ 1 | yes | ≤ 1 | yes |" in text


# ------------------------------------------------------------------------------------------------------------- targets


def test_time_at_the_bound_meets_it() -> None:
    row = latency(native=1.0, transfuse=12.0, bindfs=10.0).row("getattr")
    verdict = judge(Target("getattr", "transfuse", "best", 1.2, 0.8), row)
    assert (verdict.ratio, verdict.met_first, verdict.met_final) == (1.2, True, False)


def test_rate_must_be_at_least_the_bound() -> None:
    row = results(read={"native": [1000.0], "transfuse": [960.0]}).row("read")
    verdict = judge(Target("read", "transfuse", "native", 0.95, 0.98), row)
    assert (verdict.met_first, verdict.met_final) == (True, False)


def test_missing_figure_is_neither_met_nor_missed() -> None:
    verdict = judge(Target("getattr", "transfuse", "best", 1.2, 0.8), latency(native=1.0, bindfs=10.0).row("getattr"))
    assert (verdict.met_first, verdict.met_final, verdict.why) == (None, None, "transfuse has no figure")


def test_targets_name_known_metrics_and_subjects() -> None:
    metrics = {metric.name for metric in metrics_of(WORKLOADS)}
    subjects = {subject.name for subject in all_subjects()} | {"best"}
    assert {target.metric for target in TARGETS} <= metrics
    assert {target.subject for target in TARGETS} | {target.reference for target in TARGETS} <= subjects


def test_metric_names_are_unique() -> None:
    names = [metric.name for metric in metrics_of(WORKLOADS)]
    assert len(names) == len(set(names))


# ---------------------------------------------------------------------------------------------------------- the runner


def a_workload(metric: str, check: str = "", fail_on: str = "") -> Workload:
    """Yields 1.0; on the subject fail_on it breaks; on any subject but native it answers `check`."""

    def run(bench: Bench, subject: Subject) -> Iterator[Sample]:
        if subject.name == fail_on:
            raise WorkloadError("broken")
        yield Sample(metric, 1.0, 1, check if subject.kind != "native" else "")

    return Workload(metric, (METRICS[metric],), run)


class Unstartable(Subject):
    """A subject whose server never comes up."""

    def mount(self) -> None:
        raise SubjectError("did not start")

    def unmount(self) -> None:
        return None


def a_run(tmp_path: Path, workloads: list[Workload], subjects: list[Subject]) -> Run:
    found = Results({subject.name: subject.kind for subject in subjects},
                    {name: metric.higher_is_better for name, metric in METRICS.items()})  # fmt: skip
    return Run(Bench(QUICK, [], tmp_path, tmp_path), subjects, workloads, found, lambda text: None)


def native(name: str = "native", kind: str = "native") -> Subject:
    return Subject(name, "", None, kind=kind)


def test_a_failing_subject_costs_only_its_own_cells(tmp_path: Path) -> None:
    run = a_run(tmp_path, [a_workload("getattr", fail_on="bindfs")], [native(), native("bindfs", "peer")])
    run.go(2, 60)
    assert run.results.cell("getattr", "bindfs").failures == ["broken", "broken"]
    assert run.results.cell("getattr", "native").values == [1.0, 1.0]


def test_an_answer_unlike_natives_is_a_failure(tmp_path: Path) -> None:
    run = a_run(tmp_path, [a_workload("getattr", check="3 files")], [native(), native("bindfs", "peer")])
    run.go(1, 60)
    assert run.results.cell("getattr", "bindfs").values == []
    assert "3 files" in run.results.cell("getattr", "bindfs").failures[0]


def test_a_subject_that_cannot_start_is_left_out_with_the_reason(tmp_path: Path) -> None:
    broken = Unstartable("bindfs", "", lambda source, target: ["true"])
    run = a_run(tmp_path, [a_workload("getattr")], [native(), broken])
    run.go(START_ATTEMPTS + 2, 60)
    assert run.skipped == {"bindfs": "did not start"}
    assert len(run.results.cell("getattr", "bindfs").failures) == START_ATTEMPTS


def test_cells_not_reached_in_time_say_so(tmp_path: Path) -> None:
    run = a_run(tmp_path, [a_workload("getattr")], [native()])
    run.go(1, -1)
    assert (run.rounds_done, run.results.cell("getattr", "native").failures) == (0, ["not run: time was up"])


# ------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("argv", [["--only", "nonsense"], ["--subjects", ""], ["--rounds", "0"]])
def test_wrong_arguments_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.arguments(argv)
    assert refused.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.soak
def test_native_alone_runs_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main([
        "--quick", "--rounds", "1", "--subjects", "native", "--only", "open,create", "--tmpfs", str(tmp_path),
        "--json", str(tmp_path / "out.json"), "--doc", str(tmp_path / "out.md"),
    ])  # fmt: skip
    assert status == 0
    assert "create, write 1 KiB, close" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["out.json", "out.md"]

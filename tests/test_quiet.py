"""Few lines, whatever a peer does, and none of them forgotten in the count."""

from __future__ import annotations

import logging
import threading

import pytest

from transfuse.quiet import BURST, LINE_EVERY_S, QuietLog

log = logging.getLogger("transfuse.test")


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quiet(clock: Clock) -> QuietLog:
    return QuietLog(log, "complaints", clock)


def test_the_first_lines_are_all_logged(quiet: QuietLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(BURST):
        quiet.warning("line %d", number)
    assert caplog.messages == [f"line {number}" for number in range(BURST)]


def test_a_flood_is_held_back_and_counted_at_the_end(quiet: QuietLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10_000):
        quiet.error("flood")
    assert len(caplog.messages) == BURST
    quiet.end()
    quiet.end()
    assert caplog.messages[BURST:] == [f"{10_000 - BURST} more complaints were not logged"]


def test_one_line_comes_through_as_time_passes_and_tells_of_the_others(
    quiet: QuietLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(BURST + 7):
        quiet.warning("flood")
    clock.now += LINE_EVERY_S * 1.5
    for _ in range(5):
        quiet.warning("later")
    assert caplog.messages[BURST:] == ["later (7 complaints before it were not logged)"]
    clock.now += LINE_EVERY_S * 0.6
    quiet.warning("again")
    assert caplog.messages[-1] == "again (4 complaints before it were not logged)"


def test_a_long_silence_gives_no_more_than_the_burst(
    quiet: QuietLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.now += 1e9
    for _ in range(BURST * 3):
        quiet.warning("flood")
    assert len(caplog.messages) == BURST


def test_a_clock_that_goes_back_lets_nothing_through(
    quiet: QuietLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(BURST):
        quiet.warning("flood")
    clock.now -= 1000
    quiet.warning("flood")
    assert len(caplog.messages) == BURST


def test_without_anything_held_back_the_end_is_silent(quiet: QuietLog, caplog: pytest.LogCaptureFixture) -> None:
    quiet.warning("one")
    quiet.end()
    assert caplog.messages == ["one"]


def test_what_the_logger_does_not_want_is_no_line_held_back(
    quiet: QuietLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log, "level", logging.ERROR)
    monkeypatch.setattr(log, "_cache", {})
    for _ in range(BURST * 2):
        quiet.warning("unwanted")
    quiet.error("wanted")
    quiet.end()
    assert caplog.messages == ["wanted"]


def test_threads_lose_no_count(quiet: QuietLog, caplog: pytest.LogCaptureFixture) -> None:
    def complain() -> None:
        for _ in range(500):
            quiet.warning("flood")

    threads = [threading.Thread(target=complain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    quiet.end()
    assert caplog.messages[-1] == f"{2000 - BURST} more complaints were not logged"


def test_a_traceback_goes_with_its_line(quiet: QuietLog, caplog: pytest.LogCaptureFixture) -> None:
    quiet.error("broken", exc_info=ZeroDivisionError("the reason"))
    assert "the reason" in caplog.text

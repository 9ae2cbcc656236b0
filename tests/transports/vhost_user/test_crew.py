"""Threads of lanes: one, more while requests wait, and their way home."""

from __future__ import annotations

import threading
import time

from transfuse.transports.vhost_user.crew import Crew


class Jobs:
    """A lane in miniature: what `do` is given runs on some worker of the team."""

    def __init__(self) -> None:
        self.waiting: list = []
        self.ready = threading.Condition()
        self.halted = False

    def serve(self, worker) -> None:
        counters = worker.counters
        while True:
            with self.ready:
                self.ready.wait_for(lambda: self.waiting or self.halted)
                if self.halted:
                    return
                job = self.waiting.pop(0)
            counters[worker.step_at] += 1
            if counters[0]:
                worker.wake()
            job()
            counters[worker.step_at] += 1
            if counters[worker.park_at] and not worker.park():
                return

    def do(self, job) -> None:
        with self.ready:
            self.waiting.append(job)
            self.ready.notify()

    def halt(self) -> None:
        with self.ready:
            self.halted = True
            self.ready.notify_all()


def wait_until(condition, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_lane_begins_with_one_worker() -> None:
    crew, jobs, gone = Crew(4, 2), Jobs(), threading.Event()
    team = crew.engage(jobs.serve, gone.set)
    assert len(team.workers) == 1
    jobs.halt()
    assert team.dismiss(10)
    assert gone.wait(10)
    crew.close(10)


def test_a_job_that_waits_does_not_hold_up_the_next() -> None:
    crew, jobs = Crew(4, 1), Jobs()
    team = crew.engage(jobs.serve, lambda: None)
    first, second = threading.Event(), threading.Event()
    jobs.do(lambda: first.wait(10))
    jobs.do(second.set)
    assert second.wait(10)
    assert len(team.workers) == 2
    first.set()
    jobs.halt()
    assert team.dismiss(10)
    crew.close(10)


def test_workers_are_bounded() -> None:
    crew, jobs = Crew(3, 1), Jobs()
    team = crew.engage(jobs.serve, lambda: None)
    end = threading.Event()
    for _ in range(6):
        jobs.do(lambda: end.wait(10))
    wait_until(lambda: len(team.workers) == 3)
    time.sleep(0.1)
    assert len(team.workers) == 3
    end.set()
    jobs.halt()
    assert team.dismiss(10)
    crew.close(10)


def test_workers_that_are_not_needed_go_home() -> None:
    crew, jobs = Crew(4, 1), Jobs()
    team = crew.engage(jobs.serve, lambda: None)
    end = threading.Event()
    for _ in range(3):
        jobs.do(lambda: end.wait(10))
    wait_until(lambda: len(team.workers) == 3)
    end.set()

    def one_left() -> bool:
        jobs.do(lambda: None)
        return len(team.workers) == 1

    wait_until(one_left, 30)
    jobs.halt()
    assert team.dismiss(10)
    crew.close(10)


def test_a_worker_that_does_not_come_back_is_left_to_itself() -> None:
    crew, jobs, gone = Crew(2, 1), Jobs(), threading.Event()
    team = crew.engage(jobs.serve, gone.set)
    started, end = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        end.wait(10)

    jobs.do(stuck)
    assert started.wait(10)
    jobs.halt()
    assert not team.dismiss(0.05)
    assert not gone.is_set()
    end.set()
    assert gone.wait(10)
    crew.close(10)


def test_teams_do_not_disturb_each_other() -> None:
    crew, blocked, free = Crew(1, 2), Jobs(), Jobs()
    teams = [crew.engage(blocked.serve, lambda: None), crew.engage(free.serve, lambda: None)]
    end, done = threading.Event(), threading.Event()
    blocked.do(lambda: end.wait(10))
    free.do(done.set)
    assert done.wait(10)
    end.set()
    for jobs, team in zip((blocked, free), teams, strict=True):
        jobs.halt()
        assert team.dismiss(10)
    crew.close(10)


def test_the_monitor_sleeps_when_nothing_happens_and_wakes_with_the_next_job() -> None:
    crew, jobs = Crew(2, 1), Jobs()
    team = crew.engage(jobs.serve, lambda: None)
    wait_until(lambda: crew.counters[0] == 1)
    first, second = threading.Event(), threading.Event()
    jobs.do(lambda: first.wait(10))
    jobs.do(second.set)
    assert second.wait(10)
    first.set()
    jobs.halt()
    assert team.dismiss(10)
    crew.close(10)


def test_a_worker_that_fails_is_replaced_by_nobody_and_frees_its_place() -> None:
    crew, gone = Crew(1, 1), threading.Event()

    def fail(worker) -> None:
        raise RuntimeError("a bug")

    for _ in range(3):
        gone.clear()
        crew.engage(fail, gone.set)
        assert gone.wait(10)
    crew.close(10)

"""The threads that serve a device's lanes: one for each lane while nothing holds it up, more where requests wait.

A request that blocks (a slow disk, a lock somebody else's kernel holds) must not stop the lane it came by. So a monitor
looks at each lane's step counters every few milliseconds while there is work: when all of a lane's workers sit in a
handler, at once if the same request sat there at the last look, after a few looks if different ones did but the process
used little CPU, one more worker joins. Workers that are not needed any more go home after their next request. When
nothing happens the monitor sleeps, and the next request wakes it.

A team may be told to go home at any time (`Team.dismiss`). One whose worker does not come back from a handler is left
to itself: what it still holds is freed when the last worker leaves.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Callable

from transfuse.transports.base import Worker

__all__ = ["Crew", "Team", "TeamWorker"]

log = logging.getLogger("transfuse.vhost_user")

TICK_S = 0.004
"""Between two looks: how long a request may be held up by one that waits. A look costs some 15 µs."""
IDLE_TICKS = 25
"""Looks without any step after which the monitor sleeps."""
PRESSED_TICKS = 4
"""Looks in a row with every worker of a lane in a handler and little CPU used, after which another joins."""
CALM_TICKS = 50
"""Looks without need after which a worker is sent home."""
CPU_BOUND = 0.6
"""Share of one CPU above which the process computes rather than waits, and another thread would not help."""
ASLEEP = 0
"""counters[ASLEEP] is 1 while the monitor sleeps."""

Serve = Callable[[Worker], object]


class TeamWorker:
    """One thread, as the loop it runs sees it (transports.base.Worker)."""

    __slots__ = ("_crew", "counters", "number", "park_at", "seen", "step_at", "thread")

    def __init__(self, crew: Crew, number: int) -> None:
        self._crew = crew
        self.counters = crew.counters
        self.number = number
        self.step_at = 1 + 2 * number
        self.park_at = 2 + 2 * number
        self.seen = 0
        """The step counter at the last look."""
        self.thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is work, and the monitor sleeps."""
        self._crew.wake()

    def park(self) -> bool:
        """A worker that is not needed goes home; a new one is cheap."""
        return False


class Team:
    """The workers of one lane."""

    def __init__(self, crew: Crew, serve: Serve, on_gone: Callable[[], None]) -> None:
        self._crew = crew
        self._serve = serve
        self._on_gone = on_gone
        self.workers: list[TeamWorker] = []
        self.dismissed = False
        self.pressed = 0
        self.calm = 0

    def dismiss(self, timeout_s: float) -> bool:
        """No further workers; wait for those that are there, who were told to end by whatever they serve. False when
        one is still in a handler after that time."""
        with self._crew.lock:
            self.dismissed = True
            threads = [worker.thread for worker in self.workers if worker.thread is not None]
        end = time.monotonic() + timeout_s
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


class Crew:
    """All teams of one device. `max_workers` is for each lane, `max_lanes` bounds the counters."""

    def __init__(self, max_workers: int, max_lanes: int) -> None:
        if max_workers < 1:
            raise ValueError(f"{max_workers} workers: at least one is needed")
        self.max_workers = max_workers
        count = max_workers * max_lanes
        self.counters = array("Q", bytes(8 * (1 + 2 * count)))
        self.lock = threading.Lock()
        self._free = list(range(count - 1, -1, -1))
        self._teams: list[Team] = []
        self._wake = threading.Event()
        self._closing = False
        self._monitor: threading.Thread | None = None

    def engage(self, serve: Serve, on_gone: Callable[[], None]) -> Team:
        """A new team of one worker, which runs `serve`; `on_gone` is called when its last worker has left."""
        team = Team(self, serve, on_gone)
        with self.lock:
            self._teams.append(team)
            self._add(team)
            if self._monitor is None and self.max_workers > 1 and not self._closing:
                self._monitor = threading.Thread(target=self._look_after, name="transfuse-monitor", daemon=True)
                self._monitor.start()
        return team

    def close(self, timeout_s: float) -> None:
        """End the monitor; every team has been dismissed."""
        self._closing = True
        self._wake.set()
        if self._monitor is not None:
            self._monitor.join(timeout_s)

    def _add(self, team: Team) -> bool:
        if team.dismissed or len(team.workers) >= self.max_workers or not self._free:
            return False
        worker = TeamWorker(self, self._free.pop())
        self.counters[worker.park_at] = 0
        worker.seen = self.counters[worker.step_at]
        worker.thread = threading.Thread(
            target=self._run, args=(team, worker), name=f"transfuse-queue-{worker.number}", daemon=True
        )
        team.workers.append(worker)
        try:
            worker.thread.start()
        except RuntimeError:  # the system has no more threads to give
            team.workers.remove(worker)
            self._free.append(worker.number)
            if not team.workers:
                raise
            return False
        return True

    def _run(self, team: Team, worker: TeamWorker) -> None:
        try:
            team._serve(worker)
        except Exception:
            log.exception("a worker failed")
        finally:
            with self.lock:
                team.workers.remove(worker)
                if self.counters[worker.step_at] & 1:  # it left in the middle of a request
                    self.counters[worker.step_at] += 1
                self._free.append(worker.number)
                last = not team.workers
                if last and team in self._teams:
                    self._teams.remove(team)
            if last:
                team._on_gone()

    # -- the monitor --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """A worker found the monitor asleep."""
        self.counters[ASLEEP] = 0
        self._wake.set()

    def _steps(self) -> int:
        return sum(self.counters[worker.step_at] for team in self._teams for worker in team.workers)

    def _look_after(self) -> None:
        idle, before = 0, -1
        cpu, clock = time.process_time(), time.monotonic()
        while not self._closing:
            time.sleep(TICK_S)
            now_cpu, now = time.process_time(), time.monotonic()
            load = (now_cpu - cpu) / max(now - clock, 1e-9)
            cpu, clock = now_cpu, now
            with self.lock:
                busy = sum(self._look(team, load) for team in self._teams) > 0
                steps = self._steps()
            idle = 0 if busy or steps != before else idle + 1
            before = steps
            if idle >= IDLE_TICKS:
                self._sleep(steps)
                idle = 0
                cpu, clock = time.process_time(), time.monotonic()

    def _look(self, team: Team, load: float) -> bool:
        """Adapt one team; True if a request of it is stuck."""
        counters = self.counters
        steps = [counters[worker.step_at] for worker in team.workers]
        in_handler = sum(step & 1 for step in steps)
        stuck = sum(step & 1 and step == worker.seen for step, worker in zip(steps, team.workers, strict=True))
        for worker, step in zip(team.workers, steps, strict=True):
            worker.seen = step
        waiting = in_handler == len(steps) and load < CPU_BOUND
        team.pressed = team.pressed + 1 if waiting else 0
        if steps and (stuck == len(steps) or team.pressed >= PRESSED_TICKS):
            team.pressed = team.calm = 0
            self._keep(team)
            self._add(team)
        elif len(steps) > 1:
            team.calm = 0 if stuck or waiting else team.calm + 1
            if team.calm >= CALM_TICKS:
                team.calm = 0
                counters[team.workers[-1].park_at] = 1
        return bool(stuck)

    def _keep(self, team: Team) -> None:
        for worker in team.workers:
            self.counters[worker.park_at] = 0

    def _sleep(self, steps: int) -> None:
        """Rest until a request comes."""
        self._wake.clear()
        self.counters[ASLEEP] = 1
        # A request that came before the flag was seen has stepped a counter.
        with self.lock:
            quiet = steps == self._steps()
        if quiet and not self._closing:
            self._wake.wait()
        self.counters[ASLEEP] = 0

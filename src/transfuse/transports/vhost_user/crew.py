"""The threads that serve a device's lanes: one for each lane while nothing holds it up, more where requests wait.

A request that blocks (a slow disk, a lock somebody else's kernel holds) must not stop the lane it came by. So a monitor
looks at each lane's step counters every few milliseconds while there is work: when all of a lane's workers sit in a
handler and sleep, at once if the same requests sat there at the last look, after a few looks if others did, one more
worker joins. So it does after a few looks at the same requests if they compute. Workers that are not needed any more
go home after their next request. When nothing happens the monitor sleeps, and the next request wakes it.

A worker that waits for a CPU does not sleep: on a crowded machine another thread would only make it worse. So what the
scheduler says of each thread (schedstat) is asked, not the CPU time of the process.

A team may be told to go home at any time (`Team.dismiss`). One whose worker does not come back from a handler is left
to itself: what it still holds is freed when the last worker leaves.
"""

from __future__ import annotations

import logging
import os
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
"""Looks in a row with every worker of a lane held up, after which another joins."""
CALM_TICKS = 50
"""Looks without need after which a worker is sent home."""
AWAKE = 0.6
"""Share of the time in which workers ran, or wanted to, above which another thread would not help."""
ASLEEP = 0
"""counters[ASLEEP] is 1 while the monitor sleeps."""

Serve = Callable[[Worker], object]


class TeamWorker:
    """One thread, as the loop it runs sees it (transports.base.Worker)."""

    __slots__ = ("_awake", "_clock", "_crew", "_stat", "counters", "number", "park_at", "seen", "step_at", "thread")

    def __init__(self, crew: Crew, number: int) -> None:
        self._crew = crew
        self.counters = crew.counters
        self.number = number
        self.step_at = 1 + 2 * number
        self.park_at = 2 + 2 * number
        self.seen = 0
        """The step counter at the last look."""
        self.thread: threading.Thread | None = None
        self._stat = -1
        self._awake = 0
        self._clock = 0

    def begin(self) -> None:
        """Called by the thread itself."""
        try:
            self._stat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:  # no /proc here, or a kernel without these figures: it counts as always asleep
            log.debug("schedstat: %s", error)

    def end(self) -> None:
        """The thread goes home; nobody looks at it any more."""
        if self._stat >= 0:
            os.close(self._stat)
            self._stat = -1

    def awake(self) -> float:
        """Share of the time since this was asked last in which the thread ran or waited for a CPU."""
        now = time.monotonic_ns()
        total = 0
        if self._stat >= 0:
            words = os.pread(self._stat, 64, 0).split()  # time on a CPU, time in wait for one, both in ns
            total = int(words[0]) + int(words[1])
        share = (total - self._awake) / max(1, now - self._clock)
        self._awake, self._clock = total, now
        return share

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
        worker.begin()
        try:
            team._serve(worker)
        except Exception:
            log.exception("a worker failed")
        finally:
            with self.lock:
                team.workers.remove(worker)
                worker.end()
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
        while not self._closing:
            time.sleep(TICK_S)
            with self.lock:
                busy = sum(self._look(team) for team in self._teams) > 0
                steps = self._steps()
            idle = 0 if busy or steps != before else idle + 1
            before = steps
            if idle >= IDLE_TICKS:
                self._sleep(steps)
                idle = 0

    def _look(self, team: Team) -> bool:
        """Adapt one team; True if a request of it is stuck."""
        counters = self.counters
        steps = [counters[worker.step_at] for worker in team.workers]
        in_handler = sum(step & 1 for step in steps)
        stuck = sum(step & 1 and step == worker.seen for step, worker in zip(steps, team.workers, strict=True))
        for worker, step in zip(team.workers, steps, strict=True):
            worker.seen = step
        full = in_handler == len(steps) and bool(steps)
        # The first look in a row only begins to count the time.
        waiting = full and sum(worker.awake() for worker in team.workers) < AWAKE * len(steps)
        held_up = stuck == len(steps)
        team.pressed = team.pressed + 1 if waiting or (full and held_up) else 0
        if (waiting and held_up) or team.pressed >= PRESSED_TICKS:
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

"""Log lines that a peer can cause, kept few: whoever sends nonsense for ever must not fill a disk with our complaints.

A `QuietLog` stands before a logger, one for each connection and kind of complaint. It lets BURST lines through at once,
and then one each LINE_EVERY_S; a line that comes after others were held back says how many. `end` reports the rest. Its
state is three numbers, whatever comes. The clock is an argument, since the layers that use it read none themselves.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

__all__ = ["BURST", "LINE_EVERY_S", "QuietLog", "standstill"]

BURST = 10
"""Most lines at once: enough to see what a peer does wrong, and whether always the same."""
LINE_EVERY_S = 10.0
"""How soon one more line may follow once BURST are used up."""


def standstill() -> float:
    """A clock for whoever has none: BURST lines, and the number of the others at the end."""
    return 0.0


class QuietLog:
    """Lines of one kind to one logger. `what` names them in the plural, for the line that counts those held back.

    May be used by several threads.
    """

    __slots__ = ("_clock", "_held", "_left", "_lock", "_log", "_refilled", "_what")

    def __init__(self, log: logging.Logger, what: str, clock: Callable[[], float] = standstill) -> None:
        self._log = log
        self._what = what
        self._clock = clock
        self._lock = threading.Lock()
        self._left = float(BURST)
        self._refilled = clock()
        self._held = 0

    def _admit(self) -> int:
        """How many lines were held back before this one; -1 when this one is held back, too."""
        with self._lock:
            now = self._clock()
            if now > self._refilled:
                self._left = min(BURST, self._left + (now - self._refilled) / LINE_EVERY_S)
            self._refilled = now
            if self._left < 1:
                self._held += 1
                return -1
            self._left -= 1
            held, self._held = self._held, 0
            return held

    def _say(self, level: int, message: str, args: tuple[object, ...], error: BaseException | None) -> None:
        if not self._log.isEnabledFor(level):
            return
        held = self._admit()
        if held < 0:
            return
        if held:
            message, args = f"{message} (%d {self._what} before it were not logged)", (*args, held)
        self._log.log(level, message, *args, exc_info=error)

    def warning(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """As Logger.warning(), if it is time for a line."""
        self._say(logging.WARNING, message, args, exc_info)

    def error(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """As Logger.error(), if it is time for a line."""
        self._say(logging.ERROR, message, args, exc_info)

    def end(self) -> None:
        """Say how many lines were held back since the last one. Idempotent."""
        with self._lock:
            held, self._held = self._held, 0
        if held:
            self._log.warning("%d more %s were not logged", held, self._what)

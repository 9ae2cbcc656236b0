"""A session's state through a pipe: what a front-end asks for when a guest moves to another host (DEVICE_STATE).

The transfer runs on a thread of its own, because the front-end moves the bytes between two requests: it sends
SET_DEVICE_STATE_FD, then reads or writes its end until the end of the file, then asks CHECK_DEVICE_STATE how it went.
All rings are stopped meanwhile, so nothing changes.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator

__all__ = ["MAX_STATE", "StateTransfer"]

log = logging.getLogger("transfuse.vhost_user")

PIECE = 1 << 16
MAX_STATE = 1 << 32
"""Most bytes that are read."""

Export = Callable[[], Iterable[bytes]]
Import = Callable[[Iterable[bytes]], object]


class StateTransfer:
    """At most one transfer at a time. `save` gives the state in pieces, `load` takes it in pieces; both raise OSError
    or ValueError if they cannot."""

    def __init__(self, save: Export, load: Import) -> None:
        self._save = save
        self._load = load
        self._thread: threading.Thread | None = None
        self._whole = False

    def begin(self, load: bool, fd: int) -> None:
        """Start to write the state to `fd`, or to read it from there; the fd is closed at the end. EBUSY if a transfer
        is under way."""
        if self._thread is not None and self._thread.is_alive():
            os.close(fd)
            raise OSError(errno.EBUSY, "a transfer is under way")
        os.set_blocking(fd, True)
        self._whole = False
        self._thread = threading.Thread(target=self._run, args=(load, fd), name="transfuse-state", daemon=True)
        self._thread.start()

    def end(self) -> bool:
        """Wait for the transfer; was all of it moved?"""
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        thread.join()
        return self._whole

    def _run(self, load: bool, fd: int) -> None:
        try:
            if load:
                self._load(_pieces(fd))
            else:
                for piece in self._save():
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(fd, view) :]
            self._whole = True
        except (OSError, ValueError) as error:
            log.error("%s the device's state: %s", "loading" if load else "saving", error)
        except Exception:
            log.exception("%s the device's state", "loading" if load else "saving")
        finally:
            os.close(fd)


def _pieces(fd: int) -> Iterator[bytes]:
    total = 0
    while piece := os.read(fd, PIECE):
        total += len(piece)
        if total > MAX_STATE:
            raise ValueError(f"more than {MAX_STATE} bytes of state")
        yield piece

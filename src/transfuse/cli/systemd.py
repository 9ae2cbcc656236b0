"""What a service manager that starts us hands over, by systemd's conventions: a socket it has opened already.

sd_listen_fds(3): the variables LISTEN_PID (for whom it is) and LISTEN_FDS (how many); the descriptors begin at 3 and
are inherited. The other way, sd_notify(3), is daemon.notify_service_manager.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["FIRST_FD", "activated_socket"]

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""


def activated_socket(variables: Mapping[str, str]) -> int | None:
    """The descriptor of the socket that came with this process, None if none did. ValueError for several, or nonsense.

    Children must not take it for theirs: that LISTEN_PID names somebody else makes it so, and the descriptor is closed
    by execve() from now on.
    """
    pid, count = variables.get("LISTEN_PID", ""), variables.get("LISTEN_FDS", "")
    if not pid or not count:
        return None
    if not (pid.isascii() and pid.isdigit() and count.isascii() and count.isdigit()):
        raise ValueError(f"LISTEN_PID={pid!r}, LISTEN_FDS={count!r}: numbers belong there")
    if int(pid) != os.getpid() or int(count) == 0:
        return None
    if int(count) != 1:
        raise ValueError(f"{int(count)} sockets came, and only one can be served")
    try:
        os.set_inheritable(FIRST_FD, False)
    except OSError as error:
        raise ValueError(f"there is no descriptor {FIRST_FD}: {error.strerror}") from error
    return FIRST_FD

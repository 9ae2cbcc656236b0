"""Starting our server as a user would, by its command line, and taking the mount down again whatever happened.

Theory: the server is another process; the only things that count are the mount that appears, what it says on stderr,
and its exit status. A mount that doesn't go away by umount is aborted through the control filesystem, so that no test
can hang the run; that is then an error of the test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from interop.io_uring import switched

START_LIMIT_S = 20.0
END_LIMIT_S = 15.0

# kind: (source, options); a source of None is a fresh host directory
KINDS: dict[str, tuple[str | None, str]] = {
    "hostdir": (None, "allow_other,suid,dev"),
    "hostdir-passthrough-off": (None, "allow_other,suid,dev,no_passthrough"),
    "hostdir-writeback": (None, "allow_other,suid,dev,writeback"),
    "hostdir-cache-never": (None, "allow_other,suid,dev,cache=never"),
    "hostdir-cache-always": (None, "allow_other,suid,dev,cache=always"),
    "hostdir-no-open": (None, "allow_other,suid,dev,cache=always,no_open"),
    "hostdir-io-uring": (None, "allow_other,suid,dev,io_uring"),
    "memory": ("memory:", "allow_other,suid,dev"),
    "memory-writeback": ("memory:", "allow_other,suid,dev,writeback"),
}
# The ones every program runs on; cache=always is for a directory that nobody else changes, which holds here too.
PROGRAM_KINDS = ("hostdir", "hostdir-passthrough-off", "hostdir-writeback", "memory")


@dataclass(slots=True)
class Mounted:
    """A mounted directory and the server behind it. `source` is None for the memory filesystem."""

    kind: str
    directory: Path
    source: Path | None
    server: subprocess.Popen[bytes] | None
    log: Path

    def said(self) -> str:
        """The end of what the server wrote to stderr."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def check_alive(self) -> None:
        """Fail if the server has ended."""
        if self.server is not None and self.server.poll() is not None:
            raise AssertionError(f"the server ended with {self.server.returncode}:\n{self.said()}")


@contextmanager
def mounted(kind: str, place: Path) -> Iterator[Mounted]:
    """Mount below `place`; afterwards unmount, and demand exit status 0. Kind "native" is the plain directory."""
    directory, log = place / "mount", place / "server.log"
    directory.mkdir(mode=0o755)
    if kind == "native":
        yield Mounted(kind, directory, directory, None, log)
        return
    name, options = KINDS[kind]
    source = None if name else place / "source"
    if source is not None:
        source.mkdir(mode=0o755)
    with switched(True) if kind.endswith("io-uring") else nullcontext():
        yield from _serve(kind, name, options, directory, source, log)


def _serve(
    kind: str, name: str | None, options: str, directory: Path, source: Path | None, log: Path
) -> Iterator[Mounted]:
    command = [sys.executable, "-m", "transfuse", "mount", name or str(source), str(directory), "--foreground"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "-o", options], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    result = Mounted(kind, directory, source, server, log)
    minor = None
    try:
        limit = time.monotonic() + START_LIMIT_S
        while not os.path.ismount(directory):
            result.check_alive()
            if time.monotonic() > limit:
                raise AssertionError(f"no mount after {START_LIMIT_S} s:\n{result.said()}")
            time.sleep(0.01)
        minor = os.minor(os.stat(directory).st_dev)
        yield result
        _unmount(result)
    finally:
        _clear(result, minor)


def _unmount(mount: Mounted) -> None:
    mount.check_alive()
    done = subprocess.run(["umount", mount.directory], capture_output=True, text=True, timeout=END_LIMIT_S, check=False)
    if done.returncode:
        raise AssertionError(f"umount: {done.stderr.strip()}\n{_users(mount.directory)}")
    assert mount.server is not None
    try:
        status = mount.server.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the server still runs {END_LIMIT_S} s after umount:\n{mount.said()}") from None
    if status:
        raise AssertionError(f"the server ended with {status} after umount:\n{mount.said()}")
    if "Traceback" in mount.said():
        raise AssertionError(f"the server wrote a traceback:\n{mount.said()}")


def _users(directory: Path) -> str:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for link in ("cwd", "root", "exe"):
            try:
                if os.readlink(f"/proc/{pid}/{link}").startswith(str(directory)):
                    found.append(f"process {pid} has its {link} there")
            except OSError:
                continue
    return "\n".join(found)


def _clear(mount: Mounted, minor: int | None) -> None:
    """Whatever is left: abort the connection, detach the mount, end the server."""
    with open("/proc/self/mountinfo", "rb") as info:
        left = any(line.split()[4] == os.fsencode(mount.directory) for line in info)
    if left:
        if minor is not None:
            try:
                Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
            except OSError as error:
                print(f"connection {minor} can't be aborted: {error}", file=sys.stderr)
        subprocess.run(["umount", "-l", mount.directory], timeout=END_LIMIT_S, check=False)
    if mount.server is not None and mount.server.poll() is None:
        mount.server.send_signal(signal.SIGKILL)
        mount.server.wait(END_LIMIT_S)

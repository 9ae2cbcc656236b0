"""The back-ends guests are tried against, as processes: transfuse, and for comparison the two virtiofsds.

Theory: a back-end is started as a user would start it, by its command line, and listens on a socket. Whether it does is
asked of the kernel and not by connecting, since virtiofsd takes one client and ends with it. At the end it must still
be alive, or have ended as it should; what it wrote to stderr is part of every error.

Kinds: "transfuse"; "virtiofsd-c", which QEMU 7.2 of Debian bookworm brought along; "virtiofsd", the current one in
Rust, from this machine or from Debian sid.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from guests import images
from guests.machine import QUEUE_SIZE, Filesystem
from guests.packages import Missing, with_parent

START_LIMIT_S = 30.0
END_LIMIT_S = 15.0
C_VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
RUST_VIRTIOFSD = Path("/usr/libexec/virtiofsd")


def arguments(kind: str, source: Path, socket: Path, options: Sequence[str] = ()) -> list[str]:
    """The command line of a kind of back-end that serves the directory; Missing if this machine hasn't got it."""
    if kind == "transfuse":
        return [sys.executable, "-m", "transfuse", "serve", str(source), "--socket-path", str(socket), *options]
    if kind == "virtiofsd-c":
        if not C_VIRTIOFSD.exists():
            raise Missing(f"needs {C_VIRTIOFSD} of qemu-system-common 7.2: it is missing")
        if os.geteuid():
            raise Missing("needs root for the sandbox of the C virtiofsd")
        words = [str(C_VIRTIOFSD), "-f", f"--socket-path={socket}", "-o", f"source={source}", "-o", "sandbox=chroot"]
        words += ["-o", "log_level=err", "-o", "xattr", "-o", "posix_lock", "-o", "flock", "-o", "allow_direct_io"]
        return [*words, *options]
    if kind == "virtiofsd":
        here = RUST_VIRTIOFSD.exists()
        program = [str(RUST_VIRTIOFSD)] if here else images.virtiofsd_of_sid().virtiofsd()
        # sid's runs by another loader than its own, which its seccomp filter and file handles don't expect
        contained = () if here and not os.geteuid() else ("--sandbox=none", "--seccomp=none")
        handles = () if not os.geteuid() else ("--inode-file-handles=never",)
        return [*program, f"--socket-path={socket}", f"--shared-dir={source}", *contained, *handles, *options]
    raise ValueError(f"no kind of back-end is called {kind!r}")


def listening(socket: Path) -> bool:
    """Whether a process listens on this path, without connecting to it."""
    accepting = "00010000"  # __SO_ACCEPTCON, in the flags of /proc/net/unix
    with open("/proc/net/unix", errors="surrogateescape") as table:
        lines = (line.split(None, 7) for line in table)
        found = any(len(line) == 8 and line[3] == accepting and line[7].strip() == str(socket) for line in lines)
    return found and socket.exists()


@dataclass(slots=True)
class BackEnd:
    """A running back-end. `place` is a folder of its own with a short name: the path of a socket has 107 bytes."""

    kind: str
    source: Path
    place: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.place / "fs"

    def filesystem(self, tag: str = "fs", queues: int = 1, queue_size: int = QUEUE_SIZE) -> Filesystem:
        """The device that a guest gets for it."""
        return Filesystem(self.socket, tag, queues, queue_size)

    def start(self) -> None:
        """Start it and wait until it listens. C virtiofsd wants its socket gone; ours takes over a dead one."""
        if self.kind != "transfuse":
            self.socket.unlink(missing_ok=True)
        words = arguments(self.kind, self.source, self.socket, self.options)
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen(
                with_parent(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        limit = time.monotonic() + START_LIMIT_S
        while not listening(self.socket):
            self.check_alive()
            if time.monotonic() > limit:
                raise AssertionError(f"{self.kind} does not listen on {self.socket}:\n{self.said()}")
            time.sleep(0.02)

    def said(self) -> str:
        """The end of what it wrote."""
        log = self.place / "log"
        return log.read_text(errors="replace")[-6000:] if log.exists() else ""

    def check_alive(self) -> None:
        """Fail if it has ended."""
        if self.process is None or self.process.poll() is not None:
            status = None if self.process is None else self.process.returncode
            raise AssertionError(f"{self.kind} ended with {status}:\n{self.said()}")

    def check_log(self) -> None:
        """Fail if it wrote a traceback."""
        if "Traceback" in (said := self.said()):
            raise AssertionError(f"{self.kind} wrote a traceback:\n{said}")

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.kind} still runs {END_LIMIT_S} s after SIGTERM:\n{self.said()}") from None

    def kill(self) -> None:
        """End it as a crash would: SIGKILL, to all it started."""
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(END_LIMIT_S)


@contextmanager
def serving(kind: str, source: Path, options: Sequence[str] = ()) -> Iterator[BackEnd]:
    """A back-end for a directory; at the end it must end well on SIGTERM, unless it ended with its guest."""
    place = Path(tempfile.mkdtemp(prefix="guest-fs-"))
    backend = BackEnd(kind, source, place, tuple(options))
    try:
        backend.start()
        yield backend
        if kind == "transfuse":
            backend.check_alive()
            status = backend.stop()
            assert status == 0, f"transfuse ended with {status} on SIGTERM:\n{backend.said()}"
            backend.check_log()
    finally:
        backend.kill()
        shutil.rmtree(place, ignore_errors=True)


# What a guest does to have this machine's programs: its root, read-only, with the guest's own kernel filesystems in it.
HOST_TOOLS = """
mount -t virtiofs -o ro host /host || exit 1
for each in dev proc sys tmp run mnt; do mount --bind /$each /host/$each || exit 1; done
"""
HOST_TAG = "host"


@contextmanager
def host_tools() -> Iterator[Filesystem]:
    """This machine's "/" for a guest of the same architecture (see HOST_TOOLS; then `chroot /host PROGRAM`).

    What is mounted below this machine's "/" is not part of it.
    """
    with serving("virtiofsd-c", Path("/"), ["-o", "cache=always", "-o", "no_writeback"]) as backend:
        yield backend.filesystem(HOST_TAG)

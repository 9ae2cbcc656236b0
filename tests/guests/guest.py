"""A running guest: boot it, give it scripts, get back what they print and how they end; watch its kernel meanwhile.

Theory: one boot costs seconds, so a guest takes any number of scripts. Their output comes byte for byte over a port of
its own, between marks that hold a random token, which no output can contain by accident. The kernel's console goes to a
file; whatever went wrong, the error shows its end, and a kernel that complained (BUG, WARNING, Oops, a task that hangs)
is an error even though the script ended well.

Errors: ScriptFailed, ScriptTimeout (the guest has then printed which of its tasks block, and is ended),
KernelComplaint, GuestDied (QEMU ended, which it also does when the guest panics).

Not complaints: stalls and lockups that are measured in time, since an emulated CPU stands still as long as the host
likes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from guests import images
from guests.initramfs import Cpio
from guests.machine import MACHINES, Filesystem, Machine, command, qemu_of
from guests.packages import with_parent

BOOT_LIMIT_S = 180.0
SCRIPT_LIMIT_S = 120.0
END_LIMIT_S = 20.0
HUNG_TASK_S = 40
"""A task blocked for this long is reported by the guest's kernel."""
WATCH_S = 5.0
"""How often the console is looked at while a script runs."""
LARGEST_OUTPUT = 64 << 20
SHOWN_BYTES = 6000
COMPLAINT = re.compile(
    r"BUG:(?! soft lockup)|WARNING: (?:CPU: |\S+:\d+ at )|Oops[: ]|Kernel panic|blocked for more than|"
    r"Unable to handle|UBSAN:|KASAN:|"
    r"general protection fault|refcount_t:|list_(?:add|del) corruption|Out of memory:|Internal error:"
)
_INIT = Path(__file__).with_name("init.sh")


class GuestError(Exception):
    """Something went wrong with a guest; the message holds the end of its console."""


class ScriptFailed(GuestError):
    """A script ended with another status than 0."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


class ScriptTimeout(GuestError):
    """A script did not end in its time. The guest has been ended, too."""


class KernelComplaint(GuestError):
    """The guest's kernel reported a bug, a warning or a task that hangs."""


class GuestDied(GuestError):
    """QEMU ended while something was expected of the guest; after a panic, for one."""


@dataclass(slots=True, frozen=True)
class Outcome:
    """How a script ended: its exit status, all it wrote to stdout and stderr, and how long it took."""

    status: int
    output: bytes
    elapsed_s: float

    @property
    def text(self) -> str:
        """The output, as text."""
        return self.output.decode(errors="replace")


class Guest:
    """A guest, booted on entering the context and ended on leaving it.

    `python`: the guest has Python and this package. `archives`: more archives for its initramfs (see `images`).
    `files`: name in the guest -> contents, or a path here. `qemu`: another QEMU than this machine's.
    """

    def __init__(
        self,
        machine: Machine | str,
        filesystems: Sequence[Filesystem] = (),
        *,
        python: bool = False,
        archives: Sequence[Path | bytes] = (),
        files: Mapping[str, bytes | Path] | None = None,
        memory_mib: int = 512,
        cpus: int = 1,
        kernel_options: str = "",
        qemu: Sequence[str] | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self.machine = MACHINES[machine] if isinstance(machine, str) else machine
        # what may be Missing is found out before anything is started
        self.kernel = images.kernel(self.machine)
        self._archives = [*([images.interpreter(self.machine), images.source_tree()] if python else ()), *archives]
        self._qemu = qemu_of(self.machine) if qemu is None else list(qemu)
        self._filesystems = filesystems
        self._files = dict(files or {})
        self._memory_mib, self._cpus, self._kernel_options, self._extra = memory_mib, cpus, kernel_options, extra
        self._token = b"\1guest-" + secrets.token_hex(8).encode()
        self._held = bytearray()
        self._seen = 0
        self.boot_s = 0.0
        """From QEMU's start to the guest's first word, seconds."""
        self._process: subprocess.Popen[bytes] | None = None
        self._commands: socket.socket | None = None
        self._keys: socket.socket | None = None
        self._monitor: socket.socket | None = None

    # ---- beginning and end

    def __enter__(self) -> Guest:
        # a short name: the path of a Unix socket has 107 bytes at most
        self._folder = Path(tempfile.mkdtemp(prefix="guest-"))
        try:
            self._start()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            if kind is None and self._process is not None and self._process.poll() is None:
                self._send(b"poweroff 0\n")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_LIMIT_S)
                if self._process.poll() is None:
                    raise GuestError(f"{self}: does not power off within {END_LIMIT_S:.0f} s{self._remains()}")
                self._check_kernel()
        finally:
            self._clear()

    def _start(self) -> None:
        own = Cpio()
        own.file("init", _INIT.read_bytes(), 0o755)
        own.file("init.conf", f"TOKEN={self._token.decode()}\nHUNG_TASK_S={HUNG_TASK_S}\n".encode())
        for name, data in self._files.items():
            own.file(name, data if isinstance(data, bytes) else data.read_bytes(), 0o755)
        initrd = self._folder / "initrd"
        with initrd.open("wb") as out:
            for part in (self.kernel.archive, *self._archives, bytes(own)):
                out.write(part if isinstance(part, bytes) else part.read_bytes())
        console = self._folder / "console"
        console.touch()
        words = command(
            self.machine,
            qemu=self._qemu,
            kernel=self.kernel.image,
            initrd=initrd,
            console=console,
            sockets=self._folder,
            filesystems=self._filesystems,
            memory_mib=self._memory_mib,
            cpus=self._cpus,
            kernel_options=self._kernel_options,
            extra=self._extra,
        )
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            listeners = []
            for name in ("commands", "keys", "monitor"):
                listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                listener.bind(str(self._folder / name))
                listener.listen(1)
                listeners.append(listener)
            said = stack.enter_context((self._folder / "qemu").open("wb"))
            self._process = subprocess.Popen(
                with_parent(words), stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
            self._commands, self._keys, self._monitor = (self._accept(listener) for listener in listeners)
        self._tell_monitor("qmp_capabilities")
        self._wait_for_hello(BOOT_LIMIT_S)
        self.boot_s = time.monotonic() - started
        initrd.unlink()

    def _accept(self, listener: socket.socket) -> socket.socket:
        limit = time.monotonic() + END_LIMIT_S
        while not select.select([listener], [], [], 0.2)[0]:
            self._check_process()
            if time.monotonic() > limit:
                raise GuestDied(f"{self}: QEMU does not connect{self._remains()}")
        return listener.accept()[0]

    def _clear(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(END_LIMIT_S)
        for each in (self._commands, self._keys, self._monitor):
            if each is not None:
                each.close()
        self._commands = self._keys = self._monitor = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """QEMU's process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End QEMU at once, as a crash of the host's program would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(END_LIMIT_S)

    # ---- what a test does

    def run(
        self, script: str, *, timeout_s: float = SCRIPT_LIMIT_S, check: bool = True, complaints: bool = False
    ) -> Outcome:
        """Run a shell script (busybox), wait for its end. `check`: another status than 0 raises ScriptFailed.

        `complaints`: what the kernel complains about is expected, and no error.
        """
        started = time.monotonic()
        self.start(script)
        outcome = self.finish(timeout_s=timeout_s, complaints=complaints, what=script)
        outcome = Outcome(outcome.status, outcome.output, time.monotonic() - started)
        if check and outcome.status:
            shown = outcome.text[-SHOWN_BYTES:]
            raise ScriptFailed(
                f"{self}: status {outcome.status} of\n{script}\nit printed:\n{shown}{self._remains()}", outcome
            )
        return outcome

    def start(self, script: str) -> None:
        """Begin a script and come back; `finish` waits for its end. Nothing else can be run in between."""
        data = script.encode()
        self._send(b"clock %d\nscript %d\n" % (time.time(), len(data)) + data)

    def finish(
        self, *, timeout_s: float = SCRIPT_LIMIT_S, complaints: bool = False, what: str = "what was started"
    ) -> Outcome:
        """The outcome of what `start` began; any status is well."""
        started = time.monotonic()
        try:
            output, rest = self._until(b"end", timeout_s, watch=not complaints)
        except TimeoutError:
            raise ScriptTimeout(self._timed_out(what, timeout_s)) from None
        if not complaints:
            self._check_kernel()
        return Outcome(int(rest), output, time.monotonic() - started)

    def wait_for_output(self, mark: bytes, *, timeout_s: float = SCRIPT_LIMIT_S) -> None:
        """Wait until a started script has printed the mark."""
        limit = time.monotonic() + timeout_s
        while mark not in self._held:
            try:
                self._receive(limit)
            except TimeoutError:
                raise ScriptTimeout(self._timed_out(f"printing {mark!r}", timeout_s)) from None

    def put(self, path: str, data: bytes | Path) -> None:
        """Make an executable file in the running guest."""
        data = data if isinstance(data, bytes) else data.read_bytes()
        if not data:
            raise ValueError(f"{path}: an empty file can't be sent")
        self._send(b"file %d %s\n" % (len(data), path.encode()) + data)

    def reboot(self, *, timeout_s: float = BOOT_LIMIT_S) -> None:
        """Let the guest's kernel start the machine over, without shutting anything down before."""
        with self._allowed_to_start_over():
            self._send(b"reboot 0\n")
            self._wait_for_hello(timeout_s)

    def reset(self, *, timeout_s: float = BOOT_LIMIT_S) -> None:
        """Push the machine's reset button: the guest's drivers get no chance to say good-bye."""
        with self._allowed_to_start_over():
            self._tell_monitor("system_reset")
            self._wait_for_hello(timeout_s)

    @contextlib.contextmanager
    def _allowed_to_start_over(self) -> Iterator[None]:
        """At other times QEMU ends instead of starting over, so that a panic is noticed at once."""
        self._check_kernel()
        self._tell_monitor("set-action", reboot="reset")
        yield
        self._tell_monitor("set-action", reboot="shutdown")

    def console(self) -> str:
        """All that the kernel printed so far."""
        return (self._folder / "console").read_text(errors="replace")

    def qemu_said(self) -> str:
        """What QEMU printed."""
        return (self._folder / "qemu").read_text(errors="replace")

    def monitor(self, execute: str, **arguments: object) -> object:
        """Run a command of QEMU's machine protocol; its return value. GuestError if QEMU refuses."""
        return self._tell_monitor(execute, **arguments)

    # ---- the two sides of the port

    def _send(self, data: bytes) -> None:
        assert self._commands is not None
        try:
            self._commands.sendall(data)
        except OSError as error:
            raise GuestDied(f"{self}: QEMU takes nothing any more ({error}){self._remains()}") from None

    def _receive(self, limit: float) -> None:
        """More of the output, or nothing after a while; TimeoutError behind the limit, GuestDied if QEMU has ended."""
        assert self._commands is not None
        if not select.select([self._commands], [], [], 0.5)[0]:
            self._check_process()
            if time.monotonic() > limit:
                raise TimeoutError
            return
        try:
            data = self._commands.recv(1 << 18)
        except ConnectionError:
            data = b""
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._process is not None:
                    self._process.wait(END_LIMIT_S)
            self._check_process()
            raise GuestDied(f"{self}: the port is closed{self._remains()}")
        self._held += data
        if len(self._held) > LARGEST_OUTPUT:
            raise GuestError(f"{self}: a script printed more than {LARGEST_OUTPUT} bytes")
        if time.monotonic() > limit:
            raise TimeoutError

    def _until(self, word: bytes, timeout_s: float, *, watch: bool = False) -> tuple[bytes, bytes]:
        """What comes before the mark TOKEN word REST, and REST. `watch`: a complaint of the kernel is the end."""
        limit = time.monotonic() + timeout_s
        watched = time.monotonic()
        mark = re.compile(re.escape(self._token) + rb" (\w+) ([^\n]*)\n")
        searched = 0
        while True:
            found = mark.search(self._held, searched)
            if found:
                # read all of it before the buffer it was found in is cut
                output, verb, rest = bytes(self._held[: found.start()]), bytes(found[1]), bytes(found[2])
                del self._held[: found.end()]
                if verb != word:
                    raise GuestError(f"{self}: said {verb!r}, expected {word!r}{self._remains()}")
                return output, rest
            searched = max(0, len(self._held) - 200)
            if watch and time.monotonic() > watched + WATCH_S:
                self._check_kernel(show_blocked=True)
                watched = time.monotonic()
            self._receive(limit)

    def _wait_for_hello(self, timeout_s: float) -> None:
        try:
            self._until(b"hello", timeout_s)
        except TimeoutError:
            raise ScriptTimeout(f"{self}: has not booted after {timeout_s:.0f} s{self._remains()}") from None

    def _tell_monitor(self, execute: str, **arguments: object) -> object:
        assert self._monitor is not None
        self._monitor.settimeout(END_LIMIT_S)
        request = {"execute": execute, **({"arguments": arguments} if arguments else {})}
        try:
            self._monitor.sendall(json.dumps(request).encode() + b"\n")
            line = b""
            while True:
                byte = self._monitor.recv(1)
                if not byte:
                    raise GuestDied(f"{self}: QEMU's monitor is gone{self._remains()}")
                line += byte
                if byte == b"\n":
                    answer = json.loads(line)
                    line = b""
                    if "error" in answer:
                        raise GuestError(f"{self}: QEMU refuses {execute}: {answer['error']}")
                    if "return" in answer:
                        return answer["return"]
        except OSError as error:
            raise GuestDied(f"{self}: QEMU's monitor does not answer: {error}{self._remains()}") from None

    # ---- what can be said about it

    def __str__(self) -> str:
        return f"guest {self.machine.name} ({self.kernel.release})"

    def _check_process(self) -> None:
        if self._process is not None and (status := self._process.poll()) is not None:
            raise GuestDied(f"{self}: QEMU ended with status {status}{self._remains()}")

    def _check_kernel(self, *, show_blocked: bool = False) -> None:
        text = self.console()
        new = text[self._seen :]
        found = COMPLAINT.search(new)
        if found and show_blocked:
            self._show_blocked()
            text = self.console()
            new = text[self._seen :]
        self._seen = len(text)
        if found:
            start = max(0, found.start() - 300)
            raise KernelComplaint(f"{self}: its kernel complains:\n{new[start : start + 2 * SHOWN_BYTES]}")

    def _show_blocked(self) -> None:
        """Have the kernel print the stacks of tasks that block."""
        with contextlib.suppress(OSError):
            assert self._keys is not None
            self._keys.sendall(b"w\n")
            time.sleep(3)

    def _timed_out(self, what: str, timeout_s: float) -> str:
        """The message for what did not end, with the tasks that block; ends the guest."""
        self._show_blocked()
        message = f"{self}: no end within {timeout_s:.0f} s of\n{what}\nit printed so far:\n"
        message += bytes(self._held[-SHOWN_BYTES:]).decode(errors="replace") + self._remains(20_000)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(END_LIMIT_S)
        return message

    def _remains(self, most: int = SHOWN_BYTES) -> str:
        text = f"\n---- the end of the console\n{self.console()[-most:]}"
        if self.qemu_said():
            text += f"\n---- QEMU\n{self.qemu_said()[-most:]}"
        return text

"""What a case is given: a fresh working directory, other users, other processes, and a clock that surely moves.

Theory: a case runs in a process of its own (see runner), whose working directory is an empty directory on the
filesystem under test; so cases use short relative names, may change umask, limits and signal handlers, and can't
disturb each other. The parents of the working directory may be closed to other users: relative names don't pass
through them.

`as_user` runs a function in a further child with other credentials and brings back its result or its exception.
`spawn` runs one beside the case, with `ready`/`wait` to put the two in an order; every wait has an end.

Failing checks raise CheckFailed with what was expected and what was found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NamedTuple, NoReturn, ParamSpec, TypeVar

from transfuse.testing.posix import calls
from transfuse.testing.posix.calls import Path
from transfuse.testing.posix.needs import Need

P = ParamSpec("P")
T = TypeVar("T")

# A child that has said nothing for this long is taken to hang; a case has less than twice this.
CHILD_TIMEOUT_S = 20.0


_NEEDS: dict[object, tuple[Need, ...]] = {}


def needs(*needed: Need) -> Callable[[Callable[[Env], None]], Callable[[Env], None]]:
    """Say what a case depends on; without it a case runs everywhere."""

    def mark(function: Callable[[Env], None]) -> Callable[[Env], None]:
        _NEEDS[function] = needed
        return function

    return mark


def needs_of(function: object) -> tuple[Need, ...]:
    """The needs a case was marked with."""
    return _NEEDS.get(function, ())


class CheckFailed(AssertionError):
    """A case found something else than POSIX or Linux promises."""


class Skip(Exception):
    """A case can't be decided here; the message says why."""


class User(NamedTuple):
    """Credentials. The ids are high, so that no real account is likely to own them."""

    uid: int
    gid: int


ALICE = User(54321, 54331)
BOB = User(54322, 54332)
CAROL = User(54323, 54333)
# A group nobody has as their own; given to a user as a supplementary group.
PROJECT_GID = 54399


def equal(actual: object, expected: object, what: str) -> None:
    """Fail unless the two are equal."""
    if actual != expected:
        octal = "mode" in what
        raise CheckFailed(f"{what}: expected {_shown(expected, octal)}, found {_shown(actual, octal)}")


def check(condition: bool, what: str) -> None:
    """Fail with `what` unless the condition holds."""
    if not condition:
        raise CheckFailed(what)


def errno_name(number: int | None) -> str:
    """EEXIST for 17."""
    return errno.errorcode.get(number or 0, str(number))


def refused(numbers: int | tuple[int, ...], func: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Fail unless the call raises OSError with this errno, or one of these."""
    expected = (numbers,) if isinstance(numbers, int) else numbers
    wanted = " or ".join(errno_name(number) for number in expected)
    call = f"{getattr(func, '__name__', func)}({', '.join(_shown(argument) for argument in args)})"
    try:
        result = func(*args, **kwargs)
    except OSError as error:
        if error.errno not in expected:
            raise CheckFailed(f"{call}: expected {wanted}, found {errno_name(error.errno)}") from None
        return
    raise CheckFailed(f"{call}: expected {wanted}, but it succeeded with {_shown(result)}")


def _shown(value: object, octal: bool = False) -> str:
    if octal and isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#o}"
    if octal and isinstance(value, tuple):
        return f"({', '.join(_shown(part, octal) for part in value)})"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:90]}… ({len(text)} characters)"


def eventually(condition: Callable[[], bool], what: str, within_s: float = 3.0) -> None:
    """Fail unless the condition comes true in time: for what nobody promises at once, as st_blocks behind a cache."""
    limit = time.monotonic() + within_s
    while not condition():
        check(time.monotonic() < limit, what)
        time.sleep(0.05)


def put(name: Path, data: bytes = b"", mode: int = 0o644) -> None:
    """Create or replace the content of a file; the mode is exact, whatever the umask."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def get(name: Path) -> bytes:
    """The content of a file."""
    with opened(name, os.O_RDONLY) as fd:
        return read_all(fd)


def read_all(fd: int) -> bytes:
    """What is left to read from the descriptor."""
    parts: list[bytes] = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def opened(name: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """os.open for a with statement."""
    fd = os.open(name, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def try_open(name: Path, flags: int, mode: int = 0o644) -> None:
    """Open and close: whether it is allowed is the question."""
    os.close(os.open(name, flags, mode))


def mode_of(name: Path) -> int:
    """The permission bits, set-id and sticky bits included, of the object itself."""
    return stat.S_IMODE(os.lstat(name).st_mode)


def make_directory(name: Path, mode: int = 0o755, owner: tuple[int, int] | None = None) -> None:
    """mkdir with an exact mode and owner."""
    os.mkdir(name, 0o700)
    if owner is not None:
        os.chown(name, *owner)
    os.chmod(name, mode)


def put_owned(name: Path, owner: tuple[int, int], mode: int = 0o644, data: bytes = b"") -> None:
    """A file with an exact owner and mode (chown clears set-id bits, so the mode comes last)."""
    put(name, data)
    os.chown(name, *owner)
    os.chmod(name, mode)


class Other:
    """The child's end of `spawn`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ready(self, value: object = None) -> None:
        """Tell the case that this point is reached."""
        self._connection.send(("ready", value))

    def wait(self) -> None:
        """Wait until the case calls go()."""
        if not self._connection.poll(CHILD_TIMEOUT_S):
            raise CheckFailed("the case never said go")
        self._connection.recv()


class Child:
    """A process beside the case. Always ended by result() or kill()."""

    def __init__(self, func: Callable[[Other], object], user: User | None, groups: Sequence[int]) -> None:
        here, there = Pipe()
        self._connection = here
        self.pid = os.fork()
        if self.pid == 0:
            here.close()
            _child_main(func, there, user, groups)
        there.close()

    def wait_ready(self, timeout_s: float = CHILD_TIMEOUT_S) -> object:
        """The value of the child's next ready()."""
        kind, value = self._receive(timeout_s)
        if kind == "error":
            raise _as_exception(value)
        if kind != "ready":
            raise CheckFailed(f"the other process ended early with {value!r}")
        return value

    def is_quiet(self, for_s: float) -> bool:
        """Whether the child says nothing for this long: it is blocked, or has nothing to say."""
        return not self._connection.poll(for_s)

    def go(self) -> None:
        """Let the child continue after its wait()."""
        self._connection.send(None)

    def result(self, timeout_s: float = CHILD_TIMEOUT_S) -> object:
        """What the function returned; what it raised is raised here."""
        kind, value = self._receive(timeout_s)
        self._reap()
        if kind == "error":
            raise _as_exception(value)
        return value

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End the child; its wait status."""
        os.kill(self.pid, number)
        return self._reap()

    def status(self) -> int:
        """Wait for the child to end without asking for a result: its wait status (os.waitstatus_to_exitcode)."""
        return self._reap()

    def _receive(self, timeout_s: float) -> tuple[str, object]:
        if not self._connection.poll(timeout_s):
            self.kill()
            raise CheckFailed(f"the other process was silent for {timeout_s} s")
        try:
            kind, value = self._connection.recv()
        except EOFError:
            code = os.waitstatus_to_exitcode(self._reap())
            raise CheckFailed(f"the other process died with {code}") from None
        return str(kind), value

    def _reap(self) -> int:
        self._connection.close()
        _pid, status = os.waitpid(self.pid, 0)
        return status


def _as_exception(value: object) -> BaseException:
    return value if isinstance(value, BaseException) else CheckFailed(str(value))


def _child_main(
    func: Callable[[Other], object], connection: Connection, user: User | None, groups: Sequence[int]
) -> NoReturn:
    code = 0
    try:
        if user is not None:
            become(user, groups)
        connection.send(("result", func(Other(connection))))
    except BaseException as error:  # noqa: BLE001  carried to the case, which raises it again
        code = 1
        plain = error if isinstance(error, (OSError, CheckFailed, Skip)) else CheckFailed(repr(error))
        connection.send(("error", plain))
    finally:
        os._exit(code)


def become(user: User, groups: Sequence[int] = ()) -> None:
    """Take on the credentials for good: this process loses its capabilities."""
    os.setgroups(list(groups))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    calls.allow_own_proc()


class AsUser:
    """Calls functions in a child with other credentials; see Env.as_user."""

    def __init__(self, user: User, groups: Sequence[int]) -> None:
        self.user = user
        self.groups = groups

    def __call__(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        child = Child(lambda _other: func(*args, **kwargs), self.user, self.groups)
        return child.result()  # type: ignore[return-value]  # the child returned what func returned, pickled

    def refused(self, numbers: int | tuple[int, ...], func: Callable[P, object], *args: P.args, **kw: P.kwargs) -> None:
        """`refused`, as this user."""
        self(_refused_there, numbers, func, args, dict(kw))

    def __enter__(self) -> AsUser:
        return self

    def __exit__(self, *_exception: object) -> None:
        return None


def _refused_there(
    numbers: int | tuple[int, ...], func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    refused(numbers, func, *args, **kwargs)


class Env:
    """The surroundings of one case."""

    def __init__(self, directory: str, met: frozenset[Need], tick_s: float) -> None:
        self.directory = directory
        """Absolute path of the fresh directory; also the working directory."""
        self.met = met
        """The needs this filesystem, mount and process meet."""
        self.tick_s = tick_s

    def meets(self, need: Need) -> bool:
        """Whether a need is met; for cases that assert more where they can."""
        return need in self.met

    def tick(self) -> None:
        """Sleep until a time stamp taken now is sure to differ from one taken before."""
        time.sleep(self.tick_s)

    def as_user(self, uid: int, gid: int, groups: Sequence[int] = ()) -> AsUser:
        """Run functions as another user: `env.as_user(*ALICE)(os.mkdir, "d")`; needs Need.USERS."""
        return AsUser(User(uid, gid), groups)

    def spawn(self, func: Callable[[Other], object], user: User | None = None, groups: Sequence[int] = ()) -> Child:
        """Start a function in a process of its own, beside the case."""
        return Child(func, user, groups)

    def changed(self, action: Callable[[], object], *names: Path, atime: bool = False) -> list[str]:
        """Run the action and say for each name which times moved: letters of "amc", "" for none.

        Without `atime` only mtime and ctime are looked at. A name that is gone afterwards counts as "gone".
        """
        before = [os.lstat(name) for name in names]
        self.tick()
        action()
        return [self._moved(name, old, atime) for name, old in zip(names, before, strict=True)]

    @staticmethod
    def _moved(name: Path, old: os.stat_result, atime: bool) -> str:
        try:
            new = os.lstat(name)
        except FileNotFoundError:
            return "gone"
        moved = "a" if atime and new.st_atime_ns != old.st_atime_ns else ""
        moved += "m" if new.st_mtime_ns != old.st_mtime_ns else ""
        moved += "c" if new.st_ctime_ns != old.st_ctime_ns else ""
        for field in ("st_mtime_ns", "st_ctime_ns"):
            check(getattr(new, field) >= getattr(old, field), f"{field} of {name!r} went backwards")
        return moved

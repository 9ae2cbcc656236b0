"""`transfuse demo`: one directory, read three ways, compared byte for byte.

The directory itself is the truth. The same tree is then read through a mount of this machine's kernel (where
/dev/fuse can be opened) and by the in-process client, with no kernel between. Names, types, modes, owners, sizes,
times, link targets and the content of every file must be the same. Exit code 1 on any difference; nothing is left
behind.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import transfuse
from transfuse.cli import inner
from transfuse.cli.copy import CHUNK
from transfuse.cli.errors import FAILED, OK, USAGE, CommandError, describe
from transfuse.cli.output import human, plural, shown
from transfuse.cli.sides import Local, Remote, Side, join
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Statfs
from transfuse.fs.wrap import Wrapper
from transfuse.transports.mount.errors import MountError

__all__ = ["add", "generate", "run"]

MAX_SHOWN = 10
"""Most differences that are printed."""
GENERATED_FILES = 200
SPARSE_BYTES = 64 << 20
SEED = 7
"""The generated tree is the same each time."""

EXAMPLES = """\
examples:
  transfuse demo                a small tree of its own, together with the sources of this package
  transfuse demo ~/pictures     a directory of yours; it is only read"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `demo`."""
    parser = commands.add_parser(
        "demo", help="export a directory, read it with and without the kernel, compare",
        description="Export a directory, read it by the kernel and by the in-process client, compare byte for byte.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("dir", metavar="DIR", nargs="?", help="directory to export (default: a generated one)")
    parser.add_argument("--no-kernel", action="store_true", help="leave the kernel mount out")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=run)


@dataclass
class Snapshot:
    """What one reading found. `names` has for each path what must be the same."""

    names: dict[str, tuple[object, ...]] = field(default_factory=dict)
    files: int = 0
    directories: int = 0
    bytes: int = 0
    seconds: float = 0.0


def run(args: argparse.Namespace) -> int:
    """Read, compare, say what was done."""
    if args.dir is not None and not os.path.isdir(args.dir):
        raise CommandError(args.dir, "is no directory", "name an existing one, or none", USAGE)
    with tempfile.TemporaryDirectory(prefix="transfuse-demo-") as scratch:
        if args.dir is None:
            source = os.path.join(scratch, "tree")
            generate(source)
            what = "generated, with a copy of this package's sources"
        else:
            source, what = os.path.abspath(args.dir), "yours; only read"
        place = os.path.join(scratch, "mount")
        os.mkdir(place)
        direct = read(Local(), source)
        say("tree", f"{shown(source)} ({what})")
        say("", f"{_sum(direct)} read directly in {direct.seconds:.2f} s")
        say("form", f"{_form()}, Python {platform.python_version()}")
        differences = []
        if args.no_kernel:
            say("kernel", "left out")
        else:
            differences += _through_kernel(source, place, direct)
        differences += _through_client(source, direct)
    for line in differences[:MAX_SHOWN]:
        say("DIFFERENT", line)
    if len(differences) > MAX_SHOWN:
        say("", f"and {len(differences) - MAX_SHOWN} more")
    say(
        "result",
        "different" if differences else "the same names, attributes and bytes each way; nothing is left behind",
    )
    return FAILED if differences else OK


def say(title: str, text: str) -> None:
    """One line of the report."""
    print(f"{title:<10}{text}", flush=True)


def _form() -> str:
    return f"compiled ({plural(len(transfuse.COMPILED), 'module')})" if transfuse.COMPILED else "plain Python"


def _sum(snapshot: Snapshot) -> str:
    return (
        f"{plural(snapshot.files, 'file')}, {plural(snapshot.directories, 'directory', 'directories')}, "
        f"{human(snapshot.bytes)}"
    )


def _through_kernel(source: str, place: str, direct: Snapshot) -> list[str]:
    from transfuse.filesystems.hostdir import HostDirectory
    from transfuse.server import mount

    meter = _Meter(HostDirectory(source))
    try:
        with mount(meter, place, ["subtype=transfuse,ro,default_permissions", "fsname=transfuse-demo"]) as mounted:
            connection = mounted.connection
            passthrough = "data by passthrough" if connection.features.passthrough else "data through the server"
            say("kernel", f"mounted by {mounted.mounted.method}, FUSE 7.{connection.minor}, {passthrough}")
            with meter.counting(lambda: os.statvfs(place)):
                found = read(Local(), place)
    except MountError as error:
        say("kernel", f"no mount here: {describe(error)}")
        return []
    say("", f"{_sum(found)} in {found.seconds:.2f} s, {plural(meter.requests, 'request')}; unmounted")
    return compare(direct, found, "kernel")


def _through_client(source: str, direct: Snapshot) -> list[str]:
    from transfuse.client import Client
    from transfuse.filesystems.hostdir import HostDirectory
    from transfuse.server import Server
    from transfuse.transports.memory import MemoryTransport

    transport = MemoryTransport()
    meter = _Meter(HostDirectory(source))
    with Server(meter, transport), Client(transport.client) as client, meter.counting(client.statvfs):
        found = read(Remote(client), "/")
    say("client", "the same protocol in this process, no kernel and no privilege")
    say("", f"{_sum(found)} in {found.seconds:.2f} s, {plural(meter.requests, 'request')}")
    return compare(direct, found, "client")


class _Meter(Wrapper):
    """Forwards everything and reads off how many requests there were: both kernel and client number theirs in steps of
    two (FUSE_REQ_ID_STEP), so two STATFS requests tell what came between."""

    requests = 0

    def __init__(self, filesystem: Filesystem) -> None:
        super().__init__(filesystem)
        self._unique = 0

    def statfs(self, req: Request, nodeid: int) -> Statfs:
        """Also notes the request's number."""
        self._unique = req.unique
        return self.inner.statfs(req, nodeid)

    @contextmanager
    def counting(self, statfs: Callable[[], object]) -> Iterator[None]:
        """Count the requests of the block."""
        statfs()
        before = self._unique
        yield
        statfs()
        self.requests = (self._unique - before) // 2 - 1


# -- reading and comparing ---------------------------------------------------------------------------------------------


def read(side: Side, top: str) -> Snapshot:
    """Everything below `top`, each file's content included (as a digest)."""
    found = Snapshot()
    buffer = memoryview(bytearray(CHUNK))
    started = time.perf_counter()
    waiting = [(top, "/", 0)]
    while waiting:
        path, name, depth = waiting.pop()
        try:
            found.names[name] = facts = _facts(side, path, found, buffer)
            if facts[0] == stat.S_IFDIR and depth < inner.MAX_DEPTH:
                names = sorted(side.names(path), key=os.fsencode)
                waiting += [(join(path, inner.check_name(n)), join(name, n), depth + 1) for n in reversed(names)]
        except OSError as error:
            found.names[name] = ("error", error.errno)
    found.seconds = time.perf_counter() - started
    return found


def _facts(side: Side, path: str, found: Snapshot, buffer: memoryview) -> tuple[object, ...]:
    st = side.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    content: object = None
    size = 0
    if kind == stat.S_IFDIR:
        found.directories += 1
    else:
        found.files += 1
    if kind == stat.S_IFLNK:
        content = side.readlink(path)
    elif kind == stat.S_IFREG:
        digest = hashlib.sha256()
        with side.open_raw(path, os.O_RDONLY, 0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                size += count
        content = digest.hexdigest()
        found.bytes += size
    times = (st.st_mtime_ns, st.st_ctime_ns)
    shape = st.st_size if kind != stat.S_IFDIR else None
    return kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_nlink, shape, st.st_rdev, times, content


_MEANINGS = ("type", "mode", "owner", "group", "links", "size", "device", "times", "content")


def compare(direct: Snapshot, found: Snapshot, way: str) -> list[str]:
    """The differences, one line each."""
    lines = []
    for name in sorted(direct.names.keys() | found.names.keys(), key=os.fsencode):
        one, two = direct.names.get(name), found.names.get(name)
        if one is None or two is None:
            lines.append(f"{shown(name)}: only {way if one is None else 'in the directory'}")
        elif one != two:
            what = "readability"
            if len(one) == len(two) == len(_MEANINGS):
                what = ", ".join(m for m, a, b in zip(_MEANINGS, one, two, strict=True) if a != b)
            lines.append(f"{shown(name)}: {what} {'differs' if ',' not in what else 'differ'} by way of the {way}")
    return lines


# -- something to export -----------------------------------------------------------------------------------------------


def generate(top: str) -> None:
    """A small tree with something of everything: nested directories, links, holes, odd names, this package."""
    chance = random.Random(SEED)
    os.mkdir(top)
    for number in range(GENERATED_FILES):
        directory = Path(top, "data", *(f"d{chance.randrange(4)}" for _ in range(chance.randrange(4))))
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"file-{number:03}.bin"
        file.write_bytes(chance.randbytes(chance.choice((0, 1, 100, 4096, 5000, 70_000))))
        file.chmod(chance.choice((0o644, 0o600, 0o755)))
    odd = Path(top, "odd")
    odd.mkdir()
    (odd / "größe und 大きさ.txt").write_text("names are bytes\n")
    Path(os.fsdecode(os.fsencode(odd) + b"/not-utf8-\xff\xfe")).write_bytes(b"\0" * 10)
    (odd / "link").symlink_to("../data")
    (odd / "dangling").symlink_to("nowhere")
    (odd / "one").write_text("two names\n")
    os.link(odd / "one", odd / "two")
    os.mkfifo(odd / "fifo")
    with open(odd / "holes", "wb") as holes:
        holes.seek(SPARSE_BYTES // 2)
        holes.write(b"data between holes")
        holes.truncate(SPARSE_BYTES)
    (odd / "empty").mkdir()
    sources = Path(transfuse.__file__).parent
    shutil.copytree(sources, Path(top, "transfuse"), symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "_c"))

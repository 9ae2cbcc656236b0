"""`transfuse doctor`: what this machine allows, found by trying, and what to do about what it does not.

Facts are asked of the kernel, not derived from its version: a trial mount in a private directory shows what is
negotiated, and a file whose content differs between server and backing file shows whether passthrough works. Nothing
is left behind. The exit code is 0 when kernel mounts work here, 1 when not (sources can then still be read with no
kernel).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import transfuse
from transfuse._native import loader
from transfuse.cli.errors import FAILED, OK, describe
from transfuse.cli.output import table, write_json
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import ROOT_ID, Attr, DirEntry, Entry, Features, Opened
from transfuse.transports import uring
from transfuse.transports.mount import fusermount, mountinfo
from transfuse.transports.mount.attach import choose_method, open_device
from transfuse.transports.mount.errors import MountError
from transfuse.transports.mount.options import MountOptions, parse_options
from transfuse.wire import flags as f

__all__ = ["Finding", "add", "examine", "run"]

CLONE_NEWUSER = 0x10000000
CLONE_NEWNS = 0x00020000
NOBODY = 65534
CONTENT_OF_SERVER = b"server\n"
CONTENT_OF_BACKING = b"kernel\n"

EXAMPLES = """\
examples:
  transfuse doctor
  transfuse doctor --json | jq '.[] | select(.ok == false)'"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `ok` None means that it is neither good nor bad."""

    name: str
    ok: bool | None
    detail: str
    way_out: str = ""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `doctor`."""
    parser = commands.add_parser(
        "doctor", help="what this machine allows", description="Show what this machine allows, by trying it.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine, print, and say by the exit code whether kernel mounts work."""
    findings = list(examine())
    if args.json:
        write_json([asdict(finding) for finding in findings])
    else:
        words = {True: "ok", False: "no", None: "--"}
        rows = [
            [words[x.ok], x.name, f"{x.detail}; {x.way_out}" if x.way_out and x.ok is not True else x.detail]
            for x in findings
        ]
        table(["", "what", "found"], rows, {"ok": "green", "no": "red", "--": "dim"})
    return OK if any(finding.name == "trial mount" and finding.ok for finding in findings) else FAILED


def examine() -> Iterator[Finding]:
    """All findings, in order. Forks and mounts, but only in private places, and cleans up."""
    yield Finding("Python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or newer")
    yield _form()
    yield Finding("kernel", None, f"{platform.system()} {platform.release()} ({platform.machine()})")
    device = _device()
    yield device
    yield _fusermount()
    yield _namespaces()
    if device.ok:
        yield from _trial()
    else:
        yield Finding(
            "trial mount", False, "not tried without /dev/fuse", "ls, cat, stat, tree and cp work all the same"
        )
    yield _io_uring()
    yield _control()
    found = find_spec("rich") is not None
    yield Finding("rich", True if found else None, "installed" if found else "not installed: plain tables and progress",
                  "pip install 'transfuse[cli]'")  # fmt: skip


def _form() -> Finding:
    if transfuse.COMPILED:
        names = ", ".join(name.removeprefix("transfuse.") for name in transfuse.COMPILED)
        return Finding("compiled form", True, f"{len(transfuse.COMPILED)} of the hot modules: {names}")
    if os.environ.get(loader.VARIABLE) == "0":
        return Finding("compiled form", None, f"plain, as {loader.VARIABLE}=0 asks")
    reasons = sorted(set(loader.read_copies().unusable.values())) or ["none was built"]
    return Finding("compiled form", None, f"plain: {reasons[0]}", "install a C compiler and run pip install again")


def _device() -> Finding:
    try:
        fd = open_device()
    except MountError as error:
        return Finding("/dev/fuse", False, error.strerror or "can't be opened", error.hint)
    os.close(fd)
    return Finding("/dev/fuse", True, "can be opened")


def _fusermount() -> Finding:
    path = fusermount.find_fusermount()
    need = None if os.geteuid() == 0 else False
    if path is None:
        return Finding("fusermount3", need, "not found", "ordinary users need it to mount: install the package fuse3")
    if not os.stat(path).st_mode & stat.S_ISUID and os.geteuid() != 0:
        return Finding("fusermount3", False, f"{path} is not setuid root", "reinstall the package fuse3")
    others = "" if fusermount.user_allow_other() else "not "
    return Finding("fusermount3", True, f"{path}; users may {others}give allow_other ({fusermount.FUSE_CONF})")


def _namespaces() -> Finding:
    child = os.fork()
    if child == 0:
        code = 255
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if os.geteuid() == 0:
                os.setresgid(NOBODY, NOBODY, NOBODY)  # root may anyway; the question is who else
                os.setresuid(NOBODY, NOBODY, NOBODY)
            code = 0 if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 else min(ctypes.get_errno(), 254)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return Finding("user namespaces", True, "an ordinary user may mount inside `unshare -Urm`")
    reason = os.strerror(code) if 0 < code < 255 else "the attempt failed"
    hint = "see sysctl user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns, or use fusermount3"
    return Finding("user namespaces", False, f"not for ordinary users: {reason}", hint)


class _Trial(Filesystem):
    """One file, which says "server" when read from here and "kernel" when the kernel reads the backing file itself."""

    features = Features(passthrough=True, entry_timeout_s=60.0, attr_timeout_s=60.0)

    def __init__(self, backing_fd: int) -> None:
        self._backing_fd = backing_fd

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        if (parent, name) != (ROOT_ID, b"file"):
            raise FileNotFoundError(2, "no such file")
        return Entry(self.getattr(req, 2, None))

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        if nodeid == ROOT_ID:
            return Attr.directory(ROOT_ID, uid=os.getuid(), gid=os.getgid())
        return Attr.file(2, len(CONTENT_OF_SERVER), uid=os.getuid(), gid=os.getgid())

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> list[DirEntry]:
        return [DirEntry(b"file", 2)]

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        return Opened(1, backing_fd=self._backing_fd)

    def read(self, req: Request, nodeid: int, fh: int, size: int, offset: int) -> bytes:
        return CONTENT_OF_SERVER[offset : offset + size]

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        """The backing file outlives the mount."""


def _trial() -> Iterator[Finding]:
    from transfuse.server import mount
    from transfuse.transports.dev_fuse import sync_init

    try:
        method = choose_method(MountOptions())
    except MountError as error:
        yield Finding("trial mount", False, describe(error))
        return
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        early = sync_init(fd)
    finally:
        os.close(fd)
    place = tempfile.mkdtemp(prefix="transfuse-doctor-")
    try:
        with tempfile.TemporaryFile() as backing:
            backing.write(CONTENT_OF_BACKING)
            backing.flush()
            try:
                with mount(_Trial(backing.fileno()), place, parse_options(["subtype=transfuse"])) as mounted:
                    content = _read(os.path.join(place, "file"))
                    connection, refused = mounted.connection, mounted.server.session.passthrough.refused
            except OSError as error:
                yield Finding("trial mount", False, describe(error))
                return
    finally:
        shutil.rmtree(place, ignore_errors=True)
    worked = content in (CONTENT_OF_SERVER, CONTENT_OF_BACKING)
    yield Finding(
        "trial mount", worked, f"by {method}; FUSE 7.{connection.minor} (the kernel speaks 7.{connection.peer_minor})"
    )
    yield Finding("agreed in the trial", None, f.names(connection.flags, f.INIT_NAMES).replace("|", ", "))
    missing = [name for bit, name in f.INIT_NAMES.items() if not connection.offered & bit]
    yield Finding("not offered by this kernel", None, ", ".join(missing) or "nothing: it has all that transfuse knows")
    yield Finding(
        "synchronous INIT", True if early else None, "yes" if early else "no", "Linux 6.18 has it; mounts work without"
    )
    if content == CONTENT_OF_BACKING:
        yield Finding("passthrough", True, "the kernel reads and writes underlying files itself")
    else:
        offered = bool(connection.offered & f.FUSE_PASSTHROUGH)
        why = "the kernel does not know it" if not offered else "refused for this process" if refused else "not used"
        hint = (
            "Linux 6.9 has it; data goes through the server until then"
            if not offered
            else "it needs root (CAP_SYS_ADMIN)"
        )
        yield Finding("passthrough", False, why, hint)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(64)


def _io_uring() -> Finding:
    reason = uring.obstacle()
    if reason is None:
        return Finding("FUSE over io_uring", True, "possible")
    if not uring.PARAMETER.exists():
        return Finding("FUSE over io_uring", None, reason, "Linux 6.14 has it")
    on = uring.PARAMETER.read_text().strip() in ("Y", "1")
    return Finding("FUSE over io_uring", None, reason, "" if on else f"echo Y > {uring.PARAMETER}")


def _control() -> Finding:
    places = [row.mountpoint for row in mountinfo.mounts() if row.fstype == b"fusectl"]
    if places:
        return Finding("control filesystem", True, f"{os.fsdecode(places[0])}: hung connections can be aborted")
    return Finding(
        "control filesystem", None, "fusectl is not mounted", "mount -t fusectl none /sys/fs/fuse/connections"
    )

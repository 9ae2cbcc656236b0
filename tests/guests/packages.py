"""Debian packages of any suite and architecture, fetched by apt and unpacked without being installed.

Theory: apt knows mirrors, proxies, signatures and hashes, so it does the fetching, with lists, state and archives in a
folder of its own: the machine's own apt is neither asked nor changed, and root is not needed. What is made of the
packages (a kernel, a Python, a QEMU of a newer suite) goes to a cache outside the source tree, written under another
name and renamed when it is complete, so that what is there can be trusted. One process at a time prepares.

The cache is ~/.cache/transfuse/guests, or what TRANSFUSE_GUESTS names. It may be removed at any time.

Whatever can't be had on a machine (no apt, no network, no such package) is Missing, with the reason; tests skip on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

# Raised whenever what is put into the cache changes: older contents are then left alone and made anew.
FORMAT = 1
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FETCH_LIMIT_S = 900
LISTS_KEPT_S = 6 * 3600
RETRIES = 3


class Missing(Exception):
    """Something that a guest needs can't be had on this machine; the message is a reason to skip."""


def with_parent(command: Sequence[str]) -> list[str]:
    """The command, which ends when the thread that started it does: a killed test run leaves no machine running."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


def cache() -> Path:
    """The folder that keeps what was fetched and made, for this FORMAT."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transfuse" / "guests"
    return Path(os.environ.get("TRANSFUSE_GUESTS") or default) / f"v{FORMAT}"


def prepared(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; `make` fills an empty one if it is not there yet. Raises what `make` raises."""
    there = cache() / name
    if there.exists():
        return there
    there.parent.mkdir(parents=True, exist_ok=True)
    with open(cache() / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not there.exists():
            fresh = Path(tempfile.mkdtemp(prefix=f".{there.name}-", dir=there.parent))
            try:
                make(fresh)
                fresh.chmod(0o755)
                fresh.rename(there)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return there


def mirror() -> str:
    """The Debian mirror this machine's apt uses; where it is not a Debian machine, the project's own."""
    apt = Path("/etc/apt")
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("debian*"))):
        with contextlib.suppress(OSError):
            found = re.search(
                r"^(?:deb (?:\[[^\]]*\] )?|URIs:\s*)(https?://\S+/debian/?)(?=\s|$)", path.read_text(), re.M
            )
            if found:
                return found[1]
    return DEFAULT_MIRROR


class Archive:
    """One suite of the Debian archive as one architecture sees it. A context: what it fetches goes when it is left.

    Its lists are kept in the cache; they are fetched again when they are old, or name what is no longer there.
    """

    def __init__(self, suite: str, architecture: str) -> None:
        self.suite, self.architecture = suite, architecture
        self._place = cache() / "apt" / f"{suite}-{architecture}"
        self._debs: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Archive:
        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise Missing(f"needs {program} to fetch Debian packages: not found on PATH")
        if not KEYRING.exists():
            raise Missing(f"needs the package debian-archive-keyring: {KEYRING} is missing")
        for name in ("lists/partial", "archives/archives/partial"):
            (self._place / name).mkdir(parents=True, exist_ok=True)
        (self._place / "status").touch()
        (self._place / "sources").write_text(f"deb [signed-by={KEYRING}] {mirror()} {self.suite} main\n")
        self._debs = tempfile.TemporaryDirectory(prefix="transfuse-debs-")
        try:
            self._update(LISTS_KEPT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._debs is not None:
            self._debs.cleanup()
        self._debs = None

    @property
    def _folder(self) -> Path:
        assert self._debs is not None, "an Archive is used inside its context"
        return Path(self._debs.name)

    def _update(self, age_s: float) -> bool:
        """Fetch the lists if they are older than this; whether that was done."""
        stamp = self._place / "updated"
        if stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < age_s:
            return False
        self._apt("apt-get", "update")
        stamp.touch()
        return True

    def _apt(self, program: str, *arguments: str) -> str:
        place = self._place
        options = {
            "Dir::Etc::sourcelist": place / "sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": place,
            "Dir::State::lists": place / "lists",
            "Dir::State::status": place / "status",
            "Dir::Cache": place / "archives",
            "Acquire::Languages": "none",
            "Acquire::GzipIndexes": "true",
            "Acquire::Retries": RETRIES,
            # A machine that takes its packages from a snapshot, or whose clock is wrong, still has a signed index.
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Check-Date": "false",
            "APT::Sandbox::User": "root",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
        }
        command = [program, *(f"-o{name}={value}" for name, value in options.items()), "-q", *arguments]
        try:
            done = subprocess.run(
                command, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=FETCH_LIMIT_S, check=False, env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Missing(f"{self}: {program} {arguments[0]} needs more than {FETCH_LIMIT_S} s") from None
        # apt-get update ends well without a network; only what it says tells
        failed = done.returncode or (arguments[0] == "update" and re.search(r"^(Err:|E:|W: Failed)", done.stdout, re.M))
        if failed:
            lines = [line for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))]
            raise Missing(f"{self}: {program} {arguments[0]} could not be done, a needed package or the network is "
                          f"missing: {' '.join(lines or done.stdout.splitlines())[-500:]}")  # fmt: skip
        return done.stdout

    def __str__(self) -> str:
        return f"Debian {self.suite} {self.architecture}"

    def depends(self, package: str) -> list[str]:
        """The names that the package depends on, directly."""
        return re.findall(r"^\s*\|?(?:Pre)?Depends: ([^\s<]+)$", self._apt("apt-cache", "depends", package), re.M)

    def closure(self, packages: Iterable[str]) -> list[str]:
        """The packages and all they depend on, transitively, recommendations left out."""
        arguments = ("install", "-y", "--no-install-recommends", "--print-uris", *packages)
        return re.findall(r"^'[^']*' ([^_\s]+)_\S+\.deb ", self._apt("apt-get", *arguments), re.M)

    def download(self, packages: Iterable[str]) -> list[Path]:
        """Fetch the packages; apt compares each with the hash in the signed index. Valid inside the context."""
        before = set(self._folder.glob("*.deb"))
        try:
            self._apt("apt-get", "download", *packages)
        except Missing:
            self._update(0)  # the lists named what is no longer there
            self._apt("apt-get", "download", *packages)
        return sorted(set(self._folder.glob("*.deb")) - before)


Member = tuple[tarfile.TarInfo, Callable[[], bytes]]


def members(deb: Path) -> Iterator[Member]:
    """What a package would install: each entry, its name relative to "/", and a function that reads it.

    The function works until the next entry is asked for.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for entry in tar:
                entry.name = os.path.normpath(entry.name).lstrip("/")

                def read(entry: tarfile.TarInfo = entry) -> bytes:
                    file = tar.extractfile(entry)
                    return b"" if file is None else file.read()

                yield entry, read
        process.stdout.read()
    if process.returncode:
        raise Missing(f"dpkg-deb can't read {deb.name}: status {process.returncode}")


def unpack(debs: Iterable[Path], to: Path, wanted: Callable[[str], bool]) -> None:
    """Write the files and symbolic links of packages whose relative names are wanted below `to`."""
    for deb in debs:
        for entry, read in members(deb):
            if not wanted(entry.name) or not (entry.isfile() or entry.issym()):
                continue
            path = to / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry.issym():
                path.symlink_to(entry.linkname)
            else:
                with io.FileIO(path, "w") as file:
                    file.write(read())
                path.chmod(entry.mode & 0o755 | 0o600)

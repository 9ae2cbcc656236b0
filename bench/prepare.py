"""Getting the peers ready under .bench/ (ignored by git): a private venv for the Python ones, gcc for the C ones.

Nothing foreign enters the source tree. A peer that can't be had is left out with the reason; nothing here is fatal.
Each step runs once and leaves its product behind; a failed one leaves a note so that it isn't tried again before
``--prepare`` asks for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
WORKSHOP = PROJECT / ".bench"
BIN = WORKSHOP / "bin"
VENV_PYTHON = WORKSHOP / "venv" / "bin" / "python"
EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")
STEP_TIMEOUT_S = 400

APT_PACKAGES = (
    "bindfs", "fio", "fuse3", "git", "gcc", "g++", "libfuse3-dev", "liburing-dev", "libnuma-dev", "ninja-build",
    "pkg-config",
)  # fmt: skip


class PrepareError(Exception):
    """A peer can't be made ready; the message is the reason shown in the report."""


def _run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a command; PrepareError with the last line of its complaint if it fails."""
    try:
        done = subprocess.run(
            [str(arg) for arg in argv], cwd=cwd, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise PrepareError(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise PrepareError(f"{argv[0]} took more than {STEP_TIMEOUT_S} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise PrepareError(f"{Path(str(argv[0])).name} failed: {lines[-1][:120]}")
    return done.stdout


def _fuse_flags() -> list[str]:
    return _run("pkg-config", "--cflags", "--libs", "fuse3").split()


def make_client() -> None:
    """The timing client in C."""
    _run("gcc", "-O2", "-Wall", "-o", BIN / "client", HERE / "client.c")


def make_passthrough_ll() -> None:
    """libfuse's low-level C example, from the sources that Debian's libfuse3-dev installs."""
    source = EXAMPLES / "passthrough_ll.c"
    if not source.exists():
        raise PrepareError(f"{source} is missing (apt install libfuse3-dev)")
    _run("gcc", "-O2", "-w", source, "-o", BIN / "passthrough_ll", *_fuse_flags())


def _debian_release() -> str:
    """The name of this Debian release; PrepareError on another system."""
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        if line.startswith("VERSION_CODENAME=") and Path("/etc/debian_version").exists():
            return line.partition("=")[2].strip('"')
    raise PrepareError("not a Debian system: no source package to build from")


def _fuse3_source(release: str) -> Path:
    """The unpacked sources of a Debian release's package fuse3."""
    work = WORKSHOP / f"fuse3-{release}"
    lists = work / "lists" / "partial"
    lists.mkdir(parents=True, exist_ok=True)
    (work / "sources.list").write_text(f"deb-src http://deb.debian.org/debian {release} main\n", encoding="utf-8")
    apt = ["apt-get", "-q", "-o", f"Dir::Etc::sourcelist={work}/sources.list", "-o", "Dir::Etc::sourceparts=-",
           "-o", f"Dir::State::lists={work}/lists", "-o", "APT::Sandbox::User=root"]  # fmt: skip
    _run(*apt, "update", cwd=work)
    _run(*apt, "source", "--download-only", "fuse3", cwd=work)
    tarballs = sorted(work.glob("fuse3_*.orig.tar.[gx]z"))
    if not tarballs:
        raise PrepareError("no source tarball of fuse3 came")
    _run("tar", "-xf", tarballs[-1], cwd=work)
    sources = sorted(work.glob("fuse*/example/passthrough_hp.cc"))
    if not sources:
        raise PrepareError("passthrough_hp.cc is not in the source package")
    return sources[-1].parents[1]


def make_passthrough_hp() -> None:
    """libfuse's high-performance C++ example, from Debian's source package (not among the installed examples)."""
    source = _fuse3_source(_debian_release()) / "example" / "passthrough_hp.cc"
    _run("g++", "-O2", "-w", source, "-o", BIN / "passthrough_hp", *_fuse_flags(), "-lpthread")


def make_passthrough_hp_uring() -> None:
    """The same with a libfuse that knows io_uring (3.18): from Debian's newest sources, linked statically."""
    _debian_release()
    for library in ("liburing", "numa"):
        _run("pkg-config", "--exists", "--print-errors", library)
    source = _fuse3_source("sid")
    _pip("meson")
    build = source / "build"
    shutil.rmtree(build, ignore_errors=True)
    _run(VENV_PYTHON.with_name("meson"), "setup", build, "-Ddefault_library=static", "-Dtests=false", "-Dutils=false",
         "--buildtype=release", cwd=source)  # fmt: skip
    _run("ninja", "-C", build, "example/passthrough_hp")
    shutil.copyfile(build / "example" / "passthrough_hp", BIN / "passthrough_hp_uring")
    (BIN / "passthrough_hp_uring").chmod(0o755)


def _pip(package: str) -> None:
    if not VENV_PYTHON.exists():
        _run(sys.executable, "-m", "venv", WORKSHOP / "venv")
    _run(VENV_PYTHON, "-m", "pip", "install", "-q", package)


def make_mfusepy() -> None:
    """mfusepy from PyPI."""
    _pip("mfusepy")
    _run(VENV_PYTHON, "-c", "import mfusepy")


def make_pyfuse3() -> None:
    """pyfuse3 from PyPI: a source distribution, so it needs gcc, pkg-config and libfuse3-dev."""
    _pip("pyfuse3")
    _run(VENV_PYTHON, "-c", "import pyfuse3")


def make_pyfuse3_example() -> None:
    """pyfuse3's own pass-through example, which only its source distribution contains."""
    make_pyfuse3()
    work = WORKSHOP / "pyfuse3-source"
    work.mkdir(exist_ok=True)
    _run(VENV_PYTHON, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "pyfuse3", "pyfuse3", cwd=work)
    for tarball in sorted(work.glob("pyfuse3-*.tar.gz")):
        _run("tar", "-xf", tarball, cwd=work)
    found = sorted(work.glob("pyfuse3-*/examples/passthroughfs.py"))
    if not found:
        raise PrepareError("passthroughfs.py is not in pyfuse3's source distribution")
    shutil.copyfile(found[-1], BIN / "passthroughfs.py")


STEPS: dict[str, Callable[[], None]] = {
    "client": make_client,
    "passthrough_ll": make_passthrough_ll,
    "passthrough_hp": make_passthrough_hp,
    "passthrough_hp_uring": make_passthrough_hp_uring,
    "mfusepy": make_mfusepy,
    "pyfuse3": make_pyfuse3,
    "pyfuse3-example": make_pyfuse3_example,
}


def ready(name: str, *, again: bool = False) -> str | None:
    """Make one peer (or the client) ready: None, or the reason why it can't be had."""
    BIN.mkdir(parents=True, exist_ok=True)
    (WORKSHOP / ".gitignore").write_text("*\n", encoding="utf-8")
    done, failed = WORKSHOP / f"{name}.done", WORKSHOP / f"{name}.failed"
    sources = [HERE / "client.c"] if name == "client" else []
    newer = any(done.exists() and path.stat().st_mtime > done.stat().st_mtime for path in sources)
    if done.exists() and not newer and not again:
        return None
    if failed.exists() and not again:
        return failed.read_text(encoding="utf-8").strip() + " (retry with --prepare)"
    done.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    try:
        STEPS[name]()
    except PrepareError as error:
        failed.write_text(f"{error}\n", encoding="utf-8")
        return str(error)
    done.touch()
    return None


def timing_client() -> tuple[list[str], str]:
    """The command line of the timing client and its name for the report."""
    if shutil.which("gcc") and ready("client") is None:
        return [str(BIN / "client")], "C"
    return [sys.executable, str(HERE / "client.py")], "Python (no C compiler found)"

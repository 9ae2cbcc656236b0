"""`transfuse virtiofsd`: every option is honoured or refused by name, and what is honoured has its effect."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.runs import ACTIVATE, LIMIT_S, Cli, environment, started
from transfuse.cli.errors import USAGE, CommandError
from transfuse.cli.virtiofsd import COMPAT, NO_ACLS, OPTIONS, capabilities, read, words
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode
from transports.vhost_user.raw_frontend import Answer, RawFrontend

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "virtiofsd.md"
# Options of virtiofsd 1.14, by its --help; --help and --version besides.
VIRTIOFSD_1_14 = """
shared-dir tag socket-group socket-path fd socket log-level syslog thread-pool-size rlimit-nofile modcaps sandbox
seccomp cache allow-mmap inode-file-handles xattrmap uid-map gid-map translate-uid translate-gid print-capabilities
allow-direct-io announce-submounts no-announce-submounts no-killpriv-v2 killpriv-v2 no-readdirplus writeback xattr
posix-acl security-label preserve-noatime readonly migration-mode migration-on-error migration-verify-handles
migration-confirm-paths
"""


# What a guest's kernel offers, as far as the tests ask.
WANTED = (
    f.FUSE_INIT_EXT | f.FUSE_MAX_PAGES | f.FUSE_BIG_WRITES | f.FUSE_POSIX_ACL | f.FUSE_DONT_MASK | f.FUSE_SUBMOUNTS
    | f.FUSE_HANDLE_KILLPRIV_V2 | f.FUSE_WRITEBACK_CACHE | f.FUSE_POSIX_LOCKS | f.FUSE_FLOCK_LOCKS
    | f.FUSE_DO_READDIRPLUS | f.FUSE_READDIRPLUS_AUTO | f.FUSE_SETXATTR_EXT
)  # fmt: skip


def turned(*given: tuple[str, str], fd: int | None = None) -> list[str]:
    return words(read([("shared-dir", "/"), ("socket-path", "/s"), *given]), fd)


def refused(*given: tuple[str, str]) -> str:
    with pytest.raises(CommandError) as caught:
        turned(*given)
    assert caught.value.code == USAGE
    return str(caught.value)


# -- the table --


def test_every_option_of_virtiofsd_is_known() -> None:
    assert {option.name for option in OPTIONS} | {"print-capabilities"} == set(VIRTIOFSD_1_14.split())


def test_the_page_has_the_table() -> None:
    rows = [(o.name, f"`--{o.name}`{f' `{o.takes}`' if o.takes else ''}", o.what) for o in OPTIONS]
    shown = re.findall(r"^\| (`--([a-z0-9-]+)`[^|]*?) \| (.*?) \|$", PAGE.read_text(), re.M)
    assert [(name, cell, what) for cell, name, what in shown] == rows


def test_the_page_has_the_words_of_o() -> None:
    listed = re.search(r"^## -o\n(.*?)\n## ", PAGE.read_text(), re.S | re.M)
    assert listed is not None
    assert set(re.findall(r"`([a-z0-9_]+)`", listed[1])) == {*COMPAT, "debug"}


@pytest.mark.parametrize("name", [option.name for option in OPTIONS if option.refused])
def test_what_is_refused_is_named(name: str) -> None:
    assert refused((name, "x")).startswith(f"option --{name}: can't be honoured; ")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("security-label", "always", "labels are not set when files are made"),
        ("security-label", "auto", "labels are not set when files are made"),
        ("sandbox", "chroot", "use landlock"),
        ("migration-mode", "file-handles", "use find-paths"),
        ("migration-on-error", "abort", "use guest-error"),
        ("cache", "none", "takes auto, always, metadata, never"),
        ("thread-pool-size", "257", "takes a number, 0 to 256"),
        ("xattrmap", ":bad:", "rule 1, character 6: no ':' behind the scope"),
        ("log-level", "loud", "takes off, error"),
    ],
)
def test_values_that_can_not_be_honoured_are_named(name: str, value: str, why: str) -> None:
    text = refused((name, value))
    assert text.startswith(f"option --{name} {value}: can't be honoured; ") and why in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "virtiofsd: --shared-dir is missing"),
        ([("shared-dir", "/no/such")], "--shared-dir /no/such: no such directory"),
        ([("shared-dir", "/")], "virtiofsd: --socket-path is missing"),
        ([("shared-dir", "/"), ("socket-path", "s"), ("fd", "3")], "options --socket-path and --fd: name two sockets"),
        ([("-o", "timeout=3")], "option -o timeout=3: can't be honoured; -o takes source"),
        ([("-o", "source")], "option -o source: needs a value; give it as -o source=..."),
        (
            [("shared-dir", "/"), ("fd", "3"), ("posix-acl", "auto"), ("translate-uid", "map:0:0:1")],
            "option --posix-acl: excludes --translate-uid and -gid",
        ),
    ],
)
def test_what_is_missing_or_excluded_is_named(given: list[tuple[str, str]], text: str) -> None:
    with pytest.raises(CommandError) as caught:
        words(read(given), None)
    assert str(caught.value).startswith(text)


# -- what the options become --


def test_defaults_are_virtiofsds() -> None:
    assert turned() == [
        "/", "--once", "--socket-path=/s", "--cache", "auto", "--negative-timeout=0", "-oposix_acl=no", "-oxattr=no",
        "-oflock=no", "-oposix_locks=no", "-osubmounts=yes", "-ofile_handles=prefer", "-okeep_noatime=no",
        "-oo_direct=no", "-odirect_mmap=no", "-okillpriv=no",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([("cache", "metadata")], ["always", "--negative-timeout=0", "--direct-io"]),
        ([("cache", "never")], ["never"]),
        ([("-o", "cache=none")], ["never"]),
        ([("allow-mmap", "")], ["-odirect_mmap=yes"]),
        ([("writeback", "")], ["--writeback"]),
        ([("no-readdirplus", "")], ["-oreaddirplus=no"]),
        ([("allow-direct-io", "")], ["-oo_direct=yes"]),
        ([("xattr", "")], ["-oxattr=yes", f"--xattrmap={NO_ACLS}:ok:all:::"]),
        ([("xattrmap", ":map::user.v.:")], ["-oxattr=yes", f"--xattrmap={NO_ACLS}:map::user.v.:"]),
        ([("posix-acl", "auto")], ["-oposix_acl=yes", "-oxattr=yes"]),
        ([("posix-acl", "always")], ["--require-acl"]),
        ([("posix-acl", "never")], ["-oposix_acl=no"]),
        ([("security-label", "never")], ["-oxattr=no"]),
        ([("killpriv-v2", "")], ["-okillpriv=yes"]),
        ([("killpriv-v2", ""), ("no-killpriv-v2", "")], ["-okillpriv=no"]),
        ([("no-announce-submounts", "")], ["-osubmounts=no"]),
        ([("no-announce-submounts", ""), ("announce-submounts", "")], ["-osubmounts=yes"]),
        ([("inode-file-handles", "fallback")], ["-ofile_handles=prefer"]),
        ([("inode-file-handles", "mandatory")], ["-ofile_handles=mandatory"]),
        ([("sandbox", "namespace"), ("seccomp", "trap")], ["--sandbox=namespace", "--seccomp=trap"]),
        ([("modcaps", "-mknod")], ["--modcaps=-mknod"]),
        ([("rlimit-nofile", "4096")], ["--rlimit-nofile=4096"]),
        ([("preserve-noatime", "")], ["-okeep_noatime=yes"]),
        ([("readonly", "")], ["--read-only"]),
        ([("tag", "t"), ("socket-group", "g")], ["--socket-group=g", "--tag=t"]),
        ([("thread-pool-size", "7")], ["--workers", "7"]),
        ([("thread-pool-size", "0")], ["--once"]),
        ([("log-level", "trace")], ["--debug"]),
        ([("-d", "")], ["--debug"]),
        ([("-f", "")], ["--once"]),
        ([("migration-mode", "find-paths"), ("migration-on-error", "guest-error")], ["--once"]),
        ([("translate-uid", "map:0:1:1"), ("translate-uid", "forbid-guest:9:1")],
         ["--translate-uid=map:0:1:1", "--translate-uid=forbid-guest:9:1"]),
        ([("-o", "xattr,no_xattr,readdirplus,no_readdirplus,source=/")], ["-oxattr=no", "-oreaddirplus=no"]),
        ([("-o", "writeback,no_writeback,no_posix_lock,no_flock,debug")], ["--debug"]),
        ([("-o", "posix_acl,sandbox=none")], ["--sandbox=none", "--require-acl"]),
    ],
)  # fmt: skip
def test_an_option_becomes_words_for_serve(given: list[tuple[str, str]], expected: list[str]) -> None:
    found = turned(*given)
    assert [word for word in expected if word not in found] == []


def test_an_unlimited_number_of_files_is_the_present_one() -> None:
    assert re.search(r"--rlimit-nofile=[1-9]\d+", " ".join(turned(("rlimit-nofile", "0"))))


def test_the_sockets_old_name_and_an_inherited_one() -> None:
    assert "--socket-path=/t" in words(read([("shared-dir", "/"), ("socket", "/t")]), None)
    assert "--fd=5" in words(read([("shared-dir", "/"), ("fd", "5")]), None)
    assert "--fd=3" in words(read([("shared-dir", "/")]), 3)
    assert "--socket-path=/s" in turned(fd=3)


# -- what managers read --


def test_capabilities_are_those_of_a_filesystem(cli: Cli) -> None:
    said = cli("virtiofsd", "--print-capabilities")
    assert said.code == 0 and json.loads(said.out) == capabilities()
    assert capabilities()["type"] == "fs" and "separate-options" in capabilities()["features"]  # type: ignore[operator]


def test_the_description_names_a_program_that_takes_options_alone(cli: Cli) -> None:
    found = json.loads(cli("virtiofsd", "--print-description").out)
    assert found["type"] == "fs" and found["features"] == capabilities()["features"]
    assert os.path.isabs(found["binary"])
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[os.path.basename(found["binary"])] == "transfuse.cli.virtiofsd:main"


def test_the_program_of_its_own_takes_options_alone() -> None:
    program = "import sys; sys.argv[1:] = ['--print-capabilities']\nfrom transfuse.cli.virtiofsd import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert json.loads(done.stdout) == capabilities()


def test_an_unknown_option_is_one_line(cli: Cli) -> None:
    said = cli("virtiofsd", "--no-such-option")
    assert said.code == 1 and "unrecognized arguments: --no-such-option" in said.err and said.err.count("\n") == 1


# -- in force --


class Guest(RawFrontend):
    """Asks what the tests ask."""

    def flags(self) -> int:
        out = self.init(WANTED)
        return int(out.flags | out.flags2 << 32)

    def node(self, name: bytes) -> int:
        return int(self.lookup(name).struct(w.EntryOut).nodeid)

    def setxattr(self, nodeid: int, name: bytes, value: bytes) -> Answer:
        args = w.SetxattrIn(size=len(value))
        return self.ask(Opcode.SETXATTR, args, name + b"\0" + value, nodeid=nodeid)


@contextmanager
def guest(data: Path, sock: Path, *options: str) -> Iterator[tuple[Guest, int]]:
    """A front-end with INIT answered, and the flags that were agreed on."""
    with started("virtiofsd", "--shared-dir", data, "--socket-path", sock, *options) as (process, _):
        frontend = Guest(sock)
        try:
            frontend.handshake()
            frontend.begin()
            yield frontend, frontend.flags()
        finally:
            frontend.close()
        assert process.wait(LIMIT_S) == 0  # as virtiofsd, it ends with its machine


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "sock"


def test_without_options_there_are_no_attributes(data: Path, sock: Path) -> None:
    with guest(data, sock) as (frontend, flags):
        assert frontend.setxattr(frontend.node(b"a.txt"), b"user.a", b"1").errno == errno.ENOSYS
        assert not flags & (f.FUSE_POSIX_ACL | f.FUSE_HANDLE_KILLPRIV_V2 | f.FUSE_WRITEBACK_CACHE)
        assert not flags & (f.FUSE_POSIX_LOCKS | f.FUSE_FLOCK_LOCKS)
        assert flags & f.FUSE_SUBMOUNTS and flags & f.FUSE_DO_READDIRPLUS
    assert not sock.exists()


@pytest.mark.needs("root")
def test_options_are_in_force(data: Path, sock: Path) -> None:
    options = ["--xattrmap=:map::user.virtiofs.:", "--translate-uid=map:77:0:1", "--no-readdirplus", "--killpriv-v2"]
    options += ["--no-announce-submounts", "--writeback", "--cache=always"]
    os.chown(data / "a.txt", 0, 5)
    with guest(data, sock, *options) as (frontend, flags):
        entry = frontend.lookup(b"a.txt").struct(w.EntryOut)
        assert (entry.attr.uid, entry.attr.gid, entry.entry_valid) == (77, 5, 86400)
        assert frontend.setxattr(entry.nodeid, b"user.a", b"1").errno == 0
        assert frontend.setxattr(entry.nodeid, b"system.posix_acl_access", b"1").errno == errno.ENOTSUP
        assert flags & f.FUSE_HANDLE_KILLPRIV_V2 and flags & f.FUSE_WRITEBACK_CACHE
        assert not flags & (f.FUSE_DO_READDIRPLUS | f.FUSE_SUBMOUNTS)
    assert os.getxattr(data / "a.txt", "user.virtiofs.user.a") == b"1"


def test_readonly_is_erofs(data: Path, sock: Path) -> None:
    with guest(data, sock, "--readonly", "--xattr") as (frontend, _):
        assert frontend.setxattr(frontend.node(b"a.txt"), b"user.a", b"1").errno == errno.EROFS


def test_acls_are_agreed_on_when_asked_for(data: Path, sock: Path) -> None:
    with guest(data, sock, "--posix-acl=auto") as (_, flags):
        assert flags & f.FUSE_POSIX_ACL


def test_a_socket_of_the_service_manager_is_served(data: Path, sock: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(sock))
        listening.listen()
        words = [sys.executable, "-c", ACTIVATE, str(listening.fileno()), "-m", "transfuse", "virtiofsd"]
        process = subprocess.Popen(
            [*words, "--shared-dir", str(data)],
            stdout=subprocess.PIPE, text=True, env=environment(), pass_fds=[listening.fileno()],
        )  # fmt: skip
        try:
            assert process.stdout is not None and "vhost-user:socket 3 " in process.stdout.readline()
            frontend = Guest(sock)
            frontend.handshake()
            frontend.begin()
            frontend.flags()
            assert stat.S_ISREG(frontend.lookup(b"a.txt").struct(w.EntryOut).attr.mode)
            frontend.close()
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
            process.communicate()

"""Measures virtio-fs servers side by side: `python -m bench.virtiofs` writes docs/benchmarks-virtiofs.md.

Every workload runs on every server in turn, then the next round; the figure is the median of the rounds. A server is
started anew for each, on a tmpfs directory, so that all begin alike. The load generator (ringload.c) submits prepared
requests, as a Linux guest lays them out, and counts answers; wrong ones fail the cell. Server CPU is that of all its
threads, per request.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.virtiofs.device import Device, Plan
from transfuse.wire.opcodes import Opcode

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
WORKSHOP = PROJECT / ".bench"
C_VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
RUST_VIRTIOFSD = "TRANSFUSE_VIRTIOFSD"
"""Names a command that runs the Rust virtiofsd, if one is at hand."""
START_TIMEOUT_S = 20.0
O_RDWR, O_RDONLY, O_CREAT = 2, 0, 0o100
LISTED = 20_000
MADE = 3_000


@dataclass(frozen=True)
class Server:
    """How one server is started: words of its command, `{socket}` and `{source}` replaced."""

    name: str
    command: Sequence[str]
    env: dict[str, str]
    what: str


def servers() -> list[Server]:
    """Those that are here."""
    serve = [sys.executable, "-m", "transfuse", "serve", "{source}", "vhost-user:{socket}", "--sandbox", "none"]
    found = [
        Server("transfuse", serve, {"TRANSFUSE_NATIVE": "require"}, "compiled form"),
        Server("plain", serve, {"TRANSFUSE_NATIVE": "0"}, "pure Python"),
    ]
    rust = os.environ.get(RUST_VIRTIOFSD)
    if rust:
        words = [*rust.split(), "--socket-path={socket}", "--shared-dir={source}", "--sandbox=none", "--seccomp=none"]
        found.append(Server("virtiofsd", [*words, "--inode-file-handles=never"], {}, "Rust, no file handles"))
    if C_VIRTIOFSD.exists():
        words = [str(C_VIRTIOFSD), "-f", "--socket-path={socket}", "-o", "source={source}", "-o", "sandbox=chroot"]
        found.append(Server("virtiofsd-c", [*words, "-o", "log_level=err"], {}, "QEMU's old one in C"))
    return found


@contextlib.contextmanager
def running(server: Server, source: Path, folder: Path, cpus: set[int]) -> Iterator[tuple[Path, int]]:
    """The server's socket and pid."""
    path = folder / "fs.sock"
    path.unlink(missing_ok=True)
    words = [word.format(socket=path, source=source) for word in server.command]
    with (folder / "log").open("w+") as log:
        child = subprocess.Popen(
            words, cwd=PROJECT, env={**os.environ, **server.env}, stdout=log, stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not path.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"does not start: {log.read().strip()[-200:]}")
                time.sleep(0.01)
            time.sleep(0.05)
            yield path, child.pid
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total


# -- workloads ---------------------------------------------------------------------------------------------------------

Prepare = Callable[[Device, Path], Plan]


@dataclass(frozen=True)
class Workload:
    """`count` requests, `depth` of them under way."""

    name: str
    prepare: Prepare
    count: int
    depth: int
    once: bool = False
    """Each request can be made only once."""


def root_getattr(device: Device, source: Path) -> Plan:
    plan = Plan()
    for _ in range(32):
        device.prepare(plan, Opcode.GETATTR, 1, (0, 0))
    return plan


def lookups(device: Device, source: Path) -> Plan:
    for n in range(32):
        (source / f"look-{n}").touch()
    plan = Plan()
    for n in range(32):
        device.prepare(plan, Opcode.LOOKUP, 1, (), (b"look-%d" % n,))
    return plan


def data(opcode: Opcode, size: int) -> Prepare:
    def prepare(device: Device, source: Path) -> Plan:
        file_bytes = 64 << 20
        with (source / "data").open("wb") as file:
            file.write(os.urandom(1 << 20) * (file_bytes >> 20))
        nodeid = device.ask(Opcode.LOOKUP, 1, (), (b"data",)).values[0]
        fh = device.ask(Opcode.OPEN, nodeid, (O_RDWR, 0)).values[0]
        plan = Plan()
        for n in range(min(32, (48 << 20) // size)):
            offset = n * 7 * size % file_bytes
            args = (fh, offset, size, 0, 0, 0)
            device.prepare(plan, opcode, nodeid, args, payload=os.urandom(size) if opcode == Opcode.WRITE else b"")
        return plan

    return prepare


def listing(device: Device, source: Path) -> Plan:
    """READDIRPLUS of a large directory from the beginning: as many entries as fit 128 KiB."""
    big = source / "big"
    big.mkdir()
    for n in range(LISTED):
        (big / f"entry-{n:06}").touch()
    nodeid = device.ask(Opcode.LOOKUP, 1, (), (b"big",)).values[0]
    plan = Plan()
    for _ in range(4):
        fh = device.ask(Opcode.OPENDIR, nodeid, (O_RDONLY, 0)).values[0]
        device.prepare(plan, Opcode.READDIRPLUS, nodeid, (fh, 0, 128 << 10, 0, 0, 0))
    return plan


def creations(device: Device, source: Path) -> Plan:
    plan = Plan()
    for n in range(MADE):
        args = (O_RDWR | O_CREAT, 0o100644, 0o022, 0)
        device.prepare(plan, Opcode.CREATE, 1, args, (b"made-%d" % n,))
    return plan


def removals(device: Device, source: Path) -> Plan:
    plan = Plan()
    for n in range(MADE):
        (source / f"gone-{n}").touch()
        device.ask(Opcode.LOOKUP, 1, (), (b"gone-%d" % n,))  # as Linux does; some servers rely on it
        device.prepare(plan, Opcode.UNLINK, 1, (), (b"gone-%d" % n,))
    return plan


WORKLOADS = (
    Workload("GETATTR, depth 1", root_getattr, 20_000, 1),
    Workload("GETATTR, depth 16", root_getattr, 40_000, 16),
    Workload("LOOKUP, depth 1", lookups, 20_000, 1),
    Workload("LOOKUP, depth 16", lookups, 40_000, 16),
    Workload("READ 4 KiB, depth 16", data(Opcode.READ, 4096), 40_000, 16),
    Workload("WRITE 4 KiB, depth 16", data(Opcode.WRITE, 4096), 40_000, 16),
    Workload("READ 128 KiB, depth 4", data(Opcode.READ, 128 << 10), 4_000, 4),
    Workload("WRITE 128 KiB, depth 4", data(Opcode.WRITE, 128 << 10), 4_000, 4),
    Workload("READ 1 MiB, depth 4", data(Opcode.READ, 1 << 20), 600, 4),
    Workload("WRITE 1 MiB, depth 4", data(Opcode.WRITE, 1 << 20), 600, 4),
    Workload("READDIRPLUS 128 KiB of 20,000", listing, 200, 1),
    Workload("CREATE", creations, MADE, 1, once=True),
    Workload("UNLINK", removals, MADE, 1, once=True),
)


@dataclass
class Sample:
    """One run: µs per request, and of the server's CPU."""

    us: float
    cpu_us: float


def connected(path: Path) -> Device:
    """A device on a socket that may have been bound a moment before it listens."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return Device(path)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def measure(server: Server, workload: Workload, where: Path, program: Path, cpus: set[int], polling: bool) -> Sample:
    """Run one cell once."""
    folder = Path(tempfile.mkdtemp(prefix="transfuse-bench-", dir=where))
    try:
        source = folder / "source"
        source.mkdir()
        with running(server, source, folder, cpus) as (path, pid):
            device = connected(path)
            try:
                plan = workload.prepare(device, source)
                if not workload.once:
                    device.load(program, plan, max(32, workload.count // 10), workload.depth, polling=polling)
                before = cpu_ns(pid)
                requests, nanoseconds, _ = device.load(program, plan, workload.count, workload.depth, polling=polling)
                return Sample(nanoseconds / requests / 1000, (cpu_ns(pid) - before) / requests / 1000)
            finally:
                device.close()
    finally:
        shutil.rmtree(folder)


def table(rows: list[list[str]], head: list[str]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def report(cells: dict[tuple[str, str], list[Sample]], failed: dict[tuple[str, str], str], chosen: list[Server],
           workloads: Sequence[Workload], rounds: int, how: str) -> str:  # fmt: skip
    """The page."""
    def median(workload: str, server: str, field: str) -> float | None:
        samples = cells.get((workload, server))
        return statistics.median(getattr(sample, field) for sample in samples) if samples else None

    peer = next((server.name for server in chosen if server.name.startswith("virtiofsd")), None)
    times, cpu, ratios = [], [], []
    for workload in workloads:
        row, cpu_row, ratio_row = [workload.name], [workload.name], [workload.name]
        theirs = median(workload.name, peer, "us") if peer else None
        for server in chosen:
            mine = median(workload.name, server.name, "us")
            row.append("–" if mine is None else f"{mine:.3g}")
            mine_cpu = median(workload.name, server.name, "cpu_us")
            cpu_row.append("–" if mine_cpu is None else f"{mine_cpu:.3g}")
            ratio_row.append("–" if mine is None or theirs is None else f"×{theirs / mine:.2f}")
        times.append(row)
        cpu.append(cpu_row)
        ratios.append(ratio_row)
    head = ["workload", *(server.name for server in chosen)]
    subjects = "\n".join(f"| {server.name} | {server.what} |" for server in chosen)
    facts = "\n".join(f"| {name} | {value} |" for name, value in machine.describe("C", "one tmpfs directory"))
    failures = "\n".join(f"- {name} on {server}: {why}" for (name, server), why in failed.items()) or "none"
    return f"""# virtio-fs servers side by side

Written by `python -m bench.virtiofs`: one front-end, the same prepared requests, every server in turn; medians of
{rounds} rounds; {how}. The machine is noisy: read the ratios. "Rate" is how many times as many requests per second as
{peer or "the peer"}.

|  |  |
|---|---|
{facts}

| server | what it is |
|---|---|
{subjects}

## µs per request

{table(times, head)}

## Rate

{table(ratios, head)}

## Server CPU, µs per request

{table(cpu, head)}

## Failed cells

{failures}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report."""
    known = servers()
    parser = argparse.ArgumentParser(prog="bench.virtiofs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--only", metavar="TEXT", help="workloads whose name contains TEXT")
    parser.add_argument("--servers", metavar="LIST", help=f"of {', '.join(server.name for server in known)}")
    parser.add_argument("--one-cpu", action="store_true", help="server and load on one CPU")
    parser.add_argument("--polling", action="store_true", help="the load generator never sleeps")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--doc", type=Path, metavar="FILE", help="default: docs/benchmarks-virtiofs.md if complete")
    options = parser.parse_args(argv)
    chosen = [server for server in known if not options.servers or server.name in options.servers.split(",")]
    workloads = [workload for workload in WORKLOADS if not options.only or options.only in workload.name]
    if not chosen or not workloads or options.rounds < 1:
        parser.error("nothing is chosen")
    WORKSHOP.mkdir(exist_ok=True)
    program = WORKSHOP / "ringload"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", program, HERE / "ringload.c"], check=True)
    cpus = {min(os.sched_getaffinity(0))} if options.one_cpu else set(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus)
    cells: dict[tuple[str, str], list[Sample]] = {}
    failed: dict[tuple[str, str], str] = {}
    for round_ in range(options.rounds):
        for workload in workloads:
            for server in chosen:
                try:
                    sample = measure(server, workload, options.tmpfs, program, cpus, options.polling)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    failed[workload.name, server.name] = str(error)[:200]
                    print(f"{round_ + 1}  {workload.name:32} {server.name:12} failed: {error}", flush=True)
                    continue
                cells.setdefault((workload.name, server.name), []).append(sample)
                print(f"{round_ + 1}  {workload.name:32} {server.name:12} {sample.us:9.2f} µs"
                      f"  (server CPU {sample.cpu_us:.2f})", flush=True)  # fmt: skip
    how = f"server and load on {'one CPU' if options.one_cpu else f'{len(cpus)} CPUs'}" + (
        ", the load polls" if options.polling else ", eventfds"
    )
    page = report(cells, failed, chosen, workloads, options.rounds, how)
    doc = options.doc
    if doc is None and len(workloads) == len(WORKLOADS) and not options.servers:
        doc = PROJECT / "docs" / "benchmarks-virtiofs.md"
    if doc is not None:
        doc.write_text(page)
    print(page)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

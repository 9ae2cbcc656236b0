"""Real Linux guests on what transfuse serves: kernels of several architectures, page sizes and byte orders under QEMU.

Theory: a boot costs seconds of emulated CPU, so one guest of each machine serves many tests. What a guest did is judged
twice: by itself, and by what is in the served directory afterwards. Every script also fails if the guest's kernel
complains of anything, and the back-end must be alive at the end and end well on SIGTERM.

"virtiofsd-c" runs the tests on QEMU 7.2's own back-end, to show what they ask for that it hasn't got (soak).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from guests import images
from guests.guest import Guest
from guests.machine import MACHINES, Filesystem
from guests.packages import Missing
from guests.relay import Relay
from guests.servers import BackEnd, serving
from interop import trees
from transfuse.testing.posix import probe

pytestmark = [pytest.mark.interop, pytest.mark.needs("root"), pytest.mark.timeout(1200)]

KINDS = ["transfuse", pytest.param("virtiofsd-c", marks=pytest.mark.soak)]
PYTHON = "export PYTHONPATH=/opt/transfuse:/opt/guest TRANSFUSE_NATIVE=0\n"
# Many requests each, which is seconds on an emulated CPU, and nothing that the kind of guest makes different.
SLOW_CASES = (
    "paths.", "readdir.3000_names", "readdir.delete_while_listing", "readdir.create_while_listing", "readdir.walk",
    "readdir.rename_while_listing", "rename.chain_of_replacements", "create.many_files", "unlink.create_unlink_cycle",
    "link.500_links", "append.two_processes_lose_nothing", "read_write.random_overwrites",
)  # fmt: skip
# What depends on the architecture: flags, structures, page sizes.
CASES_OF_AN_ARCHITECTURE = ("open.", "mappings.", "locks.", "statvfs.", "xattr.", "times.")
# FUSE has no request for the first two; Linux 6.1, as a client, has no O_TMPFILE (6.2) and no birth time (6.6) either.
NOT_IN_THE_GUEST = {"COLLAPSE_RANGE", "INSERT_RANGE", "TMPFILE", "BTIME"}


@dataclass(slots=True)
class Share:
    """A guest, the back-end it mounts from on /mnt, and the directory behind that."""

    guest: Guest
    backend: BackEnd
    source: Path

    def python(self, command: str, timeout_s: float = 300) -> dict[str, object]:
        """Run one of the guest's own programs (tests/guests/inside); the JSON in its last line."""
        outcome = self.guest.run(f"{PYTHON}python3 /opt/guest/{command}", timeout_s=timeout_s)
        found = json.loads(outcome.text.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    def sees(self, path: str) -> str:
        """A file's contents, as the guest sees them."""
        return self.guest.run(f"cat {path}").text


@dataclass(slots=True)
class Cases:
    """What POSIX cases found in a guest."""

    passed: list[str]
    failures: list[str]
    missing: dict[str, str]
    """Needs that the mount does not meet, with the reason."""


def run_cases(share: Share, name: str, arguments: str, timeout_s: float = 900) -> Cases:
    """Run POSIX cases in a new directory of the mount."""
    share.guest.run(f"mkdir /mnt/{name}")
    found = share.python(f"cases.py /mnt/{name} {arguments}", timeout_s)
    outcomes, missing = found["outcomes"], found["missing"]
    assert isinstance(outcomes, list) and isinstance(missing, dict)
    return Cases(
        [name for name, status, _ in outcomes if status == "pass"],
        [f"{name}: {why}" for name, status, why in outcomes if status == "fail"],
        missing,
    )


@contextmanager
def skipping_what_is_missing() -> Iterator[None]:
    try:
        yield
    except Missing as why:
        pytest.skip(str(why))


@contextmanager
def shared(
    kind: str,
    machine: str,
    source: Path,
    *,
    queues: int = 1,
    cpus: int = 1,
    options: Sequence[str] = (),
) -> Iterator[Share]:
    """Serve the directory and boot a guest that has it on /mnt."""
    source.mkdir(exist_ok=True)
    with skipping_what_is_missing(), serving(kind, source, options) as backend:
        device = backend.filesystem(queues=queues)
        inside = {"opt/guest/trees.py": Path(trees.__file__)}
        with Guest(machine, [device], python=True, files=inside, cpus=cpus) as guest:
            guest.run("mount -t virtiofs fs /mnt")
            yield Share(guest, backend, source)
            guest.run("umount /mnt")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_file(share: Share, seed: int, steps: int) -> None:
    """Random operations on a file in the guest; the host must find what the guest meant to write."""
    found = share.python(f"workout.py file /mnt/worked-on --seed {seed} --steps {steps}")
    path = share.source / "worked-on"
    assert {"size": path.stat().st_size, "sha256": _sha256(path)} == found


def check_tree(share: Share, what: str) -> None:
    """Names of every kind, made on one side ("build": by the guest), must look the same on both."""
    name = f"tree-{what}"
    if what == "show":
        trees.build(share.source / name)
    seen = share.python(f"tree.py {what} /mnt/{name}")
    there = {path: repr(entry) for path, entry in trees.snapshot(share.source / name).items()}
    assert len(there) > 80
    assert seen == json.loads(json.dumps(there))


# ---- one amd64 guest for many tests; the last of them start it over


@pytest.fixture(scope="module", params=KINDS)
def share(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Share]:
    with shared(request.param, "amd64", tmp_path_factory.mktemp("guest") / "source") as found:
        yield found


@pytest.fixture(scope="module")
def cases(share: Share) -> Cases:
    return run_cases(share, "cases", " ".join(f"--without {each}" for each in SLOW_CASES))


def test_guest_finds_posix_behaviour(cases: Cases) -> None:
    assert not cases.failures, "\n".join(cases.failures)
    assert len(cases.passed) > 400


def test_guest_can_do_all_that_its_kernel_and_the_source_can(share: Share, cases: Cases) -> None:
    here = {need.name for need in probe(str(share.source))}
    lost = {name: why for name, why in cases.missing.items() if name not in here | NOT_IN_THE_GUEST}
    assert not lost


@pytest.mark.soak
def test_guest_finds_posix_behaviour_in_the_slow_cases(share: Share) -> None:
    found = run_cases(share, "slow-cases", " ".join(f"--only {each}" for each in SLOW_CASES), timeout_s=1100)
    assert not found.failures, "\n".join(found.failures)
    assert len(found.passed) > 200


def test_file_is_what_the_guest_wrote(share: Share, seed: int) -> None:
    check_file(share, seed, steps=400)


@pytest.mark.parametrize("what", ["build", "show"])
def test_names_of_every_kind_are_the_same_on_both_sides(share: Share, what: str) -> None:
    check_tree(share, what)


def test_many_files_are_there_on_both_sides(share: Share, seed: int) -> None:
    share.guest.run("mkdir /mnt/many")
    found = share.python(f"workout.py many /mnt/many --seed {seed} --count 1000")
    there = share.source / "many"
    assert {str(path.relative_to(there)): _sha256(path) for path in there.glob("d*/*")} == found


def test_guest_sees_what_the_host_changes(share: Share) -> None:
    file = share.source / "from-host"
    file.write_text("one\n")
    assert share.sees("/mnt/from-host") == "one\n"
    file.write_text("two and more\n")
    time.sleep(1.1)  # names and attributes are believed for a second
    assert share.sees("/mnt/from-host") == "two and more\n"
    file.unlink()
    time.sleep(1.1)
    assert share.guest.run("cat /mnt/from-host", check=False).status != 0


def test_mount_can_be_taken_down_and_set_up_again_many_times(share: Share) -> None:
    (share.source / "still").write_text("there\n")
    share.guest.run("for i in $(seq 20); do umount /mnt && mount -t virtiofs fs /mnt && cat /mnt/still || exit 1; done")


def test_read_only_mount_changes_nothing(share: Share) -> None:
    share.guest.run("umount /mnt; mount -t virtiofs -o ro fs /mnt")
    assert share.guest.run("touch /mnt/new", check=False).status != 0
    share.guest.run("umount /mnt; mount -t virtiofs fs /mnt; touch /mnt/new")
    assert (share.source / "new").exists()


def _open_below(backend: BackEnd, folder: Path) -> list[str]:
    assert backend.process is not None
    fds = f"/proc/{backend.process.pid}/fd"
    targets = []
    for name in os.listdir(fds):
        try:
            targets.append(os.readlink(f"{fds}/{name}"))
        except FileNotFoundError:
            continue  # closed meanwhile
    return [target for target in targets if target.startswith(f"{folder}/")]


def test_guest_can_start_over(share: Share) -> None:
    """A reboot, without unmounting before: the same server serves the guest's next life."""
    share.guest.run("echo first life >/mnt/life; sync; exec 5</mnt/life")
    share.guest.reboot()
    share.guest.run("mount -t virtiofs fs /mnt")
    assert share.sees("/mnt/life") == "first life\n"
    share.backend.check_alive()


def test_reset_in_the_midst_of_writing_leaves_nothing_open(share: Share, seed: int) -> None:
    """The reset button: rings stop with requests in them, nothing is closed. The next mount starts from nothing."""
    share.guest.start(f"{PYTHON}python3 /opt/guest/workout.py parallel /mnt --seed {seed} --steps 100000")
    for _ in range(100):
        if _open_below(share.backend, share.source):
            break
        time.sleep(0.2)
    time.sleep(1)
    assert _open_below(share.backend, share.source)
    share.guest.reset()
    share.guest.run("mount -t virtiofs fs /mnt; ls /mnt >/dev/null")
    assert len(_open_below(share.backend, share.source)) < 3
    check_file(share, seed, steps=50)
    share.backend.check_alive()


# ---- other machines


@pytest.mark.parametrize("machine", ["arm64", "arm64-16k", "ppc64el", "s390x"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures_page_sizes_and_byte_orders(kind: str, machine: str, tmp_path: Path, seed: int) -> None:
    """Everything in one, since a boot is dear: pages and byte order, files, names of every kind, POSIX behaviour."""
    with shared(kind, machine, tmp_path / "source") as share:
        said = share.guest.run("python3 -c 'import mmap, sys; print(mmap.PAGESIZE, sys.byteorder)'").text.split()
        assert said == [str(MACHINES[machine].page_size), MACHINES[machine].byte_order]
        check_file(share, seed, steps=200)
        check_tree(share, "build")
        check_tree(share, "show")
        found = run_cases(share, "cases", " ".join(f"--only {each}" for each in CASES_OF_AN_ARCHITECTURE))
        assert not found.failures, "\n".join(found.failures)
        assert len(found.passed) > 90


def test_every_cpu_uses_a_queue_of_its_own(tmp_path: Path, seed: int) -> None:
    """Linux 6.12 with 4 CPUs and 4 request queues: each has interrupts, and what 4 processes write is right."""
    with shared("transfuse", "amd64-6.12", tmp_path / "source", queues=4, cpus=4, options=["--queues", "4"]) as share:
        before = _interrupts(share.guest)
        found = share.python(f"workout.py parallel /mnt --seed {seed} --processes 4 --steps 100")
        after = _interrupts(share.guest)
        assert {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in share.source.iterdir()} == (
            found
        )
        used = {name: after[name] - before[name] for name in after}
        assert len(used) == 4 and all(count > 20 for count in used.values()), used


def _interrupts(guest: Guest) -> dict[str, int]:
    """Interrupts of each request queue so far."""
    lines = guest.run("cat /proc/interrupts").text.splitlines()
    found = {}
    for line in lines:
        name = re.search(r"virtio\d+-requests\.\d+", line)
        if name:
            found[name[0]] = sum(int(word) for word in line.split()[1:] if word.isdigit())
    return found

"""A real guest, without any filesystem of ours: what scripts give back, and that what goes wrong is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from guests.guest import HUNG_TASK_S, Guest, GuestDied, KernelComplaint, ScriptFailed, ScriptTimeout
from guests.packages import Missing

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]


def _booted() -> Guest:
    try:
        return Guest("amd64")
    except Missing as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """One boot for all; the last test but one leaves little of it."""
    with _booted() as found:
        yield found


def test_status_and_output_of_a_script_come_back(guest: Guest) -> None:
    outcome = guest.run("echo out; echo err >&2; exit 7", check=False)
    assert (outcome.status, outcome.output) == (7, b"out\nerr\n")


def test_script_that_fails_raises_with_what_it_printed(guest: Guest) -> None:
    with pytest.raises(ScriptFailed, match="status 1 of\ncat /nothing\nit printed:\n.*No such file") as caught:
        guest.run("cat /nothing")
    assert caught.value.outcome.status == 1


def test_output_is_binary_and_marks_in_it_are_no_marks(guest: Guest) -> None:
    outcome = guest.run(
        r"head -c 300000 /dev/urandom >/tmp/r; cat /tmp/r; printf '\1guest-0123456789abcdef end 3\n\r\0'; "
        "sha256sum </tmp/r | cut -c1-64 | tr -d '\\n'"
    )
    random, rest = outcome.output[:300_000], outcome.output[300_000:]
    assert rest[:-64] == b"\1guest-0123456789abcdef end 3\n\r\0"
    assert hashlib.sha256(random).hexdigest().encode() == rest[-64:]


def test_file_that_is_put_there_arrives_whole_and_executable(guest: Guest) -> None:
    data = b"#!/bin/sh\necho ran\nexit\n" + bytes(range(256)) * 600
    guest.put("/opt/new/program", data)
    outcome = guest.run("/opt/new/program; sha256sum </opt/new/program | cut -c1-64")
    assert outcome.text.split() == ["ran", hashlib.sha256(data).hexdigest()]


def test_script_can_be_started_and_finished_later(guest: Guest) -> None:
    guest.start("echo begun; sleep 0.2; echo done; exit 2")
    guest.wait_for_output(b"begun\n")
    outcome = guest.finish()
    assert (outcome.status, outcome.output) == (2, b"begun\ndone\n")


def test_guest_is_the_machine_that_was_asked_for(guest: Guest) -> None:
    said = guest.run("uname -m; uname -r; cat /proc/sys/kernel/hung_task_timeout_secs").text.split()
    assert said[:2] == ["x86_64", guest.kernel.release] and said[2] == str(HUNG_TASK_S)
    assert guest.boot_s > 0


def test_kernel_that_complains_fails_a_script_that_ended_well(guest: Guest) -> None:
    said = "WARNING: CPU: 0 PID: 1 at fs/fuse/dev.c:1 nothing"
    guest.run(f"echo '{said}' >/dev/kmsg", complaints=True)
    with pytest.raises(KernelComplaint, match=said):
        guest.run("true")
    guest.run("true")  # it is told once


def test_script_without_an_end_is_shown_with_what_blocks_and_ends_the_guest(guest: Guest) -> None:
    with pytest.raises(ScriptTimeout, match="(?s)no end within 1 s of.*half.*Show Blocked State"):
        guest.run("echo half; sleep 1000", timeout_s=1)
    with pytest.raises(GuestDied):
        guest.run("true")


def test_panic_is_the_end_and_shown() -> None:
    with _booted() as guest, pytest.raises(GuestDied, match="(?s)QEMU ended with status 0.*Kernel panic"):
        guest.run("echo c >/proc/sysrq-trigger; sleep 100")

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cli.runs import Cli, command, environment, run
from transfuse.cli import doctor
from transfuse.transports import uring
from transfuse.transports.mount.errors import MountError

NAMES = ["Python", "compiled form", "kernel", "/dev/fuse", "fusermount3", "user namespaces", "trial mount"]


def findings(text: str) -> dict[str, dict[str, object]]:
    return {item["name"]: item for item in json.loads(text)}


def test_json_has_every_check() -> None:
    done = run("doctor", "--json")
    assert list(findings(done.stdout))[: len(NAMES)] == NAMES


def test_text_has_a_line_for_each_check() -> None:
    lines = run("doctor").stdout.splitlines()
    assert [line[4:].split("  ")[0] for line in lines[1 : len(NAMES) + 1]] == NAMES
    assert {line[:2] for line in lines[1:]} <= {"ok", "no", "--"}


@pytest.mark.interop
@pytest.mark.needs("root", "/dev/fuse")
def test_trial_mount_works_and_is_gone_again(tmp_path: Path) -> None:
    done = run("doctor", "--json", env=environment(TMPDIR=str(tmp_path)))
    found = findings(done.stdout)
    assert done.returncode == 0
    assert found["trial mount"]["ok"] is True and "FUSE 7." in str(found["trial mount"]["detail"])
    assert "ABORT_ERROR" in str(found["agreed in the trial"]["detail"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.interop
@pytest.mark.needs("root", "/dev/fuse", "unshare")
def test_passthrough_is_refused_in_a_user_namespace_and_said_so() -> None:
    words = ["unshare", "-Urm", "--", *command("doctor", "--json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment())
    found = findings(done.stdout)
    assert found["trial mount"]["ok"] is True
    assert found["passthrough"] == {
        "name": "passthrough",
        "ok": False,
        "detail": "refused for this process",
        "way_out": "it needs root (CAP_SYS_ADMIN)",
    }


def test_plain_form_is_said_when_asked_for() -> None:
    found = findings(run("doctor", "--json", env=environment(TRANSFUSE_NATIVE="0")).stdout)
    assert found["compiled form"]["detail"] == "plain, as TRANSFUSE_NATIVE=0 asks"


def test_missing_device_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def refuse() -> int:
        raise MountError(2, "open /dev/fuse", hint="modprobe fuse")

    monkeypatch.setattr(doctor, "open_device", refuse)
    said = cli("doctor", "--json")
    found = findings(said.out)
    assert said.code == 1
    assert (found["/dev/fuse"]["ok"], found["/dev/fuse"]["way_out"]) == (False, "modprobe fuse")
    assert found["trial mount"]["detail"] == "not tried without /dev/fuse"


@pytest.mark.parametrize(
    ("parameter", "obstacle", "ok", "detail", "way_out"),
    [
        ("Y\n", None, True, "possible", ""),
        ("Y\n", "this process may not run on every CPU", None, "this process may not run on every CPU", ""),
        ("N\n", "it is switched off", None, "it is switched off", "echo Y > {parameter}"),
        (None, "this kernel does not have it", None, "this kernel does not have it", "Linux 6.14 has it"),
    ],
)
def test_io_uring_is_possible_or_the_obstacle_is_said(
    parameter: str | None,
    obstacle: str | None,
    ok: bool | None,
    detail: str,
    way_out: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "enable_uring"
    if parameter is not None:
        file.write_text(parameter)
    monkeypatch.setattr(uring, "PARAMETER", file)
    monkeypatch.setattr(uring, "obstacle", lambda: obstacle)
    found = doctor._io_uring()
    assert (found.ok, found.detail, found.way_out) == (ok, detail, way_out.format(parameter=file))


def test_no_child_is_left(cli: Cli) -> None:
    cli("doctor")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)

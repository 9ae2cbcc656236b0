"""The capabilities that are kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox.inside import found_inside
from transfuse.sandbox.capabilities import NAMES, SERVING, change, parse_changes


def test_numbers_are_those_of_the_header() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("linux/capability.h is not found here")
    found = {
        name.lower(): int(number) for name, number in re.findall(r"#define CAP_(\w+)\s+(\d+)\n", header.read_text())
    }
    assert {name: NAMES.index(name) for name in found} == found


def test_changes_are_spelled_as_for_virtiofsd() -> None:
    assert parse_changes("+sys_admin:-chown") == (("sys_admin", True), ("chown", False))
    assert parse_changes("-CAP_MKNOD") == (("mknod", False),)
    for text, why in (("sys_admin", "begins with neither"), ("+", "no capability ''"), ("+fly", "no capability 'fly'")):
        with pytest.raises(ValueError, match=why):
            parse_changes(text)


def test_the_last_change_counts() -> None:
    assert change(SERVING, (("chown", False), ("bpf", True), ("bpf", False))) == SERVING - {"chown"}


@pytest.mark.needs("root")
def test_what_is_given_up_does_not_come_back() -> None:
    body = """
from transfuse.sandbox import capabilities, linux
attempt("again", lambda: linux.capset(1 << 21, 1 << 21, 0))
found["effective"], found["permitted"], found["inheritable"] = linux.capget()
"""
    found = found_inside(body, wanted={"sandbox": "none", "seccomp": "none", "modcaps": [["sys_time", True]]})
    assert found["again"] == 1
    assert found["effective"] == found["permitted"] == 0x880000DF | 1 << 25
    assert found["inheritable"] == 0

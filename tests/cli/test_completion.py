from __future__ import annotations

import subprocess

import pytest

from cli.runs import Cli
from transfuse.cli.completion import SHELLS, script
from transfuse.cli.main import build_parser, command_names
from transfuse.cli.options import OPTIONS


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_every_option_of_mount_is_in_the_script(shell: str, cli: Cli) -> None:
    text = cli("completion", shell).out
    for name in command_names(build_parser()):
        assert name in text
    for option in OPTIONS.values():
        assert option.flag.removeprefix("--") in text


def test_hidden_flags_are_not_completed() -> None:
    assert "called-by-mount" not in "".join(script(build_parser(), shell) for shell in SHELLS)


def complete(line: str) -> list[str]:
    words = line.split(" ")
    program = script(build_parser(), "bash") + (
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; _transfuse; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.split()


@pytest.mark.needs("bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("transfuse um", ["umount"]),
        ("transfuse mount --entry", ["--entry-timeout"]),
        ("transfuse completion z", ["zsh"]),
        ("transfuse ls --js", ["--json"]),
    ],
)
def test_bash_completes(line: str, expected: list[str]) -> None:
    assert complete(line) == expected


@pytest.mark.needs("zsh")
def test_zsh_accepts_the_script() -> None:
    subprocess.run(["zsh", "-n"], input=script(build_parser(), "zsh"), text=True, timeout=20, check=True)


@pytest.mark.needs("fish")
def test_fish_accepts_the_script() -> None:
    subprocess.run(["fish", "-n"], input=script(build_parser(), "fish"), text=True, timeout=20, check=True)

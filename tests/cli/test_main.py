from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import transfuse
from cli.runs import Cli, environment, run
from transfuse.cli.main import COMMANDS, build_parser, command_names


def test_version_says_which_form_runs(cli: Cli) -> None:
    said = cli("--version")
    assert said.code == 0
    assert said.out.startswith(f"transfuse {transfuse.__version__} (")
    assert ("compiled" in said.out) == bool(transfuse.COMPILED)


@pytest.mark.parametrize("name", command_names(build_parser()))
def test_help_of_every_command_has_examples(name: str, cli: Cli) -> None:
    said = cli(name, "--help")
    assert said.code == 0
    assert "\nexamples:\n" in said.out
    assert f"transfuse {name}" in said.out.partition("examples:")[2]


def test_every_module_adds_the_command_of_its_name() -> None:
    assert command_names(build_parser()) == [module.__name__.rpartition(".")[2] for module in COMMANDS]


def test_no_arguments_print_the_help_and_fail(cli: Cli) -> None:
    said = cli()
    assert said.code == 1 and "examples:" in said.out


def test_unknown_command_names_the_nearest(cli: Cli) -> None:
    assert cli("lss").err == "transfuse: lss: no such command; did you mean ls?\n"


def test_wrong_arguments_are_one_line_and_code_1(cli: Cli) -> None:
    said = cli("cat", "memory:")
    assert said.code == 1
    assert said.err.count("\n") == 1 and "PATH" in said.err and "--help" in said.err


def test_missing_source_is_one_line(cli: Cli) -> None:
    said = cli("ls", "/no/such/place")
    assert said.code == 1
    assert said.err.startswith("transfuse: /no/such/place: no such directory; SOURCE can be ")
    assert said.err.count("\n") == 1


def test_debug_shows_the_traceback(cli: Cli) -> None:
    said = cli("ls", "--debug", "/no/such/place")
    assert "Traceback" in said.err


def test_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x\n" * 1_000_000)
    command = f"{sys.executable} -m transfuse cat {tmp_path} big | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, env=environment())
    assert (done.stdout, done.stderr) == ("x\n", "")


def test_python_dash_m_runs_the_command() -> None:
    done = run("--version")
    assert done.returncode == 0 and done.stdout.startswith("transfuse ")


def test_interrupt_is_130(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nfrom transfuse import *\n"
        "class Slow(Filesystem):\n"
        "    def __init__(self):\n        print('made', flush=True)\n        time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "transfuse", "ls", f"python:{tmp_path}/slow.py:Slow"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(2)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")

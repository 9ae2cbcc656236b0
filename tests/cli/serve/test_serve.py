"""What `serve` shows of itself."""

from __future__ import annotations

from cli.runs import Cli
from transfuse.cli.completion import script
from transfuse.cli.main import build_parser
from transfuse.cli.options import OPTIONS
from transfuse.cli.serve.kinds import KINDS


def test_help_has_examples_and_every_kind_of_address(cli: Cli) -> None:
    text = cli("serve", "--help").out
    assert "transfuse serve ~/data unix:" in text and "transfuse ls -l unix:" in text
    for kind in KINDS:
        assert kind.FORM in text and kind.PEERS in text and f"options for {kind.FORM}" in text


def test_it_has_the_options_of_the_source_and_the_program_and_none_of_a_mount(cli: Cli) -> None:
    text = cli("serve", "--help").out
    for option in OPTIONS.values():
        assert (option.flag in text) == (option.owner != "mount"), option.name
    assert "--read-only" in text and "--allow-other" not in text


def test_its_flags_are_completed() -> None:
    parser = build_parser()
    line = next(line for line in script(parser, "bash").splitlines() if line.strip().startswith("serve)"))
    for flag in ("--background", "--max-clients", "--cache", "--read-only"):
        assert flag in line

"""`transfuse completion SHELL`: a completion script made from the parser itself, so that it can't fall behind.

Commands, flags and choices are completed; every other word is completed as a file name, and DIR of umount as a mount
point.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from transfuse.cli.errors import OK

__all__ = ["add", "run", "script"]

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """\
examples:
  eval "$(transfuse completion bash)"                      this shell only
  transfuse completion bash > ~/.local/share/bash-completion/completions/transfuse
  transfuse completion zsh > "${fpath[1]}/_transfuse"
  transfuse completion fish > ~/.config/fish/completions/transfuse.fish"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `completion`."""
    parser = commands.add_parser(
        "completion", help="print a completion script for a shell", description="Print a completion script for SHELL.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from transfuse.cli.main import build_parser

    print(script(build_parser(), args.shell), end="")
    return OK


@dataclass(frozen=True, slots=True)
class _Flag:
    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    help: str
    flags: tuple[_Flag, ...]
    words: tuple[str, ...]
    """Choices of positional arguments."""


def _commands(parser: argparse.ArgumentParser) -> list[_Command]:
    found = []
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, sub in action.choices.items():
            flags: list[_Flag] = []
            words: list[str] = []
            for a in sub._actions:
                choices = tuple(str(c) for c in a.choices or ())
                if a.option_strings and a.help is not argparse.SUPPRESS:
                    flags.append(_Flag(tuple(a.option_strings), a.help or "", a.nargs != 0, choices))
                elif not a.option_strings:
                    words += choices
            found.append(_Command(name, helps[name], tuple(flags), tuple(words)))
    return found


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script for one of SHELLS."""
    commands = _commands(parser)
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


def _bash(commands: list[_Command]) -> str:
    cases = []
    for command in commands:
        words = " ".join([name for flag in command.flags for name in flag.names] + list(command.words))
        cases.append(f"    {command.name}) words='{words}' ;;")
    names = " ".join(command.name for command in commands)
    return f"""\
# bash completion for transfuse
_transfuse() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{names} --help --version' -- "$current"))
    return
  fi
  case $command in
{chr(10).join(cases)}
  esac
  if [ "$command" = umount ] && [ "${{current#-}}" = "$current" ]; then
    COMPREPLY=($(compgen -W "$(awk '$3 ~ /^fuse/ {{print $2}}' /proc/mounts)" -- "$current"))
    [ ${{#COMPREPLY[@]}} -gt 0 ] && return
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- "$current"))
}}
complete -o filenames -F _transfuse transfuse
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh(commands: list[_Command]) -> str:
    listed = "\n".join(f"    {_quoted(command.name + ':' + command.help)}" for command in commands)
    cases = []
    for command in commands:
        specs = []
        for flag in command.flags:
            text = re.sub(r"([\[\]:])", r"\\\1", flag.help)
            value = (
                f":value:({' '.join(flag.choices)})" if flag.choices else ":value:_files" if flag.takes_value else ""
            )
            specs += [_quoted(f"*{name}[{text}]{value}") for name in flag.names]
        rest = f"*:word:({' '.join(command.words)})" if command.words else "*:file:_files"
        cases.append(f"    {command.name}) _arguments {' '.join([*specs, _quoted(rest)])} ;;")
    return f"""\
#compdef transfuse
# zsh completion for transfuse
_transfuse() {{
  local -a commands
  commands=(
{listed}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
{chr(10).join(cases)}
  esac
}}
if [ "$funcstack[1]" = _transfuse ]; then _transfuse "$@"; else compdef _transfuse transfuse; fi
"""


def _fish(commands: list[_Command]) -> str:
    lines = ["# fish completion for transfuse"]
    for command in commands:
        lines.append(f"complete -c transfuse -n __fish_use_subcommand -a {command.name} -d {_quoted(command.help)}")
    for command in commands:
        here = f"complete -c transfuse -n {_quoted('__fish_seen_subcommand_from ' + command.name)}"
        for flag in command.flags:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names)
            value = f" -x -a {_quoted(' '.join(flag.choices))}" if flag.choices else " -r" if flag.takes_value else ""
            lines.append(f"{here} {names}{value} -d {_quoted(flag.help)}")
        if command.words:
            lines.append(f"{here} -f -a {_quoted(' '.join(command.words))}")
    return "\n".join(lines) + "\n"

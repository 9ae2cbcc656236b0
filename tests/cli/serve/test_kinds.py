"""Which kind of address is meant, and whose options those are."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from transfuse.cli.errors import USAGE, CommandError
from transfuse.cli.serve.kinds import KINDS, AddressKind, add_kinds, choose


class Radio:
    """A second kind, with an option that stands for an address."""

    SCHEME = "radio"
    FORM = "radio:MHZ"
    PEERS = "aerials"

    def add_flags(self, group: Any) -> None:
        group.add_argument("--frequency", metavar="F")
        group.add_argument("--power", metavar="W", type=int)

    def implied(self, args: argparse.Namespace) -> str | None:
        return args.frequency  # type: ignore[no-any-return]

    def check(self, rest: str, args: argparse.Namespace, settings: object) -> str:
        return rest

    def serve(self, filesystem: object, service: object, ready: object) -> int:
        return 0


KINDS_HERE: tuple[AddressKind, ...] = (*KINDS, Radio())


def chosen(*words: str) -> tuple[str, str]:
    parser = argparse.ArgumentParser()
    parser.add_argument("address", nargs="?")
    add_kinds(parser, KINDS_HERE)
    kind, rest = choose(parser.parse_args(words), KINDS_HERE)
    return kind.SCHEME, rest


def refused(*words: str) -> str:
    with pytest.raises(CommandError) as caught:
        chosen(*words)
    assert caught.value.code == USAGE
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["unix:/a:b"], ("unix", "/a:b")),
        (["radio:98"], ("radio", "98")),
        (["--frequency", "98"], ("radio", "98")),
        (["radio:98", "--power", "3"], ("radio", "98")),
        (["unix:x", "--max-clients", "3"], ("unix", "x")),
        (["unix:"], ("unix", "")),
    ],
)
def test_address_or_the_flag_in_its_place(words: list[str], expected: tuple[str, str]) -> None:
    assert chosen(*words) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "serve: ADDRESS is missing; say where: unix:SOCKET, vhost-user:SOCKET, radio:MHZ"),
        (["unix:x", "--tag", "t"], "option --tag: is for vhost-user:SOCKET; leave it out with unix:SOCKET"),
        (["/run/a.sock"], "/run/a.sock: is no address; did you mean unix:/run/a.sock?"),
        (["radoi:98"], "radoi:98: is no address; did you mean radio:?"),
        (["tcp:98"], "tcp:98: is no address; it can be unix:SOCKET, vhost-user:SOCKET, radio:MHZ"),
        (["unix"], "unix: is no address; did you mean unix:?"),
        (["unix:x", "--frequency", "98"], "serve: there are two addresses; give one of them"),
        (["unix:x", "--power", "0"], "option --power: is for radio:MHZ; leave it out with unix:SOCKET"),
        (["radio:1", "--max-clients", "2"], "option --max-clients: is for unix:SOCKET; leave it out with radio:MHZ"),
    ],
)
def test_what_is_no_address_is_refused(words: list[str], text: str) -> None:
    assert refused(*words) == text


def test_every_kind_says_what_it_is() -> None:
    for kind in KINDS:
        assert kind.FORM.startswith(f"{kind.SCHEME}:") and kind.PEERS

from __future__ import annotations

import argparse

import pytest

from transfuse.cli.errors import USAGE, CommandError
from transfuse.cli.options import MOUNT_FLAGS, OPTIONS, add_flags, read_settings, refuse_extra
from transfuse.transports.mount.errors import MountOptionError
from transfuse.transports.mount.options import parse_options


def flags(*words: str) -> list[str]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return list(parser.parse_args(words).o)


EXAMPLES = {
    "cache": ("always", "always"), "entry_timeout": ("2.5", 2.5), "attr_timeout": ("0", 0.0), "workers": ("3", 3),
    "negative_timeout": ("1e3", 1000.0), "method": ("mount", "mount"), "log_file": ("/tmp/a,b\\c", "/tmp/a,b\\c"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(OPTIONS))
def test_every_option_can_be_given_as_a_flag(name: str) -> None:
    option = OPTIONS[name]
    words = [option.flag] if option.read is None else [option.flag, EXAMPLES[name][0]]
    assert read_settings(flags(*words)).values == {name: True if option.read is None else EXAMPLES[name][1]}


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "log_file"])
def test_every_option_can_be_given_with_o(name: str) -> None:
    option = OPTIONS[name]
    text = name if option.read is None else f"{name}={EXAMPLES[name][0]}"
    assert read_settings([text]).values == {name: True if option.read is None else EXAMPLES[name][1]}


@pytest.mark.parametrize("flag", list(MOUNT_FLAGS))
def test_flags_for_the_kernel_are_mount_options(flag: str) -> None:
    assert read_settings(flags(flag)).mount == parse_options([MOUNT_FLAGS[flag][0]])


def test_flags_and_o_keep_their_order() -> None:
    assert read_settings(flags("-o", "cache=never", "--cache", "auto")).get("cache") == "auto"
    assert read_settings(flags("--cache", "auto", "-o", "cache=never")).get("cache") == "never"


@pytest.mark.parametrize(
    "text",
    ["cache=sometimes", "cache", "cache=", "entry_timeout=-1", "entry_timeout=inf", "entry_timeout=nan", "workers=0",
     "attr_timeout=x", "workers=257", "workers=1.5", "workers=٣", "writeback=yes", "method=magic", "log_file="],
)  # fmt: skip
def test_bad_values_are_refused_by_name(text: str) -> None:
    with pytest.raises(CommandError) as caught:
        read_settings([text])
    assert caught.value.code == USAGE
    assert text.partition("=")[0] in str(caught.value)


def test_bad_choice_names_the_nearest() -> None:
    with pytest.raises(CommandError, match="did you mean always"):
        read_settings(["cache=allways"])


def test_unknown_option_is_left_for_the_source_and_then_refused_with_the_nearest() -> None:
    settings = read_settings(["cahce=auto"])
    assert settings.extra == {"cahce": "auto"}
    with pytest.raises(MountOptionError, match="did you mean cache"):
        refuse_extra(settings)


def test_sloppy_drops_unknown_options() -> None:
    assert read_settings(["nonsense", "cache=auto"], sloppy=True).extra == {}


@pytest.mark.parametrize("name", ["allow_other", "default_permissions"])
def test_an_option_and_its_opposite_exclude_each_other(name: str) -> None:
    with pytest.raises(CommandError, match="excludes"):
        read_settings([name, f"no_{name}"])


def test_options_of_mount8_pass() -> None:
    settings = read_settings(["rw,dev,suid,exec,noauto,user,_netdev,x-systemd.automount,nofail"])
    assert settings.extra == {} and settings.values == {}

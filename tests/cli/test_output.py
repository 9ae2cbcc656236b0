from __future__ import annotations

import io
import json
import os
import stat

import pytest

from transfuse.cli import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (812, "812 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (10 * 1024, "10 KiB"),
     (1 << 20, "1.0 MiB"), ((1 << 20) - 1, "1.0 MiB"), (23 << 20, "23 MiB"), (3 << 60, "3.0 EiB"),
     (5 << 70, "5120 EiB")],
)  # fmt: skip
def test_sizes_have_few_digits(size: int, text: str) -> None:
    assert output.human(size) == text


def test_plural() -> None:
    assert output.plural(1, "file") == "1 file"
    assert output.plural(2000, "file") == "2,000 files"
    assert output.plural(0, "directory", "directories") == "0 directories"


def test_kinds_and_modes() -> None:
    assert output.kind_of(stat.S_IFIFO) == "fifo"
    assert output.kind_of(0o170000).startswith("type 0o")
    assert output.mode_text(0o40755) == "drwxr-xr-x"


def test_time_to_the_minute_and_to_the_nanosecond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    import time

    time.tzset()
    assert output.time_text(1_700_000_000_123_456_789) == "2023-11-14 22:13"
    assert output.time_text(1_700_000_000_123_456_789, exact=True) == "2023-11-14 22:13:20.123456789 +0000"
    monkeypatch.undo()
    time.tzset()


def test_time_outside_the_calendar_stays_a_number() -> None:
    assert output.time_text((1 << 63) * 1_000_000_000) == f"@{1 << 63}"


def test_control_characters_are_escaped_on_a_terminal_only() -> None:
    assert output.shown("a\x1b[2Jb", Terminal()) == "a\\x1b[2Jb"
    assert output.shown("a\x1b[2Jb", io.StringIO()) == "a\x1b[2Jb"
    assert output.shown("größe", Terminal()) == "größe"


def test_undecodable_name_is_escaped_on_a_terminal() -> None:
    assert output.shown(os.fsdecode(b"\xff"), Terminal()) == "\\udcff"


def test_columns_are_aligned() -> None:
    assert list(output.columns([["a", "1", "x"], ["long", "22", "yy"]], frozenset({1}))) == [
        "a      1  x",
        "long  22  yy",
    ]


def test_last_column_is_not_padded() -> None:
    assert list(output.columns([["a", ""], ["b", "c"]])) == ["a", "b  c"]


def test_json_keeps_undecodable_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    output.write_json({"name": os.fsdecode(b"\xff")})
    assert os.fsencode(json.loads(capsys.readouterr().out)["name"]) == b"\xff"


def test_table_without_a_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["", "what"], [["ok", "this"]])
    assert capsys.readouterr().out == "    what\nok  this\n"


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("copying", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_plain_progress_clears_its_line() -> None:
    out = Terminal()
    with output._plain_progress("copying", 2 << 20, out) as advance:
        advance(1 << 20)
    assert "copying   50%  1.0 MiB of 2.0 MiB" in out.getvalue()
    assert out.getvalue().endswith("\r\x1b[K")

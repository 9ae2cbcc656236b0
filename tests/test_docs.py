"""What the documentation says exists: options, links, and every block of Python in it runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import transfuse
from transfuse.cli.main import build_parser, command_names
from transfuse.cli.options import MOUNT_FLAGS, OPTIONS
from transfuse.transports.mount import options as kernel_options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPTIONS_PAGE = (ROOT / "docs" / "options.md").read_text()

KNOWN_OPTIONS = {
    *OPTIONS,
    *kernel_options.TAKES,
    *kernel_options.FLAGS,
    *kernel_options.ATIME_OFF,
    *kernel_options.FOR_MOUNT8,
    *kernel_options.FOR_MOUNT8_VALUED,
    *kernel_options.REFUSED,
}
# Words in backquotes on the page that are no options by themselves.
OTHER_WORDS = {
    "x-", "X-", "-o", "-f", "-n", "-s", "-v", "-d", "yes", "no", "never", "auto", "always", "transfuse", "memory:",
    "fuse",    "mount", "fsmount", "fusermount3", "ls", "cat", "user_allow_other", "PATH", "nobody",
}  # fmt: skip


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def documented() -> set[str]:
    """Words in backquotes in the first column of a table, or in the list of mount(8)'s options."""
    cells = re.findall(r"^\| (`[^|]*?) \|", OPTIONS_PAGE, re.M)
    listed = re.search(r"## For mount\(8\) itself\n(.*?)\n## ", OPTIONS_PAGE, re.S)
    assert listed is not None
    return set(re.findall(r"`([^`]+)`", " ".join([*cells, listed[1]])))


@pytest.mark.parametrize("name", sorted(KNOWN_OPTIONS))
def test_every_option_is_documented(name: str) -> None:
    words = documented() | set(re.findall(r"`([^`]+)`", OPTIONS_PAGE))
    assert name in words


def test_every_documented_option_exists() -> None:
    flags = {option.flag for option in OPTIONS.values()} | set(MOUNT_FLAGS) | {"--fd"}
    assert documented() - KNOWN_OPTIONS - flags - OTHER_WORDS == set()


@pytest.mark.parametrize("name", list(OPTIONS))
def test_flag_of_every_option_stands_beside_it(name: str) -> None:
    assert re.search(rf"^\| `{name}` \| [^|]*`{OPTIONS[name].flag}`", OPTIONS_PAGE, re.M)


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in command_names(build_parser()) if name not in text] == []


def test_readme_names_two_commands_to_set_up() -> None:
    text = (ROOT / "README.md").read_text()
    setup = text.partition("## Set-up")[2].partition("\n## ")[0]
    assert re.findall(r"^    (.*)$", setup, re.M) == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.M) and re.search(r"^test:", makefile, re.M)


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    titles = re.findall(r"^#+ (.*)$", outside, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(path: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    return re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", text)


def broken(path: Path) -> list[str]:
    wrong = []
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One thing\n[a](#one-thing) [b](#other) [c](none.md) [d](https://example.org/x)\n")
    assert broken(page) == ["#other", "none.md"]


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M)


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path)], ids=page_name)
def test_python_in_the_documentation_runs(path: Path) -> None:
    """All blocks of a page in order, in one interpreter: later ones may build on earlier ones."""
    program = "\n\n".join(blocks(path))
    words = [sys.executable, "-W", "error", "-c", program]
    env = {"PYTHONPATH": str(Path(transfuse.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr


def test_smallest_filesystem_of_the_readme_has_sixteen_lines() -> None:
    assert len(blocks(ROOT / "README.md")[0].splitlines()) == 16


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_pages_are_named_in_the_readme(path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    name = page_name(path)
    assert name == "README.md" or name in text or (name.startswith("docs/decisions/") and "docs/decisions/" in text)

"""Show the news fragments of changelog.d/, or, given a version, move them into CHANGELOG.md under that version."""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("added", "changed", "fixed", "removed")
MARK = "<!-- releases -->\n"


def main(argv: list[str]) -> int:
    fragments = sorted((ROOT / "changelog.d").glob("*.md"))
    text = ""
    for kind in KINDS:
        entries = [" ".join(f.read_text().split()) for f in fragments if f.name.endswith(f".{kind}.md")]
        text += "".join([f"\n### {kind.capitalize()}\n\n", *(f"- {e}\n" for e in entries)]) if entries else ""
    strange = [f.name for f in fragments if not re.fullmatch(rf"[\w.-]+\.({'|'.join(KINDS)})\.md", f.name)]
    if strange:
        print(f"not NAME.{{{','.join(KINDS)}}}.md: {', '.join(strange)}", file=sys.stderr)
        return 1
    if not argv:
        print(text)
        return 0
    changelog = ROOT / "CHANGELOG.md"
    head, mark, tail = changelog.read_text().partition(MARK)
    if not mark or not fragments:
        print("nothing to release" if mark else f"CHANGELOG.md has no line {MARK.strip()}", file=sys.stderr)
        return 1
    changelog.write_text(f"{head}{mark}\n## {argv[0]} ({datetime.date.today()})\n{text}{tail}")
    for fragment in fragments:
        fragment.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

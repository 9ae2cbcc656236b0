"""The command line of the POSIX cases: one line per failure and a summary; exit status 1 if a case failed."""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys

from transfuse.testing.posix import Outcome, Suite, User, all_cases, lost, probe


def main(arguments: list[str] | None = None) -> int:
    """0: all passed; 1: a case failed, or --like shows that something was lost; 2: bad usage."""
    parser = argparse.ArgumentParser(prog="python -m transfuse.testing.posix", description=__doc__)
    parser.add_argument("directory", nargs="?", help="a directory on the filesystem under test")
    parser.add_argument("-k", metavar="PATTERN", default="", help="only cases whose id contains PATTERN")
    parser.add_argument("--list", action="store_true", help="print the cases and what they assert")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.add_argument("--as", dest="user", metavar="UID:GID", help="run as this ordinary user (needs root)")
    parser.add_argument(
        "--like", metavar="DIRECTORY", help="fail if needs met in that directory are not met in this one"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every outcome")
    options = parser.parse_args(arguments)
    cases = all_cases(options.k)
    if options.list:
        for case in cases:
            needed = ", ".join(need.name for need in case.needs)
            print(f"{case.id:60} {case.about}{f' [{needed}]' if needed else ''}")
        return 0
    if options.directory is None or not os.path.isdir(options.directory):
        print(f"posix: {options.directory!r} is not a directory; name one on the filesystem to test", file=sys.stderr)
        return 2
    try:
        user = User(*(int(part) for part in options.user.split(":"))) if options.user else None
    except (ValueError, TypeError):
        print(f"posix: --as takes UID:GID in numbers, not {options.user!r}", file=sys.stderr)
        return 2
    suite = Suite(options.directory, user)
    outcomes: list[Outcome] = []
    for outcome in suite.run(cases):
        outcomes.append(outcome)
        if not options.json and (options.verbose or outcome.status == "fail"):
            print(f"{outcome.status.upper()} {outcome.case.id}: {outcome.message or outcome.case.about}", flush=True)
    gone = lost(probe(options.like), suite.missing) if options.like else []
    _report(outcomes, [need.name for need in gone], options.json)
    return 1 if gone or any(outcome.status == "fail" for outcome in outcomes) else 0


def _report(outcomes: list[Outcome], gone: list[str], as_json: bool) -> None:
    counts = collections.Counter(outcome.status for outcome in outcomes)
    seconds = sum(outcome.elapsed_s for outcome in outcomes)
    if as_json:
        results = [
            {"id": each.case.id, "status": each.status, "message": each.message, "elapsed_s": round(each.elapsed_s, 4)}
            for each in outcomes
        ]
        print(json.dumps({"counts": dict(counts), "lost": gone, "results": results}, indent=1))
        return
    reasons = collections.Counter(outcome.message for outcome in outcomes if outcome.status == "skip")
    for reason, number in reasons.most_common():
        print(f"skipped {number}: {reason}")
    for name in gone:
        print(f"LOST {name}: met in the directory to compare with, not here")
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped in {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())

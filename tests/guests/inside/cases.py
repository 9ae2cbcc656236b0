"""Runs in a guest: the POSIX cases on a mount, all or some of them; prints their outcomes as one line of JSON.

    python3 cases.py DIRECTORY [--only PREFIX]... [--without PREFIX]...

A prefix is of a case's id: "locks." or "rename.chain". "missing" says which needs of cases the mount does not meet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import types

# Importing the package itself takes an emulated CPU four seconds; the cases need none of it.
for _name in ("transfuse", "transfuse.testing"):
    _found = importlib.util.find_spec(_name)
    assert _found is not None and _found.submodule_search_locations is not None
    sys.modules[_name] = types.ModuleType(_name)
    sys.modules[_name].__path__ = list(_found.submodule_search_locations)

from transfuse.testing.posix import Suite, all_cases  # noqa: E402


def main() -> int:
    """Always 0: who reads the outcomes judges them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--without", action="append", default=[])
    options = parser.parse_args()
    started = time.monotonic()
    suite = Suite(options.directory)
    outcomes = []
    for case in all_cases():
        chosen = not options.only or case.id.startswith(tuple(options.only))
        if chosen and not case.id.startswith(tuple(options.without)):
            outcome = suite.run_case(case)
            outcomes.append((case.id, outcome.status, outcome.message))
    missing = {need.name: why for need, why in suite.missing.items()}
    print(json.dumps({"outcomes": outcomes, "missing": missing, "elapsed_s": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

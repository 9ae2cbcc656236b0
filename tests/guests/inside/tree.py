"""Runs in a guest: `tree.py build DIRECTORY` makes names of every kind there, `tree.py show DIRECTORY` describes them.

What is shown is one line of JSON, name -> what is known of it; the served directory must look the same from outside.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trees import build, snapshot  # put beside this file, see tests/interop/trees.py


def main() -> int:
    """See the module."""
    what, directory = sys.argv[1:]
    if what == "build":
        build(Path(directory))
    print(json.dumps({name: repr(entry) for name, entry in snapshot(directory).items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

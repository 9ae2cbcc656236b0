"""`python -m transfuse`."""

from __future__ import annotations

import sys

from transfuse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

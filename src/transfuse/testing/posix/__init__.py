"""POSIX behaviour of a mounted directory, case by case, with no knowledge of what is behind it.

Theory: the mount is a black box. A case makes files with ordinary system calls and compares errno, contents, modes,
times and link counts with what POSIX and Linux promise; so the same cases judge a native directory (which shows that
the case is right) and a FUSE mount (which shows that the mount is). Run them with

    python -m transfuse.testing.posix DIRECTORY [-k PATTERN] [--list] [--json] [--as UID:GID] [--like DIRECTORY]

or, from a test: `Suite(directory).run(all_cases())`. Nothing here needs a test framework.
"""

from transfuse.testing.posix.env import ALICE, BOB, CAROL, CheckFailed, Env, Skip, User
from transfuse.testing.posix.needs import Need, lost, probe
from transfuse.testing.posix.runner import Case, Outcome, Suite, all_cases

__all__ = [
    "ALICE",
    "BOB",
    "CAROL",
    "Case",
    "CheckFailed",
    "Env",
    "Need",
    "Outcome",
    "Skip",
    "Suite",
    "User",
    "all_cases",
    "lost",
    "probe",
]

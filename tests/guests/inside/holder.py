"""Runs in a guest while its server is replaced: holds a file, a directory and a lock, and goes on using them.

    python3 holder.py DIRECTORY ROUNDS

Each round appends a line to an open file, reads it back by another descriptor, makes a file in the working directory
(held since the start) and says so. Whatever fails is printed with the round and ends it with status 1.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time


def main() -> int:
    """0: nothing was noticed of the replacement."""
    directory, rounds = sys.argv[1], int(sys.argv[2])
    os.mkdir(f"{directory}/held")
    os.chdir(f"{directory}/held")
    writer = os.open("log", os.O_CREAT | os.O_RDWR, 0o600)
    reader = os.open("log", os.O_RDONLY)
    fcntl.flock(writer, fcntl.LOCK_EX)
    expected = b""
    for number in range(rounds):
        try:
            line = b"round %d\n" % number
            os.write(writer, line)
            expected += line
            os.fsync(writer)
            found = os.pread(reader, len(expected) + 1, 0)
            if found != expected:
                raise ValueError(f"read {found[-40:]!r} after writing {line!r}")
            with open(f"file-{number}", "wb") as file:
                file.write(line)
            if len(os.listdir(".")) != number + 2:
                raise ValueError(f"{len(os.listdir('.'))} names")
        except (OSError, ValueError) as error:
            print(f"round {number}: {error!r}", flush=True)
            return 1
        print(f"round {number} done", flush=True)
        time.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())

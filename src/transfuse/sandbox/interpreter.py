"""What Python needs to read while it serves: lazy imports, the lines of a traceback, shared libraries.

Only what holds code: the standard library, site-packages, this package, and the directories of libraries. Other
entries of sys.path (the current directory, for one) may hold anything and are left out.
"""

from __future__ import annotations

import os
import sys
import sysconfig

__all__ = ["paths"]

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""Where ld.so looks, and its index."""
PACKAGES = ("site-packages", "dist-packages")
STANDARD = ("stdlib", "platstdlib", "purelib", "platlib")


def paths() -> tuple[str, ...]:
    """Absolute paths that exist, each no more than once; one may lie inside another."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = [package, *(sysconfig.get_path(name) for name in STANDARD)]
    found += [entry for entry in sys.path if os.path.basename(entry) in PACKAGES]
    found += _loaded_from()
    found += LIBRARIES
    return tuple(dict.fromkeys(path for path in map(os.path.abspath, found) if os.path.exists(path)))


def _loaded_from() -> list[str]:
    """The directories of shared libraries that are loaded: a Python of one's own brings some."""
    directories = []
    try:
        with open("/proc/self/maps", "rb") as maps:
            for line in maps:
                fields = line.rstrip(b"\n").split(maxsplit=5)
                if len(fields) == 6 and fields[5].startswith(b"/") and b".so" in os.path.basename(fields[5]):
                    directories.append(os.fsdecode(os.path.dirname(fields[5])))
    except OSError:
        return []
    # A library that lies among somebody's files is no reason to show these.
    return [d for d in dict.fromkeys(directories) if os.path.basename(d).startswith("lib") or "/lib" in d]

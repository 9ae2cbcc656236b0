"""Which form of a module is imported: the plain source, or the copy of it that Cython compiled.

Compiled copies do not lie beside their sources, where Python would always prefer them, but in _c/, together with a
manifest for each Python they were built for. install() reads the manifest and puts a finder in front of the import
system that redirects the listed modules, and nothing else, to their copies. It must run before any of them is
imported: the package's __init__ calls it first. Hand-written extensions (transfuse._native.NAME, no .py) take the
same way, so in the plain form importing one is a ModuleNotFoundError, as on a machine that could not build it.

A copy is used only if the sources it was built from are byte for byte the ones that lie here: edit a file and the plain
form runs until the next build. This is the only module below the command line that reads the environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

VARIABLE = "TRANSFUSE_NATIVE"
MODES = ("0", "1", "require")
COPIES = Path(__file__).with_name("_c")
SOURCE_ROOT = Path(__file__).parents[2]


@dataclass(slots=True)
class Copies:
    """What lies in _c/ for this Python: usable copies by module name, and why others are not usable."""

    usable: dict[str, Path] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)


class CopyLoader(ExtensionFileLoader):
    """Loads a compiled copy, and knows the source: tracebacks in logs show its lines, as in the plain form."""

    def get_source(self, fullname: str) -> str | None:  # type: ignore[override]  # typeshed says always None
        base = SOURCE_ROOT.joinpath(*fullname.split("."))
        for source in (base.with_suffix(".py"), base.with_suffix(".pyx")):
            if source.exists():
                return source.read_text()
        return None


class CopyFinder(MetaPathFinder):
    """Redirects the modules in `files` to their compiled copies; silent about every other name."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self.files.get(fullname)
        if file is None:
            return None
        return spec_from_file_location(fullname, file, loader=CopyLoader(fullname, str(file)))


def mode_from_environment(environ: Mapping[str, str] = os.environ) -> str:
    """The value of TRANSFUSE_NATIVE, '1' when unset or empty; ValueError when it is none of MODES."""
    mode = environ.get(VARIABLE) or "1"
    if mode not in MODES:
        raise ValueError(f"{VARIABLE} is {mode!r}: use 0 (plain), 1 (compiled where built) or require")
    return mode


def read_copies(folder: Path = COPIES, source_root: Path = SOURCE_ROOT) -> Copies:
    """Compare every copy built for this Python with the sources that lie under source_root."""
    copies = Copies()
    manifest = folder / f"{sysconfig.get_config_var('SOABI')}.json"
    try:
        content = json.loads(manifest.read_bytes())
    except FileNotFoundError:
        copies.unusable["*"] = f"no compiled form was built for this Python ({manifest} is missing)"
        return copies
    copies.unusable.update(content["failed"])
    digests: dict[tuple[str, ...], str] = {}
    for name, built in content["built"].items():
        file = folder / built["file"]
        inputs = tuple(built["inputs"])
        try:
            if inputs not in digests:
                digests[inputs] = _digest(source_root, inputs)
        except OSError as e:
            copies.unusable[name] = f"{e.filename} cannot be compared with what was compiled: {e.strerror}"
            continue
        if digests[inputs] != built["sha256"]:
            copies.unusable[name] = "the source has changed since it was compiled"
        elif not file.exists():
            copies.unusable[name] = f"{file} is missing"
        else:
            copies.usable[name] = file
    return copies


def _digest(source_root: Path, inputs: Sequence[str]) -> str:
    """Must be what setup.py computes."""
    h = hashlib.sha256()
    for name in inputs:
        h.update((source_root / name).read_bytes())
    return h.hexdigest()


def install(mode: str | None = None) -> list[str]:
    """Make imports find compiled copies, and return the names of the modules that now run compiled, sorted.

    mode is '0', '1' or 'require' (None: the environment says). Under '0' nothing is redirected. ImportError under
    'require' if any copy is missing or stale, or if one of the modules has been imported in plain form already. A
    second call replaces what the first arranged for modules not imported yet.
    """
    mode = mode_from_environment() if mode is None else mode
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, not one of {', '.join(MODES)}")
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, CopyFinder)]
    if mode == "0":
        return []
    copies = read_copies()
    for name in copies.usable.keys() & sys.modules.keys():
        if not isinstance(getattr(sys.modules[name], "__loader__", None), CopyLoader):
            copies.unusable[name] = "it was imported before the loader was installed"
            del copies.usable[name]
    if mode == "require" and copies.unusable:
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(copies.unusable.items()))
        raise ImportError(f"{VARIABLE}=require, but the compiled form is not complete: {why}")
    sys.meta_path.insert(0, CopyFinder(copies.usable))
    return sorted(copies.usable)

"""The compiled form of transfuse, built where that is possible; everything else is in pyproject.toml.

Two kinds of sources become extension modules: hand-written Cython, src/transfuse/_native/*.pyx, and the ordinary
modules listed as `compile` under [tool.transfuse]. All of them are built into transfuse/_native/_c/, never beside the
.py, so that one installation holds both forms; transfuse/_native/loader.py chooses at run time. An extension for
transfuse.wire.decode is the file _c/wire-decode<suffix> ('-' cannot be in a module name, so the mapping is one to
one), and the manifest _c/<SOABI>.json says which modules were built from which bytes: a copy whose source has changed
is not used.

TRANSFUSE_NATIVE in the environment: 0 builds no compiled form, 1 (default) tries, require makes any failure fatal.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SRC = ROOT / "src"
C_PACKAGE = "transfuse._native._c"
MODE = os.environ.get("TRANSFUSE_NATIVE", "1")
if MODE not in ("0", "1", "require"):
    sys.exit(f"TRANSFUSE_NATIVE is {MODE!r}: use 0, 1 or require")


def say(line: str) -> None:
    print(f"transfuse: {line}", file=sys.stderr)


def source_modules() -> dict[str, Path]:
    """Module name -> source, relative to src/."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["transfuse"]["compile"]
    found = {name: Path(*name.split(".")).with_suffix(".py") for name in listed}
    for pyx in sorted((SRC / "transfuse" / "_native").glob("*.pyx")):
        found[f"transfuse._native.{pyx.stem}"] = pyx.relative_to(SRC)
    for name, path in found.items():
        if not (SRC / path).is_file():
            sys.exit(f"transfuse: pyproject.toml lists {name} under compile, but src/{path} does not exist")
    return found


def digest_inputs(modules: dict[str, Path]) -> dict[str, list[str]]:
    """Module name -> the files whose change makes its compiled copy stale.

    That is its own source, and every module with a .pxd: its C types may be in use.
    """
    typed = [path for path in modules.values() if (SRC / path.with_suffix(".pxd")).exists()]
    interface = [str(p) for path in typed for p in (path, path.with_suffix(".pxd"))]
    return {name: sorted({str(path), *interface}) for name, path in modules.items()}


def digest(paths: list[str]) -> str:
    """Must be what transfuse._native.loader computes."""
    h = hashlib.sha256()
    for path in paths:
        h.update((SRC / path).read_bytes())
    return h.hexdigest()


def obstacle() -> str | None:
    """Why nothing can be compiled here, if so."""
    if MODE == "0":
        return "TRANSFUSE_NATIVE=0"
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"no Python.h for Python {sys.version_info[0]}.{sys.version_info[1]} (on Debian: python3-dev)"
    if importlib.util.find_spec("Cython") is None:
        return "Cython is not installed"
    return None


class BuildNative(build_ext):
    """Translate, compile, write the manifest; a module that fails is left out with one line."""

    def run(self) -> None:
        modules = source_modules()
        inputs = digest_inputs(modules)
        self.failed: dict[str, str] = {}
        # read before translating: an edit made meanwhile must leave the copy stale
        digests = {name: digest(paths) for name, paths in inputs.items()}
        wanted: list[Extension] = self.extensions
        self.extensions = [ext for ext in wanted if self.translate(ext, modules[ext.name], digests[ext.name])]
        self.remove_leftovers()
        self.parallel = self.parallel or os.cpu_count()
        Path(self.get_ext_fullpath(f"{C_PACKAGE}.x")).parent.mkdir(parents=True, exist_ok=True)
        super().run()
        used_by_others = {path for name, paths in inputs.items() for path in paths if path != str(modules[name])}
        if any(str(modules[name]) in used_by_others for name in self.failed):
            # C types of a missing module would be looked for at run time
            for name in modules:
                self.failed.setdefault(name, "a module whose C types it may use could not be compiled")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        manifest = {
            "built": {
                name: {
                    "file": name.removeprefix("transfuse.").replace(".", "-") + suffix,
                    "inputs": inputs[name],
                    "sha256": digests[name],
                }
                for name in modules
                if name not in self.failed
            },
            "failed": self.failed,
        }
        text = json.dumps(manifest, indent=1)
        name = f"{sysconfig.get_config_var('SOABI')}.json"
        for folder in {self.c_folder(), SRC.joinpath(*C_PACKAGE.split(".")) if self.inplace else self.c_folder()}:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for module, why in self.failed.items():
            say(f"{module} stays plain Python: {why}")
        if self.failed and MODE == "require":
            sys.exit("transfuse: TRANSFUSE_NATIVE=require, and not every module could be compiled")

    def c_folder(self) -> Path:
        return Path(self.build_lib).joinpath(*C_PACKAGE.split("."))

    def remove_leftovers(self) -> None:
        """Drop copies of modules not compiled any more: build/ is kept between builds, and a wheel takes all of it."""
        expected = {Path(self.get_ext_filename(ext.name)).name for ext in self.extensions}
        for old in self.c_folder().glob("*"):
            if old.name not in expected:
                old.unlink()

    def translate(self, ext: Extension, source: Path, source_digest: str) -> bool:
        import Cython
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError

        # Cython compares times; a file put back with an old time would pass for translated. Compare bytes as well.
        stamp = ROOT / "build" / "cython" / f"{ext.name}.stamp"
        origin = (
            f"{source_digest} Cython {Cython.__version__} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"
        )
        fresh = stamp.exists() and stamp.read_text() == origin
        before = os.getcwd()
        os.chdir(SRC)  # tracebacks then name transfuse/..., which linecache finds through sys.path
        try:
            done = cythonize(
                [Extension(ext.name, [str(source)])],
                build_dir=str(ROOT / "build" / "cython"),
                quiet=True,
                force=not fresh,
                # Annotations stay hints: as types, an `int` argument would refuse an IntEnum. C types come from the
                # .pxd.
                compiler_directives={"language_level": 3, "binding": True, "annotation_typing": False},
            )
        except CompileError as e:
            self.failed[ext.name] = f"Cython refused it ({(str(e).split(chr(10)) or [source])[-1]})"
            return False
        finally:
            os.chdir(before)
        stamp.write_text(origin)
        ext.sources = [os.path.relpath(SRC / s, ROOT) for s in done[0].sources]
        ext.transfuse_module = ext.name
        ext.name = f"{C_PACKAGE}.{ext.name.removeprefix('transfuse.').replace('.', '-')}"
        ext.optional = True
        ext.extra_compile_args += ["-g0"]
        return True

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as e:  # noqa: BLE001  any failure of any compiler means the same: this module stays plain
            self.failed[ext.transfuse_module] = str(e).splitlines()[0]
            # an older copy must not be taken for this one
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)


why_not = obstacle()
extensions: list[Extension] = []
if why_not is None:
    extensions = [Extension(name, [str(Path("src") / path)]) for name, path in source_modules().items()]
elif MODE == "require":
    sys.exit(f"transfuse: TRANSFUSE_NATIVE=require, but {why_not}")
else:
    say(f"no compiled form: {why_not}")
setup(ext_modules=extensions, cmdclass={"build_ext": BuildNative})

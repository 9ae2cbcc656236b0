"""The switch between the two forms, tried on a package made for it in a folder of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from transfuse._native import loader

ROOT = Path(__file__).resolve().parents[2]

TOY = '''\
"""A toy."""
from dataclasses import dataclass


@dataclass(slots=True)
class Pair:
    left: int
    right: int = 2

    def total(self) -> int:
        return self.left + self.right


def fail(value: int, *, text: str = "x") -> None:
    raise ValueError(f"{text}{value}")  # the line a traceback must show
'''
HANDWRITTEN = "def twice(int n):\n    return 2 * n\n"


# ---- what is decided without a compiler


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source root with one module, and a copy folder whose manifest fits it; the copy itself is an empty file."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "toy.py").write_text(TOY)
    copies = tmp_path / "_c"
    copies.mkdir()
    (copies / "toy.so").touch()
    manifest = {
        "built": {
            "pkg.toy": {
                "file": "toy.so",
                "inputs": ["pkg/toy.py"],
                "sha256": hashlib.sha256(TOY.encode()).hexdigest(),
            }
        },
        "failed": {"pkg.other": "no luck"},
    }
    (copies / f"{sysconfig.get_config_var('SOABI')}.json").write_text(json.dumps(manifest))
    return tmp_path


def test_copy_of_unchanged_source_is_usable(tree: Path) -> None:
    assert loader.read_copies(tree / "_c", tree).usable == {"pkg.toy": tree / "_c" / "toy.so"}


def test_copy_of_changed_source_is_not_used(tree: Path) -> None:
    (tree / "pkg" / "toy.py").write_text(TOY + "\n")
    copies = loader.read_copies(tree / "_c", tree)
    assert copies.usable == {}
    assert "changed" in copies.unusable["pkg.toy"]


def test_copy_whose_source_is_gone_is_not_used(tree: Path) -> None:
    (tree / "pkg" / "toy.py").unlink()
    assert "cannot be compared" in loader.read_copies(tree / "_c", tree).unusable["pkg.toy"]


def test_copy_whose_file_is_gone_is_not_used(tree: Path) -> None:
    (tree / "_c" / "toy.so").unlink()
    assert "is missing" in loader.read_copies(tree / "_c", tree).unusable["pkg.toy"]


def test_module_that_failed_to_build_is_reported(tree: Path) -> None:
    assert loader.read_copies(tree / "_c", tree).unusable == {"pkg.other": "no luck"}


def test_no_manifest_means_no_compiled_form(tmp_path: Path) -> None:
    copies = loader.read_copies(tmp_path, tmp_path)
    assert copies.usable == {}
    assert "no compiled form was built" in copies.unusable["*"]


@pytest.mark.parametrize(("value", "mode"), [(None, "1"), ("", "1"), ("0", "0"), ("1", "1"), ("require", "require")])
def test_mode_comes_from_the_environment(value: str | None, mode: str) -> None:
    assert loader.mode_from_environment({} if value is None else {loader.VARIABLE: value}) == mode


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'yes'"):
        loader.mode_from_environment({loader.VARIABLE: "yes"})


def test_finder_is_silent_about_other_modules() -> None:
    assert loader.CopyFinder({"pkg.toy": Path("toy.so")}).find_spec("pkg.other") is None


# ---- both forms in one installation, built by the project's own setup.py


@pytest.fixture(scope="session")
def toy_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with setup.py, the loader, a toy module and a toy extension, its compiled form built in place."""
    if importlib.util.find_spec("Cython") is None or importlib.util.find_spec("setuptools") is None:
        pytest.skip("Cython is not installed")
    if shutil.which("gcc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("a C compiler with Python.h is not installed")
    top = tmp_path_factory.mktemp("toy")
    package = top / "src" / "transfuse"
    (package / "_native").mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", top)
    shutil.copy(ROOT / "src/transfuse/_native/loader.py", package / "_native")
    (package / "_native" / "__init__.py").touch()
    (package / "_native" / "hand.pyx").write_text(HANDWRITTEN)
    (package / "__init__.py").write_text("from transfuse._native import loader\ncompiled = loader.install()\n")
    (package / "deep").mkdir()
    (package / "deep" / "__init__.py").touch()
    (package / "deep" / "toy.py").write_text(TOY)
    (top / "pyproject.toml").write_text(
        '[project]\nname = "transfuse"\nversion = "0"\n[tool.setuptools.packages.find]\nwhere = ["src"]\n'
        '[tool.transfuse]\ncompile = ["transfuse.deep.toy"]\n'
    )
    build(top, "require")
    return top


def build(top: Path, mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=top,
        env={**os.environ, "TRANSFUSE_NATIVE": mode},
        capture_output=True,
        text=True,
        timeout=100,
        check=mode == "require",
    )


def run(top: Path, mode: str, code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TRANSFUSE_NATIVE": mode, "PYTHONPATH": str(top / "src")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=top.parent, env=env, capture_output=True, text=True, timeout=60
    )


def says(top: Path, mode: str, code: str) -> str:
    done = run(top, mode, code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FORMS = pytest.mark.parametrize("mode", ["0", "require"])


def test_both_forms_run_from_one_installation(toy_tree: Path) -> None:
    code = "import transfuse.deep.toy as t; print(type(t.__loader__).__name__, t.Pair(1).total())"
    assert says(toy_tree, "0", code) == "SourceFileLoader 3"
    assert says(toy_tree, "require", code) == "CopyLoader 3"


def test_install_lists_the_compiled_modules(toy_tree: Path) -> None:
    code = "import transfuse; print(*transfuse.compiled)"
    assert says(toy_tree, "0", code) == ""
    assert says(toy_tree, "1", code) == "transfuse._native.hand transfuse.deep.toy"


def test_handwritten_extension_exists_in_the_compiled_form_only(toy_tree: Path) -> None:
    code = "import transfuse; from transfuse._native import hand; print(hand.twice(4))"
    assert says(toy_tree, "1", code) == "8"
    assert "ImportError" in run(toy_tree, "0", code).stderr


@FORMS
def test_module_keeps_its_names(toy_tree: Path, mode: str) -> None:
    code = "from transfuse.deep.toy import Pair, fail; print(Pair.__module__, fail.__module__, Pair.__qualname__)"
    assert says(toy_tree, mode, code) == "transfuse.deep.toy transfuse.deep.toy Pair"


@FORMS
def test_signature_can_be_inspected(toy_tree: Path, mode: str) -> None:
    code = "import inspect; from transfuse.deep.toy import fail; print(*inspect.signature(fail).parameters)"
    assert says(toy_tree, mode, code) == "value text"


@FORMS
def test_pickle_of_one_form_is_read_by_the_other(toy_tree: Path, mode: str) -> None:
    dumped = says(
        toy_tree, mode, "import pickle; from transfuse.deep.toy import Pair; print(pickle.dumps(Pair(7)).hex())"
    )
    other = "0" if mode == "require" else "require"
    code = f"import pickle; print(pickle.loads(bytes.fromhex({dumped!r})))"
    assert says(toy_tree, other, f"import transfuse; {code}") == "Pair(left=7, right=2)"


@FORMS
def test_traceback_shows_the_source_line(toy_tree: Path, mode: str) -> None:
    code = (
        "import traceback; from transfuse.deep.toy import fail\ntry: fail(3)\nexcept ValueError: traceback.print_exc()"
    )
    error = run(toy_tree, mode, code).stderr
    assert "# the line a traceback must show" in error
    assert "deep/toy.py" in error


def test_edit_brings_the_plain_form_back_until_the_next_build(toy_tree: Path, tmp_path: Path) -> None:
    top = tmp_path / "copy"
    shutil.copytree(toy_tree, top)
    source = top / "src/transfuse/deep/toy.py"
    source.write_text(source.read_text().replace("right: int = 2", "right: int = 5"))
    code = "import transfuse; import transfuse.deep.toy as t; print(t.Pair(1).total(), *transfuse.compiled)"
    assert says(top, "1", code) == "6 transfuse._native.hand"
    assert "the source has changed" in run(top, "require", code).stderr
    build(top, "require")
    assert says(top, "require", code) == "6 transfuse._native.hand transfuse.deep.toy"


def test_source_put_back_with_an_old_time_is_compiled_again(toy_tree: Path, tmp_path: Path) -> None:
    top = tmp_path / "copy"
    shutil.copytree(toy_tree, top)
    source = top / "src/transfuse/deep/toy.py"
    source.write_text(source.read_text().replace("right: int = 2", "right: int = 5"))
    os.utime(source, (1_000_000_000, 1_000_000_000))
    build(top, "require")
    assert says(top, "require", "import transfuse.deep.toy as t; print(t.Pair(1).total())") == "6"


def test_module_that_cannot_be_compiled_stays_plain_with_one_line(toy_tree: Path, tmp_path: Path) -> None:
    top = tmp_path / "copy"
    shutil.copytree(toy_tree, top)
    (top / "src/transfuse/_native/hand.pyx").write_text(
        'cdef extern from "no-such-header.h":\n    int x\ndef f(): return x\n'
    )
    done = build(top, "1")
    assert done.returncode == 0, done.stderr
    assert [
        line for line in done.stderr.splitlines() if "stays plain" in line and "transfuse._native.hand" in line
    ] != []
    assert says(top, "1", "import transfuse; print(*transfuse.compiled)") == "transfuse.deep.toy"


def test_build_without_a_compiler_succeeds_and_says_so(toy_tree: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build",
            "--build-base",
            str(tmp_path / "b"),
            "egg_info",
            "-e",
            str(tmp_path),
        ],
        cwd=toy_tree,
        env={**os.environ, "CC": "no-such-compiler", "TRANSFUSE_NATIVE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "no compiled form: no C compiler (no-such-compiler)" in done.stderr
    assert list((tmp_path / "b").rglob("*.so")) == []

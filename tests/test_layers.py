"""The order of the layers, read from the sources: who may import whom, and see the environment or a clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
PACKAGE = SRC / "transfuse"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Unit (folder or top-level module of the package) -> the units it may import. "*" is anything. `_native` is the
# compiled form's switch and hand-written parts: any unit may ask it, it may know only what carries bytes.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "quiet": set(),
    "_native": {"errors", "wire"},
    "wire": {"errors"},
    "arch": {"errors", "wire"},
    "fs": {"errors"},
    "session": {"errors", "quiet", "wire", "arch", "fs"},
    "transports": {"errors", "quiet", "wire", "arch"},
    "filesystems": {"errors", "fs", "wire.layout"},
    "client": {"errors", "quiet", "wire", "arch", "fs", "session", "transports"},
    "executor": set(),
    "sandbox": {"errors"},
    "workers": {"transports"},
    "server": {"errors", "wire", "arch", "fs", "session", "transports", "executor", "workers"},
    "trace": {"errors", "wire", "arch", "session"},
    "testing": {"errors", "wire", "arch", "fs", "session", "transports", "filesystems", "client", "server", "trace"},
    "clients": {"errors", "fs", "session", "transports", "filesystems", "client", "server"},
    "__init__": {"errors", "wire", "arch", "fs", "session", "transports", "filesystems", "client", "clients", "server"},
    "__main__": {"cli"},
    "cli": {"*"},
}
SEES_ENVIRONMENT = {"cli", "__main__"}
SEES_ENVIRONMENT_MODULES = {"transfuse._native.loader"}
NO_CLOCK = {"errors", "quiet", "wire", "arch", "fs", "session"}
CLOCKS = {"time", "datetime", "random", "secrets", "uuid"}
# Module -> why it has no test file of its own.
NO_TEST_FILE: dict[str, str] = {
    "transfuse.__main__": "one call of cli.main",
    **{
        f"transfuse.testing.posix.cases.{path.stem}": "every case is run by tests/testing/posix/test_runner.py"
        for path in PACKAGE.glob("testing/posix/cases/[!_]*.py")
    },
}


def name_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def exists(module: str) -> bool:
    base = SRC.joinpath(*module.split("."))
    return base.is_dir() or any(base.with_suffix(s).exists() for s in (".py", ".pyx", ".pyi"))


def imports(path: Path, tree: ast.AST) -> set[str]:
    """Absolute names of everything imported, anywhere in the module; `from package import module` names the module."""
    module = name_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                base = ".".join(up + ([node.module] if node.module else []))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if base.startswith("transfuse") and exists(inner) else base)
    return found


def forbidden_imports(path: Path, tree: ast.AST) -> list[str]:
    module = name_of(path)
    unit = unit_of(module)
    allowed = MAY_IMPORT[unit]
    bad = []
    for target in sorted(imports(path, tree)):
        if target.split(".")[0] != "transfuse" or "*" in allowed:
            continue
        if target == "transfuse":
            if unit != "__init__":
                bad.append("transfuse (the package's __init__ is for users)")
            continue
        other = unit_of(target)
        inside = target.removeprefix("transfuse.")
        if other not in {unit, "_native"} and not any(inside == a or inside.startswith(a + ".") for a in allowed):
            bad.append(target)
    return bad


def environment_uses(tree: ast.AST) -> list[str]:
    names = {("os", "environ"), ("os", "environb"), ("os", "getenv"), ("os", "getenvb"), ("sys", "argv")}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in names:
            found.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
        if isinstance(node, ast.ImportFrom):
            found += [
                f"line {node.lineno}: {node.module}.{a.name}" for a in node.names if (node.module, a.name) in names
            ]
    return found


@pytest.fixture(params=MODULES, ids=name_of)
def source(request: pytest.FixtureRequest) -> tuple[Path, ast.AST]:
    return request.param, ast.parse(request.param.read_bytes(), str(request.param))


def test_imports_go_down_only(source: tuple[Path, ast.AST]) -> None:
    unit = unit_of(name_of(source[0]))
    assert unit in MAY_IMPORT, f"{unit} has no place in the order of the layers: give it one in {Path(__file__).name}"
    assert forbidden_imports(*source) == []


def test_environment_is_read_by_the_command_line_only(source: tuple[Path, ast.AST]) -> None:
    module = name_of(source[0])
    if unit_of(module) not in SEES_ENVIRONMENT and module not in SEES_ENVIRONMENT_MODULES:
        assert environment_uses(source[1]) == []


def test_clocks_and_randomness_stay_above_the_pure_layers(source: tuple[Path, ast.AST]) -> None:
    if unit_of(name_of(source[0])) in NO_CLOCK:
        assert {target.split(".")[0] for target in imports(*source)} & CLOCKS == set()


def test_module_has_a_test_file(source: tuple[Path, ast.AST]) -> None:
    """tests/ mirrors src: transfuse/fs/nodes.py has tests/fs/test_nodes.py (leading underscores dropped)."""
    path, tree = source
    module = name_of(path)
    if path.name == "__init__.py" or module in NO_TEST_FILE:
        return
    folders = [part.lstrip("_") for part in path.relative_to(PACKAGE).parent.parts]
    expected = ROOT.joinpath("tests", *folders, f"test_{path.stem.lstrip('_')}.py")
    assert expected.exists(), f"{expected.relative_to(ROOT)} is missing (or give the reason in NO_TEST_FILE)"


def test_excused_modules_exist_and_are_tested_elsewhere_for_a_reason() -> None:
    assert {module: reason for module, reason in NO_TEST_FILE.items() if not reason or not exists(module)} == {}


def parsed(text: str, file: str) -> tuple[Path, ast.AST]:
    return PACKAGE / file, ast.parse(text)


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("from transfuse.session import x", "wire/a.py"),
        ("from ..session.client import x", "wire/a.py"),
        ("from .. import session", "transports/a.py"),
        ("import transfuse.server", "fs/a.py"),
        ("def f():\n    from transfuse.wire.decode import x", "filesystems/a.py"),
        ("import transfuse", "session/a.py"),
    ],
)
def test_an_import_upwards_is_found(text: str, file: str) -> None:
    assert len(forbidden_imports(*parsed(text, file))) == 1


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("from transfuse.wire.layout import Struct", "filesystems/a.py"),
        ("from ..errors import X\nfrom . import b\nimport os", "wire/a.py"),
        ("from transfuse.cli import x", "cli/a.py"),
        ("from .._native import loader", "wire/a.py"),
    ],
)
def test_an_import_downwards_passes(text: str, file: str) -> None:
    assert forbidden_imports(*parsed(text, file)) == []


@pytest.mark.parametrize("text", ["import os\nos.environ['A']", "from os import getenv", "import sys\nsys.argv[1]"])
def test_a_use_of_the_environment_is_found(text: str) -> None:
    assert len(environment_uses(ast.parse(text))) == 1

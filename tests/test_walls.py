"""Walls that import-linter does not see: where a function may import a module of ours, and what a command costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "drift"
LONGEST = 500  # lines of a file: what can be read at a sitting
DOORS = (
    "capture",
    "checkpoints",
    "claims",
    "diagnose",
    "generate",
    "ladder",
    "logits",
    "plateau",
    "probe",
    "report",
    "sweep",
    "thin",
    "verify",
)
# Where a command, or a process that it starts, first needs torch or the scientific packages.
SEAMS = {
    *((f"{door}.py", "main") for door in DOORS),
    ("running/sweep/engines/engine.py", "computer"),
}


def inner_imports(source: str) -> Iterator[tuple[str, str]]:
    """Function and module of every import of drift's own modules inside a function."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if function and isinstance(child, ast.ImportFrom):
                if child.level or (child.module or "").split(".")[0] == "drift":
                    yield function, child.module or "."
            elif function and isinstance(child, ast.Import):
                yield from ((function, a.name) for a in child.names if a.name.split(".")[0] == "drift")
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, child.name if inside else function)  # type: ignore[attr-defined]

    return walk(ast.parse(source), "")


def test_a_function_that_imports_is_seen() -> None:
    inner = "    def g():\n        from drift.errors import DriftError\n"
    source = f"import drift\ndef f():\n{inner}    import drift.sweep, os\n"
    assert sorted(inner_imports(source)) == [("f", "drift.sweep"), ("g", "drift.errors")]


def test_functions_import_no_module_of_ours_save_at_the_seams() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), function)
        for path in PACKAGE.rglob("*.py")
        for function, _ in inner_imports(path.read_text(encoding="utf-8"))
    }
    assert found - SEAMS == set()
    assert {(f, n) for f, n in SEAMS if "/" in f} - found == set(), "seams that are none any more"


def test_no_file_is_longer_than_can_be_read_at_a_sitting() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n")
        for folder in ("drift", "tests", "bench")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {file: count for file, count in lines.items() if count > LONGEST} == {}


@pytest.mark.parametrize("door", DOORS)
def test_help_loads_neither_torch_nor_xarray(door: str) -> None:
    code = (
        f"import sys, drift.{door} as door\n"
        "try:\n    door.main(['--help'])\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "assert not {'torch', 'transformers', 'xarray', 'matplotlib'} & sys.modules.keys()"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"usage: python -m drift.{door}")


def test_importing_drift_attaches_the_accessor_without_importing_xarray() -> None:
    before = "import xarray, drift; assert 'drift.reading.accessor' not in sys.modules; "
    after = "import drift; assert 'xarray' not in sys.modules; import xarray; "
    use = "print(xarray.Dataset().drift.plateau.__qualname__); assert 'torch' not in sys.modules"
    asked = "import drift; from importlib.util import find_spec; assert find_spec('xarray'); import xarray; "
    for first in (before, after, asked):
        told = subprocess.run(
            [sys.executable, "-c", "import sys; " + first + use], capture_output=True, text=True, check=False
        )
        assert told.stdout == "CellAccessor.plateau\n", told.stderr


def private_names_from_elsewhere(source: str) -> Iterator[str]:
    """Names with an underscore that a file takes from another file of drift: imported, or reached for in a module."""
    tree = ast.parse(source)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "drift":
            for name in node.names:
                modules.add(name.asname or name.name)
                home = f"{node.module}.{name.name}".replace(".", "/")
                if name.name.startswith("_") and not name.name.endswith("__") and not is_module(home):
                    yield name.name
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules):
            continue
        if node.attr.startswith("_") and not node.attr.endswith("__"):
            yield f"{node.value.id}.{node.attr}"


def is_module(path: str) -> bool:
    """Whether a path such as `drift/_version` is a module or a package."""
    place = PACKAGE.parent / path
    return place.is_dir() or place.with_suffix(".py").is_file()


def test_a_private_name_from_elsewhere_is_seen() -> None:
    source = "from drift.running import corpus\nfrom drift._version import _x, __version__\ncorpus._text('a')\n"
    assert list(private_names_from_elsewhere(source)) == ["_x", "corpus._text"]
    assert list(private_names_from_elsewhere("from drift import _version\nself._x, _version.__version__")) == []


def test_no_private_name_crosses_a_file() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in private_names_from_elsewhere(path.read_text(encoding="utf-8"))
    }
    assert found == set()

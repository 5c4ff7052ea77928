"""Files that are not code: found in the source tree and in a wheel; and what the packaging files promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from drift import _resources
from drift._resources import resource
from drift.errors import DriftError

ROOT = Path(__file__).resolve().parent.parent


def test_found_in_the_source_tree() -> None:
    path = resource("data/checkpoints.json")
    assert path == ROOT / "data" / "checkpoints.json"
    assert json.loads(path.read_text(encoding="utf-8"))["schema"] == 1


def test_found_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "drift"
    carried = package / "_resource_files" / "notebooks"
    carried.mkdir(parents=True)
    (carried / "plateau.ipynb").write_text("{}")
    monkeypatch.setattr(_resources, "_PACKAGE", package)
    assert resource("notebooks/plateau.ipynb") == carried / "plateau.ipynb"


def test_missing_is_an_error_that_says_where() -> None:
    with pytest.raises(DriftError, match=r"no file 'data/nothing\.json'.*_resource_files.*install drift again"):
        resource("data/nothing.json")


def pyproject() -> dict[str, dict]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_wheel_carries_what_resource_is_asked_for() -> None:
    carried = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert carried["data/checkpoints.json"] == "drift/_resource_files/data/checkpoints.json"
    assert carried["notebooks"] == "drift/_resource_files/notebooks"
    for source in carried:
        assert (ROOT / source).exists()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_within_its_bound() -> None:
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            assert specifier.operator == "==", line
            if pin.marker is None or pin.marker.evaluate():
                pins[normal(pin.name)] = specifier.version
    project = pyproject()["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    for line in [*project["dependencies"], *extras]:
        wanted = Requirement(line)
        if wanted.name != "drift":
            assert pins[normal(wanted.name)] in wanted.specifier, line


def test_every_import_is_declared() -> None:
    """What drift imports anywhere is a dependency, an extra, drift itself, or Python's own."""
    import ast

    project = pyproject()["project"]
    declared = {normal(re.split(r"[\[>=<]", line)[0]) for line in project["dependencies"]}
    for extra in ("hub", "dask"):
        declared |= {normal(re.split(r"[\[>=<]", line)[0]) for line in project["optional-dependencies"][extra]}
    packages = {
        "yaml": "pyyaml",
        "PIL": "pillow",
        "IPython": "ipykernel",
        "nbclient": "nbconvert",
        "jupyter_client": "ipykernel",
    }
    imported: dict[str, str] = {}
    for path in (ROOT / "drift").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            imported |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    foreign = {name: where for name, where in imported.items() if name not in sys.stdlib_module_names | {"drift"}}
    assert "transformers" in foreign
    undeclared = {name: where for name, where in foreign.items() if normal(packages.get(name, name)) not in declared}
    assert undeclared == {}


def test_makefile_refuses_an_unsuitable_python(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text(
        '#!/bin/sh\nif [ "$1" = -V ]; then echo "Python 3.9.1"; else exit 1; fi\n',
    )
    old.chmod(0o755)
    for python, words in (
        (str(old), "is Python 3.9.1; drift needs Python 3.11 to 3.13"),
        ("no-python", "no 'no-python'"),
    ):
        command = ["make", "setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert not (tmp_path / "venv").exists()

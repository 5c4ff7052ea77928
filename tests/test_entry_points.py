"""The names that others build on, in whatever order they are first used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "first", ["drift.trace", "import drift.running.tracing", "import drift.sweep; drift.open_sweep"]
)
def test_trace_is_a_function_whatever_was_imported_first(first: str) -> None:
    code = f"import drift; {first}; assert callable(drift.trace) and callable(drift.trace_folds); drift.load_model"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_console_scripts_lead_to_functions() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    scripts = project["project"]["scripts"]
    names = ("sweep", "report", "checkpoints", "plateau", "claims", "ladder", "thin", "capture", "diagnose", "generate",
             "verify", "logits", "probe")  # fmt: skip
    assert set(scripts) == {f"drift-{name}" for name in names}
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function)), target

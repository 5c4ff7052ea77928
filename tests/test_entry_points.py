"""The names that others build on, in whatever order they are first used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

#: Each is run in a process forked from one that has imported the libraries, and nothing of ours.
FORKS = """
import os, sys, traceback
import torch, transformers.models.auto.modeling_auto, xarray
for code in sys.argv[1:]:
    if os.fork() == 0:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
TRACE = "import drift; {}; assert callable(drift.trace) and callable(drift.trace_folds); drift.load_model"
FOLD = "import drift; {}; assert callable(drift.generate) and callable(drift.fold) and drift.generate.main"


def test_doors_are_functions_whatever_was_imported_first() -> None:
    trace = ("drift.trace", "import drift.running.tracing", "import drift.sweep; drift.open_sweep")
    fold = ("drift.generate", "import drift.generate", "import drift.running.folding.generating")
    codes = [*map(TRACE.format, trace), *map(FOLD.format, fold), "import drift; assert drift.no_such_name"]
    done = subprocess.run([sys.executable, "-c", FORKS, *codes], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0"] * (len(codes) - 1) + ["1"], done.stderr


def test_console_scripts_lead_to_functions() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    scripts = project["project"]["scripts"]
    names = ("sweep", "report", "checkpoints", "plateau", "claims", "ladder", "thin", "capture", "diagnose", "generate",
             "verify", "logits", "probe")  # fmt: skip
    assert set(scripts) == {f"drift-{name}" for name in names}
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function)), target

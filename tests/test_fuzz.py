"""A short run of ``make fuzz``: inputs that nobody meant end in a result or an error of ours, for every format."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fuzz_formats
import pytest
from bench_tools import BENCH, bench

from drift.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
INPUTS = 20  # of each format


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    """The harness, which lies beside the package."""
    with bench("fuzz") as module:
        yield module


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    return set(fuzz_formats.formats())


def test_no_format_has_an_input_that_breaks_drift(tmp_path: Path, names: set[str]) -> None:
    command = [sys.executable, str(BENCH / "fuzz.py"), "--together", "--inputs", str(INPUTS * len(names))]
    out = tmp_path / "fuzz.json"
    done = subprocess.run(
        [*command, "--out", str(out), "--scratch", str(tmp_path / "scratch")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    told = json.loads(out.read_text())
    assert set(told["formats"]) == set(names)
    assert told["findings"] == 0
    for name, format_ in told["formats"].items():
        assert format_["tried"] >= INPUTS, name
        assert format_["results"] + format_["refused"] == format_["tried"], name


def test_every_format_has_inputs_that_are_taken_and_inputs_that_are_refused(fuzz: ModuleType, names: set[str]) -> None:
    """What the committed run of at least 100,000 says."""
    told = json.loads(fuzz.RESULTS.read_text())
    assert told["inputs"] >= fuzz.INPUTS
    assert told["findings"] == 0
    assert set(told["formats"]) == set(names)
    for name, format_ in told["formats"].items():
        assert format_["results"] > 0, name
        if name != "parameters":  # any text is a parameter
            assert format_["refused"] > 0, name


# ---------------------------------------------------------------- the harness finds what there is to be found
def trial(fuzz: ModuleType, probe: Any, tmp_path: Path) -> dict[str, Any]:
    made = fuzz.Trial("made", tmp_path / "last")
    made.run(probe, {"a": 1}, fuzz_formats.REFUSALS)
    return made.told()


def test_an_error_that_is_not_ours_is_a_finding_with_its_place_and_input(fuzz: ModuleType, tmp_path: Path) -> None:
    def broken(value: Any, folder: Path) -> None:
        raise KeyError("cells")

    told = trial(fuzz, broken, tmp_path)
    (finding,) = told["findings"].values()
    assert (told["tried"], told["results"], told["refused"]) == (1, 0, 0)
    assert finding["inputs"] == ["{'a': 1}"]
    assert "KeyError: 'cells'" in finding["error"]


def test_results_and_refusals_are_none(fuzz: ModuleType, tmp_path: Path) -> None:
    def refusing(value: Any, folder: Path) -> None:
        raise ConfigError("no")

    assert trial(fuzz, refusing, tmp_path)["refused"] == 1
    assert trial(fuzz, lambda value, folder: None, tmp_path)["results"] == 1
    assert not trial(fuzz, refusing, tmp_path)["findings"]


def test_an_input_without_end_is_a_finding(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(value: Any, folder: Path) -> None:
        while True:
            time.sleep(0)

    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    before = signal.signal(signal.SIGPROF, fuzz.too_long)
    try:
        told = trial(fuzz, endless, tmp_path)
    finally:
        signal.signal(signal.SIGPROF, before)
    assert "TooLongError" in next(iter(told["findings"]))


def test_what_a_process_died_of_is_told(fuzz: ModuleType, tmp_path: Path) -> None:
    last = tmp_path / "last"
    assert fuzz.watched([sys.executable, "-c", "pass"], last) == ""
    said = fuzz.watched([sys.executable, "-c", "import os; os.abort()"], last)
    assert said.startswith("the process ended with -6")
    asked = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 28,) * 2); bytes(1 << 30)"
    assert "MemoryError" in fuzz.watched([sys.executable, "-c", asked], last)

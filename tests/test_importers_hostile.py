"""Dumps of other programs that nobody meant: what is read, or an error of ours, for every importer."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import fuzz_dumps
from hypothesis import HealthCheck, given, settings

from drift.errors import DriftError

INPUTS = 150


@settings(max_examples=INPUTS, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(fuzz_dumps.inputs())
def test_no_dump_of_another_program_breaks_drift(given: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DriftError):
        fuzz_dumps.probe(given, Path(folder))


def test_sound_dumps_are_taken(tmp_path: Path) -> None:
    """What is spoilt is sound before: else every input would be refused for the same reason."""
    for number, (form, files) in enumerate(zip(fuzz_dumps.FORMATS, fuzz_dumps.sound(), strict=True)):
        layers = (0, 1, 2) if form.name == "vllm" else ()
        (tmp_path / str(number)).mkdir()
        fuzz_dumps.probe((files, 2, None, layers), tmp_path / str(number))

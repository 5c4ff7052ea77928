"""Dumps of other programs: what is spoilt when formats are fuzzed is sound before."""

from __future__ import annotations

from pathlib import Path

import fuzz_dumps


def test_sound_dumps_are_taken(tmp_path: Path) -> None:
    """What is spoilt is sound before: else every input would be refused for the same reason."""
    for number, (form, files) in enumerate(zip(fuzz_dumps.FORMATS, fuzz_dumps.sound(), strict=True)):
        layers = (0, 1, 2) if form.name == "vllm" else ()
        (tmp_path / str(number)).mkdir()
        fuzz_dumps.probe((files, 2, None, layers), tmp_path / str(number))

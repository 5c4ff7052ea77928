"""Fixtures of the tests of the sweep: a checkpoint with a text, an empty folder, the command line.

A file that needs one binds it to its name: were it imported, every argument of that name would redefine it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_tools import text_file, tiny_checkpoint

from drift.sweep import main


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint (``tiny``) and a text (``text.txt``)."""
    folder = tmp_path_factory.mktemp("sweep")
    tiny_checkpoint(folder / "tiny")
    text_file(folder / "text.txt")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def small(tiny: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of four cells that takes a moment."""
    axes = {
        "name": "small",
        "model": str(tiny / "tiny"),
        "dtype": "fp32",
        "chunk_size": [4, 16],
        "protocol": ["append", "reprime"],
        "documents": 2,
        "tokens": 24,
        "corpus": str(tiny / "text.txt"),
        "device": "cpu",
        "controls": False,
    }
    return axes | changes


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run the command line; returns exit code, stdout and stderr."""

    def command(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return command

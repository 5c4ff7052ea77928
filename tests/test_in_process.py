"""Notebooks that tests execute without a kernel give what a kernel gives."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import in_process
import nbformat
import numpy as np
import pytest
import synthetic_controls as made

from drift.dataset.files import write
from drift.reading.report import rendering


def render(folder: Path, out: Path) -> dict[str, bytes]:
    rendering.render(folder, ["precision"], out, report=lambda line: None)
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_pages_and_figures_are_those_of_a_kernel(tmp_path: Path) -> None:
    for dtype in ("bf16", "fp32"):
        write(made.make(np.geomspace(0.1, 0.2, 32).reshape(2, 16), dtype=dtype), tmp_path / "sweep" / f"{dtype}.nc")
    kernel = render(tmp_path / "sweep", tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "kept")
    main = sys.modules["__main__"]
    with in_process.notebooks():
        here = render(tmp_path / "sweep", tmp_path / "out")
    assert sys.modules["__main__"] is main
    assert set(here) == set(kernel)
    assert any(name.endswith(".png") for name in kernel)
    for name, content in kernel.items():
        # Cells that hold parameters are given new names each time.
        same = [re.sub(rb"cell-id=[0-9a-f]+", b"", one) for one in (content, here[name])]
        assert same[0] == same[1], name


def test_an_error_of_a_cell_is_raised(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "python3"}
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    with pytest.raises(ZeroDivisionError):
        in_process.execute(tmp_path / "bad.ipynb", {}, tmp_path / "p", "", tmp_path / "k")

"""Notebooks of one's own, for reports."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import v4


def own_notebook(path: Path, *codes: str, parameters: str = "sweep = ''") -> nbformat.NotebookNode:
    """Write a notebook of a cell of parameters and cells of code, and return it."""
    own = v4.new_notebook(
        cells=[v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(v4.new_code_cell, codes)],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}},
    )
    nbformat.write(own, path)
    return own

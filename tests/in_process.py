"""Notebooks executed in the process of the tests: a kernel of its own spends seconds on imports, for each notebook.

What comes out is what a kernel gives (`test_in_process.py` compares them), so tests of what pages say may do without
kernels; that reports work with kernels is tested where reports are.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from drift.reading.report import executing


def _outputs(shell: InteractiveShell, shown: Any, values: Sequence[object]) -> list[Any]:
    """What a cell put out, as a notebook holds it; its value, where it has one, comes last."""
    made = [nbformat.v4.new_output("stream", name="stdout", text=shown.stdout)] if shown.stdout else []
    for output in shown.outputs:
        made.append(nbformat.v4.new_output("display_data", data=output.data, metadata=output.metadata or {}))
    for value in values:
        data, metadata = shell.display_formatter.format(value)
        made.append(nbformat.v4.new_output("execute_result", data=data, metadata=metadata))
    return made


def execute(path: Path, parameters: Mapping[str, Any], partial: Path, kernel: str, kept: Path) -> Any:
    """Stands in for :func:`drift.reading.report.notebooks.execute_notebook`; an error of a cell is raised as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # papermill's own
        notebook = parameterize_notebook(load_notebook_node(str(path)), dict(parameters))
    main = sys.modules["__main__"]  # which a shell puts its own in place of
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    values: list[Any] = []
    shell.display_trap.hook = values.append
    try:
        with matplotlib.rc_context():
            for cell in notebook.cells:
                if cell.cell_type != "code":
                    continue
                values.clear()
                with capture_output() as shown:
                    result = shell.run_cell(cell.source)
                result.raise_error()
                cell.outputs = _outputs(shell, shown, [v for v in values if v is not None])
    finally:
        shell.reset(new_session=False)
        shell.history_manager.end_session()
        InteractiveShell.clear_instance()
        sys.modules["__main__"] = main
    return notebook


@contextmanager
def notebooks() -> Iterator[None]:
    """Have reports that are rendered inside execute their notebooks here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executing, "execute_notebook", execute)
        yield

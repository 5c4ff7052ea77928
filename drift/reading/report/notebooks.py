"""Find and execute the notebooks of a report."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drift
from drift._resources import resource
from drift.errors import DriftError, ReportError
from drift.paths import outside_path
from drift.writing import remove_leftovers, write_whole

__all__ = [
    "DEFAULT_NOTEBOOKS",
    "NotebookFailure",
    "comes_with_drift",
    "execute_notebook",
    "find_notebook",
    "own_kernel",
    "share_out",
]

#: Folders of kernels in the temporary directory; the number is that of the process that made them.
_KERNELS = re.compile(r"drift-kernel-([0-9]+)-.*")
DEFAULT_NOTEBOOKS = ("claims", "plateau", "precision", "readings", "layers")


class NotebookFailure(ReportError):
    """A notebook that stopped with an error; its partial output was kept."""


# ---------------------------------------------------------------------------------------------- notebooks
def find_notebook(notebook: str) -> Path:
    """Find a notebook by its path, or by name among those that come with drift."""
    path = outside_path(notebook, ReportError, said="--notebook")
    if path.suffix == ".ipynb" and path.is_file():
        return path
    if path.suffix == ".ipynb" or len(path.parts) > 1:
        raise ReportError(f"{notebook}: no such notebook")

    try:
        found = resource(f"notebooks/{notebook}.ipynb")
    except (DriftError, OSError) as error:
        raise ReportError(
            f"there is no notebook {notebook!r}; drift comes with {', '.join(DEFAULT_NOTEBOOKS)}, "
            "and a path to one of your own is welcome"
        ) from error
    if not found.is_file():
        raise ReportError(f"{found}: no such notebook; drift comes with {', '.join(DEFAULT_NOTEBOOKS)}")
    return found


def comes_with_drift(path: Path) -> bool:
    """Whether a notebook is one of drift's own."""
    try:
        return resource(f"notebooks/{path.name}").resolve() == path.resolve()
    except DriftError:
        return False


@contextmanager
def own_kernel() -> Iterator[str]:
    """Offer a kernel that is this very interpreter, under a name of its own, for as long as it is needed.

    A ``python3`` kernel that the user once registered may belong to another environment without drift in it.
    """
    name = f"drift-{os.getpid()}"
    before = os.environ.get("JUPYTER_PATH")
    remove_leftovers(Path(tempfile.gettempdir()), _KERNELS)  # of reports that were killed
    with tempfile.TemporaryDirectory(prefix=f"drift-kernel-{os.getpid()}-") as folder:
        root = str(Path(drift.__file__).resolve().parents[1])
        inherited = os.environ.get("PYTHONPATH", "")
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"],
            "display_name": "drift",
            "language": "python",
            "env": {
                "PYTHONPATH": root + (os.pathsep + inherited if inherited else ""),
                "MPLBACKEND": "agg",
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            },
        }
        home = Path(folder) / "kernels" / name
        home.mkdir(parents=True)
        write_whole(home / "kernel.json", json.dumps(spec).encode())
        os.environ["JUPYTER_PATH"] = folder + (os.pathsep + before if before else "")
        try:
            yield name
        finally:
            if before is None:
                os.environ.pop("JUPYTER_PATH", None)
            else:
                os.environ["JUPYTER_PATH"] = before


def _parameters(path: Path) -> dict[str, Any]:
    """Parameters of a notebook, by name."""
    import papermill

    try:
        return dict(papermill.inspect_notebook(str(path)))
    except Exception as error:  # papermill lets whatever the notebook's reader raises through
        raise ReportError(f"{path}: cannot be read as a notebook ({error})") from error


def share_out(paths: Sequence[Path], wanted: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """Give every notebook the parameters that it has; refuse those that none has."""
    known = {path: _parameters(path) for path in paths}
    for path, names in known.items():
        if "sweep" not in names:
            raise ReportError(
                f"{path}: has no parameter 'sweep' (in a cell tagged 'parameters'), so it cannot be given one"
            )
    for name in wanted:
        if name == "sweep":
            raise ReportError("parameter 'sweep' is the first argument; it cannot be given again")
        if not any(name in names for names in known.values()):
            offered = sorted({n for names in known.values() for n in names} - {"sweep"})
            raise ReportError(f"no notebook has a parameter {name!r}; there are {', '.join(offered)}")
    return {path: {k: v for k, v in wanted.items() if k in names} for path, names in known.items()}


def execute_notebook(path: Path, parameters: Mapping[str, Any], partial: Path, kernel: str, kept: Path) -> Any:
    """Run a notebook; on failure what it had got to is left at `partial`, which will be moved to `kept`."""
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # papermill's and its libraries' own; ours are raised in the kernel
            papermill.execute_notebook(
                str(path),
                str(partial),
                parameters=dict(parameters),
                kernel_name=kernel,
                progress_bar=False,
                log_output=False,
            )
    except PapermillExecutionError as error:
        raise NotebookFailure(
            f"{path.name}: cell {error.cell_index} stopped with {error.ename}: {error.evalue}\n"
            f"What it had got to is in {kept}"
        ) from error
    except OSError:  # of the disk, not of the notebook
        raise
    except Exception as error:
        raise NotebookFailure(f"{path.name}: could not be run: {type(error).__name__}: {error}") from error
    notebook = nbformat.read(partial, as_version=4)
    partial.unlink()
    return notebook

"""Open the folder of a sweep."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drift.dataset.files import read
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.paths import outside_path

__all__ = ["open_sweep"]

_ASIDE = (
    "Rename it, and every cell of the folder is read; or run the sweep again, which writes it anew and keeps the cells "
    "that are finished."
)


def open_sweep(folder: str | os.PathLike[str]) -> Sweep:
    """Open the cells of a sweep.

    Parameters
    ----------
    folder : path
        A folder with ``sweep.json`` and cells, or with cells alone (then all ``*.nc`` are read), or one cell's file.

    Returns
    -------
    Sweep
        Files that cannot be read are in ``.problems``, with the reason.

    Raises
    ------
    DatasetError
        If there is no such folder, or ``sweep.json`` is not readable.
    """
    root = outside_path(folder, DatasetError)
    if root.is_file():
        return Sweep([read(root)], folder=root.parent)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder. Run `python -m drift.sweep` to make one, or check the spelling.")
    plan, problems = _plan(root / "sweep.json"), {}
    present = sorted(root.glob("*.nc"))
    entries = _entries(plan)
    named = {Path(str(e[key])).name: e for e in entries for key in ("file", "path") if e.get(key)}
    wanted = [p for p in present if not named or p.name in named]
    cells = []
    for path in wanted:
        try:
            cells.append(read(path))
        except DatasetError as error:
            problems[str(path)] = str(error)
    there = {p.name for p in present}
    for name, entry in named.items():
        if name not in there and entry.get("state") in ("done", "complete", "finished"):
            problems[str(root / name)] = f"{root / name}: sweep.json says it is done, but there is no such file"
    failures = plan.get("failures")
    if not isinstance(failures, list):
        failures = [e for e in entries if e.get("state") == "failed"]
    # What failed here may have been computed elsewhere and copied in since.
    read_now = {p.name for p in wanted} - {Path(p).name for p in problems}
    failures = [f for f in failures if not (isinstance(f, dict) and str(f.get("file", "")) in read_now)]
    return Sweep(
        [ds for ds in cells if "control" not in ds.attrs],
        controls=[ds for ds in cells if "control" in ds.attrs],
        plan=plan,
        failures=[f if isinstance(f, dict) else {"reason": str(f)} for f in failures],
        problems=problems,
        left_out=[str(p) for p in present if p not in wanted],
        folder=root,
    )


def _plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error}). {_ASIDE}") from error
    if not isinstance(plan, dict):
        raise DatasetError(f"{path}: is not a JSON object. {_ASIDE}")
    return plan


def _entries(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    cells = plan.get("cells", [])
    if isinstance(cells, dict):
        cells = [{"file": name, **entry} for name, entry in cells.items() if isinstance(entry, dict)]
    return [e for e in cells if isinstance(e, dict)] if isinstance(cells, list) else []

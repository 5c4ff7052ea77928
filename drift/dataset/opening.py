"""Open the folder of a sweep."""

from __future__ import annotations

import os
from pathlib import Path

from drift._outside import OutsideError
from drift.dataset.files import read
from drift.dataset.plans import PLAN, PlanFile, read_plan
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
        Files that cannot be read are in ``.problems``, with the reason; ``sweep.json`` among them, where all or part of
        it is broken: then the cells that it does not name are told apart from others by nothing, and all are read.

    Raises
    ------
    DatasetError
        If there is no such folder, or nothing in it but a ``sweep.json`` that is not readable.
    """
    root = outside_path(folder, DatasetError)
    if root.is_file():
        return Sweep.of([read(root)], folder=root.parent)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder. Run `python -m drift.sweep` to make one, or check the spelling.")
    plan, problems = _plan(root / PLAN)
    present = sorted(root.glob("*.nc"))
    if not present and problems and plan is None:
        raise DatasetError(f"{next(iter(problems.values()))}. {_ASIDE}")
    plan = plan or PlanFile()
    entries = plan.cells
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
    failures = [e for e in entries if e.get("state") == "failed"] if plan.failures is None else plan.failures
    # What failed here may have been computed elsewhere and copied in since.
    read_now = {p.name for p in wanted} - {Path(p).name for p in problems}
    failures = [f for f in failures if str(f.get("file", "")) not in read_now]
    return Sweep.of(
        cells,
        plan=plan.record | {"cells": plan.cells} if plan.record or plan.cells else {},
        failures=failures,
        problems=problems,
        left_out=[str(p) for p in present if p not in wanted],
        folder=root,
    )


def _plan(path: Path) -> tuple[PlanFile | None, dict[str, str]]:
    """What ``sweep.json`` says, None where it says nothing; and what is wrong with it, by file."""
    try:
        plan = read_plan(path)
    except FileNotFoundError:
        return None, {}
    except (OSError, OutsideError) as error:
        return None, {str(path): f"{path}: cannot be read as a plan ({error}), so every cell of the folder was read"}
    if not plan.problems:
        return plan, {}
    first, more = plan.problems[0], len(plan.problems) - 1
    and_more = f", and {more} more" if more else ""
    return plan, {str(path): f"{path}: {first}{and_more}; what is broken there was left out. {_ASIDE}"}

"""From a configuration to cells: what each one is, what it is called, which share a descent, what they will cost.

No torch here: a plan is made, checked and shown in a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drift._bounds import MOST_CELLS
from drift.errors import ConfigError
from drift.paths import outside_path
from drift.running.sweep.cells import Cell
from drift.running.sweep.config import AXES, Config, load_config
from drift.running.sweep.cost import cell_bytes, correction, task_bytes
from drift.running.sweep.gpus import cuda_problem
from drift.running.sweep.groups import Group, shape_of
from drift.running.sweep.memory import free, resident_bytes
from drift.running.sweep.resolving import Problems, resolve_grid
from drift.running.sweep.state import Folder, Survey

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep in the order of computing, and what its folder already holds.

    ``memory`` are the bytes that a descent may take; None is what the device has free.
    """

    config: Config
    folder: Folder
    cells: tuple[Cell, ...]
    survey: Survey
    memory: int | None = None

    def budget(self, device: str) -> int | None:
        """Bytes that a descent may take now, where anything says so."""
        if self.memory is not None or (device == "cuda" and cuda_problem()):
            return self.memory
        available = free(device)
        # What this process holds already is part of what a descent is reckoned to take.
        return available if available is None or device != "cpu" else available + resident_bytes()

    def surveyed(self) -> Plan:
        """The same plan after a (new) look into the folder."""
        return replace(self, survey=self.folder.survey({cell.file: cell.hash for cell in self.cells}))

    def groups(self, cells: Sequence[Cell] | None = None) -> list[Group]:
        """Cells (all by default) by descent, in the plan's order."""
        together: dict[tuple[object, ...], list[Cell]] = {}
        for cell in self.cells if cells is None else cells:
            together.setdefault(cell.descent, []).append(cell)
        return [Group(tuple(members)) for members in together.values()]

    def state(self, cell: Cell) -> str:
        """``done``, ``failed`` or ``pending``."""
        if cell.file in self.survey.done:
            return "done"
        return "failed" if cell.file in self.survey.failures else "pending"

    def estimate(self, cells: Sequence[Cell]) -> dict[str, float | int]:
        """Estimate ``seconds``, ``memory_bytes``, ``disk_bytes`` of computing cells; some are of ``unknown`` size."""
        total: dict[str, float | int] = {"seconds": 0.0, "memory_bytes": 0.0, "disk_bytes": 0.0, "unknown": 0}
        weights: tuple[object, ...] = ()
        for group in self.groups(cells):
            first = group.cells[0]
            cost = group.cost(self.budget(first.device))
            if cost is None:
                total["unknown"] += len(group.cells)
                continue
            total["seconds"] += cost.seconds * correction(self.survey.timings, device=first.device, dtype=first.dtype)
            if first.weights != weights:
                total["seconds"] += cost.load_seconds
                weights = first.weights
            total["memory_bytes"] = max(total["memory_bytes"], cost.memory_bytes)
            total["disk_bytes"] += sum(_bytes_of(cell) for cell in group.cells)
        return total


def plan(
    config: Config | str | Path | None = None,
    out: str | Path | None = None,
    *,
    dry_run: bool = False,
    look: bool = True,
    memory: int | None = None,
) -> Plan:
    """Make the plan of a sweep and look at what its folder already holds.

    Parameters
    ----------
    config : Config, str, Path, optional
        A configuration, or what :func:`load_config` reads (default: the preset ``default``).
    out : path, optional
        The sweep's folder; ``data/sweeps/NAME`` under the current directory by default.
    dry_run : bool
        A CUDA device that is not there is no error: nothing will be computed here.
    look : bool
        Whether to look into the folder; without, every cell counts as pending.
    memory : int, optional
        Bytes that a descent may take; by default what its device has free.

    Returns
    -------
    Plan
        Cells in the order of computing: those that share weights stand together, those that share a descent too.

    Raises
    ------
    ConfigError
        With every problem that can be known before computing, one line each.
    """
    if not isinstance(config, Config):
        config = load_config(config)
    _check_count(config)
    problems = Problems()
    cells: dict[str, Cell] = {}
    for grid in config.grids:
        for cell in resolve_grid(grid, config, problems, dry_run):
            known = cells.get(cell.hash)
            # The same cell in two grids is one cell; it has the permission that either gives it.
            if known is None or (cell.beyond_context and not known.beyond_context):
                cells[cell.hash] = cell
    for label in dict.fromkeys(cell.label for cell in cells.values()):
        names = list(dict.fromkeys(cell.model for cell in cells.values() if cell.label == label))
        if len(names) > 1:
            problems.add(
                f"{config.source}: model",
                f"{' and '.join(names)} would both be called {label!r} in the results; rename one of them",
            )
    problems.raise_any()
    folder = Folder(outside_path(out, said="--out") if out is not None else Path("data") / "sweeps" / config.name)
    folder.check()
    made = Plan(config, folder, _in_order(cells.values()), Survey(), memory)
    return made.surveyed() if look else made


def _bytes_of(cell: Cell) -> float:
    """Estimate of a cell's bytes on disk."""
    text = {"documents": cell.documents, "tokens": cell.tokens, "chunk_size": cell.chunk_size}
    return (
        task_bytes(questions=cell.questions, **text)
        if cell.task
        else cell_bytes(shape_of(cell.model, cell.checkpoint), **text)
    )


def _check_count(config: Config) -> None:
    """Count the cells of all grids before one of them is made."""
    count = sum(
        math.prod(len(values) for name in AXES if isinstance(values := getattr(grid, name), list))
        for grid in config.grids
    )
    if count > MOST_CELLS:
        raise ConfigError(
            f"{config.source}: its grids have {count:,} cells; at most {MOST_CELLS:,} are planned at once. Split it "
            "into sweeps of their own"
        )


def _in_order(cells: Any) -> tuple[Cell, ...]:
    """Cells that share weights together, models in the order they were written, folds within a descent sorted."""
    rank: dict[object, int] = {}
    for cell in cells:
        for key in (("m", cell.model), cell.weights, cell.descent):
            rank.setdefault(key, len(rank))
    return tuple(
        sorted(
            cells,
            key=lambda c: (
                rank["m", c.model],
                rank[c.weights],
                rank[c.descent],
                c.protocol,
                c.reference,
                c.chunk_size,
                c.hash,
            ),
        )
    )

"""Choose cells of a plan by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drift.errors import ConfigError
from drift.running.sweep.cells import Cell
from drift.running.sweep.config import AXES, NO_TASK, closest, parse_pair
from drift.running.sweep.planning import Plan

if TYPE_CHECKING:
    pass

__all__ = ["select"]

# ---------------------------------------------------------------- which cells


def select(todo: Plan, only: Sequence[str] = ()) -> tuple[Cell, ...]:
    """The cells of a plan that match every ``axis=value,value``.

    Raises
    ------
    ConfigError
        If an axis is unknown, or no cell has a value.
    """
    cells = todo.cells
    for text in only:
        axis, values = parse_pair(text, "--only", (*AXES, "logit_stride", "half_matmul"))
        present = list(dict.fromkeys(str(value) for cell in todo.cells for value in _names(cell, axis)))
        for value in values:
            if value not in present:
                raise ConfigError(
                    f"--only {text}: no cell of this plan has {axis} {value!r}; there are {', '.join(present)}"
                    f"{closest(value, present)}"
                )
        cells = tuple(cell for cell in cells if set(_names(cell, axis)) & set(values))
    if only and not cells:
        raise ConfigError(f"--only {' --only '.join(only)}: each matches some cells, but no cell matches all")
    return cells


def _names(cell: Cell, axis: str) -> tuple[str, ...]:
    """What a value may be called: a model by its name or its label."""
    if axis == "task":
        return (cell.task or NO_TASK,)
    return (cell.label, cell.model) if axis == "model" else (str(getattr(cell, axis)),)

"""What can be wrong with axes and numbers of a task cell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from drift.dataset.faults import bound_faults, coordinate_faults, variable_faults
from drift.dataset.task_contract import NONE, TASK_COORDINATES, TASK_SCALARS, TASK_VARIABLES

__all__ = ["task_faults"]


def task_faults(ds: xr.Dataset, newer: bool) -> list[str]:
    """Say which rules of the contract of task cells are broken.

    Parameters
    ----------
    ds : xarray.Dataset
    newer : bool
        Whether it was written under a later version of the contract, of which what is known here is asked for.
    """
    asked = [name for name, row in TASK_VARIABLES.items() if not row.optional]
    faults = [*coordinate_faults(ds, TASK_COORDINATES, newer), *variable_faults(ds, TASK_VARIABLES, asked, newer)]
    # Values only make sense on sound axes.
    return faults or [*_axis_faults(ds), *bound_faults(ds, TASK_VARIABLES), *_value_faults(ds)]


def _axis_faults(ds: xr.Dataset) -> Iterator[str]:
    for dim in ("document", "question", "fact", "step"):
        if ds.sizes[dim] == 0:
            yield f"{dim} is empty"
        elif not np.array_equal(ds[dim], np.arange(ds.sizes[dim])):
            yield f"{dim} does not count from 0"
    if not 0 < float(ds["unit_roundoff"]) < 1:
        yield f"unit_roundoff {float(ds['unit_roundoff'])} is not between 0 and 1"
    for name in TASK_SCALARS:
        if TASK_COORDINATES[name].kind == "U" and not str(ds[name].values):
            yield f"coordinate {name} is empty"
    for name in ("chunk_size", "tokens"):
        if int(ds[name]) < 1:
            yield f"{name} is {int(ds[name])}"


def _value_faults(ds: xr.Dataset) -> Iterator[str]:
    start, stop, distance = (ds[f"fact_{what}"].values for what in ("start", "stop", "distance"))
    there = start != NONE
    if ((stop != NONE) != there).any() or ((distance != NONE) != there).any():
        yield "fact_start, fact_stop and fact_distance are not there for the same facts"
    if (there[..., 1:] & ~there[..., :-1]).any():
        yield "a fact stands behind one that is not there"
    if not there.any(-1).all():
        yield "an answer rests on no fact"
    if (there & ((stop <= start) | (stop > ds["text_tokens"].values[:, None, None]))).any():
        yield "a fact is no stretch of its text"
    if (there & (distance < 1)).any():
        yield "fact_distance is less than 1: a question stands behind its text"
    carried = ds["fold_carried_bytes"].values
    if (carried[:, 0] == NONE).any() or ((carried[:, 1:] != NONE) & (carried[:, :-1] == NONE)).any():
        yield "fold_carried_bytes has steps behind one that is not there"
    if ((ds["fold_peak_bytes"].values != NONE) != (carried != NONE)).any():
        yield "fold_peak_bytes is not there for the same steps as fold_carried_bytes"
    if (ds["first_difference"].values > ds["generated_tokens_fold"].values).any():
        yield "first_difference lies behind the answer"

"""Make a dataset of a task cell from arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from drift.dataset.building import cast, encoded
from drift.dataset.contract import DTYPES
from drift.dataset.task_contract import TASK_COORDINATES, TASK_SCALARS, TASK_SCHEMA_VERSION, TASK_VARIABLES
from drift.dataset.validating import validate
from drift.errors import DatasetError

__all__ = ["build_task"]


def build_task(
    variables: Mapping[str, np.ndarray], *, scalars: Mapping[str, str | int | float], attrs: Mapping[str, object]
) -> xr.Dataset:
    """Assemble one task cell from plain arrays.

    Parameters
    ----------
    variables : mapping of str to ndarray
        One array for every row of :data:`drift.dataset.task_contract.TASK_VARIABLES`, axes in the row's order.
    scalars : mapping
        The scalar coordinates :data:`drift.dataset.task_contract.TASK_SCALARS`.
    attrs : mapping
        Provenance, see :data:`drift.dataset.task_contract.TASK_ATTRS`; as for :func:`drift.dataset.building.build`.

    Returns
    -------
    xarray.Dataset
        Units and long names set on variables and coordinates, already validated.

    Raises
    ------
    DatasetError
        If anything is missing, unknown, of the wrong shape or out of its bounds.
    """
    unknown = [name for name in variables if name not in TASK_VARIABLES]
    missing = [name for name in TASK_VARIABLES if name not in variables]
    missing += [name for name in TASK_SCALARS if name not in scalars]
    if unknown or missing:
        raise DatasetError(
            f"build: missing: {', '.join(missing) or 'nothing'}; unknown: {', '.join(unknown) or 'none'}"
        )
    sizes: dict[str, int] = {}
    for name, row in TASK_VARIABLES.items():
        shape = np.shape(variables[name])
        if len(shape) != len(row.dims) or any(
            sizes.setdefault(dim, size) != size for dim, size in zip(row.dims, shape, strict=True)
        ):
            raise DatasetError(f"build: {name} has shape {shape}, which does not go with its axes {row.dims}")
    values: dict[str, Any] = {**scalars, **{dim: np.arange(size) for dim, size in sizes.items()}}
    coords = {
        name: xr.Variable(
            c.dims,
            np.asarray(values[name], dtype=str) if c.kind == "U" else cast(name, values[name], DTYPES[c.kind]),
            {"long_name": c.long_name} | ({"units": c.units} if c.units else {}),
        )
        for name, c in TASK_COORDINATES.items()
    }
    data = {
        name: xr.Variable(
            row.dims,
            np.asarray(variables[name], dtype=str)
            if row.dtype == "U"
            else cast(name, variables[name], np.dtype(row.dtype)),
            {"long_name": row.long_name, "units": row.units},
        )
        for name, row in TASK_VARIABLES.items()
    }
    title = "The task {task}, asked of full attention and of the fold: {model}, {dtype}, {protocol}, chunk {chunk_size}"
    ds = xr.Dataset(data, coords, encoded(attrs, title.format(**scalars), TASK_SCHEMA_VERSION))
    validate(ds)
    return ds

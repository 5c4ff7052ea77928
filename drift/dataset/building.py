"""Make a dataset of a cell from arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from drift.dataset.contract import (
    COORDINATES,
    DTYPES,
    QUANTILES,
    SCALARS,
    SCHEMA_VERSION,
    VARIABLES,
    layer_kinds,
    required,
    schema_of,
)
from drift.dataset.hashing import canonical_json
from drift.dataset.validating import validate
from drift.errors import DatasetError

__all__ = ["build", "cast", "encoded"]


# ---------------------------------------------------------------------------------------------- build
def _encode(value: object) -> str | int | float:
    """Encode an attribute as one of the three types that netCDF keeps as they are."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    return canonical_json(value)


def encoded(attrs: Mapping[str, object], title: str, schema_version: str) -> dict[str, str | int | float]:
    """Attributes as netCDF keeps them, with what every cell has filled in where it is absent."""
    made = {name: _encode(value) for name, value in attrs.items()}
    made.setdefault("Conventions", "CF-1.11")
    made.setdefault("title", title)
    made.setdefault("schema_version", schema_version)
    if "config_sha256" not in made and isinstance(made.get("config_json"), str):
        made["config_sha256"] = hashlib.sha256(str(made["config_json"]).encode()).hexdigest()
    return made


def _sizes(variables: Mapping[str, np.ndarray], schema: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, values in variables.items():
        if name not in VARIABLES:
            raise DatasetError(
                f"build: there is no variable {name!r} in the data contract; known are {', '.join(VARIABLES)}. "
                "Add a row to VARIABLES in drift/dataset/contract.py first."
            )
        dims = VARIABLES[name].dims
        shape = np.shape(values)
        if len(shape) != len(dims):
            raise DatasetError(f"build: {name} has shape {shape}, but its axes are ({', '.join(dims)})")
        for dim, size in zip(dims, shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise DatasetError(f"build: {name} has {size} along {dim!r}, where another variable has {sizes[dim]}")
    missing = [name for name in required(schema) if name not in variables]
    if missing:
        raise DatasetError(f"build: missing variables: {', '.join(missing)}")
    return sizes


def cast(name: str, values: object, dtype: np.dtype[Any]) -> np.ndarray:
    """An array of a dtype.

    Raises
    ------
    DatasetError
        If the values of `name` cannot be stored so.
    """
    array = np.asarray(values)
    try:
        with np.errstate(invalid="ignore"):
            made = array.astype(dtype, order="C")  # the bytes on disk must not depend on strides
    except (TypeError, ValueError) as error:
        raise DatasetError(f"build: {name} cannot be stored as {dtype}: {error}") from error
    if dtype.kind == "i" and array.dtype.kind != "i" and not np.array_equal(made, array):
        raise DatasetError(f"build: {name} holds values that are not whole numbers")
    return made


def build(
    variables: Mapping[str, np.ndarray],
    *,
    scalars: Mapping[str, str | int | float],
    token_start: np.ndarray,
    token_stop: np.ndarray,
    attrs: Mapping[str, object],
    draws: Sequence[int] = (),
    carries: Sequence[str] = (),
) -> xr.Dataset:
    """Assemble one cell from plain arrays.

    Parameters
    ----------
    variables : mapping of str to ndarray
        One array for every row of :data:`VARIABLES` that is not optional (in the schema version of `attrs`, where
        they carry one), axes in the row's order.
    scalars : mapping
        The scalar coordinates :data:`SCALARS`.
    token_start, token_stop : ndarray [step]
        The stretch of text of each chunk, in tokens; `token_stop` is one past the end.
    attrs : mapping
        Provenance, see :data:`REQUIRED_ATTRS`. bool becomes int; None, dict and list become JSON.
        ``Conventions``, ``title``, ``schema_version`` and ``config_sha256`` are filled in where absent.
    draws : sequence of int
        Seeds of the draws of the rounding floor, where `variables` hold one: [draw].
    carries : sequence of str
        What each block carries from chunk to chunk, where it is not keys and values in all of them: values of
        :data:`drift.dataset.contract.CARRIES`.

    Returns
    -------
    xarray.Dataset
        Units and long names set on variables and coordinates, already validated.

    Raises
    ------
    DatasetError
        If anything is missing, unknown, of the wrong shape or out of its bounds.
    """
    sizes = _sizes(variables, schema_of(attrs) or int(SCHEMA_VERSION))
    unknown = [name for name in scalars if name not in SCALARS]
    missing = [name for name in SCALARS if name not in scalars]
    if unknown or missing:
        raise DatasetError(f"build: scalar coordinates missing: {missing or 'none'}, unknown: {unknown or 'none'}")
    layers = sizes["layer"]
    values: dict[str, object] = {
        **scalars,
        "document": np.arange(sizes["document"]),
        "step": np.arange(sizes["step"]),
        "token_start": token_start,
        "token_stop": token_stop,
        "layer": np.arange(layers),
        "layer_kind": np.array(layer_kinds(layers), dtype=str),
        "block": np.arange(1, sizes["block"] + 1),
        "quantile": np.array(QUANTILES),
        **({"draw": np.array(draws, dtype=np.int64)} if "draw" in sizes else {}),
        **({"carries": np.array(carries, dtype=str)} if len(carries) else {}),
    }
    coords = {}
    for name, c in COORDINATES.items():
        if c.optional and name not in values:
            continue
        array = np.asarray(values[name], dtype=str) if c.kind == "U" else cast(name, values[name], DTYPES[c.kind])
        if array.ndim != len(c.dims):
            raise DatasetError(f"build: coordinate {name} has shape {array.shape}, but its axes are {c.dims}")
        meta = {"long_name": c.long_name} | ({"units": c.units} if c.units else {})
        coords[name] = xr.Variable(c.dims, array, meta)
    data = {
        name: xr.Variable(
            v.dims, cast(name, variables[name], np.dtype(v.dtype)), {"long_name": v.long_name, "units": v.units}
        )
        for name, v in VARIABLES.items()
        if name in variables
    }
    title = "Drift of the folded pass against full attention: {model}, {dtype}, {protocol}, chunk {chunk_size}"
    try:
        ds = xr.Dataset(data, coords, encoded(attrs, title.format(**scalars), SCHEMA_VERSION))
    except ValueError as error:
        raise DatasetError(f"build: {error}") from error
    validate(ds)
    return ds

"""What can be wrong with a cell of any kind, rule by rule: attributes, coordinates, variables, bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

from drift._outside import Form, OutsideError, parse_json
from drift.dataset.attributes import FORMS
from drift.dataset.contract import DTYPES, Coordinate, Variable

__all__ = ["attr_faults", "bound_faults", "coordinate_faults", "hash_faults", "variable_faults"]


def attr_faults(ds: xr.Dataset, required: Sequence[str]) -> Iterator[str]:
    """What is wrong with the attributes of a cell that must have the `required` ones."""
    missing = [name for name in required if name not in ds.attrs]
    if missing:
        yield f"missing attributes: {', '.join(missing)}"
    for name, value in ds.attrs.items():
        if isinstance(value, bool | np.bool_) or not isinstance(value, str | int | float | np.integer | np.floating):
            yield f"attribute {name} is a {type(value).__name__}, not text or a number"
        elif str(name).endswith("_json"):
            try:
                parse_json(str(value), FORMS.get(str(name), Form.ANYTHING))
            except OutsideError as error:
                yield f"attribute {name} is {error}"
    for name in ("git_dirty", "threads", "seed", "bos_token_id", "logit_stride"):
        if name in ds.attrs and not isinstance(ds.attrs[name], int | np.integer):
            yield f"attribute {name} is not a whole number"


def hash_faults(ds: xr.Dataset) -> Iterator[str]:
    """Whether a cell's configuration is what its hash says."""
    if {"config_json", "config_sha256"} <= ds.attrs.keys():
        digest = hashlib.sha256(str(ds.attrs["config_json"]).encode()).hexdigest()
        if digest != ds.attrs["config_sha256"]:
            yield "config_sha256 is not the sha256 of config_json"


def coordinate_faults(ds: xr.Dataset, coordinates: Mapping[str, Coordinate], newer: bool) -> Iterator[str]:
    """What is wrong with the coordinates of a cell; of a `newer` contract, what is known here is asked for."""
    missing = [name for name, c in coordinates.items() if name not in ds.coords and (not c.optional or name in ds.dims)]
    if missing:
        yield f"missing coordinates: {', '.join(missing)}"
    unknown = [str(name) for name in ds.coords if name not in coordinates]
    if newer:  # what a new variable lies on is let pass; what tells cells apart is not
        unknown = [name for name in unknown if not ds[name].dims]
    if unknown:
        yield f"unknown coordinates: {', '.join(unknown)}"
    for name, c in coordinates.items():
        if name not in ds.coords:
            continue
        array = ds.variables[name]  # without its coordinates, which take ten times as long to find
        if array.dims != c.dims:
            yield f"coordinate {name} is on {array.dims}, not {c.dims}"
        if c.kind == "U" and array.dtype.kind != "U":
            yield f"coordinate {name} is {array.dtype}, not text"
        if c.kind in DTYPES and array.dtype != DTYPES[c.kind]:
            yield f"coordinate {name} is {array.dtype}, not {DTYPES[c.kind]}"
        if array.attrs.get("units") != c.units:
            yield f"coordinate {name} has units {array.attrs.get('units')!r}, not {c.units!r}"
        if not array.attrs.get("long_name"):
            yield f"coordinate {name} has no long_name"


def variable_faults(
    ds: xr.Dataset, variables: Mapping[str, Variable], required: Sequence[str], newer: bool
) -> Iterator[str]:
    """What is wrong with the variables of a cell that must have the `required` ones; `newer` as for coordinates."""
    missing = [name for name in required if name not in ds.data_vars]
    if missing:
        yield f"missing variables: {', '.join(missing)}"
    unknown = [str(name) for name in ds.data_vars if name not in variables]
    if unknown and not newer:
        yield f"unknown variables: {', '.join(unknown)}"
    for name, v in variables.items():
        if name not in ds.data_vars:
            continue
        array = ds.variables[name]
        if array.dims != v.dims:
            yield f"{name} is on {array.dims}, not {v.dims}"
        if array.dtype.kind != "U" if v.dtype == "U" else array.dtype != np.dtype(v.dtype):
            yield f"{name} is {array.dtype}, not {v.dtype}"
        if array.attrs.get("units") != v.units:
            yield f"{name} has units {array.attrs.get('units')!r}, not {v.units!r}"
        if not array.attrs.get("long_name"):
            yield f"{name} has no long_name"


def bound_faults(ds: xr.Dataset, variables: Mapping[str, Variable]) -> Iterator[str]:
    """Which variables hold values beyond their bounds."""
    for name, v in variables.items():
        if name not in ds.data_vars:
            continue
        values = ds.variables[name].values
        if v.lower is not None and (values < v.lower).any():
            yield f"{name} has {int((values < v.lower).sum())} values below {v.lower:g} (lowest {values.min():g})"
        if v.upper is not None and (values > v.upper).any():
            yield f"{name} has {int((values > v.upper).sum())} values above {v.upper:g}"
        if "quantile" in v.dims and (values[..., 1:] < values[..., :-1]).any():
            yield f"{name} falls along quantile"

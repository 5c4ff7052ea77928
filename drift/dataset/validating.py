"""Hold a dataset against the contract."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import xarray as xr

from drift._outside import Form, OutsideError, parse_json
from drift.dataset.attributes import FORMS
from drift.dataset.contract import (
    COORDINATES,
    DTYPES,
    QUANTILES,
    REQUIRED_ATTRS,
    SCALARS,
    SCHEMA_VERSION,
    VARIABLES,
    layer_kinds,
    required,
    schema_of,
)
from drift.errors import DatasetError, Fault

__all__ = ["validate"]


# ---------------------------------------------------------------------------------------------- validate
def validate(ds: xr.Dataset, source: str = "dataset") -> None:
    """Refuse a dataset that breaks the contract.

    Parameters
    ----------
    ds : xarray.Dataset
    source : str
        What the message calls the dataset, usually the file's name.

    Raises
    ------
    DatasetError
        With every rule of the cell's own schema version that is broken, not only the first; `fault` says of which
        kind. Of a newer version, what is known here is asked for (see :mod:`drift.dataset.contract`).
    """
    if "schema_version" not in ds.attrs:
        problem = "not a drift dataset (it has no schema_version)"
        raise DatasetError(f"{source}: {problem}", fault=Fault.CONTRACT, problem=problem)
    schema = schema_of(ds.attrs)
    if schema is None:
        problem = f"schema_version {ds.attrs['schema_version']!r} is not a whole number of at least 1"
        raise DatasetError(f"{source}: {problem}", fault=Fault.CONTRACT, problem=problem)
    newer = schema > int(SCHEMA_VERSION)
    misnamed = [*_hash_faults(ds)]
    faults = [*_attr_faults(ds), *misnamed]
    structure = [*_coordinate_faults(ds, newer), *_variable_faults(ds, schema)]
    faults += structure
    if not structure:  # values only make sense on sound axes
        faults += _axis_faults(ds)
        faults += _value_faults(ds)
    if faults:
        problem = f"breaks the data contract: {'; '.join(faults)}"
        if newer:
            problem += f" (it was written under schema version {schema}; this drift knows {SCHEMA_VERSION})"
        kind = Fault.CONFIG if misnamed else Fault.CONTRACT
        raise DatasetError(f"{source}: {problem}", fault=kind, problem=problem)


def _attr_faults(ds: xr.Dataset) -> Iterator[str]:
    missing = [name for name in REQUIRED_ATTRS if name not in ds.attrs]
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


def _hash_faults(ds: xr.Dataset) -> Iterator[str]:
    if {"config_json", "config_sha256"} <= ds.attrs.keys():
        digest = hashlib.sha256(str(ds.attrs["config_json"]).encode()).hexdigest()
        if digest != ds.attrs["config_sha256"]:
            yield "config_sha256 is not the sha256 of config_json"


def _coordinate_faults(ds: xr.Dataset, newer: bool) -> Iterator[str]:
    missing = [
        name
        for name, c in COORDINATES.items()
        if name not in ds.coords and (not c.optional or set(c.dims) <= set(ds.dims))
    ]
    if missing:
        yield f"missing coordinates: {', '.join(missing)}"
    unknown = [str(name) for name in ds.coords if name not in COORDINATES]
    if newer:  # what a new variable lies on is let pass; what tells cells apart is not
        unknown = [name for name in unknown if not ds[name].dims]
    if unknown:
        yield f"unknown coordinates: {', '.join(unknown)}"
    for name, c in COORDINATES.items():
        if name not in ds.coords:
            continue
        array = ds[name]
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


def _variable_faults(ds: xr.Dataset, schema: int) -> Iterator[str]:
    missing = [name for name in required(schema) if name not in ds.data_vars]
    if missing:
        yield f"missing variables: {', '.join(missing)}"
    unknown = [str(name) for name in ds.data_vars if name not in VARIABLES]
    if unknown and schema <= int(SCHEMA_VERSION):
        yield f"unknown variables: {', '.join(unknown)}"
    for name, v in VARIABLES.items():
        if name not in ds.data_vars:
            continue
        array = ds[name]
        if array.dims != v.dims:
            yield f"{name} is on {array.dims}, not {v.dims}"
        if array.dtype != np.dtype(v.dtype):
            yield f"{name} is {array.dtype}, not {v.dtype}"
        if array.attrs.get("units") != v.units:
            yield f"{name} has units {array.attrs.get('units')!r}, not {v.units!r}"
        if not array.attrs.get("long_name"):
            yield f"{name} has no long_name"


def _axis_faults(ds: xr.Dataset) -> Iterator[str]:
    thinned = "thinned_json" in ds.attrs
    for dim in ("document", "step") if thinned else ("document", "step", "block"):
        if ds.sizes[dim] == 0:
            yield f"{dim} is empty"
        elif not np.array_equal(ds[dim], np.arange(ds.sizes[dim]) + (dim == "block")):
            yield f"{dim} does not count from {int(dim == 'block')}"
    layers = ds.sizes["layer"]
    if thinned:
        kept = _kept_layers(ds.attrs["thinned_json"])
        if kept is None:
            yield (
                "thinned_json does not say how many bits and which of how many layers were kept (the embeddings, the "
                "last block and the final norm are)"
            )
        elif ds["layer"].values.tolist() != kept:
            yield f"layer is {ds['layer'].values.tolist()}, but thinned_json says that {kept} were kept"
        elif ds["block"].values.tolist() != kept[1:-1]:
            yield f"block is {ds['block'].values.tolist()}, which does not go with layers {kept}"
    elif not np.array_equal(ds["layer"], np.arange(layers)):
        yield "layer does not count from 0"
    if layers != ds.sizes["block"] + 2:
        yield f"{layers} layers do not go with {ds.sizes['block']} blocks (embeddings, blocks, final norm)"
    elif ds["layer_kind"].values.tolist() != layer_kinds(layers):
        yield "layer_kind is not embedding, block ..., final_norm"
    if not np.array_equal(ds["quantile"], QUANTILES):
        yield f"quantile is not {QUANTILES}"
    if not 0 < float(ds["unit_roundoff"]) < 1:
        yield f"unit_roundoff {float(ds['unit_roundoff'])} is not between 0 and 1"
    for name in SCALARS:
        if COORDINATES[name].kind == "U" and not str(ds[name].values):
            yield f"coordinate {name} is empty"
    size = int(ds["chunk_size"])
    if size < 1:
        yield f"chunk_size is {size}"
    start, stop = ds["token_start"].values, ds["token_stop"].values
    if len(start):
        if start[0] < 0 or (stop <= start).any() or (start[1:] != stop[:-1]).any():
            yield "token_start and token_stop are not stretches that follow one another"
        elif (stop - start).max() > max(size, 1):
            yield f"a step holds {(stop - start).max()} tokens, more than chunk_size {size}"


def _kept_layers(thinned_json: object) -> list[int] | None:
    """Return the layers that :func:`drift.dataset.thinning.thin` says it kept, or None if it cannot have."""
    try:
        record = parse_json(str(thinned_json), Form.THINNED)
    except OutsideError:
        return None
    kept: list[int] = record["layers"]
    depth = record["layers_of"]
    sound = kept[0] == 0 and kept[-2:] == [depth - 2, depth - 1]
    return kept if sound and kept == sorted(set(kept)) else None


def _value_faults(ds: xr.Dataset) -> Iterator[str]:
    for name, v in VARIABLES.items():
        if name not in ds.data_vars:
            continue
        values = ds[name].values
        if v.lower is not None and (values < v.lower).any():
            yield f"{name} has {int((values < v.lower).sum())} values below {v.lower:g} (lowest {values.min():g})"
        if v.upper is not None and (values > v.upper).any():
            yield f"{name} has {int((values > v.upper).sum())} values above {v.upper:g}"
        if "quantile" in v.dims and (values[..., 1:] < values[..., :-1]).any():
            yield f"{name} falls along quantile"
    if (ds["target_count"].values > ds["logit_count"].values).any():
        yield "target_count exceeds logit_count"
    length = ds["token_stop"].values - ds["token_start"].values
    if (ds["logit_count"].values > length).any():
        yield "logit_count exceeds the tokens of its step"

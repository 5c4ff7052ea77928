"""Hold a dataset against the contract."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from drift._outside import Form, OutsideError, parse_json
from drift.dataset.contract import (
    CARRIES,
    COORDINATES,
    QUANTILES,
    REQUIRED_ATTRS,
    SCALARS,
    SCHEMA_VERSION,
    VARIABLES,
    layer_kinds,
    required,
    schema_of,
)
from drift.dataset.faults import attr_faults, bound_faults, coordinate_faults, hash_faults, variable_faults
from drift.dataset.task_contract import TASK_ATTRS, TASK_SCHEMA_VERSION, is_task
from drift.dataset.task_faults import task_faults
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
    task = is_task(ds.variables)
    known = TASK_SCHEMA_VERSION if task else SCHEMA_VERSION
    newer = schema > int(known)
    misnamed = [*hash_faults(ds)]
    faults = [*attr_faults(ds, TASK_ATTRS if task else REQUIRED_ATTRS), *misnamed]
    faults += task_faults(ds, newer) if task else _faults(ds, schema, newer)
    if faults:
        problem = f"breaks the data contract: {'; '.join(faults)}"
        if newer:
            problem += f" (it was written under schema version {schema}; this drift knows {known})"
        kind = Fault.CONFIG if misnamed else Fault.CONTRACT
        raise DatasetError(f"{source}: {problem}", fault=kind, problem=problem)


def _faults(ds: xr.Dataset, schema: int, newer: bool) -> list[str]:
    """What is wrong with axes and numbers of a cell that measures drift."""
    faults = [*coordinate_faults(ds, COORDINATES, newer), *variable_faults(ds, VARIABLES, required(schema), newer)]
    # Values only make sense on sound axes.
    return faults or [*_axis_faults(ds), *_value_faults(ds)]


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
    if "carries" in ds.coords and not set(ds["carries"].values.tolist()) <= set(CARRIES.values()):
        yield f"carries is not one of {', '.join(CARRIES.values())} in every block"
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
    yield from bound_faults(ds, VARIABLES)
    if (ds["target_count"].values > ds["logit_count"].values).any():
        yield "target_count exceeds logit_count"
    length = ds["token_stop"].values - ds["token_start"].values
    if (ds["logit_count"].values > length).any():
        yield "logit_count exceeds the tokens of its step"

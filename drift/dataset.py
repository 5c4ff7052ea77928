"""The data contract: one cell of a sweep is one netCDF file, and this module is the only door to it.

The running wing calls :func:`build` and :func:`write`; the reading wing calls :func:`read` and
:func:`open_sweep`. A file that breaks the contract is refused on both sides, with a message that names the
file, the rule and the remedy. NumPy, pandas and xarray only: a sweep can be read where torch is not installed.

A sweep is a folder of cells, and ``sweep.json`` beside them. Of that file this module reads

``cells``
    a list of objects (or an object of objects); each names its file under ``file`` (or ``path``) and may carry
    ``state`` and ``reason``. Files of the folder that no object names belong to another plan and are left out.
``failures``
    a list of objects with at least ``reason``; where absent, the cells whose ``state`` is ``failed``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import xarray as xr

from drift.accessor import SweepAccessor
from drift.errors import DatasetError

__all__ = [
    "QUANTILES",
    "REFERENCES",
    "REQUIRED_ATTRS",
    "SCALARS",
    "SCHEMA_VERSION",
    "TEMPORARY_SUFFIX",
    "VARIABLES",
    "VOLATILE_ATTRS",
    "Sweep",
    "Variable",
    "build",
    "canonical_json",
    "content_hash",
    "curve",
    "open_sweep",
    "read",
    "same_data",
    "validate",
    "write",
]

SCHEMA_VERSION = "1"

#: Quantiles over a chunk's tokens, kept where a variable has the dimension ``quantile``.
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)

#: What a fold can be compared with.
REFERENCES: dict[str, str] = {
    "full": "full attention at the same precision",
    "gold": "full attention in true float64",
    "fold64": "the same fold in true float64",
    "previous": "the fold's own previous chain step, token by token",
    "unperturbed": "the same fold without the perturbation (for the protocol perturbed)",
}

#: Attributes that may differ between two runs of the same cell.
VOLATILE_ATTRS = ("created_at", "elapsed_s")

REQUIRED_ATTRS = (
    "Conventions",
    "title",
    "schema_version",
    "config_json",
    "config_sha256",
    "drift_version",
    "git_commit",
    "git_dirty",
    "versions_json",
    "device_name",
    "driver",
    "threads",
    "numerics_json",
    "checkpoint_sha256",
    "tokens_sha256",
    "seed",
    "created_at",
    "elapsed_s",
    "bos_token_id",
    "logit_stride",
)

#: Suffix of the files that :func:`write` makes beside its target; a killed process may leave one behind.
TEMPORARY_SUFFIX = ".tmp"

# Divergences and cosine distances are differences of nearly equal sums: rounding can leave them this far below 0.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Variable:
    """One row of the table of variables.

    Attributes
    ----------
    dims : tuple of str
        Dimensions, in order.
    units : str
        ``"1"`` for pure numbers, else ``"nat"``, ``"byte"``, ``"s"``.
    long_name : str
        What a reader sees on an axis.
    dtype : str
        NumPy dtype, exactly.
    lower, upper : float or None
        Bounds that every value which is not NaN keeps.
    optional : bool
        Whether a cell may do without: what only some references or protocols have.
    """

    dims: tuple[str, ...]
    units: str
    long_name: str
    dtype: str = "float64"
    lower: float | None = 0.0
    upper: float | None = None
    optional: bool = False


_DLS = ("document", "layer", "step")
_DBS = ("document", "block", "step")
_DS = ("document", "step")

#: The contract's table: adding a measure is one row here and the function in ``drift/measures.py``.
VARIABLES: dict[str, Variable] = {
    "hidden_rel_l2": Variable(_DLS, "1", "relative L2 drift of the hidden state"),
    "hidden_cosine_distance": Variable(
        _DLS, "1", "cosine distance of the hidden state, mean over tokens", lower=-_ROUNDING, upper=2 + _ROUNDING
    ),
    "hidden_max_abs": Variable(_DLS, "1", "largest absolute difference of the hidden state"),
    "hidden_norm": Variable(_DLS, "1", "Frobenius norm of the reference hidden state"),
    "nonfinite_count": Variable(_DLS, "1", "elements of the hidden state that are NaN or Inf in either lane", "int64"),
    "hidden_rel_l2_token": Variable(
        (*_DLS, "quantile"), "1", "relative L2 drift of the hidden state, quantiles over tokens"
    ),
    "key_rel_l2": Variable(_DBS, "1", "relative L2 drift of the keys that the chunk appended"),
    "value_rel_l2": Variable(_DBS, "1", "relative L2 drift of the values that the chunk appended"),
    "logit_kl": Variable(_DS, "nat", "KL(full || fold) of the next-token distribution, mean", lower=-_ROUNDING),
    "logit_js": Variable(
        _DS,
        "nat",
        "Jensen-Shannon divergence of the next-token distribution, mean",
        lower=-_ROUNDING,
        upper=float(np.log(2)) + _ROUNDING,
    ),
    "logit_rel_l2": Variable(_DS, "1", "relative L2 drift of the logits"),
    "logit_max_abs": Variable(_DS, "1", "largest absolute difference of a logit"),
    "top1_agreement": Variable(_DS, "1", "share of tokens with the same most likely next token", upper=1.0),
    "delta_p_rms": Variable(_DS, "1", "RMS change in the probability of the correct token", upper=1.0 + _ROUNDING),
    "nll_full": Variable(_DS, "nat", "negative log-likelihood per token, full attention", lower=-_ROUNDING),
    "nll_fold": Variable(_DS, "nat", "negative log-likelihood per token, fold", lower=-_ROUNDING),
    "logit_nonfinite_count": Variable(_DS, "1", "logits that are NaN or Inf in either lane", "int64"),
    "logit_count": Variable(_DS, "1", "tokens whose logits were compared", "int64"),
    "target_count": Variable(_DS, "1", "compared tokens that have a next token", "int64"),
    "cache_bytes": Variable(_DS, "byte", "carried KV cache after the step", "int64"),
    "logit_kl_token": Variable(
        (*_DS, "quantile"),
        "nat",
        "KL(full || fold) of the next-token distribution, quantiles over tokens",
        lower=-_ROUNDING,
    ),
    # Only against the reference `gold`: the difference as a sum of three vectors, see drift.tracing.
    "hidden_rel_l2_structural": Variable(
        _DLS, "1", "relative L2 of the structural part: the fold against full attention, both in float64", optional=True
    ),
    "hidden_rel_l2_full_rounding": Variable(_DLS, "1", "relative L2 of the rounding of full attention", optional=True),
    "hidden_rel_l2_fold_rounding": Variable(_DLS, "1", "relative L2 of the rounding that folding adds", optional=True),
    "hidden_share_structural": Variable(
        _DLS, "1", "share of the squared error that is structural", lower=None, optional=True
    ),
    "hidden_share_full_rounding": Variable(
        _DLS, "1", "share of the squared error that is rounding of full attention", lower=None, optional=True
    ),
    "hidden_share_fold_rounding": Variable(
        _DLS, "1", "share of the squared error that is rounding added by folding", lower=None, optional=True
    ),
    # Only for `decode`.
    "token_agreement": Variable(
        _DS,
        "1",
        "share of tokens that both lanes would have generated alike, given the same random numbers",
        upper=1.0,
        optional=True,
    ),
}


@dataclass(frozen=True)
class _Coordinate:
    dims: tuple[str, ...]
    kind: str  # "U" text, "i" int64, "f" float64
    units: str | None
    long_name: str


_COORDINATES: dict[str, _Coordinate] = {
    "model": _Coordinate((), "U", None, "checkpoint"),
    "family": _Coordinate((), "U", None, "model family"),
    "dtype": _Coordinate((), "U", None, "rung of the precision ladder"),
    "unit_roundoff": _Coordinate((), "f", "1", "unit roundoff of the rung"),
    "chunk_size": _Coordinate((), "i", "token", "tokens per chunk"),
    "protocol": _Coordinate((), "U", None, "reading of the fold"),
    "reference": _Coordinate((), "U", None, "what the fold is compared with"),
    "attn_implementation": _Coordinate((), "U", None, "attention implementation"),
    "device": _Coordinate((), "U", None, "device"),
    "document": _Coordinate(("document",), "i", "1", "document"),
    "step": _Coordinate(("step",), "i", "1", "chain step (chunk number)"),
    "token_start": _Coordinate(("step",), "i", "token", "first token of the chunk"),
    "token_stop": _Coordinate(("step",), "i", "token", "one past the last token of the chunk"),
    "layer": _Coordinate(("layer",), "i", "1", "layer (0 = embeddings, last = after the final norm)"),
    "layer_kind": _Coordinate(("layer",), "U", None, "what the layer is"),
    "block": _Coordinate(("block",), "i", "1", "transformer block"),
    "quantile": _Coordinate(("quantile",), "f", "1", "quantile over the chunk's tokens"),
}

#: Scalar coordinates: the axes by which the cells of a sweep are told apart.
SCALARS = tuple(name for name, c in _COORDINATES.items() if not c.dims)

_DTYPES = {"i": np.dtype("int64"), "f": np.dtype("float64")}


# ---------------------------------------------------------------------------------------------- hashes
def _plain(obj: Any) -> Any:
    """Turn what JSON does not know, but provenance is full of, into what it does."""
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, np.ndarray):
        return obj.tolist()
    if isinstance(obj, Path):
        return str(obj)
    raise TypeError(f"{type(obj).__name__} has no JSON form")


def canonical_json(obj: object) -> str:
    """Write `obj` as JSON in the one form that hashes are taken of.

    Keys are sorted, there is no white space, and NaN and Inf are refused.

    Raises
    ------
    DatasetError
        If `obj` has no such form.
    """
    try:
        return json.dumps(
            obj, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=_plain
        )
    except (TypeError, ValueError) as error:
        raise DatasetError(f"cannot be written as canonical JSON: {error}") from error


def content_hash(obj: object) -> str:
    """Return the sha256 (64 hex digits) of the canonical JSON of `obj`."""
    return hashlib.sha256(canonical_json(obj).encode()).hexdigest()


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


def _sizes(variables: Mapping[str, np.ndarray]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, values in variables.items():
        if name not in VARIABLES:
            raise DatasetError(
                f"build: there is no variable {name!r} in the data contract; known are {', '.join(VARIABLES)}. "
                "Add a row to VARIABLES in drift/dataset.py first."
            )
        dims = VARIABLES[name].dims
        shape = np.shape(values)
        if len(shape) != len(dims):
            raise DatasetError(f"build: {name} has shape {shape}, but its axes are ({', '.join(dims)})")
        for dim, size in zip(dims, shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise DatasetError(f"build: {name} has {size} along {dim!r}, where another variable has {sizes[dim]}")
    missing = [name for name, v in VARIABLES.items() if name not in variables and not v.optional]
    if missing:
        raise DatasetError(f"build: missing variables: {', '.join(missing)}")
    return sizes


def _cast(name: str, values: object, dtype: np.dtype[Any]) -> np.ndarray:
    array = np.asarray(values)
    try:
        with np.errstate(invalid="ignore"):
            cast = array.astype(dtype, order="C")  # the bytes on disk must not depend on strides
    except (TypeError, ValueError) as error:
        raise DatasetError(f"build: {name} cannot be stored as {dtype}: {error}") from error
    if dtype.kind == "i" and array.dtype.kind != "i" and not np.array_equal(cast, array):
        raise DatasetError(f"build: {name} holds values that are not whole numbers")
    return cast


def build(
    variables: Mapping[str, np.ndarray],
    *,
    scalars: Mapping[str, str | int | float],
    token_start: np.ndarray,
    token_stop: np.ndarray,
    attrs: Mapping[str, object],
) -> xr.Dataset:
    """Assemble one cell from plain arrays.

    Parameters
    ----------
    variables : mapping of str to ndarray
        One array for every row of :data:`VARIABLES` that is not optional, axes in the row's order.
    scalars : mapping
        The scalar coordinates :data:`SCALARS`.
    token_start, token_stop : ndarray [step]
        The stretch of text of each chunk, in tokens; `token_stop` is one past the end.
    attrs : mapping
        Provenance, see :data:`REQUIRED_ATTRS`. bool becomes int; None, dict and list become JSON.
        ``Conventions``, ``title``, ``schema_version`` and ``config_sha256`` are filled in where absent.

    Returns
    -------
    xarray.Dataset
        Units and long names set on variables and coordinates, already validated.

    Raises
    ------
    DatasetError
        If anything is missing, unknown, of the wrong shape or out of its bounds.
    """
    sizes = _sizes(variables)
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
        "layer_kind": np.array(_layer_kinds(layers), dtype=str),
        "block": np.arange(1, sizes["block"] + 1),
        "quantile": np.array(QUANTILES),
    }
    coords = {}
    for name, c in _COORDINATES.items():
        array = np.asarray(values[name], dtype=str) if c.kind == "U" else _cast(name, values[name], _DTYPES[c.kind])
        if array.ndim != len(c.dims):
            raise DatasetError(f"build: coordinate {name} has shape {array.shape}, but its axes are {c.dims}")
        meta = {"long_name": c.long_name} | ({"units": c.units} if c.units else {})
        coords[name] = xr.Variable(c.dims, array, meta)
    data = {
        name: xr.Variable(
            v.dims, _cast(name, variables[name], np.dtype(v.dtype)), {"long_name": v.long_name, "units": v.units}
        )
        for name, v in VARIABLES.items()
        if name in variables
    }
    encoded = {name: _encode(value) for name, value in attrs.items()}
    encoded.setdefault("Conventions", "CF-1.11")
    encoded.setdefault(
        "title",
        "Drift of the folded pass against full attention: {model}, {dtype}, {protocol}, chunk {chunk_size}".format(
            **scalars
        ),
    )
    encoded.setdefault("schema_version", SCHEMA_VERSION)
    if "config_sha256" not in encoded and isinstance(encoded.get("config_json"), str):
        encoded["config_sha256"] = hashlib.sha256(str(encoded["config_json"]).encode()).hexdigest()
    try:
        ds = xr.Dataset(data, coords, encoded)
    except ValueError as error:
        raise DatasetError(f"build: {error}") from error
    validate(ds)
    return ds


def _layer_kinds(layers: int) -> list[str]:
    return ["embedding", *["block"] * max(layers - 2, 0), "final_norm"][:layers]


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
        With every rule that is broken, not only the first.
    """
    version = ds.attrs.get("schema_version")
    if version is None:
        raise DatasetError(f"{source}: not a drift dataset (it has no schema_version)")
    if str(version) != SCHEMA_VERSION:
        raise DatasetError(
            f"{source}: written under schema version {version}, but this drift reads version {SCHEMA_VERSION}. "
            "Read it with the drift that wrote it, or run the sweep again."
        )
    faults = [*_attr_faults(ds)]
    structure = [*_coordinate_faults(ds), *_variable_faults(ds)]
    faults += structure
    if not structure:  # values only make sense on sound axes
        faults += _axis_faults(ds)
        faults += _value_faults(ds)
    if faults:
        raise DatasetError(f"{source}: breaks the data contract: " + "; ".join(faults))


def _attr_faults(ds: xr.Dataset) -> Iterator[str]:
    missing = [name for name in REQUIRED_ATTRS if name not in ds.attrs]
    if missing:
        yield f"missing attributes: {', '.join(missing)}"
    for name, value in ds.attrs.items():
        if isinstance(value, bool | np.bool_) or not isinstance(value, str | int | float | np.integer | np.floating):
            yield f"attribute {name} is a {type(value).__name__}, not text or a number"
        elif str(name).endswith("_json"):
            try:
                json.loads(str(value))
            except ValueError:
                yield f"attribute {name} is not JSON"
    for name in ("git_dirty", "threads", "seed", "bos_token_id", "logit_stride"):
        if name in ds.attrs and not isinstance(ds.attrs[name], int | np.integer):
            yield f"attribute {name} is not a whole number"
    if {"config_json", "config_sha256"} <= ds.attrs.keys():
        digest = hashlib.sha256(str(ds.attrs["config_json"]).encode()).hexdigest()
        if digest != ds.attrs["config_sha256"]:
            yield "config_sha256 is not the sha256 of config_json"


def _coordinate_faults(ds: xr.Dataset) -> Iterator[str]:
    missing = [name for name in _COORDINATES if name not in ds.coords]
    if missing:
        yield f"missing coordinates: {', '.join(missing)}"
    unknown = [str(name) for name in ds.coords if name not in _COORDINATES]
    if unknown:
        yield f"unknown coordinates: {', '.join(unknown)}"
    for name, c in _COORDINATES.items():
        if name not in ds.coords:
            continue
        array = ds[name]
        if array.dims != c.dims:
            yield f"coordinate {name} is on {array.dims}, not {c.dims}"
        if c.kind == "U" and array.dtype.kind != "U":
            yield f"coordinate {name} is {array.dtype}, not text"
        if c.kind in _DTYPES and array.dtype != _DTYPES[c.kind]:
            yield f"coordinate {name} is {array.dtype}, not {_DTYPES[c.kind]}"
        if array.attrs.get("units") != c.units:
            yield f"coordinate {name} has units {array.attrs.get('units')!r}, not {c.units!r}"
        if not array.attrs.get("long_name"):
            yield f"coordinate {name} has no long_name"


def _variable_faults(ds: xr.Dataset) -> Iterator[str]:
    missing = [name for name, v in VARIABLES.items() if name not in ds.data_vars and not v.optional]
    if missing:
        yield f"missing variables: {', '.join(missing)}"
    unknown = [str(name) for name in ds.data_vars if name not in VARIABLES]
    if unknown:
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
    elif ds["layer_kind"].values.tolist() != _layer_kinds(layers):
        yield "layer_kind is not embedding, block ..., final_norm"
    if not np.array_equal(ds["quantile"], QUANTILES):
        yield f"quantile is not {QUANTILES}"
    if not 0 < float(ds["unit_roundoff"]) < 1:
        yield f"unit_roundoff {float(ds['unit_roundoff'])} is not between 0 and 1"
    for name in SCALARS:
        if _COORDINATES[name].kind == "U" and not str(ds[name].values):
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
    """Return the layers that :func:`drift.thin.thin` says it kept, or None if it could not have kept these."""
    try:
        record = json.loads(str(thinned_json))
        kept, depth = record["layers"], record["layers_of"]
        sound = all(type(n) is int for n in [*kept, depth, record["bits"]])
        sound = sound and len(kept) > 2 and kept[0] == 0 and kept[-2:] == [depth - 2, depth - 1]
        return kept if sound and kept == sorted(set(kept)) else None
    except (ValueError, KeyError, TypeError):
        return None


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


# ---------------------------------------------------------------------------------------------- files
def write(ds: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write one cell, whole or not at all.

    The bytes go to a temporary file beside the target, are flushed to the disk, and only then take the target's
    name; the folder is flushed last. So a file that exists is complete, whenever the process is killed. The same
    dataset gives the same bytes.

    Parameters
    ----------
    ds : xarray.Dataset
        A cell that keeps the contract.
    path : path
        The target; its folder is made if need be. An existing file is replaced.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    DatasetError
        If the dataset breaks the contract, or the disk refuses.
    """
    target = Path(path)
    validate(ds, source=target.name)
    # Through memory: a full disk is then an OSError of ours, not a crash inside the HDF5 library.
    payload = bytes(_clean(ds).to_netcdf(None, engine="h5netcdf", encoding=_encoding(ds)))
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise DatasetError(
            f"{target}: cannot be written ({error.strerror or error}). Check that the folder is writable and that "
            f"the disk has {len(payload) / 1e6:.1f} MB free, then run the sweep again; finished cells are kept."
        ) from error
    return target


def _clean(ds: xr.Dataset) -> xr.Dataset:
    """Copy `ds` in the contract's order and without encodings, so that equal datasets give equal bytes."""
    clean = ds.drop_encoding()[[name for name in VARIABLES if name in ds.data_vars]]
    clean = clean.assign_coords({name: clean.coords[name] for name in _COORDINATES})
    clean.attrs = dict(sorted(ds.attrs.items()))
    for name in clean.variables:
        clean[name].attrs = dict(sorted(clean[name].attrs.items()))
    return clean


def _encoding(ds: xr.Dataset) -> dict[str, dict[str, object]]:
    encoding: dict[str, dict[str, object]] = {}
    for name in [*_COORDINATES, *(name for name in VARIABLES if name in ds.data_vars)]:
        array = ds[name]
        if array.dtype.kind == "f":
            encoding[name] = {"_FillValue": None}  # NaN is a value here, not a hole
        if name in VARIABLES and array.size:
            # fletcher32: a flipped bit on the disk is refused instead of plotted
            encoding.setdefault(name, {}).update(zlib=True, complevel=4, shuffle=True, fletcher32=True)
    return encoding


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read one cell into memory; no file stays open.

    Parameters
    ----------
    path : path

    Returns
    -------
    xarray.Dataset
        Validated. ``ds.encoding["source"]`` is the path.

    Raises
    ------
    DatasetError
        If the file is missing, truncated, not netCDF, or breaks the contract.
    """
    source = Path(path)
    remedy = "Delete it and run the sweep again."
    try:
        payload = source.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{source}: no such file") from error
    except OSError as error:
        raise DatasetError(f"{source}: cannot be read ({error.strerror or error})") from error
    if payload[:8] != b"\x89HDF\r\n\x1a\n":
        what = "is empty" if not payload else "is not a netCDF-4 file"
        raise DatasetError(f"{source}: {what}. {remedy}")
    try:
        ds = _parse(payload)
    except Exception as error:  # the HDF5 library raises nearly every kind on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{source}: truncated or damaged ({reason}). {remedy}") from error
    try:
        validate(ds, source=str(source))
    except DatasetError as error:
        raise DatasetError(f"{error}. {remedy}") from None
    ds.encoding["source"] = str(source)
    return ds


# Attributes by which netCDF-4 says in HDF5 what xarray keeps as dims and coords.
_MACHINERY = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS", "coordinates", "_FillValue")


def _parse(payload: bytes) -> xr.Dataset:
    """Parse netCDF-4 bytes.

    ``xarray.open_dataset`` gives the same (a test says so) but takes 0.3 s for the 38 variables of a cell, most of
    it in looking up the same dimensions again and again; here each is looked up once, which is ten times faster.
    """
    with h5py.File(io.BytesIO(payload), "r") as file:
        variables: dict[str, xr.Variable] = {}
        for name, item in file.items():
            if not isinstance(item, h5py.Dataset):
                raise ValueError(f"it has a group {name!r}")
            meta = {k: _text(v) for k, v in item.attrs.items() if k not in _MACHINERY and not k.startswith("_Netcdf4")}
            if item.attrs.get("CLASS") == b"DIMENSION_SCALE":
                dims: tuple[str, ...] = (name,)
            else:
                links = item.attrs.get("DIMENSION_LIST", ())
                dims = tuple(h5py.h5r.get_name(link[0], file.id).decode().lstrip("/") for link in links)
            variables[name] = xr.Variable(dims, _text_array(item), meta)
        attrs = {k: _text(v) for k, v in file.attrs.items() if not k.startswith("_NC")}
    coords = [name for name in _COORDINATES if name in variables]
    data = [name for name in VARIABLES if name in variables] + [n for n in variables if n not in {*VARIABLES, *coords}]
    return xr.Dataset({n: variables[n] for n in data}, {n: variables[n] for n in coords}, attrs)


def _text(value: object) -> object:
    if isinstance(value, h5py.Empty):
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    return value.item() if isinstance(value, np.generic) else value


def _text_array(item: h5py.Dataset) -> np.ndarray:
    if h5py.check_string_dtype(item.dtype):
        return np.asarray(item.asstr()[()], dtype=str)  # netCDF text has no fixed width
    return np.asarray(item[()])


def same_data(a: xr.Dataset, b: xr.Dataset) -> list[str]:
    """Compare two cells bit for bit (any NaN equals any NaN), volatile attributes aside.

    Returns
    -------
    list of str
        One sentence per difference; empty if there is none.
    """
    differences = []
    for name in sorted({*map(str, a.variables), *map(str, b.variables)}):
        if name not in a.variables or name not in b.variables:
            differences.append(f"{name}: only in the {'first' if name in a.variables else 'second'}")
            continue
        x, y = a[name], b[name]
        if (x.dims, x.shape) != (y.dims, y.shape):
            differences.append(f"{name}: {dict(x.sizes)} against {dict(y.sizes)}")
        elif x.dtype.kind != y.dtype.kind or (x.dtype.kind != "U" and x.dtype != y.dtype):
            differences.append(f"{name}: {x.dtype} against {y.dtype}")
        else:
            unequal = _unequal(x.values, y.values)
            if unequal.any():
                differences.append(f"{name}: {int(unequal.sum())} of {unequal.size} values differ")
        if dict(x.attrs) != dict(y.attrs):
            differences.append(f"{name}: its attributes differ")
    for name in sorted({*map(str, a.attrs), *map(str, b.attrs)} - {*VOLATILE_ATTRS}):
        if name not in a.attrs or name not in b.attrs:
            differences.append(f"attribute {name}: only in the {'first' if name in a.attrs else 'second'}")
        elif a.attrs[name] != b.attrs[name] or isinstance(a.attrs[name], str) != isinstance(b.attrs[name], str):
            differences.append(f"attribute {name}: {a.attrs[name]!r} against {b.attrs[name]!r}")
    return differences


def _unequal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind != "f":
        return np.asarray(x != y)
    bits = np.dtype(f"u{x.dtype.itemsize}")
    different = np.ascontiguousarray(x).view(bits) != np.ascontiguousarray(y).view(bits)
    return np.asarray(different & ~(np.isnan(x) & np.isnan(y))).reshape(x.shape)


# ---------------------------------------------------------------------------------------------- sweeps
def curve(
    ds: xr.Dataset, measure: str = "hidden_rel_l2", layer: int | str = "last", quantile: float = 0.5
) -> np.ndarray:
    """Take one curve out of a cell.

    Parameters
    ----------
    ds : xarray.Dataset
        A cell.
    measure : str
        A variable of the contract.
    layer : int, "first" or "last"
        Where the measure has layers: which (0 = embeddings, last = after the final norm); where it has blocks: which
        block (from 1).
    quantile : float
        Where the measure has quantiles over tokens: which.

    Returns
    -------
    ndarray [document, step]
    """
    if measure not in VARIABLES:
        raise DatasetError(f"there is no measure {measure!r}; known are {', '.join(VARIABLES)}")
    if measure not in ds.data_vars:
        raise DatasetError(f"this cell has no {measure}: only some references or protocols do")
    array = ds[measure]
    for dim in ("layer", "block"):
        if dim in array.dims:
            labels = ds[dim].values
            if layer in ("first", "last"):
                array = array.isel({dim: 0 if layer == "first" else -1})
            elif isinstance(layer, int) and layer in labels:
                array = array.sel({dim: layer})
            else:
                raise DatasetError(
                    f"{ds['model'].item()} has no {dim} {layer!r}; there are {labels[0]} to {labels[-1]}, or 'last'"
                )
    if "quantile" in array.dims:
        places = np.flatnonzero(np.isclose(ds["quantile"].values, quantile))
        if not places.size:
            raise DatasetError(f"there is no quantile {quantile!r}; there are {ds['quantile'].values.tolist()}")
        array = array.isel(quantile=int(places[0]))
    return np.asarray(array.transpose("document", "step").values, dtype=float)


class Sweep:
    """The cells of a sweep, to select from.

    Attributes
    ----------
    cells : list of xarray.Dataset
        Sorted by model, protocol, unit roundoff (coarse first) and chunk size.
    plan : dict
        ``sweep.json``, or empty.
    failures : list of dict
        Cells that the sweep could not compute, with their ``reason``.
    problems : dict of str to str
        Files that could not be read, and why. Never silently dropped.
    left_out : list of str
        Files of the folder that ``sweep.json`` does not name.
    folder : pathlib.Path or None
    controls : list of xarray.Dataset
        Cells that test the instrument, not the fold (they have the attribute ``control``); no part of `cells`.
    """

    def __init__(
        self,
        cells: Sequence[xr.Dataset],
        *,
        controls: Sequence[xr.Dataset] = (),
        plan: Mapping[str, Any] | None = None,
        failures: Sequence[Mapping[str, Any]] = (),
        problems: Mapping[str, str] | None = None,
        left_out: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        self.cells = sorted(cells, key=_order)
        self.controls = sorted(controls, key=_order)
        #: What readers worked out of the controls; selections share it, as they share the controls.
        self.memo: dict[Any, Any] = {}
        self.plan = dict(plan or {})
        self.failures = [dict(f) for f in failures]
        self.problems = dict(problems or {})
        self.left_out = list(left_out)
        self.folder = folder

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[xr.Dataset]:
        return iter(self.cells)

    def __repr__(self) -> str:
        where = f" in {self.folder}" if self.folder else ""
        axes = ", ".join(f"{n} {self.values(n)}" for n in ("model", "dtype", "protocol", "chunk_size"))
        return f"<Sweep of {len(self)} cells{where}: {axes}; {len(self.problems)} unreadable files>"

    @property
    def drift(self) -> SweepAccessor:
        """Verdicts on every cell: ``sweep.drift.plateau()``, as ``ds.drift.plateau()`` for one."""
        return SweepAccessor(self)

    def values(self, axis: str) -> list[Any]:
        """Return the distinct values of a scalar coordinate, in the cells' order."""
        self._known(axis)
        return list(dict.fromkeys(_scalar(ds, axis) for ds in self.cells))

    @property
    def table(self) -> pd.DataFrame:
        """One row per cell: its scalar coordinates, its size and its file."""
        rows = [
            {
                **_scalars(ds),
                "documents": ds.sizes["document"],
                "steps": ds.sizes["step"],
                "tokens": int(ds["token_stop"].values[-1]),
                "path": ds.encoding.get("source", ""),
            }
            for ds in self.cells
        ]
        return pd.DataFrame(rows, columns=[*SCALARS, "documents", "steps", "tokens", "path"])

    def sel(self, **axes: object) -> Sweep:
        """Keep the cells whose scalar coordinates have the given values.

        Parameters
        ----------
        **axes
            ``model="..."``, ``chunk_size=[64, 256]`` and so on: a value or a list of values.

        Raises
        ------
        DatasetError
            If there is no such axis, or no such cell.
        """
        kept = self.cells
        for axis, wanted in axes.items():
            self._known(axis)
            several = isinstance(wanted, Sequence | np.ndarray | set | frozenset) and not isinstance(wanted, str)
            values = list(wanted) if several else [wanted]  # type: ignore[call-overload]
            unknown = [v for v in values if v not in self.values(axis)]
            if unknown:
                raise DatasetError(f"no cell has {axis} = {unknown[0]!r}; there are {_listing(self.values(axis))}")
            kept = [ds for ds in kept if _scalar(ds, axis) in values]
        if not kept:
            wish = ", ".join(f"{k}={v!r}" for k, v in axes.items())
            raise DatasetError(f"no cell matches {wish or 'anything: the sweep is empty'}. Cells:\n{self._listing()}")
        selected = Sweep(
            kept,
            controls=self.controls,
            plan=self.plan,
            failures=self.failures,
            problems=self.problems,
            left_out=self.left_out,
            folder=self.folder,
        )
        selected.memo = self.memo
        return selected

    def only(self) -> xr.Dataset:
        """Return the one cell there is.

        Raises
        ------
        DatasetError
            If there is none, or more than one.
        """
        if len(self) != 1:
            raise DatasetError(f"expected exactly one cell, found {len(self)}:\n{self._listing()}")
        return self.cells[0]

    def frame(self, variable: str, **selection: object) -> pd.DataFrame:
        """Return a variable of all cells as a tidy table.

        Parameters
        ----------
        variable : str
            A row of :data:`VARIABLES`.
        **selection
            Values of dimensions (``layer=3``, ``layer="last"`` for the final norm, ``block="last"``,
            ``quantile=0.5``, ``step=-1`` for the last step; lists keep several) and of scalar coordinates
            (``model="..."``), as in :meth:`sel`.

        Returns
        -------
        pandas.DataFrame
            Rows of the cells that have the variable. Columns: the scalar coordinates,
            ``document``, ``step``, ``token_start``, ``token_stop``, those of
            ``layer``, ``block`` and ``quantile`` that the variable has and that were not selected by a single value,
            and ``value``.

        Raises
        ------
        DatasetError
            If there is no such variable, axis or value.
        """
        if variable not in VARIABLES:
            raise DatasetError(f"there is no variable {variable!r}; known are {', '.join(VARIABLES)}")
        dims = VARIABLES[variable].dims
        chosen = {k: v for k, v in selection.items() if k in dims}
        sweep = self.sel(**{k: v for k, v in selection.items() if k not in dims}) if self.cells else self
        frames = [_tidy(ds, variable, chosen) for ds in sweep.cells if variable in ds.data_vars]
        if frames:
            return pd.concat(frames, ignore_index=True)
        free = [d for d in dims if d not in ("document", "step")]
        return pd.DataFrame(columns=[*SCALARS, "document", "step", "token_start", "token_stop", *free, "value"])

    def combine(self, variable: str) -> xr.DataArray:
        """Stack a variable of all cells along a new dimension ``cell``.

        Axes are joined by label (``join="outer"``): where a cell has no such step, layer or block, the value is NaN.
        The scalar coordinates become coordinates along ``cell``.
        """
        if variable not in VARIABLES:
            raise DatasetError(f"there is no variable {variable!r}; known are {', '.join(VARIABLES)}")
        if not self.cells:
            raise DatasetError("the sweep is empty: there is nothing to combine")
        # token_start, token_stop and layer_kind mean something else in every cell: they stay with the cells
        arrays = [
            ds[variable].drop_vars(["token_start", "token_stop", "layer_kind"], errors="ignore")
            for ds in self
            if variable in ds.data_vars
        ]
        if not arrays:
            raise DatasetError(f"no cell has {variable}")
        return xr.concat(
            arrays,
            dim=pd.RangeIndex(len(arrays), name="cell"),
            coords=list(SCALARS),
            compat="equals",
            join="outer",
            combine_attrs="drop_conflicts",
        )

    def _known(self, axis: str) -> None:
        if axis not in SCALARS:
            raise DatasetError(f"there is no axis {axis!r} to select cells by; axes are {', '.join(SCALARS)}")

    def _listing(self) -> str:
        rows = ["  {model} {dtype} {protocol} chunk {chunk_size}".format(**_scalars(ds)) for ds in self.cells]
        return "\n".join(rows[:40] + ([f"  ... and {len(rows) - 40} more"] if len(rows) > 40 else [])) or "  (none)"


def _scalar(ds: xr.Dataset, axis: str) -> Any:
    return ds[axis].values.item()


def _scalars(ds: xr.Dataset) -> dict[str, Any]:
    return {name: _scalar(ds, name) for name in SCALARS}


def _order(ds: xr.Dataset) -> tuple[Any, ...]:
    s = _scalars(ds)
    return (s["model"], s["protocol"], -s["unit_roundoff"], s["dtype"], s["chunk_size"], *(str(v) for v in s.values()))


def _listing(values: Sequence[object]) -> str:
    return ", ".join(repr(v) for v in values) or "none"


def _tidy(ds: xr.Dataset, variable: str, selection: Mapping[str, object]) -> pd.DataFrame:
    array = ds[variable]
    for dim, wanted in selection.items():
        labels = ds[dim].values
        several = isinstance(wanted, Sequence | np.ndarray) and not isinstance(wanted, str)
        places = [_place(ds, dim, labels, w) for w in (wanted if several else [wanted])]  # type: ignore[attr-defined]
        array = array.isel({dim: places if several else places[0]})
    single = [d for d in selection if d not in array.dims and d in ("layer", "block", "quantile")]
    array = array.drop_vars([*SCALARS, "layer_kind", *single], errors="ignore")
    kept = [d for d in ("document", "layer", "block", "step", "quantile") if d in array.dims]
    if kept:
        frame = array.transpose(*kept).to_dataframe(name="value").reset_index()
    else:
        frame = pd.DataFrame({"value": [array.item()]})
        for name in ("document", "step", "token_start", "token_stop"):
            frame[name] = array[name].item()
    scalars = _scalars(ds)
    for name in reversed(SCALARS):
        frame.insert(0, name, scalars[name])
    free = [d for d in kept if d not in ("document", "step")]
    return frame[[*SCALARS, "document", "step", "token_start", "token_stop", *free, "value"]]


def _place(ds: xr.Dataset, dim: str, labels: np.ndarray, wanted: object) -> int:
    if isinstance(wanted, str) and wanted == "last":
        return len(labels) - 1
    if dim == "step" and isinstance(wanted, int | np.integer) and -len(labels) <= wanted < 0:
        return len(labels) + int(wanted)
    if isinstance(wanted, int | float | np.number):
        hits = np.flatnonzero(np.isclose(labels, float(wanted), rtol=0, atol=1e-12))
        if len(hits):
            return int(hits[0])
    if dim == "quantile":
        raise DatasetError(f"there is no quantile {wanted!r}; there are {labels.tolist()}")
    gaps = (np.diff(labels) > 1).any()  # in a thinned cell
    there = _listing(labels.tolist()) if gaps else f"{labels[0]} to {labels[-1]}"
    raise DatasetError(f"{_scalar(ds, 'model')} has no {dim} {wanted!r}; there are {there}")


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
    root = Path(folder)
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
        raise DatasetError(
            f"{path}: cannot be read as JSON ({error}). Delete it and run the sweep again; finished cells are kept."
        ) from error
    if not isinstance(plan, dict):
        raise DatasetError(f"{path}: is not a JSON object. Delete it and run the sweep again; finished cells are kept.")
    return plan


def _entries(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    cells = plan.get("cells", [])
    if isinstance(cells, dict):
        cells = [{"file": name, **entry} for name, entry in cells.items() if isinstance(entry, dict)]
    return [e for e in cells if isinstance(e, dict)] if isinstance(cells, list) else []

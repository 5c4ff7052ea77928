"""Write cells anew with fewer layers and fewer significant bits, to be kept as evidence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from drift import _arguments as arguments
from drift._version import __version__
from drift.dataset.attributes import attribute
from drift.dataset.bits import BITS, EXACT, LAYERS, WHOLE, round_bits
from drift.dataset.contract import VARIABLES
from drift.dataset.files import write
from drift.dataset.hashing import canonical_json
from drift.dataset.opening import open_sweep
from drift.dataset.task_contract import is_task
from drift.dataset.validating import validate
from drift.errors import ConfigError, DatasetError
from drift.paths import outside_path
from drift.writing import temporary_name, write_whole

__all__ = ["thin", "thin_as", "thin_sweep"]


def _spread(count: int, keep: int) -> list[int]:
    """Choose places among `count` layers: embeddings, first and last block, final norm, and others evenly between.

    Three layers leave no place for the first block. Its keys are what a planted position is looked for in.
    """
    if keep >= count:
        return list(range(count))
    if keep == 3:
        return [0, count - 2, count - 1]
    gaps = keep - 3  # from the first block to the last
    return [0, *(1 + (2 * k * (count - 3) + gaps) // (2 * gaps) for k in range(gaps + 1)), count - 1]


def _check(layers: int, bits: int) -> None:
    arguments.whole("layers", layers)
    arguments.whole("bits", bits)
    if layers < 3:
        raise ConfigError(f"layers is {layers}; at least 3 are kept: the embeddings, the last block, the final norm")
    if not 1 <= bits <= WHOLE:
        raise ConfigError(f"bits is {bits}; a float64 has 1 to {WHOLE} significant bits")


def thin(ds: xr.Dataset, layers: int = LAYERS, bits: int = BITS) -> xr.Dataset:
    """Keep some layers of a cell, and the leading bits of its numbers.

    Parameters
    ----------
    ds : xarray.Dataset
        A cell, whole or thinned.
    layers : int
        How many layers to keep at most, 3 or more: the embeddings, the last block, the state after the final norm, the
        first block, and others evenly between; of keys and values the same blocks.
    bits : int
        Significant bits of every float variable but :data:`EXACT`, see :func:`round_bits`. A number that would be
        rounded out of the bounds of the contract is kept as it is.

    Returns
    -------
    xarray.Dataset
        A valid cell with the attribute ``thinned_json``: ``layers`` (those kept) of ``layers_of``; significant
        ``bits``; ``relative_error`` (bound; each rounding adds its own); ``exact`` (variables not rounded);
        ``nonfinite_dropped`` (NaN and Inf that were counted in layers left out); ``drift_version``.

    Raises
    ------
    ConfigError
        If `layers` or `bits` cannot be kept.
    DatasetError
        If `ds` breaks the contract, or was thinned to less than is asked for.
    """
    _check(layers, bits)
    name = str(ds.encoding.get("source", "dataset"))
    validate(ds, source=name)
    if is_task(ds.variables):
        raise DatasetError(f"{name}: asks a task, and has neither layers nor steps to leave out. Copy it as it is.")
    record = _record(ds)
    have, of = len(record["layers"]), record["layers_of"]
    if bits > record["bits"] or min(layers, of) > have:
        raise DatasetError(
            f"{name}: was thinned to {have} of {of} layers and {record['bits']} significant bits, less than the "
            f"{layers} layers and {bits} bits that are asked for. Thin the whole cell, or ask for no more."
        )
    return _kept(ds, record, _spread(have, layers), bits)


def thin_as(ds: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """Thin a whole cell as another one was: the same layers, as many bits.

    Parameters
    ----------
    ds : xarray.Dataset
        A whole cell.
    other : xarray.Dataset
        A cell of the same model, whole (then `ds` is returned as it is) or thinned.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    DatasetError
        If `ds` has not the layers that `other` kept.
    """
    if "thinned_json" not in other.attrs:
        return ds
    record, asked = _record(ds), _record(other)
    there = ds["layer"].values.tolist()
    if asked["layers_of"] != record["layers_of"] or not set(asked["layers"]) <= set(there):
        raise DatasetError(
            f"a cell of {record['layers_of']} layers cannot be thinned like one that kept {asked['layers']} of "
            f"{asked['layers_of']}: they are of other models"
        )
    return _kept(ds, record, [there.index(layer) for layer in asked["layers"]], asked["bits"])


def _record(ds: xr.Dataset) -> dict[str, Any]:
    """What was left out of a cell so far."""
    return {
        "layers": ds["layer"].values.tolist(),
        "layers_of": ds.sizes["layer"],
        "bits": WHOLE,
        "relative_error": 0.0,
        "exact": list(EXACT),
        "nonfinite_dropped": 0,
    } | attribute(ds.attrs, "thinned_json")


def _kept(ds: xr.Dataset, record: dict[str, Any], places: list[int], bits: int) -> xr.Dataset:
    """Keep the layers at some places, and the leading bits."""
    thinned = ds.isel(layer=places, block=[place - 1 for place in places[1:-1]])
    if bits < record["bits"]:
        for variable, row in VARIABLES.items():
            if row.dtype != "float64" or variable in EXACT or variable not in thinned.data_vars:
                continue
            values = thinned[variable].values
            rounded = round_bits(values, bits)
            low = -np.inf if row.lower is None else row.lower
            high = np.inf if row.upper is None else row.upper
            outside = (rounded < low) | (rounded > high)
            thinned[variable] = thinned[variable].copy(data=np.where(outside, values, rounded))
        record["relative_error"] += 2.0**-bits
    dropped = int(ds["nonfinite_count"].sum()) - int(thinned["nonfinite_count"].sum())
    record |= {
        "layers": thinned["layer"].values.tolist(),
        "bits": bits,
        "nonfinite_dropped": record["nonfinite_dropped"] + dropped,
        "drift_version": __version__,
    }
    return thinned.assign_attrs(thinned_json=canonical_json(record))


def thin_sweep(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    layers: int = LAYERS,
    bits: int = BITS,
    report: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Write a sweep's cells anew, thinned, under the same file names; ``sweep.json`` is copied as it is.

    So are task cells: what they hold is small.

    Parameters
    ----------
    source : path
        Folder of a sweep.
    target : path
        Folder that is not there, or is empty. It appears when all is written, or not at all.
    layers, bits
        See :func:`thin`.
    report : callable
        Gets what there is to say, a line at a time.

    Returns
    -------
    before, after : int
        Bytes of the cells' files.

    Raises
    ------
    ConfigError
        If `target` holds anything, or `layers` or `bits` cannot be kept.
    DatasetError
        If `source` is no sweep, holds no cells or unusable ones, or the disk refuses.
    """
    _check(layers, bits)
    root, out = outside_path(source, DatasetError), outside_path(target).resolve()
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise ConfigError(f"{target}: cannot be used ({error.strerror or error}). Choose another.") from error
    if taken:
        raise ConfigError(f"{target}: is there already, and is not an empty folder. Choose another.")
    if root.is_file():
        raise DatasetError(f"{root}: is a file; what is thinned is a sweep's folder")
    sweep = open_sweep(root)
    if sweep.problems:
        raise DatasetError(
            f"{root}: {len(sweep.problems)} files of the sweep are unusable, and would be missing from {target}. The "
            f"first: {next(iter(sweep.problems.values()))}"
        )
    if not len(sweep) and not sweep.tasks:
        raise DatasetError(f"{root}: holds no cell. Run `python -m drift.sweep` first.")
    for file in sweep.left_out:
        report(f"{file}: not in sweep.json, left out")
    temporary = temporary_name(out)
    before = after = 0
    try:
        temporary.mkdir(parents=True)
        for ds in (*sweep.cells, *sweep.controls):
            path = Path(ds.encoding["source"])
            small = write(thin(ds, layers, bits), temporary / path.name)
            before, after = before + path.stat().st_size, after + small.stat().st_size
        for ds in sweep.tasks:
            path = Path(ds.encoding["source"])
            write(ds, temporary / path.name)
            before, after = before + path.stat().st_size, after + (temporary / path.name).stat().st_size
        if (root / "sweep.json").is_file():
            write_whole(temporary / "sweep.json", (root / "sweep.json").read_bytes())
        if out.exists():
            out.rmdir()  # a folder takes the name of an empty one on some systems only
        os.replace(temporary, out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        refusal = error.__cause__ if isinstance(error, DatasetError) else error
        if isinstance(refusal, OSError):
            raise DatasetError(
                f"{target}: cannot be written ({refusal.strerror or refusal}). Nothing was left there. Check that the "
                "place is writable and its disk not full, or choose another."
            ) from error
        raise
    count = len(sweep) + len(sweep.controls) + len(sweep.tasks)
    report(
        f"{target}: {count} cells, {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB "
        f"after; at most {layers} layers, {bits} significant bits"
    )
    return before, after

"""Measures of a cell, and their rounding floors, as curves over documents and steps."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from drift import _arguments as arguments
from drift.dataset.contract import CARRIES, FLOORS, VARIABLES
from drift.errors import DatasetError

__all__ = ["blocks_with", "curve", "floor_curves"]

#: What a block must carry for a measure of blocks to be of it: keys and values, or states.
_OF_BLOCKS = {"key_rel_l2": 0, "value_rel_l2": 0, "state_rel_l2": 1}


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
        block (from 1). "first" and "last" are the first and the last that carry what is measured.
    quantile : float
        Where the measure has quantiles over tokens: which.

    Returns
    -------
    ndarray [document, step]
    """
    known = [name for name, row in VARIABLES.items() if "draw" not in row.dims]
    arguments.between("quantile", quantile, -math.inf)
    if arguments.text("measure", measure) not in known:
        raise DatasetError(f"there is no measure {measure!r}; known are {', '.join(known)}")
    array = _placed(ds, measure, layer)
    if "quantile" in array.dims:
        there = ds.variables["quantile"].values
        places = np.flatnonzero(np.isclose(there, quantile))
        if not places.size:
            raise DatasetError(f"there is no quantile {quantile!r}; there are {there.tolist()}")
        array = array.isel(quantile=int(places[0]))
    return np.asarray(array.transpose("document", "step").values, dtype=float)


def floor_curves(ds: xr.Dataset, measure: str = "hidden_rel_l2", layer: int | str = "last") -> np.ndarray:
    """Take the rounding floor of a measure out of a cell.

    Parameters
    ----------
    ds, measure, layer
        As for :func:`curve`.

    Returns
    -------
    ndarray [draw, document, step]

    Raises
    ------
    DatasetError
        If the measure has no floor, or the cell was made without.
    """
    if arguments.text("measure", measure) not in FLOORS:
        raise DatasetError(f"{measure!r} has no rounding floor; measures that have: {', '.join(FLOORS)}")
    if FLOORS[measure] not in ds.data_vars:
        raise DatasetError(
            "this cell has no rounding floor: it was made before there was one, or with floor_draws=0. Compute it "
            "again with floor_draws=2 (python -m drift.sweep ... --set floor_draws=2)"
        )
    return np.asarray(_placed(ds, FLOORS[measure], layer).transpose("draw", "document", "step").values, dtype=float)


def blocks_with(ds: xr.Dataset, measure: str) -> np.ndarray:
    """Which blocks of a cell carry what a measure of blocks, or its rounding floor, is of.

    Parameters
    ----------
    ds : xarray.Dataset
    measure : str

    Returns
    -------
    ndarray of bool [block]
    """
    base = next((name for name, floor in FLOORS.items() if floor == measure), measure)
    if "carries" not in ds.coords or base not in _OF_BLOCKS:
        return np.ones(ds.sizes["block"], dtype=bool)
    kept = [words for held, words in CARRIES.items() if held[_OF_BLOCKS[base]]]
    return np.isin(ds["carries"].values, kept)


def _placed(ds: xr.Dataset, measure: str, layer: int | str) -> xr.Variable:
    """A variable at one of its layers or blocks, if it has any; without coordinates, which take long."""
    if measure not in ds.data_vars:
        raise DatasetError(
            f"this cell has no {measure}: only some references or protocols do, and only cells of schema version "
            f"{VARIABLES[measure].since} or later"
        )
    array = ds.variables[measure]
    for dim in ("layer", "block"):
        if dim in array.dims:
            labels = ds.variables[dim].values
            if isinstance(layer, str) and layer in ("first", "last"):
                places = np.arange(len(labels))
                if dim == "block" and (held := blocks_with(ds, measure)).any():
                    places = places[held]
                array = array.isel({dim: int(places[0 if layer == "first" else -1])})
            elif isinstance(layer, int | np.integer) and not isinstance(layer, bool) and layer in labels:
                array = array.isel({dim: int(np.flatnonzero(labels == layer)[0])})
            else:
                model = ds["model"].item()
                raise DatasetError(f"{model} has no {dim} {layer!r}; there are {labels[0]} to {labels[-1]}, or 'last'")
    return array

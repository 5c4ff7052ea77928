"""Where curves come from: cells and sweeps of drift, and CSV files of any other tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from drift.dataset.contract import SCALARS, VARIABLES
from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import DISTANCES, has_measure, holding, measure_values
from drift.reading.controls.gating import Gate
from drift.reading.plateau.deciding import plateaus
from drift.reading.plateau.model import Plateau

__all__ = ["Curve", "from_cell", "from_sweep", "judge", "plateau_frame"]


@dataclass(frozen=True)
class Curve:
    """One curve and where it comes from.

    Attributes
    ----------
    name : str
        What tables call it.
    labels : dict
        Scalar coordinates, measure and layer; empty for a curve from a CSV file.
    values : ndarray
        float64 [document, step].
    caveats : tuple of str
        What was done to the input.
    """

    name: str
    labels: dict[str, Any]
    values: NDArray[np.float64]
    caveats: tuple[str, ...] = ()


def _layers(ds: xr.Dataset, measure: str, layer: int | str) -> list[int | str]:
    """Layers (or blocks) meant: one, or all that there are."""
    dims = VARIABLES[measure].dims if measure in VARIABLES else ()
    dim = next((d for d in ("layer", "block") if d in dims), None)
    if dim is None:
        return ["last"]
    return [int(k) for k in ds[dim].values] if layer == "all" else [layer]


def from_cell(
    ds: xr.Dataset, measures: Sequence[str] = ("hidden_rel_l2",), layer: int | str = "last"
) -> Iterator[Curve]:
    """Yield curves of a cell.

    Parameters
    ----------
    ds : xarray.Dataset
    measures : sequence of str
        Keys of :data:`~drift.reading.amplitudes.DISTANCES`; ``["all"]`` takes every one that the cell has.
    layer : int, "last" or "all"
        For measures that have layers (or blocks).
    """
    if list(measures) == ["all"]:
        measures = [measure for measure in DISTANCES if has_measure(ds, measure)]
    for measure in measures:
        for one in _layers(ds, measure, layer):
            values = measure_values(ds, measure, one)
            labels = {name: ds[name].item() for name in SCALARS} | {"measure": measure, "layer": one}
            name = "{model} {dtype} {protocol}/{chunk_size} {measure}".format(**labels)
            if _layers(ds, measure, "all") != ["last"]:
                name += f" {one}"
            caveats: tuple[str, ...] = ()
            if labels["reference"] != "full":
                name += f" against {labels['reference']}"
            if labels["reference"] == "previous" and values.shape[1] > 1:
                values, caveats = values[:, 1:], ("the first step has no previous one and was left out",)
            yield Curve(name, labels, values, caveats)


def from_sweep(
    sweep: Sweep, measures: Sequence[str] = ("hidden_rel_l2",), layer: int | str = "last"
) -> Iterator[Curve]:
    """Yield the curves of every cell, in the sweep's order; arguments as for :func:`from_cell`.

    A cell that has not every measure that was asked for is judged by those that it has.

    Raises
    ------
    DatasetError
        If there is no such measure or layer, or no cell has a measure.
    """
    if list(measures) == ["all"]:
        measures = [measure for measure in DISTANCES if any(has_measure(ds, measure) for ds in sweep)]
    for measure in measures:
        if measure in DISTANCES:
            holding(sweep, measure)  # says so where none has it
    for ds in sweep:
        yield from from_cell(ds, [m for m in measures if m not in DISTANCES or has_measure(ds, m)], layer)


def judge(curves: Sequence[Curve], gate: Gate, **options: Any) -> list[Plateau]:
    """Decide for each curve.

    Parameters
    ----------
    curves : sequence of Curve
    gate : Gate
        Of the sweep that they come from, or :data:`~drift.reading.controls.gating.NO_CONTROLS`.
    **options
        As for :func:`drift.reading.plateau.deciding.plateaus`.
    """
    found = plateaus([curve.values for curve in curves], **options)
    return [gate.let(replace(p, caveats=(*c.caveats, *p.caveats))) for c, p in zip(curves, found, strict=True)]


def plateau_frame(curves: Sequence[Curve], found: Sequence[Plateau]) -> pd.DataFrame:
    """One row per curve: its name and labels, then the fields of :class:`Plateau` as plain values."""
    rows = [{"curve": c.name, **c.labels, **p.as_dict()} for c, p in zip(curves, found, strict=True)]
    return pd.DataFrame(rows)

"""Where curves come from: cells and sweeps of drift, and CSV files of any other tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from drift.dataset.contract import FLOORS, SCALARS, VARIABLES
from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import DISTANCES, check_distance, has_measure, holding
from drift.reading.controls.gating import Gate
from drift.reading.excess import (
    Missing,
    accumulations,
    floor_values,
    missing,
    quantity_values,
    remedy,
    without_one_step,
)
from drift.reading.plateau.deciding import plateaus
from drift.reading.plateau.model import Plateau, Reason
from drift.reading.plateau.wording import inherited
from drift.reading.quantities import Of

__all__ = ["Curve", "LeftOut", "from_cell", "from_sweep", "judge", "left_out", "plateau_frame", "rows"]


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
    of : Of
        What it is.
    inherited : int
        Of an accumulation: values that are NaN because the one-step error is exactly zero there.
    """

    name: str
    labels: dict[str, Any]
    values: NDArray[np.float64]
    caveats: tuple[str, ...] = ()
    of: Of = Of.DRIFT
    inherited: int = 0


@dataclass(frozen=True)
class LeftOut:
    """A cell of which something that was asked for cannot be formed.

    Attributes
    ----------
    name : str
        What tables call it.
    labels : dict
        Scalar coordinates, measure and what was asked for.
    why : Missing
    """

    name: str
    labels: dict[str, Any]
    why: Missing

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return remedy(self.why, str(self.labels["protocol"]))


def _layers(ds: xr.Dataset, measure: str, layer: int | str) -> list[int | str]:
    """Layers (or blocks) meant: one, or all that there are."""
    dims = VARIABLES[measure].dims if measure in VARIABLES else ()
    dim = next((d for d in ("layer", "block") if d in dims), None)
    if dim is None:
        return ["last"]
    return [int(k) for k in ds[dim].values] if layer == "all" else [layer]


def _labels(ds: xr.Dataset, measure: str, layer: int | str, of: Of) -> tuple[str, dict[str, Any]]:
    """Name and labels of a curve."""
    labels = {name: ds[name].item() for name in SCALARS} | {"measure": measure, "layer": layer, "of": of.value}
    name = "{model} {dtype} {protocol}/{chunk_size} {measure}".format(**labels)
    if _layers(ds, measure, "all") != ["last"]:
        name += f" {layer}"
    if labels["reference"] != "full":
        name += f" against {labels['reference']}"
    return name + (f" {of.value}" if of is not Of.DRIFT else ""), labels


def from_cell(
    ds: xr.Dataset, measures: Sequence[str] = ("hidden_rel_l2",), layer: int | str = "last", of: Of = Of.DRIFT
) -> Iterator[Curve]:
    """Yield curves of a cell.

    Parameters
    ----------
    ds : xarray.Dataset
    measures : sequence of str
        Keys of :data:`~drift.reading.amplitudes.DISTANCES`; ``["all"]`` takes every one that the cell has.
    layer : int, "last" or "all"
        For measures that have layers (or blocks).
    of : Of
        Drift and floor are curves of the measure as it was recorded, the excess one of amplitudes.

    Raises
    ------
    DatasetError
        If there is no such measure or layer, or the cell has no floor, or two cells would be needed.
    """
    if list(measures) == ["all"]:
        known = DISTANCES if of is Of.DRIFT else FLOORS
        measures = [measure for measure in known if has_measure(ds, measure)]
    for measure in measures:
        for one in _layers(ds, measure, layer):
            values = quantity_values(ds, measure, one, of)
            name, labels = _labels(ds, measure, one, of)
            caveats: tuple[str, ...] = ()
            if labels["reference"] == "previous" and values.shape[1] > 1:
                values, caveats = values[:, 1:], ("the first step has no previous one and was left out",)
            if of is Of.EXCESS and (none := int((floor_values(ds, measure, one) == 0).sum())):
                caveats = (*caveats, f"the floor is exactly zero at {none} of {values.size} values: no ratio there")
            yield Curve(name, labels, values, caveats, of)


def from_sweep(
    sweep: Sweep, measures: Sequence[str] = ("hidden_rel_l2",), layer: int | str = "last", of: Of = Of.DRIFT
) -> Iterator[Curve]:
    """Yield the curves of every cell, in the sweep's order; arguments as for :func:`from_cell`.

    A cell that has not every measure that was asked for is judged by those that it has; :func:`left_out` lists what
    has no floor, or no one-step error.

    Raises
    ------
    DatasetError
        If there is no such measure or layer, or no cell has a measure.
    """
    measures = _measures(sweep, measures, of)
    if of is Of.ACCUMULATION:
        yield from _accumulations(sweep, measures, layer)
        return
    for ds in sweep:
        held = [m for m in measures if m not in DISTANCES or missing(ds, m, of) is None]
        yield from from_cell(ds, held, layer, of)


def _measures(sweep: Sweep, measures: Sequence[str], of: Of) -> list[str]:
    """Measures that were asked for, of which some cell has each."""
    if list(measures) == ["all"]:
        known = FLOORS if of in (Of.EXCESS, Of.FLOOR) else DISTANCES
        return [measure for measure in known if any(has_measure(ds, measure) for ds in sweep)]
    for measure in measures:
        if of is not Of.DRIFT:
            check_distance(measure)
        if measure in DISTANCES:
            holding(sweep, measure)  # says so where none has it
    return list(measures)


def _accumulations(sweep: Sweep, measures: Sequence[str], layer: int | str) -> Iterator[Curve]:
    for measure in measures:
        layers = dict.fromkeys(one for ds in sweep for one in _layers(ds, measure, layer))
        for one in layers:
            for found in accumulations(sweep, measure, one):
                name, labels = _labels(found.ds, measure, one, Of.ACCUMULATION)
                yield Curve(name, labels, found.values, (), Of.ACCUMULATION, found.inherited)


def left_out(
    sweep: Sweep, measures: Sequence[str] = ("hidden_rel_l2",), layer: int | str = "last", of: Of = Of.DRIFT
) -> list[LeftOut]:
    """List the cells of which a ratio or a floor that was asked for cannot be formed; arguments as :func:`from_sweep`.

    Raises
    ------
    DatasetError
        If no cell has a measure.
    """
    if of is Of.DRIFT:
        return []
    found = []
    asked = _measures(sweep, measures, of)
    lacking = without_one_step(sweep) if of is Of.ACCUMULATION else list(sweep)
    for ds in lacking:
        for measure in (m for m in asked if m in DISTANCES):
            why = Missing.ONE_STEP if of is Of.ACCUMULATION else missing(ds, measure, of)
            if why is not None:
                found.append(LeftOut(*_labels(ds, measure, layer, of), why))
    return found


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
    found: dict[int, Plateau] = {}
    for of in dict.fromkeys(curve.of for curve in curves):
        places = [place for place, curve in enumerate(curves) if curve.of is of]
        mine = plateaus([curves[place].values for place in places], of=of, **options)
        found |= dict(zip(places, mine, strict=True))
    return [gate.let(_with_caveats(curve, found[place])) for place, curve in enumerate(curves)]


def _with_caveats(curve: Curve, found: Plateau) -> Plateau:
    """Say what was done to the input, and tell places without a ratio from values that are not finite."""
    if curve.inherited and found.nonfinite == curve.inherited:
        words = inherited(found, curve.inherited)
        return replace(found, reason=Reason.INHERITED, explanation=words, nonfinite=0, caveats=curve.caveats)
    return replace(found, caveats=(*curve.caveats, *found.caveats))


def rows(curves: Sequence[Curve], found: Sequence[Plateau], without: Sequence[LeftOut] = ()) -> list[dict[str, Any]]:
    """One plain dict per curve: its name and labels, the fields of :class:`Plateau`; then one per cell left out.

    Parameters
    ----------
    curves, found : sequences
    without : sequence of LeftOut
        Their rows have no verdict, but ``left_out`` (why) and ``remedy``, which all rows then have.
    """
    judged = [{"curve": c.name, **c.labels, **p.as_dict()} for c, p in zip(curves, found, strict=True)]
    if not without:
        return judged
    judged = [row | {"left_out": None, "remedy": None} for row in judged]
    lacking = [
        {"curve": w.name, **w.labels, "verdict": None, "left_out": w.why.value, "remedy": w.remedy} for w in without
    ]
    return [*judged, *lacking]


def plateau_frame(curves: Sequence[Curve], found: Sequence[Plateau], without: Sequence[LeftOut] = ()) -> pd.DataFrame:
    """Lay out :func:`rows` as a table."""
    return pd.DataFrame(rows(curves, found, without))

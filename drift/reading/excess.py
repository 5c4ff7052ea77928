"""Drift held against what one computation makes anyway: its rounding floor, and the error of one step.

**Excess** is drift / floor: the distance of a fold from full attention in units of the distance of full attention from
itself, computed again with its embeddings disturbed by one unit roundoff (Monte Carlo arithmetic at the input). Both
are over the same tokens, so what makes some tokens worse conditioned than others cancels.

**Accumulation** is drift / one-step error: the global error of a chain in units of the local one, that of the same fold
with every chunk computed on full attention's own keys and values. What a chain inherits is in the first alone.

Measures enter as amplitudes (:func:`drift.reading.amplitudes.amplitude_power`): the excess of a divergence, which is
quadratic in a small disturbance, is the square root of a ratio of divergences. So an excess of 2 is a disturbance twice
as large by every measure, and one margin of growth, and one factor around the floor, mean the same for all.

Zeros and what is not finite, in either ratio: exactly zero drift over a positive denominator is exactly 0. A
denominator of exactly zero leaves no ratio: drift over it is Inf, 0 / 0 is NaN. Both are findings, and are counted.
(Of embeddings there is no 0 / 0: their drift is exactly zero, their floor is not.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import xarray as xr

from drift.dataset.choosing import ONE_STEP, is_fold
from drift.dataset.contract import FLOORS, SCALARS
from drift.dataset.curves import floor_curves
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading.amplitudes import amplitude, amplitude_power, has_measure, measure_name, measure_values
from drift.reading.cells import TEXT_AXES, axis_value
from drift.reading.quantities import Of
from drift.reading.statistics.arrays import Float

__all__ = [
    "FLOOR_COMMAND",
    "ONE_STEP_COMMAND",
    "Accumulation",
    "Missing",
    "accumulations",
    "excess",
    "excess_values",
    "floor_values",
    "missing",
    "quantity_values",
    "remedy",
    "without_one_step",
]

#: What would measure a rounding floor, and a one-step error.
FLOOR_COMMAND = "python -m drift.sweep SWEEP.yaml --set floor_draws=2"
ONE_STEP_COMMAND = "python -m drift.sweep SWEEP.yaml --set protocol='{protocol},one_step({protocol})'"
#: The one reference whose floor cells carry.
_REFERENCE = "full"


class Missing(Enum):
    """Why something of a cell cannot be formed. The value is what tables and JSON show."""

    MEASURE = "the cell does not hold the measure"
    MEASURE_HAS_NO_FLOOR = "this measure has no rounding floor"
    REFERENCE = "the floor is that of full attention, and this cell is compared with something else"
    FLOOR = "no rounding floor"
    ONE_STEP = "no one-step error of the same fold, over the same text"


def remedy(why: Missing, protocol: str) -> str:
    """What to do about it.

    Parameters
    ----------
    why : Missing
    protocol : str
        Label of the cell's protocol.
    """
    return {
        Missing.MEASURE: f"ask for a measure that it holds, or compute the cell again: {FLOOR_COMMAND}",
        Missing.MEASURE_HAS_NO_FLOOR: f"measures that have one: {', '.join(FLOORS)}",
        Missing.REFERENCE: f"compare with full attention: {FLOOR_COMMAND} --set reference={_REFERENCE}",
        Missing.FLOOR: FLOOR_COMMAND,
        Missing.ONE_STEP: ONE_STEP_COMMAND.format(protocol=protocol),
    }[why]


def missing(ds: xr.Dataset, measure: str, of: Of) -> Missing | None:
    """Say why a cell has no excess, or no floor, by a measure; None where it has."""
    if not has_measure(ds, measure):
        return Missing.MEASURE
    if of not in (Of.EXCESS, Of.FLOOR):
        return None
    if measure not in FLOORS:
        return Missing.MEASURE_HAS_NO_FLOOR
    if ds["reference"].item() != _REFERENCE:
        return Missing.REFERENCE
    return None if FLOORS[measure] in ds.data_vars else Missing.FLOOR


def floor_values(ds: xr.Dataset, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Float:
    """Take the rounding floor of a measure: geometric mean over draws, [document, step].

    The geometric mean is that of the ratio's logarithm, in which everything is judged: it is 0 where one draw is.

    Raises
    ------
    DatasetError
        If the measure has no floor, or the cell was made without.
    """
    drawn = floor_curves(ds, measure, layer)
    # As for drift: the contract lets divergences of equal states round to a hair below zero.
    drawn = np.where(drawn < 0, 0.0, drawn)
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(drawn).mean(axis=0)))


def _ratio(top: Float, bottom: Float) -> Float:
    """Divide; an infinite denominator, which would make an innocent zero, gives NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(np.isinf(bottom), np.nan, top / bottom))


def excess_values(ds: xr.Dataset, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Float:
    """Drift in units of its rounding floor, as amplitudes: [document, step].

    Raises
    ------
    DatasetError
        If the cell has no floor for this measure, or is not compared with full attention.
    """
    if (why := missing(ds, measure, Of.EXCESS)) is Missing.REFERENCE:
        raise DatasetError(f"{why.value} ({ds['reference'].item()}); {remedy(why, str(ds['protocol'].item()))}")
    return _ratio(amplitude(ds, measure, layer), floor_values(ds, measure, layer) ** amplitude_power(measure))


def quantity_values(ds: xr.Dataset, measure: str, layer: int | str, of: Of) -> Float:
    """Values of what one cell has by itself, [document, step]: drift and floor as recorded, excess as a ratio.

    Raises
    ------
    DatasetError
        If the cell has it not. Accumulation takes two cells: see :func:`accumulations`.
    """
    if of is Of.ACCUMULATION:
        raise DatasetError(
            "accumulation is drift over one-step error, which takes two cells: ask the sweep that has both "
            "(sweep.drift.plateau(of='accumulation'))"
        )
    take = {Of.DRIFT: measure_values, Of.EXCESS: excess_values, Of.FLOOR: floor_values}[of]
    return np.asarray(take(ds, measure, layer))


def excess(ds: xr.Dataset, measure: str = "hidden_rel_l2", layer: int | str = "last") -> xr.DataArray:
    """Drift in units of its rounding floor.

    Parameters
    ----------
    ds : xarray.Dataset
        A cell with floor draws.
    measure : str
        A key of :data:`drift.dataset.contract.FLOORS`.
    layer : int or "last"

    Returns
    -------
    xarray.DataArray [document, step]
        float64, unit 1, named ``excess``, with the cell's coordinates. Attributes: ``long_name``, ``units``,
        ``measure``, ``layer``, ``draws`` (how many), ``zeros`` and ``nonfinite`` (how many values are exactly 0, and
        NaN or Inf).

    Raises
    ------
    DatasetError
        If the cell has no floor for this measure, or is not compared with full attention.
    """
    values = excess_values(ds, measure, layer)
    attrs = {
        "long_name": f"{measure_name(measure, layer)}, over its rounding floor",
        "units": "1",
        "measure": measure,
        "layer": layer,
        "draws": ds.sizes["draw"],
        "zeros": int((values == 0).sum()),
        "nonfinite": int((~np.isfinite(values)).sum()),
    }
    coords: dict[str, Any] = {n: ds[n] for n in ("document", "step", "token_start", "token_stop", *SCALARS)}
    return xr.DataArray(values, dims=("document", "step"), coords=coords, name=Of.EXCESS.value, attrs=attrs)


@dataclass(frozen=True)
class Accumulation:
    """Drift of a fold over its own one-step error.

    Attributes
    ----------
    ds, one_step : xarray.Dataset
        The cells.
    values : ndarray [document, step]
        Ratio of amplitudes. 1 at a first step at which both are exactly zero: nothing can be inherited there. NaN at
        any other place where the one-step error is exactly zero.
    inherited : int
        How many such places there are: no step makes an error there, all drift is inherited.
    """

    ds: xr.Dataset
    one_step: xr.Dataset
    values: Float
    inherited: int


def accumulations(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Iterator[Accumulation]:
    """Yield the accumulation of every cell whose fold was also computed one step at a time.

    Two cells are a pair where they agree in model, precision, chunk size, text, attention, device and reference.
    """
    for ds, one_step in _pairs(sweep):
        if one_step is None or not has_measure(ds, measure) or not has_measure(one_step, measure):
            continue
        drift, local = amplitude(ds, measure, layer), amplitude(one_step, measure, layer)
        none = (local == 0) & np.isfinite(drift)
        values = np.where(none, np.nan, _ratio(drift, local))
        first = none[:, 0] & (drift[:, 0] == 0)
        values[first, 0], none[first, 0] = 1.0, False
        yield Accumulation(ds, one_step, values, int(none.sum()))


def without_one_step(sweep: Sweep) -> list[xr.Dataset]:
    """List the folds whose one-step error was not measured."""
    return [ds for ds, one_step in _pairs(sweep) if one_step is None]


def _pairs(sweep: Sweep) -> Iterator[tuple[xr.Dataset, xr.Dataset | None]]:
    """Every fold, and whatever else has a one-step error, with the cell that has it."""
    parsed = [(ds, parse_label(str(axis_value(ds, "protocol")))) for ds in sweep]
    partners = {(label.inner, _setting(ds)): ds for ds, label in parsed if label.name == ONE_STEP}
    for ds, label in parsed:
        partner = partners.get((label.text, _setting(ds)))
        if partner is not None or is_fold(ds, str(axis_value(ds, "reference"))):
            yield ds, partner


def _setting(ds: xr.Dataset) -> tuple[Any, ...]:
    axes = (axis_value(ds, axis) for axis in ("model", "dtype", "chunk_size", *TEXT_AXES))
    return (*axes, ds.sizes["document"], ds.sizes["step"], str(ds.attrs.get("tokens_sha256", "")))

"""Judge drift against its rounding floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import xarray as xr

from drift.dataset.sweep import Sweep
from drift.reading.controls.gating import NO_CONTROLS, Gate, gate
from drift.reading.floor.model import FACTOR, Rounding, Standing, StandingReason
from drift.reading.floor.wording import explain
from drift.reading.plateau import curves
from drift.reading.plateau.curves import Curve, LeftOut
from drift.reading.plateau.model import Plateau, Reason, Verdict
from drift.reading.quantities import Of

__all__ = ["from_curve", "from_sweep", "rounding", "rounding_frame"]

#: Without a level, or without steps enough for one, nothing is said.
_NO_LEVEL = {
    Reason.NONFINITE: StandingReason.NONFINITE,
    Reason.ZEROS: StandingReason.ZEROS,
    Reason.TOO_SHORT: StandingReason.TOO_SHORT,
}


def _standing(growth: Plateau, factor: float) -> tuple[Standing, StandingReason | None]:
    """Decide from level and growth of the excess.

    What lies above is not rounding whether or not it grows, so an undetermined growth does not undo that; what lies
    within the factor is at the floor only where it is known not to leave it.
    """
    if growth.reason in _NO_LEVEL:
        return Standing.UNDETERMINED, _NO_LEVEL[growth.reason]
    low, high = growth.level_interval
    if high < 1 / factor:
        return Standing.BELOW, None
    if growth.verdict is Verdict.GROWING:
        return Standing.GROWING, None
    if low > factor:
        return Standing.ABOVE, None
    if not (low >= 1 / factor and high <= factor):
        return Standing.UNDETERMINED, StandingReason.LEVEL
    if growth.verdict.is_plateau:
        return Standing.AT_FLOOR, None
    return Standing.UNDETERMINED, (
        StandingReason.DECAYING if growth.verdict is Verdict.DECAYING else StandingReason.GROWTH
    )


def from_curve(curve: Curve, asked: Gate, factor: float = FACTOR, **options: Any) -> Rounding:
    """Judge one excess.

    Parameters
    ----------
    curve : Curve
        Of :attr:`drift.reading.quantities.Of.EXCESS`: [document, step].
    asked : Gate
        Of the sweep that it comes from, or :data:`~drift.reading.controls.gating.NO_CONTROLS`.
    factor : float
        Around 1, above 1.
    **options
        As for :func:`drift.reading.plateau.deciding.plateaus`.
    """
    (found,) = curves.judge([curve], NO_CONTROLS, **options)
    verdict, reason = _standing(found, factor)
    return asked.let(Rounding(verdict, reason, explain(verdict, reason, found.level, found), factor, found))


def rounding(
    ds: xr.Dataset,
    measure: str = "hidden_rel_l2",
    layer: int | str = "last",
    asked: Gate = NO_CONTROLS,
    **options: Any,
) -> Rounding:
    """Judge one cell; by itself it has no controls.

    Parameters
    ----------
    ds : xarray.Dataset
        A cell with floor draws.
    measure : str
        A key of :data:`drift.dataset.contract.FLOORS`.
    layer : int or "last"
    asked : Gate
        Of the sweep that the cell is from.
    **options
        As for :func:`from_curve`.

    Raises
    ------
    DatasetError
        If the cell has no floor for this measure, or is not compared with full attention.
    """
    (curve,) = curves.from_cell(ds, [measure], layer, Of.EXCESS)
    return from_curve(curve, asked, **options)


def from_sweep(
    sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last", **options: Any
) -> list[tuple[Curve, Rounding]]:
    """Judge every cell that has a floor; where controls of the sweep failed, all are undetermined.

    Arguments as for :func:`rounding`; :func:`drift.reading.plateau.curves.left_out` lists the other cells.
    """
    asked = gate(sweep)
    return [
        (curve, from_curve(curve, asked, **options)) for curve in curves.from_sweep(sweep, [measure], layer, Of.EXCESS)
    ]


def rounding_frame(found: Sequence[tuple[Curve, Rounding]], without: Sequence[LeftOut] = ()) -> pd.DataFrame:
    """One row per excess: its name and labels, then the verdict as plain values; then one per cell left out."""
    rows = [{"curve": c.name, **c.labels, **one.as_dict()} for c, one in found]
    lacking = [
        {"curve": w.name, **w.labels, "verdict": None, "left_out": w.why.value, "remedy": w.remedy} for w in without
    ]
    return pd.DataFrame([*rows, *lacking])

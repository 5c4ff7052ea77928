"""The floor: what a perturbation of one unit roundoff leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import stdtrit

from drift.dataset.choosing import is_fold
from drift.dataset.curves import curve
from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import amplitude
from drift.reading.controls.model import Checkup, Control, Floor, Instrument, State, instrument_of
from drift.reading.statistics import slope
from drift.reading.statistics.windows import late_part
from drift.reading.wording.numbers import number

__all__ = ["floor_control", "floors", "in_floors", "threshold"]

#: One side of the bound that no step of the floor is expected to pass.
_ALPHA = 0.001


def in_floors(sweep: Sweep, found: Checkup, layer: int | str = "last") -> pd.DataFrame:
    """Write every fold's level in units of the floor as a table: one row per fold, one column per precision."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for ds in sorted(filter(is_fold, sweep), key=lambda ds: str(ds["protocol"].item())):
        floors = found.in_floors(ds, layer)
        if math.isnan(floors):
            continue
        names = {"protocol": "protocol", "model": "model", "chunk_size": "chunk size", "device": "device",
                 "attn_implementation": "attention"}  # fmt: skip
        key = tuple(ds[n].item() for n in names)
        row = rows.setdefault(key, dict(zip(names.values(), key, strict=True)))
        values = late_part(curve(ds, found.measure, layer))
        bad = int((~np.isfinite(values)).sum())
        row[ds["dtype"].item()] = ("the floor is exactly 0" if math.isinf(floors) else number(floors)) + (
            f" ({bad} of {values.size} values are NaN or Inf and were left out)" if bad else ""
        )
    return pd.DataFrame(list(rows.values()))


# ---------------------------------------------------------------------------------------------- floor
def floors(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> list[Floor]:
    """Take the floor cells of a sweep."""
    return [
        Floor(
            str(ds["protocol"].item()),
            instrument_of(ds),
            float(ds["unit_roundoff"].item()),
            amplitude(ds, measure, layer),
            str(ds.attrs.get("tokens_sha256", "")),
        )
        for ds in floor_cells(sweep)
    ]


def floor_cells(sweep: Sweep) -> list[xr.Dataset]:
    """The controls of a sweep in which full attention was computed another way."""
    return [ds for ds in sweep.controls if ds.attrs["control"] == "floor"]


def floor_control(mine: Sequence[Floor], every: Sequence[Floor], setting: Instrument) -> Control:
    """Judge whether the floor of an instrument is finite, not zero, and of the size of rounding."""
    worst = float(np.max([f.level for f in mine])) if all(np.isfinite(f.values).all() for f in mine) else math.nan
    said = ", ".join(f"{f.protocol} {number(f.level)}" for f in mine)
    if math.isnan(worst):
        return Control("floor", setting, State.FAILED, worst, f"values are NaN or Inf: {said}")
    unit = mine[0].unit_roundoff
    words = f"level {said}" + (f", {number(worst / unit)} unit roundoffs" if worst > 0 else "")
    for f in mine:
        rungs = {
            o.unit_roundoff: o
            for o in every
            if (o.protocol, o.text, o.setting[0], *o.setting[2:]) == (f.protocol, f.text, setting[0], *setting[2:])
            and o.values.shape == f.values.shape
        }
        if len(rungs) < 2 or any(o.level == 0 for o in rungs.values()):
            continue
        found = slope.slope(list(rungs), np.stack([o.values for o in rungs.values()]))
        if abs(found.interval.value) <= slope.STRUCTURAL_MARGIN:
            words += (
                f"; but {f.protocol} is as far off at every precision (log-log slope {found.interval.value:.2f} on the "
                "unit roundoff): that is another computation, not another order of sums"
            )
            return Control("floor", setting, State.FAILED, worst, words)
    return Control("floor", setting, State.PASSED, worst, words)


def threshold(mine: Sequence[Floor], unit_roundoff: float) -> float:
    """Drift above which a step is not rounding.

    Two right answers that are each within e of the exact one are at most 2 e apart, and the square root of 2 times e
    where their errors are independent, as they are in the floor: hence a factor sqrt(2) on the floor. That, times the
    prediction bound for the largest of the floor's own steps (log-normal, one side, level 0.001 over all steps). Where
    no floor was measured, or it is exactly zero, the square root of the unit roundoff: half of the digits lost.

    Parameters
    ----------
    mine : sequence of Floor
        Of one setting.
    unit_roundoff : float
    """
    bounds = []
    for f in mine:
        logs = np.log(f.values[np.isfinite(f.values) & (f.values > 0)])
        if logs.size >= 4:
            quantile = float(stdtrit(logs.size - 1, 1 - _ALPHA / f.values.size))
            spread = quantile * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / logs.size)
            bounds.append(math.sqrt(2) * math.exp(float(logs.mean()) + spread))
    return max(bounds) if bounds else math.sqrt(unit_roundoff)

"""What must fire: planted noise and planted position faults."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from drift import dataset
from drift.dataset.labels import parse_label
from drift.reading.controls.floor import threshold
from drift.reading.controls.model import Control, Floor, Instrument, Response, State, instrument_of
from drift.reading.statistics import slope
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.levels import geometric_mean
from drift.reading.wording.numbers import number

__all__ = ["TOLERANCE", "WHERE_SHIFTED", "all_responses", "respond", "response_control", "shifted_control"]

#: How far from 1 the log-log slope of the response on the size of a perturbation may be.
TOLERANCE = 0.1
#: A part of this size, in quadrature with one of size 1, changes the slope by TOLERANCE: (1 - s) = 1 / (1 + r^2).
#: Perturbations smaller than this many unit roundoffs drown in rounding, and so do responses this near to the floor.
DROWNED = math.sqrt((1 - TOLERANCE) / TOLERANCE)
#: Measure and place in which a planted position is looked for.
WHERE_SHIFTED = ("key_rel_l2", "first")


# ---------------------------------------------------------------------------------------------- response
def respond(cells: Sequence[xr.Dataset], bottom: float, layer: int | str = "last") -> Response:
    """Put together how drift answers to perturbations of several sizes at one step of one fold.

    Parameters
    ----------
    cells : sequence of Dataset
        Of one setting, fold and step: protocols ``perturbed(FOLD,step=S,size=...)``, reference ``unperturbed``.
    bottom : float
        Level of the floor; 0 where there is none.
    layer : int or "last"
        Where the response is read.
    """
    cells = sorted(cells, key=lambda ds: parse_label(ds["protocol"].item()).number("size"))
    labels = [parse_label(ds["protocol"].item()) for ds in cells]
    step = int(labels[0].number("step")) + 1
    sizes = np.array([label.number("size") for label in labels])
    drift = np.stack([dataset.curve(ds, "hidden_rel_l2", layer) for ds in cells])  # [size, document, step]
    everywhere = [ds["hidden_rel_l2"].transpose("step", ...).values[:step] for ds in cells]
    early = float(np.max([np.abs(e).max() if e.size else 0.0 for e in everywhere]))  # NaN stays NaN
    values = drift[:, :, step] if step < drift.shape[2] else np.full(drift.shape[:2], math.nan)
    unit = float(cells[0]["unit_roundoff"].item())
    usable = np.isfinite(values).all(axis=1) & (values > 0).all(axis=1)
    # Second-order terms are of the order of the response itself: above the tolerance they would bend the line.
    linear = np.where(usable, values.max(axis=1), math.inf) <= TOLERANCE
    heard = (sizes >= DROWNED * unit) & (np.where(usable, values.min(axis=1), 0.0) >= DROWNED * bottom)
    used = usable & linear & heard
    fold = f"{labels[0].inner}, step {step - 1}"
    line = slope.log_log(sizes[used], values[used])
    return Response(instrument_of(cells[0]), fold, step, sizes, values, used, line, early, unit)


def response_control(found: Sequence[Response], setting: Instrument) -> Control:
    """Judge whether planted noise of known sizes was answered in proportion."""
    words, state = [], State.PASSED
    for r in found:
        heard = r.sizes >= DROWNED * r.unit_roundoff
        mute = r.sizes[heard & ~(r.values > 0).all(axis=1)]
        if r.early != 0:
            state = State.FAILED
            words.append(f"drift of {number(r.early)} before the perturbation ({r.protocol}), where it must be 0")
        if not np.isfinite(r.values).all():
            state = State.FAILED
            words.append(f"NaN or Inf after the perturbation, or a chain that ends before it ({r.protocol})")
        elif len(mute):
            state = State.FAILED
            words.append(f"no drift after noise of size {', '.join(f'{s:g}' for s in mute)} ({r.protocol})")
        left = int((~r.used).sum())
        aside = f"; {left} of {len(r.sizes)} sizes left out: drowned in rounding, or beyond the linear range"
        if math.isfinite(r.slope.value):
            ends = "" if math.isnan(r.slope.low) else f" ({r.slope.low:z.3f} to {r.slope.high:z.3f})"
            words.append(
                f"response to the power {r.slope.value:z.3f}{ends} of the noise ({r.protocol}), 1 ± {TOLERANCE:g} "
                "wanted" + (aside if left else "")
            )
            if abs(r.slope.value - 1) > TOLERANCE:
                state = State.FAILED
        else:
            words.append(
                "drift answers to the noise; whether in proportion cannot be said from fewer than two sizes "
                f"({r.protocol}{aside if left else ''})"
            )
    if state is State.PASSED and not any(math.isfinite(r.slope.value) for r in found):
        state = State.UNDECIDED
    slopes = [r.slope.value for r in found if math.isfinite(r.slope.value)]
    worst = max(slopes, key=lambda s: abs(s - 1)) if slopes else math.nan
    return Control("response", setting, state, worst, "; ".join(words))


# ---------------------------------------------------------------------------------------------- shifted
def _enters(values: Float, limit: float) -> int | None:
    """First step at which the geometric mean over documents is above `limit`; None if there is none."""
    with np.errstate(divide="ignore"):
        means = np.exp(np.log(values).mean(axis=0))
    above = np.flatnonzero(~(means <= limit))  # NaN is above anything
    return int(above[0]) if above.size else None


def shifted_control(
    cells: Sequence[xr.Dataset], mine: Sequence[Floor], every: Sequence[xr.Dataset], setting: Instrument
) -> Control:
    """Judge whether a planted shift of positions shows where it was planted, alike at every precision."""
    words, state, worst = [], State.PASSED, math.nan
    if any(int(ds["block"].values[0]) != 1 for ds in cells):
        return Control("shifted", setting, State.NOT_RUN, worst, "the keys of block 1 were not kept in these cells")
    for ds in cells:
        planted = int(parse_label(ds["protocol"].item()).number("step"))
        values = dataset.curve(ds, *WHERE_SHIFTED)
        limit = threshold(mine, float(ds["unit_roundoff"].item()))
        step = _enters(values, limit)
        worst = geometric_mean(values[:, planted:])
        bar = f"{number(limit)}, the bound on rounding"
        if step is None:
            state = State.FAILED
            words.append(f"the planted bug was not seen: no step is above {bar}")
            continue
        if step != planted:
            state = State.FAILED
            words.append(f"keys differ by more than {bar}, at step {step}; the bug was planted at step {planted}")
        else:
            words.append(f"keys differ from step {step} on, where it was planted: {number(worst)}, above {bar}")
        rungs = {
            o["unit_roundoff"].item(): dataset.curve(o, *WHERE_SHIFTED)[:, planted:]
            for o in every
            if (o["protocol"].item(), o.attrs.get("tokens_sha256"))
            == (ds["protocol"].item(), ds.attrs.get("tokens_sha256"))
            and (instrument_of(o)[0], *instrument_of(o)[2:]) == (setting[0], *setting[2:])
            and o["chunk_size"].item() == ds["chunk_size"].item()
            and o.sizes["document"] == ds.sizes["document"]
        }
        tilt = _tilt(rungs)
        if math.isfinite(tilt):
            words.append(f"log-log slope of its level on the unit roundoff {tilt:z.3f}")
            if abs(tilt) > slope.STRUCTURAL_MARGIN:
                state = State.FAILED
                words[-1] += f", where one within {slope.STRUCTURAL_MARGIN:g} of 0 was planted"
    return Control("shifted", setting, state, worst, "; ".join(words))


def _tilt(rungs: dict[float, Float]) -> float:
    """Log-log slope of level on unit roundoff; NaN with fewer than two rungs or a level of 0."""
    levels = {u: geometric_mean(v) for u, v in rungs.items()}
    if len(levels) < 2 or not all(v > 0 for v in levels.values()):
        return math.nan
    return slope.log_log(list(levels), np.array(list(levels.values()))[:, None]).value


def all_responses(
    cells: Sequence[xr.Dataset], every: Sequence[Floor], setting: Instrument, layer: int | str
) -> Iterator[Response]:
    """Yield the answers to planted noise, one per fold and text of an instrument."""
    groups: dict[tuple[Any, ...], list[xr.Dataset]] = {}
    for ds in cells:
        if instrument_of(ds) == setting:
            label = parse_label(ds["protocol"].item())
            key = (label.inner, label.number("step"), ds["chunk_size"].item(), ds.attrs.get("tokens_sha256"))
            groups.setdefault(key, []).append(ds)
    bottom = max((f.level for f in every if f.setting == setting and math.isfinite(f.level)), default=0.0)
    for group in groups.values():
        yield respond(group, bottom, layer)

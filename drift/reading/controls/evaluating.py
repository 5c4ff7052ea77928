"""Controls of the instrument: does it read zero where nothing differs, and the right amount where something does?

Four kinds of control cells (:attr:`drift.dataset.sweep.Sweep.controls`) are run on short texts, per model, precision,
device and attention implementation:

*quiet*
    Full attention run twice. Every difference must be exactly zero.
*floor*
    Full attention in another implementation, or in a batch with another document: how far two right answers are
    apart. A floor must be finite, and must not be the same at every precision.
*response*
    Relative Gaussian noise of a known size put into the carried cache. Before it, the two lanes must be the same bits;
    after it, drift must be proportional to the noise.
*shifted*
    An off-by-one position planted at a known step. Keys must leave the floor at that step and no other, and to a level
    that does not depend on the precision. It is the keys of the first block that are read: their inputs are the same
    bits, and a position turns them. After the last block a shift by one position can hide below the rounding of bf16.

A sweep whose controls fail supports no conclusion: :func:`evaluate` is what every page, verdict and command line asks.
Where controls were not run, that is said, and conclusions stand on the cells alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import xarray as xr

from drift.dataset.curves import blocks_with
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Controls, Sweep
from drift.reading.controls.firing import WHERE_SHIFTED, all_responses, response_control, shifted_control
from drift.reading.controls.floor import floor_control, floors
from drift.reading.controls.model import KINDS, Checkup, Control, Instrument, State, instrument_of
from drift.reading.wording.numbers import number

__all__ = ["evaluate"]

_QUIET = (
    "hidden_rel_l2",
    "hidden_max_abs",
    "key_rel_l2",
    "value_rel_l2",
    "logit_kl",
    "logit_rel_l2",
    "logit_max_abs",
    "delta_p_rms",
)


# ---------------------------------------------------------------------------------------------- quiet
def _quiet(cells: Sequence[xr.Dataset], setting: Instrument) -> Control:
    worst, wrong, count, unknown = 0.0, [], 0, 0
    for ds in cells:
        compared = ds["logit_count"].values > 0
        for name in _QUIET:
            values = ds[name].values
            if name.startswith(("logit", "delta")):
                values = values[compared]  # nothing was compared elsewhere
            if "block" in ds[name].dims:
                values = values[:, blocks_with(ds, name)]
            unknown += int((~np.isfinite(values)).sum())
            off = np.abs(values[np.isfinite(values)])
            if (off > 0).any():
                wrong.append(name)
                count += int((off > 0).sum())
                worst = max(worst, float(off.max()))
    if wrong or unknown:
        words = f"full attention run twice differs: {count} values are not exactly 0, the largest {number(worst)}"
        names = list(dict.fromkeys(wrong))
        words += f" ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" if wrong else ""
        words += f"; {unknown} are NaN or Inf" if unknown else ""
        return Control("quiet", setting, State.FAILED, worst if wrong else math.nan, words)
    return Control("quiet", setting, State.PASSED, 0.0, "full attention run twice: every difference is exactly 0")


# ---------------------------------------------------------------------------------------------- all of them
#: Pages ask often, and of many sweeps derived from one: what was found, for as long as the controls are there.
_EVALUATED: WeakKeyDictionary[Controls, dict[tuple[object, ...], Checkup]] = WeakKeyDictionary()


def evaluate(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Checkup:
    """Evaluate every control of a sweep.

    Parameters
    ----------
    sweep : Sweep
    measure : str
        That the floor is of.
    layer : int or "last"

    Returns
    -------
    Checkup
        Per setting of the sweep's cells one outcome of each kind; settings without such a control are ``not run``.
    """
    settings = list(dict.fromkeys(instrument_of(ds) for ds in [*sweep.controls, *sweep.cells]))
    key = (measure, layer, tuple(settings))
    known = _EVALUATED.setdefault(sweep.controls, {})
    if key not in known:
        known[key] = _evaluate(sweep, settings, measure, layer)
    return known[key]


def _evaluate(sweep: Sweep, settings: Sequence[Instrument], measure: str, layer: int | str) -> Checkup:
    if not sweep.controls:
        return Checkup((), (), (), False, measure)
    by: dict[str, list[xr.Dataset]] = {}
    for ds in sweep.controls:
        name = parse_label(ds["protocol"].item()).name
        kind = str(ds.attrs["control"])
        kind = {"perturbed": "response", "shifted": "shifted"}.get(name, "") if kind == "fires" else kind
        by.setdefault(kind, []).append(ds)
    states, bottom = floors(sweep, "hidden_rel_l2", layer), floors(sweep, measure, layer)
    responses = [r for setting in settings for r in all_responses(by.get("response", []), states, setting, layer)]
    out: list[Control] = []
    for kind in KINDS:
        for setting in settings:
            cells = [ds for ds in by.get(kind, []) if instrument_of(ds) == setting]
            mine = [f for f in states if f.setting == setting]
            if not cells:
                out.append(Control(kind, setting, State.NOT_RUN, math.nan, "no such control was run"))
            elif kind == "quiet":
                out.append(_quiet(cells, setting))
            elif kind == "floor":
                out.append(floor_control(mine, states, setting))
            elif kind == "response":
                out.append(response_control([r for r in responses if r.setting == setting], setting))
            else:
                keys = [f for f in floors(sweep, *WHERE_SHIFTED) if f.setting == setting]
                out.append(shifted_control(cells, keys, by["shifted"], setting))
    return Checkup(tuple(out), tuple(bottom), tuple(responses), True, measure)

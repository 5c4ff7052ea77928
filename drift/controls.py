"""Controls of the instrument: does it read zero where nothing differs, and the right amount where something does?

Four kinds of control cells (:attr:`drift.dataset.Sweep.controls`) are run on short texts, per model, precision, device
and attention implementation:

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.special import stdtrit

from drift import dataset, ladder
from drift.dataset import Sweep
from drift.labels import parse
from drift.ladder import Interval, mean_interval

__all__ = [
    "COMMAND",
    "TOLERANCE",
    "Control",
    "Floor",
    "Response",
    "State",
    "Summary",
    "evaluate",
    "floors",
    "in_floors",
    "level",
    "respond",
    "threshold",
]

Float = NDArray[np.float64]

#: How far from 1 the log-log slope of the response on the size of a perturbation may be.
TOLERANCE = 0.1
#: A part of this size, in quadrature with one of size 1, changes the slope by TOLERANCE: (1 - s) = 1 / (1 + r^2).
#: Perturbations smaller than this many unit roundoffs drown in rounding, and so do responses this near to the floor.
DROWNED = math.sqrt((1 - TOLERANCE) / TOLERANCE)
#: One side of the bound that no step of the floor is expected to pass.
_ALPHA = 0.001
#: What a reader does about missing controls.
COMMAND = "python -m drift.sweep SWEEP.yaml --set controls=true"

#: Measure and place in which a planted position is looked for.
_WHERE_SHIFTED = ("key_rel_l2", "first")

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


class State(Enum):
    """Outcome of a control. The value is what tables and JSON show."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"
    NOT_RUN = "not run"


SIGNS = {State.PASSED: "●", State.FAILED: "✖", State.UNDECIDED: "○", State.NOT_RUN: "–"}
KINDS = ("quiet", "floor", "response", "shifted")
_Setting = tuple[str, str, str, str]  # model, dtype, device, attention implementation


@dataclass(frozen=True)
class Control:
    """One control of one setting.

    Attributes
    ----------
    kind : {"quiet", "floor", "response", "shifted"}
    setting : tuple of str
        Model, precision, device and attention implementation.
    state : State
    number : float
        Quiet: largest difference. Floor: its level. Response: the slope. Shifted: the level. NaN where not run.
    words : str
        The outcome in a sentence.
    """

    kind: str
    setting: _Setting
    state: State
    number: float
    words: str

    @property
    def name(self) -> str:
        """The setting in words."""
        model, dtype, device, attention = self.setting
        return f"{model} {dtype} ({device}, {attention})"


@dataclass(frozen=True)
class Floor:
    """How far full attention is from itself when only the order of its sums changes.

    Attributes
    ----------
    protocol : str
        What was changed.
    setting : tuple of str
    unit_roundoff : float
    values : ndarray [document, step]
        Amplitudes of the measure.
    text : str
        Hash of the tokens.
    """

    protocol: str
    setting: _Setting
    unit_roundoff: float
    values: Float
    text: str

    @property
    def level(self) -> float:
        """Geometric mean of what is above 0; 0 where all of it is exactly zero."""
        return level(self.values)


@dataclass(frozen=True)
class Response:
    """How drift answers to noise of a known size.

    Attributes
    ----------
    setting : tuple of str
    protocol : str
        Of the fold that was disturbed, with the step.
    step : int
        First chain step (counted from 0) that can differ.
    sizes : ndarray [size]
    values : ndarray [size, document]
        Drift at that step.
    used : ndarray [size]
        Sizes that the slope is formed on: neither drowned in rounding nor beyond the linear range.
    slope : Interval
        Log-log, over documents; over sizes where there is one document.
    early : float
        Largest drift before that step, which must be exactly 0.
    unit_roundoff : float
    """

    setting: _Setting
    protocol: str
    step: int
    sizes: Float
    values: Float
    used: NDArray[np.bool_]
    slope: Interval
    early: float
    unit_roundoff: float


@dataclass(frozen=True)
class Summary:
    """What the controls of a sweep say.

    Attributes
    ----------
    controls : tuple of Control
    floor : tuple of Floor
    responses : tuple of Response
    run : bool
        Whether the sweep has any control cell.
    measure : str
    """

    controls: tuple[Control, ...]
    floor: tuple[Floor, ...]
    responses: tuple[Response, ...]
    run: bool
    measure: str = "hidden_rel_l2"

    @property
    def ok(self) -> bool:
        """Whether no control failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The controls that failed, in words."""
        return [f"{c.kind}, {c.name}: {c.words}" for c in self.controls if c.state is State.FAILED]

    @property
    def missing(self) -> list[str]:
        """The controls that were not run, in words."""
        if not self.run:
            return ["controls were not run"]
        return [f"{c.kind}, {c.name}: {c.words}" for c in self.controls if c.state is State.NOT_RUN]

    @property
    def undecided(self) -> list[str]:
        """The controls that cannot tell at their precision, in words."""
        return [f"{c.kind}, {c.name}: {c.words}" for c in self.controls if c.state is State.UNDECIDED]

    @property
    def banner(self) -> str:
        """What stands at the top of every page."""
        if not self.run:
            return "Controls were not run: that the instrument reads right has not been shown in this sweep."
        count = len(self.failed)
        if count:
            return (
                f"No conclusion is drawn: {count} control{'s' * (count != 1)} of the instrument failed. "
                f"{'; '.join(self.failed[:3])}{f'; and {count - 3} more' if count > 3 else ''}. What stands below "
                "describes numbers that cannot be trusted."
            )
        passed = sum(c.state is State.PASSED for c in self.controls)
        text = f"All {passed} controls of the instrument that could be decided passed"
        if self.undecided:
            kinds = dict.fromkeys((c.kind, c.setting[1]) for c in self.controls if c.state is State.UNDECIDED)
            which = ", ".join(f"{kind} in {dtype}" for kind, dtype in kinds)
            text += f"; {len(self.undecided)} cannot be decided at their precision ({which})"
        return text + (f"; {len(self.missing)} were not run." if self.missing else ".")

    def in_floors(self, ds: xr.Dataset, layer: int | str = "last") -> float:
        """Level of a cell's drift in units of the floor; NaN where no floor was measured, Inf where it is exactly 0."""
        from drift import summary
        from drift.claims.auditing import amplitude

        bottom = [f.level for f in self.floor if f.setting == _setting(ds)]
        if not bottom:
            return math.nan
        top = summary._geometric(summary.level(amplitude(ds, self.measure, layer)))
        worst = float(np.max(bottom))  # NaN stays NaN
        return math.inf if worst == 0 < top else top / worst if worst != 0 else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rows = [
            {
                "control": c.kind,
                **dict(zip(("model", "dtype", "device", "attn_implementation"), c.setting, strict=True)),
                "state": c.state.value,
                "number": c.number if math.isfinite(c.number) else None,
                "words": c.words,
            }
            for c in self.controls
        ]
        return {
            "run": self.run, "ok": self.ok, "failed": self.failed, "undecided": self.undecided,
            "missing": self.missing, "controls": rows,
        }  # fmt: skip

    def frame(self) -> pd.DataFrame:
        """Write the controls as a table for reading."""
        rows = [
            {
                "control": c.kind,
                "model": c.setting[0],
                "precision": c.setting[1],
                "device": c.setting[2],
                "attention": c.setting[3],
                "outcome": f"{SIGNS[c.state]} {c.state.value}",
                "finding": c.words,
            }
            for c in self.controls
        ]
        return pd.DataFrame(rows)


def _setting(ds: xr.Dataset) -> _Setting:
    model, dtype, device, attention = (str(ds[n].item()) for n in ("model", "dtype", "device", "attn_implementation"))
    return model, dtype, device, attention


def level(values: Float) -> float:
    """Geometric mean of the positive values; 0 if none is positive, NaN if none is finite."""
    from drift.summary import _geometric

    return _geometric(values)


def _number(x: float) -> str:
    from drift.summary import number

    return number(x)


def in_floors(sweep: Sweep, found: Summary, layer: int | str = "last") -> pd.DataFrame:
    """Write every fold's level in units of the floor as a table: one row per fold, one column per precision."""
    from drift.dataset import curve
    from drift.labels import is_fold
    from drift.plateau import late_part

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
        row[ds["dtype"].item()] = ("the floor is exactly 0" if math.isinf(floors) else _number(floors)) + (
            f" ({bad} of {values.size} values are NaN or Inf and were left out)" if bad else ""
        )
    return pd.DataFrame(list(rows.values()))


# ---------------------------------------------------------------------------------------------- quiet
def _quiet(cells: Sequence[xr.Dataset], setting: _Setting) -> Control:
    worst, wrong, count, unknown = 0.0, [], 0, 0
    for ds in cells:
        compared = ds["logit_count"].values > 0
        for name in _QUIET:
            values = ds[name].values
            if name.startswith(("logit", "delta")):
                values = values[compared]  # nothing was compared elsewhere
            unknown += int((~np.isfinite(values)).sum())
            off = np.abs(values[np.isfinite(values)])
            if (off > 0).any():
                wrong.append(name)
                count += int((off > 0).sum())
                worst = max(worst, float(off.max()))
    if wrong or unknown:
        words = f"full attention run twice differs: {count} values are not exactly 0, the largest {_number(worst)}"
        names = list(dict.fromkeys(wrong))
        words += f" ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" if wrong else ""
        words += f"; {unknown} are NaN or Inf" if unknown else ""
        return Control("quiet", setting, State.FAILED, worst if wrong else math.nan, words)
    return Control("quiet", setting, State.PASSED, 0.0, "full attention run twice: every difference is exactly 0")


# ---------------------------------------------------------------------------------------------- floor
def floors(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> list[Floor]:
    """Take the floor cells of a sweep."""
    from drift.claims.auditing import amplitude

    return [
        Floor(
            str(ds["protocol"].item()),
            _setting(ds),
            float(ds["unit_roundoff"].item()),
            amplitude(ds, measure, layer),
            str(ds.attrs.get("tokens_sha256", "")),
        )
        for ds in sweep.controls
        if ds.attrs["control"] == "floor"
    ]


def _floor(mine: Sequence[Floor], every: Sequence[Floor], setting: _Setting) -> Control:
    worst = float(np.max([f.level for f in mine])) if all(np.isfinite(f.values).all() for f in mine) else math.nan
    said = ", ".join(f"{f.protocol} {_number(f.level)}" for f in mine)
    if math.isnan(worst):
        return Control("floor", setting, State.FAILED, worst, f"values are NaN or Inf: {said}")
    unit = mine[0].unit_roundoff
    words = f"level {said}" + (f", {_number(worst / unit)} unit roundoffs" if worst > 0 else "")
    for f in mine:
        rungs = {
            o.unit_roundoff: o
            for o in every
            if (o.protocol, o.text, o.setting[0], *o.setting[2:]) == (f.protocol, f.text, setting[0], *setting[2:])
            and o.values.shape == f.values.shape
        }
        if len(rungs) < 2 or any(o.level == 0 for o in rungs.values()):
            continue
        found = ladder.slope(list(rungs), np.stack([o.values for o in rungs.values()]))
        if abs(found.interval.value) <= ladder.STRUCTURAL_MARGIN:
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
    cells = sorted(cells, key=lambda ds: parse(ds["protocol"].item()).number("size"))
    labels = [parse(ds["protocol"].item()) for ds in cells]
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
    line = _loglog(sizes[used], values[used])
    return Response(_setting(cells[0]), fold, step, sizes, values, used, line, early, unit)


def _loglog(x: Float, y: Float) -> Interval:
    """Log-log slope of y [point, document] on x [point]."""
    if len(x) < 2 or not y.size:
        return mean_interval([])
    z = np.log(x) - np.log(x).mean()
    logs = np.log(y)
    slopes = z @ logs / (z @ z)
    if len(slopes) > 1 or len(x) < 3:
        return mean_interval(slopes)
    rest = logs[:, 0] - logs[:, 0].mean() - slopes[0] * z
    df = len(x) - 2
    error = math.sqrt(float(rest @ rest) / df / float(z @ z))
    half = float(stdtrit(df, 1 - ladder.ALPHA)) * error
    return Interval(float(slopes[0]), error, float(df), float(slopes[0]) - half, float(slopes[0]) + half)


def _response(found: Sequence[Response], setting: _Setting) -> Control:
    words, state = [], State.PASSED
    for r in found:
        heard = r.sizes >= DROWNED * r.unit_roundoff
        mute = r.sizes[heard & ~(r.values > 0).all(axis=1)]
        if r.early != 0:
            state = State.FAILED
            words.append(f"drift of {_number(r.early)} before the perturbation ({r.protocol}), where it must be 0")
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
    number = max(slopes, key=lambda s: abs(s - 1)) if slopes else math.nan
    return Control("response", setting, state, number, "; ".join(words))


# ---------------------------------------------------------------------------------------------- shifted
def _enters(values: Float, limit: float) -> int | None:
    """First step at which the geometric mean over documents is above `limit`; None if there is none."""
    with np.errstate(divide="ignore"):
        means = np.exp(np.log(values).mean(axis=0))
    above = np.flatnonzero(~(means <= limit))  # NaN is above anything
    return int(above[0]) if above.size else None


def _shifted(
    cells: Sequence[xr.Dataset], mine: Sequence[Floor], every: Sequence[xr.Dataset], setting: _Setting
) -> Control:
    words, state, number = [], State.PASSED, math.nan
    if any(int(ds["block"].values[0]) != 1 for ds in cells):
        return Control("shifted", setting, State.NOT_RUN, number, "the keys of block 1 were not kept in these cells")
    for ds in cells:
        planted = int(parse(ds["protocol"].item()).number("step"))
        values = dataset.curve(ds, *_WHERE_SHIFTED)
        limit = threshold(mine, float(ds["unit_roundoff"].item()))
        step = _enters(values, limit)
        number = level(values[:, planted:])
        bar = f"{_number(limit)}, the bound on rounding"
        if step is None:
            state = State.FAILED
            words.append(f"the planted bug was not seen: no step is above {bar}")
            continue
        if step != planted:
            state = State.FAILED
            words.append(f"keys differ by more than {bar}, at step {step}; the bug was planted at step {planted}")
        else:
            words.append(f"keys differ from step {step} on, where it was planted: {_number(number)}, above {bar}")
        rungs = {
            o["unit_roundoff"].item(): dataset.curve(o, *_WHERE_SHIFTED)[:, planted:]
            for o in every
            if (o["protocol"].item(), o.attrs.get("tokens_sha256"))
            == (ds["protocol"].item(), ds.attrs.get("tokens_sha256"))
            and (_setting(o)[0], *_setting(o)[2:]) == (setting[0], *setting[2:])
            and o["chunk_size"].item() == ds["chunk_size"].item()
            and o.sizes["document"] == ds.sizes["document"]
        }
        tilt = _tilt(rungs)
        if math.isfinite(tilt):
            words.append(f"log-log slope of its level on the unit roundoff {tilt:z.3f}")
            if abs(tilt) > ladder.STRUCTURAL_MARGIN:
                state = State.FAILED
                words[-1] += f", where one within {ladder.STRUCTURAL_MARGIN:g} of 0 was planted"
    return Control("shifted", setting, state, number, "; ".join(words))


def _tilt(rungs: dict[float, Float]) -> float:
    """Log-log slope of level on unit roundoff; NaN with fewer than two rungs or a level of 0."""
    levels = {u: level(v) for u, v in rungs.items()}
    if len(levels) < 2 or not all(v > 0 for v in levels.values()):
        return math.nan
    return float(np.polyfit(np.log(list(levels)), np.log(list(levels.values())), 1)[0])


# ---------------------------------------------------------------------------------------------- all of them
def evaluate(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> Summary:
    """Evaluate every control of a sweep.

    Parameters
    ----------
    sweep : Sweep
    measure : str
        That the floor is of.
    layer : int or "last"

    Returns
    -------
    Summary
        Per setting of the sweep's cells one outcome of each kind; settings without such a control are ``not run``.
    """
    settings = list(dict.fromkeys(_setting(ds) for ds in [*sweep.controls, *sweep.cells]))
    key = ("controls", measure, layer, tuple(settings))
    if key not in sweep.memo:  # pages ask often
        sweep.memo[key] = _evaluate(sweep, settings, measure, layer)
    found = sweep.memo[key]
    assert isinstance(found, Summary)
    return found


def _evaluate(sweep: Sweep, settings: Sequence[_Setting], measure: str, layer: int | str) -> Summary:
    if not sweep.controls:
        return Summary((), (), (), False, measure)
    by: dict[str, list[xr.Dataset]] = {}
    for ds in sweep.controls:
        name = parse(ds["protocol"].item()).name
        kind = str(ds.attrs["control"])
        kind = {"perturbed": "response", "shifted": "shifted"}.get(name, "") if kind == "fires" else kind
        by.setdefault(kind, []).append(ds)
    states, bottom = floors(sweep, "hidden_rel_l2", layer), floors(sweep, measure, layer)
    responses = [r for setting in settings for r in _responses(by.get("response", []), states, setting, layer)]
    out: list[Control] = []
    for kind in KINDS:
        for setting in settings:
            cells = [ds for ds in by.get(kind, []) if _setting(ds) == setting]
            mine = [f for f in states if f.setting == setting]
            if not cells:
                out.append(Control(kind, setting, State.NOT_RUN, math.nan, "no such control was run"))
            elif kind == "quiet":
                out.append(_quiet(cells, setting))
            elif kind == "floor":
                out.append(_floor(mine, states, setting))
            elif kind == "response":
                out.append(_response([r for r in responses if r.setting == setting], setting))
            else:
                keys = [f for f in floors(sweep, *_WHERE_SHIFTED) if f.setting == setting]
                out.append(_shifted(cells, keys, by["shifted"], setting))
    return Summary(tuple(out), tuple(bottom), tuple(responses), True, measure)


def _responses(
    cells: Sequence[xr.Dataset], every: Sequence[Floor], setting: _Setting, layer: int | str
) -> Iterator[Response]:
    groups: dict[tuple[Any, ...], list[xr.Dataset]] = {}
    for ds in cells:
        if _setting(ds) == setting:
            label = parse(ds["protocol"].item())
            key = (label.inner, label.number("step"), ds["chunk_size"].item(), ds.attrs.get("tokens_sha256"))
            groups.setdefault(key, []).append(ds)
    bottom = max((f.level for f in every if f.setting == setting and math.isfinite(f.level)), default=0.0)
    for group in groups.values():
        yield respond(group, bottom, layer)

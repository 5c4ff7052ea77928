"""How drift goes with the precision: log-log slopes on the unit roundoff, and where an error comes from.

Rounding makes drift proportional to the unit roundoff (slope 1); another computation makes it the same at every
precision (slope 0). The slope is estimated per document, over the same text and the same steps at every rung, so that
what documents have in common cancels; its interval is one of Student's t over the documents. Rungs differ in more than
their unit roundoff (bf16 and fp16 round what they store and accumulate in fp32), hence adjacent pairs are judged, too.

Cells against full attention in float64 (reference ``gold``) also carry the error as a sum of three parts:
:func:`attributions` summarises them. The attribution needs no second rung: it takes one error apart; the ladder needs
no float64: it compares errors. They are independent evidence.

``python -m drift.ladder SWEEP`` is the command line. NumPy and SciPy only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from drift.errors import DatasetError, DriftError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from numpy.typing import ArrayLike, NDArray

    from drift.dataset import Sweep

    Float = NDArray[np.float64]

__all__ = [
    "ALPHA",
    "COMMAND",
    "MEASURES",
    "PARTS",
    "ROUNDING_MARGIN",
    "STRUCTURAL_MARGIN",
    "Attribution",
    "Interval",
    "Ladder",
    "Pair",
    "Reason",
    "Slope",
    "Verdict",
    "as_dict",
    "attribution_frame",
    "attribution_sentences",
    "attributions",
    "by_measure",
    "check_shares",
    "departure",
    "frame",
    "headlines",
    "judge",
    "ladders",
    "main",
    "mean_interval",
    "method",
    "shown",
    "slope",
]

#: Level of the one-sided tests: intervals have coverage 1 - 2 ALPHA, as everywhere in drift.
ALPHA = 0.05
#: How far from 1 the whole interval of a slope may reach where drift is called rounding ...
ROUNDING_MARGIN = 0.2
#: ... and from 0 where it is called structural.
STRUCTURAL_MARGIN = 0.05
#: Windows of the chain that stand in for documents where there is one only.
WINDOWS = 8
#: Measures of the ladder; divergences enter as their square roots, see :mod:`drift.claims`.
MEASURES = ("hidden_rel_l2", "key_rel_l2", "value_rel_l2", "logit_kl")
#: How far below 1 a slope is before it is asked why.
DEPARTURE = 0.05
#: The three parts of an error against float64, and what they are called.
PARTS = {
    "structural": "structural: the fold is another computation",
    "full_rounding": "rounding of full attention",
    "fold_rounding": "rounding that folding adds",
}


#: What would measure the parts.
COMMAND = "python -m drift.sweep SWEEP.yaml --set reference=full,gold"


class Verdict(Enum):
    """How drift goes with the precision. The value is the name used in JSON; ``str()`` is a sentence."""

    ROUNDING = "rounding"
    STRUCTURAL = "structural"
    BOTH = "both"
    UNDETERMINED = "undetermined"

    def __str__(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Verdict.ROUNDING: "rounding: drift is proportional to the unit roundoff",
    Verdict.STRUCTURAL: "structural: drift does not depend on the precision",
    Verdict.BOTH: "both: drift shrinks with the unit roundoff, but less than in proportion",
    Verdict.UNDETERMINED: "undetermined: these data do not decide",
}


class Reason(Enum):
    """Why a slope is undetermined. The value is what tables and JSON show."""

    ONE_RUNG = "one precision only"
    NONFINITE = "NaN or Inf"
    ZEROS = "exactly zero too often: there is no level"
    NO_INTERVAL = "one document and a chain too short for an interval"
    WIDE = "the interval reaches across a margin"
    STEEP = "drift shrinks faster than the unit roundoff"
    REVERSED = "drift is larger at finer precision"
    CONTROLS = "controls of the instrument failed"


@dataclass(frozen=True)
class Interval:
    """An estimate with its standard error and interval of coverage 1 - 2 `ALPHA`; NaN where it cannot be formed."""

    value: float
    standard_error: float
    df: float
    low: float
    high: float

    @property
    def pair(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high


_NOTHING = Interval(math.nan, math.nan, math.nan, math.nan, math.nan)


def mean_interval(values: ArrayLike, alpha: float = ALPHA) -> Interval:
    """Mean of independent replicates, with Student's t interval.

    Parameters
    ----------
    values : array_like [replicate]
        NaN (not measured) is left out.
    alpha : float
        The interval has coverage 1 - 2 `alpha`.

    Returns
    -------
    Interval
        With one replicate the value alone: it has no interval.
    """
    import numpy as np
    from scipy.special import stdtrit

    good = np.asarray(values, dtype=float)
    good = good[np.isfinite(good)]
    if not good.size:
        return _NOTHING
    value, df = float(good.mean()), float(good.size - 1)
    if df < 1:
        return Interval(value, math.nan, 0.0, math.nan, math.nan)
    error = float(good.std(ddof=1) / math.sqrt(good.size))
    half = float(stdtrit(df, 1 - alpha)) * error
    return Interval(value, error, df, value - half, value + half)


def finite_means(values: Float) -> Float:
    """Return means [document] of what is finite of values [document, step]; NaN where nothing is."""
    import numpy as np

    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def judge(interval: Interval) -> tuple[Verdict, Reason | None]:
    """Decide what a slope says; the whole interval must lie where the verdict says that it does."""
    low, high = interval.pair
    if math.isnan(low):
        return Verdict.UNDETERMINED, Reason.NO_INTERVAL
    if low >= 1 - ROUNDING_MARGIN and high <= 1 + ROUNDING_MARGIN:
        return Verdict.ROUNDING, None
    if low >= -STRUCTURAL_MARGIN and high <= STRUCTURAL_MARGIN:
        return Verdict.STRUCTURAL, None
    if low > STRUCTURAL_MARGIN and high < 1 - ROUNDING_MARGIN:
        return Verdict.BOTH, None
    if low > 1 + ROUNDING_MARGIN:
        return Verdict.UNDETERMINED, Reason.STEEP
    if high < -STRUCTURAL_MARGIN:
        return Verdict.UNDETERMINED, Reason.REVERSED
    return Verdict.UNDETERMINED, Reason.WIDE


@dataclass(frozen=True)
class Slope:
    """A log-log slope on the unit roundoff and what it says.

    Attributes
    ----------
    interval : Interval
        Of the slope, over documents; over the steps of the chain where there is one document only.
    by_document : tuple of float
        Slope of each document.
    misfit : float
        Largest factor by which a rung's level departs from the line; 1 with two rungs.
    zeros : int
        Pairs of document and late step that were left out because drift is exactly zero in some rung.
    points : int
        All pairs of document and late step.
    verdict : Verdict
    reason : Reason or None
    """

    interval: Interval
    by_document: tuple[float, ...]
    misfit: float
    zeros: int
    points: int
    verdict: Verdict
    reason: Reason | None = None

    def __str__(self) -> str:
        if math.isnan(self.interval.value):
            return f"{Verdict.UNDETERMINED.value} ({self.reason.value if self.reason else ''})"
        text = f"{self.verdict.value}" + (f" ({self.reason.value})" if self.reason else "")
        return f"slope {_number(self.interval.value)} {_pair(self.interval)}: {text}"


def _number(x: float, digits: int = 3) -> str:
    return "–" if math.isnan(x) else f"{x:z.{digits}f}"


def _pair(interval: Interval, digits: int = 3) -> str:
    if math.isnan(interval.low):
        return "(no interval)"
    return f"({_number(interval.low, digits)} to {_number(interval.high, digits)})"


def slope(unit_roundoff: ArrayLike, values: ArrayLike, alpha: float = ALPHA) -> Slope:
    """Estimate the log-log slope of drift on the unit roundoff.

    Least squares on the logs, for each document and step over the rungs; the mean over the late steps is the slope of
    a document's level (its geometric mean past the first quarter of the chain).

    Parameters
    ----------
    unit_roundoff : array_like [rung]
    values : array_like [rung, document, step]
        Amplitudes of the same documents and steps at every rung, at least 0.
    alpha : float
        The interval has coverage 1 - 2 `alpha`.

    Returns
    -------
    Slope
        A geometric mean cannot take 0: a late step at which some rung is exactly zero is left out at every rung, and
        counted. Where that is more than a tenth of them, there is no slope.
    """
    import numpy as np

    from drift.plateau import late_part
    from drift.plateau.kernel import ZEROS

    u, drift = np.asarray(unit_roundoff, dtype=float), np.asarray(values, dtype=float)
    if drift.ndim != 3 or u.shape != drift.shape[:1]:
        raise ValueError(f"values are [rung, document, step] with one unit roundoff a rung, not {drift.shape}")
    late = late_part(drift)
    points = late[0].size

    def nothing(reason: Reason, zeros: int = 0) -> Slope:
        return Slope(_NOTHING, (), math.nan, zeros, points, Verdict.UNDETERMINED, reason)

    if len(np.unique(u)) < 2:
        return nothing(Reason.ONE_RUNG)
    if not np.isfinite(late).all():
        return nothing(Reason.NONFINITE)
    positive = np.asarray((late > 0).all(axis=0))  # [document, step]
    zeros = int((~positive).sum())
    if zeros > ZEROS * points or not positive.any(axis=1).all():
        return nothing(Reason.ZEROS, zeros)
    x = np.log(u) - np.log(u).mean()
    logs = np.log(np.where(positive, late, 1.0))
    series = np.tensordot(x / (x @ x), logs, axes=1)
    by_document = np.array([row[there].mean() for row, there in zip(series, positive, strict=True)])
    if len(by_document) > 1:
        interval = mean_interval(by_document, alpha)
    else:
        interval = _along(series[0][positive[0]], drift.shape[2], alpha)
    levels = np.array([logs[:, d, there].mean(axis=1) for d, there in enumerate(positive)]).mean(axis=0)  # [rung]
    misfit = math.exp(float(np.abs(levels - levels.mean() - interval.value * x).max()))
    verdict, reason = judge(interval)
    return Slope(interval, tuple(by_document.tolist()), misfit, zeros, points, verdict, reason)


def _along(series: Float, steps: int, alpha: float) -> Interval:
    """Mean of one document's slopes [late step]; the interval is over its chain.

    The wider of two: windows of the chain as replicates (they contain whatever autocorrelation is shorter than they
    are), and autocorrelated noise around the trend, as :mod:`drift.plateau` has it.
    """
    import numpy as np
    from scipy.special import stdtrit

    from drift.plateau.kernel import window_mean

    if len(series) < 2 * WINDOWS:
        return Interval(float(series.mean()), math.nan, 0.0, math.nan, math.nan)
    windows = mean_interval([part.mean() for part in np.array_split(series, WINDOWS)], alpha)
    whole = np.full(steps, series.mean())
    whole[steps - len(series) :] = series  # what was exactly zero was left out: the rest moves together
    found = window_mean(whole[None, None])
    error, df = windows.standard_error, windows.df
    if found is not None:
        noise, freedom = (x.item() for x in found.errors[0])
        if noise > error:
            error, df = noise, freedom
    half = float(stdtrit(df, 1 - alpha)) * error
    value = float(series.mean())
    return Interval(value, error, df, value - half, value + half)


# ---------------------------------------------------------------------------------------------- from sweeps
@dataclass(frozen=True)
class Pair:
    """The slope between two neighbouring rungs."""

    coarse: str
    fine: str
    slope: Slope

    @property
    def mixed(self) -> bool:
        """Whether only one of the two stores less than it accumulates in."""
        return (self.coarse in _HALF) != (self.fine in _HALF)


_HALF = ("bf16", "fp16")


@dataclass(frozen=True)
class Ladder:
    """One fold at several precisions, over the same text.

    Attributes
    ----------
    labels : dict
        Model, protocol, chunk size and what else the cells share; ``measure`` and ``layer``.
    dtypes : tuple of str
        Coarse first.
    unit_roundoff : tuple of float
    level : ndarray [rung, document]
        Geometric mean past the first quarter of the chain; 0 where all of that is exactly zero.
    slope : Slope
        Over all rungs.
    pairs : tuple of Pair
    caveats : tuple of str
    """

    labels: dict[str, Any]
    dtypes: tuple[str, ...]
    unit_roundoff: tuple[float, ...]
    level: Float
    slope: Slope
    pairs: tuple[Pair, ...]
    caveats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        return "{protocol}, {model}, chunk {chunk_size}".format(**self.labels)


def ladders(
    sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last", reference: str = "full"
) -> list[Ladder]:
    """Judge how every fold's drift goes with the precision.

    Parameters
    ----------
    sweep : Sweep
    measure : str
        See :func:`drift.claims.amplitude`: divergences are quadratic in the error and enter as their square roots.
    layer : int or "last"
    reference : str
        What the folds are compared with.

    Returns
    -------
    list of Ladder
        One per model, protocol and chunk size (and attention implementation, device, text) with a cell; verdicts are
        withheld where the sweep's controls failed.
    """
    from drift import controls, labels

    part = labels.keep(sweep, lambda ds: labels.is_fold(ds, reference, generating=True))
    withheld = not controls.evaluate(sweep).ok
    found = _ladders(part, measure, layer, withheld)
    return sorted(found, key=lambda one: tuple(one.labels[n] for n in ("protocol", "model", "chunk_size")))


def _ladders(sweep: Sweep, measure: str, layer: int | str, withheld: bool) -> Iterator[Ladder]:
    import numpy as np

    from drift import summary
    from drift.claims.auditing import BOUNDED, UNRELATED, _groups, amplitude

    for axes, cells in _groups(sweep, "protocol", "model", "chunk_size"):
        kept = sorted(
            {ds["dtype"].item(): ds for ds in cells}.values(), key=lambda ds: (-ds["unit_roundoff"].item(), _dtype(ds))
        )
        u = [ds["unit_roundoff"].item() for ds in kept]
        values = np.stack([amplitude(ds, measure, layer) for ds in kept])
        if kept[0]["reference"].item() == "previous":
            values = values[:, :, 1:]  # the first step has no previous one
        if measure.startswith("logit") and np.isnan(values).all():
            continue
        overall = _withhold(slope(u, values), withheld)
        pairs = [
            Pair(_dtype(kept[i]), _dtype(kept[j]), _withhold(slope([u[i], u[j]], values[[i, j]]), withheld))
            for i, j in itertools.combinations(range(len(u)), 2)
            if u[j] < u[i] and not any(u[j] < other < u[i] for other in u)
        ]
        level = np.stack([summary.level(v) for v in values])
        yield Ladder(
            {**axes, "measure": measure, "layer": layer},
            tuple(_dtype(ds) for ds in kept),
            tuple(u),
            level,
            overall,
            tuple(pairs),
            tuple(_caveats(overall, axes["documents"], level if measure in BOUNDED else None, UNRELATED)),
        )


def _dtype(ds: xr.Dataset) -> str:
    return str(ds["dtype"].item())


def _withhold(found: Slope, withheld: bool) -> Slope:
    if not withheld:
        return found
    return Slope(
        found.interval, found.by_document, found.misfit, found.zeros, found.points, Verdict.UNDETERMINED,
        Reason.CONTROLS,
    )  # fmt: skip


def _caveats(found: Slope, documents: int, level: Float | None, unrelated: float) -> Iterator[str]:
    from drift.plateau.kernel import DOCUMENTS

    if documents == 1:
        yield "one document: the interval is over the steps of its chain and says nothing of other documents"
    elif documents < DOCUMENTS:
        yield f"{documents} documents: Student's t with {documents - 1} degree{'s' * (documents > 2)} of freedom"
    if found.zeros:
        yield f"{found.zeros} of {found.points} late steps left out: exactly zero at some precision"
    if found.misfit > 2:
        yield f"a rung lies {found.misfit:.2g}-fold off the line: see the pairs"
    if level is not None and level.size and level.max() > 0.5 * unrelated:
        yield f"near the distance of unrelated states ({unrelated:.2g}): a slope near 0 means little there"


def frame(found: Sequence[Ladder]) -> pd.DataFrame:
    """One row per ladder (``rungs`` all of them) and per adjacent pair of rungs."""
    import pandas as pd

    rows = []
    for one in found:
        many = [("pair", f"{p.coarse}/{p.fine}", p.slope, _MIXED if p.mixed else "") for p in one.pairs]
        if len(one.dtypes) == 2:  # one pair, which is the ladder
            many = [("all", *pair[1:]) for pair in many]
        else:
            many = [("all", "/".join(one.dtypes), one.slope, ""), *many]
        many = many or [("all", "/".join(one.dtypes), one.slope, "")]
        for kind, dtypes, s, note in many:
            rows.append(
                {
                    **one.labels,
                    "rungs": kind,
                    "dtypes": dtypes,
                    "slope": s.interval.value,
                    "standard_error": s.interval.standard_error,
                    "low": s.interval.low,
                    "high": s.interval.high,
                    "misfit": s.misfit,
                    "zeros": s.zeros,
                    "points": s.points,
                    "verdict": s.verdict.value,
                    "reason": s.reason.value if s.reason else "",
                    "notes": "; ".join([*([note] if note else []), *(one.caveats if kind == "all" else ())]),
                }
            )
    return pd.DataFrame(rows)


_MIXED = "16-bit rungs accumulate in fp32, which lowers their constant"


def shown(found: Sequence[Ladder]) -> pd.DataFrame:
    """Write the table of slopes for reading."""
    import pandas as pd

    table = frame(found)
    if table.empty:
        return table
    extra = [c for c in ("attn_implementation", "device", "tokens", "documents") if table[c].nunique() > 1]
    verdict = [v + (f" ({r})" if r else "") for v, r in zip(table["verdict"], table["reason"], strict=True)]
    return pd.DataFrame(
        {
            "protocol": table["protocol"],
            "model": table["model"],
            "chunk size": table["chunk_size"],
            **{c: table[c] for c in extra},
            "precisions": table["dtypes"],
            "slope": table["slope"].map(_number),
            "standard error": table["standard_error"].map(_number),
            f"{100 * (1 - 2 * ALPHA):g} % interval": [
                "–" if math.isnan(a) else f"{_number(a)} to {_number(b)}"
                for a, b in zip(table["low"], table["high"], strict=True)
            ],
            "verdict": verdict,
            "notes": table["notes"].replace("", "–"),
        }
    )


def by_measure(sweep: Sweep, layer: int | str = "last", measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Slope over all rungs and verdict by every measure, for reading: one row per ladder."""
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for measure in measures:
        for one in ladders(sweep, measure, layer if measure == "hidden_rel_l2" else "last"):
            key = json.dumps({k: v for k, v in one.labels.items() if k not in ("measure", "layer")})
            first = {n: one.labels[n] for n in ("protocol", "model", "chunk_size")}
            names = {"chunk_size": "chunk size"}
            row = rows.setdefault(key, {names.get(n, n): v for n, v in first.items()})
            row[_name(measure)] = str(one.slope)
    return pd.DataFrame(list(rows.values()))


def method() -> str:
    """Say in a paragraph how slopes are estimated and judged."""
    cover = f"{100 * (1 - 2 * ALPHA):g} %"
    return (
        "Slopes are least squares on the logarithms of drift and unit roundoff, for every document over the same text "
        f"and steps at every precision, past the first quarter of the chain. Intervals ({cover}) are "
        "Student's t over documents; with one document they are over the steps of its chain. **Rounding**: the whole "
        f"interval lies within 1 ± {ROUNDING_MARGIN:g}. **Structural**: within ± {STRUCTURAL_MARGIN:g}. **Both**: "
        f"between {STRUCTURAL_MARGIN:g} and {1 - ROUNDING_MARGIN:g}. Anything else is undetermined, with the reason."
    )


def departure(found: Sequence[Ladder]) -> str:
    """Say how many unit roundoffs rounding makes on each rung, and so why its slope is not exactly 1; or nothing."""
    import numpy as np

    rounding = [one for one in found if one.slope.verdict is Verdict.ROUNDING]
    constants: dict[tuple[float, str], list[float]] = {}
    most = max((len(one.dtypes) for one in rounding), default=0)
    for one in (one for one in rounding if len(one.dtypes) == most):  # the same ladders for every rung
        for dtype, u, level in zip(one.dtypes, one.unit_roundoff, one.level, strict=True):
            constants.setdefault((-u, dtype), []).extend(np.log(level[level > 0] / u))
    if not any(constants.values()):
        return ""
    said = [f"{math.exp(np.mean(logs)):.2g} in {dtype}" for (_, dtype), logs in sorted(constants.items()) if logs]
    text = f"Where drift is rounding, its level in unit roundoffs is {', '.join(said)}"
    text += " (geometric means over the ladders with most rungs)."
    alike, across = (
        [p.slope.interval.value for one in rounding for p in one.pairs if p.mixed is mixed] for mixed in (False, True)
    )
    if alike and across:
        text += (
            " bf16 and fp16 round what they store and accumulate in fp32; fp32 and fp64 accumulate in themselves, "
            f"which is more roundings of size u. The slope between rungs of the same kind is {_span(alike)}, between "
            f"the two kinds {_span(across)}"
        )
        # Said only of what the numbers show: next to nothing is missing where rungs are of a kind.
        explained = max(across) < 1 - DEPARTURE and min(alike) > 1 - DEPARTURE
        text += ": this step is most of what takes the slope below 1." if explained else "."
    return text


def _span(values: Sequence[float]) -> str:
    low, high = _number(min(values), 2), _number(max(values), 2)
    return low if low == high else f"{low} to {high}"


def headlines(found: Sequence[Ladder]) -> dict[str, str]:
    """Say per protocol what its ladders are: ``"append: rounding in all 6 ladders"``."""
    said: dict[str, str] = {}
    for protocol in dict.fromkeys(one.labels["protocol"] for one in found):
        mine = [one.slope for one in found if one.labels["protocol"] == protocol]
        kinds = [s.verdict for s in mine]
        if len(set(kinds)) == 1:
            words = str(kinds[0]) + (f", in all {len(mine)} ladders" if len(mine) > 1 else "")
            words = words if kinds[0] is not Verdict.UNDETERMINED else Verdict.UNDETERMINED.value
        else:
            words = ", ".join(f"{kinds.count(k)} {k.value}" for k in dict.fromkeys(kinds)) + f" of {len(mine)} ladders"
        reasons = dict.fromkeys(s.reason.value for s in mine if s.reason)
        words += f" ({'; '.join(reasons)})" if reasons else ""
        slopes = [s.interval.value for s in mine if math.isfinite(s.interval.value)]
        words += f"; slope {_span(slopes)}" if slopes else ""
        said[str(protocol)] = f"{protocol}: {words}."
    return said


# ---------------------------------------------------------------------------------------------- attribution
@dataclass(frozen=True)
class Attribution:
    """The three parts of a fold's error against float64, past the first quarter of the chain.

    Attributes
    ----------
    labels : dict
        Scalar coordinates of the cell, and ``layer``.
    documents : int
    total : float
        Relative L2 of the whole error; geometric mean over late steps, then documents.
    parts : dict of str to float
        The same of each part. Parts are vectors: their lengths need not add up to that of the sum.
    shares : dict of str to Interval
        Share of the squared error along each part, mean over late steps, interval over documents. Shares add to 1;
        one is negative where a part points against the sum.
    believed : bool
        Whether no control of the sweep failed.
    """

    labels: dict[str, Any]
    documents: int
    total: float
    parts: dict[str, float]
    shares: dict[str, Interval] = field(default_factory=dict)
    believed: bool = True

    @property
    def largest(self) -> str:
        """The part with the largest share."""
        return max(self.shares, key=lambda name: self.shares[name].value)


def check_shares(ds: xr.Dataset) -> float:
    """Check that the three shares of a cell add to 1; returns the largest departure.

    Raises
    ------
    DatasetError
        If they do not, anywhere: then the parts are not those of one sum. The message names the cell and the place.
    """
    import numpy as np

    names = [f"hidden_share_{part}" for part in PARTS]
    shares = np.stack([ds[n].transpose("document", "layer", "step").values for n in names])
    known = np.isfinite(shares)
    size = np.where(known, np.abs(shares), 0.0).sum(axis=0)
    # Cancelling parts have large shares of either sign, and a thinned cell keeps few bits of each.
    bits = json.loads(ds.attrs["thinned_json"])["bits"] if "thinned_json" in ds.attrs else 40
    allowed = (1e-6 + 2.0 ** (1 - bits)) * (1 + size)
    off = np.where(known.all(axis=0), np.abs(shares.sum(axis=0) - 1), 0.0)
    wrong = (off > allowed) | (known.any(axis=0) & ~known.all(axis=0))
    if wrong.any():
        document, layer, step = (int(i) for i in np.argwhere(wrong)[0])
        total = shares[:, document, layer, step].sum()
        cell = " ".join(str(ds[n].item()) for n in ("model", "dtype", "protocol", "chunk_size"))
        raise DatasetError(
            f"{cell} ({ds.encoding.get('source') or 'in memory'}): the shares of the error do not add to 1 but to "
            f"{total:.6g} (document {document}, layer {ds['layer'].values[layer]}, step {step}; "
            f"{int(wrong.sum())} places in all). Run this cell again."
        )
    return float(off.max()) if off.size else 0.0


_ENDS = ("", *(f"_{part}" for part in PARTS))


def attributions(sweep: Sweep, layer: int | str = "last") -> list[Attribution]:
    """Summarise the three parts of the error, for every cell that has them.

    Raises
    ------
    DatasetError
        If the shares of a cell do not add to 1.
    """
    import numpy as np

    from drift import controls, dataset, summary
    from drift.dataset import SCALARS
    from drift.labels import DISTURBED, parse
    from drift.plateau import late_part

    found, believed = [], controls.evaluate(sweep).ok
    for ds in sweep:
        if any(f"hidden_{kind}_{part}" not in ds.data_vars for part in PARTS for kind in ("rel_l2", "share")):
            continue
        if ds["reference"].item() != "gold" or parse(ds["protocol"].item()).name in DISTURBED:
            continue
        check_shares(ds)
        shares = {}
        errors = [late_part(dataset.curve(ds, f"hidden_rel_l2{end}", layer)) for end in _ENDS]
        unknown = not np.isfinite(errors).all()
        for part in PARTS:
            means = finite_means(late_part(dataset.curve(ds, f"hidden_share_{part}", layer)))
            shares[part] = mean_interval([] if unknown else means)

        def level(name: str, ds: xr.Dataset = ds, unknown: bool = unknown) -> float:
            return math.nan if unknown else summary._geometric(summary.level(dataset.curve(ds, name, layer)))

        found.append(
            Attribution(
                {n: ds[n].item() for n in SCALARS} | {"layer": layer},
                ds.sizes["document"],
                level("hidden_rel_l2"),
                {part: level(f"hidden_rel_l2_{part}") for part in PARTS},
                shares,
                believed,
            )
        )
    return found


def attribution_frame(found: Sequence[Attribution]) -> pd.DataFrame:
    """Write the attribution as a table: one row per cell."""
    import pandas as pd

    from drift.summary import number

    rows = []
    for one in found:
        row: dict[str, Any] = {
            "protocol": one.labels["protocol"],
            "model": one.labels["model"],
            "precision": one.labels["dtype"],
            "chunk size": one.labels["chunk_size"],
            "documents": one.documents,
            "error against float64": number(one.total, 3),
        }
        for part, name in PARTS.items():
            short = name.split(":")[0]
            interval = one.shares[part]
            row[short] = number(one.parts[part], 3)
            ends = "" if math.isnan(interval.low) else f" ({_percent(interval.low)} to {_percent(interval.high)})"
            row[f"share, {short} [%]"] = _percent(interval.value) + ends
        rows.append(row)
    return pd.DataFrame(rows)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:z.1f}"


def attribution_sentences(found: Sequence[Attribution]) -> list[str]:
    """Say per protocol and precision which part of the error is the largest."""
    if not all(one.believed for one in found):
        return ["No conclusion is drawn on the parts of the error, because controls of the instrument failed."]
    said = []
    keys = dict.fromkeys((one.labels["protocol"], one.labels["dtype"]) for one in found)
    for protocol, dtype in keys:
        mine = [one for one in found if (one.labels["protocol"], one.labels["dtype"]) == (protocol, dtype)]
        mine = [one for one in mine if math.isfinite(one.shares["structural"].value)]
        if not mine:
            said.append(f"{protocol}, {dtype}: the error is exactly zero, or NaN or Inf somewhere: it has no parts.")
            continue
        parts = []
        for part, name in PARTS.items():
            values = sorted(one.shares[part].value for one in mine)
            ends = _percent(values[0]), _percent(values[-1])
            parts.append(f"{ends[0]}{f' to {ends[1]}' if ends[0] != ends[1] else ''} % {name.split(':')[0]}")
        kinds = dict.fromkeys(PARTS[one.largest].split(":")[0] for one in mine)
        said.append(
            f"{protocol}, {dtype}: of the squared error against float64, {', '.join(parts)}; the largest share is "
            f"{' or '.join(kinds)}" + (f", over {len(mine)} cells." if len(mine) > 1 else ".")
        )
    return said


# ---------------------------------------------------------------------------------------------- command line
def as_dict(one: Ladder) -> dict[str, Any]:
    """Return plain values for JSON."""
    from drift.plateau.verdict import plain

    def of(s: Slope) -> dict[str, Any]:
        return {**vars(s), "interval": vars(s.interval)}

    return plain(
        {
            **one.labels,
            "dtypes": one.dtypes,
            "unit_roundoff": one.unit_roundoff,
            "level": one.level.tolist(),
            "slope": of(one.slope),
            "pairs": [{"coarse": p.coarse, "fine": p.fine, "mixed": p.mixed, **of(p.slope)} for p in one.pairs],
            "caveats": one.caveats,
        }
    )


def _text(found: Sequence[Ladder], parts: Sequence[Attribution]) -> str:
    lines = []
    for measure in dict.fromkeys(one.labels["measure"] for one in found):
        lines.append(f"Log-log slope of drift on the unit roundoff: {_name(measure)}")
        rows = [("protocol", "model", "chunk", "precisions", "slope", "interval", "verdict")]
        mine = [one for one in found if one.labels["measure"] == measure]
        for one in mine:
            many = [("/".join(one.dtypes), one.slope), *((f"  {p.coarse}/{p.fine}", p.slope) for p in one.pairs)]
            for dtypes, s in many if len(one.pairs) > 1 else many[:1]:
                verdict = s.verdict.value + (f": {s.reason.value}" if s.reason else "")
                ends = _pair(s.interval).strip("()") if math.isfinite(s.interval.value) else "–"
                rows.append(
                    (one.labels["protocol"], one.labels["model"], str(one.labels["chunk_size"]), dtypes,
                     _number(s.interval.value), ends, verdict)
                )  # fmt: skip
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        notes: dict[str, list[str]] = {}
        for one in mine:
            for caveat in one.caveats:
                notes.setdefault(caveat, []).append(one.name)
        lines += [f"Note ({'; '.join(n[:3])}{'; ...' * (len(n) > 3)}): {c}." for c, n in list(notes.items())[:12]]
        lines.append("")
    lines.append(
        f"Rounding: the {100 * (1 - 2 * ALPHA):g} % interval lies within 1 ± {ROUNDING_MARGIN:g}. Structural: within "
        f"± {STRUCTURAL_MARGIN:g}. Both: between the two."
    )
    lines.append("")
    lines += attribution_sentences(parts) or [
        f"Parts of the error against float64: not measured in this sweep; `{COMMAND}` measures them."
    ]
    return "\n".join(lines)


def _name(measure: str) -> str:
    from drift.claims.auditing import amplitude_power
    from drift.dataset import VARIABLES

    row = VARIABLES.get(measure)
    name = row.long_name if row else measure
    return f"square root of the {name}" if amplitude_power(measure) == 0.5 else name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.ladder",
        description="Is drift rounding? Log-log slope of drift on the unit roundoff with its interval, over the whole "
        "ladder of precisions and per adjacent pair, and the parts of the error against float64.",
        epilog="verdicts: rounding, structural, both, undetermined.  "
        "example: python -m drift.ladder data/sweeps/ladder --measure hidden_rel_l2 logit_kl",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="folder of a sweep")
    parser.add_argument("--measure", nargs="+", default=["hidden_rel_l2"], metavar="NAME",
                        help=f"measures, or 'all' ({', '.join(MEASURES)}); default: hidden_rel_l2")  # fmt: skip
    parser.add_argument("--layer", default="last", help="a layer's number, or 'last' (default)")
    parser.add_argument("--reference", default="full", help="what the folds are compared with (default: full)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON object: ladders, attribution, controls")
    form.add_argument("--csv", action="store_true", help="CSV on stdout, one row per ladder and per pair of rungs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        from drift import controls
        from drift.dataset import open_sweep
        from drift.plateau.verdict import plain

        layer: int | str = int(args.layer) if args.layer.lstrip("-").isdigit() else args.layer
        sweep = open_sweep(args.sweep)
        for name, problem in sweep.problems.items():
            print(f"drift.ladder: {name} was left out: {problem}", file=sys.stderr)
        measures = MEASURES if args.measure == ["all"] else args.measure
        found = [one for m in measures for one in ladders(sweep, m, layer, args.reference)]
        if not found:
            raise DatasetError(f"{args.sweep}: no cell compares a fold with reference {args.reference!r}")
        parts = attributions(sweep, layer)
        checked = controls.evaluate(sweep)
        print(f"drift.ladder: {checked.banner}", file=sys.stderr)
    except DriftError as error:
        print(f"drift.ladder: {error}", file=sys.stderr)
        return 2
    try:
        if args.json:
            rows = [{**one.labels, "documents": one.documents, "total": one.total, "parts": one.parts,
                     "shares": {k: vars(v) for k, v in one.shares.items()}} for one in parts]  # fmt: skip
            body = {"ladders": [as_dict(one) for one in found], "attribution": rows, "controls": checked.as_dict()}
            print(json.dumps(plain(body), indent=1, allow_nan=False))
        elif args.csv:
            frame(found).to_csv(sys.stdout, index=False)
        else:
            print(_text(found, parts))
    except BrokenPipeError:  # the reader of the pipe has seen enough
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

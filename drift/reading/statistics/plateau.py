"""The statistics of a plateau: stacks of curves in, estimates, intervals, p-values and verdict codes out.

NumPy and SciPy only, vectorised over curves, no words: :mod:`drift.reading.plateau.deciding` has those.

The question is one of equivalence: does log drift grow by less than a margin per doubling of chain depth? A trend test
that fails to reject proves nothing, so two one-sided tests (Schuirmann 1987) must both reject. Everything hinges on
honest standard errors for a few autocorrelated series; three are formed, and the least favourable counts.

Choices that a reader may question, and why they stand:

- *Windows are fixed in advance* (all but the first 1/16, 1/8 and 1/4 of the steps). A window chosen from the data is
  flat by selection. Certification is paid for by a Bonferroni factor; growth and decay are judged on the last alone.
- *Isolated spikes are clipped, runs are not.* A point is compared with the median of its neighbourhood, not with a
  line through the whole window: a line would clip a late take-off of a quiet curve and call it flat.
- *Autocorrelation is taken at its upper confidence limit*, and removed of the bias that detrending causes.
- *Vetoes only ever take a plateau away*: growth late in the chain, and models that change at the end of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter
from scipy.special import stdtrit

from drift.reading.statistics.arrays import Bool, Float
from drift.reading.statistics.models import AICC_LEAD, LATE_MODEL, compare_models
from drift.reading.statistics.noise import Estimate, WindowFit, fit_window, noise_of
from drift.reading.statistics.windows import (
    DOCUMENTS,
    FEW_STEPS,
    FIRST,
    LEAST_POINTS,
    ZEROS,
    last_start,
    least_steps,
    windows,
)

__all__ = ["Analysis", "Code", "analyse", "as_stack"]

#: A point further than this many (robust) standard deviations from its neighbourhood is clipped.
CLIP = 5.0
_MAD = 1.4826
_NEIGHBOURHOOD = 7
_POWER = 0.9


class Code(IntEnum):
    """What was found, in the order in which it is decided; everything from `NONFINITE` on is undetermined."""

    GROWING = 0
    DECAYING = 1
    SATURATED = 2
    FLAT = 3
    RISE_UNRESOLVED = 4
    NONFINITE = 5
    TOO_SHORT = 6
    ZEROS = 7
    LATE_CHANGE = 8
    MODEL = 9
    TOO_FEW = 10
    BORDERLINE = 11
    TOO_NOISY = 12


@dataclass(frozen=True)
class Analysis:
    """What :func:`analyse` found; every field is [curve]. Slopes are in log units per doubling of depth.

    Attributes
    ----------
    code : int64
        A :class:`Code`.
    slope, slope_low, slope_high : float64
        On the judging window; the interval has coverage 1 - 2 alpha.
    certified_window : int64
        Index into the distinct windows of the one with the smallest equivalence p-value.
    certified_slope, certified_low, certified_high : float64
        The same on that window, but with coverage 1 - 2 alpha / windows: it lies within the margin just where
        `p_equivalence` is below alpha.
    p_equivalence : float64
        Of "the growth is beyond the margin, one way or the other", all windows taken into account.
    p_growth, p_decay : float64
        Of "the growth is at most the margin" and "the decay is at most the margin", on the judging window.
    level, level_low, level_high : float64
        Log of the geometric mean over documents and steps of the judging window; interval with coverage 0.95.
    rise, rise_low, rise_high : float64
        Level less the first step, log; interval with coverage 1 - 2 alpha. Infinite where the first step is exactly 0.
    p_rise, p_no_rise : float64
        Of "the rise is less than `rise_min`" and of "it is more".
    rho : float64
        Lag-1 autocorrelation of the noise, its upper confidence limit, as the standard errors use it.
    design_effect : float64
        1 where documents are independent, their number where they share all of their noise.
    sd : float64
        Standard deviation of the log noise of one document.
    effective_points : float64
        Independent points that would give the standard error of the slope.
    lead : float64
        AICc lead of the best model that changes at the end of the chain over the best that does not.
    model : int64
        Index of the best model in :func:`model_names`.
    late_slope, late_step : float64
        Slope from :func:`~drift.reading.statistics.windows.last_start` on; mean of the last share
        :data:`~drift.reading.statistics.windows.LATE_STEP` of the judging window less that of the rest.
    onset, onset_low, onset_high : float64
        First step (counted from 1) at which a document has come within the margin of its level: median over documents
        and the smallest and largest.
    documents_needed, steps_needed : float64
        For a decision with probability 0.9, all else being equal; NaN where more of the same would not decide.
    zeros, nonfinite : int64
        Values that are exactly 0, and that are NaN or Inf.
    """

    code: NDArray[np.int64]
    slope: Float
    slope_low: Float
    slope_high: Float
    certified_window: NDArray[np.int64]
    certified_slope: Float
    certified_low: Float
    certified_high: Float
    p_equivalence: Float
    p_growth: Float
    p_decay: Float
    level: Float
    level_low: Float
    level_high: Float
    rise: Float
    rise_low: Float
    rise_high: Float
    p_rise: Float
    p_no_rise: Float
    rho: Float
    design_effect: Float
    sd: Float
    effective_points: Float
    lead: Float
    model: NDArray[np.int64]
    late_slope: Float
    late_step: Float
    onset: Float
    onset_low: Float
    onset_high: Float
    documents_needed: Float
    steps_needed: Float
    zeros: NDArray[np.int64]
    nonfinite: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of curves."""
        return len(self.code)

    @classmethod
    def concatenate(cls, parts: list[Analysis]) -> Analysis:
        """Join analyses of several stacks."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


def as_stack(values: ArrayLike) -> Float:
    """Return curves as float64 [curve, document, step].

    Parameters
    ----------
    values : array_like
        [step], [document, step] or [curve, document, step].

    Raises
    ------
    ValueError
        If it has another shape, is empty, or holds a negative number: drift is a distance.
    """
    stack = np.asarray(values, dtype=np.float64)
    if stack.ndim not in (1, 2, 3) or stack.size == 0:
        raise ValueError(f"curves must be [step], [document, step] or [curve, document, step], not {stack.shape}")
    stack = stack.reshape((1,) * (3 - stack.ndim) + stack.shape)
    if (stack < 0).any():
        curve, document, step = (int(i) for i in np.argwhere(stack < 0)[0])
        raise ValueError(
            f"drift cannot be negative, but is {stack[curve, document, step]:g} "
            f"(curve {curve}, document {document}, step {step}); a signed quantity needs its absolute value taken first"
        )
    return stack


# ---------------------------------------------------------------------------------------------- the procedure
def _clip(z: Float) -> Float:
    """Clip isolated spikes of [curve, document, step] to what their neighbourhood allows."""
    size = min(_NEIGHBOURHOOD, z.shape[2] - (z.shape[2] + 1) % 2)
    r = z - median_filter(z, size=(1, 1, size), mode="mirror")
    bound = CLIP * _MAD * np.median(np.abs(r), axis=2, keepdims=True)
    # More than half of the points exactly on their neighbourhood's median: there is no scale to clip by.
    return np.where(bound > 0, z - r + np.clip(r, -bound, bound), z)


def analyse(
    values: ArrayLike,
    *,
    margin: float = 0.05,
    alpha: float = 0.05,
    floor: float | None = None,
    rise_min: float = 1.5,
) -> Analysis:
    """Decide for each curve whether it is a plateau.

    Parameters
    ----------
    values : array_like
        Drift [curve, document, step], [document, step] or [step]; at least 0. Documents are replicates.
    margin : float
        Growth per doubling of chain depth below which a curve is called flat: 0.05 is 5 %.
    alpha : float
        Level of every test.
    floor : float, optional
        What drift below it counts as; half the smallest positive value of the curve by default.
    rise_min : float
        Factor from the first step to the level that makes a curve one that rose.

    Raises
    ------
    ValueError
        If shapes or options make no sense, or a value is negative.
    """
    if not 0 < margin < 1 or not 0 < alpha < 0.5 or not rise_min > 1 or (floor is not None and not floor > 0):
        raise ValueError(
            f"margin ({margin}) must lie between 0 and 1, alpha ({alpha}) between 0 and 0.5, "
            f"rise_min ({rise_min}) above 1, floor ({floor}) above 0"
        )
    stack = as_stack(values)
    curves, documents, steps = stack.shape
    delta = log(1 + margin)
    starts = windows(steps)
    judging = starts[-1]
    nonfinite = (~np.isfinite(stack)).sum(axis=(1, 2))
    zeros = (stack == 0).sum(axis=(1, 2))
    if steps - judging < LEAST_POINTS:
        code = np.where(nonfinite > 0, Code.NONFINITE, Code.TOO_SHORT).astype(np.int64)
        wanted = max(least_steps(), FEW_STEPS if documents < DOCUMENTS else 0)
        return _nothing(code, zeros, nonfinite, np.where(nonfinite > 0, np.nan, float(wanted)))

    usable = nonfinite == 0
    stack = np.where(usable[:, None, None], stack, 1.0)
    positive = np.where(stack > 0, stack, np.inf).min(axis=(1, 2))
    lowest = np.maximum(positive / 2, np.nextafter(0.0, 1.0))  # half of the smallest number there is would be zero
    least = np.where(np.isfinite(positive), lowest, 1.0) if floor is None else np.full(curves, floor)
    raw = np.log(np.maximum(stack, least[:, None, None]))
    z = np.concatenate([raw[:, :, :FIRST], _clip(raw[:, :, FIRST:])], axis=2)
    share_zero = np.stack([(stack[:, :, s:] == 0).mean(axis=(1, 2)) for s in starts], axis=1)

    fits = [fit_window(z[:, :, s:], s, steps) for s in starts]
    judge = fits[-1]
    p = np.stack([np.maximum(f.slope.p_below(delta), f.slope.p_above(-delta)) for f in fits], axis=1)
    p = np.where(share_zero > ZEROS, 1.0, np.minimum(1.0, len(starts) * p))
    certified = p.argmin(axis=1)
    p_equivalence = p.min(axis=1)
    p_growth, p_decay = judge.slope.p_above(delta), judge.slope.p_below(-delta)

    end = last_start(steps)
    last = fit_window(z[:, :, end:], end, steps).slope
    late_slope = (np.abs(last.estimate) > delta) & (2 * np.minimum(last.p_above(0), last.p_below(0)) < alpha)
    late = judge.late
    late_step = (np.abs(late.estimate) > delta) & (2 * np.minimum(late.p_above(0), late.p_below(0)) < alpha)
    lead, model = compare_models(z[:, :, starts[0] :].mean(axis=1), starts[0], steps, delta)

    climb, from_zero = _rise(raw, stack, judge, judging)
    p_rise = np.where(from_zero, 0.0, climb.p_above(log(rise_min)))
    p_no_rise = np.where(from_zero, 1.0, climb.p_below(log(rise_min)))
    rise_half = climb.half_width(alpha)
    rise, rise_low, rise_high = (
        np.where(from_zero, np.inf, climb.estimate + side * rise_half) for side in (0.0, -1.0, 1.0)
    )
    slope_half = judge.slope.half_width(alpha)
    certified_half = np.stack([f.slope.half_width(alpha / len(fits)) for f in fits], axis=1)
    certified_estimate = np.stack([f.slope.estimate for f in fits], axis=1)
    pick = np.arange(curves), certified

    code = np.full(curves, Code.TOO_NOISY, dtype=np.int64)
    if documents < DOCUMENTS:
        code[:] = Code.TOO_FEW
    code[slope_half <= delta] = Code.BORDERLINE
    flat = p_equivalence < alpha
    rose, never = p_rise < alpha, p_no_rise < alpha
    code[flat] = np.where(rose, Code.SATURATED, np.where(never, Code.FLAT, Code.RISE_UNRESOLVED))[flat]
    # Curves that were not certified keep their verdict here, and get a better reason for it.
    vetoed = lead > AICC_LEAD
    code[vetoed] = Code.MODEL
    code[(vetoed & (model == LATE_MODEL)) | late_slope | late_step] = Code.LATE_CHANGE
    if documents < DOCUMENTS and steps < FEW_STEPS:
        code[:] = Code.TOO_SHORT
    code[p_growth < alpha] = Code.GROWING
    code[p_decay < alpha] = Code.DECAYING
    code[share_zero[:, -1] > ZEROS] = Code.ZEROS
    code[~usable] = Code.NONFINITE

    documents_needed, steps_needed = _needed(fits, delta, alpha, documents, steps)
    # A certified curve that a veto stopped is stopped by its shape: more of the same would not decide it.
    more_helps = (code > Code.ZEROS) & ~flat | (code == Code.TOO_SHORT)
    onset, onset_low, onset_high = _onset(z, judging, delta)
    level_half = judge.mean.half_width(0.025)
    sxx = noise_of(judging, steps, 1)[0].sxx
    largest = np.max([se for se, _ in judge.slope.errors], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = judge.variance / (largest**2 * sxx / (steps - judging))

    def blank(x: Float) -> Float:
        return np.where(usable & (share_zero[:, -1] <= ZEROS), x, np.nan)

    return Analysis(
        code=code,
        slope=blank(judge.slope.estimate),
        slope_low=blank(judge.slope.estimate - slope_half),
        slope_high=blank(judge.slope.estimate + slope_half),
        certified_window=certified,
        certified_slope=blank(certified_estimate[pick]),
        certified_low=blank((certified_estimate - certified_half)[pick]),
        certified_high=blank((certified_estimate + certified_half)[pick]),
        p_equivalence=blank(p_equivalence),
        p_growth=blank(p_growth),
        p_decay=blank(p_decay),
        level=blank(judge.mean.estimate),
        level_low=blank(judge.mean.estimate - level_half),
        level_high=blank(judge.mean.estimate + level_half),
        rise=blank(rise),
        rise_low=blank(rise_low),
        rise_high=blank(rise_high),
        p_rise=blank(p_rise),
        p_no_rise=blank(p_no_rise),
        rho=blank(judge.rho),
        design_effect=blank(judge.design_effect),
        sd=blank(np.sqrt(judge.variance)),
        effective_points=blank(effective),
        lead=blank(lead),
        model=model,
        late_slope=blank(last.estimate),
        late_step=blank(late.estimate),
        onset=blank(onset),
        onset_low=blank(onset_low),
        onset_high=blank(onset_high),
        documents_needed=np.where(more_helps, documents_needed, np.nan),
        steps_needed=np.where(more_helps, steps_needed, np.nan),
        zeros=zeros,
        nonfinite=nonfinite,
    )


def _nothing(code: NDArray[np.int64], zeros: NDArray[np.int64], nonfinite: NDArray[np.int64], steps: Float) -> Analysis:
    """Return an analysis of curves that allow none."""
    curves = len(code)
    values: dict[str, object] = {f.name: np.full(curves, np.nan) for f in fields(Analysis)}
    values |= {"code": code, "zeros": zeros, "nonfinite": nonfinite, "steps_needed": steps}
    values |= {"certified_window": np.zeros(curves, dtype=np.int64), "model": np.full(curves, -1, dtype=np.int64)}
    return Analysis(**values)  # type: ignore[arg-type]


def _rise(raw: Float, stack: Float, judge: WindowFit, judging: int) -> tuple[Estimate, Bool]:
    """Level less the first step, log, and whether the first step is exactly zero in every document."""
    documents = raw.shape[1]
    difference = raw[:, :, judging:].mean(axis=2) - raw[:, :, 0]
    if documents >= DOCUMENTS:
        error = difference.std(axis=1, ddof=1) / np.sqrt(documents), np.full(len(raw), documents - 1.0)
    else:
        # One step of the document mean against a mean over many, both with the noise that the window shows.
        error = np.hypot(judge.point_error, np.max([se for se, _ in judge.mean.errors], axis=0)), judge.df
    return Estimate(difference.mean(axis=1), [error]), (stack[:, :, 0] == 0).all(axis=1)


def _onset(z: Float, judging: int, delta: float) -> tuple[Float, Float, Float]:
    """First step (from 1) at which each document's smoothed curve is within the margin of its level.

    Median, smallest and largest over documents.
    """
    level = z[:, :, judging:].mean(axis=2, keepdims=True)
    smooth = z.copy()
    size = min(5, z.shape[2] - FIRST)
    # The first steps are left alone: a rise of one step would be smoothed away.
    smooth[:, :, FIRST:] = median_filter(z[:, :, FIRST:], size=(1, 1, size), mode="mirror")
    reached = np.abs(smooth - level) <= delta
    # A decay onto a plateau and a rise to it are both "reached"; some step always is near the mean of its window.
    crossed = reached | (np.sign(smooth - level) != np.sign(smooth[:, :, :1] - level))
    first = np.where(crossed.any(axis=2), crossed.argmax(axis=2) + 1.0, np.nan)
    return np.median(first, axis=1), first.min(axis=1), first.max(axis=1)


def _needed(fits: list[WindowFit], delta: float, alpha: float, documents: int, steps: int) -> tuple[Float, Float]:
    """Documents at this depth, and steps with these documents, that would decide with probability 0.9.

    A curve whose interval contains no growth is planned for as a flat one, to be certified on the window that needs
    least; another as one that grows as it seems to. Standard errors shrink with the root of either number (for steps
    because a window spans the same doublings).
    """
    judge = fits[-1]
    still = np.abs(judge.slope.estimate) < judge.slope.half_width(alpha)
    numbers = np.unique(np.round(np.geomspace(DOCUMENTS, 4096, 121)))
    lengths = np.unique(np.round(np.geomspace(max(FEW_STEPS, steps), max(FEW_STEPS, steps) * 4096, 200)))
    found: list[tuple[Float, Float]] = []
    for fit in fits:
        slope = np.abs(fit.slope.estimate)
        distance = np.where(still, delta, np.abs(slope - delta))
        if fit is not judge:
            distance = np.where(still & (slope < delta), delta, np.nan)  # only the judging window calls growth
        level = np.where(still | (slope < delta), alpha / len(fits), alpha)
        # Both one-sided tests of a flat curve must reject, so each may miss half as often.
        normal = stdtrit(1e6, np.where(still, 1 - (1 - _POWER) / 2, _POWER))
        spread = fit.slope_error * np.sqrt(documents)
        if documents >= DOCUMENTS:
            spread = np.maximum(spread, fit.spread)
        largest = np.max([se for se, _ in fit.slope.errors], axis=0)

        def by_documents(m: float) -> Bool:
            return (stdtrit(m - 1, 1 - level) + normal) * spread / np.sqrt(m) <= distance  # noqa: B023

        def by_steps(m: float) -> Bool:
            return (stdtrit(fit.df, 1 - level) + normal) * largest * np.sqrt(steps / m) <= distance  # noqa: B023

        found.append((_smallest(numbers, by_documents, len(slope)), _smallest(lengths, by_steps, len(slope))))
    return np.fmin.reduce([d for d, _ in found]), np.fmin.reduce([n for _, n in found])


def _smallest(numbers: Float, enough: Callable[[float], Bool], curves: int) -> Float:
    """Return the first of `numbers` that is enough, per curve; NaN if none is."""
    found = np.full(curves, np.nan)
    for number in numbers[::-1]:
        found = np.where(enough(number), number, found)
    return found

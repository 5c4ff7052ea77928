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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter
from scipy.special import stdtrit

from drift import _arguments as arguments
from drift._bounds import MOST_STEPS
from drift.errors import ArgumentError
from drift.reading.statistics import intervals
from drift.reading.statistics.analysis import Analysis, Code
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

__all__ = ["analyse", "as_array", "as_stack"]

#: A point further than this many (robust) standard deviations from its neighbourhood is clipped.
CLIP = 5.0
_MAD = 1.4826
_NEIGHBOURHOOD = 7
_POWER = 0.9
_OPTIONS = "margin must lie between 0 and 1, alpha between 0 and 0.5, rise_min above 1, floor above 0"


def as_array(values: ArrayLike) -> Float:
    """Return numbers as float64.

    Raises
    ------
    ArgumentError
        If they are ragged, or none.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArgumentError(f"curves cannot be made an array of numbers: {error}") from error


def as_stack(values: ArrayLike) -> Float:
    """Return curves as float64 [curve, document, step].

    Parameters
    ----------
    values : array_like
        [step], [document, step] or [curve, document, step].

    Raises
    ------
    ArgumentError
        If it has another shape, is empty, longer than :data:`~drift._bounds.MOST_STEPS`, or holds a negative number:
        drift is a distance.
    """
    stack = as_array(values)
    if stack.ndim not in (1, 2, 3) or stack.size == 0:
        raise ArgumentError(f"curves must be [step], [document, step] or [curve, document, step], not {stack.shape}")
    if stack.shape[-1] > MOST_STEPS:
        raise ArgumentError(
            f"a curve has {stack.shape[-1]:,} steps; at most {MOST_STEPS:,} are judged. Thin it: take every n-th step"
        )
    stack = stack.reshape((1,) * (3 - stack.ndim) + stack.shape)
    if (stack < 0).any():
        curve, document, step = (int(i) for i in np.argwhere(stack < 0)[0])
        raise ArgumentError(
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


@dataclass(frozen=True)
class _Question:
    """What is asked: log margin per doubling, level of every test, log of the factor that is a rise."""

    delta: float
    alpha: float
    rise: float


@dataclass(frozen=True)
class _Prepared:
    """A stack on a log scale [curve, document, step], and what became of zeros and of what is not finite."""

    raw: Float
    z: Float  # spikes clipped
    first_is_zero: Bool
    usable: Bool
    share_zero: Float  # [curve, window]


@dataclass(frozen=True)
class _Equivalence:
    """The two one-sided tests on every window, and the window that certifies."""

    p: Float
    window: NDArray[np.int64]
    slope: Float
    half: Float


@dataclass(frozen=True)
class _Late:
    """What happens at the end of a chain: three ways to look for a change there."""

    slope: Float
    slope_changes: Bool
    step: Float
    step_changes: Bool
    lead: Float
    model: NDArray[np.int64]


@dataclass(frozen=True)
class _Rise:
    """Level less the first step, with its interval, and the two tests of whether it is a rise."""

    estimate: Float
    low: Float
    high: Float
    p: Float
    p_not: Float


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
    ArgumentError
        If shapes or options make no sense, or a value is negative.
    """
    for name, value, low, high in (
        ("margin", margin, 0, 1),
        ("alpha", alpha, 0, 0.5),
        ("rise_min", rise_min, 1, np.inf),
    ):
        arguments.between(name, value, low, high, _OPTIONS)
    if floor is not None:
        arguments.between("floor", floor, 0, wanted=_OPTIONS)
    stack = as_stack(values)
    _, documents, steps = stack.shape
    starts = windows(steps)
    nonfinite = (~np.isfinite(stack)).sum(axis=(1, 2))
    zeros = (stack == 0).sum(axis=(1, 2))
    if steps - starts[-1] < LEAST_POINTS:
        code = np.where(nonfinite > 0, Code.NONFINITE, Code.TOO_SHORT).astype(np.int64)
        wanted = max(least_steps(), FEW_STEPS if documents < DOCUMENTS else 0)
        return _nothing(code, zeros, nonfinite, np.where(nonfinite > 0, np.nan, float(wanted)))
    question = _Question(log(1 + margin), alpha, log(rise_min))
    prepared = _prepare(stack, starts, floor)
    fits = [fit_window(prepared.z[:, :, s:], s, steps) for s in starts]
    return _decide(question, prepared, fits, starts, zeros, nonfinite)


def _prepare(stack: Float, starts: Sequence[int], floor: float | None) -> _Prepared:
    """Take logarithms; what is not finite is left for dead, and what is zero counts as the floor."""
    usable: Bool = (~np.isfinite(stack)).sum(axis=(1, 2)) == 0
    stack = np.where(usable[:, None, None], stack, 1.0)
    positive = np.where(stack > 0, stack, np.inf).min(axis=(1, 2))
    lowest = np.maximum(positive / 2, np.nextafter(0.0, 1.0))  # half of the smallest number there is would be zero
    least = np.where(np.isfinite(positive), lowest, 1.0) if floor is None else np.full(len(stack), floor)
    raw = np.log(np.maximum(stack, least[:, None, None]))
    z = np.concatenate([raw[:, :, :FIRST], _clip(raw[:, :, FIRST:])], axis=2)
    share_zero = np.stack([(stack[:, :, s:] == 0).mean(axis=(1, 2)) for s in starts], axis=1)
    return _Prepared(raw, z, (stack[:, :, 0] == 0).all(axis=1), usable, share_zero)


def _equivalence(fits: Sequence[WindowFit], share_zero: Float, question: _Question) -> _Equivalence:
    """Test on every window whether the slope lies within the margin; Bonferroni pays for the choice among them."""
    delta = question.delta
    p = np.stack([np.maximum(f.slope.p_below(delta), f.slope.p_above(-delta)) for f in fits], axis=1)
    p = np.where(share_zero > ZEROS, 1.0, np.minimum(1.0, len(fits) * p))
    half = np.stack([f.slope.half_width(question.alpha / len(fits)) for f in fits], axis=1)
    estimate = np.stack([f.slope.estimate for f in fits], axis=1)
    window = p.argmin(axis=1)
    pick = np.arange(len(p)), window
    return _Equivalence(p.min(axis=1), window, estimate[pick], half[pick])


def _late(prepared: _Prepared, judge: WindowFit, starts: Sequence[int], question: _Question) -> _Late:
    """Look for a change late in the chain."""
    z, steps = prepared.z, prepared.z.shape[2]

    def changes(late: Estimate) -> Bool:
        significant = 2 * np.minimum(late.p_above(0), late.p_below(0)) < question.alpha
        return (np.abs(late.estimate) > question.delta) & significant

    end = last_start(steps)
    slope = fit_window(z[:, :, end:], end, steps).slope
    lead, model = compare_models(z[:, :, starts[0] :].mean(axis=1), starts[0], steps, question.delta)
    return _Late(slope.estimate, changes(slope), judge.late.estimate, changes(judge.late), lead, model)


def _code(
    question: _Question, prepared: _Prepared, judge: WindowFit, certified: _Equivalence, late: _Late, rise: _Rise
) -> NDArray[np.int64]:
    """Decide, each line overruling those before it."""
    curves, documents, steps = prepared.z.shape
    delta, alpha = question.delta, question.alpha
    code = np.full(curves, Code.TOO_NOISY, dtype=np.int64)
    if documents < DOCUMENTS:
        code[:] = Code.TOO_FEW
    code[judge.slope.half_width(alpha) <= delta] = Code.BORDERLINE
    flat = certified.p < alpha
    rose, never = rise.p < alpha, rise.p_not < alpha
    code[flat] = np.where(rose, Code.SATURATED, np.where(never, Code.FLAT, Code.RISE_UNRESOLVED))[flat]
    # Curves that were not certified keep their verdict here, and get a better reason for it.
    vetoed = late.lead > AICC_LEAD
    code[vetoed] = Code.MODEL
    code[(vetoed & (late.model == LATE_MODEL)) | late.slope_changes | late.step_changes] = Code.LATE_CHANGE
    if documents < DOCUMENTS and steps < FEW_STEPS:
        code[:] = Code.TOO_SHORT
    code[judge.slope.p_above(delta) < alpha] = Code.GROWING
    code[judge.slope.p_below(-delta) < alpha] = Code.DECAYING
    code[prepared.share_zero[:, -1] > ZEROS] = Code.ZEROS
    code[~prepared.usable] = Code.NONFINITE
    return code


def _effective_points(judge: WindowFit, first: int, steps: int) -> Float:
    """Number of independent points that would give the slope the standard error that it has."""
    sxx = noise_of(first, steps, 1)[0].sxx
    largest = np.max([se for se, _ in judge.slope.errors], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return judge.variance / (largest**2 * sxx / (steps - first))


def _decide(
    question: _Question,
    prepared: _Prepared,
    fits: Sequence[WindowFit],
    starts: Sequence[int],
    zeros: NDArray[np.int64],
    nonfinite: NDArray[np.int64],
) -> Analysis:
    """Put tests, vetoes and intervals together."""
    _, documents, steps = prepared.z.shape
    delta, alpha, judging, judge = question.delta, question.alpha, starts[-1], fits[-1]
    certified = _equivalence(fits, prepared.share_zero, question)
    late = _late(prepared, judge, starts, question)
    rise = _rise(prepared, judge, judging, question)
    code = _code(question, prepared, judge, certified, late, rise)
    documents_needed, steps_needed = _needed(fits, delta, alpha, documents, steps)
    # A certified curve that a veto stopped is stopped by its shape: more of the same would not decide it.
    more_helps = (code > Code.ZEROS) & ~(certified.p < alpha) | (code == Code.TOO_SHORT)
    onset, onset_low, onset_high = _onset(prepared.z, judging, delta)
    slope, level = judge.slope.estimate, judge.mean.estimate
    slope_half, level_half = judge.slope.half_width(alpha), judge.mean.half_width(intervals.LEVEL_ALPHA)
    estimates = {
        "slope": slope, "slope_low": slope - slope_half, "slope_high": slope + slope_half,
        "certified_slope": certified.slope,
        "certified_low": certified.slope - certified.half, "certified_high": certified.slope + certified.half,
        "p_equivalence": certified.p,
        "p_growth": judge.slope.p_above(delta), "p_decay": judge.slope.p_below(-delta),
        "level": level, "level_low": level - level_half, "level_high": level + level_half,
        "rise": rise.estimate, "rise_low": rise.low, "rise_high": rise.high,
        "p_rise": rise.p, "p_no_rise": rise.p_not,
        "rho": judge.rho, "design_effect": judge.design_effect, "sd": np.sqrt(judge.variance),
        "effective_points": _effective_points(judge, judging, steps),
        "lead": late.lead, "late_slope": late.slope, "late_step": late.step,
        "onset": onset, "onset_low": onset_low, "onset_high": onset_high,
    }  # fmt: skip
    believed = prepared.usable & (prepared.share_zero[:, -1] <= ZEROS)
    return Analysis(
        code=code,
        certified_window=certified.window,
        model=late.model,
        documents_needed=np.where(more_helps, documents_needed, np.nan),
        steps_needed=np.where(more_helps, steps_needed, np.nan),
        zeros=zeros,
        nonfinite=nonfinite,
        **{name: np.where(believed, values, np.nan) for name, values in estimates.items()},
    )


def _nothing(code: NDArray[np.int64], zeros: NDArray[np.int64], nonfinite: NDArray[np.int64], steps: Float) -> Analysis:
    """Return an analysis of curves that allow none."""
    curves = len(code)
    values: dict[str, object] = {f.name: np.full(curves, np.nan) for f in fields(Analysis)}
    values |= {"code": code, "zeros": zeros, "nonfinite": nonfinite, "steps_needed": steps}
    values |= {"certified_window": np.zeros(curves, dtype=np.int64), "model": np.full(curves, -1, dtype=np.int64)}
    return Analysis(**values)  # type: ignore[arg-type]


def _rise(prepared: _Prepared, judge: WindowFit, judging: int, question: _Question) -> _Rise:
    """Compare the level with the first step; one that is exactly zero in every document rose without bound."""
    raw = prepared.raw
    documents = raw.shape[1]
    difference = raw[:, :, judging:].mean(axis=2) - raw[:, :, 0]
    if documents >= DOCUMENTS:
        error = difference.std(axis=1, ddof=1) / np.sqrt(documents), np.full(len(raw), documents - 1.0)
    else:
        # One step of the document mean against a mean over many, both with the noise that the window shows.
        error = np.hypot(judge.point_error, np.max([se for se, _ in judge.mean.errors], axis=0)), judge.df
    climb = Estimate(difference.mean(axis=1), [error])
    half, endless = climb.half_width(question.alpha), prepared.first_is_zero
    estimate, low, high = (np.where(endless, np.inf, climb.estimate + side * half) for side in (0.0, -1.0, 1.0))
    p, p_not = climb.p_above(question.rise), climb.p_below(question.rise)
    return _Rise(estimate, low, high, np.where(endless, 0.0, p), np.where(endless, 1.0, p_not))


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


def _needed(fits: Sequence[WindowFit], delta: float, alpha: float, documents: int, steps: int) -> tuple[Float, Float]:
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

        def by_documents(m: Float) -> Bool:
            return (stdtrit(m - 1, 1 - level) + normal) * spread / np.sqrt(m) <= distance  # noqa: B023

        def by_steps(m: Float) -> Bool:
            return (stdtrit(fit.df, 1 - level) + normal) * largest * np.sqrt(steps / m) <= distance  # noqa: B023

        found.append((_smallest(numbers, by_documents), _smallest(lengths, by_steps)))
    return np.fmin.reduce([d for d, _ in found]), np.fmin.reduce([n for _, n in found])


def _smallest(numbers: Float, enough: Callable[[Float], Bool]) -> Float:
    """Return the first of `numbers` that is enough, per curve; NaN if none is."""
    decided = enough(numbers[:, None])  # [number, curve]
    return np.where(decided.any(axis=0), numbers[decided.argmax(axis=0)], np.nan)

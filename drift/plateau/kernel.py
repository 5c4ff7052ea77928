"""The statistics of a plateau: stacks of curves in, estimates, intervals, p-values and verdict codes out.

NumPy and SciPy only, vectorised over curves, no words: :mod:`drift.plateau.verdict` has those.

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
from functools import lru_cache
from math import ceil, log
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter
from scipy.special import stdtr, stdtrit

__all__ = [
    "DOCUMENTS",
    "WINDOWS",
    "Analysis",
    "Code",
    "Estimate",
    "analyse",
    "as_stack",
    "late_start",
    "least_steps",
    "model_names",
    "window_mean",
    "windows",
]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Shares of the chain left out at its beginning: the windows on which a plateau may be certified. The last one judges.
WINDOWS = (1 / 16, 1 / 8, 1 / 4)
#: Steps that no window begins before: the first steps of a chain are its rise.
FIRST = 3
#: Fewer steps than this in the judging window support no noise model.
LEAST_POINTS = 8
#: From this many documents on their spread is used, and a claim reaches beyond them.
DOCUMENTS = 4
#: With fewer documents than `DOCUMENTS`, fewer steps than this decide nothing.
FEW_STEPS = 24
#: Largest share of exact zeros in a window.
ZEROS = 0.1
#: A point further than this many (robust) standard deviations from its neighbourhood is clipped.
CLIP = 5.0
_MAD = 1.4826
_NEIGHBOURHOOD = 7
#: A model that changes at the end of the chain must lead the best model that does not by this much (AICc) to veto.
AICC_LEAD = 10.0
#: Documents share shocks beyond this design effect: the batched standard error is then asked as well.
DESIGN_EFFECT = 1.5
_BATCHES = 12
_LEAST_BATCHES = 6
_RHO = np.concatenate([np.linspace(0.0, 0.9, 46), 1 - np.geomspace(0.095, 0.005, 30)])
_MODEL_RHO = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
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
        Slope of the last half; mean of the last fifth of the judging window less that of the rest.
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


def windows(steps: int) -> list[int]:
    """Numbers of steps left out at the beginning: one per distinct window, the judging window last."""
    return sorted({max(FIRST, ceil(share * steps)) for share in WINDOWS})


def late_start(steps: int) -> int:
    """First step (counted from 0) of what is called late: the judging window, and half of a very short chain."""
    return min(windows(steps)[-1], steps // 2)


def late_part(values: NDArray[Any]) -> NDArray[Any]:
    """Return what is late of values [..., step]: see :func:`late_start`."""
    return values[..., late_start(values.shape[-1]) :]


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


# ---------------------------------------------------------------------------------------------- noise
class _Noise:
    """AR(1) noise around a quadratic in `x`, for a grid of autocorrelations.

    With residual maker M and correlations G_ij = rho^|i-j|, the residuals have covariance s^2 M G M. The traces below
    are those of M G M; M is never formed, so a window of n steps costs O(n) per autocorrelation.

    Parameters
    ----------
    x : ndarray [step]
        The regressor.
    weights : ndarray [contrast, step]
        Linear functions of the series whose variance is wanted.
    """

    def __init__(self, x: Float, weights: Float) -> None:
        n = len(x)
        centred = x - x.mean()
        self.x = centred
        self.sxx = float(centred @ centred)
        self.basis = np.linalg.qr(np.stack([np.ones(n), centred, centred**2], axis=1))[0]
        vectors = np.concatenate([self.basis, weights.T], axis=1)
        multiplied = _correlate(vectors)  # [rho, step, vector]
        q = self.basis
        gq, gw = multiplied[:, :, :3], multiplied[:, :, 3:]
        inner = np.einsum("ik,rij->rkj", q, gq)
        lags = np.arange(1, n)
        powers = _RHO[:, None] ** (2 * lags)
        square = n + 2 * (powers * (n - lags)).sum(axis=1)
        self.trace = n - np.trace(inner, axis1=1, axis2=2)
        self.trace2 = square - 2 * (gq**2).sum(axis=(1, 2)) + (inner**2).sum(axis=(1, 2))
        self.lag1 = (
            (n - 1) * _RHO
            - np.einsum("ik,rik->r", q[:-1], gq[:, 1:])
            - np.einsum("rik,ik->r", gq[:, :-1], q[1:])
            + np.einsum("ik,rkj,ij->r", q[:-1], inner, q[1:])
        )
        self.ratio = np.maximum.accumulate(self.lag1 / self.trace)
        self.df = self.trace**2 / self.trace2
        self.forms = np.einsum("ci,ric->rc", weights, gw)

    def residuals(self, z: Float) -> Float:
        """Residuals of [..., step] on the quadratic."""
        return z - (z @ self.basis) @ self.basis.T


def _correlate(vectors: Float) -> Float:
    """Multiply the matrix rho^|i-j| with [step, vector], for every rho: [rho, step, vector]."""
    n = len(vectors)
    forward = np.empty((len(_RHO), *vectors.shape))
    backward = np.empty_like(forward)
    rho = _RHO[:, None]
    forward[:, 0], backward[:, -1] = vectors[0], vectors[-1]
    for i in range(1, n):
        forward[:, i] = vectors[i] + rho * forward[:, i - 1]
        backward[:, n - 1 - i] = vectors[n - 1 - i] + rho * backward[:, n - i]
    return forward + backward - vectors


@dataclass(frozen=True)
class Estimate:
    """A linear function of each curve with its standard errors, the least favourable of which counts.

    Attributes
    ----------
    estimate : ndarray [curve]
    errors : list of (ndarray [curve], ndarray [curve])
        Standard errors that apply, each with its degrees of freedom.
    """

    estimate: Float
    errors: list[tuple[Float, Float]]

    def half_width(self, alpha: float) -> Float:
        """Largest half-width of a one-sided interval at level 1 - alpha."""
        return np.max([stdtrit(df, 1 - alpha) * se for se, df in self.errors], axis=0)

    def p_below(self, bound: float) -> Float:
        """Largest p-value of "the truth is at least `bound`"."""
        return np.max([_tail(df, bound - self.estimate, se) for se, df in self.errors], axis=0)

    def p_above(self, bound: float) -> Float:
        """Largest p-value of "the truth is at most `bound`"."""
        return np.max([_tail(df, self.estimate - bound, se) for se, df in self.errors], axis=0)


def _tail(df: Float, distance: Float, se: Float) -> Float:
    """P(t > distance / se); without noise the answer is plain."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stdtr(df, -distance / se)
    return np.where(se > 0, p, np.where(distance > 0, 0.0, 1.0))


@dataclass(frozen=True)
class _Fit:
    """One window of a stack: the noise, and the slope, mean and late step with their standard errors."""

    slope: Estimate
    mean: Estimate
    late: Estimate
    rho: Float
    design_effect: Float
    variance: Float  # of the log noise of one document
    slope_error: Float  # AR(1) standard error of the slope
    point_error: Float  # standard error of the document mean of one step
    df: Float
    spread: Float  # standard deviation of the documents' slopes


@lru_cache(maxsize=256)
def _noise(first: int, steps: int, batch: int) -> tuple[_Noise, Float]:
    """Noise of the steps first+1 .. steps, or of their batch means; and the weights of slope, mean and late step."""
    x = np.log2(np.arange(first + 1, steps + 1, dtype=np.float64))
    if batch > 1:
        x = _batches(x, batch)
    n = len(x)
    centred = x - x.mean()
    tail = max(1, round(0.2 * n))
    late = np.where(np.arange(n) >= n - tail, 1 / tail, -1 / (n - tail))
    weights = np.stack([centred / (centred @ centred), np.full(n, 1 / n), late])
    return _Noise(x, weights), weights


def _batches(values: Float, batch: int) -> Float:
    """Means over consecutive batches; what does not fill one is left out at the beginning."""
    count = values.shape[-1] // batch
    kept = values[..., values.shape[-1] - count * batch :]
    return kept.reshape(*values.shape[:-1], count, batch).mean(axis=-1)


def _ar(z: Float, noise: _Noise) -> tuple[Float, Float, Float, Float, Float, Float]:
    """AR(1) noise of [curve, document, step].

    Returns
    -------
    variances : ndarray [curve, contrast]
    df, rho, design_effect, variance, mean_variance : ndarray [curve]
    """
    e = noise.residuals(z)
    documents, n = z.shape[1], z.shape[2]
    total = (e**2).sum(axis=(1, 2))
    mean = e.mean(axis=1)
    squares = (mean**2).sum(axis=1)
    # What is left of a curve without noise is the rounding of the logarithm itself, not evidence of anything.
    quiet = total <= (1e-13 * (1 + np.abs(z).max(axis=(1, 2)))) ** 2 * documents * n
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(quiet, 0.0, (e[:, :, :-1] * e[:, :, 1:]).sum(axis=(1, 2)) / total)
        design = np.where(quiet, 1.0, documents * squares * documents / total)
    upper = r + np.sqrt(np.maximum(0.0, 1 - r**2) / (n * documents))
    rho = np.interp(upper, noise.ratio, _RHO)

    def at(table: Float) -> Float:
        return np.interp(rho, _RHO, table)

    scale = np.where(quiet, 0.0, squares / at(noise.trace))
    forms = np.stack([at(noise.forms[:, k]) for k in range(noise.forms.shape[1])], axis=1)
    variance = np.where(quiet, 0.0, total / documents / at(noise.trace))
    return scale[:, None] * forms, at(noise.df), rho, design, variance, scale


def _fit(z: Float, first: int, steps: int) -> _Fit:
    """Fit the window after `first` of `steps` steps: z is [curve, document, step of the window]."""
    curves, documents, n = z.shape
    noise, weights = _noise(first, steps, 1)
    variances, df, rho, design, variance, scale = _ar(z, noise)
    values = z @ weights.T  # [curve, document, contrast]
    estimates = values.mean(axis=1)
    errors: list[list[tuple[Float, Float]]] = [[(np.sqrt(variances[:, k]), df)] for k in range(3)]
    batch = max(2, n // _BATCHES)
    if n // batch >= _LEAST_BATCHES:
        batched = _ar(_batches(z, batch), _noise(first, steps, batch)[0])
        asked = np.full(curves, documents < DOCUMENTS) | (design > DESIGN_EFFECT)
        for k in range(3):
            se, own_df = errors[k][0]  # stands in where the batched one is not asked
            errors[k].append((np.where(asked, np.sqrt(batched[0][:, k]), se), np.where(asked, batched[1], own_df)))
    spread = values.std(axis=1, ddof=1) if documents > 1 else np.full((curves, 3), np.nan)
    if documents >= DOCUMENTS:
        for k in range(3):
            errors[k].append((spread[:, k] / np.sqrt(documents), np.full(curves, documents - 1.0)))
    slope, mean, late = (Estimate(estimates[:, k], errors[k]) for k in range(3))
    return _Fit(
        slope=slope,
        mean=mean,
        late=late,
        rho=rho,
        design_effect=design,
        variance=variance,
        slope_error=np.sqrt(variances[:, 0]),
        point_error=np.sqrt(scale),
        df=df,
        spread=spread[:, 0],
    )


def window_mean(z: Float) -> Estimate | None:
    """Mean of signed series over their judging window, with the standard errors of :func:`analyse`.

    For effects between lanes, such as the log ratio of the drift of two precisions over the same text.

    Parameters
    ----------
    z : ndarray [curve, document, step]

    Returns
    -------
    Estimate or None
        None where there are neither steps enough for a noise model nor `DOCUMENTS` documents.
    """
    documents, steps = z.shape[1:]
    first = late_start(steps)
    if steps - first >= LEAST_POINTS:
        return _fit(z[:, :, first:], first, steps).mean
    if documents < DOCUMENTS:
        return None
    means = z[:, :, first:].mean(axis=2)
    spread = means.std(axis=1, ddof=1) / np.sqrt(documents)
    return Estimate(means.mean(axis=1), [(spread, np.full(len(z), documents - 1.0))])


# ---------------------------------------------------------------------------------------------- models
@dataclass(frozen=True)
class _Models:
    """Bases of the models of a mean curve, whitened for a grid of autocorrelations."""

    names: tuple[str, ...]
    owner: NDArray[np.int64]  # basis -> model
    parameters: Float  # per basis: mean and noise parameters
    first: NDArray[np.int64]  # column of a basis in the stacked orthonormal bases
    stacks: list[Float]  # per rho: [step, column]
    ends: list[Float]  # per rho: [column]: change over the last doubling, as a function of the projections


_PLATEAU_MODELS = ("constant", "saturating exponential")
_CHANGE_MODELS = ("power law", "exponential", "quadratic in log depth", "late change")
_LATE_MODEL = 5


def model_names() -> tuple[str, ...]:
    """Names of the models that are compared: those that end flat first."""
    return (*_PLATEAU_MODELS, *_CHANGE_MODELS)


@lru_cache(maxsize=64)
def _models(first: int, steps: int) -> _Models:
    t = np.arange(first + 1, steps + 1, dtype=np.float64)
    n = len(t)
    points = np.concatenate([t, [steps / 2, steps]])  # the model is evaluated at both ends of the last doubling
    x = np.log2(points)
    bases: list[tuple[int, Float, int]] = [(0, np.ones((n + 2, 1)), 0)]
    for tau in np.geomspace(1.0, max(2.0, steps / 8), 8):
        bases.append((1, np.stack([np.ones(n + 2), np.exp(-(points - first) / tau)], axis=1), 1))
    bases.append((2, np.stack([np.ones(n + 2), x], axis=1), 0))
    bases.append((3, np.stack([np.ones(n + 2), points / steps], axis=1), 0))
    bases.append((4, np.stack([np.ones(n + 2), x, x**2], axis=1), 0))
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
        ramp = np.maximum(0.0, points - share * steps)
        if 3 <= np.count_nonzero(ramp[:n]) <= n - 3:
            bases.append((5, np.stack([np.ones(n + 2), ramp / steps], axis=1), 1))
            bases.append((5, np.stack([np.ones(n + 2), (points > share * steps) * 1.0], axis=1), 1))
    owner = np.array([b[0] for b in bases])
    parameters = np.array([b[1].shape[1] + b[2] + 2.0 for b in bases])
    widths = [b[1].shape[1] for b in bases]
    stacks, ends = [], []
    for rho in _MODEL_RHO:
        columns, end = [], []
        for _, basis, _ in bases:
            q, r = np.linalg.qr(_whiten(basis[:n].T, rho).T)
            change = basis[n + 1] - basis[n]
            columns.append(q)
            end.append(np.linalg.solve(r.T, change))
        stacks.append(np.concatenate(columns, axis=1))
        ends.append(np.concatenate(end))
    return _Models(model_names(), owner, parameters, np.cumsum([0, *widths[:-1]]), stacks, ends)


def _whiten(z: Float, rho: float) -> Float:
    """Turn AR(1) noise along the last axis into white noise."""
    return np.concatenate([z[..., :1] * np.sqrt(1 - rho**2), z[..., 1:] - rho * z[..., :-1]], axis=-1)


def _compare_models(z: Float, first: int, steps: int, delta: float) -> tuple[Float, NDArray[np.int64]]:
    """AICc lead of the models that change at the end over those that do not, and the best of all.

    A model of change only counts if its change over the last doubling of depth is beyond `delta`: a growth that the
    data resolve and that is within the margin is what equivalence is about.

    Parameters
    ----------
    z : ndarray [curve, step]
        Document mean of log drift in the window after `first`.
    """
    models = _models(first, steps)
    n = z.shape[1]
    centred = z - z.mean(axis=1, keepdims=True)  # every model has a constant; this one only costs digits
    scale = np.maximum((centred**2).sum(axis=1), 1e-300)
    best = np.full((len(z), len(models.owner)), np.inf)
    counts = models.parameters
    with np.errstate(divide="ignore", invalid="ignore"):
        penalty = np.where(n - counts - 1 > 0, 2 * counts + 2 * counts * (counts + 1) / (n - counts - 1), np.inf)
    for rho, stack, end in zip(_MODEL_RHO, models.stacks, models.ends, strict=True):
        whitened = _whiten(centred, rho)
        projections = whitened @ stack
        explained = np.add.reduceat(projections**2, models.first, axis=1)
        change = np.add.reduceat(projections * end, models.first, axis=1)
        rss = np.maximum((whitened**2).sum(axis=1, keepdims=True) - explained, 1e-14 * scale[:, None])
        aicc = n * np.log(rss / n) - np.log(1 - rho**2) + penalty
        flat = models.owner < len(_PLATEAU_MODELS)
        aicc = np.where(flat | (np.abs(change) > delta), aicc, np.inf)
        best = np.minimum(best, aicc)
    flat = models.owner < len(_PLATEAU_MODELS)
    lead = best[:, flat].min(axis=1) - best[:, ~flat].min(axis=1)
    return np.where(np.isfinite(lead), lead, -np.inf), models.owner[best.argmin(axis=1)]


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

    fits = [_fit(z[:, :, s:], s, steps) for s in starts]
    judge = fits[-1]
    p = np.stack([np.maximum(f.slope.p_below(delta), f.slope.p_above(-delta)) for f in fits], axis=1)
    p = np.where(share_zero > ZEROS, 1.0, np.minimum(1.0, len(starts) * p))
    certified = p.argmin(axis=1)
    p_equivalence = p.min(axis=1)
    p_growth, p_decay = judge.slope.p_above(delta), judge.slope.p_below(-delta)

    half = max(judging, steps - max(LEAST_POINTS, steps // 2))
    last = _fit(z[:, :, half:], half, steps).slope
    late_slope = (np.abs(last.estimate) > delta) & (2 * np.minimum(last.p_above(0), last.p_below(0)) < alpha)
    late = judge.late
    late_step = (np.abs(late.estimate) > delta) & (2 * np.minimum(late.p_above(0), late.p_below(0)) < alpha)
    lead, model = _compare_models(z[:, :, starts[0] :].mean(axis=1), starts[0], steps, delta)

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
    code[(vetoed & (model == _LATE_MODEL)) | late_slope | late_step] = Code.LATE_CHANGE
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
    sxx = _noise(judging, steps, 1)[0].sxx
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


def least_steps() -> int:
    """Fewest steps that can be judged at all."""
    return next(n for n in range(1, 1000) if n - windows(n)[-1] >= LEAST_POINTS)


def _rise(raw: Float, stack: Float, judge: _Fit, judging: int) -> tuple[Estimate, Bool]:
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


def _needed(fits: list[_Fit], delta: float, alpha: float, documents: int, steps: int) -> tuple[Float, Float]:
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

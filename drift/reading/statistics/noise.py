"""Standard errors under autocorrelation: AR(1), batches, documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import lfilter
from scipy.special import stdtr, stdtrit

from drift.reading.statistics.arrays import Float
from drift.reading.statistics.windows import DOCUMENTS, LATE_STEP, LEAST_POINTS, late_start

__all__ = ["Estimate", "WindowFit", "fit_window", "noise_of", "window_mean"]

#: Documents share shocks beyond this design effect: the batched standard error is then asked as well.
DESIGN_EFFECT = 1.5
_BATCHES = 12
_LEAST_BATCHES = 6
_RHO = np.concatenate([np.linspace(0.0, 0.9, 46), 1 - np.geomspace(0.095, 0.005, 30)])


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
        q = self.basis
        vectors = np.concatenate([q, weights.T], axis=1)
        lags = np.arange(1, n)
        self.trace, self.trace2, self.lag1 = (np.empty(len(_RHO)) for _ in range(3))
        self.forms = np.empty((len(_RHO), len(weights)))
        # One autocorrelation at a time: all at once, a chain of 100,000 steps would take gigabytes.
        for place, (rho, product) in enumerate(zip(_RHO, _correlate(vectors), strict=True)):
            multiplied = np.ascontiguousarray(product)[None]  # [1, step, vector]
            gq, gw = multiplied[:, :, :3], multiplied[:, :, 3:]
            inner = np.einsum("ik,rij->rkj", q, gq)
            square = n + 2 * (rho ** (2 * lags) * (n - lags)).sum()
            self.trace[place] = n - np.trace(inner, axis1=1, axis2=2)[0]
            self.trace2[place] = square - 2 * (gq**2).sum() + (inner**2).sum()
            self.lag1[place] = (
                (n - 1) * rho
                - np.einsum("ik,rik->r", q[:-1], gq[:, 1:])[0]
                - np.einsum("rik,ik->r", gq[:, :-1], q[1:])[0]
                + np.einsum("ik,rkj,ij->r", q[:-1], inner, q[1:])[0]
            )
            self.forms[place] = np.einsum("ci,ric->rc", weights, gw)[0]
        self.ratio = np.maximum.accumulate(self.lag1 / self.trace)
        self.df = self.trace**2 / self.trace2

    def residuals(self, z: Float) -> Float:
        """Residuals of [..., step] on the quadratic."""
        return z - (z @ self.basis) @ self.basis.T


def _correlate(vectors: Float) -> Iterator[Float]:
    """Multiply the matrix rho^|i-j| with [step, vector], for one rho after the other: O(steps) each."""
    for rho in _RHO:
        decay = [1.0, -rho]
        forward = lfilter([1.0], decay, vectors, axis=0)
        backward = lfilter([1.0], decay, vectors[::-1], axis=0)[::-1]
        yield forward + backward - vectors


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
class WindowFit:
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
def noise_of(first: int, steps: int, batch: int) -> tuple[_Noise, Float]:
    """Noise of the steps first+1 .. steps, or of their batch means; and the weights of slope, mean and late step."""
    x = np.log2(np.arange(first + 1, steps + 1, dtype=np.float64))
    if batch > 1:
        x = _batches(x, batch)
    n = len(x)
    centred = x - x.mean()
    tail = max(1, round(LATE_STEP * n))
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


def fit_window(z: Float, first: int, steps: int) -> WindowFit:
    """Fit the window after `first` of `steps` steps: z is [curve, document, step of the window]."""
    curves, documents, n = z.shape
    noise, weights = noise_of(first, steps, 1)
    variances, df, rho, design, variance, scale = _ar(z, noise)
    values = z @ weights.T  # [curve, document, contrast]
    estimates = values.mean(axis=1)
    errors: list[list[tuple[Float, Float]]] = [[(np.sqrt(variances[:, k]), df)] for k in range(3)]
    batch = max(2, n // _BATCHES)
    if n // batch >= _LEAST_BATCHES:
        batched = _ar(_batches(z, batch), noise_of(first, steps, batch)[0])
        asked = np.full(curves, documents < DOCUMENTS) | (design > DESIGN_EFFECT)
        for k in range(3):
            se, own_df = errors[k][0]  # stands in where the batched one is not asked
            errors[k].append((np.where(asked, np.sqrt(batched[0][:, k]), se), np.where(asked, batched[1], own_df)))
    spread = values.std(axis=1, ddof=1) if documents > 1 else np.full((curves, 3), np.nan)
    if documents >= DOCUMENTS:
        for k in range(3):
            errors[k].append((spread[:, k] / np.sqrt(documents), np.full(curves, documents - 1.0)))
    slope, mean, late = (Estimate(estimates[:, k], errors[k]) for k in range(3))
    return WindowFit(
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
        return fit_window(z[:, :, first:], first, steps).mean
    if documents < DOCUMENTS:
        return None
    means = z[:, :, first:].mean(axis=2)
    spread = means.std(axis=1, ddof=1) / np.sqrt(documents)
    return Estimate(means.mean(axis=1), [(spread, np.full(len(z), documents - 1.0))])

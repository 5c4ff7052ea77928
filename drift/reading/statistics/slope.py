"""The log-log slope of an error on the unit roundoff, and what it says: rounding, structural, both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from drift.errors import ArgumentError
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.intervals import ALPHA, NO_INTERVAL, Interval, mean_interval
from drift.reading.statistics.noise import window_mean
from drift.reading.statistics.windows import ZEROS, late_part

__all__ = [
    "ROUNDING_MARGIN",
    "STRUCTURAL_MARGIN",
    "Scaling",
    "ScalingReason",
    "Slope",
    "has_level",
    "judge",
    "least_squares",
    "log_log",
    "slope",
    "slope_of_levels",
]

#: How far from 1 the whole interval of a slope may reach where drift is called rounding ...
ROUNDING_MARGIN = 0.2
#: ... and from 0 where it is called structural.
STRUCTURAL_MARGIN = 0.05
#: Windows of the chain that stand in for documents where there is one only.
WINDOWS = 8


class Scaling(Enum):
    """How drift goes with the precision. The value is the name used in JSON.

    Rounding is proportional to the unit roundoff, structural drift does not depend on it, both shrinks with it but less
    than in proportion.
    """

    ROUNDING = "rounding"
    STRUCTURAL = "structural"
    BOTH = "both"
    UNDETERMINED = "undetermined"


class ScalingReason(Enum):
    """Why a slope is undetermined. The value is what tables and JSON show."""

    ONE_RUNG = "one precision only"
    NONFINITE = "NaN or Inf"
    ZEROS = "exactly zero too often: there is no level"
    NO_INTERVAL = "one document and a chain too short for an interval"
    WIDE = "the interval reaches across a margin"
    STEEP = "drift shrinks faster than the unit roundoff"
    REVERSED = "drift is larger at finer precision"
    CONTROLS = "controls of the instrument failed"


def judge(interval: Interval, rounding: float = ROUNDING_MARGIN) -> tuple[Scaling, ScalingReason | None]:
    """Decide what a slope says; the whole interval must lie where the verdict says that it does.

    Parameters
    ----------
    interval : Interval
    rounding : float
        How far from 1 it may reach where drift is called rounding.
    """
    low, high = interval.pair
    if math.isnan(low):
        return Scaling.UNDETERMINED, ScalingReason.NO_INTERVAL
    if low >= 1 - rounding and high <= 1 + rounding:
        return Scaling.ROUNDING, None
    if low >= -STRUCTURAL_MARGIN and high <= STRUCTURAL_MARGIN:
        return Scaling.STRUCTURAL, None
    if low > STRUCTURAL_MARGIN and high < 1 - rounding:
        return Scaling.BOTH, None
    if low > 1 + rounding:
        return Scaling.UNDETERMINED, ScalingReason.STEEP
    if high < -STRUCTURAL_MARGIN:
        return Scaling.UNDETERMINED, ScalingReason.REVERSED
    return Scaling.UNDETERMINED, ScalingReason.WIDE


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
    verdict : Scaling
    reason : ScalingReason or None
    """

    interval: Interval
    by_document: tuple[float, ...]
    misfit: float
    zeros: int
    points: int
    verdict: Scaling
    reason: ScalingReason | None = None

    def without_verdict(self, failed: Sequence[str]) -> Slope:
        """Return the estimate alone, controls of the instrument having failed."""
        return replace(self, verdict=Scaling.UNDETERMINED, reason=ScalingReason.CONTROLS)


def least_squares(x: ArrayLike, y: ArrayLike) -> Float:
    """Slope of every series on x by least squares: of logarithms on logarithms, the log-log slope.

    Parameters
    ----------
    x : array_like [point]
    y : array_like [point, ...]

    Returns
    -------
    ndarray [...]
    """
    points = np.asarray(x, dtype=float)
    centred = points - points.mean()
    return np.asarray(np.tensordot(centred / (centred @ centred), np.asarray(y, dtype=float), axes=1))


def log_log(x: ArrayLike, y: ArrayLike, alpha: float = ALPHA) -> Interval:
    """Log-log slope with Student's t interval: over documents; over points where there is one series only.

    Parameters
    ----------
    x : array_like [point]
        Above 0.
    y : array_like [point, document]
        A document that is exactly zero somewhere has no logarithm there, and is left out.
    alpha : float
        The interval has coverage 1 - 2 `alpha`.

    Returns
    -------
    Interval
        NaN with fewer than two points; the slope alone with two points of one series.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_x, log_y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
        if len(log_x) < 2 or not log_y.size:
            return NO_INTERVAL
        slopes = least_squares(log_x, log_y)
    df = len(log_x) - 2
    if len(slopes) > 1 or df < 1:
        return mean_interval(slopes, alpha)
    value = float(slopes[0])
    z = log_x - log_x.mean()
    rest = log_y[:, 0] - log_y[:, 0].mean() - value * z
    error = math.sqrt(float(rest @ rest) / df / float(z @ z))
    half = float(stdtrit(df, 1 - alpha)) * error
    return Interval(value, error, float(df), value - half, value + half)


def has_level(values: ArrayLike) -> bool:
    """Whether a curve [document, step] has a late level: it is finite, and hardly any of what is late exactly zero."""
    curve = np.asarray(values, dtype=float)
    late = late_part(curve)
    return bool(np.isfinite(curve).all() and (late == 0).mean() <= ZEROS and (late > 0).any(axis=-1).all())


def slope_of_levels(
    unit_roundoff: ArrayLike, values: ArrayLike, alpha: float = ALPHA, rounding: float = ROUNDING_MARGIN
) -> tuple[Slope, list[int]]:
    """Estimate the slope over those rungs that have a level; arguments as for :func:`slope`.

    Returns
    -------
    Slope
        Undetermined where fewer than two unit roundoffs are left.
    list of int
        Places of the rungs that it is over; all of them where it is undetermined for that reason.
    """
    u, drift = np.asarray(unit_roundoff, dtype=float), np.asarray(values, dtype=float)
    good = [place for place, curve in enumerate(drift) if has_level(curve)]
    everything = list(range(len(u)))
    if good == everything or len(np.unique(u)) < 2:
        return slope(u, drift, alpha, rounding), everything
    if len(np.unique(u[good])) > 1:
        return slope(u[good], drift[good], alpha, rounding), good
    reason = ScalingReason.ZEROS if np.isfinite(drift).all() else ScalingReason.NONFINITE
    found = slope(u, drift, alpha, rounding)
    return replace(
        found, interval=NO_INTERVAL, by_document=(), misfit=math.nan, verdict=Scaling.UNDETERMINED, reason=reason
    ), everything


def slope(
    unit_roundoff: ArrayLike, values: ArrayLike, alpha: float = ALPHA, rounding: float = ROUNDING_MARGIN
) -> Slope:
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
    rounding : float
        As for :func:`judge`.

    Returns
    -------
    Slope
        A geometric mean cannot take 0: a late step at which some rung is exactly zero is left out at every rung, and
        counted. Where that is more than a tenth of them, there is no slope.
    """
    u, drift = np.asarray(unit_roundoff, dtype=float), np.asarray(values, dtype=float)
    if drift.ndim != 3 or u.shape != drift.shape[:1]:
        raise ArgumentError(f"values are [rung, document, step] with one unit roundoff a rung, not {drift.shape}")
    late = late_part(drift)
    points = late[0].size

    def nothing(reason: ScalingReason, zeros: int = 0) -> Slope:
        return Slope(NO_INTERVAL, (), math.nan, zeros, points, Scaling.UNDETERMINED, reason)

    if len(np.unique(u)) < 2:
        return nothing(ScalingReason.ONE_RUNG)
    if not np.isfinite(late).all():
        return nothing(ScalingReason.NONFINITE)
    positive = np.asarray((late > 0).all(axis=0))  # [document, step]
    zeros = int((~positive).sum())
    if zeros > ZEROS * points or not positive.any(axis=1).all():
        return nothing(ScalingReason.ZEROS, zeros)
    x = np.log(u) - np.log(u).mean()
    logs = np.log(np.where(positive, late, 1.0))
    series = least_squares(np.log(u), logs)  # [document, step]
    by_document = np.array([row[there].mean() for row, there in zip(series, positive, strict=True)])
    if len(by_document) > 1:
        interval = mean_interval(by_document, alpha)
    else:
        interval = _along(series[0][positive[0]], drift.shape[2], alpha)
    levels = np.array([logs[:, d, there].mean(axis=1) for d, there in enumerate(positive)]).mean(axis=0)  # [rung]
    misfit = math.exp(float(np.abs(levels - levels.mean() - interval.value * x).max()))
    verdict, reason = judge(interval, rounding)
    return Slope(interval, tuple(by_document.tolist()), misfit, zeros, points, verdict, reason)


def _along(series: Float, steps: int, alpha: float) -> Interval:
    """Mean of one document's slopes [late step]; the interval is over its chain.

    The wider of two: windows of the chain as replicates (they contain whatever autocorrelation is shorter than they
    are), and autocorrelated noise around the trend, as :mod:`drift.plateau` has it.
    """
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

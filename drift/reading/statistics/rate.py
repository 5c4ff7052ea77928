"""Growth or decay per step, with its interval."""

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
from drift.reading.statistics.intervals import ALPHA, Interval, mean_interval
from drift.reading.statistics.windows import WINDOWS

__all__ = ["NEUTRAL", "Rate", "Trend", "TrendReason", "rate"]

#: A gain that changes by less than this factor over the steps that were measured is called neutral.
NEUTRAL = 2.0
#: Fewer steps than this past the burn-in support no rate.
LEAST_STEPS = 4


class Trend(Enum):
    """What the chain does to a disturbance. The value is the name used in JSON."""

    CONTRACTION = "contraction"
    NEUTRAL = "neutral"
    GROWTH = "growth"
    UNDETERMINED = "undetermined"


class TrendReason(Enum):
    """Why a rate is undetermined. The value is what tables and JSON show."""

    SILENT = "the first step that can differ does not"
    NONFINITE = "NaN or Inf"
    TOO_SHORT = "too few steps after the disturbance"
    WIDE = "the interval holds both signs"
    CONTROLS = "controls of the instrument failed"


@dataclass(frozen=True)
class Rate:
    """Exponential rate of a gain, per chain step.

    Attributes
    ----------
    interval : Interval
        Natural log per step.
    margin : float
        Rates within ± this change the gain by less than the factor :data:`NEUTRAL` over the measured steps.
    first : int
        Steps after the first affected one that were left out as burn-in.
    zeros : int
        Values past the burn-in that are exactly zero: the two lanes were the same bits again.
    verdict : Trend
    reason : TrendReason or None
    """

    interval: Interval
    margin: float
    first: int
    zeros: int
    verdict: Trend
    reason: TrendReason | None = None

    def without_verdict(self, failed: Sequence[str]) -> Rate:
        """Return the estimate alone, controls of the instrument having failed."""
        return replace(self, verdict=Trend.UNDETERMINED, reason=TrendReason.CONTROLS)


def rate(gain: ArrayLike, alpha: float = ALPHA) -> Rate:
    """Estimate and judge the exponential rate of a gain.

    Parameters
    ----------
    gain : array_like [document, k]
        k = 0 is the first affected step, where it is 1.
    alpha : float
        The interval has coverage 1 - 2 `alpha`.
    """
    values = np.asarray(gain, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ArgumentError(f"a gain is [document, k], not of shape {values.shape}")
    steps = values.shape[1]
    first = max(1, math.ceil(WINDOWS[-1] * steps))
    late = values[:, first:]
    margin = math.log(NEUTRAL) / max(late.shape[1] - 1, 1)
    nothing = mean_interval([])
    zeros = int((late == 0).sum())

    def undetermined(reason: TrendReason, interval: Interval = nothing) -> Rate:
        return Rate(interval, margin, first, zeros, Trend.UNDETERMINED, reason)

    if not np.isfinite(values[:, 0]).all():
        return undetermined(TrendReason.SILENT)
    if not np.isfinite(values).all():
        return undetermined(TrendReason.NONFINITE)
    if late.shape[1] < LEAST_STEPS:
        return undetermined(TrendReason.TOO_SHORT)
    k = np.arange(first, steps, dtype=float)
    kept = late > 0
    if (late[:, -LEAST_STEPS:] == 0).all():
        return Rate(nothing, margin, first, zeros, Trend.CONTRACTION)  # forgotten to the last bit
    if (kept.sum(axis=1) < LEAST_STEPS).any():
        return undetermined(TrendReason.TOO_SHORT)
    slopes, errors = [], []
    for row, there in zip(late, kept, strict=True):
        slope, error, df = _line(k[there], np.log(row[there]))
        slopes.append(slope)
        errors.append((error, df))
    interval = mean_interval(slopes, alpha)
    if len(slopes) == 1:
        error, df = errors[0]
        half = float(stdtrit(df, 1 - alpha)) * error
        interval = Interval(slopes[0], error, df, slopes[0] - half, slopes[0] + half)
    low, high = interval.pair
    if -margin <= low and high <= margin:
        return Rate(interval, margin, first, zeros, Trend.NEUTRAL)
    if high < 0:
        return Rate(interval, margin, first, zeros, Trend.CONTRACTION)
    if low > 0:
        return Rate(interval, margin, first, zeros, Trend.GROWTH)
    return undetermined(TrendReason.WIDE, interval)


def _line(x: Float, y: Float) -> tuple[float, float, float]:
    """Least-squares slope with a standard error that allows for AR(1) noise; returns slope, error, degrees of freedom.

    The lag-1 autocorrelation of the residuals is corrected for the bias that fitting causes (by 4/n, as for a linear
    trend) and never taken to be negative; the variance is inflated, and points discounted, by (1 + rho) / (1 - rho).
    """
    z = x - x.mean()
    slope = float(z @ y / (z @ z))
    rest = y - y.mean() - slope * z
    n, total = len(x), float(rest @ rest)
    if total <= 1e-24 * max(float(y @ y), 1.0):  # a line without noise: what is left is the rounding of the logarithm
        return slope, 0.0, float(n - 2)
    rho = min(max(float(rest[1:] @ rest[:-1]) / total + 4 / n, 0.0), 0.95)
    inflation = (1 + rho) / (1 - rho)
    df = max(n / inflation - 2, 1.0)
    return slope, math.sqrt(total / (n - 2) / float(z @ z) * inflation), df

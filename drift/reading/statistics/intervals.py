"""Intervals of a mean over documents, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from drift.reading.statistics.arrays import Float

__all__ = ["ALPHA", "LEVEL_ALPHA", "NO_INTERVAL", "Interval", "holm", "mean_interval"]

#: Level of the one-sided tests: intervals have coverage 1 - 2 ALPHA, as everywhere in drift.
ALPHA = 0.05
#: The same of the interval of a curve's level, which people read as an error bar; where a level is tested against a
#: margin, two one-sided tests at this level pass just where the whole interval lies within.
LEVEL_ALPHA = 0.025


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


NO_INTERVAL = Interval(math.nan, math.nan, math.nan, math.nan, math.nan)


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
    good = np.asarray(values, dtype=float)
    good = good[np.isfinite(good)]
    if not good.size:
        return NO_INTERVAL
    value, df = float(good.mean()), float(good.size - 1)
    if df < 1:
        return Interval(value, math.nan, 0.0, math.nan, math.nan)
    error = float(good.std(ddof=1) / math.sqrt(good.size))
    half = float(stdtrit(df, 1 - alpha)) * error
    return Interval(value, error, df, value - half, value + half)


def finite_means(values: Float) -> Float:
    """Return means [document] of what is finite of values [document, step]; NaN where nothing is."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down procedure: a list of rejections with family-wise error alpha.

    NaN (nothing tested) stays NaN and does not count.
    """
    order = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    adjusted = [math.nan] * len(p)
    running = 0.0
    for rank, (value, place) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * value))
        adjusted[place] = running
    return adjusted

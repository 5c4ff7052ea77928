"""Shares of trials: their intervals, differences of two, and what is left where trials come in clusters.

Intervals have coverage 1 - 2 `alpha`, as everywhere in drift: each end is left out at level `alpha`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, ndtr, ndtri

from drift.reading.statistics.arrays import Float
from drift.reading.statistics.intervals import ALPHA, Interval, mean_interval

__all__ = [
    "Pairs",
    "Share",
    "clopper_pearson",
    "cluster_difference",
    "difference_of_shares",
    "effective_share",
    "mcnemar",
    "paired_pairs",
    "tango",
    "tango_p",
    "wilson",
]


@dataclass(frozen=True)
class Share:
    """A share of trials.

    Attributes
    ----------
    hits, trials : float
        Where trials come in clusters, those of as many independent trials as say as much: no whole numbers.
    low, high : float
        Clopper-Pearson interval.
    """

    hits: float
    trials: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; NaN without trials."""
        return self.hits / self.trials if self.trials else math.nan

    def p_below(self, bound: float) -> float:
        """P-value of the test that the share is at least `bound`: small where it is shown to lie below."""
        if self.hits >= self.trials:
            return 1.0
        return float(1 - betainc(self.hits + 1, self.trials - self.hits, bound))

    def p_above(self, bound: float) -> float:
        """P-value of the test that the share is at most `bound`: small where it is shown to lie above."""
        return float(betainc(self.hits, self.trials - self.hits + 1, bound)) if self.hits > 0 else 1.0


def clopper_pearson(hits: float, trials: float, alpha: float = ALPHA) -> Share:
    """Share of trials with its exact interval.

    Parameters
    ----------
    hits, trials : float
        Numbers that are not whole interpolate, by the beta distribution.
    alpha : float
        Either end is left out at this level.
    """
    if not trials:
        return Share(0.0, 0.0, math.nan, math.nan)
    low = float(betaincinv(hits, trials - hits + 1, alpha)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - alpha)) if hits < trials else 1.0
    return Share(float(hits), float(trials), low, high)


def effective_share(values: ArrayLike, alpha: float = ALPHA) -> Share:
    """Share of trials that come in clusters, after Korn and Graubard.

    Trials of a cluster are no independent ones: as many count as would give the spread that the clusters show, and
    where they show none (all alike), as many as there are clusters.

    Parameters
    ----------
    values : array_like
        0 and 1: [cluster, trial].
    alpha : float
    """
    array = np.asarray(values, dtype=float)
    clusters, each = array.shape
    share = float(array.mean()) if array.size else math.nan
    count = float(array.size)
    if each > 1 and clusters:
        spread = float(array.mean(1).var(ddof=1)) / clusters if clusters > 1 else 0.0
        effective = share * (1 - share) / spread if spread > 0 else 0.0
        count = min(max(effective, float(clusters)), count)
    return clopper_pearson(share * count, count, alpha) if array.size else clopper_pearson(0, 0, alpha)


def wilson(hits: float, trials: float, alpha: float = ALPHA) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    z = float(ndtri(1 - alpha))
    share, root = hits / trials, z * math.sqrt(z**2 + 4 * hits * (trials - hits) / trials)
    return (2 * trials * share + z**2 - root) / (2 * (trials + z**2)), (2 * trials * share + z**2 + root) / (
        2 * (trials + z**2)
    )


def difference_of_shares(a: Share, b: Share, alpha: float = ALPHA) -> Interval:
    """Difference of two independent shares, a - b, with Newcombe's interval (his method 10: of two of Wilson's)."""
    if not a.trials or not b.trials:
        return Interval(math.nan, math.nan, math.nan, math.nan, math.nan)
    difference = a.value - b.value
    (la, ua), (lb, ub) = wilson(a.hits, a.trials, alpha), wilson(b.hits, b.trials, alpha)
    low = difference - math.hypot(a.value - la, ub - b.value)
    high = difference + math.hypot(ua - a.value, b.value - lb)
    return Interval(difference, math.nan, math.inf, low, high)


# ---------------------------------------------------------------------------------------------- pairs
@dataclass(frozen=True)
class Pairs:
    """Trials in pairs.

    Attributes
    ----------
    first, second : float
        Pairs in which only the first was a hit, and only the second.
    pairs : float
        All of them.
    """

    first: float
    second: float
    pairs: float

    @property
    def difference(self) -> float:
        """Share of hits of the second, less that of the first."""
        return (self.second - self.first) / self.pairs


def paired_pairs(first: ArrayLike, second: ArrayLike) -> Pairs:
    """Count pairs that disagree; arrays of 0 and 1, of one shape."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    return Pairs(float((a & ~b).sum()), float((~a & b).sum()), float(a.size))


def mcnemar(pairs: Pairs) -> float:
    """Two-sided p-value of McNemar's exact test; 1 where no pair disagrees."""
    fewer, more = sorted((pairs.first, pairs.second))
    return min(1.0, 2 * float(betainc(more, fewer + 1, 0.5))) if more else 1.0


def _score(pairs: Pairs) -> Callable[[float], float]:
    """Tango's score statistic of the second share less the first, as a function of the difference that is supposed."""
    n, b, c = pairs.pairs, pairs.second, pairs.first

    def statistic(delta: float) -> float:
        # The share of pairs in which only the first is a hit, most likely where the difference is `delta`.
        linear = -b - c + (2 * n - b + c) * delta
        restricted = (math.sqrt(max(linear**2 + 8 * n * c * delta * (1 - delta), 0.0)) - linear) / (4 * n)
        variance = n * (2 * restricted + delta * (1 - delta))
        away = b - c - n * delta
        if variance <= 0:
            return 0.0 if away == 0 else math.copysign(math.inf, away)
        return away / math.sqrt(variance)

    return statistic


def tango(pairs: Pairs, alpha: float = ALPHA) -> Interval:
    """Difference of two paired shares with Tango's score interval.

    Parameters
    ----------
    pairs : Pairs
    alpha : float
        Either end is left out at this level.
    """
    if not pairs.pairs:
        return Interval(math.nan, math.nan, math.nan, math.nan, math.nan)
    statistic, z, found = _score(pairs), float(ndtri(1 - alpha)), pairs.difference
    edge = 1 - 1e-12

    def end(target: float, side: float) -> float:
        """Where the statistic, which falls as the difference rises, is `target`; the edge where it is nowhere."""
        if (statistic(side) - target) * (statistic(found) - target) > 0:
            return math.copysign(1.0, side)
        return float(brentq(lambda delta: statistic(delta) - target, *sorted((found, side)), xtol=1e-12))

    low = -1.0 if found < -edge else end(z, -edge)
    high = 1.0 if found > edge else end(-z, edge)
    return Interval(found, math.nan, math.inf, low, high)


def tango_p(pairs: Pairs, delta: float) -> tuple[float, float]:
    """P-values of the score tests that show the difference to lie below `delta`, and above it."""
    if not pairs.pairs:
        return math.nan, math.nan
    score = _score(pairs)(delta)
    return float(ndtr(score)), float(ndtr(-score))


def cluster_difference(first: ArrayLike, second: ArrayLike, alpha: float = ALPHA) -> Interval:
    """Mean difference of paired trials [cluster, trial], by clusters: Student's t interval of their means."""
    change: Float = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    return mean_interval(change.mean(1), alpha)

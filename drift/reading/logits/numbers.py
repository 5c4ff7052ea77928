"""The numbers of a comparison, and their intervals.

Positions of one text are not independent of each other, texts are: intervals come from resampling whole sequences. One
way for all numbers, quantiles and effective sample sizes too: the standard error over resamples, widened for the few
that there are, times Student's quantile for so many sequences. Of a mean that is the interval that is used everywhere
in drift (:func:`drift.reading.statistics.intervals.mean_interval`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from drift.reading.logits.model import BAND, Number, Quantity, Units
from drift.reading.logits.pairing import Pairs
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.intervals import ALPHA
from drift.reading.statistics.windows import DOCUMENTS

__all__ = ["PARTS", "RESAMPLES", "numbers", "replicates"]

#: Resamples: enough for a standard error.
RESAMPLES = 200
#: Where there are fewer sequences than a claim needs, each is cut into parts until there are at least so many.
PARTS = 8
_SEED = 20260101
_Q = Quantity


def replicates(pairs: Pairs) -> tuple[NDArray[np.int64], bool]:
    """Number what is taken for independent, by position: sequences, or consecutive parts where there are too few.

    Returns
    -------
    tuple
        int64 [position] from 0, and whether they are parts.
    """
    _, sequence = np.unique(pairs.sequence, return_inverse=True)
    sequence = sequence.astype(np.int64)
    count = int(sequence.max()) + 1
    if count >= DOCUMENTS:
        return sequence, False
    each = math.ceil(PARTS / count)
    lengths = np.bincount(sequence)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    inside = np.arange(len(sequence)) - starts[sequence]
    part = sequence * each + inside * each // lengths[sequence]
    return np.unique(part, return_inverse=True)[1].astype(np.int64), True


@dataclass(frozen=True)
class _Series:
    """Values in order, and which replicate each is from; NaN left out."""

    values: Float
    group: NDArray[np.int64]

    @classmethod
    def of(cls, values: Float, group: NDArray[np.int64]) -> _Series:
        known = ~np.isnan(values)
        order = np.argsort(values[known], kind="stable")
        return cls(values[known][order], group[known][order])

    def drawn(self, times: NDArray[np.int64] | None) -> Float:
        """The values, each as often as its replicate was drawn."""
        return self.values if times is None else np.repeat(self.values, times[self.group])


def _quantile(ordered: Float, share: float) -> float:
    """A quantile of values in order, linear between neighbours: NumPy's, and llama.cpp's."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    if ordered[above] == ordered[below]:  # both may be infinite
        return float(ordered[below])
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


_Found = Iterator[tuple[Quantity, float]]


def _divergence(ordered: Float, names: tuple[Quantity | None, ...]) -> _Found:
    shares = (0.5, 0.9, 0.99, 1.0)
    for name, share in zip(names[1:], shares, strict=True):
        if name is not None:
            yield name, _quantile(ordered, share)
    assert names[0] is not None
    yield names[0], float(ordered.mean())


def _change(change: Float) -> _Found:
    size = np.sort(np.abs(change))
    yield _Q.CHANGE_MEAN, float(change.mean())
    yield _Q.CHANGE_ABS, float(size.mean())
    yield _Q.CHANGE_RMS, math.sqrt(float((size**2).mean()))
    yield _Q.CHANGE_99, _quantile(size, 0.99)
    yield _Q.CHANGE_MAX, float(size[-1])


def _ratio(change: Float, clip: tuple[float, float] | None) -> _Found:
    """Numbers of importance weights exp(change), in order."""
    with np.errstate(over="ignore"):
        ratio = np.exp(change)
        yield _Q.RATIO_MEAN, float(ratio.mean())
        yield _Q.K3, float((np.expm1(change) - change).mean())
    for name, share in ((_Q.RATIO_MIN, 0.0), (_Q.RATIO_01, 0.01), (_Q.RATIO_MEDIAN, 0.5), (_Q.RATIO_99, 0.99),
                        (_Q.RATIO_MAX, 1.0)):  # fmt: skip
        yield name, _quantile(ratio, share)
    yield _Q.RATIO_OUTSIDE, float(((ratio < BAND[0]) | (ratio > BAND[1])).mean())
    if clip is not None:
        yield _Q.RATIO_CLIPPED, float(((ratio < clip[0]) | (ratio > clip[1])).mean())
    yield _Q.K1, float(-change.mean())
    yield _Q.K2, float((change**2).mean() / 2)
    weights = np.exp(change - change[-1])  # of the largest: weights of sequences overflow
    yield _Q.ESS, float(weights.sum() ** 2 / (weights**2).sum()) / len(change)


def _perplexity(a: Float, b: Float) -> _Found:
    mine, other = -float(a.mean()), -float(b.mean())
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        yield _Q.PPL_B, float(np.exp(other))
        yield _Q.PPL_A, float(np.exp(mine))
        spread = float(a.std() * b.std())
        covariance = float(((a - a.mean()) * (b - b.mean())).mean())
        yield _Q.PPL_CORRELATION, covariance / spread if spread > 0 else math.nan
        yield _Q.PPL_LOG_RATIO, other - mine
        yield _Q.PPL_RATIO, float(np.exp(other - mine))
        yield _Q.PPL_DIFFERENCE, float(np.exp(other) - np.exp(mine))


def _probability(change: Float) -> _Found:
    yield _Q.P_MEAN, float(change.mean())
    for name, share in ((_Q.P_MAX, 1.0), (_Q.P_99, 0.99), (_Q.P_MEDIAN, 0.5), (_Q.P_01, 0.01), (_Q.P_MIN, 0.0)):
        yield name, _quantile(change, share)
    yield _Q.P_RMS, math.sqrt(float((change**2).mean()))


class _Sample:
    """All series of one pair of lanes."""

    def __init__(self, pairs: Pairs, group: NDArray[np.int64], units: Units, clip: tuple[float, float] | None) -> None:
        change = pairs.change
        known = ~np.isnan(change)
        self.clip = clip
        # Of a position where one lane has no distribution the divergences are NaN, or infinite: both are counted apart.
        self.kl, self.js = (_Series.of(np.where(np.isfinite(x), x, np.nan), group) for x in (pairs.kl, pairs.js))
        self.flip = _Series.of(pairs.flip, group)
        self.change = _Series.of(change, group)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no log-probability
            p = np.exp(pairs.chosen_b) - np.exp(pairs.chosen_a)
        self.p = _Series.of(np.where(known, p, np.nan), group)
        self.a, self.b, self.group = pairs.chosen_a[known], pairs.chosen_b[known], group[known]
        self.ratio = self.change
        if units is Units.SEQUENCE:
            sequence = np.unique(pairs.sequence[known], return_inverse=True)[1]
            sums = np.bincount(sequence, weights=change[known]).astype(np.float64)
            first = np.unique(sequence, return_index=True)[1]
            self.ratio = _Series.of(sums, self.group[first] if len(sums) else self.group)

    def found(self, times: NDArray[np.int64] | None = None) -> _Found:
        """All numbers, each replicate drawn so many times."""
        for series, names in (
            (self.kl, (_Q.KL_MEAN, _Q.KL_MEDIAN, _Q.KL_90, _Q.KL_99, _Q.KL_MAX)),
            (self.js, (_Q.JS_MEAN, _Q.JS_MEDIAN, None, _Q.JS_99, _Q.JS_MAX)),
        ):
            if len(values := series.drawn(times)):
                yield from _divergence(values, names)
        if len(values := self.change.drawn(times)):
            yield from _change(values)
            often = np.ones(len(self.a), dtype=np.int64) if times is None else times[self.group]
            yield from _perplexity(np.repeat(self.a, often), np.repeat(self.b, often))
        if len(values := self.p.drawn(times)):
            yield from _probability(values)
        if len(values := self.ratio.drawn(times)):
            yield from _ratio(values, self.clip)
        if len(values := self.flip.drawn(times)):
            yield _Q.FLIPS, float(values.mean())
            yield _Q.SAME_TOP, float(1 - values.mean())


#: Numbers that an interval must not take below 0, or above 1.
_SHARES = (_Q.RATIO_OUTSIDE, _Q.RATIO_CLIPPED, _Q.ESS, _Q.FLIPS, _Q.SAME_TOP)
_AT_LEAST_0 = (*_SHARES, _Q.KL_MEAN, _Q.KL_MEDIAN, _Q.KL_90, _Q.KL_99, _Q.JS_MEAN, _Q.JS_MEDIAN, _Q.JS_99,
               _Q.CHANGE_ABS, _Q.CHANGE_RMS, _Q.CHANGE_99, _Q.RATIO_MEAN, _Q.RATIO_01, _Q.RATIO_MEDIAN, _Q.RATIO_99,
               _Q.K2, _Q.K3, _Q.PPL_A, _Q.PPL_B, _Q.PPL_RATIO, _Q.P_RMS)  # fmt: skip
#: The largest and the smallest of all are not estimates of anything, and have no interval.
_EXTREMES = (_Q.KL_MAX, _Q.JS_MAX, _Q.CHANGE_MAX, _Q.RATIO_MIN, _Q.RATIO_MAX, _Q.P_MAX, _Q.P_MIN)
#: Numbers of ratios of the asked unit.
_OF_RATIOS = (_Q.RATIO_MEAN, _Q.RATIO_01, _Q.RATIO_MEDIAN, _Q.RATIO_99, _Q.RATIO_OUTSIDE, _Q.RATIO_CLIPPED, _Q.K1,
              _Q.K2, _Q.K3, _Q.ESS)  # fmt: skip


def _number(name: Quantity, value: float, half: float, floor: tuple[float, ...]) -> Number:
    if name in _EXTREMES or not (math.isfinite(half) and math.isfinite(value)):
        return Number(value, floor=floor)
    low, high = value - half, value + half
    return Number(
        value, max(low, 0.0) if name in _AT_LEAST_0 else low, min(high, 1.0) if name in _SHARES else high, floor
    )


def numbers(
    pairs: Pairs, floors: list[Pairs], units: Units, clip: tuple[float, float] | None
) -> Mapping[Quantity, Number]:
    """Compute all numbers that can be formed.

    Parameters
    ----------
    pairs : Pairs
        A and B.
    floors : list of Pairs
        A and each repeat.
    units : Units
        Of the ratios, of k1 to k3 and of the effective sample size.
    clip : (float, float), optional
        Ratios outside are counted.
    """
    group, parts = replicates(pairs)
    sample = _Sample(pairs, group, units, clip)
    count = int(group.max()) + 1
    values = dict(sample.found())
    below = [dict(_Sample(one, replicates(one)[0], units, clip).found()) for one in floors]
    halves: dict[Quantity, float] = {}
    if count >= DOCUMENTS:
        generator = np.random.default_rng(_SEED)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        resampled = [dict(sample.found(times)) for times in drawn]
        widened = float(stdtrit(count - 1, 1 - ALPHA)) * math.sqrt(count / (count - 1))
        for name in values:
            found = np.array([one.get(name, math.nan) for one in resampled])
            found = found[np.isfinite(found)]
            halves[name] = widened * float(found.std(ddof=1)) if len(found) > 1 else math.nan
    if parts and units is Units.SEQUENCE:  # a part of a sequence has no ratio of its own
        halves |= dict.fromkeys(_OF_RATIOS, math.nan)
    return {
        name: _number(name, value, halves.get(name, math.nan), tuple(one.get(name, math.nan) for one in below))
        for name, value in values.items()
    }

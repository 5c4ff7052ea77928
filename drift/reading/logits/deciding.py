"""Two lanes against the floor: same bits, within, beyond, undetermined.

The distance of a position is the square root of KL(A||B) where whole distributions are known, else the size of the
change of the chosen token's log-probability: amplitudes both, proportional to what disturbs the logits. Per replicate
(sequence, or part of one) the mean over positions is held against that of the repeats. Two things decide: the geometric
mean of that ratio over replicates, whose interval must lie on one side of :data:`drift.reading.floor.model.FACTOR`; and
single positions further than :data:`TAIL` times the furthest of all repeats, which a mean would hide.

Amplitudes and not divergences, because a few positions are far more sensitive than all others: of divergences these few
make the mean, and it decides nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from drift.reading.floor.model import FACTOR
from drift.reading.logits.model import Excess, Reason, Verdict
from drift.reading.logits.numbers import replicates
from drift.reading.logits.pairing import Pairs
from drift.reading.plateau.deciding import plateaus
from drift.reading.plateau.model import Plateau
from drift.reading.quantities import Of
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.intervals import LEVEL_ALPHA, mean_interval
from drift.reading.statistics.windows import DOCUMENTS

__all__ = ["LEAST_POSITIONS", "NEAR", "STEPS", "TAIL", "decide", "excess", "growth", "near_ties"]

#: A position further from A than so many times the furthest of all repeats is beyond the floor by itself.
TAIL = 10.0
#: Fewer positions than this decide nothing.
LEAST_POSITIONS = 16
#: A flip is a near-tie where A's margin is at most what so large a share of margins moves by among the repeats.
NEAR = 0.99
#: The growth with the position is judged over so many steps of equal length or a few more; fewer than twice as many.
STEPS = 64


def _distance(pairs: Pairs, whole: bool) -> Float:
    """Amplitude of each position; NaN where it is not known, or not finite."""
    values = np.sqrt(pairs.kl) if whole else np.abs(pairs.change)
    return np.where(np.isfinite(values), values, np.nan)


def _means(values: Float, group: NDArray[np.int64], count: int) -> Float:
    """Means over replicates; NaN where nothing is known."""
    known = ~np.isnan(values)
    sums = np.bincount(group[known], weights=values[known], minlength=count)
    sizes = np.bincount(group[known], minlength=count)
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)


def _raised(values: Float) -> Float:
    """Take what is exactly 0 for half the smallest that is not: its logarithm is formed."""
    positive = values[values > 0]
    return np.where(values > 0, values, positive.min() / 2 if positive.size else np.nan)


def _is_whole(pairs: Pairs, floors: list[Pairs]) -> bool:
    return pairs.whole and all(one.whole for one in floors)


def _places(pairs: Pairs, group: NDArray[np.int64], one: Pairs) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which positions of a repeat B has as well, and the replicates that these are in."""
    length = int(max(pairs.position.max(), one.position.max())) + 1
    mine, other = (x.sequence * length + x.position for x in (pairs, one))  # both ascend
    at = np.minimum(np.searchsorted(mine, other), len(mine) - 1)
    known = mine[at] == other
    return known, group[at[known]]


def excess(pairs: Pairs, floors: list[Pairs]) -> Excess:
    """Hold the distance of B against that of the repeats.

    Parameters
    ----------
    pairs : Pairs
        A and B.
    floors : list of Pairs
        A and each repeat, at least one.
    """
    whole = _is_whole(pairs, floors)
    group, parts = replicates(pairs)
    count = int(group.max()) + 1
    mine = _distance(pairs, whole)
    below = []
    for one in floors:
        known, own = _places(pairs, group, one)
        below.append(_means(_distance(one, whole)[known], own, count))
    above, stacked = _means(mine, group, count), np.stack(below)
    some = ~np.isnan(stacked).all(axis=0)
    floor = np.full(count, np.nan)
    floor[some] = np.nanmean(stacked[:, some], axis=0)
    usable = ~np.isnan(above) & ~np.isnan(floor) & ((above > 0) | (floor > 0))
    above, floor = _raised(above[usable]), _raised(floor[usable])
    found = mean_interval(np.log(above / floor), LEVEL_ALPHA)
    largest = max((float(np.nanmax(d)) for d in (_distance(one, whole) for one in floors) if not np.isnan(d).all()),
                  default=math.nan)  # fmt: skip
    tail = int((mine > TAIL * largest).sum()) if largest > 0 else 0
    low, high = (math.exp(x) if math.isfinite(x) else math.nan for x in found.pair)
    return Excess(
        math.exp(found.value) if math.isfinite(found.value) else math.nan, low, high, int(usable.sum()), parts, FACTOR,
        tail, TAIL, _needed(found.value, found.standard_error, int(usable.sum())),
    )  # fmt: skip


def _needed(value: float, error: float, count: int) -> float:
    """Replicates after which the interval would lie on one side of the factor, all else being equal."""
    distance = abs(value - math.log(FACTOR))
    if not (error > 0 and distance > 0):
        return math.nan
    # Two standard errors: near Student's quantile for as many as are needed.
    due = math.ceil((2 * error * math.sqrt(count) / distance) ** 2)
    return float(max(due, DOCUMENTS)) if due > count else math.nan


def decide(pairs: Pairs, floors: list[Pairs], found: Excess | None) -> tuple[Verdict, Reason]:
    """Decide, and say on what."""
    odd = pairs.odd.any()
    if odd:
        explained = any(one.odd.any() for one in floors)
        return (Verdict.UNDETERMINED if explained else Verdict.BEYOND), Reason.NONFINITE
    if pairs.same.all():
        return (Verdict.UNDETERMINED, Reason.CUT) if pairs.cut else (Verdict.SAME, Reason.EQUAL)
    if found is None:
        return Verdict.UNDETERMINED, Reason.NO_FLOOR
    if all(one.same.all() for one in floors):
        return Verdict.UNDETERMINED, Reason.FLOOR_ZERO
    if found.tail:
        return Verdict.BEYOND, Reason.TAIL
    if len(pairs) < LEAST_POSITIONS or found.replicates < DOCUMENTS or math.isnan(found.low):
        return Verdict.UNDETERMINED, Reason.TOO_FEW
    if found.low > found.factor:
        return Verdict.BEYOND, Reason.LEVEL
    if found.high <= found.factor:
        return (Verdict.UNDETERMINED, Reason.CUT) if pairs.cut else (Verdict.WITHIN, Reason.LEVEL)
    return Verdict.UNDETERMINED, Reason.LEVEL


def near_ties(pairs: Pairs, floors: list[Pairs]) -> int | None:
    """Count the flips whose margin in A is no more than what the repeats move margins by; None where nothing tells."""
    moved = np.concatenate([one.margin_change for one in floors]) if floors else np.array([])
    moved = moved[np.isfinite(moved)]
    flips = pairs.flip == 1
    if not moved.size or (flips.any() and np.isnan(pairs.margin[flips]).all()):
        return None
    return int((pairs.margin[flips] <= np.quantile(moved, NEAR)).sum())


def _curve(pairs: Pairs, whole: bool) -> Float | None:
    """Amplitude [sequence, step] over steps of equal length of what all sequences have; None where that is nothing."""
    distance = _distance(pairs, whole)
    known = ~np.isnan(distance)  # prompts that are masked out, and first tokens, are no steps
    if not known.any():
        return None
    distance = distance[known]
    _, sequence, lengths = np.unique(pairs.sequence[known], return_inverse=True, return_counts=True)
    inside = np.arange(len(sequence)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    size = max(1, int(lengths.min()) // STEPS)
    steps = int(lengths.min()) // size
    used = inside < steps * size
    means = _means(distance[used], (sequence * steps + inside // size)[used], len(lengths) * steps)
    return means.reshape(len(lengths), steps)


def growth(pairs: Pairs, floors: list[Pairs]) -> tuple[Plateau | None, Of]:
    """Judge whether the distance grows with the position; over the floor where that is nowhere 0.

    Returns
    -------
    tuple
        The verdict on the curve, None where nothing differs, and what it is a curve of.
    """
    whole = _is_whole(pairs, floors)
    curve = _curve(pairs, whole)
    if curve is None or not curve.max() > 0:
        return None, Of.DRIFT
    below = [_curve(one, whole) for one in floors]
    same_shape = [one for one in below if one is not None and one.shape == curve.shape]
    if same_shape and len(same_shape) == len(below):
        floor = np.mean(same_shape, axis=0)
        if (floor > 0).all():
            return plateaus([curve / floor], of=Of.EXCESS)[0], Of.EXCESS
    return plateaus([curve])[0], Of.DRIFT

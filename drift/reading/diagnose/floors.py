"""The measured floor: how far B is from A, over how far equally right ways to compute A are from A.

Per place, and per stretch of every text, the excess is the relative L2 difference of the pair over the geometric mean
of those of the floor's lanes. What a text does to rounding does it to both, so that the excess of a clean pair
scatters by a few per cent from stretch to stretch and from text to text, and a few texts decide.

B is another equally right way to compute A if the geometric mean of the excess is at most `MARGIN`: one above it, with
a lower confidence limit of `RATE` shared out among all places and all stretches that a bug could begin with, is
structural. Limits are Student's; the standard error is that over stretches, or that over texts where it is the larger.
`MARGIN` is what other kernels may do beyond the floor that was drawn; bench/bugs.py holds it against clean pairs.

Where the floor's lanes differ in their embeddings (noise of a unit roundoff, which every operation then meets), they
measure every place. Where they are repeats with other kernels, they may share early blocks' bits with A, although
another kernel would not; there only places count whose floor is `SATURATED` of that at the end of the network, since
rounding of whatever origin ends there at one level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import stdtrit

from drift.reading.diagnose.compare import Comparison
from drift.reading.diagnose.contrasts import MOST, RATE, level, stretches
from drift.reading.diagnose.tensors import Place

__all__ = ["MARGIN", "Excess", "Text", "excesses", "first_beyond", "pieces", "visible"]

MARGIN = 1.25
"""Excess that other kernels are granted."""
SATURATED = 0.5
"""Share of the last floor that a place's must reach where repeats are the floor."""
_COMMON = 0.25
"""A floor of fewer unit roundoffs has most bits in common with A."""
DISTURBED = 0.25
"""Unit roundoffs by which the embeddings of a floor's lanes differ where noise was put on them, at least."""
FEWEST = 3
"""Stretches, over all texts, from which an interval is made."""
PIECE = 32
"""Tokens of a stretch at least, where steps are long enough to be cut."""
WITHIN = 0.05
"""Chance that the upper limit of an excess lies below the truth."""


@dataclass(frozen=True)
class Text:
    """One text: its pair, and the floor's lanes, each compared with A."""

    found: Comparison
    floors: tuple[Comparison, ...]


@dataclass(frozen=True)
class Excess:
    """The excess at a place, from a stretch of the texts on.

    Attributes
    ----------
    place : Place
    start : int
        The stretch; 0 is all of the text.
    ratio, low, high : float
        Geometric mean over stretches and texts, and its limits; 0 where the pair has the same bits.
    least, most : float
        The smallest and the largest geometric mean of a text.
    floor : float
        Geometric mean of the floor, relative L2.
    trusted : bool
        Whether the floor measures all rounding here.
    smallest : float
        Relative L2 of a bug that would have been called structural; its square adds to that of the rounding.
    """

    place: Place
    start: int
    ratio: float
    low: float
    high: float
    least: float
    most: float
    floor: float
    trusted: bool
    smallest: float

    @property
    def beyond(self) -> bool:
        """Whether it is structural."""
        return self.trusted and self.low > MARGIN

    @property
    def within(self) -> bool:
        """Whether it is decided that it is not."""
        return self.high < MARGIN


def pieces(found: Comparison) -> list[tuple[int, int]]:
    """The stretches of a text: its steps, long ones cut."""
    shortest = max(PIECE, found.tokens // MOST)
    result: list[tuple[int, int]] = []
    for low, high in stretches(found):
        edges = np.linspace(low, high, max(1, (high - low) // shortest) + 1).astype(int).tolist()
        result += list(pairwise(edges))
    return result


def _cells(text: Text, place: Place, u: float) -> tuple[np.ndarray, np.ndarray]:
    """Log excess and log floor per stretch of a text.

    NaN where the pair has the same bits or was not dumped, or where a lane of the floor has so many of A's bits that it
    measures nothing.
    """
    logs: list[np.ndarray] = []
    for compared in (text.found, *text.floors):
        profile = compared.profiles.get(place)
        if profile is None:
            return np.full(len(pieces(text.found)), np.nan), np.full(len(pieces(text.found)), np.nan)
        values = np.array([level(profile, low, min(high, compared.tokens))[0] for low, high in pieces(text.found)])
        with np.errstate(divide="ignore"):
            logs.append(np.where(values > (_COMMON * u if logs else 0), np.log(values), np.nan))
    floor = np.mean(logs[1:], axis=0)
    return logs[0] - floor, floor


def _noisy(texts: Sequence[Text], u: float) -> bool:
    """Whether the embeddings of all the floor's lanes are disturbed."""
    place = Place("hidden", 0)
    for text in texts:
        for floor in text.floors:
            profile = floor.profiles.get(place)
            if profile is None or level(profile, 0, floor.tokens)[0] < DISTURBED * u:
                return False
    return True


def excesses(texts: Sequence[Text], u: float) -> list[Excess]:
    """The excess of every place that the pairs and the floors have, from every stretch on.

    Parameters
    ----------
    texts : sequence of Text
    u : float
        Unit roundoff.

    Returns
    -------
    list of Excess
        In computing order, by start within a place; without places where there are too few stretches.
    """
    places = [p for p in texts[0].found.profiles if p.kind in ("hidden", "final", "logits") and p != Place("hidden", 0)]
    table = {place: [_cells(text, place, u) for text in texts] for place in places}
    starts = max(1, min(len(pieces(text.found)) for text in texts) - FEWEST + 1)
    states = [p for p in places if p.kind != "logits"] or places
    end = _mean(table[states[-1]]) if states else math.nan
    everywhere = _noisy(texts, u)
    tests = len(places) * starts
    result = []
    for place in places:
        floor = _mean(table[place])
        trusted = everywhere or floor >= max(math.log(SATURATED) + end, math.log(u))
        for first in range(starts):
            one = _from(place, first, [cells[first:] for cells, _ in table[place]], floor, trusted, tests)
            if one is not None:
                result.append(one)
    return result


def _mean(cells: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    logs = np.concatenate([floor for _, floor in cells])
    logs = logs[np.isfinite(logs)]
    return float(logs.mean()) if logs.size else math.nan


def _from(
    place: Place, first: int, cells: Sequence[np.ndarray], floor: float, trusted: bool, tests: int
) -> Excess | None:
    """The excess from a stretch on; None where there are too few."""
    each = [text[np.isfinite(text)] for text in cells]
    each = [text for text in each if text.size]
    logs = np.concatenate(each) if each else np.zeros(0)
    if len(logs) < FEWEST:
        return None
    means = np.array([text.mean() for text in each])
    error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
    if len(means) > 1:
        error = max(error, float(means.std(ddof=1)) / math.sqrt(len(means)))
    middle, free = float(logs.mean()), len(logs) - 1
    down = float(stdtrit(free, 1 - RATE / tests)) * error
    up = float(stdtrit(free, 1 - WITHIN)) * error
    with np.errstate(over="ignore"):
        needed = float(np.exp(2 * (math.log(MARGIN) + down))) - math.exp(2 * middle)
    return Excess(
        place,
        first,
        math.exp(middle),
        math.exp(middle - down),
        float(np.exp(middle + up)),
        math.exp(float(means.min())),
        math.exp(float(means.max())),
        math.exp(floor),
        trusted,
        math.exp(floor) * math.sqrt(max(0.0, needed)),
    )


def first_beyond(texts: Sequence[Text], found: Sequence[Excess], u: float) -> tuple[Excess, int] | None:
    """The first place whose excess is structural, and the stretch from which on it is; None if there is none."""
    beyond = [one for one in found if one.beyond]
    if not beyond:
        return None
    place = beyond[0].place
    here = max((one for one in beyond if one.place == place), key=lambda one: one.low)
    count = min(len(pieces(text.found)) for text in texts)
    cells = [_cells(text, here.place, u)[0][:count] for text in texts]
    seen = np.isfinite(cells)
    mean = np.sum(np.where(seen, cells, 0.0), axis=0) / np.maximum(1, seen.sum(axis=0))
    high = np.where(seen.any(axis=0), mean, -math.inf) > math.log(MARGIN)
    for first in range(count):
        if high[first:].all():
            return here, first
    return here, here.start


def visible(found: Sequence[Excess]) -> tuple[float, float] | None:
    """How small a bug would have been seen: at the most sensitive place that counts, and at the least."""
    sizes = [one.smallest for one in found if one.trusted and one.start == 0 and math.isfinite(one.smallest)]
    return (min(sizes), max(sizes)) if sizes else None

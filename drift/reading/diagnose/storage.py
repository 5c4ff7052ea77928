"""What numbers were stored in: narrower formats, and caches that do not hold what was appended to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from drift.reading.diagnose.causes import MOST, matches, rows_of, vote
from drift.reading.diagnose.compare import Comparison, narrowest
from drift.reading.diagnose.grids import SCALED, scaled_fp8, within_a_rounding
from drift.reading.diagnose.tensors import FORMATS, Dump, Format, Place, written

__all__ = ["CacheFault", "Narrowing", "cache_faults", "narrowings"]

_COPIED = 0.99
"""Share of the last hidden states from which a lane was rounded when it was dumped, and did not compute otherwise."""
_SCALED_ALIKE = 0.9
"""Share of a cache's larger numbers that must be the appended ones to within a rounding to 8 bits."""


@dataclass(frozen=True)
class Narrowing:
    """Tensors that one lane stores in fewer bits than the other.

    Attributes
    ----------
    lane : str
        ``A`` or ``B``, or, for a cache that is narrower than what was appended, the lane whose cache it is.
    narrow, wide : Format
        What it is written in, and what the other lane (or what was appended) is.
    places : list of Place
        Where, in computing order.
    segment : int
        First segment, for the first place.
    exact : float
        Share of the numbers of the first place that are the other lane's, rounded to the narrower format; of a format
        with scales, of the larger numbers that are so to within a rounding.
    throughout : bool
        Whether all hidden states after blocks are so, and are not the other lane's, rounded: the lane computes in
        that format, which is more than storage.
    """

    lane: str
    narrow: Format
    wide: Format
    places: list[Place]
    segment: int
    exact: float
    throughout: bool = False


def narrowings(found: Comparison) -> list[Narrowing]:
    """List where the numbers of one lane fit a narrower format than those of the other."""
    table: dict[tuple[str, str, str], list[tuple[Place, int]]] = {}
    forms: dict[str, Format] = {}
    for place, profile in found.profiles.items():
        if profile.differing == 0:
            continue
        for segment, pair in enumerate(profile.formats):
            if pair is None or pair[0].bits == pair[1].bits:
                continue
            lane = "A" if pair[0].bits < pair[1].bits else "B"
            narrow, wide = sorted(pair, key=lambda form: form.bits)
            forms[narrow.name], forms[wide.name] = narrow, wide
            table.setdefault((lane, narrow.name, wide.name), []).append((place, segment))
    result = []
    for (lane, narrow_name, wide_name), where in table.items():
        narrow = forms[narrow_name]
        places = list(dict.fromkeys(p for p, _ in where))
        states = [p for p, profile in found.profiles.items() if p.kind == "hidden" and p.block and profile.differing]
        throughout = bool(states) and set(states) <= set(places)
        if throughout:
            last = max((p, segment) for p, segment in where if p == states[-1])
            throughout = _exact(found, lane, narrow, *last) < _COPIED
        exact = _exact(found, lane, narrow, *where[0])
        result.append(Narrowing(lane, narrow, forms[wide_name], places, where[0][1], exact, throughout))
    return result


def _exact(found: Comparison, lane: str, narrow: Format, place: Place, segment: int) -> float:
    """Share of a lane's numbers that are the other's, rounded."""
    start, stop = found.segments[segment]
    # Where a step's first tokens were not dumped, its others are compared.
    low, high = found.a.covered(place, start, min(stop, start + MOST))[0]
    a, b = found.a.read(place, low, high), found.b.read(place, low, high)
    fine, coarse = (a, b) if lane == "B" else (b, a)
    if narrow in SCALED.values():
        return within_a_rounding(coarse, fine, narrow)
    return float(np.mean(written(fine, narrow) == coarse))


@dataclass(frozen=True)
class CacheFault:
    """A cache that does not hold what the lane itself appended to it.

    Attributes
    ----------
    lane : str
        ``A`` or ``B``.
    place : Place
        ``cache_key`` or ``cache_value`` of a block.
    step : int
        First step after which it was so.
    start, stop : int
        Tokens whose rows are not the appended ones.
    relative : float
        Relative difference of those rows.
    shift : int or None
        If the rows are those of other tokens, by how many tokens they are off.
    length : tuple of int or None
        If the cache holds more tokens than were appended: how many, of how many.
    narrow : Format or None
        If the rows are the appended ones rounded to a narrower format: that format.
    """

    lane: str
    place: Place
    step: int
    start: int
    stop: int
    relative: float
    shift: int | None = None
    length: tuple[int, int] | None = None
    narrow: Format | None = None


def cache_faults(dump: Dump, lane: str, u: float) -> Iterator[CacheFault]:
    """Yield, per block and side, the first step after which a cache holds something else than was appended.

    A cache shorter than the text (a sliding window) is compared with the last tokens.
    """
    for place in sorted(p for p in dump.places if p.kind in ("cache_key", "cache_value")):
        own = Place(place.kind.removeprefix("cache_"), place.block)
        if own not in dump.places:
            continue
        narrowed = False
        for step in sorted(dump.places[place]):
            if step >= dump.steps:
                break
            end = dump.boundaries[step + 1]
            held = dump.cache(place, step)
            length = held.shape[-2]
            if length > end:
                yield CacheFault(lane, place, step, 0, end, float("nan"), length=(length, end))
                break
            if dump.covered(own, end - length, end) != [(end - length, end)]:
                continue
            there = dump.read(own, end - length, end)
            if there.shape != held.shape:
                break
            if np.array_equal(there, held, equal_nan=True):
                continue
            stored = {d for kind in (place, own) for d in dump.dtypes(kind)}
            narrow = min((FORMATS[d] for d in stored), key=lambda form: form.bits)
            if np.array_equal(written(there, narrow), held.astype(np.float64), equal_nan=True):
                if not narrowed and FORMATS[max(dump.dtypes(own), key=lambda d: FORMATS[d].bits)].bits > narrow.bits:
                    narrowed = True
                    yield CacheFault(lane, place, step, end - length, end, narrow.unit_roundoff, narrow=narrow)
                continue
            scaled = scaled_fp8(held, narrowest([held], dump.dtypes(place)) or narrow)
            if scaled is not None and within_a_rounding(held, there, scaled) >= _SCALED_ALIKE:
                if not narrowed:
                    narrowed = True
                    yield CacheFault(lane, place, step, end - length, end, scaled.unit_roundoff, narrow=scaled)
                continue
            is_, was = held.astype(np.float64), there.astype(np.float64)
            same = (is_ == was) | (np.isnan(is_) & np.isnan(was))
            with np.errstate(invalid="ignore", over="ignore"):
                delta = np.sqrt(np.sum(np.where(same, 0.0, is_ - was) ** 2, axis=(0, 2)))
            delta[np.isnan(delta)] = np.inf  # a number on one side only
            size = np.sqrt(np.sum(np.where(np.isfinite(was), was, 0.0) ** 2, axis=(0, 2)))
            odd = np.flatnonzero(delta > 8 * max(u, narrow.unit_roundoff) * np.maximum(size, np.median(size)))
            if not odd.size:
                continue
            start, stop = end - length + int(odd[0]), end - length + int(odd[-1]) + 1
            relative = float(np.sqrt(np.sum(delta[odd] ** 2) / max(np.sum(size[odd] ** 2), 1e-300)))
            rows = np.moveaxis(held, 0, 1).reshape(length, -1)[odd[:MOST]]
            shift = None
            if dump.covered(own, 0, dump.tokens) == [(0, dump.tokens)] and odd[-1] - odd[0] + 1 == odd.size:
                agree = matches(rows, rows_of(dump, own, 0, dump.tokens), 0.01)
                found, share = vote(agree, start)
                shift = found if share >= 0.75 else None
            yield CacheFault(lane, place, step, start, stop, relative, shift)
            break

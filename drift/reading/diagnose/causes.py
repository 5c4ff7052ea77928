"""Patterns in a difference that name its cause: rotated keys, rows from elsewhere, narrower storage, stale caches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from drift.reading.diagnose.compare import Comparison, Profile
from drift.reading.diagnose.tensors import FORMATS, Dump, Format, Place, written

__all__ = [
    "CacheFault",
    "Narrowing",
    "Rotation",
    "cache_faults",
    "centred_cosine",
    "moved_share",
    "narrowings",
    "origin",
    "rotation",
    "swollen_pair",
]

MOST = 512
"""Tokens that a pattern is looked for in."""
SOME = 4
"""Tokens that a rotation must be seen in."""
_BASES = (1e4, 5e5, 1e6, 1e5, 1.5e5, 5e6, 1e7, 8e6, 2.5e5, 5e4, 3e5, 4e6, 2e6)
_GRID = tuple(np.geomspace(1e2, 1e8, 121))


def _layouts(features: int) -> Iterator[tuple[str, int]]:
    """Yield the ways in which rotary embeddings pair features: which layout, and over how many features."""
    width = features
    while width >= 2 and width >= features // 4:
        for name in ("half-split", "interleaved"):
            yield name, width - width % 2
        width //= 2


def _pairs(layout: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of both members of each pair, fastest pair first."""
    i = np.arange(width // 2)
    return (i, i + width // 2) if layout == "half-split" else (2 * i, 2 * i + 1)


def swollen_pair(profile: Profile, segment: int) -> float:
    """Relative difference of keys in the pair of features where it is largest, over all layouts of pairs.

    A shift of positions moves the fastest pairs only; in the norm of a whole key they may be a small part.
    """
    change, size = profile.features[segment]
    largest = 0.0
    for layout, width in _layouts(len(size)):
        one, two = _pairs(layout, width)
        total, moved = size[one] + size[two], change[one] + change[two]
        # A pair of next to no energy is all cancellation.
        seen = total > 1e-4 * size.sum() / max(1, len(size) // 2)
        if seen.any():
            largest = max(largest, float(np.sqrt(np.max(moved[seen] / total[seen]))))
    return largest


def moved_share(profile: Profile, segment: int, level: float) -> float:
    """Share of the pairs of features of keys or values whose relative difference is beyond a level.

    Biases make some features of keys a hundred times larger than the others, and a norm sees only those.
    """
    change, size = profile.features[segment]
    one, two = _pairs("half-split", len(size) - len(size) % 2)
    if not len(one) or not size.any():
        return 0.0
    total = size[one] + size[two]
    return float(np.mean((change[one] + change[two] > level**2 * total) & (total > 0)))


@dataclass(frozen=True)
class Rotation:
    """Keys that differ by a rotation of their pairs of features.

    Attributes
    ----------
    layout : str
        ``half-split`` or ``interleaved``.
    width : int
        Features that are rotated, of each head.
    moved : float
        Relative difference of the pairs that moved.
    magnitude : float
        Relative difference of the magnitudes of those pairs, which a rotation leaves alone.
    angle : float
        Angle of the fastest pair in radians, if it is the same for all tokens; else NaN.
    offset : int or None
        Positions by which B is ahead of A, if one number fits all pairs.
    misfit : float
        Root mean square of what is left of the angles after that offset, in radians.
    """

    layout: str
    width: int
    moved: float
    magnitude: float
    angle: float
    offset: int | None
    misfit: float


def rotation(found: Comparison, place: Place, start: int, stop: int, bound: float) -> Rotation | None:
    """Test whether the keys of some tokens differ by nothing but a rotation of pairs.

    Parameters
    ----------
    found : Comparison
        The lanes.
    place : Place
        Keys of a block.
    start, stop : int
        Tokens.
    bound : float
        Relative difference that rounding explains.

    Returns
    -------
    Rotation or None
        None unless the magnitudes of the pairs that moved agree within rounding, and at least four times better than
        the pairs themselves (noise of any size changes both alike, to within a factor of 1.4), over all tokens and in
        three quarters of the tokens that moved, which must be `SOME` at least and a quarter of all.
    """
    stop = min(stop, start + MOST)
    if any(dump.covered(place, start, stop) != [(start, stop)] for dump in (found.a, found.b)):
        return None
    a = found.a.read(place, start, stop).astype(np.float64)
    b = found.b.read(place, start, stop).astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    best: Rotation | None = None
    lowest = math.inf
    for layout, width in _layouts(a.shape[-1]):
        one, two = _pairs(layout, width)
        za, zb = a[..., one] + 1j * a[..., two], b[..., one] + 1j * b[..., two]
        size = np.sum(np.abs(za) ** 2, axis=(0, 1))
        change = np.sum(np.abs(zb - za) ** 2, axis=(0, 1))
        stretch = np.sum((np.abs(zb) - np.abs(za)) ** 2, axis=(0, 1))
        moving = (change > bound**2 * size) & (size > 0)
        outside = np.delete(np.arange(a.shape[-1]), np.concatenate([one, two]))
        rest = float(np.linalg.norm((b - a)[..., outside])) > 2 * bound * float(np.linalg.norm(a[..., outside]))
        if not moving.any() or rest:
            continue
        here = np.abs(za[..., moving]), np.abs(zb[..., moving])
        per_token = (
            np.sum(np.abs(zb - za)[..., moving] ** 2, axis=(0, 2)),
            np.sum((here[1] - here[0]) ** 2, axis=(0, 2)),
        )
        went = per_token[0] > bound**2 * np.sum(here[0] ** 2, axis=(0, 2))
        kept = per_token[1][went] <= per_token[0][went] / 16
        if went.sum() < max(SOME, len(went) / 4) or kept.mean() < 0.75:
            continue
        moved = float(np.sqrt(change[moving].sum() / size[moving].sum()))
        magnitude = float(np.sqrt(stretch[moving].sum() / size[moving].sum()))
        if magnitude > min(moved / 4, max(bound, 1e-12)):
            continue
        # The pairs that did not move are no evidence for a layout; those that moved must all keep their magnitude.
        turned = np.sum(np.conj(za) * zb, axis=(0, 1))
        weight = np.sum(np.abs(za) * np.abs(zb), axis=(0, 1))
        coherence = np.abs(turned) / np.maximum(weight, 1e-300)
        angle, offset, misfit = float("nan"), None, float("nan")
        if np.all(coherence[moving] > 0.98):
            angles = np.angle(turned)
            angle = float(angles[0])
            offset, misfit = _offset(angles, found.tokens + 64)
        score = magnitude * (1 if offset is not None else 2)
        if score < 0.9 * lowest:
            lowest, best = score, Rotation(layout, width, moved, magnitude, angle, offset, misfit)
    return best


def _offset(angles: np.ndarray, most: int) -> tuple[int | None, float]:
    """Find the whole number of positions that explains the angles of all pairs, and what is left in radians.

    The rotary base is not known. Only the faster half of the pairs is fitted: scaled variants change the slow ones.
    """
    count = len(angles)
    used = max(1, (count + 1) // 2)
    seen = angles[:used]
    exponents = np.arange(used) / count
    deltas = np.concatenate([np.arange(1, most + 1), -np.arange(1, most + 1)])
    deltas = deltas[np.argsort(np.abs(deltas), kind="stable")]
    # The fastest pair turns by one radian per position whatever the base: most offsets fall here.
    first = np.abs(np.angle(np.exp(1j * (deltas - seen[0])))) < 0.1
    for bases in (_BASES, _GRID):
        best: tuple[float, int] | None = None
        for delta in deltas[first]:
            for base in bases:
                left = np.angle(np.exp(1j * (seen - delta * float(base) ** -exponents)))
                error = float(np.sqrt(np.mean(left**2)))
                if error < 0.05 and (best is None or error < 0.5 * best[0]):
                    best = error, int(delta)
        if best is not None:
            return best[1], best[0]
    return None, float("nan")


def _rows(dump: Dump, place: Place, start: int, stop: int) -> np.ndarray:
    """[token, everything else], float32."""
    values = dump.read(place, start, stop)
    if values.ndim == 3:
        values = np.moveaxis(values, 0, 1)
    return np.nan_to_num(values.reshape(len(values), -1).astype(np.float32), posinf=0, neginf=0)


def _matches(rows: np.ndarray, others: np.ndarray, tolerance: float) -> np.ndarray:
    """[row, other]: whether two rows agree within a relative tolerance."""
    left, right = rows.astype(np.float64), others.astype(np.float64)
    squares = np.sum(left**2, axis=1)[:, None], np.sum(right**2, axis=1)[None]
    distance = squares[0] + squares[1] - 2 * left @ right.T
    return distance <= tolerance**2 * np.minimum(*squares) + 1e-12 * np.maximum(*squares)


def _vote(agree: np.ndarray, first: int) -> tuple[int, float]:
    """The shift (never 0) by which most rows agree, and their share; agree is [row, other], rows begin at `first`."""
    rows, others = agree.shape
    best = (0, 0.0)
    for shift in range(-first - rows + 1, others - first):
        if shift == 0:
            continue
        index = np.arange(rows) + first + shift
        inside = (index >= 0) & (index < others)
        hits = np.count_nonzero(agree[np.flatnonzero(inside), index[inside]])
        if hits / rows > best[1]:
            best = (shift, hits / rows)
    return best


def origin(found: Comparison, place: Place, start: int, stop: int, tolerance: float) -> tuple[int, bool] | None:
    """Find where else in A the rows that B has for some tokens are.

    Returns
    -------
    (int, bool) or None
        Shift of the tokens, and whether B has A's rows of those tokens in turn (an exchange). None if fewer than three
        quarters of the rows are found under one shift, or as many are where they belong.
    """
    stop = min(stop, start + MOST)
    covered = found.a.covered(place, 0, found.tokens)
    if covered != [(0, found.tokens)] or found.b.covered(place, 0, found.tokens) != covered:
        return None
    tolerance = min(0.25, max(0.02, tolerance))
    everything = _rows(found.a, place, 0, found.tokens)
    rows = _rows(found.b, place, start, stop)
    agree = _matches(rows, everything, tolerance)
    at_home = np.mean(agree[np.arange(len(rows)), np.arange(start, stop)])
    shift, share = _vote(agree, start)
    if share < 0.75 or at_home >= share:
        return None
    low, high = start + shift, stop + shift
    mutual = False
    if low >= 0 and high <= found.tokens and abs(shift) >= 1:
        there = _matches(_rows(found.b, place, low, high), everything[start:stop], tolerance)
        mutual = bool(np.mean(np.diagonal(there)) >= 0.75)
    return shift, mutual


def centred_cosine(found: Comparison, place: Place, start: int, stop: int) -> float:
    """Median over tokens of the cosine between A and B, after the mean of A's tokens was taken from both.

    Keys of trained models share a large mean, which makes any two of them look alike. Rotary embeddings turn that mean
    with the position: of keys, the magnitudes of pairs are compared, in the layout that finds the smaller cosine.
    """
    stop = min(stop, start + MOST)
    low = max(0, min(start, found.tokens - MOST))
    context = found.a.covered(place, low, min(found.tokens, low + MOST))
    whole = np.concatenate([_rows(found.a, place, s, e) for s, e in context])
    rows = [_rows(dump, place, start, stop) for dump in (found.a, found.b)]
    width = found.a.shape(place)[-1]
    layouts = ["half-split", "interleaved"] if place.kind == "key" and width % 2 == 0 else [""]
    return min(_cosine(*(_magnitudes(x, width, layout) for x in (whole, *rows))) for layout in layouts)


def _magnitudes(rows: np.ndarray, width: int, layout: str) -> np.ndarray:
    if not layout:
        return rows
    heads = rows.reshape(len(rows), -1, width)
    one, two = _pairs(layout, width)
    return np.asarray(np.hypot(heads[..., one], heads[..., two]).reshape(len(rows), -1))


def _cosine(whole: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    # A feature's scale is its spread: otherwise the few that biases made large would decide alone.
    mean, scale = np.mean(whole, axis=0), np.maximum(np.std(whole, axis=0), 1e-30)
    a, b = (a - mean) / scale, (b - mean) / scale
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.median(np.sum(a * b, axis=1) / np.maximum(norms, 1e-30)))


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
        Share of the numbers of the first place that are the other lane's, rounded to the narrower format.
    """

    lane: str
    narrow: Format
    wide: Format
    places: list[Place]
    segment: int
    exact: float


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
        place, segment = where[0]
        start, stop = found.segments[segment]
        stop = min(stop, start + MOST)
        a, b = found.a.read(place, start, stop), found.b.read(place, start, stop)
        fine, coarse = (a, b) if lane == "B" else (b, a)
        exact = float(np.mean(written(fine, forms[narrow_name]) == coarse))
        places = list(dict.fromkeys(p for p, _ in where))
        result.append(Narrowing(lane, forms[narrow_name], forms[wide_name], places, segment, exact))
    return result


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
                agree = _matches(rows, _rows(dump, own, 0, dump.tokens), 0.01)
                found, share = _vote(agree, start)
                shift = found if share >= 0.75 else None
            yield CacheFault(lane, place, step, start, stop, relative, shift)
            break

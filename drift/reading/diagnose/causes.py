"""Patterns in a difference that name its cause: rotated keys, rows from elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drift.reading.diagnose.compare import Comparison, Profile
from drift.reading.diagnose.pairs import layouts, pairs
from drift.reading.diagnose.tensors import Dump, Place

__all__ = [
    "MOST",
    "SOME",
    "Rotation",
    "centred_cosine",
    "matches",
    "moved_share",
    "origin",
    "rotation",
    "rows_of",
    "swollen_pair",
    "vote",
]

MOST = 512
"""Tokens that a pattern is looked for in."""
SOME = 4
"""Tokens that a rotation must be seen in."""
_TABLE = 4
"""Roundings of an angle of a rotary table, which is a position times a frequency in fp32."""
_SINGLE = 2.0**-24
_BASES = (1e4, 5e5, 1e6, 1e5, 1.5e5, 5e6, 1e7, 8e6, 2.5e5, 5e4, 3e5, 4e6, 2e6)
_GRID = tuple(np.geomspace(1e2, 1e8, 121))


def swollen_pair(profile: Profile, segment: int) -> float:
    """Relative difference of keys in the pair of features where it is largest, over all layouts of pairs.

    A shift of positions moves the fastest pairs only; in the norm of a whole key they may be a small part.
    """
    change, size = profile.features[segment]
    largest = 0.0
    for layout, width in layouts(len(size)):
        one, two = pairs(layout, width)
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
    one, two = pairs("half-split", len(size) - len(size) % 2)
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
        None unless the angles are beyond what rotary tables round by, which grows with the position, and
        the magnitudes of the pairs that moved agree within rounding, and at least four times better than
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
    for layout, width in layouts(a.shape[-1]):
        one, two = pairs(layout, width)
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
        if magnitude > min(moved / 4, max(bound, 1e-12)) or moved <= _TABLE * (stop + 1) * _SINGLE:
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


def rows_of(dump: Dump, place: Place, start: int, stop: int) -> np.ndarray:
    """[token, everything else], float32."""
    values = dump.read(place, start, stop)
    if values.ndim == 3:
        values = np.moveaxis(values, 0, 1)
    return np.nan_to_num(values.reshape(len(values), -1).astype(np.float32), posinf=0, neginf=0)


def matches(rows: np.ndarray, others: np.ndarray, tolerance: float) -> np.ndarray:
    """[row, other]: whether two rows agree within a relative tolerance."""
    left, right = rows.astype(np.float64), others.astype(np.float64)
    squares = np.sum(left**2, axis=1)[:, None], np.sum(right**2, axis=1)[None]
    distance = squares[0] + squares[1] - 2 * left @ right.T
    return distance <= tolerance**2 * np.minimum(*squares) + 1e-12 * np.maximum(*squares)


def vote(agree: np.ndarray, first: int) -> tuple[int, float]:
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
    everything = rows_of(found.a, place, 0, found.tokens)
    rows = rows_of(found.b, place, start, stop)
    agree = matches(rows, everything, tolerance)
    at_home = np.mean(agree[np.arange(len(rows)), np.arange(start, stop)])
    shift, share = vote(agree, start)
    if share < 0.75 or at_home >= share:
        return None
    low, high = start + shift, stop + shift
    mutual = False
    if low >= 0 and high <= found.tokens and abs(shift) >= 1:
        there = matches(rows_of(found.b, place, low, high), everything[start:stop], tolerance)
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
    whole = np.concatenate([rows_of(found.a, place, s, e) for s, e in context])
    rows = [rows_of(dump, place, start, stop) for dump in (found.a, found.b)]
    width = found.a.shape(place)[-1]
    layouts = ["half-split", "interleaved"] if place.kind == "key" and width % 2 == 0 else [""]
    return min(_cosine(*(_magnitudes(x, width, layout) for x in (whole, *rows))) for layout in layouts)


def _magnitudes(rows: np.ndarray, width: int, layout: str) -> np.ndarray:
    if not layout:
        return rows
    heads = rows.reshape(len(rows), -1, width)
    one, two = pairs(layout, width)
    return np.asarray(np.hypot(heads[..., one], heads[..., two]).reshape(len(rows), -1))


def _cosine(whole: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    # A feature's scale is its spread: otherwise the few that biases made large would decide alone.
    mean, scale = np.mean(whole, axis=0), np.maximum(np.std(whole, axis=0), 1e-30)
    a, b = (a - mean) / scale, (b - mean) / scale
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.median(np.sum(a * b, axis=1) / np.maximum(norms, 1e-30)))

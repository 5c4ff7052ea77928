"""Two dumps, tensor by tensor: what every token's difference is, and what the numbers were stored in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from drift.errors import DatasetError
from drift.reading.diagnose.grids import scaled_fp8
from drift.reading.diagnose.pairs import Reordered, reordered
from drift.reading.diagnose.tensors import FORMATS, Dump, Format, Place, fits, merged

__all__ = ["ORDER", "Comparison", "Profile", "compare", "computing_order", "narrowest"]

ROWS = 256
"""Tokens that are held in memory at once."""
ENOUGH = 64
"""Numbers other than zero from which the format that they were written in is inferred."""
ORDER = {"key": 0, "value": 1, "hidden": 2, "final": 3, "logits": 4}
_CACHES = ("cache_key", "cache_value")


def computing_order(place: Place) -> tuple[int, int]:
    """Sort key: embeddings, then per block keys, values and output, then the final norm and the logits."""
    if place.kind in ("final", "logits"):
        return (1 << 30, ORDER[place.kind])
    return (place.block, ORDER[place.kind])


@dataclass
class Profile:
    """The difference at one place.

    Attributes
    ----------
    place : Place
        Where it was measured.
    difference, reference : ndarray of float64 [token]
        Norm of B - A and of A, per token over heads and features; NaN where the place was not dumped, Inf where only
        one lane is finite. Numbers that are finite in neither lane and the same count as equal here, and in `unseen`.
    scaled : ndarray of float64 [token]
        For hidden states (`final`, too): root mean square over features of (B - A) / scale, where a feature's scale
        is its median magnitude; 0 for other kinds. A few features of trained models are a thousand times larger than
        the rest and would hide them in a norm; the next normalisation's weights undo that.
    features : ndarray of float64 [segment, 2, feature]
        For keys and values: sums of squares of B - A and of A, over heads and tokens.
    heads : ndarray of float64 [2, head]
        For keys and values: sums of squares of B - A and of A.
    formats : list of (Format, Format) or None
        Per segment, the narrowest format that holds all of A's numbers, and all of B's.
    moments : (ndarray, float, int)
        For keys: sum over tokens of A [head, feature], sum of squares of A, tokens.
    differing, elements : int
        How many numbers differ, of how many.
    largest : float
        Largest difference of an element, relative to the larger of its own size and its row's root mean square.
    nonfinite : dict
        Per segment with NaN or Inf where the lanes differ in it: how many in A, how many in B.
    unseen : int
        Numbers that are NaN in both lanes, or the same Inf (but in logits, where Inf is a mask).
    """

    place: Place
    difference: np.ndarray
    reference: np.ndarray
    scaled: np.ndarray
    features: np.ndarray
    heads: np.ndarray
    formats: list[tuple[Format, Format] | None]
    moments: tuple[np.ndarray, float, int] = (np.zeros(0), 0.0, 0)
    differing: int = 0
    elements: int = 0
    largest: float = 0.0
    nonfinite: dict[int, tuple[int, int]] = field(default_factory=dict)
    unseen: int = 0

    @property
    def relative(self) -> np.ndarray:
        """[token]: the difference relative to the token's norm, or to the median token's where that is larger.

        Some tokens have states close to zero (the values of attention sinks): what they differ by matters only in
        comparison with the others.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            finite = self.reference[np.isfinite(self.reference)]
            typical = float(np.median(finite)) if finite.size else 0.0
            relative = self.difference / np.maximum(self.reference, typical)
        return np.where(self.difference == 0, 0.0, relative)

    @property
    def felt(self) -> np.ndarray:
        """[token]: the difference as what reads this tensor may feel it, the larger of `relative` and `scaled`."""
        return np.maximum(self.relative, self.scaled)

    @property
    def common(self) -> float:
        """Norm of the keys of A over the norm of their deviations from their mean, at least 1.

        Softmax takes no notice of what all keys share, but scores are computed with it: that much of their precision
        is lost. Biases make it large.
        """
        total, squares, tokens = self.moments
        if tokens < 8 or squares == 0:
            return 1.0
        spread = 1 - float(np.sum(total * total)) / (tokens * squares)
        return 1 / float(np.sqrt(min(1.0, max(spread, 1e-6))))

    def rel_l2(self, start: int, stop: int) -> float:
        """Frobenius norm of the difference over tokens, divided by that of A."""
        d, r = self.difference[start:stop], self.reference[start:stop]
        seen = np.isfinite(d) & np.isfinite(r)
        total = float(np.sqrt(np.sum(r[seen] ** 2)))
        found = float(np.sqrt(np.sum(d[seen] ** 2)))
        return found / total if total > 0 else (0.0 if found == 0 else float("inf"))


@dataclass
class Comparison:
    """Two dumps, compared.

    Attributes
    ----------
    a, b : Dump
        The lanes.
    segments : list of (int, int)
        Token ranges of the finer of both cuts.
    profiles : dict
        Per place that both dumped, in computing order.
    only : dict
        Places that only "A" or only "B" has.
    mismatched : list of str
        What could not be compared although both have it, with the reason.
    reordered : Reordered or None
        The lane whose keys were put in the other's order of features.
    """

    a: Dump
    b: Dump
    segments: list[tuple[int, int]]
    profiles: dict[Place, Profile]
    only: dict[str, list[Place]]
    mismatched: list[str]
    reordered: Reordered | None = None

    @property
    def tokens(self) -> int:
        """Tokens that both dumps have."""
        return self.segments[-1][1]

    def segment_of(self, token: int) -> int:
        """Segment that a token belongs to."""
        return int(np.searchsorted([start for start, _ in self.segments], token, side="right")) - 1

    @property
    def width(self) -> int:
        """The largest number of terms that an inner product may have, as far as can be seen: features or tokens."""
        features = [np.prod(self.a.shape(p)) for p in self.profiles if p.kind != "logits"]
        return max([self.tokens, *map(int, features)])


def narrowest(values: Sequence[np.ndarray], dtypes: set[str]) -> Format | None:
    """The narrowest format that holds all numbers; None where there are too few to tell."""
    stored = max((FORMATS[d] for d in dtypes), key=lambda form: form.bits)
    if sum(int(np.count_nonzero(v)) for v in values) < ENOUGH:
        return None
    for form in FORMATS.values():
        # Two formats of the same width differ in range only; what was stored in one was meant to be in it.
        if form.bits < stored.bits and all(fits(v, form) for v in values):
            return form
    return stored


def _norm(values: np.ndarray) -> np.ndarray:
    """Root of the sum of squares over all axes but that of tokens, which is last but one."""
    axes = tuple(i for i in range(values.ndim) if i != values.ndim - 2)
    return np.sqrt(np.sum(values * values, axis=axes))


def _piece(profile: Profile, segment: int, low: int, high: int, left: np.ndarray, right: np.ndarray) -> None:
    """Enter a stretch of tokens into a profile."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    bad_a, bad_b = ~np.isfinite(a), ~np.isfinite(b)
    if bad_a.any() or bad_b.any():
        # Masked logits are infinite by intent, and then equal is equal.
        profile.unseen += int(np.count_nonzero(same & (np.isnan(a) if profile.place.kind == "logits" else bad_a)))
        odd = ~same & (bad_a | bad_b)
        if odd.any():
            was = profile.nonfinite.get(segment, (0, 0))
            profile.nonfinite[segment] = (was[0] + int((odd & bad_a).sum()), was[1] + int((odd & bad_b).sum()))
        a, b = np.where(bad_a, 0.0, a), np.where(bad_b, 0.0, b)
    delta = np.where(same, 0.0, b - a)
    axes = tuple(i for i in range(a.ndim) if i != a.ndim - 2)
    difference, reference = _norm(delta), _norm(a)
    if bad_a.any() or bad_b.any():
        one = np.any(~same & (bad_a | bad_b), axis=axes)
        difference = np.where(one, np.inf, difference)
    profile.difference[low:high] = difference
    profile.reference[low:high] = reference
    profile.differing += int(np.count_nonzero(~same))
    profile.elements += a.size
    count = a.size // (high - low)
    floor = np.expand_dims(reference / np.sqrt(count), axes)
    scale = np.maximum(np.abs(a), floor)
    with np.errstate(invalid="ignore", divide="ignore"):
        profile.largest = max(profile.largest, float(np.nanmax(np.where(delta == 0, 0.0, np.abs(delta) / scale))))
    if profile.place.kind in ("hidden", "final") and high - low >= 8:
        usual = np.median(np.abs(a), axis=0)
        usual = np.maximum(usual, 1e-3 * np.sqrt(np.mean(usual**2)))
        if usual.all():
            profile.scaled[low:high] = np.sqrt(np.mean((delta / usual) ** 2, axis=1))
    if a.ndim == 3:
        profile.heads += np.stack([np.sum(delta * delta, axis=(1, 2)), np.sum(a * a, axis=(1, 2))])
        total, squares, tokens = profile.moments
        profile.moments = total + np.sum(a, axis=1), squares + float(np.sum(a * a)), tokens + a.shape[1]
        if profile.place.kind in ("key", "value"):
            profile.features[segment] += np.stack([np.sum(delta * delta, axis=(0, 1)), np.sum(a * a, axis=(0, 1))])


def profile_of(a: Dump, b: Dump, place: Place, segments: Sequence[tuple[int, int]]) -> Profile:
    """Compare one place of two dumps of the same shape."""
    tokens, shape = segments[-1][1], a.shape(place)
    profile = Profile(
        place,
        np.full(tokens, np.nan),
        np.full(tokens, np.nan),
        np.zeros(tokens),
        np.zeros((len(segments), 2, shape[-1] if len(shape) == 2 else 0)),
        np.zeros((2, shape[0] if len(shape) == 2 else 0)),
        [None] * len(segments),
        (np.zeros(shape if len(shape) == 2 else 0), 0.0, 0),
    )
    dtypes = a.dtypes(place), b.dtypes(place)
    for index, (start, stop) in enumerate(segments):
        kept: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for low, high in _common(a.covered(place, start, stop), b.covered(place, start, stop)):
            for first in range(low, high, ROWS):
                last = min(first + ROWS, high)
                left, right = a.read(place, first, last), b.read(place, first, last)
                _piece(profile, index, first, last, left, right)
                if place.kind != "logits":
                    kept[0].append(left)
                    kept[1].append(right)
        if place.kind != "logits" and kept[0]:
            one, two = narrowest(kept[0], dtypes[0]), narrowest(kept[1], dtypes[1])
            if one is not None and two is not None:
                differs = bool(np.any(np.nan_to_num(profile.difference[start:stop], nan=0.0)))
                if differs and place.kind in ("key", "value"):
                    one = scaled_fp8(np.concatenate(kept[0], axis=-2), one) or one
                    two = scaled_fp8(np.concatenate(kept[1], axis=-2), two) or two
                profile.formats[index] = (one, two)
    return profile


def _common(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intersect two lists of ranges."""
    found = [(max(s, t), min(e, f)) for s, e in a for t, f in b]
    return sorted((s, e) for s, e in found if s < e)


def compare(a: Dump, b: Dump) -> Comparison:
    """Compare two dumps, one pair of tensors at a time.

    Raises
    ------
    DatasetError
        If they have nothing in common that could be compared.
    """
    segments = list(merged(a, b))
    order = reordered(a, b)
    if order is not None:
        a, b = (replace(x, neighbours=order.width) if order.lane == lane else x for lane, x in (("A", a), ("B", b)))
    theirs = [{p for p in dump.places if p.kind not in _CACHES} for dump in (a, b)]
    only = {
        "A": sorted(theirs[0] - theirs[1], key=computing_order),
        "B": sorted(theirs[1] - theirs[0], key=computing_order),
    }
    profiles: dict[Place, Profile] = {}
    mismatched: list[str] = []
    for place in sorted(theirs[0] & theirs[1], key=computing_order):
        shapes = a.shape(place), b.shape(place)
        if shapes[0] != shapes[1]:
            axes = "[feature]" if len(shapes[0]) == 1 else "[head, feature]"
            hint = ""
            if len(shapes[0]) == 2 and shapes[0][1] == shapes[1][1]:
                hint = "; one lane's heads look repeated for grouped queries: dump what the cache holds"
            mismatched.append(f"{place}: {axes} is {list(shapes[0])} in A and {list(shapes[1])} in B{hint}")
            continue
        found = profile_of(a, b, place, segments)
        if found.elements:
            profiles[place] = found
        else:
            mismatched.append(f"{place}: the lanes dumped it for different tokens")
    if not profiles:
        reason = f" {mismatched[0]}." if mismatched else ""
        raise DatasetError(
            f"{a.folder} and {b.folder} have no tensor in common that could be compared.{reason} "
            "docs/diagnose.md has the naming scheme."
        )
    return Comparison(a, b, segments, profiles, only, mismatched, order)

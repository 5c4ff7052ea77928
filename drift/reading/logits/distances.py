"""Two stacks of distributions: how far apart, position by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import xlog1py

from drift.reading.logits.lanes import NO_TOKEN, Rows
from drift.reading.statistics.arrays import Bool, Float

__all__ = ["Distances", "distances", "log_softmax"]

#: Numbers that are looked at in one go: what a processor's cache holds.
_BLOCK = 1 << 17
#: Below this a series is nearer to the truth than the difference of two functions.
_SMALL = 1e-3


@dataclass
class Distances:
    """What is known of each position; every field is [position].

    Attributes
    ----------
    kl, js : float64
        KL(A||B) and Jensen-Shannon divergence, nats; NaN where a row is not finite.
    chosen_a, chosen_b : float64
        Log-probability of the token that follows; NaN where none is known.
    flip : float64
        1 where the likeliest tokens differ, 0 where not; NaN where either is not known.
    margin : float64
        Of A's likeliest token over B's likeliest at a flip, elsewhere over A's second, in A; nats.
    margin_change : float64
        How much B moves the distance of A's two likeliest tokens; nats, at least 0.
    same : bool
        Whether all numbers are equal.
    bad_a, bad_b : bool
        Whether a lane has NaN or infinities that no distribution has, or says impossible where the other does not.
    """

    kl: Float
    js: Float
    chosen_a: Float
    chosen_b: Float
    flip: Float
    margin: Float
    margin_change: Float
    same: Bool
    bad_a: Bool
    bad_b: Bool

    @classmethod
    def unknown(cls, positions: int) -> Distances:
        """Nothing is known yet of so many positions."""
        kl, js, chosen_a, chosen_b, flip, margin, moved = (np.full(positions, np.nan) for _ in range(7))
        bad_a, bad_b = (np.zeros(positions, dtype=bool) for _ in range(2))
        same = np.ones(positions, dtype=bool)
        return cls(kl, js, chosen_a, chosen_b, flip, margin, moved, same, bad_a, bad_b)


def log_softmax(values: Float) -> Float:
    """Log-probabilities of logits [position, token], or of log-probabilities; NaN where a row has no distribution."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = values - values.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _kl_terms(p: Float, q: Float, change: Float) -> Float:
    """Terms p (exp(d) - 1 - d) of KL(p||q): at least 0 each, so that nothing cancels; `change` is d = log(q / p)."""
    with np.errstate(invalid="ignore", over="ignore"):
        curve = change * change * (1 / 2 + change * (1 / 6 + change * (1 / 24 + change / 120)))
        large = np.abs(change) >= _SMALL
        far = change[large]
        curve[large] = np.expm1(far) - far
        curve *= p
    impossible = p == 0
    if impossible.any():
        curve[impossible] = q[impossible]
    return curve


def _js_terms(p: Float, q: Float) -> Float:
    """Terms of the Jensen-Shannon divergence: at least 0 each."""
    total = p + q
    x = np.divide(q - p, total, out=np.zeros_like(total), where=total > 0)
    square = x * x
    curve = square * (1 + square * (1 / 6 + square / 15))
    large = np.abs(x) >= _SMALL
    far = x[large]
    curve[large] = xlog1py(1 - far, -far) + xlog1py(1 + far, far)
    curve *= total
    return curve / 4


def _of_tokens(values: Float, tokens: np.ndarray | None) -> Float:
    """Log-probabilities of one token per position; NaN where none is known."""
    if tokens is None:
        return np.full(len(values), np.nan)
    return np.where(tokens > NO_TOKEN, values[np.arange(len(values)), np.maximum(tokens, 0)], np.nan)


def _fill(found: Distances, part: slice, a: Float, b: Float) -> None:
    """Reduce one block of log-probabilities [position, token]."""
    rows = np.arange(len(a))
    p, q = np.exp(a), np.exp(b)
    with np.errstate(invalid="ignore"):
        change = np.where((p > 0) | (q > 0), b - a, 0.0)
    found.kl[part] = _kl_terms(p, q, change).sum(axis=1)
    found.js[part] = _js_terms(p, q).sum(axis=1)
    one_sided = np.isneginf(a) != np.isneginf(b)
    found.bad_a[part] |= (one_sided & np.isneginf(a)).any(axis=1)
    found.bad_b[part] |= (one_sided & np.isneginf(b)).any(axis=1)
    top_a, top_b = a.argmax(axis=1), b.argmax(axis=1)
    flip = top_a != top_b
    found.flip[part] = flip
    if a.shape[1] < 2:
        return
    rest = a.copy()
    rest[rows, top_a] = -np.inf
    second = rest.argmax(axis=1)
    with np.errstate(invalid="ignore"):
        gap_a, gap_b = (x[rows, top_a] - x[rows, second] for x in (a, b))
        found.margin[part] = np.where(flip, a[rows, top_a] - a[rows, top_b], gap_a)
        found.margin_change[part] = np.abs(gap_a - gap_b)


def distances(a: Rows, b: Rows, positions: int, tokens: np.ndarray | None) -> Distances:
    """Compare whole distributions.

    Parameters
    ----------
    a, b : Rows
        Of the same vocabulary.
    positions : int
        How many are compared.
    tokens : ndarray of int64 [position], or None
        What each position predicts.

    Notes
    -----
    Where a file cannot hold the least likely tokens, both distributions are taken over what both files hold, and
    made to sum to 1 there.
    """
    found = Distances.unknown(positions)
    step = max(1, _BLOCK // a.vocabulary)
    for start in range(0, positions, step):
        part = slice(start, min(start + step, positions))
        mine, other = a.block(part.start, part.stop), b.block(part.start, part.stop)
        found.same[part] = ((mine == other) | (np.isnan(mine) & np.isnan(other))).all(axis=1)
        those = None if tokens is None else tokens[part]
        # Over all that each lane has, whatever the other lacks.
        own = log_softmax(mine), log_softmax(other)
        found.chosen_a[part], found.chosen_b[part] = (_of_tokens(values, those) for values in own)
        if a.partial or b.partial:
            held = ~(np.isneginf(mine) | np.isneginf(other))
            mine, other = np.where(held, mine, -np.inf), np.where(held, other, -np.inf)
            own = log_softmax(mine), log_softmax(other)
        for values, bad in ((mine, found.bad_a), (other, found.bad_b)):
            largest = values.max(axis=1)  # NaN where there is any
            bad[part] = ~np.isfinite(largest)
        whole = ~(found.bad_a[part] | found.bad_b[part])
        if whole.all():
            _fill(found, part, *own)
        elif whole.any():
            _fill_some(found, np.flatnonzero(whole) + start, own[0][whole], own[1][whole])
    return found


def _fill_some(found: Distances, where: np.ndarray, a: Float, b: Float) -> None:
    """Reduce those rows of a block that have a distribution."""
    good = Distances.unknown(len(where))
    _fill(good, slice(None), a, b)
    for name in ("kl", "js", "flip", "margin", "margin_change", "bad_a", "bad_b"):
        getattr(found, name)[where] = getattr(good, name)

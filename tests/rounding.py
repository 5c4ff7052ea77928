"""What rounding can do at most: the bounds that tolerances of the tests are made of.

A tolerance stands for one of four things, and each one in the tests says for which:

*Rounding, as a bound.* Two ways to compute one number from the same input, in float64 or float32. The bounds below are
the classical ones (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., chapters 2 to 4): they hold for
additions in any order, with fused multiplications or without, and so for every kernel of every processor.

*Rounding, as measured here.* How much a model magnifies roundings has no useful bound. What is compared is then the
rounding of full attention on the same machine, against float64: see :func:`times` and :func:`apart`.

*Chance.* Figures of drawn samples: standard errors and quantiles of the distribution that was drawn from.

*Two explanations that lie far apart.* Whether float64 was computed in float64 or in float32 inside, whether two lanes
differ by rounding or by what they compute: the border is the geometric mean of the two, see :data:`WIDE`.

`pytest.approx` without a tolerance allows 1e-6 of the number, nine billion times the unit roundoff of float64: enough
for a million float64 operations with a condition of thousands. It stands where a formula is checked by another formula
and every difference that matters is far larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

__all__ = ["U16", "U32", "U64", "WIDE", "Divergences", "apart", "divergences", "gamma", "linear", "norms", "times"]

Float = NDArray[np.float64]

#: Unit roundoffs: of bfloat16, float32, float64.
U16, U32, U64 = 2.0**-8, 2.0**-24, 2.0**-53
#: Between what float64 leaves and what any rounding to float32 inside a pass would: 2.6e-12, four decades from either.
WIDE = math.sqrt(U32 * U64)
#: What was left out of a first-order bound: products of errors that are below 1e-3 each.
_SECOND = 1.01


def gamma(n: float, u: float = U64) -> float:
    """Largest relative error of a product of n factors 1 + d or 1 / (1 + d), |d| <= u (Higham, lemma 3.1).

    The sum of n products in any order is off by this share of the sum of their magnitudes at most.
    """
    return n * u / (1 - n * u)


def norms(n: int) -> float:
    """Relative difference of two float64 values of the quotient of two norms of n numbers.

    A sum of n squares has the relative error gamma(n), and its root half of that; root, root and quotient add three.
    """
    return 2 * gamma(n + 3)


def linear(n: int, size: float, weight: float = 1.0) -> float:
    """Difference of two float64 values of a linear function of n numbers.

    A mean has weights whose magnitudes add up to 1. The weights of a least-squares slope over n points in a row add up
    to less than 2 / (x[-1] - x[0]) x 1.5, and are computed with some n roundings themselves.

    Parameters
    ----------
    n : int
    size : float
        Largest magnitude of the numbers; logarithms that are computed first are off by the rounding of these.
    weight : float
        Sum of the magnitudes of the weights.
    """
    return 2 * gamma(2 * n + 8) * size * weight


def times(terms: int, chance: float = 1e-6) -> float:
    """How much larger than one norm of rounding errors another of the same make is by no more than this chance.

    Both are roots of sums of at least `terms` independent squares; their squared quotient then has the F distribution
    or a narrower one. Of a step, every token has roundings of its own.
    """
    return math.sqrt(float(scipy.stats.f.ppf(1 - chance, terms, terms)))


def apart(level: Float | float, full: Float | float, fold: Float | float) -> Float | float:
    """How far a drift can be from the same drift in float64, by the triangle inequality.

    With F and C the states of full attention and of the fold, and F64 and C64 those in float64, | |C - F| / |F| -
    |C64 - F64| / |F64| | is at most (q + r) (1 + level) / (1 - r).

    Parameters
    ----------
    level
        |C64 - F64| / |F64|.
    full, fold
        r = |F - F64| / |F64| and q = |C - C64| / |C64|, as measured on this machine.
    """
    return (full + fold) * (1 + level) / (1 - full)


@dataclass(frozen=True)
class Divergences:
    """Largest absolute errors of what a comparison of logits gives, each [row]."""

    kl: Float
    js: Float
    nll_full: Float
    nll_fold: Float
    delta_p: Float


class _Rows:
    """Running error analysis of a comparison of logits, to first order."""

    def __init__(self, reference: Float, other: Float, u: float) -> None:
        self.u, self.n = u, reference.shape[1]
        top = reference.max(1, keepdims=True)
        x, self.d = reference - top, other - reference
        log_p, log_q = log_softmax(reference, axis=1), log_softmax(other, axis=1)
        self.log_p, self.log_q, self.p, self.q = log_p, log_q, np.exp(log_p), np.exp(log_q)
        log_total = logsumexp(x, axis=1, keepdims=True)
        mean = (self.p * self.d).sum(1, keepdims=True)
        self.w = log_q - log_p
        self.kl = -(self.p * self.w).sum(1, keepdims=True)
        self.v = self.w + self.kl
        # p: x is rounded before the exponential, the total has the same errors on average, and there are two more.
        self.spread = (self.p * np.abs(x)).sum(1, keepdims=True)
        self.e_p = u * (np.abs(x) + self.spread + 6)
        # v = d - mean: one part of the error is the same for all tokens, one each token's own.
        self.e_mean = (self.p * np.abs(self.d) * (self.e_p + 2 * u + self.n * U64)).sum(1, keepdims=True)
        self.shared = self.e_mean + u * np.abs(mean)
        self.own = u * (np.abs(self.d) + np.abs(self.v))
        # p e^v where the series does not serve: log p is a difference of rounded numbers, and v is added to it.
        self.e_q = u * (np.abs(log_total) + np.abs(top + log_total) + np.abs(log_p) + np.abs(log_p + self.v) + 2)

    def expectation(self, v: Float, shared: Float, f: Float, slope: Float, tail: float, far: Float) -> Float:
        """Error of the sum of p f(v): of v, of p, of Horner's scheme of eight terms, of the formula elsewhere."""
        near = self.p * (f * (self.e_p + 35 * self.u) + tail * np.abs(v) ** 10)
        pull = self.p * np.abs(slope)
        terms = pull * self.own + np.where(np.abs(v) < 0.5, near, far) + self.n * U64 * self.p * f
        return terms.sum(1, keepdims=True) + shared * pull.sum(1, keepdims=True)

    def e_kl(self) -> Float:
        """Error of KL = log1p(sum p (e^v - 1 - v))."""
        p, v, u = self.p, self.v, self.u
        slope = np.expm1(v)
        f = np.maximum(slope - v, 0)
        raised = p * np.exp(v)
        far = raised * self.e_q + p * np.abs(1 + v) * self.e_p + u * (np.abs(raised - p) + p * np.abs(v) + p * f)
        # The next term of the series is v^10 / 10!, and those after it add less than a twentieth.
        return self.expectation(v, self.shared, f, slope, 2.9e-7, far) / np.exp(self.kl)

    def e_js(self, e_kl: Float) -> Float:
        """Error of JS = sum p (w e^w - (1 + e^w) log((1 + e^w) / 2)) / 2, where w = v - KL."""
        p, q, w, u = self.p, self.q, self.w, self.u
        soft = np.logaddexp(0, w)
        half = soft - math.log(2)
        f = np.maximum((q * w - (p + q) * half) / 2 / p, 0)
        rounded = u * (q * np.abs(w) + 3 * (p + q) * np.abs(half) + 4 * (p + q) * soft + 2 * p * f)
        far = (q * np.abs(w - half) * self.e_q + p * np.abs(half) * self.e_p + rounded) / 2
        # Coefficients of orders 10 to 12 of the series are -2.6e-8, 9.5e-8 and 7.9e-9.
        return self.expectation(w, self.shared + e_kl + u * self.kl, f, q * (w - half) / 2 / p, 8e-8, far)

    def oracles(self) -> tuple[Float, Float]:
        """Errors of KL and JS as sums of p log(p / q) in float64: terms of either sign, of a few roundings each."""
        mixed = math.log(2) - np.logaddexp(0, np.stack([self.w, -self.w]))  # log of p, or q, over their mean
        kl = self.p * (np.abs(self.log_p) + np.abs(self.log_q))
        js = self.p * np.abs(mixed[0]) + self.q * np.abs(mixed[1]) + self.p + self.q
        return (self.n + 16) * U64 * kl.sum(1), (self.n + 16) * U64 * js.sum(1)


def divergences(
    reference: Float, other: Float, targets: NDArray[np.int64], u: float, *, oracle: bool = True
) -> Divergences:
    """Bound the errors of comparing logits elementwise in a format of unit roundoff u, with sums in float64.

    The formulas are those of :mod:`drift.running.measures`. Every elementary operation is off by u, an exponential by
    2 u (one unit in the last place).

    Parameters
    ----------
    reference, other : ndarray
        float64 [row, vocabulary], numbers of the format.
    targets : ndarray
        int64 [row].
    u : float
        Unit roundoff of the format.
    oracle : bool
        Add the errors of what the divergences are compared with: sums of p log(p / q) in float64.
    """
    rows = _Rows(reference, other, u)
    e_kl = rows.e_kl()
    kl, js = e_kl[:, 0], rows.e_js(e_kl)[:, 0]
    if oracle:
        kl, js = (own + theirs for own, theirs in zip((kl, js), rows.oracles(), strict=True))
    place = np.arange(len(targets)), np.maximum(targets, 0)
    e_full = u * (rows.spread[:, 0] + 2) + (rows.n + 8) * U64 * (1 + np.abs(rows.log_p[place]))
    e_target = u * np.abs(rows.d[place]) + rows.e_mean[:, 0] + e_kl[:, 0]
    p, q = rows.p[place], rows.q[place]
    e_delta = np.abs(q - p) * e_full + q * e_target + 4 * U64 * (p + q)
    return Divergences(*(_SECOND * e for e in (kl, js, e_full, e_full + e_target, e_delta)))

"""Intervals of shares and of their differences: against published examples, SciPy, and the likelihood itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from drift.reading.statistics.proportions import (
    Pairs,
    clopper_pearson,
    cluster_difference,
    difference_of_shares,
    effective_share,
    mcnemar,
    paired_pairs,
    tango,
    tango_p,
    wilson,
)


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (0, 12), (12, 12), (3, 7), (151, 152), (152, 152)])
@pytest.mark.parametrize("alpha", [0.05, 0.025])
def test_exact_intervals_are_scipys(hits: int, trials: int, alpha: float) -> None:
    found = clopper_pearson(hits, trials, alpha)
    want = stats.binomtest(hits, trials).proportion_ci(1 - 2 * alpha, "exact")
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-12)
    want = stats.binomtest(hits, trials).proportion_ci(1 - 2 * alpha, "wilson")
    assert wilson(hits, trials, alpha) == pytest.approx((want.low, want.high), abs=1e-12)
    for bound in (0.05, 0.5, 0.95):
        below = stats.binomtest(hits, trials, bound, "less").pvalue
        above = stats.binomtest(hits, trials, bound, "greater").pvalue
        assert (found.p_below(bound), found.p_above(bound)) == pytest.approx((below, above), abs=1e-12)


def test_four_of_four_is_compatible_with_two_fifths() -> None:
    """As docs/tasks.md has it."""
    assert clopper_pearson(4, 4, 0.025).low == pytest.approx(0.40, abs=0.005)


# Published: Bentur et al. (2009), airway hyper-responsiveness before and after stem cell transplantation, as worked out
# by Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014): 1, 1, 7, 12.
AIRWAYS = Pairs(first=1, second=7, pairs=21)


def test_tangos_interval_and_mcnemars_test_are_the_published_ones() -> None:
    found = tango(AIRWAYS, 0.025)
    assert found.value == pytest.approx(6 / 21)
    assert (found.low, found.high) == pytest.approx((0.026, 0.517), abs=5e-4)
    assert mcnemar(AIRWAYS) == pytest.approx(0.0703, abs=5e-5)


def test_newcombes_interval_is_the_published_one() -> None:
    """His example (Statistics in Medicine 17, 1998, table II, method 10): 56 of 70 against 48 of 80."""
    found = difference_of_shares(clopper_pearson(56, 70), clopper_pearson(48, 80), 0.025)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def likeliest(pairs: Pairs, delta: float) -> float:
    """Tango's statistic by maximising the likelihood of the table numerically under the difference `delta`."""
    b, c, n = pairs.second, pairs.first, pairs.pairs
    rest = n - b - c

    def minus(q: float) -> float:
        shares = (q + delta, q, 1 - 2 * q - delta)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in zip((b, c, rest), shares, strict=True))

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = optimize.minimize_scalar(minus, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))


@pytest.mark.parametrize("pairs", [AIRWAYS, Pairs(2, 0, 40), Pairs(5, 5, 30), Pairs(0, 9, 12), Pairs(40, 20, 160)])
def test_tangos_interval_ends_where_the_score_test_just_rejects(pairs: Pairs) -> None:
    found = tango(pairs, 0.05)
    z = stats.norm.isf(0.05)
    assert likeliest(pairs, found.low) == pytest.approx(z, abs=1e-4)
    assert likeliest(pairs, found.high) == pytest.approx(-z, abs=1e-4)
    for delta in (-0.05, 0.05):
        below, above = tango_p(pairs, delta)
        assert below == pytest.approx(stats.norm.cdf(likeliest(pairs, delta)), abs=1e-4)
        assert below + above == pytest.approx(1)
        assert (below < 0.05) == (found.high < delta)
        assert (above < 0.05) == (found.low > delta)


def test_pairs_that_all_agree_have_a_closed_form() -> None:
    z2 = stats.norm.isf(0.05) ** 2
    found = tango(Pairs(0, 0, 152))
    assert (found.low, found.high) == pytest.approx((-z2 / (152 + z2), z2 / (152 + z2)), abs=1e-9)
    assert mcnemar(Pairs(0, 0, 152)) == 1


def test_pairs_that_all_disagree_reach_the_edge() -> None:
    assert tango(Pairs(0, 10, 10)).high == 1
    assert tango(Pairs(10, 0, 10)).low == -1
    assert math.isnan(tango(Pairs(0, 0, 0)).value)


def test_the_order_of_the_lanes_only_turns_the_sign() -> None:
    one, other = tango(Pairs(2, 9, 60)), tango(Pairs(9, 2, 60))
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-9)


def test_mcnemar_is_the_binomial_test() -> None:
    for b, c in itertools.product(range(6), range(6)):
        want = stats.binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar(Pairs(float(b), float(c), 30.0)) == pytest.approx(want, abs=1e-12)


def test_pairs_are_counted() -> None:
    assert paired_pairs([1, 1, 0, 0, 1], [1, 0, 1, 1, 0]) == Pairs(2, 2, 5)


def test_clusters_count_as_many_trials_as_they_say() -> None:
    same = effective_share(np.ones((8, 4)))
    assert (same.hits, same.trials) == (8, 8)
    alike = effective_share([[1] * 4] * 3 + [[0] * 4] * 5)  # questions of a text are all right or all wrong
    assert alike.value == pytest.approx(3 / 8)
    assert alike.trials == 8
    spread = effective_share([[1, 0, 1, 0]] * 4 + [[0, 1, 1, 0]] * 4)
    assert (spread.value, spread.trials) == (0.5, 8)
    draw = np.random.default_rng(1)
    independent = effective_share(draw.random((400, 4)) < 0.3)
    assert independent.trials > 1100
    alone = effective_share([[1], [0], [1]])
    assert (alone.hits, alone.trials) == (2, 3)


def test_differences_by_cluster_are_students() -> None:
    first, second = np.zeros((5, 2)), np.array([[0.1, 0.3], [0.2, 0.2], [-0.1, 0.1], [0.4, 0.0], [0.0, 0.1]])
    found = cluster_difference(first, second)
    want = stats.ttest_1samp(second.mean(1), 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((want.low, want.high))


def test_intervals_cover() -> None:
    """Over all tables of a small size, weighed by what is likely: at least about as often as they say."""
    n, p, q = 20, 0.15, 0.10
    covered = 0.0
    for b, c in itertools.product(range(n + 1), range(n + 1)):
        if b + c > n:
            continue
        weight = stats.multinomial.pmf([b, c, n - b - c], n, [p, q, 1 - p - q])
        if weight > 1e-7:
            found = tango(Pairs(c, b, n), 0.05)
            covered += weight * (found.low <= p - q <= found.high)
    assert covered > 0.88

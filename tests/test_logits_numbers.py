"""The numbers of drift.logits, against closed forms, SciPy and each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from logits_tools import drawn, followed, moved, softmax, tokens_of

import drift
from drift.reading.logits import numbers
from drift.reading.logits.model import LogitComparison, Quantity, Verdict
from drift.reading.statistics.intervals import mean_interval

EPS = np.finfo(float).eps
RESAMPLES = numbers.RESAMPLES


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals are not what most of these tests are about."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(numbers, "RESAMPLES", 30)
        yield


def value(found: LogitComparison, name: str) -> float:
    return found.numbers[Quantity(name)].value


def test_divergences_are_those_of_scipy() -> None:
    a, b = drawn(seed=1), drawn(seed=2)
    p, q = np.exp(softmax(a)), np.exp(softmax(b))
    found = drift.compare_logits(a, b)
    m = (p + q) / 2
    kl = scipy.special.rel_entr(p, q).sum(-1)
    js = (scipy.special.rel_entr(p, m).sum(-1) + scipy.special.rel_entr(q, m).sum(-1)) / 2
    # Sums of a dozen terms of at most the size of the whole.
    np.testing.assert_allclose(found.pairs.kl, kl.ravel(), rtol=1e3 * EPS)
    np.testing.assert_allclose(found.pairs.js, js.ravel(), rtol=1e3 * EPS)
    assert value(found, "kl_mean") == pytest.approx(kl.mean())
    assert value(found, "kl_median") == pytest.approx(np.median(kl))
    assert value(found, "kl_99") == pytest.approx(np.quantile(kl, 0.99))
    assert value(found, "kl_max") == pytest.approx(kl.max())
    assert value(found, "js_99") == pytest.approx(np.quantile(js, 0.99))


def test_small_divergences_have_their_closed_form() -> None:
    """Two tokens, the one e times as likely as before: KL and JS to their leading order, where differences cancel."""
    for e in (1e-6, 1e-9, 1e-12):
        p = 0.3
        a = np.log([[p, 1 - p]])
        b = a + np.array([[e, 0.0]])
        found = drift.compare_logits(a, b)
        # Fisher information of a Bernoulli in its logit, p (1 - p): KL = e^2 p (1 - p) / 2, JS a quarter of it.
        expected = (b[0, 0] - a[0, 0]) ** 2 * p * (1 - p) / 2
        # log_softmax rounds the change by a few eps of log-probabilities of size 1.
        assert found.pairs.kl[0] == pytest.approx(expected, rel=8 * EPS / e + 2 * e)
        assert found.pairs.js[0] == pytest.approx(expected / 4, rel=8 * EPS / e + 2 * e)


def test_the_numbers_of_ratios_have_their_closed_forms() -> None:
    """Half of the tokens e^0.3 times as likely, half e^-0.1 times."""
    change = np.array([[0.3, -0.1] * 8] * 5)
    a = -np.ones_like(change)
    found = drift.compare_logprobs(a, a + change, clip=(0.8, 1.2))
    up, down = math.exp(0.3), math.exp(-0.1)
    expected = {
        "logprob_change_mean": 0.1,
        "logprob_change_abs_mean": 0.2,
        "logprob_change_rms": math.sqrt((0.09 + 0.01) / 2),
        "logprob_change_abs_max": 0.3,
        "ratio_mean": (up + down) / 2,
        "ratio_median": (up + down) / 2,
        "ratio_min": down,
        "ratio_max": up,
        "ratio_outside_band": 0.5,  # e^-0.1 = 0.905
        "ratio_outside_clip": 0.5,
        "k1": -0.1,
        "k2": (0.09 + 0.01) / 4,
        "k3": ((up - 1 - 0.3) + (down - 1 + 0.1)) / 2,
        "effective_sample_share": (up + down) ** 2 / (2 * (up**2 + down**2)),
        "ppl_a": math.e,
        "ppl_b": math.exp(0.9),
        "ppl_ratio": math.exp(-0.1),
        "p_change_rms": math.exp(-1) * math.sqrt(((up - 1) ** 2 + (down - 1) ** 2) / 2),
    }
    for name, due in expected.items():
        assert value(found, name) == pytest.approx(due, rel=1e-12), name


def test_ratios_of_sequences_are_products() -> None:
    change = np.array([[0.1, 0.2, 0.0], [-0.3, 0.0, 0.1], [0.0, 0.0, 0.0], [0.5, -0.5, 0.2]])
    a = -np.ones_like(change)
    found = drift.compare_logprobs(a, a + change, units="sequence")
    weights = np.exp(change.sum(axis=1))
    assert value(found, "ratio_mean") == pytest.approx(weights.mean())
    assert value(found, "effective_sample_share") == pytest.approx(weights.sum() ** 2 / (weights**2).sum() / 4)
    assert value(found, "k1") == pytest.approx(-change.sum(axis=1).mean())
    assert value(found, "logprob_change_abs_max") == pytest.approx(0.5)  # of tokens, as ever


def test_weights_of_long_sequences_do_not_overflow() -> None:
    a = np.full((6, 400), -5.0)
    b = a + np.where(np.arange(6) == 0, 3.0, 2.0)[:, None]  # e^1200 and e^800
    found = drift.compare_logprobs(a, b, units="sequence")
    assert value(found, "effective_sample_share") == pytest.approx(1 / 6)
    assert value(found, "ratio_mean") == math.inf


def test_estimates_of_kl_estimate_it() -> None:
    """Tokens drawn from A: k1 and k3 estimate KL(A||B) without bias, k2 to the next order."""
    generator = np.random.default_rng(5)
    n, vocabulary = 40_000, 6
    a, b = generator.normal(size=(2, vocabulary)) * [[1.0], [1.0]]
    b = a + 0.3 * b
    p, q = np.exp(softmax(a)), np.exp(softmax(b))
    tokens = generator.choice(vocabulary, size=(8, n // 8), p=p)
    found = drift.compare_logprobs(np.log(p)[tokens], np.log(q)[tokens])
    kl = scipy.stats.entropy(p, q)
    spread = np.std((np.log(p) - np.log(q))[tokens])
    assert value(found, "k1") == pytest.approx(kl, abs=4 * spread / math.sqrt(n))
    k3 = (np.expm1(np.log(q / p)) - np.log(q / p))[tokens]
    assert value(found, "k3") == pytest.approx(kl, abs=4 * k3.std() / math.sqrt(n))
    assert value(found, "k2") == pytest.approx(kl, rel=0.2)
    low, high = found.numbers[Quantity.K1].low, found.numbers[Quantity.K1].high
    assert low < value(found, "k1") < high


def test_the_interval_of_a_mean_is_student_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap's standard error of a mean, against the closed form: n resamples know it to 1 / sqrt(2 n)."""
    monkeypatch.setattr(numbers, "RESAMPLES", RESAMPLES)
    a = -np.random.default_rng(0).exponential(size=(12, 50))
    b = a + np.random.default_rng(1).normal(size=(12, 1)) * 0.1 + np.zeros_like(a)
    one = drift.compare_logprobs(a, b).numbers[Quantity.CHANGE_MEAN]
    due = mean_interval((b - a).mean(axis=1))
    assert one.value == pytest.approx(due.value)
    assert one.high - one.low == pytest.approx(due.high - due.low, rel=4 / math.sqrt(2 * RESAMPLES))


def test_intervals_cover() -> None:
    """Coverage of the 90 % interval of the mean ratio, many draws of eight sequences whose tokens hang together."""
    generator = np.random.default_rng(7)
    spread, runs = 0.2, 150
    truth = math.exp(spread**2 / 2)
    inside = 0
    for _ in range(runs):
        change = generator.normal(size=(8, 1)) * spread + np.zeros((8, 5))
        a = np.full_like(change, -1.0)
        one = drift.compare_logprobs(a, a + change).numbers[Quantity.RATIO_MEAN]
        inside += one.low <= truth <= one.high
    # Four standard errors of a share of 0.9.
    assert inside / runs == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / runs))


def test_flips_and_near_ties() -> None:
    a = np.tile([[0.0, 5.0, 5.001, 0.0]], (20, 1))
    b = a.copy()
    b[:2, 1] += 0.002  # two ties turn
    b[2, 0] += 20.0  # no tie
    repeat = a.copy()
    repeat[:, 1] += np.tile([0.0015, -0.0015], 10)
    found = drift.compare_logits(a, b, floor=[repeat])
    assert value(found, "top1_flips") == pytest.approx(3 / 20)
    assert value(found, "same_top") == pytest.approx(17 / 20)
    assert found.near_ties == 2
    assert drift.compare_logits(a, b).near_ties is None
    np.testing.assert_allclose(found.pairs.margin[:3], [0.001, 0.001, 5.001], rtol=1e-9)


@given(arrays(float, (2, 3, 5), elements=st.floats(-30, 30)))
@settings(max_examples=30, deadline=None)
def test_divergences_are_never_negative_and_js_is_symmetric(stack: np.ndarray) -> None:
    found, back = drift.compare_logits(*stack), drift.compare_logits(*stack[::-1])
    assert (found.pairs.kl >= 0).all()
    assert ((found.pairs.js >= 0) & (found.pairs.js <= math.log(2) * (1 + 4 * EPS))).all()
    np.testing.assert_allclose(found.pairs.js, back.pairs.js, rtol=1e-9, atol=1e-300)
    # What adds the same to all logits of a position changes nothing but their rounding.
    shifted = drift.compare_logits(stack[0], stack[0] + 7.0)
    assert (shifted.pairs.kl <= (64 * EPS * 40) ** 2).all()


@given(arrays(float, (3, 4), elements=st.floats(-50, 0)))
@settings(max_examples=25, deadline=None)
def test_equal_lanes_have_the_ratio_1(a: np.ndarray) -> None:
    found = drift.compare_logprobs(a, a.copy())
    assert found.verdict is Verdict.SAME
    for name in ("ratio_mean", "ratio_min", "ratio_median", "ratio_max", "effective_sample_share"):
        assert value(found, name) == (1.0 if name != "effective_sample_share" else pytest.approx(1.0, rel=8 * EPS))
    for name in ("k1", "k2", "k3", "logprob_change_rms", "ratio_outside_band"):
        assert value(found, name) == 0


@given(st.floats(-3, 3), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_equal_weights_are_all_effective(change: float, n: int) -> None:
    found = drift.compare_logprobs(np.full((2, n), -4.0), np.full((2, n), -4.0 + change))
    assert value(found, "effective_sample_share") == pytest.approx(1.0, rel=1e-12)


@given(st.permutations(range(5)))
@settings(max_examples=15, deadline=None)
def test_the_order_of_sequences_does_not_matter(order: list[int]) -> None:
    a = drawn((5, 8, 7))
    b, tokens = moved(a, 0.3, 1), tokens_of(a)
    one, two = drift.compare_logits(a, b, tokens), drift.compare_logits(a[order], b[order], tokens[order])
    for name, number in one.numbers.items():
        assert two.numbers[name].value == pytest.approx(number.value, rel=1e-9), name


def test_tokens_and_targets_say_the_same() -> None:
    a = drawn()
    b, tokens = moved(a, 0.1, 3), tokens_of(a)
    one = drift.compare_logits(a, b, tokens)
    targets = np.concatenate([tokens[:, 1:], np.full((len(tokens), 1), -1)], axis=1)
    two = drift.compare_logits(a, b, targets=targets)
    due = (followed(b, tokens) - followed(a, tokens)).ravel()
    for found in (one, two):
        change = found.pairs.change
        np.testing.assert_allclose(change[~np.isnan(change)], due, atol=64 * EPS)
        assert np.isnan(change).sum() == len(a)  # the last position of each sequence predicts nothing that is known


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = drawn(), drawn(seed=3)
    whole = drift.compare_logits(a, b).pairs.kl
    monkeypatch.setattr("drift.reading.logits.distances._BLOCK", 3 * a.shape[-1])
    np.testing.assert_array_equal(drift.compare_logits(a, b).pairs.kl, whole)

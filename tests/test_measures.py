"""Measures against closed forms, float64 and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import U32, U64, Divergences, divergences, gamma, norms
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, rel_entr, softmax

from drift.running import divergences as sums
from drift.running.measures import (
    LogitReference,
    LogitRows,
    compare_logits,
    compare_states,
    sampled_steps,
    step_mean,
    step_quantiles,
)

pytestmark = pytest.mark.numerical

STARTS = [0, 4, 8]


def states(seed: int, rows: int = 10, features: int = 7, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_states_against_numpy_in_float64() -> None:
    a, b = states(0), states(1)
    (rows,) = compare_states(a, b)
    x, y = a.double().numpy(), b.double().numpy()
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    norm = np.linalg.norm
    # Sums of four tokens of seven features at most, in whatever order.
    tolerance = norms(4 * 7)
    np.testing.assert_allclose(rows.rel_l2(STARTS), [norm(x[p] - y[p]) / norm(x[p]) for p in parts], rtol=tolerance)
    np.testing.assert_allclose(rows.norm(STARTS), [norm(x[p]) for p in parts], rtol=tolerance)
    np.testing.assert_array_equal(rows.step_max_abs(STARTS), [np.abs(x[p] - y[p]).max() for p in parts])
    cosine = 1 - (x * y).sum(1) / norm(x, axis=1) / norm(y, axis=1)
    # The oracle takes from 1 a product of magnitude 1 at most: sums of seven, two norms, two quotients, a mean of four.
    np.testing.assert_allclose(
        rows.cosine_distance(STARTS), [cosine[p].mean() for p in parts], rtol=0, atol=2 * gamma(7 + 7 + 4 + 8)
    )
    token = norm(x - y, axis=1) / norm(x, axis=1)
    np.testing.assert_allclose(
        step_quantiles(rows.rel_l2_token(), STARTS, (0.1, 0.5, 1.0)),
        [np.quantile(token[p], (0.1, 0.5, 1.0)) for p in parts],
        rtol=norms(7),  # the interpolation between them is the same code
    )


@given(st.floats(1e-14, 1e-2))
@settings(max_examples=40)
def test_cosine_distance_of_a_tiny_rotation_keeps_its_digits(angle: float) -> None:
    """Rotating by t gives 2 sin(t/2)^2 exactly; 1 - cos computed naively is 0 below t = 1e-8."""
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float64)
    got = compare_states(a, b)[0].cosine_distance([0])[0]
    # The rotated vector is rounded: its length is off by up to one ulp, which the formula must not see. Its sine, and
    # so the angle, is off by a roundoff or two, the square by twice that; some twenty operations follow.
    assert got == pytest.approx(2 * np.sin(angle / 2) ** 2, rel=gamma(24), abs=0)


def test_identical_states_read_exactly_zero() -> None:
    a = states(3, dtype=torch.bfloat16)
    (rows,) = compare_states(a, a.clone())
    assert not rows.rel_l2(STARTS).any()
    assert not rows.cosine_distance(STARTS).any()
    assert not compare_states(torch.zeros(10, 3), torch.zeros(10, 3))[0].rel_l2(STARTS).any()


def test_one_ulp_in_one_element_is_seen() -> None:
    a = states(4)
    b = a.clone()
    b[5, 2] = torch.nextafter(b[5, 2], torch.tensor(torch.inf))
    drift = compare_states(a, b)[0].rel_l2(STARTS)
    assert drift[1] > 0
    assert drift[0] == drift[2] == 0


def test_nonfinite_states_are_counted_and_not_averaged_away() -> None:
    a, b = states(5), states(6)
    a[1, 0] = torch.nan
    b[1, 1] = torch.inf
    b[9, 0] = -torch.inf
    (rows,) = compare_states(a, b)
    np.testing.assert_array_equal(rows.step_nonfinite(STARTS), [2, 0, 1])
    assert np.isnan(rows.rel_l2(STARTS)[0])
    assert np.isfinite(rows.rel_l2(STARTS)[1])
    assert not np.isfinite(rows.rel_l2(STARTS)[2])
    assert np.isnan(rows.cosine_distance(STARTS)[[0, 2]]).all()
    assert np.isnan(step_quantiles(rows.rel_l2_token(), STARTS, (0.5,))[0]).all()


def logit_pair(scale: float, seed: int = 0, rows: int = 5, vocabulary: int = 301) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    a = 3 * rng.standard_normal((rows, vocabulary))
    return torch.from_numpy(a), torch.from_numpy(a + scale * rng.standard_normal((rows, vocabulary)))


def says_something(bound: Divergences, rows: LogitRows) -> None:
    """Three digits of every divergence, or a bound would prove nothing."""
    assert (bound.kl <= 1e-3 * rows.kl).all()
    assert (bound.js <= 1e-3 * rows.js).all()


@pytest.mark.parametrize("scale", [0.03, 0.4, 3.0, 30.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_against_scipy(scale: float, dtype: torch.dtype) -> None:
    a, b = (x.to(dtype) for x in logit_pair(scale))
    targets = torch.tensor([0, 7, 300, 12, -1])
    rows = compare_logits(LogitReference(a, targets), b)
    x, y = a.double().numpy(), b.double().numpy()
    p, q = softmax(x, axis=1), softmax(y, axis=1)
    unit = U32 if dtype is torch.float32 else U64
    bound = divergences(x, y, targets.numpy(), unit)
    kl, js = (p * (log_softmax(x, axis=1) - log_softmax(y, axis=1))).sum(1), jensenshannon(p, q, axis=1) ** 2
    assert (np.abs(rows.kl - kl) <= bound.kl).all()
    assert (np.abs(rows.js - js) <= bound.js).all()
    says_something(bound, rows)
    # One subtraction, in the format and in float64.
    np.testing.assert_allclose(rows.max_abs, np.abs(x - y).max(1), rtol=gamma(2, unit))
    np.testing.assert_array_equal(rows.top1, (x.argmax(1) == y.argmax(1)).astype(float))
    index = np.arange(4), targets[:4].numpy()
    assert (np.abs(rows.nll_full[:4] + log_softmax(x, axis=1)[index]) <= bound.nll_full[:4]).all()
    assert (np.abs(rows.nll_fold[:4] + log_softmax(y, axis=1)[index]) <= bound.nll_fold[:4]).all()
    assert (np.abs(rows.delta_p[:4] - (q - p)[index]) <= bound.delta_p[:4]).all()
    assert np.isnan([rows.nll_full[4], rows.nll_fold[4], rows.delta_p[4]]).all()


@pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-7])
def test_small_divergences_keep_their_digits_in_float32(scale: float) -> None:
    """To second order KL = Var_p(d) / 2 and JS = Var_p(d) / 8; log-probabilities in float32 would drown both.

    The next terms are v^3 / 6 and v^3 / 16: a third and a half of the largest v, in relation to the first.
    """
    rng = np.random.default_rng(1)
    a = (3 * rng.standard_normal((4, 500))).astype(np.float32)
    b = (a + scale * rng.standard_normal(a.shape)).astype(np.float32)
    rows = compare_logits(LogitReference(torch.from_numpy(a), torch.full((4,), -1)), torch.from_numpy(b))
    p, d = softmax(a.astype(np.float64), axis=1), b.astype(np.float64) - a
    variance = (p * d**2).sum(1) - (p * d).sum(1) ** 2
    bound = divergences(a.astype(np.float64), b.astype(np.float64), np.zeros(4, dtype=np.int64), U32, oracle=False)
    says_something(bound, rows)
    largest = np.abs(d - (p * d).sum(1, keepdims=True)).max(1)
    # The oracle takes the square of a mean from a mean of squares.
    oracle = 2 * gamma(500 + 8) * (p * d**2).sum(1)
    assert (np.abs(rows.kl - variance / 2) <= bound.kl + largest * variance / 2 + oracle).all()
    assert (np.abs(rows.js - variance / 8) <= bound.js + largest * variance / 8 + oracle).all()
    naive = rel_entr(np.exp(log_softmax(a, axis=1)), np.exp(log_softmax(b, axis=1))).sum(1)
    if scale == 1e-7:
        assert (np.abs(naive - variance / 2) > 10 * variance).any(), "the naive formula would have done"


def test_identical_logits_read_exactly_zero_and_a_shift_is_no_drift() -> None:
    a, _ = logit_pair(1.0)
    rows = compare_logits(LogitReference(a, torch.zeros(5, dtype=torch.int64)), a.clone())
    assert not rows.kl.any()
    assert not rows.js.any()
    np.testing.assert_array_equal(rows.nll_full, rows.nll_fold)
    shifted = compare_logits(LogitReference(a, torch.zeros(5, dtype=torch.int64)), a + 5.0)
    # Adding 5 rounds each logit of less than 16 by U64 times 21, and their mean rounds on: KL is half of that squared.
    assert (shifted.kl <= 0.5 * (gamma(301) * 21) ** 2).all()
    np.testing.assert_allclose(shifted.max_abs, 5, atol=2 * 21 * U64, rtol=0)


def test_nonfinite_logits_are_counted() -> None:
    a, b = logit_pair(0.1)
    b[2, 5] = torch.nan
    b[2, 6] = torch.inf
    rows = compare_logits(LogitReference(a, torch.zeros(5, dtype=torch.int64)), b)
    np.testing.assert_array_equal(rows.nonfinite, [0, 0, 2, 0, 0])
    np.testing.assert_array_equal(np.isfinite(rows.kl), [True, True, False, True, True])


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="alike"):
        compare_states(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="alike"):
        compare_logits(LogitReference(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)), torch.zeros(3, 4))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
def test_sampled_steps_against_a_loop(tokens: int, chunk: int, stride: int) -> None:
    rows = np.arange(0, tokens, stride)
    starts = list(range(0, tokens, chunk))
    steps, first = sampled_steps(rows, starts)
    want = [[i for i, r in enumerate(rows) if s <= r < s + chunk] for s in starts]
    assert steps.tolist() == [k for k, w in enumerate(want) if w]
    assert first == [w[0] for w in want if w]


def test_step_mean_is_not_fooled_by_a_short_last_step() -> None:
    np.testing.assert_array_equal(step_mean(np.array([1.0, 3, 5, 7, 10]), [0, 2, 4]), [2, 6, 10])


def test_lanes_compared_together_are_compared_alike() -> None:
    generator = torch.Generator().manual_seed(5)
    reference, *others = torch.randn((4, 1000, 300), generator=generator)
    others[1][7, 3] = float("nan")
    together = compare_states(reference, *others)
    for rows, other in zip(together, others, strict=True):
        (alone,) = compare_states(reference, other)
        for name in ("difference2", "reference2", "other2", "radial", "max_abs", "nonfinite"):
            np.testing.assert_array_equal(getattr(rows, name), getattr(alone, name))
    assert [int(rows.nonfinite.sum()) for rows in together] == [0, 1, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, -0.4], False),
        ([0.5, 0.0], True),
        ([0.0, -0.5], True),
        ([float("nan"), 0.1], False),
        ([float("nan"), -0.7], True),
        ([float("inf"), 0.0], True),
    ],
)
def test_a_bound_is_reached_whatever_else_is_not_a_number(values: list[float], expected: bool) -> None:
    assert sums.reaches(torch.tensor(values), 0.5) is expected


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    reference = torch.zeros(2, 8)
    reference[:, 0] = 200.0
    other = torch.zeros(2, 8)
    other[:, 1] = 200.0
    alone = compare_logits(LogitReference(reference[:1], torch.tensor([-1])), other[:1])
    other[1, 3] = float("nan")
    both = compare_logits(LogitReference(reference, torch.tensor([-1, -1])), other)
    assert np.isfinite(alone.kl).all()
    assert both.kl[0] == alone.kl[0]
    assert both.nonfinite.tolist() == [0, 1]
    assert np.isnan(both.kl[1])

"""What the statistics of a plateau leave out, and what they may not depend on."""

import json
import math
from dataclasses import fields

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from plateau_tools import FLAT, ar1
from rounding import U64, gamma, linear

from drift.reading.plateau.deciding import plateau
from drift.reading.statistics import noise as statistics_noise
from drift.reading.statistics import plateau as statistics_plateau
from drift.reading.statistics import windows
from drift.reading.statistics.analysis import Analysis
from drift.reading.statistics.plateau import analyse

pytestmark = pytest.mark.numerical


# ------------------------------------------------------------------------------------------ windows and clipping
@pytest.mark.parametrize(
    ("steps", "first"),
    [(16, [3, 4]), (31, [3, 4, 8]), (63, [4, 8, 16]), (127, [8, 16, 32]), (511, [32, 64, 128]), (12, [3]), (1, [3])],
)
def test_windows_are_fixed_by_the_number_of_steps(steps, first):
    assert windows.windows(steps) == first


def test_least_steps_leave_points_enough():
    least = windows.least_steps()
    assert least - windows.windows(least)[-1] == windows.LEAST_POINTS
    assert least - 1 - windows.windows(least - 1)[-1] < windows.LEAST_POINTS


QUIET = np.random.default_rng(2).uniform(-0.01, 0.01, (1, 2, 60))


@pytest.mark.parametrize("place", [0, 1, 30, 58, 59])
@pytest.mark.parametrize("height", [3.0, -3.0])
def test_an_isolated_spike_is_clipped_wherever_it_is(place, height):
    z = QUIET.copy()
    z[0, 1, place] += height
    clipped = statistics_plateau._clip(z)
    # MAD of uniform noise is half its half-width; 5 x 1.4826 of it on top of the neighbourhood's own spread
    assert abs(clipped[0, 1, place]) < 0.01 + 5 * 1.4826 * 0.01
    assert math.copysign(1, clipped[0, 1, place]) == math.copysign(1, height)
    rest, kept = np.delete(clipped, place, axis=2), np.delete(z, place, axis=2)
    np.testing.assert_allclose(rest, kept, rtol=0, atol=taken_off_and_put_back(kept))


def taken_off_and_put_back(z):
    """What is left when the distance from a median is taken off and put back: three roundings of twice the largest."""
    return gamma(3) * 2 * abs(z).max()


@pytest.mark.parametrize("place", [0, 20, 56, 53])
@pytest.mark.parametrize("length", [4, 7])
def test_a_run_is_a_finding_and_stays(place, length):
    z = QUIET.copy()
    z[0, 0, place : place + length] += 1.0
    np.testing.assert_allclose(statistics_plateau._clip(z), z, rtol=0, atol=taken_off_and_put_back(z))


def test_the_last_three_points_stay_if_they_agree():
    # A median of seven mirrored at the end sees three points five times: the last steps are evidence of late growth.
    z = QUIET.copy()
    z[0, 0, -3:] += 1.0
    np.testing.assert_allclose(statistics_plateau._clip(z), z, rtol=0, atol=taken_off_and_put_back(z))


def test_clipping_knows_no_units_and_leaves_curves_without_noise_alone():
    z = QUIET.copy()
    z[0, 0, 10] = 4.0
    # Adding 7 rounds z, and so its distances from medians; the bound is 7.4 median distances.
    atol = (2 + statistics_plateau.CLIP * statistics_plateau._MAD) * taken_off_and_put_back(z + 7.0)
    np.testing.assert_allclose(statistics_plateau._clip(z + 7.0), statistics_plateau._clip(z) + 7.0, rtol=0, atol=atol)
    np.testing.assert_array_equal(statistics_plateau._clip(-z), -statistics_plateau._clip(z))
    ramp = np.linspace(0, 3, 40)[None, None]
    assert (statistics_plateau._clip(ramp) == ramp).all()
    assert statistics_plateau._clip(QUIET[:, :, :1]).shape == (1, 2, 1)


@pytest.mark.parametrize("steps", [63, 127])
@pytest.mark.parametrize("documents", [1, 4])
def test_a_late_take_off_of_a_quiet_curve_is_never_a_plateau(steps, documents):
    # The smaller the noise, the more a take-off looks like a run of outliers to whoever compares it with a line.
    rng = np.random.default_rng(steps + documents)
    t = np.arange(1, steps + 1.0)
    for sd in (0.001, 0.003, 0.01):
        for share in (0.55, 0.7, 0.85):
            for strength in (0.5, 2.0, 6.0):
                curve = (1 - 0.8 * np.exp(-(t - 1) / 2)) * (1 + strength * np.maximum(0, t / steps - share))
                found = analyse(curve * np.exp(sd * ar1(rng, (3, documents, steps), 0.5)))
                assert not np.isin(found.code, FLAT).any(), (sd, share, strength)


# ------------------------------------------------------------------------------------------ properties
curves = st.builds(
    lambda seed, documents, steps, sd, rho, power: (
        np.arange(1, steps + 1.0) ** power * np.exp(sd * ar1(np.random.default_rng(seed), (documents, steps), rho))
    ),
    seed=st.integers(0, 10**6),
    documents=st.integers(1, 6),
    steps=st.sampled_from([11, 16, 31, 47, 63]),
    sd=st.sampled_from([0.02, 0.1, 0.4]),
    rho=st.sampled_from([0.0, 0.5, 0.9]),
    power=st.sampled_from([0.0, 0.0, 0.2, -0.2]),
)


@given(values=curves, exponent=st.integers(-200, 200))
@settings(max_examples=25, deadline=None)
def test_units_do_not_matter(values, exponent):
    here, there = analyse(values), analyse(np.ldexp(values, exponent))
    shift = exponent * math.log(2)
    assert here.code[0] == there.code[0]
    for name in ("slope", "slope_low", "slope_high", "rise", "p_growth", "p_decay", "p_equivalence", "rho", "sd"):
        # Logarithms of up to 150 are rounded, and the shift is taken off means and slopes of theirs; standard errors
        # are as small as 1e-3, and of what is that far from its neighbours an error shows a thousandfold in t. Of p,
        # which falls as exp(-t^2 / 2) at most, it shows t times more: up to 40 where anything is left of it.
        bound = 40 * linear(values.shape[-1], 150) / 1e-3
        assert getattr(there, name)[0] == pytest.approx(getattr(here, name)[0], rel=bound, abs=bound), name
    for name in ("level", "level_low", "level_high"):
        assert getattr(there, name)[0] - shift == pytest.approx(getattr(here, name)[0], rel=0, abs=bound), name


@given(values=curves, seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_order_of_documents_does_not_matter(values, seed):
    here = analyse(values)
    there = analyse(np.random.default_rng(seed).permutation(values, axis=0))
    # As above, but with logarithms of at most 5.
    bound = 40 * linear(values.size, 5) / 1e-3
    for f in fields(here):
        assert getattr(there, f.name)[0] == pytest.approx(getattr(here, f.name)[0], rel=bound, abs=bound, nan_ok=True)


@given(
    seed=st.integers(0, 10**6),
    steps=st.sampled_from([11, 16, 31, 63]),
    documents=st.integers(1, 5),
    neighbour=st.sampled_from(["another", "NaN", "zero", "huge", "Inf"]),
)
@settings(max_examples=25, deadline=None)
def test_a_curve_knows_nothing_of_those_beside_it(seed, steps, documents, neighbour):
    rng = np.random.default_rng(seed)
    stack = np.exp(rng.choice([0.03, 0.3]) * ar1(rng, (4, documents, steps), 0.4))
    stack[1] *= {"another": 1.0, "NaN": np.nan, "zero": 0.0, "huge": 1e250, "Inf": np.inf}[neighbour]
    together = analyse(stack)
    alone = Analysis.concatenate([analyse(stack[k]) for k in range(4)])
    for f in fields(together):
        one, other = getattr(together, f.name), getattr(alone, f.name)
        if f.name == "lead":
            # Matrix times matrix and matrix times vector round differently: sums of n squares, of which a hundredth is
            # left at least, and whose logarithm is taken n times; twice, for a difference.
            np.testing.assert_allclose(one, other, rtol=0, atol=2 * steps * 100 * gamma(2 * steps))
        else:
            np.testing.assert_array_equal(one, other, err_msg=f.name)


@given(
    kind=st.sampled_from(["any", "few", "broken", "rounding", "gaps"]),
    seed=st.integers(0, 10**6),
    documents=st.integers(1, 5),
    steps=st.sampled_from([1, 2, 10, 11, 13, 24, 31]),
)
@settings(max_examples=60, deadline=None)
def test_every_curve_has_a_verdict(kind, seed, documents, steps):
    rng = np.random.default_rng(seed)
    size = documents, steps
    values = {
        "any": lambda: 10.0 ** rng.uniform(-307, 307, size),
        "few": lambda: rng.choice([0, 5e-324, 1, 1e308], size),
        "broken": lambda: rng.choice([1, 2, np.nan, np.inf, 0], size, p=[0.5, 0.46, 0.01, 0.01, 0.02]),
        "rounding": lambda: rng.choice([1.0, 1 + 2**-52], size),
        "gaps": lambda: np.exp(rng.normal(0, 0.1, size)) * (rng.random(size) > 0.05),
    }[kind]()
    found = plateau(values)
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["verdict"] == found.verdict.value
    assert " nan" not in str(found).lower().replace("nan or inf", "")
    assert (found.reason is None) == (found.verdict.value != "undetermined")


def test_the_mean_of_a_window_is_the_level_with_its_interval():
    z = np.random.default_rng(6).uniform(-0.2, 0.2, (3, 5, 63))
    found, mean = analyse(np.exp(z)), statistics_noise.window_mean(z)
    # The logarithm of an exponential of at most 0.2 is off by a roundoff of 1 and of itself.
    atol = 2 * U64 + linear(5 * 63, 0.2)
    np.testing.assert_allclose(mean.estimate, found.level, rtol=0, atol=atol)
    # As much in a standard error, which is the root of a sum of squares; there are five documents.
    width = found.level_high - found.level
    np.testing.assert_allclose(
        mean.half_width(0.025), width, rtol=gamma(5 * 63), atol=10 * scipy.stats.t.ppf(0.975, 4) * atol
    )
    short = statistics_noise.window_mean(z[:, :, :6])
    means = z[:, :, 3:6].mean(axis=2)
    np.testing.assert_allclose(short.estimate, means.mean(axis=1), rtol=0, atol=linear(5 * 3, 0.2))
    sem = scipy.stats.sem(means, axis=1)
    # Quantiles by two implementations agree to 1e-9 and better; means are off by what they are above.
    np.testing.assert_allclose(short.half_width(0.05), scipy.stats.t.ppf(0.95, 4) * sem, rtol=1e-9)
    assert statistics_noise.window_mean(z[:, :3, :6]) is None

"""Levels, noise, onsets and slopes at the edges of what they are defined for."""

from __future__ import annotations

import numpy as np
import pytest
from rounding import U64

from drift.reading.statistics import plateau
from drift.reading.statistics.levels import collapse_documents
from drift.reading.statistics.noise import fit_window
from drift.reading.statistics.rate import LEAST_STEPS, Trend, TrendReason, rate
from drift.reading.statistics.slope import ScalingReason, log_log, slope
from drift.reading.statistics.windows import ZEROS

NAN, INF = float("nan"), float("inf")

# Columns of documents: values, then geometric mean of the positive ones, smallest, largest, zeros, not finite.
COLUMNS = [
    ([1.0, 4.0], 2.0, 1.0, 4.0, 0, 0),
    ([0.0, 4.0], 4.0, 4.0, 4.0, 1, 0),
    ([0.0, 0.0], NAN, NAN, NAN, 2, 0),
    ([NAN, 4.0], 4.0, 4.0, 4.0, 0, 1),
    ([INF, 4.0], 4.0, 4.0, 4.0, 0, 1),
    ([NAN, INF], NAN, NAN, NAN, 0, 2),
    ([NAN, 0.0], NAN, NAN, NAN, 1, 1),
    ([-1.0, 4.0], 4.0, 4.0, 4.0, 1, 0),
]


def test_documents_are_collapsed_to_their_positive_finite_values() -> None:
    found = collapse_documents(np.array([values for values, *_ in COLUMNS]).T)
    assert list(found.columns) == ["value", "low", "high", "zeros", "nonfinite"]
    assert {name: kind.kind for name, kind in found.dtypes.items()} == {
        "value": "f", "low": "f", "high": "f", "zeros": "i", "nonfinite": "i",
    }  # fmt: skip
    want = np.array([row for _, *row in COLUMNS])
    # A logarithm and an exponential, rounded each.
    np.testing.assert_allclose(found.to_numpy(dtype=float), want, rtol=8 * U64)


@pytest.mark.parametrize("power", [-10, -20, -30])
def test_standard_errors_go_with_the_noise_down_to_the_rounding_of_the_logarithm(power: int) -> None:
    """A power of two scales floating-point numbers exactly, and a fit is linear."""
    z = np.random.default_rng(0).standard_normal((1, 3, 48))
    loud, quiet = fit_window(z, 15, 63), fit_window(z * 2.0**power, 15, 63)
    for name in ("slope_error", "point_error"):
        assert getattr(loud, name) > 0
        assert getattr(quiet, name) == getattr(loud, name) * 2.0**power
    assert quiet.rho == loud.rho
    assert quiet.design_effect == loud.design_effect


def test_what_rounding_leaves_of_a_curve_without_noise_is_no_noise() -> None:
    z = np.log(np.full((1, 3, 48), 0.1)) + np.random.default_rng(0).integers(-1, 2, (1, 3, 48)) * 2.0**-52
    assert fit_window(z, 15, 63).slope_error == 0


@pytest.mark.parametrize("last", [8, 12, 15])
def test_the_onset_of_a_decay_is_the_first_step_on_the_plateau(last: int) -> None:
    curve = np.where(np.arange(1, 65) <= last, 4.0, 1.0)
    assert plateau.analyse(np.tile(curve, (4, 1))).onset == last + 1


def test_a_curve_that_lies_the_whole_margin_above_its_level_has_arrived() -> None:
    # On a log scale, where halves are exact; the logarithm of 1 + margin is another number on another machine.
    z = np.where(np.arange(1, 65) <= 12, 0.5, 0.0) + np.zeros((1, 4, 1))
    for margin, onset in ((0.5, 1), (0.4999, 13)):
        assert [x.tolist() for x in plateau._onset(z, 16, margin)] == [[onset]] * 3


def test_a_rate_needs_so_many_steps_behind_the_first_quarter() -> None:
    # Of 5 steps the first 2 are left out, of 6 as well.
    for steps, late in ((5, LEAST_STEPS - 1), (6, LEAST_STEPS)):
        found = rate(np.exp(np.arange(steps, dtype=float))[None].repeat(4, axis=0))
        assert steps - found.first == late
        assert (found.reason is TrendReason.TOO_SHORT) == (late < LEAST_STEPS)
        assert (found.verdict is Trend.GROWTH) == (late >= LEAST_STEPS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_a_slope_does_not_depend_on_how_its_points_are_stored(dtype: type) -> None:
    x = np.array([3, 5, 11, 40], dtype=dtype)  # exact in all of them
    y = np.random.default_rng(0).lognormal(size=(4, 3))
    assert log_log(x, y) == log_log(x.astype(np.float64), y)


def test_a_document_of_zeros_only_leaves_no_slope() -> None:
    """However few of all documents it is."""
    u = 2.0 ** -np.array([8.0, 11.0, 24.0])
    drift = np.tile(u[:, None, None], (1, 12, 16))
    assert slope(u, drift).reason is None
    drift[:, 5] = 0
    found = slope(u, drift)
    assert found.zeros <= ZEROS * found.points
    assert found.reason is ScalingReason.ZEROS

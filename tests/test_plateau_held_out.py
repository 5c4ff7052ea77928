"""Verdicts on curves that no constant of the procedure was tuned on."""

import math

import numpy as np
import pytest
import scipy.stats
from plateau_tools import noisy

from drift.reading.plateau.deciding import plateau, plateaus
from drift.reading.plateau.model import Verdict
from drift.reading.plateau.wording import certificate


# Shapes, noise, depths and numbers of documents that no constant of the procedure was tuned on.
def _rise(t):
    return 1 - 0.7 * np.exp(-(t - 1) / 0.8)


HELD_OUT = {
    "8 % per doubling": lambda t: _rise(t) * t ** math.log2(1.08),
    "take-off at 70 %": lambda t: _rise(t) * (1 + 9 * np.maximum(0, t / t[-1] - 0.7) ** 1.5),
    "slow saturation": lambda t: t**1.5 / (t**1.5 + (t[-1] / 6) ** 1.5),
    "saturation over a quarter": lambda t: 1 - 0.8 * np.exp(-(t - 1) / (t[-1] / 4)),
    "hump": lambda t: 0.4 + np.exp(-(((t / t[-1] - 0.6) / 0.13) ** 2)),
    "slow decay": lambda t: t**-0.18,
    "decay to a floor": lambda t: 0.3 + np.exp(-t / (t[-1] / 2.5)),
    "staircase": lambda t: 1.06 ** np.floor(8 * t / t[-1]),
}
NOISE = [
    (0.03, 0.0, 95, 4), (0.03, 0.9, 95, 5), (0.08, 0.7, 47, 7), (0.15, 0.35, 95, 4), (0.15, 0.9, 47, 4),
    (0.3, 0.0, 47, 12), (0.3, 0.6, 95, 7), (0.1, 0.8, 95, 1), (0.04, 0.5, 47, 2),
]  # fmt: skip


@pytest.mark.parametrize("kind", HELD_OUT)
@pytest.mark.numerical
def test_no_curve_that_moves_is_called_a_plateau(kind):
    runs, wrong = 15, []
    for place, (sd, rho, steps, documents) in enumerate(NOISE):
        curve = HELD_OUT[kind](np.arange(1, steps + 1.0))
        seeds = range(7000 + 100 * place, 7000 + 100 * place + runs)
        found = plateaus([noisy(curve, sd, documents, rho, seed) for seed in seeds])
        wrong.append(sum(p.verdict.is_plateau for p in found))
    # More than this happens once in a thousand to a test of size 1 in 20; per cell, once in ten thousand.
    assert sum(wrong) <= scipy.stats.binom.ppf(0.999, runs * len(NOISE), 0.05), wrong
    assert max(wrong) <= scipy.stats.binom.ppf(0.9999, runs, 0.05), wrong


@pytest.mark.parametrize("kind", ["8 % per doubling", "slow saturation", "slow decay", "decay to a floor"])
@pytest.mark.numerical
def test_a_curve_that_moves_is_said_to_where_the_data_resolve_it(kind):
    curve = HELD_OUT[kind](np.arange(1, 96.0))
    wanted = Verdict.DECAYING if "decay" in kind else Verdict.GROWING
    found = plateaus([noisy(curve, 0.03, 6, 0.2, seed) for seed in range(20)])
    assert sum(p.verdict is wanted for p in found) >= 18


@pytest.mark.parametrize(
    ("curve", "verdict"),
    [
        (lambda t: _rise(t), Verdict.SATURATED_PLATEAU),
        (lambda t: 0 * t + 2e-7, Verdict.FLAT),
        (lambda t: np.where(t > 1, 1.0, 0.0), Verdict.SATURATED_PLATEAU),
        (lambda t: 1 - 0.85 * np.exp(-(t - 1) / 4), Verdict.SATURATED_PLATEAU),
    ],
    ids=["rise", "constant", "from zero", "rise over some steps"],
)
@pytest.mark.numerical
def test_a_plateau_is_certified_where_the_data_resolve_it(curve, verdict):
    # The other half of the promise: a procedure that never says plateau would pass every test above.
    found = []
    for sd, rho, steps, documents in ((0.03, 0.3, 95, 4), (0.07, 0.0, 95, 6), (0.07, 0.3, 127, 8), (0.1, 0.2, 127, 8)):
        t = np.arange(1, steps + 1.0)
        found += plateaus([noisy(curve(t), sd, documents, rho, 9000 + seed) for seed in range(15)])
    assert sum(p.verdict is verdict for p in found) >= 0.85 * len(found)
    assert not any(p.verdict in (Verdict.GROWING, Verdict.DECAYING) for p in found)
    assert all(p.p_equivalence < 0.05 for p in found if p.verdict.is_plateau)


@pytest.mark.numerical
def test_what_certifies_a_plateau_lies_within_the_margin_and_is_said_where_the_judging_window_does_not():
    """The interval that is reported decides: equivalence is its lying within the margin, on every curve."""
    rng = np.random.default_rng(5)
    t = np.arange(1, 128.0)
    found = [
        plateau(noisy((t / 127) ** power, sd, 4, 0.3, int(rng.integers(1 << 30))))
        for power in (-0.09, -0.05, 0.0, 0.03, 0.06, 0.09) for sd in (0.02, 0.06, 0.1, 0.16) for _ in range(8)
    ]  # fmt: skip
    wider = said = 0
    for p in found:
        low, high = p.certified_interval
        assert (low > 1 / (1 + p.margin) - 1 and high < p.margin) == (p.p_equivalence < p.alpha)
        assert p.certified_from in {9, 17, 33}
        inside = p.growth_interval[0] >= 1 / (1 + p.margin) - 1 and p.growth_interval[1] <= p.margin
        assert ("certified from step" in str(p)) == (p.verdict.is_plateau and not inside)
        assert certificate(p) in str(p)
        said += p.verdict.is_plateau and not inside
        wider += p.verdict.is_plateau
    assert 0 < said < wider, "both kinds must be there for this to test anything"

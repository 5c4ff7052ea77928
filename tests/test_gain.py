"""The gain against laws that are known: rates, signs and where the perturbation was put in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import synthetic_controls as made
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import linear

from drift.dataset.sweep import Sweep
from drift.reading import figures, gain
from drift.reading.statistics.rate import Trend, TrendReason, rate
from drift.reading.wording.verdicts import TREND_WORDS

pytestmark = pytest.mark.numerical


def law(r: float, documents: int = 4, steps: int = 40, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.exp(r * np.arange(steps) + noise * rng.standard_normal((documents, steps)))
    return values / values[:, :1]


@pytest.mark.parametrize(("r", "verdict"), [(-0.1, Trend.CONTRACTION), (0.0, Trend.NEUTRAL), (0.08, Trend.GROWTH)])
@pytest.mark.parametrize("documents", [1, 2, 4])
def test_rates_and_signs(r: float, verdict: Trend, documents: int) -> None:
    values = law(r, documents)
    found = rate(values)
    assert found.verdict is verdict
    assert found.reason is None
    k = np.arange(10, 40)
    slopes = [scipy.stats.linregress(k, np.log(row[10:])).slope for row in values]
    assert found.interval.value == pytest.approx(np.mean(slopes))
    if documents > 1:
        ends = scipy.stats.ttest_1samp(slopes, 0).confidence_interval(0.9)
        assert found.interval.pair == pytest.approx((ends.low, ends.high))
    assert TREND_WORDS[verdict].startswith(verdict.value)


def test_what_cannot_be_decided() -> None:
    rng = np.random.default_rng(3)
    wild = np.exp(2 * rng.standard_normal((2, 20)))
    assert rate(wild).reason is TrendReason.WIDE
    assert rate(law(0.1, steps=4)).reason is TrendReason.TOO_SHORT
    values = law(0.1)
    values[0] = np.nan
    assert rate(values).reason is TrendReason.SILENT
    values = law(0.1)
    values[2, 7] = np.inf
    assert rate(values).reason is TrendReason.NONFINITE
    with pytest.raises(ValueError, match=r"\[document, k\]"):
        rate([1.0, 2.0])


def test_what_is_forgotten_to_the_last_bit_is_a_contraction() -> None:
    values = law(-0.5, steps=30)
    values[:, 20:] = 0.0
    found = rate(values)
    assert found.verdict is Trend.CONTRACTION
    assert found.zeros == 40


def test_one_document_allows_for_autocorrelation() -> None:
    """Smooth noise looks like a trend: its interval must be wider than that of white noise of the same size."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        noise = np.zeros(60)
        for k in range(1, 60):
            noise[k] = 0.8 * noise[k - 1] + 0.1 * rng.standard_normal()
        low, high = rate(np.exp(noise - noise[0])[None]).interval.pair
        hits += low <= 0 <= high
    assert hits >= 160  # of the 180 that were promised; least squares without the correction has about 100


@settings(max_examples=30)
@given(st.floats(-0.3, 0.3), st.integers(0, 2**32 - 1), st.floats(1e-6, 1.0))
def test_rates_do_not_depend_on_the_size_of_the_noise(r: float, seed: int, size: float) -> None:
    raw = size * law(r, seed=seed)
    # A mean of slopes of logarithms of up to 0.3 x 40 and noise; sizes are rounded, too.
    bound = linear(4 * 40, 13)
    want = rate(law(r, seed=seed)).interval.value
    assert rate(raw / raw[:, :1]).interval.value == pytest.approx(want, rel=0, abs=bound)


def test_gains_of_a_sweep() -> None:
    cells = [made.disturbed(lambda k: 0.85**k, step=s, dtype=d) for s in (4, 8, 12) for d in ("bf16", "fp32")]
    sweep = Sweep([*cells, made.make(np.full((4, 32), 0.1))])
    found = gain.gains(sweep)
    assert len(found) == 6
    assert {g.labels["step"] for g in found} == {4, 8, 12}
    assert {g.rate.verdict for g in found} == {Trend.CONTRACTION}
    for g in found:
        assert g.values.shape == (4, 32 - g.labels["step"] - 1)
        assert (g.values[:, 0] == 1).all()
        # Four standard errors of a mean of four slopes over n steps, with noise of 0.05.
        n = g.values.shape[1] - g.rate.first
        error = 0.05 / math.sqrt(4 * n * (n**2 - 1) / 12)
        assert g.rate.interval.value == pytest.approx(math.log(0.85), abs=4 * error)
        middle, low, high = g.band()
        logs = np.log(g.values[:, 5])
        ends = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.9)
        assert (low[5], high[5]) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
        assert middle[5] == pytest.approx(math.exp(logs.mean()))
    table = gain.by_step(found)
    assert len(table) == 2
    assert set(table["after"]) == {18}
    assert "contraction: a disturbance decays along the chain, in all 3 cells" in gain.gain_sentences(found)[0]
    assert len(gain.gain_frame(found)) == 6
    layers = gain.by_layer(sweep)
    assert len(layers) == 6
    assert "rate, final norm" in layers.columns
    figure = figures.gains(found)
    assert figure is not None
    assert "6 contraction of 6 cells" in " ".join(figure.get_suptitle().split())
    assert figures.gains([]) is None


def test_the_step_matters_where_it_does() -> None:
    """A gain that is larger the deeper the noise was put in, with a slope that is known."""
    cells = [
        made.disturbed(lambda k, s=s: np.where(k == 0, 1.0, 0.1 * (s + 1)), step=s, noise=0.01) for s in (3, 7, 15)
    ]
    row = gain.by_step(gain.gains(Sweep(cells))).iloc[0]
    assert row["low"] <= 1 <= row["high"]
    # Noise of 0.01 in a value and in what it is divided by, four documents, four standard errors of the slope.
    x = np.log([4, 8, 16])
    error = 0.01 * math.sqrt(2 / 4) / np.linalg.norm(x - x.mean())
    assert row["slope"] == pytest.approx(1, abs=4 * error)
    assert "the less is forgotten" in gain.gain_sentences(gain.gains(Sweep(cells)))[-1]


def test_gains_of_exactly_zero_are_counted_and_said() -> None:
    """One of four documents has forgotten the noise to the last bit: it has no logarithm, and that is not hidden."""
    cells = [made.disturbed(lambda k: 0.9**k, step=s, noise=0.01) for s in (3, 7, 15)]
    whole = gain.by_step(gain.gains(Sweep(cells))).iloc[0]
    assert whole["zeros"] == 0
    assert "exactly 0" not in gain.gain_sentences(gain.gains(Sweep(cells)))[-1]
    drift = cells[0]["hidden_rel_l2"].copy()
    drift[{"document": 1, "step": slice(10, None)}] = 0.0
    found = gain.gains(Sweep([cells[0].assign(hidden_rel_l2=drift), *cells[1:]]))
    assert gain.by_step(found).iloc[0]["zeros"] == 1
    assert gain.gain_sentences(found)[-1].endswith("Exactly 0 there, and left out: 1.")
    drift[{"step": slice(10, None)}] = 0.0
    found = gain.gains(Sweep([cells[0].assign(hidden_rel_l2=drift), *cells[1:]]))
    assert gain.by_step(found).iloc[0]["gain"][0] == 0
    assert "0 after step 3" in gain.gain_sentences(found)[-1]

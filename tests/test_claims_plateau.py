"""C1, plateau and rise, held against chains whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from claims_tools import (
    REFUTED,
    SUPPORTED,
    UNDETERMINED,
    amplitude,
    cell,
    errors,
    flat,
    held,
    only,
    power,
    put,
    saturated,
)

from drift.reading.amplitudes import AMPLITUDE_POWERS
from drift.reading.cells import DEEP_STEPS
from drift.reading.claims.model import Status
from drift.reading.statistics.windows import late_start

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(
    ("law", "plateau", "rise", "verdict", "growth"),
    [
        (saturated, SUPPORTED, SUPPORTED, "saturated_plateau", 0.0),
        (flat(), SUPPORTED, REFUTED, "flat", 0.0),
        (power(0.5), REFUTED, SUPPORTED, "growing", math.sqrt(2) - 1),
        (power(-0.5), REFUTED, REFUTED, "decaying", math.sqrt(0.5) - 1),
    ],
    ids=["saturated", "flat", "growing", "decaying"],
)
def test_c1_knows_a_plateau_from_growth_and_decay(
    measure: str, law: Callable[[np.ndarray], np.ndarray], plateau: Status, rise: Status, verdict: str, growth: float
) -> None:
    ds = cell(law)
    found = only([ds], "C1 plateau", measure)
    assert (found.status, found.detail["verdict"]) == (plateau, verdict)
    assert found.estimate == pytest.approx(growth, abs=(1 + max(growth, 0)) * errors(slope=True))
    assert found.interval[0] < found.estimate < found.interval[1]
    assert found.margin == pytest.approx((-0.05 / 1.05, 0.05))
    assert (found.p_support < 0.05, found.p_refute < 0.05) == (plateau is SUPPORTED, plateau is REFUTED)
    assert (found.detail["transitions"], found.detail["documents"]) == (127, 6)
    assert found.scope == "a bf16, chunk 64"
    first = only([ds], "C1 rise", measure)
    assert first.status is rise
    level = np.log(amplitude(ds)[:, late_start(128) :]).mean()
    # The kernel clips what is far from its neighbourhood: no point in a hundred, and that by less than the noise.
    want = math.exp(level - np.log(amplitude(ds)[:, 0]).mean())
    assert first.estimate == pytest.approx(want, rel=0.05 / 100)


def test_c1_shows_what_certifies_a_plateau_where_the_judging_window_does_not() -> None:
    rows = [only([cell(noise=0.17, documents=8, seed=seed)], "C1 plateau") for seed in range(40)]
    shown = 0
    for row in rows:
        low, high = row.margin
        inside = low <= row.interval[0] and row.interval[1] <= high
        assert ("certified" in row.detail) == (row.status is SUPPORTED and not inside)
        if "certified" in row.detail:
            shown += 1
            certified = row.detail["certified"]["interval"]
            assert low < certified[0] < certified[1] < high
            assert f"certified from step {row.detail['certified']['from_step']} on" in row.words
    assert 0 < shown < len(rows)


def test_c1_sees_the_root_of_a_divergence() -> None:
    ds = cell(power(0.5))
    rows = [only([ds], "C1 plateau", m) for m in AMPLITUDE_POWERS]
    for row in rows:  # noise is clipped in units of its own spread, which a power does not change
        assert row.estimate == pytest.approx(rows[0].estimate)
        assert row.interval == pytest.approx(rows[0].interval)


def test_short_and_noisy_chains_are_undetermined() -> None:
    short = only([cell(steps=8)], "C1 plateau")
    assert short.status is UNDETERMINED
    assert math.isnan(short.estimate)
    assert "too few steps" in short.words
    assert short.needed
    assert only([cell(flat(), steps=16, documents=2)], "C1 plateau").status is UNDETERMINED


def trend(ds: xr.Dataset) -> np.ndarray:
    """Slope of log drift per doubling of depth, each document by itself, late in the chain."""
    first = late_start(ds.sizes["step"])
    x = np.log2(np.arange(first + 1, ds.sizes["step"] + 1))
    return np.array([np.polyfit(x, z[first:], 1)[0] for z in np.log(amplitude(ds))])


def test_a_trend_that_is_not_significant_supports_no_plateau() -> None:
    insignificant = 0
    for seed in range(12):
        ds = cell(flat(), documents=5, noise=0.02)
        slopes = 0.2 * np.random.default_rng(seed).standard_normal((5, 1))
        put(ds, amplitude(ds) * np.exp(slopes * (np.log2(np.arange(1, 129)) - 6)))
        p = scipy.stats.ttest_1samp(trend(ds), 0).pvalue
        found = only([ds], "C1 plateau")
        assert found.status is not SUPPORTED
        assert found.p_support > 0.05
        if p > 0.1:
            insignificant += 1
            assert found.status is UNDETERMINED
    assert insignificant >= 6


def test_the_margin_is_what_was_asked() -> None:
    ds = cell(power(math.log2(1.08)), noise=0.03)  # 8 % per doubling
    assert only([ds], "C1 plateau").status is REFUTED
    wide = only([ds], "C1 plateau", growth=0.15)
    assert wide.status is SUPPORTED
    assert wide.margin[1] == 0.15
    assert held([ds], "C1 rise", rise=1.2).status is SUPPORTED
    assert held([ds], "C1 rise", rise=5).status is REFUTED


def test_of_one_model_and_precision_the_deepest_chain_counts_and_every_deep_one_in_other_chunks() -> None:
    flat_one = cell(flat(), chunk_size=32, steps=256)
    shallow = cell(power(0.5), chunk_size=64, steps=DEEP_STEPS - 1)
    found = only([shallow, flat_one], "C1 plateau")
    assert found.status is SUPPORTED
    assert found.detail["transitions"] == 255
    deep = cell(power(0.5), chunk_size=64, steps=DEEP_STEPS)
    row = held([deep, flat_one, cell(flat(), chunk_size=64, steps=20)], "C1 plateau")
    assert [f.detail["transitions"] for f in row.findings] == [255, DEEP_STEPS - 1]
    assert [f.status for f in row.findings] == [SUPPORTED, REFUTED]
    assert row.status is REFUTED
    more = only([cell(power(0.5), chunk_size=64), cell(flat(), documents=8)], "C1 plateau")
    assert (more.status, more.detail["documents"]) == (SUPPORTED, 8)


def test_drift_of_unrelated_states_is_flat_and_says_that_it_means_little() -> None:
    assert "flat means little" in only([cell(flat(1.2))], "C1 plateau").words
    assert "flat means little" not in only([cell(flat(1.2))], "C1 plateau", "delta_p_rms").words


@pytest.mark.parametrize(("law", "status"), [(flat(), REFUTED), (saturated, SUPPORTED)], ids=["flat", "saturated"])
def test_a_rise_is_counted_from_the_first_step_that_is_not_the_same_bits(
    law: Callable[[np.ndarray], np.ndarray], status: Status
) -> None:
    ds = cell(law)
    alone = only([ds], "C1 rise")
    values = amplitude(ds).copy()
    put(ds, np.concatenate([np.zeros((len(values), 6)), values], axis=1)[:, :128])
    found = only([ds], "C1 rise")
    assert (alone.detail["same_at_first"], found.detail["same_at_first"]) == (0, 6)
    assert (alone.status, found.status) == (status, status)
    assert "times step 7, the first that is not the same bits" in found.words
    level = np.log(amplitude(ds)[:, late_start(128) :]).mean()
    assert found.estimate == pytest.approx(math.exp(level - np.log(amplitude(ds)[:, 6]).mean()), rel=0.02)


def test_a_first_step_of_zero_in_some_documents_has_no_factor() -> None:
    ds = cell(saturated)
    values = amplitude(ds).copy()
    values[0, 0] = 0
    put(ds, values)
    found = only([ds], "C1 rise")
    assert found.detail["same_at_first"] == 0
    assert math.isfinite(found.estimate) or "exactly zero in some documents" in found.words
    assert "exactly zero" in found.words

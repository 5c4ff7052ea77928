"""C2 and C4, precisions and models, held against levels that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from claims_tools import (
    NOT_TESTED,
    REFUTED,
    SUPPORTED,
    UNDETERMINED,
    UNIT,
    amplitude,
    cell,
    errors,
    flat,
    held,
    only,
    pair,
    power,
)
from rounding import linear

from drift.reading.amplitudes import AMPLITUDE_POWERS
from drift.reading.claims.model import Status
from drift.reading.statistics.windows import late_start

pytestmark = pytest.mark.numerical


# ------------------------------------------------------------------------------------------ C2
@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(
    ("law", "status", "kind"),
    [
        (0.0, SUPPORTED, "structural"),
        (1.0, REFUTED, "rounding"),
        (0.5, REFUTED, "both"),
        (-0.1, REFUTED, "undetermined"),
    ],
)
def test_c2_finds_the_power_of_the_unit_roundoff(measure: str, law: float, status: Status, kind: str) -> None:
    dtypes = ("bf16", "fp16", "fp32")
    cells = [cell(flat(0.1 * (UNIT[d] / UNIT["bf16"]) ** law), dtype=d) for d in dtypes]
    found = only(cells, "C2 precision", measure)
    assert (found.status, found.detail["kind"]) == (status, kind)
    assert kind in found.words
    assert found.interval[0] <= law <= found.interval[1]
    # the slope by hand: least squares of the late mean of log drift on the log of the unit roundoff
    late = [np.log(amplitude(ds)[:, late_start(128) :]).mean() for ds in cells]
    by_hand = np.polyfit(np.log([UNIT[d] for d in dtypes]), late, 1)[0]
    assert found.estimate == pytest.approx(by_hand, rel=0, abs=linear(3 * 6 * 96, 20))  # logarithms of up to 20
    assert found.detail["ratio"] == pytest.approx(2**16)
    assert found.scope == "a, chunk 64, bf16/fp16/fp32"
    assert len(found.cells) == 3


def test_c2_accepts_the_published_effect_and_not_three_times_its_margin() -> None:
    published = only(pair(1 - 0.028, noise=0.02), "C2 precision")
    assert published.status is SUPPORTED
    want = -math.log(1 - 0.028) / math.log(2**16)
    assert published.estimate == pytest.approx(want, abs=errors(0.02) * math.sqrt(2) / math.log(2**16))
    assert published.margin == pytest.approx((-math.log(1.1) / math.log(2**16), math.log(1.1) / math.log(2**16)))
    assert only(pair(0.7, noise=0.02), "C2 precision").status is REFUTED
    assert only(pair(0.7, noise=0.02), "C2 precision", precision=0.6).status is SUPPORTED
    assert only(pair(1.0, noise=0.02), "C2 precision", precision=0.001).status is UNDETERMINED


def tost(series: np.ndarray, margin: float) -> float:
    """Two one-sided t tests over documents."""
    return max(
        float(scipy.stats.ttest_1samp(series, margin, alternative="less").pvalue),
        float(scipy.stats.ttest_1samp(series, -margin, alternative="greater").pvalue),
    )


def test_c2_a_difference_that_is_not_significant_supports_nothing() -> None:
    insignificant = 0
    for seed in range(8):
        cells = pair(1.0, between=0.5, documents=5, seed=seed)
        found = only(cells, "C2 precision")
        a, b = (np.log(amplitude(ds)[:, late_start(128) :]).mean(axis=1) for ds in cells)
        assert found.status is not SUPPORTED
        assert found.p_support >= tost(a - b, math.log(1.1)) * (1 - 1e-6)
        if scipy.stats.ttest_rel(a, b).pvalue > 0.1:
            insignificant += 1
            assert found.status is UNDETERMINED
    assert insignificant >= 4


def test_c2_support_never_rests_on_less_than_the_spread_of_the_documents() -> None:
    for seed in range(6):
        cells = pair(1.0, between=0.02, seed=seed)
        a, b = (np.log(amplitude(ds)[:, late_start(128) :]).mean(axis=1) for ds in cells)
        found = only(cells, "C2 precision")
        assert found.p_support >= tost(a - b, math.log(1.1)) * (1 - 1e-6)
        assert (found.status is SUPPORTED) == (found.p_support < 0.05)


def test_c2_takes_two_unit_roundoffs() -> None:
    for cells in ([cell()], [cell(dtype="fp16"), cell(dtype="tf32")]):  # those two have the same one
        row = held(cells, "C2 precision")
        assert (row.status, row.words, row.findings) == (NOT_TESTED, "no cells to compare.", ())
    apart = [cell(dtype="bf16"), cell(dtype="fp32", chunk_size=32, steps=256)]
    assert held(apart, "C2 precision").status is NOT_TESTED
    assert held([cell(dtype="bf16"), cell(dtype="fp32", steps=64)], "C2 precision").status is NOT_TESTED


def test_c2_divergences_enter_as_their_root() -> None:
    cells = [cell(flat(0.1 * UNIT[d] / UNIT["bf16"]), dtype=d) for d in ("bf16", "fp32")]
    for ds in cells:
        ds["logit_js"].values[...] = amplitude(ds) ** 2 / 4
        ds["hidden_cosine_distance"].values[:, -1] = amplitude(ds) ** 2 / 2
    slopes = {
        m: only(cells, "C2 precision", m).estimate for m in (*AMPLITUDE_POWERS, "logit_js", "hidden_cosine_distance")
    }
    assert slopes == pytest.approx(dict.fromkeys(slopes, 1.0), abs=errors() * math.sqrt(2) / math.log(2**16))


# ------------------------------------------------------------------------------------------ C4
@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(("ratio", "status"), [(1.2, SUPPORTED), (5.0, REFUTED), (0.2, REFUTED)])
def test_c4_compares_levels(measure: str, ratio: float, status: Status) -> None:
    cells = [cell(flat(0.1), model="a"), cell(flat(0.1 / ratio), model="b")]
    found = only(cells, "C4 level", measure)
    assert found.status is status
    assert found.estimate == pytest.approx(ratio, rel=errors() * math.sqrt(2))
    late = [np.log(amplitude(ds)[:, late_start(128) :]).mean() for ds in cells]
    assert found.estimate == pytest.approx(math.exp(late[0] - late[1]), rel=2 * linear(6 * 96, 10), abs=0)
    assert found.margin == (0.5, 2.0)
    assert found.scope == "a : b, bf16, chunk 64, 8192 tokens"
    assert only(cells, "C4 level", measure, family=6.0).status is SUPPORTED


def test_c4_says_nothing_where_noise_hides_the_ratio() -> None:
    for seed in range(5):
        cells = [cell(flat(), model=m, between=1.5, documents=4, seed=seed) for m in "ab"]
        found = only(cells, "C4 level")
        late = [np.log(amplitude(ds)[:, late_start(128) :]).mean(axis=1) for ds in cells]
        welch = scipy.stats.ttest_ind(*late, equal_var=False)
        assert found.status is not SUPPORTED
        assert welch.pvalue < 0.1 or found.status is UNDETERMINED


def test_c4_compares_all_pairs_over_the_same_text_length() -> None:
    three = [cell(flat(level), model=m) for m, level in zip("abc", (0.1, 0.12, 0.6), strict=True)]
    row = held(three, "C4 level")
    assert row.status is REFUTED
    statuses = {f.scope[:5]: f.status for f in row.findings}
    assert statuses == {"a : b": SUPPORTED, "a : c": REFUTED, "b : c": REFUTED}
    for other in ({"steps": 64}, {"dtype": "fp32"}, {"chunk_size": 32, "tokens": 8192}):
        assert held([cell(model="a"), cell(model="b", **other)], "C4 level").status is NOT_TESTED


def test_c4_takes_the_cell_with_most_documents() -> None:
    few, many, other = cell(flat(0.9), documents=2), cell(flat(0.1)), cell(flat(0.1), model="b")
    for cells in itertools.permutations([few, many, other]):
        assert only(cells, "C4 level").estimate == pytest.approx(1, rel=errors() * math.sqrt(2))


def test_c4_plateau_is_refuted_where_models_have_different_verdicts_on_c1() -> None:
    same = held([cell(model=m) for m in "ab"], "C4 plateau")
    assert (same.status, same.words) == (SUPPORTED, "2 models, bf16: a: saturated plateau; b: saturated plateau.")
    mixed = held([cell(model="a"), cell(power(0.5), model="b")], "C4 plateau")
    assert mixed.status is REFUTED
    assert "a: saturated plateau; b: growing" in mixed.words
    unknown = held([cell(model="a"), cell(model="b", steps=8)], "C4 plateau")
    assert unknown.status is UNDETERMINED
    assert held([cell(model="a"), cell(model="b", dtype="fp32")], "C4 plateau").status is NOT_TESTED


def test_c4_plateau_is_refuted_where_no_model_has_one() -> None:
    growing = held([cell(power(0.5), model=m) for m in "ab"], "C4 plateau")
    assert growing.status is REFUTED
    one = held([cell(power(0.5), model="a"), cell(model="b", steps=8)], "C4 plateau")
    assert one.status is REFUTED  # whatever the other turns out to be


def test_models_are_compared_on_the_same_kernels_only() -> None:
    cells = [cell(model="a"), cell(model="b").assign_coords(attn_implementation="eager")]
    assert held(cells, "C4 level").status is NOT_TESTED


def test_documents_are_compared_one_with_one_only_where_they_are_the_same_texts() -> None:
    one, other = pair(1.0)
    assert held([one, other], "C2 precision").status is SUPPORTED
    other.attrs["tokens_sha256"] = "c" * 64
    assert held([one, other], "C2 precision").status is NOT_TESTED


def test_a_precision_without_a_level_is_left_out_and_named() -> None:
    cells = [*pair(1.0), cell(flat(0.0), dtype="fp64", noise=0)]
    found = only(cells, "C2 precision")
    assert found.status is SUPPORTED
    assert "fp64 left out: drift is exactly zero" in found.words

"""The claims held against sweeps whose truth is known, and the procedures against their definitions."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.stats
import synthetic
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from rounding import gamma, linear
from scipy.signal import lfilter

from drift import dataset
from drift.claims import main as claims_main
from drift.dataset.sweep import Sweep
from drift.errors import ConfigError, DatasetError
from drift.reading import amplitudes
from drift.reading.amplitudes import AMPLITUDE_POWERS
from drift.reading.cells import DEEP_STEPS
from drift.reading.claims import auditing, chunking, model, page, testing
from drift.reading.claims import published as claims_published
from drift.reading.claims.auditing import audit
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.statistics.intervals import holm
from drift.reading.statistics.noise import window_mean
from drift.reading.statistics.windows import late_start

pytestmark = pytest.mark.numerical

SUPPORTED, REFUTED, UNDETERMINED, NOT_TESTED, WITHHELD = Status
UNIT = synthetic.ROUNDOFF


# ------------------------------------------------------------------------------------------ cells of known truth
def saturated(step: np.ndarray) -> np.ndarray:
    return 0.1 * (1 - 0.8 * np.exp(-step / 3))


def flat(level: float = 0.1) -> Callable[[np.ndarray], np.ndarray]:
    return lambda step: np.full(step.shape, level)


def power(exponent: float, level: float = 0.02) -> Callable[[np.ndarray], np.ndarray]:
    return lambda step: level * (step + 1) ** exponent


def ar1(rng: np.random.Generator, shape: tuple[int, ...], rho: float = 0.3) -> np.ndarray:
    noise = rng.standard_normal(shape)
    noise[..., 1:] *= math.sqrt(1 - rho**2)
    return np.asarray(lfilter([1.0], [1.0, -rho], noise, axis=-1))


def errors(noise: float = 0.05, *, slope: bool = False) -> float:
    """Four standard errors of the mean log of six documents in the judging window of 128 steps, or of its slope.

    Noise with the autocorrelation of :func:`ar1` counts (1 + rho) / (1 - rho) times in the variance.
    """
    x = np.log2(np.arange(late_start(128) + 1, 129))
    spread = math.sqrt(float(((x - x.mean()) ** 2).sum())) if slope else math.sqrt(len(x))
    return 4 * noise * math.sqrt(1.3 / 0.7 / 6) / spread


def put(ds: xr.Dataset, amplitude: np.ndarray) -> xr.Dataset:
    """Make every measure of the claims follow one amplitude [document, step]."""
    ds["hidden_rel_l2"].values[:, -1] = amplitude
    ds["key_rel_l2"].values[:, -1] = 0.7 * amplitude
    ds["value_rel_l2"].values[:, -1] = 1.1 * amplitude
    ds["logit_kl"].values[...] = amplitude**2
    ds["delta_p_rms"].values[...] = 0.3 * amplitude
    ds["nll_full"].values[...] = 3.0
    ds["nll_fold"].values[...] = 3.0 + 0.5 * amplitude
    return ds


def amplitude(ds: xr.Dataset) -> np.ndarray:
    return np.array(ds["hidden_rel_l2"].values[:, -1])


def cell(
    law: Callable[[np.ndarray], np.ndarray] = saturated,
    *,
    noise: float = 0.05,
    between: float = 0.0,
    seed: int = 0,
    documents: int = 6,
    steps: int = 128,
    chunk_size: int = 64,
    tokens: int | None = None,
    **options: Any,
) -> xr.Dataset:
    """One cell: autocorrelated noise on every step; `between` is the spread of the documents' levels."""
    given = {"model": "a", "layers": 2, "protocol": "reprime", "tokens": tokens or steps * chunk_size} | options
    ds = synthetic.cell(**given, chunk_size=chunk_size, documents=documents, noise=0.0, level=law)  # type: ignore[arg-type]
    rng = np.random.default_rng([seed, chunk_size, *str(given).encode()])
    shape = documents, ds.sizes["step"]
    noisy = noise * ar1(rng, shape) + between * rng.standard_normal((documents, 1))
    return put(ds, amplitude(ds) * np.exp(noisy))


def pair(ratio: float, *, dtypes: tuple[str, str] = ("bf16", "fp32"), **options: Any) -> list[xr.Dataset]:
    """Two precisions, the second with `ratio` times the drift of the first."""
    return [cell(flat(0.1 * r), dtype=d, **options) for r, d in zip((1.0, ratio), dtypes, strict=True)]


def held(
    cells: Sequence[xr.Dataset], name: str, measure: str = "hidden_rel_l2", **margins: float
) -> model.ClaimSummary:
    """The row on one claim of a sweep with one protocol."""
    with mock.patch.object(auditing, "CLAIMS", [c for c in claims_published.CLAIMS if c.name == name]):
        (row,) = audit(Sweep(cells), measure, others=[], setting=Setting(**margins)).summaries
    return row


def only(cells: Sequence[xr.Dataset], name: str, measure: str = "hidden_rel_l2", **margins: float) -> Finding:
    row = held(cells, name, measure, **margins)
    (finding,) = row.findings
    assert row.status is finding.status
    assert row.words == f"{finding.scope}: {finding.words}"
    return finding


# ------------------------------------------------------------------------------------------ Holm's procedure
@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02, math.nan, 0.03], [0.04, math.nan, 0.04]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([math.nan], [math.nan]),
        ([], []),
    ],
)
def test_holm_worked_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted, nan_ok=True)


# Multiples of 1/256: products with small integers are exact, so that sets can be compared and not only numbers.
_P = st.lists(st.integers(0, 256).map(lambda k: k / 256), max_size=6)
_ALPHA = st.integers(1, 200).map(lambda k: k / 512)


def step_down(p: Sequence[float], alpha: float) -> set[int]:
    """Rejections by the definition: from the smallest p-value up, until the first that does not pass."""
    rejected: set[int] = set()
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if not p[place] * (len(p) - rank) < alpha:
            break
        rejected.add(place)
    return rejected


def closed(p: Sequence[float], alpha: float) -> set[int]:
    """Rejections by closed testing: every intersection that holds the hypothesis fails Bonferroni's test."""
    subsets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), k)]
    return {i for i in range(len(p)) if all(min(p[j] for j in s) * len(s) < alpha for s in subsets if i in s)}


@given(p=_P, alpha=_ALPHA)
def test_holm_rejects_what_the_definition_and_closed_testing_reject(p: list[float], alpha: float) -> None:
    rejected = {i for i, value in enumerate(holm(p)) if value < alpha}
    assert rejected == step_down(p, alpha) == closed(p, alpha)


@given(p=st.lists(st.floats(0, 1), max_size=8), data=st.data())
def test_holm_is_monotone_conservative_and_blind_to_order_and_to_nan(p: list[float], data: st.DataObject) -> None:
    adjusted = holm(p)
    assert all(a >= raw for a, raw in zip(adjusted, p, strict=True))
    assert all(0 <= a <= 1 for a in adjusted)
    assert all(adjusted[i] <= adjusted[j] for i in range(len(p)) for j in range(len(p)) if p[i] <= p[j])
    order = data.draw(st.permutations(range(len(p))))
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]
    place = data.draw(st.integers(0, len(p)))
    with_nan = holm([*p[:place], math.nan, *p[place:]])
    assert math.isnan(with_nan.pop(place))
    assert with_nan == adjusted


# ------------------------------------------------------------------------------------------ many cells, one verdict
def finding(status: Status, p_refute: float = math.nan, scope: str = "x", measure: str = "hidden_rel_l2") -> Finding:
    nan = math.nan
    return Finding(
        "C2", "precision", "append", measure, scope, status, "slope", 0.1, (0.0, 0.2), (-0.1, 0.1), nan, p_refute,
        f"words on {scope}.", cells=(f"{scope}.nc",),
    )  # fmt: skip


def combine(*findings: Finding) -> Status:
    return auditing._combine(findings, 0.05)


def test_support_needs_every_cell() -> None:
    good = finding(SUPPORTED, 0.999)
    assert combine() is NOT_TESTED
    assert combine(good) is SUPPORTED
    assert combine(*[good] * 9) is SUPPORTED
    assert combine(*[good] * 9, finding(UNDETERMINED, 0.5)) is UNDETERMINED
    assert combine(*[good] * 9, finding(UNDETERMINED)) is UNDETERMINED
    assert combine(*[finding(UNDETERMINED)] * 3) is UNDETERMINED


def test_refutation_survives_holm_or_is_none() -> None:
    rest = [finding(SUPPORTED, 0.9)] * 19
    assert combine(*rest, finding(REFUTED, 1e-6)) is REFUTED
    assert combine(*rest, finding(REFUTED, 0.01)) is UNDETERMINED  # 20 * 0.01 is 0.2
    assert combine(*rest[:3], finding(REFUTED, 0.01)) is REFUTED  # 4 * 0.01 is 0.04
    assert combine(finding(REFUTED, 0.049)) is REFUTED
    assert combine(finding(REFUTED, 0.03), finding(REFUTED, 0.03)) is UNDETERMINED
    assert combine(finding(REFUTED, 0.02), finding(REFUTED, 0.04)) is REFUTED


def test_what_was_not_tested_costs_no_correction() -> None:
    assert combine(*[finding(UNDETERMINED)] * 30, finding(REFUTED, 0.04)) is REFUTED
    assert combine(*[finding(SUPPORTED)] * 30, finding(REFUTED)) is REFUTED  # a refutation without a test of its own


@given(
    st.lists(st.tuples(st.sampled_from([SUPPORTED, REFUTED, UNDETERMINED]), st.floats(1e-6, 0.0499)), min_size=1),
    st.randoms(use_true_random=False),
)
def test_the_order_of_cells_decides_nothing(rows: list[tuple[Status, float]], rng: random.Random) -> None:
    findings = [finding(s, p if s is REFUTED else 0.5 + p) for s, p in rows]
    found = combine(*findings)
    assert (found is SUPPORTED) == all(s is SUPPORTED for s, _ in rows)
    refuted = [i for i, (s, _) in enumerate(rows) if s is REFUTED]
    assert (found is REFUTED) == bool(set(refuted) & step_down([f.p_refute for f in findings], 0.05))
    rng.shuffle(findings)
    assert combine(*findings) is found


def test_audit_asks_every_measure_and_shows_which_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "hidden_rel_l2": [finding(SUPPORTED, 0.9, "a"), finding(SUPPORTED, 0.9, "b | c")],
        "logit_kl": [finding(REFUTED, 1e-9, "a", "logit_kl"), finding(SUPPORTED, 0.9, "b", "logit_kl")],
        "nll_gap": [finding(REFUTED, 0.04, "a", "nll_gap"), finding(SUPPORTED, 0.9, "b", "nll_gap")],
        "key_rel_l2": [finding(SUPPORTED, 0.9, "a", "key_rel_l2")],
        "delta_p_rms": [],
    }
    asked = []

    def test(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
        asked.append((measure, layer, [ds["protocol"].item() for ds in sweep]))
        yield from answers[measure]

    claim = model.Claim("C9", "pipes", "x | y", "within {growth}", test, "", "nothing")
    monkeypatch.setattr(auditing, "CLAIMS", (claim,))
    sweep = Sweep([cell(steps=4, protocol=p) for p in ("append", "reprime")])
    found = audit(sweep, layer=1, others=list(answers))
    assert [s.protocol for s in found.summaries] == ["append", "reprime"]
    assert asked[:2] == [("hidden_rel_l2", 1, ["append"]), ("logit_kl", "last", ["append"])]
    row = found.summaries[0]
    assert row.status is SUPPORTED
    assert row.findings == tuple(answers["hidden_rel_l2"])
    assert row.others == {"logit_kl": REFUTED, "nll_gap": UNDETERMINED, "key_rel_l2": SUPPORTED}
    assert row.differing == {"logit_kl": REFUTED, "nll_gap": UNDETERMINED}
    assert page.differing(row) == "refuted: logits (KL); undetermined: NLL"
    assert len(found.findings) == 2 * sum(map(len, answers.values()))
    table = found.as_dict()["claims"]
    assert table[0]["cells"] == ["a.nc", "b | c.nc"]
    assert (table[0]["verdict"], table[0]["margin"]) == ("supported", "within 5 %")
    lines = page.markdown(found).splitlines()
    assert len(lines) == 2 + len(found.summaries)
    for line in lines:  # six columns: seven bars that are not escaped
        assert line.replace("\\|", "").count("|") == 7
    assert "x \\| y" in lines[2]


# ------------------------------------------------------------------------------------------ C1
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


# ------------------------------------------------------------------------------------------ C3
class Text:
    """Drift of every token of a text, from which cells of any chunk size are made."""

    def __init__(self, tokens: int = 8192, documents: int = 6, seed: int = 0, spread: float = 0.3) -> None:
        rng = np.random.default_rng(seed)
        shape = documents, tokens
        self.tokens, self.documents = tokens, documents
        self.norm2 = np.exp(0.5 * rng.standard_normal(shape))  # of the state
        self.error2 = self.norm2 * (0.1 * np.exp(spread * rng.standard_normal(shape))) ** 2
        self.kl = (0.1 * np.exp(spread * rng.standard_normal(shape))) ** 2
        self.delta_p = 0.03 * np.exp(spread * rng.standard_normal(shape))
        self.gap = 0.05 + 0.05 * rng.standard_normal(shape)

    def cell(self, chunk_size: int, factor: float = 1.0, stride: int = 1) -> xr.Dataset:
        """The cell of one chunk size; its drift is `factor` times that of the text; logits of every `stride`-th."""
        ds = synthetic.cell(
            model="a", layers=2, protocol="reprime", tokens=self.tokens, documents=self.documents, chunk_size=chunk_size
        )
        starts = ds["token_start"].values
        sampled = np.arange(self.tokens) % stride == 0
        target = sampled & (np.arange(self.tokens) < self.tokens - 1)

        def pool(values: np.ndarray) -> np.ndarray:
            return np.add.reduceat(values, starts, axis=-1)

        ds["logit_count"].values[...] = pool(sampled.astype(int))
        ds["target_count"].values[...] = pool(target.astype(int))
        norm2, error2 = pool(self.norm2), pool(self.error2)
        ds["hidden_norm"].values[:, -1] = np.sqrt(norm2)
        ds["hidden_rel_l2"].values[:, -1] = factor * np.sqrt(error2 / norm2)
        ds["hidden_norm"].values[:, 1] = np.sqrt(pool(self.norm2[:, ::-1]))
        ds["hidden_rel_l2"].values[:, 1] = np.sqrt(pool(self.error2[:, ::-1]) / pool(self.norm2[:, ::-1]))
        for name in ("key_rel_l2", "value_rel_l2"):  # keys and values of equal norm at every token
            ds[name].values[:, -1] = factor * np.sqrt(pool(self.error2 / self.norm2) / pool(np.ones(self.tokens)))
        with np.errstate(invalid="ignore"):  # a step without sampled tokens has no logits to compare: NaN
            ds["logit_kl"].values[...] = factor**2 * pool(self.kl * sampled) / pool(sampled * 1.0)
            ds["delta_p_rms"].values[...] = factor * np.sqrt(pool(self.delta_p**2 * target) / pool(target * 1.0))
            gap = factor * pool(self.gap * target) / pool(target * 1.0)
        ds["nll_full"].values[...] = np.where(np.isnan(gap), np.nan, 3.0)
        ds["nll_fold"].values[...] = 3.0 + gap
        return ds

    def blocks(self, measure: str, size: int, stride: int = 1) -> np.ndarray:
        """Amplitude of blocks of `size` tokens, from the tokens themselves; what does not fill one is left out."""
        count = self.tokens // size
        sampled = np.arange(self.tokens) % stride == 0
        target = sampled & (np.arange(self.tokens) < self.tokens - 1)

        def mean(values: np.ndarray, of: np.ndarray) -> np.ndarray:
            values, of = (np.broadcast_to(v, self.norm2.shape)[:, : count * size] for v in (values, of))
            parts = values.reshape(-1, count, size), of.reshape(-1, count, size)
            return parts[0].sum(axis=2) / parts[1].sum(axis=2)

        if measure == "hidden_rel_l2":
            return np.sqrt(mean(self.error2, self.norm2))
        if measure == "logit_kl":
            return np.sqrt(mean(self.kl * sampled, sampled))
        if measure == "delta_p_rms":
            return np.sqrt(mean(self.delta_p**2 * target, target))
        if measure == "nll_gap":
            return np.abs(mean(self.gap * target, target))
        return np.sqrt(mean(self.error2 / self.norm2, np.ones(self.tokens)))


def pooling(tokens: int, measure: str = "hidden_rel_l2") -> tuple[float, float]:
    """Relative and absolute rounding of quotients of sums over tokens, by two ways of which one goes over chunks.

    A gap has either sign, and is the difference of two NLL around 3.
    """
    return gamma(4 * tokens + 40), linear(tokens, 3.5) if measure == "nll_gap" else 0.0


def pooled(ds: xr.Dataset, measure: str, size: int, layer: int | str = "last") -> np.ndarray:
    return chunking._blocks(ds, amplitudes.amplitude(ds, measure, layer), measure, size, layer)


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(
    ("tokens", "size", "block"), [(1024, 64, 256), (1000, 50, 200), (1024, 2, 64), (512, 512, 512)]
)
@pytest.mark.parametrize("stride", [1, 5])
def test_blocks_are_what_the_tokens_say(measure: str, tokens: int, size: int, block: int, stride: int) -> None:
    text = Text(tokens=tokens, documents=3)
    found = pooled(text.cell(size, stride=stride), measure, block)
    assert found.shape == (3, tokens // block)
    rtol, atol = pooling(block, measure)
    np.testing.assert_allclose(found, text.blocks(measure, block, stride), rtol=rtol, atol=atol)


def test_blocks_pool_by_the_norm_of_their_own_layer() -> None:
    text = Text(tokens=512, documents=2)
    count = (2, 4, 128)
    expected = np.sqrt(text.error2[:, ::-1].reshape(count).sum(axis=2) / text.norm2[:, ::-1].reshape(count).sum(axis=2))
    found = pooled(text.cell(32), "hidden_rel_l2", 128, layer=1)
    np.testing.assert_allclose(found, expected, rtol=pooling(128)[0])


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(("tokens", "size", "block"), [(1024, 64, 96), (4096, 96, 256), (1000, 96, 128), (300, 7, 100)])
def test_chunks_across_a_border_count_by_their_tokens(measure: str, tokens: int, size: int, block: int) -> None:
    ds = Text(tokens=tokens, documents=3).cell(size)
    # the same, token by token: every token of a chunk has its chunk's share of what was measured, and its weight
    length = np.diff([*ds["token_start"].values, tokens])
    names = {"logit_kl": "logit_count", "delta_p_rms": "target_count", "nll_gap": "target_count"}
    weight = np.broadcast_to(length, (3, len(length))).astype(float)
    if measure == "hidden_rel_l2":
        weight = ds["hidden_norm"].values[:, -1] ** 2
    elif measure in names:
        weight = ds[names[measure]].values.astype(float)
    values = amplitudes.amplitude(ds, measure, "last") ** 2
    if measure == "nll_gap":
        values = ds["nll_fold"].values - ds["nll_full"].values
    kept = tokens // block * block
    parts = [np.repeat(v / length, length, axis=1)[:, :kept].reshape(3, -1, block) for v in (weight * values, weight)]
    expected = parts[0].sum(axis=2) / parts[1].sum(axis=2)
    expected = np.abs(expected) if measure == "nll_gap" else np.sqrt(expected)
    # Sums up to a border are taken from one another: a block's share of the text is what is left of their digits.
    rtol, atol = (tokens / block * bound for bound in pooling(tokens, measure))
    np.testing.assert_allclose(pooled(ds, measure, block), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize("sizes", [(32, 64, 128, 256), (64, 96), (32, 96, 64)], ids=str)
def test_c3_the_same_drift_at_every_token_does_not_depend_on_the_chunks(measure: str, sizes: tuple[int, ...]) -> None:
    text = Text()
    found = only([text.cell(s) for s in sizes], "C3 chunk size", measure)
    assert found.status is SUPPORTED
    # Chunks across a border give half of themselves to either side: squares that scatter by twice 0.3, at 6 x 8192
    # tokens, four standard errors. Without such chunks there is nothing but rounding, of logarithms of up to 10.
    assert found.estimate == pytest.approx(
        0, rel=0, abs=4 * 2 * 0.3 / math.sqrt(6 * 8192) if 96 in sizes else linear(8192, 10)
    )
    assert found.scope == f"a bf16, chunks {', '.join(map(str, sorted(sizes)))}"


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(("growth", "status"), [(0.2, REFUTED), (-0.2, REFUTED), (0.02, SUPPORTED)])
def test_c3_finds_the_change_per_doubling(measure: str, growth: float, status: Status) -> None:
    text, sizes = Text(spread=0.1), (32, 64, 128, 256)
    cells = [text.cell(s, (1 + growth) ** math.log2(s / 32)) for s in sizes]
    found = only(cells, "C3 chunk size", measure)
    assert found.status is status
    bound = linear(8192, 10)  # rounding of logarithms of up to 10: the noise is the same in every cell
    assert found.estimate == pytest.approx(growth, rel=0, abs=bound)
    assert found.interval[0] <= growth + bound
    assert found.interval[1] >= growth - bound
    assert found.margin == pytest.approx((-0.05 / 1.05, 0.05))
    wide = only(cells, "C3 chunk size", measure, chunk=0.3)
    assert wide.status is SUPPORTED


def test_c3_noise_that_hides_a_change_supports_nothing() -> None:
    insignificant = 0
    for seed in range(6):
        cells = [cell(flat(), chunk_size=c, tokens=8192, between=0.5, documents=5, seed=seed) for c in (64, 128)]
        found = only(cells, "C3 chunk size")
        assert found.status is not SUPPORTED
        insignificant += found.status is UNDETERMINED
    assert insignificant >= 3


def test_c3_compares_one_text_and_no_chunk_that_is_larger() -> None:
    assert held([cell(chunk_size=64)], "C3 chunk size").status is NOT_TESTED
    other = [cell(chunk_size=64, tokens=8192), cell(chunk_size=128, tokens=4096)]
    assert held(other, "C3 chunk size").status is NOT_TESTED
    text = Text(tokens=2048)
    cells = [text.cell(s) for s in (64, 128)]
    assert only([*cells, text.cell(4096)], "C3 chunk size") == only(cells, "C3 chunk size")
    assert held([cells[0], text.cell(4096)], "C3 chunk size").status is NOT_TESTED
    # one block is all there is, and no spread of documents: no noise model
    few = Text(tokens=512, documents=3)
    lone = only([few.cell(64), few.cell(512)], "C3 chunk size")
    assert (lone.status, math.isnan(lone.estimate)) == (UNDETERMINED, True)
    assert "too few steps" in lone.words


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


def test_refuting_takes_both_sides_into_account() -> None:
    """Without any effect, a margin that is small against the noise is refuted in no more than one run in twenty."""
    rng = np.random.default_rng(7)
    refuted = 0
    for _ in range(400):
        found = window_mean(0.2 * rng.standard_normal((1, 8, 24)))
        assert found is not None
        support, refute = testing.margin_tests(found, -1e-9, 1e-9)
        assert support > 0.4
        refuted += refute < 0.05
    assert refuted <= 400 * 0.05 + 2.33 * math.sqrt(400 * 0.05 * 0.95)


def test_a_precision_without_a_level_is_left_out_and_named() -> None:
    cells = [*pair(1.0), cell(flat(0.0), dtype="fp64", noise=0)]
    found = only(cells, "C2 precision")
    assert found.status is SUPPORTED
    assert "fp64 left out: drift is exactly zero" in found.words


# ------------------------------------------------------------------------------------------ C5, C6
def test_what_drift_does_not_measure_is_not_tested_whatever_the_data() -> None:
    for cells in ([cell()], pair(1.0), [cell(steps=1, documents=1, protocol=p) for p in ("append", "restart")]):
        for measure in ("hidden_rel_l2", "logit_kl"):
            rows = [s for s in audit(Sweep(cells), measure, others=[]).summaries if s.claim.key in ("C5", "C6")]
            assert [(s.claim.key, s.status) for s in rows] == [("C5", NOT_TESTED), ("C6", NOT_TESTED)]
            for s in rows:
                assert len(s.words) > 20
                assert (s.protocol, s.findings, s.others, s.differing) == ("", (), {}, {})


# ------------------------------------------------------------------------------------------ zeros and NaN
def spoilt(how: str) -> list[xr.Dataset]:
    """A sweep in which every comparison meets one cell with zeros or what is not a number."""
    bad = cell(seed=4)
    cells = [cell(dtype="fp32"), cell(model="b"), bad, cell(chunk_size=128, tokens=8192)]
    values = amplitude(bad)
    if how == "all zero":
        values[:] = 0
    elif how == "many zeros":
        values[:, 60::4] = 0
    elif how == "some zeros":
        values[1, 70:73] = 0
        values[4, 50] = 0
    elif how == "some start at zero":
        values[:2, 0] = 0
    elif how == "all start at zero":
        values[:, 0] = 0
    elif how == "zero document":
        values[2] = 0
    else:
        values[3, int(how.split()[-1])] = float(how.split()[0])
    put(bad, values)
    bad.attrs["title"] = "the bad one"
    return cells


@pytest.mark.parametrize(
    "how",
    [
        "all zero", "many zeros", "some zeros", "some start at zero", "all start at zero", "zero document",
        "nan 0", "nan 90", "nan 127", "inf 0", "inf 90",
    ],
)  # fmt: skip
def test_zeros_and_nan_are_said_and_never_a_silent_number(how: str) -> None:
    cells = spoilt(how)
    found = audit(Sweep(cells), others=["logit_kl", "nll_gap"])  # warnings are errors
    json.dumps(found.as_dict(), allow_nan=False)
    page.markdown(found)
    mine = [f for f in found.findings if "the bad one" in f.cells and f"{f.claim} {f.part}" != "C4 plateau"]
    assert {f"{f.claim} {f.part}" for f in mine} == {
        "C1 plateau", "C1 rise", "C2 precision", "C3 chunk size", "C4 level"
    }  # fmt: skip
    for f in mine:
        if how.startswith(("nan", "inf")):
            assert math.isnan(f.estimate)
            assert f.status is UNDETERMINED
            assert any(word in f.words for word in ("NaN or Inf", "cannot be compared", "no level to compare"))
        elif how in ("all zero", "many zeros", "zero document") and f.part != "chunk size":
            assert math.isnan(f.estimate)
            assert f.status is UNDETERMINED
            assert any(word in f.words for word in ("exactly zero", "cannot be compared", "no level to compare"))
        elif f.part != "chunk size":  # a block that is not all zero has a level
            assert "exactly zero" in f.words
        elif not math.isnan(f.estimate):
            (bad,) = (ds for ds in cells if ds.attrs["title"] == "the bad one")
            assert ("exactly zero" in f.words) == bool((pooled(bad, f.measure, 128) == 0).any())
    statuses = {s.claim.name: s.status for s in found.summaries}
    if how.startswith(("nan", "inf", "all zero")):
        assert statuses["C1 plateau"] is UNDETERMINED
        assert statuses["C4 plateau"] is UNDETERMINED


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


def test_a_curve_whose_every_finding_is_nan_leaves_no_number_in_the_summary() -> None:
    cells = [cell(model=m) for m in "ab"]
    for ds in cells:
        put(ds, np.full((6, 128), np.nan))
    for row in audit(Sweep(cells)).summaries:
        assert row.status in (UNDETERMINED, NOT_TESTED)
        assert "nan" not in row.words.lower().replace("nan or inf", "")


# ------------------------------------------------------------------------------------------ mixed evidence
def test_measures_that_disagree_are_named() -> None:
    cells = [cell(model=m, seed=3) for m in "ab"]
    for ds in cells:  # logits keep growing where the hidden state is flat
        ds["logit_kl"].values[...] = (amplitude(ds) * (np.arange(128) + 1) ** 0.5) ** 2
    row = audit(Sweep(cells)).summaries[0]
    assert (row.claim.name, row.status) == ("C1 plateau", SUPPORTED)
    assert row.differing == {"logit_kl": REFUTED}
    assert page.differing(row) == "refuted: logits (KL)"
    turned = audit(Sweep(cells), "logit_kl").summaries[0]
    assert turned.status is REFUTED
    assert set(turned.differing) == set(AMPLITUDE_POWERS) - {"logit_kl"}
    assert set(turned.differing.values()) == {SUPPORTED}


def test_findings_are_kept_by_model_and_cells_are_named(tmp_path: Path) -> None:
    cells = [cell(model="a"), cell(power(0.5), model="b"), cell(model="c", steps=8)]
    for ds in cells:
        dataset.write(ds, tmp_path / f"{ds['model'].item()}.nc")
    found = audit(dataset.open_sweep(tmp_path), others=[])
    row = found.summaries[0]
    assert row.status is REFUTED
    assert [(f.scope, f.status, f.cells) for f in row.findings] == [
        ("a bf16, chunk 64", SUPPORTED, ("a.nc",)),
        ("b bf16, chunk 64", REFUTED, ("b.nc",)),
        ("c bf16, chunk 64", UNDETERMINED, ("c.nc",)),
    ]
    assert row.words.startswith("1 supported, 1 refuted, 1 undetermined of 3")
    assert found.as_dict()["claims"][0]["cells"] == ["a.nc", "b.nc", "c.nc"]


def test_protocols_are_rows_of_their_own() -> None:
    found = audit(Sweep([cell(), cell(power(0.5), protocol="append")]), others=[])
    rows = [(s.protocol, s.status) for s in found.summaries if s.claim.name == "C1 plateau"]
    assert rows == [("append", REFUTED), ("reprime", SUPPORTED)]


def test_few_documents_speak_of_themselves_only() -> None:
    cells = [cell(model=m, dtype=d, documents=2) for m in "ab" for d in ("bf16", "fp32")]
    cells.append(cell(chunk_size=128, tokens=8192, documents=2))
    found = audit(Sweep(cells), others=[]).findings
    assert len({(f.claim, f.part) for f in found}) == 6
    for f in found:
        assert "within these documents only" in f.words or f"{f.claim} {f.part}" == "C4 plateau"
    many = audit(Sweep([cell(documents=4), cell(dtype="fp32", documents=4)]), others=[]).findings
    assert all("within these documents" not in f.words for f in many)


def test_the_order_of_cells_changes_nothing() -> None:
    cells = [
        cell(model=m, dtype=d, chunk_size=c, tokens=4096, documents=n, noise=0.1)
        for m in "ab" for d in ("bf16", "fp32") for c, n in ((64, 4), (128, 4), (128, 5))
    ]  # fmt: skip

    def said(cells: Sequence[xr.Dataset]) -> tuple[list[str], list[str]]:
        told = audit(Sweep(cells), others=["logit_kl"]).as_dict()
        # cells that differ in nothing but their documents stay in the order they came in
        return [json.dumps(row) for row in told["claims"]], sorted(json.dumps(row) for row in told["findings"])

    expected = said(cells)
    for seed in range(3):
        random.Random(seed).shuffle(cells)
        assert said(cells) == expected


# ------------------------------------------------------------------------------------------ what is asked
@pytest.mark.parametrize(
    "setting",
    [{name: bad} for name in ("growth", "precision", "chunk", "proportional") for bad in (0, 1, -0.1, math.nan)]
    + [{name: bad} for name in ("family", "rise") for bad in (1, 0.5, math.nan, math.inf)]
    + [{"alpha": bad} for bad in (0, 0.5, -1, math.nan)],
    ids=str,
)
def test_margins_that_make_no_sense_are_errors(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        audit(Sweep([cell(steps=4)]), setting=Setting(**setting))


def test_what_is_not_there_is_an_error() -> None:
    sweep = Sweep([cell(steps=4)])
    with pytest.raises(DatasetError, match="no cell"):
        audit(Sweep([]))
    for measure in ("no_such_measure", "hidden_norm", "nll_full"):
        with pytest.raises(DatasetError, match=measure):
            audit(sweep, measure)
        with pytest.raises(DatasetError, match=measure):
            audit(sweep, others=[measure])
    for layer in (99, "second"):
        with pytest.raises(DatasetError, match=f"no layer {layer!r}"):
            audit(sweep, layer=layer, others=[])


def test_another_layer_is_another_curve() -> None:
    ds = cell()
    ds["hidden_rel_l2"].values[:, 1] = amplitude(cell(power(0.5)))
    assert audit(Sweep([ds]), layer=1, others=[]).summaries[0].status is REFUTED
    assert audit(Sweep([ds]), others=[]).summaries[0].status is SUPPORTED


def test_json_is_strict_and_complete() -> None:
    found = audit(Sweep(spoilt("all zero")))
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["setting"] == vars(Setting())
    assert [(r["claim"], r["part"]) for r in told["claims"]] == [(c.key, c.part) for c in claims_published.CLAIMS]
    assert {r["verdict"] for r in told["claims"]} <= {s.value for s in Status}
    assert len(told["findings"]) == len(found.findings)
    assert {f["measure"] for f in told["findings"]} == set(AMPLITUDE_POWERS)
    assert told["claims"][-1]["protocol"] is None
    assert all("{" not in r["margin"] for r in told["claims"])


def test_claims_are_data() -> None:
    assert [c.name for c in claims_published.CLAIMS] == [
        "C1 plateau", "C1 rise", "C1 excess", "C1 accumulation", "C2 precision", "C3 chunk size", "C4 level",
        "C4 plateau", "C5 retrieval", "C6 cost"
    ]  # fmt: skip
    for c in claims_published.CLAIMS:
        assert (c.audit is None) == bool(c.not_tested)
        assert c.published
        assert c.changes
        assert c.margin_text(Setting())


# ------------------------------------------------------------------------------------------ command line
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("claims") / "sweep"
    for m, d in itertools.product("ab", ("bf16", "fp32")):
        law = power(math.log2(1.08)) if m == "b" else saturated
        dataset.write(cell(law, model=m, dtype=d, noise=0.03), root / f"{m}_{d}.nc")
    return root


def test_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main([str(folder)]) == 0
    short = capsys.readouterr()
    assert short.err == ""
    assert all(c.name in short.out for c in claims_published.CLAIMS)
    assert "REFUTED       2 supported, 2 refuted of 4" in short.out
    assert "a bf16, chunk 64: supported" not in short.out
    assert claims_main([str(folder), "--details"]) == 0
    long = capsys.readouterr().out
    assert "a bf16, chunk 64: supported: saturated plateau" in long
    assert "b fp32, chunk 64: refuted: growing" in long
    assert set(short.out.splitlines()) <= set(long.splitlines())


def test_markdown_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main([str(folder), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(claims_published.CLAIMS)
    assert all(line.startswith(("| ", "|---")) for line in lines)
    assert "**refuted**" in lines[2]
    assert claims_main([str(folder), "--json", "--measure", "logit_kl", "--layer", "1"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {r["measure"] for r in told["claims"]} == {"logit_kl"}
    assert told["claims"][0]["cells"] == ["a_bf16.nc", "a_fp32.nc", "b_bf16.nc", "b_fp32.nc"]


@pytest.mark.parametrize("margin", ["growth=15%", "growth=0.15"])
def test_margins_on_the_command_line(margin: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main([str(folder), "--json", "--margin", margin, "--margin", "family=3", "--alpha", "0.04"]) == 0
    told = json.loads(capsys.readouterr().out)
    wanted = vars(Setting(growth=0.15, family=3.0, alpha=0.04))
    assert told["setting"] == pytest.approx(wanted)
    assert told["claims"][0]["verdict"] == "supported"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--margin", "growth"], "NAME=NUMBER"),
        (["--margin", "growth=wide"], "NAME=NUMBER"),
        (["--margin", "growth=nan"], "NAME=NUMBER"),
        (["--margin", "alpha=0.1"], "NAME=NUMBER"),
        (["--margin", "width=0.1"], "growth, precision, chunk, family, proportional, rise"),
        (["--margin", "growth=200%"], "growth"),
        (["--margin", "family=inf"], "family"),
        (["--alpha", "0.7"], "alpha"),
        (["--measure", "no_such_measure"], "no_such_measure"),
        (["--layer", "99"], "no layer 99"),
        (["--layer", "last-but-one"], "no layer"),
        (["--layer", "²"], "no layer"),
    ],
)
def test_mistakes_are_told_and_end_with_two(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claims_main([str(folder / "a_bf16.nc"), *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert said in told.err
    assert told.err.count("\n") == 1


def test_no_folder_no_cells_and_broken_files(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert claims_main([str(tmp_path)]) == 2
    assert "no cell that can be read" in capsys.readouterr().err
    (tmp_path / "good.nc").write_bytes((folder / "a_bf16.nc").read_bytes())
    (tmp_path / "broken.nc").write_bytes(b"not a netCDF file")
    assert claims_main([str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "broken.nc was left out" in told.err
    assert "saturated plateau" in told.out
    with pytest.raises(SystemExit) as stopped:
        claims_main([str(folder), "--json", "--markdown"])
    assert stopped.value.code == 2


def test_help_needs_no_model_and_no_pictures() -> None:
    code = (
        "import sys, drift.claims\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'seaborn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "drift.claims.main(['--help'])"
    )
    told = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")
    assert "usage: python -m drift.claims" in told.stdout


def test_protocols_that_were_not_tested_share_a_row() -> None:
    cells = [cell(protocol=name) for name in ("append", "restart", "reprime")]
    found = audit(Sweep(cells), others=[])
    assert [s.protocol for s in found.summaries if s.claim.name == "C3 chunk size"] == ["append", "reprime", "restart"]
    rows = [line for line in page.markdown(found).splitlines() if line.startswith("| C3")]
    assert len(rows) == 1
    assert "append, reprime, restart" in rows[0]
    assert page.html(found).count("no cells to compare") == page.markdown(found).count("no cells to compare")

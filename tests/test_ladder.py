"""The ladder against slopes and shares that are known in closed form."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import synthetic
import synthetic_controls as made
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import linear

from drift import dataset
from drift import ladder as drift_ladder
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import figures, ladder, summary
from drift.reading.claims import precision
from drift.reading.claims.model import Setting
from drift.reading.statistics.intervals import Interval, mean_interval
from drift.reading.statistics.slope import (
    ROUNDING_MARGIN,
    STRUCTURAL_MARGIN,
    Scaling,
    ScalingReason,
    judge,
    log_log,
    slope,
)
from drift.reading.wording.verdicts import SCALING_WORDS

pytestmark = pytest.mark.numerical

UNIT = synthetic.ROUNDOFF


def values(exponents: list[float], u: list[float], steps: int = 32, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Drift [rung, document, step]: the power law of each document, with noise."""
    rng = np.random.default_rng(seed)
    law = np.asarray(u)[:, None] ** np.asarray(exponents)[None]
    return law[:, :, None] * np.exp(noise * rng.standard_normal((len(u), len(exponents), steps)))


def rungs(
    power: float, dtypes: tuple[str, ...] = ("bf16", "fp32"), floor: float = 0.0, **more: object
) -> list[xr.Dataset]:
    """Cells whose drift is u^power, plus a part that does not depend on the precision."""
    rng = np.random.default_rng(int(1000 * (power + 10)))
    options = {"documents": 4, "steps": 32} | more
    shape = options.pop("documents"), options.pop("steps")
    return [
        made.make((UNIT[d] ** power + floor) * np.exp(0.03 * rng.standard_normal(shape)), dtype=d, **options)  # type: ignore[arg-type]
        for d in dtypes
    ]


# ---------------------------------------------------------------------------------------------- the estimate
def test_intervals_are_those_of_student() -> None:
    x = np.array([1.0, 1.4, 0.7, 1.1, 0.9])
    found = mean_interval(x)
    expected = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert found.pair == pytest.approx((expected.low, expected.high))
    assert found.standard_error == pytest.approx(scipy.stats.sem(x))
    assert mean_interval([2.0]).value == 2
    assert math.isnan(mean_interval([2.0]).low)
    assert math.isnan(mean_interval([]).value)


def test_slopes_are_those_of_each_document() -> None:
    u = [UNIT[d] for d in ("bf16", "fp16", "fp32", "fp64")]
    drift = values([0.9, 1.0, 1.1, 1.05], u, noise=0.2)
    found = slope(u, drift)
    level = np.log(drift[:, :, 8:]).mean(axis=2)
    expected = [scipy.stats.linregress(np.log(u), level[:, d]).slope for d in range(4)]
    assert found.by_document == pytest.approx(expected)
    ends = scipy.stats.ttest_1samp(expected, 0).confidence_interval(0.9)
    assert found.interval.pair == pytest.approx((ends.low, ends.high))
    assert found.verdict is Scaling.ROUNDING


@settings(max_examples=40)
@given(st.floats(-0.5, 2.0), st.integers(0, 2**32 - 1), st.floats(1e-9, 1e3), st.integers(2, 6))
def test_slopes_do_not_depend_on_scale_or_order(power: float, seed: int, scale: float, documents: int) -> None:
    u = [UNIT[d] for d in ("bf16", "fp16", "fp32")]
    drift = values([power] * documents, u, steps=9, noise=0.1, seed=seed)
    one = slope(u, drift)
    # Logarithms of up to 2 x 17 of the law and 21 of the scale, three rungs of nine steps; intervals multiply what
    # errors documents have by Student's quantile, which for two of them is 6.3.
    value, ends = linear(3 * 9, 60), 8 * linear(3 * 9, 60)
    assert slope(u, scale * drift).interval.value == pytest.approx(one.interval.value, rel=0, abs=value)
    order = np.random.default_rng(seed).permutation(3)
    two = slope(np.asarray(u)[order], drift[order])
    assert two.interval.value == pytest.approx(one.interval.value, rel=0, abs=value)
    assert two.interval.pair == pytest.approx(one.interval.pair, rel=0, abs=ends)
    borders = (-STRUCTURAL_MARGIN, STRUCTURAL_MARGIN, 1 - ROUNDING_MARGIN)
    near = min(abs(end - b) for end in one.interval.pair for b in (*borders, 1 + ROUNDING_MARGIN))
    assert one.verdict is two.verdict or near <= ends


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    u = [UNIT["bf16"], UNIT["fp32"]]
    hits = 0
    for _ in range(400):
        level = np.exp(0.5 * rng.standard_normal((2, 4, 1))) * np.asarray(u)[:, None, None]
        low, high = slope(u, np.repeat(level, 8, axis=2)).interval.pair
        hits += low <= 1 <= high
    assert scipy.stats.binomtest(hits, 400, 0.9).pvalue > 0.001


def test_one_document_has_the_noise_of_its_chain_or_no_interval() -> None:
    u = [UNIT["bf16"], UNIT["fp32"]]
    long = slope(u, values([1.0], u, steps=64, noise=0.1))
    assert long.verdict is Scaling.ROUNDING
    assert 0 < long.interval.standard_error < 0.05
    short = slope(u, values([1.0], u, steps=6, noise=0.1))
    assert short.reason is ScalingReason.NO_INTERVAL
    # Four standard errors of the difference of two means over the last three steps, over the distance of the rungs.
    assert short.interval.value == pytest.approx(1, abs=4 * 0.1 * math.sqrt(2 / 3) / math.log(2**16))


def test_the_interval_along_one_chain_covers_the_truth() -> None:
    rng = np.random.default_rng(2)
    u, hits = [UNIT["bf16"], UNIT["fp32"]], 0
    for _ in range(300):
        noise = scipy.signal.lfilter([1.0], [1.0, -0.5], 0.1 * rng.standard_normal((2, 1, 150)))[:, :, 22:]
        low, high = slope(u, values([1.0], u, steps=128) * np.exp(noise)).interval.pair
        hits += low <= 1 <= high
    # 86 %: two standard errors below 90 % of 300, as windows are a little correlated; draws are the same everywhere.
    assert hits >= 258


def test_zeros_are_left_out_of_every_rung_and_counted() -> None:
    u = [UNIT["bf16"], UNIT["fp32"]]
    drift = values([1.0, 1.0, 1.0], u, steps=40, noise=0.05)
    drift[1, 0, 20] = 0.0
    drift[0, 0, 20] = 1e9  # must not count either
    found = slope(u, drift)
    assert found.zeros == 1
    assert found.points == 90
    assert found.verdict is Scaling.ROUNDING
    drift[1, 1, 10:] = 0.0
    assert slope(u, drift).reason is ScalingReason.ZEROS
    drift[1, 1, 12] = np.nan
    assert slope(u, drift).reason is ScalingReason.NONFINITE
    assert slope([u[0]], drift[:1]).reason is ScalingReason.ONE_RUNG
    with pytest.raises(ValueError, match=r"\[rung, document, step\]"):
        slope(u, drift[0])


@pytest.mark.parametrize(
    ("low", "high", "verdict", "reason"),
    [
        (0.81, 1.19, Scaling.ROUNDING, None),
        (0.79, 1.0, Scaling.UNDETERMINED, ScalingReason.WIDE),
        (-0.04, 0.05, Scaling.STRUCTURAL, None),
        (0.01, 0.06, Scaling.UNDETERMINED, ScalingReason.WIDE),
        (0.06, 0.79, Scaling.BOTH, None),
        (1.21, 1.3, Scaling.UNDETERMINED, ScalingReason.STEEP),
        (-0.4, -0.06, Scaling.UNDETERMINED, ScalingReason.REVERSED),
        (math.nan, math.nan, Scaling.UNDETERMINED, ScalingReason.NO_INTERVAL),
    ],
)
def test_every_verdict_is_reached(low: float, high: float, verdict: Scaling, reason: ScalingReason | None) -> None:
    assert judge(Interval((low + high) / 2, 0.1, 3, low, high)) == (verdict, reason)
    assert SCALING_WORDS[verdict].split(":")[0] == verdict.value


# ---------------------------------------------------------------------------------------------- sweeps
def test_ladders_of_a_sweep() -> None:
    cells = [
        *rungs(1.0, ("bf16", "fp16", "tf32", "fp32")),
        *rungs(0.0, protocol="restart", floor=-0.5),
        *rungs(1.0, ("bf16", "fp32", "fp64"), floor=1e-6, protocol="evict(budget=64)"),
        *rungs(0.0, reference="gold"),
        *rungs(0.0, reference="unperturbed", protocol="perturbed(append,step=4,size=0.001)"),
    ]
    found = {one.labels["protocol"]: one for one in ladder.ladders(Sweep(cells))}
    assert {p: one.slope.verdict.value for p, one in found.items()} == {
        "append": "rounding", "evict(budget=64)": "both", "restart": "structural"
    }  # fmt: skip
    pairs = {(p.coarse, p.fine): (p.slope.verdict.value, p.mixed) for p in found["append"].pairs}
    assert set(pairs) == {("bf16", "fp16"), ("bf16", "tf32"), ("fp16", "fp32"), ("tf32", "fp32")}
    assert pairs["fp16", "fp32"] == ("rounding", True)
    assert not pairs["tf32", "fp32"][1]
    below = found["evict(budget=64)"].pairs
    assert [p.slope.verdict.value for p in below] == ["both", "structural"]
    assert "off the line" in "; ".join(found["evict(budget=64)"].caveats)
    said = ladder.headlines(list(found.values()))
    assert said["restart"].startswith("restart: structural: drift does not depend on the precision")
    table = ladder.ladder_frame(list(found.values()))
    assert list(table[table["protocol"] == "restart"]["rungs"]) == ["all"], "a pair that is the ladder is one row"
    assert len(ladder.shown(list(found.values()))) == len(table)
    assert [one.labels["reference"] for one in ladder.ladders(Sweep(cells), reference="gold")] == ["gold"]


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_precision_without_a_level_is_left_out_and_named(bad: float) -> None:
    """As on the page of claims: one fold has one slope."""
    cells = rungs(1.0, ("bf16", "fp16", "fp32"))
    cells[1]["hidden_rel_l2"].values[:, -1, 9:] = bad
    (one,) = ladder.ladders(Sweep(cells))
    (without,) = ladder.ladders(Sweep([cells[0], cells[2]]))
    assert one.slope == without.slope
    assert one.dtypes == ("bf16", "fp16", "fp32")
    assert one.caveats[0] == "fp16 left out: exactly zero too often, or NaN or Inf"
    (claim,) = precision.c2(Sweep(cells), "hidden_rel_l2", "last", Setting())
    assert (claim.estimate, claim.interval) == (one.slope.interval.value, one.slope.interval.pair)
    assert claim.detail["kind"] == one.slope.verdict.value
    two = ladder.ladders(Sweep(cells[:2]))[0].slope
    assert two.reason is (ScalingReason.ZEROS if bad == 0 else ScalingReason.NONFINITE)
    assert math.isnan(two.interval.value)


def test_the_accessor_gives_the_table() -> None:
    sweep = Sweep(rungs(1.0, ("bf16", "fp16", "fp32")))
    table = sweep.drift.ladder("value_rel_l2")
    assert list(table["dtypes"]) == ["bf16/fp16/fp32", "bf16/fp16", "fp16/fp32"]
    assert set(table["verdict"]) == {"rounding"}


def test_reading_needs_no_torch() -> None:
    names = "accessor, claims, controls, diagnose, figures, gain, ladder, logits, side_by_side, summary"
    code = f"import sys; from drift.reading import {names}; assert not {{'torch', 'transformers'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_divergences_enter_as_their_square_roots() -> None:
    found = ladder.ladders(Sweep(rungs(1.0)), "logit_kl")[0]
    # Noise of 0.03 on two rungs, of which four documents and 24 late steps are taken: four standard errors.
    assert found.slope.interval.value == pytest.approx(1, abs=4 * 0.03 * math.sqrt(2 / (4 * 24)) / math.log(2**16))
    table = ladder.by_measure(Sweep(rungs(1.0)))
    assert len(table) == 1
    assert all("rounding" in text for text in table.iloc[0, 3:])


def test_other_texts_are_another_ladder() -> None:
    a, b = rungs(1.0)
    b.attrs["tokens_sha256"] = "c" * 64
    found = ladder.ladders(Sweep([a, b]))
    assert [one.slope.reason for one in found] == [ScalingReason.ONE_RUNG] * 2


def test_the_previous_step_needs_one() -> None:
    cells = rungs(1.0, reference="previous")
    for ds in cells:
        for name in ("hidden_rel_l2", "logit_kl"):
            ds[name].values[..., 0 if name == "hidden_rel_l2" else slice(None)] = np.nan
    assert ladder.ladders(Sweep(cells), reference="previous")[0].slope.verdict is Scaling.ROUNDING
    assert ladder.ladders(Sweep(cells), "logit_kl", reference="previous") == []


# ---------------------------------------------------------------------------------------------- attribution
@pytest.mark.parametrize(
    ("lengths", "largest"),
    [((0.5, 0.01, 0.01), "structural"), ((0, 1, 0.2), "full_rounding"), ((0, 0.1, 1), "fold_rounding")],
)
def test_shares_are_those_of_the_vectors(lengths: tuple[float, float, float], largest: str) -> None:
    ds = made.gold(made.make(np.full((5, 16), 0.1)), *lengths)
    found = ladder.attributions(Sweep([ds]))[0]
    assert found.largest == largest
    # Inner products of 64 terms, the larger part of twice the whole, averaged over five documents of twelve steps.
    assert sum(i.value for i in found.shares.values()) == pytest.approx(1, rel=0, abs=linear(64 + 5 * 12, 2))
    for part, length in zip(ladder.PARTS, lengths, strict=True):
        late = ds[f"hidden_share_{part}"].values[:, -1, 4:].mean(axis=1)
        ends = scipy.stats.ttest_1samp(late, 0).confidence_interval(0.9)
        assert found.shares[part].pair == pytest.approx((ends.low, ends.high))
        # Lengths scatter by 0.1: four standard errors of 5 x 12, and half of the square, by which a mean is too large.
        assert found.parts[part] == pytest.approx(length, rel=4 * 0.1 / math.sqrt(5 * 12) + 0.1**2 / 2)
    assert ladder.PARTS[largest].split(":")[0] in ladder.attribution_sentences([found])[0]


def test_shares_that_do_not_add_up_are_refused_with_the_cell(tmp_path: Path) -> None:
    ds = made.gold(made.make(np.full((2, 8), 0.1), protocol="evict(budget=64)"), 0.5, 0.1, 0.1)
    assert ladder.check_shares(ds) <= linear(64, 3)
    ds["hidden_share_fold_rounding"].values[1, 2, 5] += 1e-3
    with pytest.raises(DatasetError, match=r"tiny bf16 evict\(budget=64\) 32 .*document 1, layer 2, step 5; 1 places"):
        ladder.attributions(Sweep([ds]))
    ds["hidden_share_fold_rounding"].values[1, 2, 5] = np.nan
    with pytest.raises(DatasetError, match="do not add to 1"):
        ladder.check_shares(ds)
    for part in ladder.PARTS:
        ds[f"hidden_share_{part}"].values[1, 2, 5] = np.nan  # no error, hence no shares
    ladder.check_shares(ds)


def test_cancelling_parts_have_negative_shares() -> None:
    ds = made.gold(made.make(np.full((3, 8), 0.1)), 1.0, 1.0, 1.0)
    # e2 = -2 e1, e3 = 0: total = -e1, shares -1, 2 and 0
    for part, share in zip(ladder.PARTS, (-1.0, 2.0, 0.0), strict=True):
        ds[f"hidden_share_{part}"].values[...] = share
    found = ladder.attributions(Sweep([ds]))[0]
    assert [i.value for i in found.shares.values()] == [-1, 2, 0]
    figure = figures.attribution([found])
    assert figure is not None
    assert figure.axes[0].get_xlim()[0] < -100
    assert figure.axes[0].get_xlim()[1] > 200


# ---------------------------------------------------------------------------------------------- command line
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, ds in enumerate([*rungs(1.0, ("bf16", "fp16", "fp32")), *rungs(0.0, protocol="restart", floor=-0.5)]):
        dataset.write(ds, tmp_path / f"{k}.nc")
    assert drift_ladder.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "append    tiny   32     bf16/fp16/fp32" in out
    assert "rounding" in out
    assert "not measured in this sweep" in out
    assert "Controls were not run" in err
    assert drift_ladder.main([str(tmp_path), "--json", "--measure", "all"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert len(body["ladders"]) == 8
    assert body["ladders"][0]["slope"]["verdict"] == "rounding"
    assert len(body["ladders"][0]["pairs"]) == 2
    assert body["controls"]["run"] is False
    assert drift_ladder.main([str(tmp_path), "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 1
    assert drift_ladder.main([str(tmp_path), "--reference", "gold"]) == 2
    assert "reference 'gold'" in capsys.readouterr().err
    assert drift_ladder.main([str(tmp_path / "nowhere")]) == 2
    assert drift_ladder.main([str(tmp_path), "--layer", "99"]) == 2


def test_the_departure_from_one_is_told_from_the_levels() -> None:
    constants = {"bf16": 3.0, "fp16": 3.0, "fp32": 12.0, "fp64": 12.0}
    cells = [
        made.make(np.full((4, 32), constants[d] * UNIT[d]), dtype=d)  # type: ignore[arg-type]
        for d in constants
    ]
    text = ladder.departure(ladder.ladders(Sweep(cells)))
    assert "3 in bf16, 3 in fp16, 12 in fp32, 12 in fp64" in text
    # log 4 / log 2^13 less than 1 from fp16 to fp32, and 1 elsewhere
    assert f"same kind is 1.00, between the two kinds {1 - math.log(4) / math.log(2.0**13):.2f}: this step" in text
    alike = [made.make(np.full((4, 32), 3 * UNIT[d]), dtype=d) for d in ("bf16", "fp16", "fp32")]  # type: ignore[arg-type]
    assert "takes the slope below 1" not in ladder.departure(ladder.ladders(Sweep(alike)))
    assert ladder.departure(ladder.ladders(Sweep(rungs(0.0)))) == ""
    assert ladder.departure([]) == ""


# ------------------------------------------------------------------------------------------ one estimator
def test_the_log_log_slope_is_that_of_scipy_in_both_forms() -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(1e-6, 1e-1, 6)
    y = x[:, None] ** 0.9 * np.exp(0.1 * rng.standard_normal((6, 5)))
    by_document = [scipy.stats.linregress(np.log(x), np.log(column)).slope for column in y.T]
    many, one, two = log_log(x, y), log_log(x, y[:, :1]), log_log(x[:2], y[:2, :1])
    # Logarithms of at most 14 over six points whose squares add to more than 40; each sum in float64.
    bound = linear(6, 14)
    assert many.value == pytest.approx(np.mean(by_document), rel=0, abs=bound)
    error = np.std(by_document, ddof=1) / math.sqrt(5)
    assert many.high - many.value == pytest.approx(scipy.stats.t.ppf(0.95, 4) * error, rel=1e-9)
    known = scipy.stats.linregress(np.log(x), np.log(y[:, 0]))
    assert one.value == pytest.approx(known.slope, rel=0, abs=bound)
    assert one.high - one.value == pytest.approx(scipy.stats.t.ppf(0.95, 4) * known.stderr, rel=1e-9)
    assert math.isfinite(two.value)
    assert math.isnan(two.low)
    assert math.isnan(log_log(x[:1], y[:1]).value)


def test_documents_without_a_logarithm_are_left_out() -> None:
    y = np.array([[1e-3, 0.0, 1e-3], [1e-2, 1e-2, 1e-2]])
    assert log_log([0.01, 0.1], y).value == pytest.approx(1, rel=0, abs=linear(2, 7))


def test_everybody_who_needs_a_slope_gets_the_same() -> None:
    """Ladder, claims, table of levels and response to noise, of the same numbers."""
    rng = np.random.default_rng(1)
    levels = {d: UNIT[d] ** 0.9 * np.exp(0.05 * rng.standard_normal((1, 1, 1))) for d in ("bf16", "fp16", "fp32")}
    cells = []
    for dtype, level in levels.items():
        ds = synthetic.cell(model="tiny", layers=2, tokens=1024, chunk_size=16, dtype=dtype, documents=4)
        ds["hidden_rel_l2"].values[...] = level
        cells.append(ds)
    sweep = Sweep(cells)
    (one,) = ladder.ladders(sweep)
    (claim,) = precision.c2(sweep, "hidden_rel_l2", "last", Setting())
    points = log_log([UNIT[d] for d in levels], np.array([v.ravel() for v in levels.values()]))
    table = summary.slopes(summary.table(sweep))["slope"].item()
    # Means of 48 equal logarithms of at most 17: what the four forms add up in another order.
    for found in (claim.estimate, points.value, table):
        assert found == pytest.approx(one.slope.interval.value, rel=0, abs=linear(48 * 4, 17))

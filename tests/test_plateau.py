"""Verdicts: right on curves whose answer is known, and honest on curves that cannot be decided."""

import json
import math
from dataclasses import fields

import numpy as np
import pytest
import scipy.stats
import synthetic
from plateau_tools import T, assert_same, noisy, strict, tiled
from rounding import linear

from drift.reading.controls import NO_CONTROLS
from drift.reading.plateau import curves
from drift.reading.plateau.deciding import plateau, plateaus
from drift.reading.plateau.model import Plateau, Reason, Verdict
from drift.reading.statistics import plateau as statistics_plateau

PLATEAUS = {Verdict.SATURATED_PLATEAU, Verdict.FLAT, Verdict.PLATEAU_RISE_UNRESOLVED}


# ------------------------------------------------------------------------------------------ closed forms
@pytest.mark.parametrize("documents", [1, 4])
@pytest.mark.parametrize(
    ("curve", "verdict", "growth"),
    [
        (0 * T + 0.3, Verdict.FLAT, 0.0),
        (T, Verdict.GROWING, 1.0),
        (np.sqrt(T), Verdict.GROWING, math.sqrt(2) - 1),
        (T ** math.log2(1.08), Verdict.GROWING, 0.08),
        (T ** math.log2(1.03), Verdict.FLAT, 0.03),
        (T**-0.3, Verdict.DECAYING, 2**-0.3 - 1),
        (1e-9 * T**2, Verdict.GROWING, 3.0),
        (np.exp2(-2 * T / 63), Verdict.DECAYING, None),
        (np.log1p(T), Verdict.GROWING, None),
        (np.where(T < 10, T / 10, 1.0), Verdict.SATURATED_PLATEAU, 0.0),
        (1 - 0.9 * np.exp(-(T - 1) / 1.5), Verdict.SATURATED_PLATEAU, None),
    ],
)
@pytest.mark.numerical
def test_curves_without_noise(curve, verdict, growth, documents):
    found = plateau(tiled(curve, documents))
    assert found.verdict is verdict
    assert found.reason is None
    assert found.verdict.is_plateau == (verdict in PLATEAUS)
    if growth is not None:
        # Nothing but the rounding of logarithms, of up to 21, in a slope over two doublings; growth is its exponential.
        bound = linear(len(T), 21, weight=2) * (1 + growth)
        assert found.growth_per_doubling == pytest.approx(growth, rel=0, abs=bound)
        assert found.growth_interval == pytest.approx((growth, growth), rel=0, abs=bound)
        assert (found.noise_sd, found.autocorrelation < 1) == (0.0, True)
    assert found.level == pytest.approx(scipy.stats.gmean(curve[16:]))
    assert found.rise_factor == pytest.approx(scipy.stats.gmean(curve[16:]) / curve[0])
    assert (found.documents, found.steps, found.zeros, found.nonfinite) == (documents, 63, 0, 0)
    assert str(found).startswith(str(verdict))
    assert "62 transitions" in str(found)  # between 63 steps


@pytest.mark.numerical
def test_onset_is_where_the_rise_ends():
    # The median over five steps may move a corner by one.
    for end in (4, 8, 14):
        found = plateau(tiled(np.where(end > T, T / end, 1.0)))
        assert found.onset_step == pytest.approx(end, abs=1)
        assert found.onset_range[0] <= found.onset_step <= found.onset_range[1]
    assert plateau(tiled(np.where(T > 1, 1.0, 0.1))).onset_step == 2
    ends = np.array([4, 6, 9, 12])
    found = plateau(np.where(ends[:, None] > T, T / ends[:, None], 1.0))
    assert found.onset_range == pytest.approx((4, 12), abs=1)
    assert 6 <= found.onset_step <= 9
    values = noisy(1 - 0.9 * np.exp(-(T - 1) / 2), 0.03, documents=6, seed=1)
    assert 4 <= plateau(values).onset_step <= 9  # 5 % is left after 1 + 2 ln 18 = 6.8 steps


@pytest.mark.numerical
def test_models_say_what_kind_of_curve_it_is():
    names = {
        "power law": T**0.5,
        "exponential": np.exp2(T / 20),
        "late change": 1 + 3 * np.maximum(0, T / 63 - 0.7),
        "saturating exponential": 1 - 0.9 * np.exp(-(T - 1) / 4),
    }
    for name, curve in names.items():
        found = plateau(noisy(curve, 0.05, documents=6))
        assert found.best_model == name
        assert (found.model_lead > 10) == (name != "saturating exponential")


# ------------------------------------------------------------------------------------------ zeros, NaN, too little
def test_a_first_step_that_is_exactly_zero_is_a_rise_without_a_factor():
    values = noisy(np.where(T > 1, 1.0, 0.0), 0.03)
    found = plateau(values)
    assert found.verdict is Verdict.SATURATED_PLATEAU
    assert found.rise_factor == math.inf
    assert found.rise_interval == (math.inf, math.inf)
    assert found.zeros == 4
    assert "4 values are exactly zero" in found.caveats
    plain = strict(json.dumps(found.as_dict()))
    assert plain["rise_factor"] is None
    assert plain["rise_interval"] == [None, None]
    values[2, 0] = 0.9  # in one document it is not zero, so that it did not rise there, nor in all
    assert plateau(values).verdict is not Verdict.SATURATED_PLATEAU


def test_many_zeros_decide_nothing():
    values = noisy(0 * T + 1, 0.03)
    few, many = values.copy(), values.copy()
    few[:, 20:24] = 0  # 16 of the 188 values of the judging window
    many[:, 20:30] = 0  # 40 of them
    assert plateau(few).reason is not Reason.ZEROS
    found = plateau(many)
    assert (found.verdict, found.reason, found.zeros) == (Verdict.UNDETERMINED, Reason.ZEROS, 40)
    assert math.isnan(found.growth_per_doubling)
    assert "40 of 252 values" in str(found)


def test_all_zeros_are_the_same_bits_and_no_plateau():
    found = plateau(np.zeros((4, 63)))
    assert (found.reason, found.zeros) == (Reason.ZEROS, 252)
    assert "every value is exactly zero" in str(found)
    strict(json.dumps(found.as_dict()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("steps", [5, 63])
def test_what_is_not_finite_is_counted_and_never_averaged_away(bad, steps):
    values = np.ones((4, steps))
    values[1, 3] = values[2, 4] = bad
    found = plateau(values)
    assert (found.verdict, found.reason, found.nonfinite) == (Verdict.UNDETERMINED, Reason.NONFINITE, 2)
    assert "2 values are NaN or Inf" in found.caveats
    assert f"2 of {4 * steps} values" in str(found)
    assert "It would take" not in str(found)  # more of it would not help
    plain = strict(json.dumps(found.as_dict()))
    assert plain["growth_per_doubling"] is plain["level"] is plain["steps_needed"] is None


def test_too_few_steps_and_how_many_it_takes():
    for documents, least in ((1, 24), (3, 24), (4, 11)):
        short = plateau(np.ones((documents, 10)))
        assert short.reason is Reason.TOO_SHORT
        assert short.steps_needed == least
        assert f"about {least} steps" in str(short)
        assert plateau(np.ones((documents, least - 1))).reason is Reason.TOO_SHORT
        assert plateau(np.ones((documents, least))).verdict is Verdict.FLAT
    assert plateau([0.5]).reason is Reason.TOO_SHORT


def test_few_documents_speak_of_themselves_only():
    for documents in (1, 2, 3):
        found = plateau(noisy(0 * T + 1, 0.02, documents))
        assert any(c.startswith("within these documents only") for c in found.caveats)
        assert "(within these documents only)" in str(found)
    assert not plateau(noisy(0 * T + 1, 0.02, 4)).caveats
    assert plateau(noisy(T**0.03, 0.4, 2)).reason is Reason.TOO_FEW


@pytest.mark.numerical
def test_documents_that_share_their_noise_are_no_replicates():
    shared = noisy(0 * T + 1, 0.1, 1, seed=5)
    own = noisy(0 * T + 1, 0.02, 8, seed=6)
    found, alone = plateau(shared * own), plateau(own * noisy(0 * T + 1, 0.1, 8, seed=7))
    assert found.design_effect > 4 > alone.design_effect
    assert any("share part of their noise" in c for c in found.caveats)
    assert np.diff(found.growth_interval)[0] > np.diff(alone.growth_interval)[0]


# ------------------------------------------------------------------------------------------ input
def test_a_negative_value_is_refused_by_its_place():
    values = np.ones((3, 20))
    values[1, 7] = -0.25
    with pytest.raises(ValueError, match=r"-0\.25 \(curve 0, document 1, step 7\)"):
        plateau(values)
    with pytest.raises(ValueError, match="cannot be negative"):
        plateau(np.where(np.arange(20) == 3, -math.inf, 1.0))
    assert plateau(-0.0 * np.ones(20)).zeros == 20


@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0}, {"margin": 1}, {"margin": -0.1}, {"margin": math.nan}, {"alpha": 0}, {"alpha": 0.5},
        {"alpha": math.nan}, {"rise_min": 1}, {"rise_min": math.nan}, {"floor": 0}, {"floor": -1}, {"floor": math.nan},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        plateau(np.ones(20), **options)


def test_shapes():
    with pytest.raises(ValueError, match="one curve is"):
        plateau(np.ones((2, 3, 20)))
    for shape in ((), (0,), (2, 0), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match="curve"):
            plateaus([np.ones(shape)])
    with pytest.raises(ValueError, match="curve 1"):
        plateaus([np.ones(20), np.ones((2, 3, 20))])
    assert plateaus([]) == []
    assert plateau(list(range(1, 41))).verdict is Verdict.GROWING


@pytest.mark.numerical
def test_many_curves_of_many_shapes_are_judged_in_order():
    inputs = [tiled(T), np.ones(40), tiled(0 * T + 1), T**-0.5, np.zeros((2, 63)), tiled(T, 2)]
    found = plateaus(inputs)
    for together, values in zip(found, inputs, strict=True):
        assert_same(together, plateau(values))
    assert [(p.documents, p.steps) for p in found] == [(4, 63), (1, 40), (4, 63), (1, 63), (2, 63), (2, 63)]
    assert [p.verdict for p in plateaus(np.stack([tiled(T), tiled(0 * T + 1)]))] == [Verdict.GROWING, Verdict.FLAT]


@pytest.mark.numerical
def test_margin_alpha_rise_and_floor_are_heeded():
    curve = tiled(T ** math.log2(1.08))
    assert plateau(curve, margin=0.05).verdict is Verdict.GROWING
    wide = plateau(curve, margin=0.10)
    assert wide.verdict.is_plateau
    assert (wide.margin, wide.alpha) == (0.10, 0.05)
    assert "margin 10 %" in str(wide)
    values = noisy(0 * T + 1, 0.1)
    low, high = plateau(values, alpha=0.05).growth_interval
    lower, higher = plateau(values, alpha=0.01).growth_interval
    assert lower < low < high < higher
    assert "98 % interval" in str(plateau(values, alpha=0.01))
    rise = tiled(np.where(T > 1, 1.0, 0.5))
    assert plateau(rise).verdict is Verdict.SATURATED_PLATEAU
    assert plateau(rise, rise_min=3).verdict is Verdict.FLAT
    tail = tiled(np.where(T < 20, 1.0, 1.0 / T))
    assert plateau(tail).verdict is Verdict.DECAYING
    assert plateau(tail, floor=1.0).verdict is Verdict.FLAT


# ------------------------------------------------------------------------------------------ words and plain values
def test_verdicts_are_sentences_and_names():
    assert {str(v) for v in Verdict} == {
        "saturated plateau: drift rose, then stayed flat",
        "flat from the start: drift never rose",
        "plateau: flat at depth; whether it rose first is not resolved",
        "growing: drift increases with chain depth, beyond the margin",
        "decaying: drift decreases with chain depth, beyond the margin",
        "undetermined: these data do not decide",
    }
    assert {v.value for v in Verdict if v.is_plateau} == {"saturated_plateau", "flat", "plateau_rise_unresolved"}
    assert all(v.value == v.value.lower().replace(" ", "_") for v in Verdict)
    # every code of the kernel is either a verdict or a reason
    assert {c.name for c in statistics_plateau.Code if c >= statistics_plateau.Code.NONFINITE} == {
        r.name for r in Reason if r not in (Reason.CONTROLS, Reason.INHERITED)
    }


def test_plain_values_are_strict_json_and_complete():
    for values in (tiled(T), np.ones(5), np.zeros((2, 63)), noisy(T**0.05, 0.5), noisy(T, 0.2, 2)):
        found = plateau(values)
        plain = strict(json.dumps(found.as_dict(), allow_nan=False))
        assert set(plain) == {f.name for f in fields(Plateau)}
        assert plain["verdict"] == found.verdict.value
        assert plain["reason"] == (found.reason.value if found.reason else None)
        assert plain["explanation"] == str(found)
        assert isinstance(plain["growth_interval"], list)
        assert isinstance(plain["zeros"], int)


def test_names_of_figures_are_not_those_of_a_cells_coordinates():
    # They stand side by side in one row of a table.
    cell = synthetic.cell(model="tiny", layers=2, tokens=512, chunk_size=16, documents=4)
    (curve,) = curves.from_cell(cell)
    assert not set(curve.labels) & {f.name for f in fields(Plateau)}
    row = curves.plateau_frame([curve], curves.judge([curve], NO_CONTROLS)).iloc[0]
    assert (row["model"], row["dtype"], row["documents"]) == ("tiny", "bf16", 4)


# ------------------------------------------------------------------------------------------ how much data it takes
@pytest.mark.numerical
def test_more_noise_needs_more_documents():
    needed = [
        np.nanmedian([p.documents_needed for p in plateaus([noisy(0 * T + 1, sd, seed=s) for s in range(12)])])
        for sd in (0.3, 0.6, 1.2)
    ]
    # Standard errors grow with sd, documents with its square: noise is the same, but larger. Numbers are looked up on a
    # grid that is 6 % apart, and Student's quantiles of ten documents are a tenth above those of many, squared, thrice.
    assert needed[1] / needed[0] == pytest.approx(4, rel=0.4)
    assert needed[2] / needed[1] == pytest.approx(4, rel=0.4)
    rough = [plateau(noisy(0 * T + 1, 0.3, seed=s)) for s in range(12)]
    assert all(p.steps_needed > 63 for p in rough if math.isfinite(p.steps_needed))
    assert all("It would take about" in str(p) for p in rough if math.isfinite(p.documents_needed))


@pytest.mark.parametrize(("sd", "rho"), [(0.25, 0.0), (0.12, 0.6)])
@pytest.mark.numerical
def test_the_documents_asked_for_decide(sd, rho):
    curve = 1 - 0.8 * np.exp(-(T - 1) / 1.2)
    asked = [plateau(noisy(curve, sd, 4, rho, seed)).documents_needed for seed in range(30)]
    documents = int(np.nanmedian(asked))
    assert documents > 4
    found = plateaus([noisy(curve, sd, documents, rho, 1000 + seed) for seed in range(40)])
    # promised with probability 0.9: fewer than this many of 40 happen once in a thousand
    assert sum(p.verdict.is_plateau for p in found) >= scipy.stats.binom.ppf(0.001, 40, 0.9)
    assert np.isfinite(asked).sum() > 15  # four documents, at which it was asked, decide fewer than half

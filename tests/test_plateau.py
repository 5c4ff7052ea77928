"""Verdicts: right on curves whose answer is known, honest on curves that cannot be decided, and readable anywhere."""

import io
import json
import math
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import synthetic
import synthetic_controls
from rounding import gamma, linear
from scipy.signal import lfilter

from drift.dataset.opening import open_sweep
from drift.errors import DatasetError
from drift.plateau import main
from drift.reading import amplitudes
from drift.reading.controls import NO_CONTROLS
from drift.reading.plateau import csv_files, curves
from drift.reading.plateau.deciding import plateau, plateaus
from drift.reading.plateau.model import Plateau, Reason, Verdict
from drift.reading.plateau.wording import certificate
from drift.reading.statistics import plateau as statistics_plateau

T = np.arange(1, 64.0)
PLATEAUS = {Verdict.SATURATED_PLATEAU, Verdict.FLAT, Verdict.PLATEAU_RISE_UNRESOLVED}


def tiled(curve, documents=4):
    return np.tile(curve, (documents, 1))


def noisy(curve, sd, documents=4, rho=0.0, seed=0):
    """The curve times log-normal AR(1) noise, independent between documents."""
    noise = np.random.default_rng(seed).standard_normal((documents, len(curve)))
    noise[:, 1:] *= math.sqrt(1 - rho**2)
    return curve * np.exp(sd * lfilter([1.0], [1.0, -rho], noise, axis=1))


def assert_same(one, other):
    """Equal in every figure; the comparison of models alone may round differently in company."""
    # It is n times a logarithm of what a model leaves of a sum of n squares: nothing (the kernel's floor stands in for
    # that), or a hundred-thousandth of these curves at least.
    bound = 2 * len(T) * gamma(2 * len(T)) / 1e-5
    assert one.model_lead == pytest.approx(other.model_lead, rel=0, abs=bound, nan_ok=True)
    assert {**one.as_dict(), "model_lead": 0} == {**other.as_dict(), "model_lead": 0}


def strict(text):
    """Parse JSON as the standard has it: without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


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


# ------------------------------------------------------------------------------------------ curves held out
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


# ------------------------------------------------------------------------------------------ CSV
def write(path, values, *, name=None, first=0, header="document,step,value"):
    """Write [document, step] as CSV; several curves with a leading column `curve`."""
    lines = [header] if header else []
    for d, row in enumerate(values):
        lines += [
            ",".join([*([name] if name else []), f"d{d}", str(first + s), repr(float(v))]) for s, v in enumerate(row)
        ]
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")
    return path


@pytest.fixture
def csv(tmp_path):
    def make(text, name="mine.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


@pytest.mark.parametrize("first", [0, 1, 17])
def test_csv_of_one_curve(tmp_path, first):
    values = noisy(T, 0.1, 3)
    (curve,) = csv_files.from_csv(write(tmp_path / "mine.csv", values, first=first))
    assert (curve.name, curve.labels, curve.caveats) == ("mine", {}, ())
    np.testing.assert_array_equal(curve.values, values)  # repr of a float is exact
    assert_same(curves.judge([curve], NO_CONTROLS)[0], plateau(values))


def test_csv_of_several_curves_unsorted_and_with_other_columns(tmp_path):
    up, level = noisy(T, 0.1, 3), noisy(0 * T + 1, 0.02, 4)
    path = write(tmp_path / "a.csv", up, name="up", header="curve,document,step,value")
    write(path, level, name="level", header=None)
    table = pd.read_csv(path)
    table["note"] = "x,y"
    table = table.sample(frac=1, random_state=0)[["value", "note", "step", "curve", "document"]]
    table.columns = ["Value ", "note", "STEP", "curve", "document"]
    table.to_csv(path, index=False)
    found = {curve.name: curve for curve in csv_files.from_csv(path)}
    assert set(found) == {"up", "level"}
    # rows are shuffled, so documents come in another order
    assert sorted(map(tuple, found["up"].values)) == sorted(map(tuple, up))
    assert sorted(map(tuple, found["level"].values)) == sorted(map(tuple, level))


def test_csv_takes_nan_and_inf_for_findings(csv):
    (curve,) = csv_files.from_csv(
        csv("document,step,value\na,0,NaN\na,1,inf\na,2,+Infinity\na,3,1e400\na,4,nan\na,5,0\n")
    )
    np.testing.assert_array_equal(curve.values, [[math.nan, math.inf, math.inf, math.inf, math.nan, 0.0]])
    assert curves.judge([curve], NO_CONTROLS)[0].nonfinite == 5


def test_csv_of_ragged_documents_is_cut_and_says_so(csv):
    rows = [f"a,{s},1" for s in range(30)] + [f"b,{s},2" for s in range(26)]
    (curve,) = csv_files.from_csv(csv("document,step,value\n" + "\n".join(rows)))
    assert curve.values.shape == (2, 26)
    assert curve.caveats == ("documents have 26 to 30 steps: the first 26 are used",)
    assert curves.judge([curve], NO_CONTROLS)[0].caveats[0] == curve.caveats[0]


def test_csv_as_spreadsheets_write_it(csv, tmp_path):
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbfdocument,step,value\r\na , 0, 1.5 \r\n\r\na,1,2.5\r\n,,\r\n")
    (curve,) = csv_files.from_csv(path)
    assert curve.values.tolist() == [[1.5, 2.5]]


HEAD = "document,step,value\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "a,0,1\na,1,x\n", "mine.csv, line 3: value is 'x', not a number"),
        (HEAD + "a,0,1\na,1,\n", "mine.csv, line 3: value is '', not a number"),
        (HEAD + "a,0,1\na,1\n", "mine.csv, line 3: value is '', not a number"),
        (HEAD + "a,0,1\n\n\na,1,x\n", "mine.csv, line 5: value is 'x', not a number"),
        (HEAD + "a,0.5,1\n", "mine.csv, line 2: step is '0.5', not a whole number"),
        (HEAD + "a,inf,1\n", "mine.csv, line 2: step is 'inf', not a whole number"),
        (HEAD + "a,0,1\n,1,1\n", "mine.csv, line 3: document is empty"),
        ("document,step,value,curve\na,0,1,c\na,1,1\n", "mine.csv, line 3: curve is empty"),
        (HEAD + "a,0,1\na,1,-0.5\n", "mine.csv, line 3: value is -0.5, but drift is a distance"),
        (HEAD + "a,0,1\na,1,-inf\n", "mine.csv, line 3: value is -inf, but"),
        (HEAD + "a,0,1\na,1,1\na,1,2\n", "mine.csv, line 4: step 1 of curve 'mine', document 'a' stands here for the"),
        (HEAD + "a,0,1\na,2,1\n", "mine.csv: curve 'mine', document 'a': step 0 is followed by 2; steps must be"),
        (HEAD + "a,0,1\nb,1,1\n", "begin at different steps (0 to 1)"),
        (HEAD + "a,0,1,9\na,1,1,9\n", "mine.csv: rows have more cells than the header"),
        (HEAD + "a,0,1\na,1,1,9\n", "mine.csv: not a CSV file: "),
        (HEAD, "mine.csv: no rows below the header"),
        ("", "mine.csv: not a CSV file: "),
        ("step,value\n0,1\n", "mine.csv: no column document; it has step, value. Wanted: document, step, value"),
        ("document;step;value\na;0;1\n", "mine.csv: no column document, step, value; it has document;step;value"),
        ("document,step,value,Value\na,0,1,1\n", "mine.csv: two columns are called value"),
    ],
)
def test_csv_errors_name_file_and_line(csv, capsys, text, message):
    path = csv(text)
    with pytest.raises(DatasetError) as error:
        csv_files.from_csv(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_csv_that_is_no_text(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b"document,step,value\n\xff,0,1\n")
    with pytest.raises(DatasetError, match="not a CSV file"):
        csv_files.from_csv(path)


# ------------------------------------------------------------------------------------------ command line
@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    return synthetic.sweep(
        tmp_path_factory.mktemp("sweep"), ["tiny"], ["bf16", "fp32"], ["append", "restart"], [16], layers=2,
        tokens=1024, documents=4, noise=0.05,
    )  # fmt: skip


@pytest.fixture
def two_curves(tmp_path):
    path = write(tmp_path / "two.csv", noisy(T, 0.05), name="up", header="curve,document,step,value")
    write(path, noisy(0 * T + 1, 0.02), name="level", header=None)
    return write(path, np.ones((1, 5)), name="stub", header=None)


def test_command_line_prints_a_table(two_curves, capsys):
    assert main([str(two_curves)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0].split() == ["curve", "verdict", "growth", "per", "doubling", "level", "documents", "x", "steps"]
    assert lines[1].startswith("up ")
    assert " growing " in lines[1]
    assert lines[1].endswith("4 x 63")
    assert lines[2].startswith("level ")
    assert " flat " in lines[2]
    assert "undetermined: too few steps" in lines[3]
    assert "n/a" in lines[3]
    assert "within 5.0 %" in out
    assert "stub: undetermined (too few steps)" in out
    assert "Note (stub): within these documents only" in out
    assert " nan" not in out


KEYS = {
    "curve", "verdict", "reason", "explanation", "documents", "steps", "growth_per_doubling", "growth_interval",
    "certified_growth", "certified_interval", "certified_from", "p_equivalence", "p_growth", "p_decay", "level",
    "level_interval", "onset_step", "onset_range", "rise_factor", "rise_interval", "autocorrelation", "design_effect",
    "noise_sd", "effective_points", "best_model", "model_lead", "documents_needed", "steps_needed", "zeros",
    "nonfinite", "margin", "alpha", "caveats",
}  # fmt: skip


def test_command_line_writes_strict_json(two_curves, capsys):
    assert main([str(two_curves), "--json"]) == 0
    rows = strict(capsys.readouterr().out)
    assert [(row["curve"], row["verdict"], row["reason"]) for row in rows] == [
        ("up", "growing", None),
        ("level", "flat", None),
        ("stub", "undetermined", "too few steps"),
    ]
    for row in rows:
        assert set(row) >= KEYS
    found = plateau(noisy(T, 0.05))
    assert rows[0]["growth_per_doubling"] == found.growth_per_doubling
    assert rows[0]["growth_interval"] == list(found.growth_interval)
    assert rows[2]["level"] is None


def test_command_line_writes_csv(two_curves, capsys):
    assert main([str(two_curves), "--csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert table["curve"].tolist() == ["up", "level", "stub"]
    assert table["verdict"].tolist() == ["growing", "flat", "undetermined"]
    assert set(table) >= KEYS
    assert table["growth_per_doubling"].iloc[0] == pytest.approx(plateau(noisy(T, 0.05)).growth_per_doubling)


def test_command_line_takes_shares_and_percentages(two_curves, capsys):
    outputs = []
    for margin in ("0.2", "20%", "20 %"):
        assert main([str(two_curves), "--json", "--margin", margin, "--alpha", "1%"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]
    assert {(row["margin"], row["alpha"]) for row in strict(outputs[0])} == {(0.2, 0.01)}


def test_command_line_heeds_floor_and_rise(tmp_path, capsys):
    path = write(tmp_path / "a.csv", tiled(np.where(T > 1, 1.0, 0.5)))
    verdicts = []
    for options in ([], ["--rise-min", "3"], ["--floor", "2"]):
        assert main([str(path), "--json", *options]) == 0
        verdicts.append(strict(capsys.readouterr().out)[0]["verdict"])
    assert verdicts == ["saturated_plateau", "flat", "flat"]


@pytest.mark.parametrize(
    "options",
    [
        ["--margin", "0"], ["--margin", "100%"], ["--margin", "wide"], ["--margin", "nan"], ["--alpha", "0.5"],
        ["--alpha", "0"], ["--layer", "top"], ["--json", "--csv"], ["--floor", "x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_command_line_refuses_options(two_curves, capsys, options):
    with pytest.raises(SystemExit) as stop:
        main([str(two_curves), *options])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: argument" in err


@pytest.mark.parametrize("options", [["--rise-min", "1"], ["--floor", "0"], ["--floor", "nan"]], ids=" ".join)
def test_command_line_refuses_floor_and_rise(two_curves, capsys, options):
    assert main([str(two_curves), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--rise-min must be above 1, and --floor above 0" in err


def test_command_line_without_anything_to_read(tmp_path, capsys):
    assert main([str(tmp_path / "absent.csv")]) == 2
    assert "absent.csv: cannot be read: No such file" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no cell that can be read" in capsys.readouterr().err
    (tmp_path / "x.nc").write_text("no netCDF")
    assert main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "x.nc was left out" in err
    assert "Traceback" not in err


def test_command_line_reads_sweeps(sweep_folder, capsys):
    assert main([str(sweep_folder), "--json"]) == 0
    rows = strict(capsys.readouterr().out)
    assert len(rows) == 4
    found = {(row["model"], row["dtype"], row["protocol"]): row for row in rows}
    assert found["tiny", "bf16", "append"]["verdict"] == "flat"
    assert found["tiny", "bf16", "restart"]["verdict"] == "saturated_plateau"
    assert found["tiny", "fp32", "append"]["unit_roundoff"] == 2.0**-24
    assert {(row["measure"], row["layer"]) for row in rows} == {("hidden_rel_l2", "last")}
    assert found["tiny", "bf16", "append"]["curve"] == "tiny bf16 append/16 hidden_rel_l2 last"
    for row in rows:
        assert set(row) >= KEYS


def test_command_line_takes_measures_and_layers(sweep_folder, capsys):
    assert main([str(sweep_folder), "--json", "--measure", "logit_kl", "hidden_rel_l2", "--layer", "all"]) == 0
    rows = strict(capsys.readouterr().out)
    assert len(rows) == 4 * (1 + 4)  # embeddings, two blocks and the final norm
    mine = [(row["measure"], row["layer"]) for row in rows[:5]]
    assert mine == [("logit_kl", "last"), *(("hidden_rel_l2", k) for k in range(4))]
    assert main([str(sweep_folder), "--measure", "all"]) == 0
    out = capsys.readouterr().out
    cell = open_sweep(sweep_folder).cells[0]
    assert all((name in out) == amplitudes.has_measure(cell, name) for name in amplitudes.DISTANCES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--measure", "foo"], "'foo' is not a measure of drift that can be judged; there are hidden_rel_l2"),
        (["--measure", "hidden_norm"], "'hidden_norm' is not a measure of drift"),
        (["--layer", "9"], "no layer 9"),
    ],
)
def test_command_line_names_what_is_not_there(sweep_folder, capsys, options, message):
    assert main([str(sweep_folder), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


# ------------------------------------------------------------------------------------------ accessors
def test_cells_judge_themselves(sweep_folder):
    cell = open_sweep(sweep_folder).cells[0]
    found = cell.drift.plateau()
    assert_same(found, plateau(cell["hidden_rel_l2"].sel(layer=3).transpose("document", "step").values))
    assert cell.drift.plateau("logit_kl", margin=0.2).margin == 0.2
    table = cell.drift.plateau(["hidden_rel_l2", "nll_gap"])
    assert table["measure"].tolist() == ["hidden_rel_l2", "nll_gap"]
    assert table["verdict"].iloc[0] == found.verdict.value
    had = [name for name in amplitudes.DISTANCES if amplitudes.has_measure(cell, name)]
    assert cell.drift.plateau("all")["measure"].tolist() == had
    assert len(had) > 10
    assert cell.drift.plateau("key_rel_l2", layer="all")["layer"].tolist() == [1, 2]
    assert cell.drift.plateau("hidden_rel_l2", layer=0).zeros == 4 * 64  # embeddings cannot drift
    with pytest.raises(DatasetError, match="'foo' is not a measure"):
        cell.drift.plateau("foo")


def test_sweeps_judge_their_cells(sweep_folder):
    sweep = open_sweep(sweep_folder)
    table = sweep.drift.plateau()
    assert len(table) == len(sweep)
    assert table["model"].unique().tolist() == ["tiny"]
    assert table["verdict"].tolist() == [cell.drift.plateau().verdict.value for cell in sweep]
    with pytest.raises(DatasetError, match="'top1_agreement' is not a measure"):
        sweep.drift.plateau("top1_agreement")


@pytest.mark.numerical
def test_derived_measures_are_distances(sweep_folder):
    cell = open_sweep(sweep_folder).cells[0]
    gap = amplitudes.measure_values(cell, "nll_gap")
    np.testing.assert_array_equal(gap, abs(cell["nll_fold"] - cell["nll_full"]).transpose("document", "step"))
    rest = amplitudes.measure_values(cell, "top1_disagreement")
    np.testing.assert_array_equal(rest, 1 - cell["top1_agreement"].transpose("document", "step"))
    below = cell.copy(deep=True)
    below["logit_kl"].values[0, 3] = -1e-12
    assert amplitudes.measure_values(below, "logit_kl")[0, 3] == 0
    for measure in (name for name in amplitudes.DISTANCES if amplitudes.has_measure(cell, name)):
        assert (amplitudes.measure_values(cell, measure) >= 0).all(), measure


def test_measures_that_only_some_cells_have_are_judged_like_others(tmp_path):
    """Parts of an error, and agreement of generated tokens, are no rows of a second rank."""
    folder = synthetic_controls.whole(tmp_path / "whole")
    sweep = open_sweep(folder)
    for name, has in (
        ("hidden_rel_l2_structural", sweep.sel(reference="gold")),
        ("token_disagreement", sweep.sel(protocol="decode(append,tokens=8)")),
    ):
        table = sweep.drift.plateau(name)
        assert len(table) == len(has) > 0
        assert set(table["measure"]) == {name}
        whole = sweep.drift.plateau("all")
        assert (whole["measure"] == name).sum() == len(has)
        assert has.cells[0].drift.plateau(name).verdict
        assert amplitudes.measure_name(name)
        with pytest.raises(DatasetError, match=f"no cell has {name}: only some references or protocols"):
            sweep.sel(protocol="restart", reference="full").drift.plateau(name)
    np.testing.assert_array_equal(amplitudes.measure_values(has.cells[0], name), 1 - 0.9)
    found = sweep.drift.ladder("hidden_rel_l2_full_rounding", reference="gold")
    assert set(found["measure"]) == {"hidden_rel_l2_full_rounding"}
    # Made as 4 u with a scatter of a tenth: over ln(2^16) = 11 between the rungs, levels tilt by less than 0.2 / 11.
    np.testing.assert_allclose(found["slope"], 1, atol=0.02)
    assert "hidden_share_structural" not in amplitudes.DISTANCES, "a share is signed, and no distance"
    with pytest.raises(DatasetError, match="there is no measure 'foo'"):
        amplitudes.holding(sweep, "foo")


# ------------------------------------------------------------------------------------------ processes
def test_plateau_needs_no_torch():
    code = (
        "import sys, drift.plateau, drift.reading.plateau.curves; "
        "print([m for m in sys.modules if m.startswith('torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_module_runs_and_has_help():
    done = subprocess.run([sys.executable, "-m", "drift.plateau", "--help"], capture_output=True, text=True, check=True)
    assert "SWEEP|FILE.csv" in done.stdout
    assert "saturated_plateau" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "drift.plateau", "absent"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("drift.plateau: absent: cannot be read")

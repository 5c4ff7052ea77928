"""Figures and sentences: right on curves whose answer is known, and honest about what cannot be said."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import synthetic
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import linear

from drift import dataset
from drift.dataset.opening import open_sweep
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import cells as reading_cells
from drift.reading import figures, ladder, summary
from drift.reading.plateau.deciding import plateau
from drift.reading.statistics.slope import Scaling
from drift.reading.wording import numbers, tables
from drift.reading.wording.verdicts import SCALING_WORDS

pytestmark = pytest.mark.numerical

MODEL = "smollm2-135m-instruct"


def small(**options: object) -> xr.Dataset:
    return synthetic.cell(**({"model": "tiny", "layers": 2, "tokens": 512, "chunk_size": 16} | options))  # type: ignore[arg-type]


def flat(level: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda step: np.full(step.shape, level)


# ------------------------------------------------------------------------------------------ figures
def test_flat_curve() -> None:
    found = summary.figures(np.full((3, 20), 0.02))
    assert (found.level, found.first, found.ratio) == pytest.approx((0.02, 0.02, 1.0))
    # Logarithms of up to 4, a slope over two doublings.
    bound = linear(3 * 20, 4, weight=2)
    assert (found.growth, found.growth_low, found.growth_high) == pytest.approx((0.0, 0.0, 0.0), rel=0, abs=bound)
    assert (found.zeros, found.nonfinite, found.points) == (0, 0, 60)


@given(power=st.floats(-1, 1), documents=st.integers(1, 4), steps=st.integers(24, 60))
@settings(max_examples=25, deadline=None)
def test_growth_is_that_of_the_verdict(power: float, documents: int, steps: int) -> None:
    curve = np.tile(0.1 * (np.arange(steps) + 1.0) ** power, (documents, 1))
    found = summary.figures(curve)
    # Logarithms of up to 7, a slope over two doublings; growth is its exponential.
    assert found.growth == pytest.approx(2**power - 1, rel=0, abs=2 * linear(documents * steps, 7, weight=2))
    assert found.verdict == plateau(curve).verdict.value
    assert found.ratio == pytest.approx(found.level / 0.1)


def test_level_is_geometric_by_document_and_then_over_documents() -> None:
    values = np.array([[9.0, 9.0, 1.0, 100.0], [9.0, 9.0, 1000.0, 1000.0]])
    found = summary.figures(values)
    assert found.level == pytest.approx(100.0)
    assert (found.level_low, found.level_high) == pytest.approx((10.0, 1000.0))


def test_zeros_and_nonfinite_are_counted_and_left_out() -> None:
    values = np.full((2, 8), 0.5)
    values[0, 5], values[1, 6], values[1, 7] = 0.0, np.nan, np.inf
    found = summary.figures(values)
    assert (found.zeros, found.nonfinite, found.points) == (1, 2, 16)
    assert found.level == pytest.approx(0.5)


def test_exact_zero_is_exactly_zero_and_nothing_is_nothing() -> None:
    zero = summary.figures(np.zeros((2, 6)))
    assert zero.level == 0.0
    assert math.isnan(zero.ratio)
    assert math.isnan(zero.growth)
    nothing = summary.figures(np.full((2, 6), np.nan))
    assert math.isnan(nothing.level)
    assert nothing.nonfinite == 12
    one = summary.figures(np.array([[0.25]]))
    assert one.level == 0.25
    assert math.isnan(one.growth)
    with pytest.raises(DatasetError):
        summary.figures(np.zeros(3))


# ------------------------------------------------------------------------------------------ slopes
def test_slope_recovers_the_law_that_made_the_levels() -> None:
    for power in (0.0, 0.5, 1.0):
        cells = [small(dtype=d, level=flat(synthetic.ROUNDOFF[d] ** power), noise=0) for d in ("bf16", "fp16", "fp32")]
        found = summary.slopes(summary.table(Sweep(cells)))
        # Logarithms of up to 17.
        assert found["slope"].item() == pytest.approx(power, rel=0, abs=linear(3 * 32, 17))
        assert found["dtypes"].item() == "bf16, fp16, fp32"
    assert summary.table(Sweep(cells))["roundoffs"].tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_slope_leaves_out_what_has_no_logarithm_and_says_so() -> None:
    cells = [small(dtype="bf16", level=flat(0.01)), small(dtype="fp64", level=flat(0.0))]
    found = summary.slopes(summary.table(Sweep(cells)))
    assert math.isnan(found["slope"].item())
    assert found["left_out"].item() == 1


@pytest.mark.parametrize(
    ("power", "noise", "kind", "said"),
    [
        (1.0, 0.1, Scaling.ROUNDING, "rounding: drift is proportional to the unit roundoff (log-log slope "),
        (0.0, 0.1, Scaling.STRUCTURAL, "structural: drift does not depend on the precision (log-log slope "),
        (
            0.5,
            0.1,
            Scaling.BOTH,
            "both: drift shrinks with the unit roundoff, but less than in proportion (log-log slope ",
        ),
        (
            1.4,
            0.1,
            Scaling.UNDETERMINED,
            "undetermined: these data do not decide (drift shrinks faster than the unit roundoff; log-log slope 1.4",
        ),
        (
            -0.5,
            0.1,
            Scaling.UNDETERMINED,
            "undetermined: these data do not decide (drift is larger at finer precision; log-log slope -0.5",
        ),
        (
            0.805,
            0.3,
            Scaling.UNDETERMINED,
            "undetermined: these data do not decide (the interval reaches across a margin; log-log slope 0.8",
        ),
    ],
)
def test_one_judge_of_rounding(power: float, noise: float, kind: Scaling, said: str) -> None:
    """A point slope above 0.8 is no verdict: sentence, headline, and panel title have that of the ladder."""
    rng = np.random.default_rng(0)
    levels = {d: 0.3 * synthetic.ROUNDOFF[d] ** power for d in ("bf16", "fp32")}
    cells = [small(dtype=d, documents=6, level=flat(v), noise=0) for d, v in levels.items()]
    for ds in cells:  # every document at its own level, so that the interval has a width
        ds["hidden_rel_l2"].values[...] *= np.exp(noise * rng.standard_normal((ds.sizes["document"], 1, 1)))
    sweep = Sweep(cells)
    (one,) = ladder.ladders(sweep)
    assert one.slope.verdict is kind
    assert said in summary.curve_sentences(sweep)[0]
    assert SCALING_WORDS[kind] in summary.headline(sweep)["append"]
    title = figures.level_vs_roundoff(sweep).axes[0].get_title()
    assert (f": {kind.value}" in title) or kind is Scaling.UNDETERMINED
    assert "rounding" not in title or kind is Scaling.ROUNDING


def test_a_divergence_is_judged_by_its_square_root() -> None:
    cells = [small(dtype=d, level=flat(synthetic.ROUNDOFF[d])) for d in ("bf16", "fp32")]
    for ds in cells:
        ds["logit_kl"].values[...] = dataset.curve(ds, "hidden_rel_l2") ** 2
    text = summary.curve_sentences(Sweep(cells), "logit_kl")[0]
    assert "rounding: drift is proportional to the unit roundoff (log-log slope of its square root 1.0" in text


def test_slopes_of_points_have_no_verdict() -> None:
    """What the ladder does not judge is described, and that no interval stands behind it is said."""
    cells = [small(dtype=d, level=flat(synthetic.ROUNDOFF[d])) for d in ("bf16", "fp32")]
    text = summary.curve_sentences(Sweep(cells), "hidden_norm")[0]
    assert "its log-log slope is 0.00, of points and without an interval: no verdict" in text
    assert not hasattr(summary, "verdict")


# ------------------------------------------------------------------------------------------ sentences
@pytest.fixture(scope="module")
def real() -> Sweep:
    return Sweep(synthetic.cells(models=[MODEL], chunk_sizes=[64, 256], layers=3))


def test_sentences_say_rounding_and_structural(real: Sweep) -> None:
    append = [s for s in summary.curve_sentences(real) if s.startswith("append")]
    assert "1.3e-2 in bf16" in append[0] or "1.2e-2 to 1.3e-2 in bf16" in append[0]
    assert "65,536-fold change in unit roundoff; rounding: drift is proportional" in append[0]
    assert "proportional to the unit roundoff (log-log slope 0.87" in append[0]
    assert "undetermined (too few steps)" in append[1]
    restart = [s for s in summary.curve_sentences(real) if s.startswith("restart")]
    assert "structural: drift does not depend on the precision" in restart[0]
    assert summary.headline(real)["append"].startswith("append: rounding: drift is proportional to the unit roundoff")
    assert "structural" in summary.headline(real)["reprime"]
    assert "1 ± 0.2" in summary.thresholds()
    assert "± 0.05 of 0" in summary.thresholds()


def test_sentences_follow_the_data_not_the_name() -> None:
    # the same protocol name, with the curves exchanged: the words must change sides
    cells = [small(dtype=d, protocol="append", level=flat(0.67)) for d in ("bf16", "fp32")]
    cells += [small(dtype=d, protocol="restart", level=flat(synthetic.APPEND[d])) for d in ("bf16", "fp32")]
    heads = summary.headline(Sweep(cells))
    assert "structural" in heads["append"]
    assert "rounding" in heads["restart"]


def test_models_that_disagree_are_named() -> None:
    cells = [small(model="a", dtype=d, level=flat(0.5)) for d in ("bf16", "fp32")]
    cells += [small(model="b", dtype=d, level=flat(synthetic.APPEND[d])) for d in ("bf16", "fp32")]
    text = summary.headline(Sweep(cells))["append"]
    assert "a: structural: drift does not depend" in text
    assert "b: rounding: drift is proportional" in text


@pytest.mark.parametrize(("power", "word"), [(0.0, "flat"), (0.3, "growing"), (-0.3, "decaying")])
def test_chain_words(power: float, word: str) -> None:
    cell = small(level=lambda s: 1e-3 * (s + 1) ** power, noise=0, documents=3)
    text = summary.curve_sentences(Sweep([cell]))[1]
    assert f": {word}, " in text
    assert "per doubling of depth (90 % interval " in text


def test_one_precision_one_document_few_steps() -> None:
    text = " ".join(summary.curve_sentences(Sweep([small(documents=1, tokens=48)])))
    assert "with one precision only (bf16)" in text
    assert "cannot be said" in text
    assert "undetermined (too few steps)" in text
    assert "interval" not in text


def test_zero_and_nan_cells_are_said_aloud() -> None:
    bad = small(dtype="fp16")
    bad["hidden_rel_l2"].values[...] = np.nan
    part = small(dtype="bf16")
    part["hidden_rel_l2"].values[0, -1, 3] = np.inf
    zero = small(dtype="fp64", level=flat(0.0))
    text = " ".join(summary.curve_sentences(Sweep([bad, part, zero])))
    assert "exactly 0 in fp64" in text
    assert "In fp64 the level is exactly 0" in text
    assert "not measured in fp16" in text
    assert "65 of 192 values are NaN or Inf" in text
    assert "no finite value past the first quarter" in text
    assert "nan" not in text.lower().replace("nan or inf", "")


def test_every_sentence_function_takes_any_cell() -> None:
    broken = small()
    for name in ("hidden_rel_l2", "key_rel_l2", "hidden_rel_l2_token", "logit_kl", "top1_agreement", "nll_fold"):
        broken[name].values[...] = np.nan
    for cells in ([], [broken], [small(level=flat(0.0))], [small(documents=1, tokens=16)]):
        sweep = Sweep(cells)
        for say in (summary.curve_sentences, summary.chunk_sentences, summary.logit_sentences, summary.depth_sentences,
                    summary.token_sentences, summary.contents):  # fmt: skip
            lines = say(sweep)
            assert lines
            assert all(line.endswith((".", ";", "”.")) and " nan" not in line for line in lines), lines


def test_chunk_logit_depth_and_token_sentences(real: Sweep) -> None:
    assert any(
        "over chunk sizes 64 to 256 the level changes by a factor of" in s for s in summary.chunk_sentences(real)
    )
    logits = [s for s in summary.logit_sentences(real) if s.startswith("restart, smollm2-135m-instruct, bf16")]
    assert "NLL" in logits[0]
    assert "80 % of tokens" in logits[0] or "to 8" in logits[0] or "81 %" in logits[0]
    depth = summary.depth_sentences(Sweep([small(noise=0, level=flat(0.1))]))[0]
    assert "0.10 after the final norm" in depth
    assert "values drift 1.4 times as much" in depth
    token = summary.token_sentences(Sweep([small(noise=0, level=flat(0.1))]))[0]
    assert f"worst token {numbers.number(math.exp(2.7))} times" in token


def test_worst_token_is_placed() -> None:
    cell = small()
    cell["hidden_rel_l2_token"].values[1, -1, 5, -1] = 77.0
    assert (
        "The worst of all (77) is among tokens 80 to 95 of document 1 (chain step 6)"
        in summary.token_sentences(Sweep([cell]))[0]
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "exactly 0"), (math.nan, "not measured"), (math.inf, "infinite"), (0.0131, "1.3e-2"), (8.1e-7, "8.1e-7"),
        (0.674, "0.67"), (16234.0, "16,000"), (1.0, "1.0"), (0.0999, "0.10"), (9.96, "10"), (123.4, "120"),
        (2e9, "2.0e9"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_say_them(value: float, text: str) -> None:
    assert numbers.number(value) == text


# ------------------------------------------------------------------------------------------ tables
def test_nonfinite_table_names_the_first_place() -> None:
    clean, bad = small(dtype="fp32"), small(dtype="fp16")
    bad["nonfinite_count"].values[1, 2, 4] = 9
    bad["logit_nonfinite_count"].values[0, 5] = 3
    bad["logit_kl"].values[0, 5] = np.nan
    table = summary.nonfinite(Sweep([clean, bad]))
    assert len(table) == 1
    row = table.iloc[0]
    assert (row["dtype"], row["non-finite"], row["first chain step"], row["first layer"]) == ("fp16", 12, 5, "block 2")
    assert row["figures not finite"] == 1
    assert summary.nonfinite(Sweep([clean])).empty
    assert any("12 values are NaN or Inf" in line for line in summary.contents(Sweep([clean, bad])))


def test_provenance_and_commands_come_from_the_cells(real: Sweep) -> None:
    table = summary.provenance(real)
    assert len(table) == 1
    assert table["precisions"].item() == "bf16, fp32"
    assert table["torch"].item() == "2.13.0"
    commands = summary.reproduce(real)
    assert f"--set model={MODEL}" in commands
    assert "--set chunk_size=64,256" in commands
    assert "git checkout 0000000" in commands
    assert summary.reproduce(Sweep([])) == ""


def test_failures_and_problems(tmp_path: Path) -> None:
    synthetic.sweep(tmp_path, ["tiny"], ["bf16"], ["append"], [16], layers=2, tokens=48)
    (tmp_path / "bad.nc").write_text("x")
    sweep = open_sweep(tmp_path)
    assert summary.problems(sweep)["file"].tolist() == ["bad.nc"]
    failed = Sweep(sweep.cells, failures=[{"file": "x.nc", "config": {"model": "m"}, "reason": "out of memory"}])
    assert summary.failures(failed).iloc[0].to_dict() == {"file": "x.nc", "model": "m", "reason": "out of memory"}
    assert summary.failures(sweep).empty


def test_html_escapes_and_says_when_there_is_nothing(real: Sweep) -> None:
    frame = summary.problems(Sweep([], problems={"a<b>.nc": "a<b>.nc: <script>"}))
    assert "<script>" not in tables.html(frame)
    assert tables.html(frame.iloc[:0], empty="None & well") == "<p>None &amp; well</p>"
    assert "<th>protocols</th>" in tables.html(summary.provenance(real), upright=True)
    assert "<td>smollm2-135m-instruct</td>" in tables.html(summary.shown(summary.table(real)))
    assert "&lt;i&gt;" in tables.bullets(["<i>: x"])


def test_curve_refuses_what_is_not_there() -> None:
    cell = small()
    assert dataset.curve(cell, "hidden_rel_l2", 0).max() == 0
    assert dataset.curve(cell, "key_rel_l2", 2).shape == (2, 32)
    with pytest.raises(DatasetError, match="no measure 'foo'"):
        dataset.curve(cell, "foo")
    with pytest.raises(DatasetError, match="no layer 9"):
        dataset.curve(cell, "hidden_rel_l2", 9)
    with pytest.raises(DatasetError, match="no quantile"):
        dataset.curve(cell, "logit_kl_token", quantile=0.3)


def test_select_and_longest(real: Sweep) -> None:
    assert len(reading_cells.select(real, None)) == len(real)
    assert len(reading_cells.select(real, f" {MODEL} ")) == len(real)
    with pytest.raises(DatasetError):
        reading_cells.select(real, ["absent"])
    assert reading_cells.longest(real).values("chunk_size") == [64]


def test_headlines_are_the_verdicts_of_the_ladder() -> None:
    """A slope of .6 is neither, and one precision says nothing but takes nothing from what several say."""
    cells = [small(dtype=d, level=flat(synthetic.ROUNDOFF[d] ** 0.6)) for d in ("bf16", "fp32")]
    assert "less than in proportion; slope 0.60" in summary.headline(Sweep(cells))["append"]
    good = [small(dtype=d, level=flat(synthetic.APPEND[d])) for d in ("bf16", "fp32")]
    alone = small(dtype="bf16", chunk_size=32, level=flat(synthetic.APPEND["bf16"]))
    assert "proportional to the unit roundoff; slope" in summary.headline(Sweep([*good, alone]))["append"]
    assert "these data do not decide (one precision only)" in summary.headline(Sweep([alone]))["append"]

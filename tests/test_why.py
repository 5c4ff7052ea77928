"""Why drift is flat, or is not: what is taken apart, which sentence stands on what, and the page."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from typing import Any

import in_process
import numpy as np
import pytest
import synthetic
import synthetic_controls as made
import xarray as xr
from rounding import linear
from why_tools import (
    DOCUMENTS,
    FLAT,
    LATE,
    LAYERS,
    SILENT,
    STEPS,
    UNDER,
    cell,
    explained,
    local,
    noisy,
    one_step,
    put,
    response,
    said,
)

from drift import dataset
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import why
from drift.reading.controls.gating import WITHHELD
from drift.reading.plateau.deciding import plateaus
from drift.reading.report import rendering
from drift.reading.statistics.windows import late_start
from drift.reading.why import Adding, Answer, Quantity
from drift.reading.why.computing import profile, take_apart


# ------------------------------------------------------------------------------------------ taking apart
def test_drift_is_taken_apart_by_the_error_of_each_step() -> None:
    rng = np.random.default_rng(5)
    drift, under, own = (np.exp(rng.standard_normal((3, 32))) for _ in range(3))
    drift += own  # so that it is the larger one
    own[:, ::3] = 0.0
    own[1, 4] = 0.0  # a step that is silent in one document
    drift[:, 0] = 0.0
    own[2, 20] = 2 * drift[2, 20]
    drift[0, 25], own[1, 28] = np.nan, np.inf
    p = take_apart(drift, own, under)
    known = np.isfinite(drift) & np.isfinite(own)
    silent = known & (own == 0) & (drift > 0)
    assert (p.values, p.nonfinite, p.silent, p.same, p.smaller) == (96, 2, int(silent.sum()), 3, 1)
    assert (p.steps, p.silent_steps, p.mixed_steps) == (32, 10, 1)
    late = range(late_start(32), 32)
    inherited, errs, makes, shares = [], [], [], []
    for document in range(3):
        places = [s for s in late if known[document, s]]
        quiet = [s for s in places if silent[document, s]]
        loud = [s for s in places if own[document, s] > 0]
        inherited.append(np.mean([math.log(drift[document, s] / under[document, s]) for s in quiet]))
        errs.append(np.mean([math.log(drift[document, s] / under[document, s]) for s in loud]))
        makes.append(np.mean([math.log(own[document, s] / under[document, s]) for s in loud]))
        shares.append(1 - sum(own[document, s] ** 2 for s in places) / sum(drift[document, s] ** 2 for s in places))
    tight = linear(64, 1)
    assert p.inherited.value == pytest.approx(math.exp(np.mean(inherited)), rel=tight)
    assert p.erring.value == pytest.approx(math.exp(np.mean(errs)), rel=tight)
    assert p.local.value == pytest.approx(math.exp(np.mean(makes)), rel=tight)
    assert p.share.value == pytest.approx(np.mean(shares), rel=tight)
    assert p.ratio.value == pytest.approx(math.exp(np.mean(errs) - np.mean(inherited)), rel=tight)
    assert p.expected == pytest.approx(math.hypot(1, math.exp(np.mean(makes) - np.mean(inherited))), rel=tight)
    without = take_apart(drift, own, None)
    assert (without.silent, without.share) == (p.silent, p.share)
    assert (without.adding, math.isnan(without.inherited.value)) == (Adding.NOT_TESTED, True)


@pytest.mark.parametrize(
    ("factors", "adding"),
    [
        ([1.0] * 4, Adding.NOTHING),
        ([1.1] * 4, Adding.PART),
        ([math.hypot(1, 8e-3 / 9.5e-3)] * 4, Adding.SQUARES),
        ([2.0] * 4, Adding.MORE),
        ([0.8, 1.5, 0.8, 1.6], Adding.UNDETERMINED),
    ],
)
def test_what_an_own_error_adds_is_decided_between_nothing_and_squares(factors: list[float], adding: Adding) -> None:
    drift = noisy(9.5e-3) * np.where(SILENT, 1.0, np.array(factors)[:, None])
    found = explained(cell(drift, UNDER), one_step(local()))
    (chain,) = found.chains
    assert chain.parts is not None
    assert chain.parts.adding is adding
    (words,) = why.parts_sentences(found)
    assert {
        Adding.NOTHING: "an own error adds nothing that is resolved",
        Adding.PART: "adds less than an independent one would",
        Adding.SQUARES: "adds as an independent one does",
        Adding.MORE: "more drift than an independent error would add",
        Adding.UNDETERMINED: "whether an own error adds anything is undetermined",
    }[adding] in words
    ratio = re.search(r"ratio ([\d.]+) .*independent errors: ([\d.]+)", words)
    assert ratio
    assert (float(ratio[1]), float(ratio[2])) == pytest.approx(
        (chain.parts.ratio.value, chain.parts.expected), rel=5e-3
    )
    step = said(found, "What a step adds")
    less = adding in (Adding.NOTHING, Adding.PART)
    assert ("So errors do not add in squares" in step) is less
    assert any(line.startswith("How much is inherited where a step errs") for line in why.limits(found)) is less
    if not less:
        counted = {Adding.SQUARES: "as much in 1", Adding.MORE: "more in 1", Adding.UNDETERMINED: "undetermined in 1"}
        assert counted[adding] in step


def test_where_all_steps_err_or_none_does_nothing_is_compared() -> None:
    always = noisy(8e-3, seed=3)
    found = explained(cell(FLAT, UNDER), one_step(always))
    (words,) = why.parts_sentences(found)
    assert f"at each of the {DOCUMENTS * STEPS} values that drift, the step makes an error of its own" in words
    assert said(found, "What a step adds").startswith("What a step adds: not tested")
    assert "why errors do not build up was not tested" in why.answer(found)
    early = np.where(np.arange(STEPS) < 3, 0.0, always)
    (words,) = why.parts_sentences(explained(cell(FLAT, UNDER), one_step(early)))
    assert "past the first quarter no step only inherits" in words
    late = np.where(np.arange(STEPS) < 3, always, 0.0)
    (words,) = why.parts_sentences(explained(cell(FLAT, UNDER), one_step(late)))
    assert "past the first quarter no step errs, and inherited drift is 0.95" in words
    mixed = local()
    mixed[0, SILENT] = 8e-3
    (words,) = why.parts_sentences(explained(cell(FLAT, UNDER), one_step(mixed)))
    assert f"in every document at 0 of {STEPS} steps, at {STEPS // 2} in some" in words


def test_a_profile_is_of_root_mean_squares_and_counts_what_it_cannot_show() -> None:
    drift = np.array([[[3.0], [1.0], [0.0]], [[4.0], [1.0], [np.nan]]])
    own = np.array([[[0.0], [2.0], [0.0]], [[0.0], [2.0], [0.0]]])
    found = profile({Quantity.DRIFT: drift, Quantity.ONE_STEP: own}, [1, 2, 3])
    np.testing.assert_allclose(found.values(Quantity.DRIFT), [math.sqrt(12.5), 1.0, 0.0], rtol=linear(4, 1))
    inherited = found.values(Quantity.INHERITED)
    assert inherited[0] == found.values(Quantity.DRIFT)[0]  # where one step makes no error, all drift
    assert np.isnan(inherited[1])
    assert (found.negative, found.nonfinite) == (1, 1)
    line = found.lines[Quantity.DRIFT]
    assert (line["low"][0], line["high"][0]) == (3.0, 4.0)
    assert np.isnan(found.values(Quantity.FLOOR)).all()


# ------------------------------------------------------------------------------------------ the answer
def test_flat_drift_at_the_floor_is_explained_by_errors_that_do_not_add_up() -> None:
    found = explained(cell(FLAT, UNDER), one_step(local()))
    assert found.answer is Answer.AT_FLOOR
    text = why.answer(found)
    assert text.startswith("Drift of append does not build up because errors do not add up: ")
    (chain,) = found.chains
    assert chain.parts is not None
    assert f"drift is {chain.parts.ratio.value:.3g} times" in text or "drift is 1.00 times" in text
    alone = explained(cell(FLAT, UNDER))
    assert "was not tested" in why.answer(alone)
    partly = explained(cell(FLAT, UNDER), one_step(local()), cell(FLAT, UNDER, dtype="fp32"))
    assert "in 1 of 2 chains that could be asked" in why.answer(partly)
    some = noisy(9.5e-3) * np.where(SILENT, 1.0, 1.1)
    assert "errors hardly add up" in why.answer(explained(cell(some, UNDER), one_step(local())))
    squares = noisy(9.5e-3) * np.where(SILENT, 1.0, math.hypot(1, 8e-3 / 9.5e-3))
    assert "is not decided by these data (an own error adds as an independent one does in 1 of 1)" in why.answer(
        explained(cell(squares, UNDER), one_step(local()))
    )


@pytest.mark.parametrize(
    ("level", "power", "answer", "words"),
    [
        (9e-2, 0.0, Answer.ABOVE, "Rounding is not why drift of append is as large as it is: it lies 9.0"),
        (
            9e-3,
            0.3,
            Answer.GROWING,
            "Drift of append is not flat: against full attention's own rounding floor it grows",
        ),
        (2e-3, 0.0, Answer.BELOW, "Drift of append lies below full attention's own rounding floor"),
    ],
)
def test_drift_that_is_not_at_the_floor_is_not_explained_by_it(
    level: float, power: float, answer: Answer, words: str
) -> None:
    found = explained(cell(noisy(level, power), UNDER))
    assert found.answer is answer
    assert why.answer(found).startswith(words)
    both = explained(cell(noisy(level, power), UNDER), cell(FLAT, UNDER, dtype="fp32"))
    assert both.answer is Answer.DIFFERENT
    assert "of 2" in why.answer(both)


def test_what_the_data_do_not_decide_is_not_explained() -> None:
    wild = explained(cell(noisy(9.5e-3, sigma=0.6), UNDER))
    assert wild.answer is Answer.UNDETERMINED
    assert why.answer(wild).startswith("Drift of append is ")
    assert "against the floor it is undetermined in 1 of 1" in why.answer(wild)
    assert "undetermined of tiny, bf16, chunk 8" in "\n".join(why.limits(wild))
    broken = FLAT.copy()
    broken[1, 30] = np.nan
    found = explained(cell(broken, UNDER), one_step(local()))
    assert found.answer is Answer.UNDETERMINED
    assert why.answer(found).endswith("it cannot be held against its floor in one chain (NaN or Inf).")
    assert "NaN or Inf: tiny, bf16, chunk 8 (1 values)." in why.limits(found)
    assert "(1 more are NaN or Inf)" in why.parts_sentences(found)[0]
    nothing = explained(cell(0 * FLAT, UNDER), one_step(0 * FLAT))
    assert "exactly zero too often" in why.answer(nothing)
    assert said(nothing, "What grows") == "What grows: no growth against the floor could be estimated."


def test_without_floor_or_chain_the_page_says_what_is_missing() -> None:
    found = explained(cell(FLAT))
    assert found.answer is Answer.NO_FLOOR
    assert "cannot be said from this sweep" in why.answer(found)
    assert "floor_draws=2" in why.answer(found)
    (words,) = why.parts_sentences(found)
    assert "protocol='append,one_step(append)'" in words
    assert "floor_draws=2" in why.depth_sentences(found)[0]
    assert said(found, "What a step inherits") == "What a step inherits: not measured in floors."
    assert "without a floor" in said(found, "What grows")
    missing = "\n".join(why.limits(found))
    assert "In one chain: no rounding floor" in missing
    assert "In one chain: no one-step error" in missing
    two = explained(cell(FLAT), cell(FLAT, dtype="fp32"))
    assert why.depth_sentences(two)[0].startswith("Both chains: no rounding floor")
    absent = explained(cell(FLAT), protocol="restart")
    assert absent.answer is Answer.NO_CHAIN
    assert "There are append: ask for one with -p protocol=LABEL." in why.answer(absent)
    assert why.explanation(absent) == why.limits(absent) == why.parts_sentences(absent) == []
    assert why.table(absent).empty
    with pytest.raises(DatasetError, match="hidden_rel"):
        explained(cell(FLAT), measure="hidden_rel")
    gap = explained(cell(FLAT, UNDER), measure="nll_gap")
    assert "this measure has no rounding floor" in why.answer(gap)


def test_of_several_chains_the_one_that_most_is_known_of_is_explained() -> None:
    short = cell(FLAT, UNDER)
    long = synthetic.cell(model="tiny", layers=LAYERS, chunk_size=2, tokens=8 * STEPS, documents=DOCUMENTS)
    found = explained(long, short, one_step(local()))
    (chain,) = found.chains
    assert chain.ds is short
    assert found.others == 1
    assert "Other chains of append: 1 more are in the sweep and not on this page." in why.limits(found)
    other = explained(short, cell(FLAT, UNDER, protocol="restart"))
    assert "Other folds: restart; -p protocol=LABEL asks for one." in why.limits(other)


def test_controls_that_failed_leave_numbers_and_no_conclusion() -> None:
    failing = made.controls(dtypes=["bf16"])
    for ds in failing:
        if ds["protocol"].item() == "full":
            put(ds, "hidden_rel_l2", np.full((ds.sizes["document"], ds.sizes["step"]), 1e-3))
    sweep = Sweep([cell(FLAT, UNDER), one_step(local())], controls=failing)
    found = why.explain(sweep)
    assert not found.gate.is_open
    assert found.answer is Answer.CONTROLS
    assert why.answer(found).lower().startswith(WITHHELD)
    (line,) = why.explanation(found)
    assert line.lower().startswith(WITHHELD)
    assert "the growth is" not in "".join(why.position_sentences(found))


# ------------------------------------------------------------------------------------------ numbers that decide
@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_the_paragraph_names_the_coverage_that_decides(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift.reading.why.wording.ALPHA", alpha)
    monkeypatch.setattr("drift.reading.why.computing.ALPHA", alpha)
    assert f"({100 - 200 * alpha:g} %, over documents)" in why.formula()
    (words,) = why.parts_sentences(explained(cell(FLAT, UNDER), one_step(local())))
    assert f"({100 - 200 * alpha:g} % interval" in words


def test_the_table_says_what_was_found() -> None:
    found = explained(cell(FLAT, UNDER), one_step(local()), cell(FLAT, dtype="fp32"))
    first, second = why.table(found).to_dict("records")
    assert first["all inherited at"] == f"{DOCUMENTS * STEPS // 2} of {DOCUMENTS * STEPS} values"
    assert first["against the floor"] == "at floor"
    by_hand = math.exp((np.log(FLAT) - np.log(UNDER))[:, LATE:][:, SILENT[LATE:]].mean())
    assert float(first["drift / floor there"]) == pytest.approx(by_hand, abs=5e-4)
    assert second["against the floor"] == "no floor"
    assert second["all inherited at"] == "–"
    assert "past the first quarter" in why.table_legend()


# ------------------------------------------------------------------------------------------ the page
def _page(folder: Path, out: Path, *cells: xr.Dataset, **parameters: Any) -> str:
    for place, ds in enumerate(cells):
        dataset.write(ds, folder / f"{place}.nc")
    with in_process.notebooks():
        rendering.render(folder, ["why"], out, parameters=parameters, report=lambda line: None)
    page = (out / "why.html").read_text()
    return html.unescape(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


def test_the_page_opens_with_its_answer_its_figure_and_its_table(tmp_path: Path) -> None:
    cells = [cell(FLAT, UNDER), one_step(local()), *(response(*one) for one in {0.2: 9e-3, 1: 1e-2, 10: 9e-2}.items())]
    text = _page(tmp_path / "sweep", tmp_path / "out", *cells)
    main = text.split("<main>")[1]
    answer = why.answer(explained(*cells))
    order = [main.index(mark) for mark in ("<h1", answer, "<img", "<table", "<details")]
    assert order == sorted(order)
    for title in ("What each step makes", "Through the depth", "Response to the size", "What grows with the position",
                  "step by step", "What this does not show"):  # fmt: skip
        assert title in text
    assert len(re.findall(r"<img", main)) == 4
    for sentence in why.explanation(explained(*cells)):
        assert sentence.split(": ", 1)[1] in main


def test_the_page_of_a_sweep_without_floor_and_one_step_says_so(tmp_path: Path) -> None:
    broken = FLAT.copy()
    broken[0, 5] = np.inf
    text = _page(tmp_path / "sweep", tmp_path / "out", cell(broken), protocol="append", measure="key_rel_l2")
    assert "cannot be said from this sweep" in text
    assert "floor_draws=2" in text
    assert len(re.findall(r"<img", text.split("<main>")[1])) == 3


def test_the_margin_of_growth_reaches_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plateaus.__kwdefaults__ is not None
    grown = [cell(noisy(6.5e-3, 0.12), UNDER)]
    assert explained(*grown).answer is Answer.GROWING
    monkeypatch.setitem(plateaus.__kwdefaults__, "margin", 0.2)
    assert explained(*grown).answer is Answer.AT_FLOOR

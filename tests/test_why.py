"""Why drift is flat, or is not: what is taken apart, and which sentence stands on what."""

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

from drift import dataset
from drift.dataset.contract import FLOORS
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import why
from drift.reading.controls.gating import WITHHELD
from drift.reading.floor import FACTOR
from drift.reading.plateau.deciding import plateaus
from drift.reading.report import rendering
from drift.reading.statistics.windows import late_start
from drift.reading.why import Adding, Answer, Explained, Meeting, Position, Quantity, Responding
from drift.reading.why.computing import profile, take_apart
from drift.reading.why.wording import ROOT

STEPS, DOCUMENTS, LAYERS = 64, 4, 3
LATE = late_start(STEPS)
SILENT = np.arange(STEPS) % 2 == 1  # steps that make no error of their own


def noisy(level: float, power: float = 0.0, sigma: float = 0.02, seed: int = 0) -> np.ndarray:
    """A curve [document, step] that grows as a power of the step."""
    rng = np.random.default_rng(seed)
    steps = np.arange(1, STEPS + 1) ** power
    values: np.ndarray = level * steps * np.exp(sigma * rng.standard_normal((DOCUMENTS, STEPS)))
    return values


def put(ds: xr.Dataset, measure: str, values: np.ndarray, depth: list[float] | None = None) -> None:
    """Write values [document, step] into a measure at every layer, or so many times at each."""
    if measure in FLOORS.values():
        values = values[..., None]
    name = ds[measure]
    if {"layer", "block"} & set(name.dims):
        values = np.stack([values * d for d in depth or [1.0] * name.shape[1]], axis=1)
    name.values[...] = values


def cell(
    drift: np.ndarray, floor: np.ndarray | None = None, depth: list[float] | None = None, **options: Any
) -> xr.Dataset:
    """A cell with this drift and floor of its hidden state, and a tenth of the floor in its keys and values."""
    known: dict[str, Any] = {"model": "tiny", "layers": LAYERS, "documents": DOCUMENTS, "chunk_size": 8}
    ds = synthetic.cell(
        **(known | options), tokens=8 * STEPS, floor=None if floor is None else lambda step: 1e-2 + 0 * step
    )
    put(ds, "hidden_rel_l2", drift, depth)
    if floor is not None:
        for name in ("hidden_rel_l2", "key_rel_l2", "value_rel_l2"):
            put(ds, FLOORS[name], floor)
        for name in ("key_rel_l2", "value_rel_l2"):
            put(ds, name, floor * 0.9)
    return ds


def one_step(local: np.ndarray, **options: Any) -> xr.Dataset:
    return cell(local, protocol=f"one_step({options.pop('of', 'append')})", **options)


def local(level: float = 8e-3) -> np.ndarray:
    return np.where(SILENT, 0.0, noisy(level, seed=3))


def explained(*cells: xr.Dataset, **options: Any) -> Explained:
    return why.explain(Sweep(cells), **options)


def said(found: Explained, of: str) -> str:
    """The sentence of the explanation that begins so."""
    (sentence,) = [line for line in why.explanation(found) if line.startswith(of)]
    return sentence


FLAT, UNDER = noisy(9.5e-3), noisy(1e-2, seed=1)


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


# ------------------------------------------------------------------------------------------ through the network
@pytest.mark.parametrize(
    ("depth", "meeting", "words"),
    [
        ([0.0, 0.1, 0.9, 0.95, 1.0], Meeting.LATER, "begins at 9.52e-2 floors after block 1, is within"),
        ([0.0, 0.9, 0.9, 0.95, 1.0], Meeting.EVERYWHERE, "wherever there is drift, from block 1 on"),
        ([0.0, 0.1, 0.9, 2.0, 4.0], Meeting.ABOVE, "ends above the floor, at 3.8"),
        ([0.0, 0.1, 0.2, 0.2, 0.3], Meeting.BELOW, "ends below the floor, at 0.28"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], Meeting.NOT_FINITE, "no drift through the network"),
    ],
)
def test_where_in_the_network_drift_comes_to_its_floor(depth: list[float], meeting: Meeting, words: str) -> None:
    found = explained(cell(FLAT, UNDER, depth), one_step(local()))
    (chain,) = found.chains
    assert chain.depth is not None
    assert chain.depth.meeting is meeting
    (sentence,) = why.depth_sentences(found)
    assert words in sentence
    if meeting is Meeting.LATER:
        assert chain.through is not None
        late = slice(LATE, None)
        by_hand = np.sqrt((FLAT[:, late] ** 2).mean() / (UNDER[:, late] ** 2).mean())
        assert chain.depth.first_ratio == pytest.approx(0.1 * by_hand, rel=linear(8, 20))
        assert (chain.depth.first, chain.depth.reached) == (1, 2)
        assert f"within a factor {FACTOR:.3g} of the floor from block 2 on" in sentence


@pytest.mark.parametrize(
    ("times", "words"), [(0.9, "no more than one rounding makes"), (5.0, "more than one rounding")]
)
def test_what_a_step_inherits_is_said_in_floors(times: float, words: str) -> None:
    ds = cell(FLAT, UNDER)
    ds["key_rel_l2"].values[:, 1] *= times
    sentence = said(explained(ds), "What a step inherits")
    assert words in sentence
    assert ("; more" in sentence or "no more" in sentence) is (times < 1)


def test_a_measure_without_layers_has_no_depth() -> None:
    found = explained(cell(FLAT, UNDER), measure="logit_kl")
    assert why.depth_sentences(found) == ["tiny, bf16, chunk 8: logit_kl is not measured layer by layer."]


# ------------------------------------------------------------------------------------------ growth
@pytest.mark.parametrize(
    ("drift", "under", "position", "words"),
    [
        (0.12, 0.12, Position.FLOOR_TOO, "full attention's own floor grows with it"),
        (0.0, 0.0, Position.NONE, "is flat in 1 of 1 chains"),
        (0.3, 0.0, Position.CHAIN, "in 1 it grows away from the floor, which is the chain's doing"),
        (-0.12, -0.12, Position.FALLS, "is flat in 1 of 1 chains"),
    ],
)
def test_whose_growth_it_is(drift: float, under: float, position: Position, words: str) -> None:
    found = explained(cell(noisy(9.5e-3, drift), noisy(1e-2, under, seed=1)))
    assert found.chains[0].position is position
    assert words in said(found, "What grows")
    (sentence,) = why.position_sentences(found)
    assert re.search(r"drift [+-][\d.]+ % \([+-][\d.]+ % to [+-][\d.]+ %\), rounding floor", sentence)
    table = why.growth_table(found).iloc[0]
    assert table["drift / floor"] in sentence.replace("drift over floor ", "")


def test_a_floor_whose_own_growth_is_not_resolved_is_not_said_to_grow() -> None:
    found = explained(cell(noisy(9.5e-3, 0.03), UNDER))
    growth = found.chains[0].growth
    assert growth[Quantity.FLOOR].growth_interval[0] < 0 < growth[Quantity.DRIFT].growth_interval[0]
    assert found.chains[0].position is Position.FLOOR_UNRESOLVED
    assert "own floor grows with it" not in said(found, "What grows")
    undecided = explained(cell(noisy(9.5e-3, 0.06, sigma=0.3), UNDER))
    assert undecided.chains[0].position is Position.UNDETERMINED
    assert "is undetermined" in why.position_sentences(undecided)[0]


@pytest.mark.parametrize(("power", "excluded"), [(0.0, True), (0.5, False)])
def test_a_random_walk_is_excluded_only_where_every_interval_ends_below_it(power: float, excluded: bool) -> None:
    assert pytest.approx(2**0.5 - 1) == ROOT
    sentence = said(explained(cell(noisy(9.5e-3, power), UNDER)), "What grows")
    assert ("excludes" in sentence) is excluded
    assert ("is not excluded" in sentence) is not excluded


@pytest.mark.parametrize(("power", "seen"), [(0.3, 1), (0.0, 0)])
def test_chains_that_were_made_to_accumulate_stand_beside(power: float, seen: int) -> None:
    walk = cell(noisy(9.5e-3, power), UNDER, protocol="random_walk(append,noise=3)")
    found = explained(cell(FLAT, UNDER), walk)
    assert f"were called growing in {seen} of 1 cases" in said(found, "Would accumulation be seen?")
    assert len(found.chains) == 1
    other = cell(FLAT, UNDER, protocol="random_walk(restart,noise=3)")
    assert not [line for line in why.explanation(explained(cell(FLAT, UNDER), other)) if "accumulation" in line]


# ------------------------------------------------------------------------------------------ response
def response(size: float, level: float) -> xr.Dataset:
    return cell(np.full((DOCUMENTS, STEPS), level), protocol=f"full(noise={size:g})")


@pytest.mark.parametrize(
    ("answers", "verdict", "words", "explained_by"),
    [
        (
            {0.01: 0.0, 0.2: 9e-3, 1: 1e-2, 100: 5e-2, 1000: 0.5}, Responding.SATURATED,
            "one of 0.20 unit roundoffs ends 0.900 floors away, as if it had been of one",
            "not kept below a unit roundoff: in 1 response a smaller one ends where",
        ),
        (
            {0.2: 2e-3, 1: 1e-2, 10: 0.1}, Responding.SHRINKS, "a smaller disturbance ends nearer",
            "kept in 1 of 1 responses",
        ),
        ({0.01: 0.0, 1: 1e-2, 10: 1e-2}, Responding.NOT_TESTED, "none below one unit roundoff was felt", "not tested"),
        ({0.2: 1e-2, 10: 1e-2}, Responding.NOT_TESTED, "no response that could be held against", "not tested"),
    ],
)  # fmt: skip
def test_what_becomes_of_the_size_of_a_disturbance(
    answers: dict[float, float], verdict: Responding, words: str, explained_by: str
) -> None:
    found = explained(cell(FLAT, UNDER), *(response(*one) for one in answers.items()))
    (one,) = found.responses
    assert one.verdict is verdict
    (sentence,) = why.response_sentences(found)
    assert words in sentence
    assert explained_by in said(found, "The size of a disturbance")
    assert ("changes no bit" in sentence) is (0.0 in answers.values())
    if verdict is Responding.SATURATED:
        assert "from 100 unit roundoffs on it ends above the floor (5.00 floors), and one of 1,000 at 50.0" in sentence
        assert "Large ones are kept, in proportion from 100 unit roundoffs on" in said(found, "The size")
        table = why.response_table(found)
        assert list(table["in floors"]) == ["exactly 0", "0.900", "1.00", "5.00", "50.0"]
    if verdict is Responding.NOT_TESTED and 1 in answers:
        assert "none up to 10 unit roundoffs ends above the floor" in sentence


def test_a_sweep_without_responses_says_how_to_get_them() -> None:
    (sentence,) = why.response_sentences(explained(cell(FLAT, UNDER)))
    assert "not measured in this sweep" in sentence
    assert "full(noise=0.2)" in sentence
    assert why.response_table(explained(cell(FLAT, UNDER))).empty


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

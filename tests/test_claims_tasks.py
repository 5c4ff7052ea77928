"""C5 and C6 on task cells of known truth: supported, refuted, undetermined, withheld, and beyond the model."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import synthetic
from claims_tools import NOT_TESTED, REFUTED, SUPPORTED, UNDETERMINED, WITHHELD
from scipy import stats
from task_tools import task_cell

from drift.dataset.sweep import Sweep
from drift.dataset.validating import validate
from drift.errors import ConfigError, DatasetError
from drift.reading import tasks
from drift.reading.claims import CLAIMS, shares
from drift.reading.claims.auditing import audit
from drift.reading.claims.cost import PUBLISHED_BYTES, growth_of_steps, predicted, stretched
from drift.reading.claims.model import ClaimSummary, Finding, Setting, check_setting, settings
from drift.reading.report.answers import answers
from drift.reading.report.exhibits import Exhibit

STREAMING = "streaming(window=256,positions=cache)"


def held(cells: list[Any], name: str, protocol: str = "append", **margins: float) -> ClaimSummary:
    found = audit(Sweep([], tasks=cells), setting=settings(margins))
    (row,) = [s for s in found.summaries if (s.claim.name, s.protocol) == (name, protocol)]
    return row


def only(cells: list[Any], name: str, protocol: str = "append", **margins: float) -> Finding:
    (finding,) = held(cells, name, protocol, **margins).findings
    return finding


def hits(found: int, of: int) -> np.ndarray:
    return (np.arange(of) < found).astype(int)[:, None]


def lengths(full: list[int], fold: list[int], of: int = 38, **axes: Any) -> list[Any]:
    """Cells of 1K to 8K tokens, with so many exact answers of each."""
    return [
        task_cell(hits(a, of), hits(b, of), tokens=1024 * 2**k, **axes)
        for k, (a, b) in enumerate(zip(full, fold, strict=True))
    ]


# ---------------------------------------------------------------------------------------------- C5 retrieval
def test_152_of_152_support_what_was_published() -> None:
    found = only(lengths([38] * 4, [38] * 4), "C5 retrieval")
    want = stats.binomtest(152, 152).proportion_ci(0.9, "exact")
    assert found.status is SUPPORTED
    assert (found.estimate, found.interval) == (1.0, pytest.approx((want.low, want.high)))
    assert found.p_support == pytest.approx(0.95**152)
    assert "152 exact of 152 trials: 100 % (90 % interval 98 to 100 %)" in found.words
    assert "1024 to 8192 tokens" in found.scope


@pytest.mark.parametrize(("found", "status"), [(38, SUPPORTED), (36, UNDETERMINED), (30, REFUTED)])
def test_misses_decide_by_the_margin(found: int, status: Any) -> None:
    assert held(lengths([38] * 4, [found] * 4), "C5 retrieval").status is status


def test_a_few_trials_support_nothing() -> None:
    row = held([task_cell(hits(4, 4), hits(4, 4))], "C5 retrieval")
    assert row.status is UNDETERMINED
    assert held([task_cell(hits(4, 4), hits(4, 4))], "C5 retrieval", retrieval=0.6).status is SUPPORTED


def test_what_full_attention_cannot_do_is_no_finding_on_the_fold() -> None:
    for name in ("C5 retrieval", "C5 as full attention"):
        row = held([task_cell(hits(3, 8), hits(3, 8))], name)
        assert row.status is NOT_TESTED
        assert "cannot be tested on this model: full attention itself is exact in 3 of 8" in row.words
    assert held([task_cell(hits(4, 8), hits(0, 8))], "C5 as full attention").status is not NOT_TESTED
    both = [task_cell(hits(8, 8), hits(0, 8)), task_cell(hits(1, 8), hits(0, 8), model="b")]
    assert held(both, "C5 retrieval").status is REFUTED, "what can be tested is"


def test_several_keys_are_not_what_was_published_and_are_compared_all_the_same() -> None:
    cells = [task_cell(hits(30, 40), hits(30, 40), task="needle(keys=4)")]
    assert held(cells, "C5 retrieval").findings == ()
    assert only(cells, "C5 as full attention").estimate == 0


# ---------------------------------------------------------------------------------------------- C5, paired
def test_the_same_hits_are_equivalent_once_there_are_enough() -> None:
    found = only(lengths([38] * 4, [38] * 4), "C5 as full attention")
    z2 = stats.norm.isf(0.05) ** 2
    assert found.status is SUPPORTED
    assert found.interval == pytest.approx((-z2 / (152 + z2), z2 / (152 + z2)))
    assert found.detail["mcnemar"] == 1
    assert found.detail["same_text"] == 152
    assert only([task_cell(hits(12, 12), hits(12, 12))], "C5 as full attention").status is UNDETERMINED


def test_a_fold_that_loses_is_refuted_and_mcnemar_says_how_surely() -> None:
    found = only(lengths([38] * 4, [28] * 4), "C5 as full attention")
    assert found.status is REFUTED
    assert found.estimate == pytest.approx(-40 / 152)
    assert found.detail["mcnemar"] == pytest.approx(2 * 0.5**40)
    assert "exact in full attention alone 40, in the fold alone 0" in found.words


def test_questions_of_one_text_count_as_one_trial() -> None:
    full = np.ones((10, 8), dtype=int)
    fold = full.copy()
    fold[0] = 0  # eight questions are lost, all of one text
    found = only([task_cell(full, fold, task="needle(keys=8)")], "C5 as full attention")
    assert found.detail["mcnemar"] == 1, "one text leans one way"
    assert found.estimate == pytest.approx(-0.1)
    assert found.status is UNDETERMINED
    assert "alone 8, in the fold alone 0" in found.words


# ---------------------------------------------------------------------------------------------- C5 streaming
def streaming(inside: int, outside: int, of: int = 40) -> list[Any]:
    """Half of the needles within the window of 256 tokens, half far out of it."""
    fold = np.concatenate([hits(inside, of), hits(outside, of)])
    distances = [1] * of + [12] * of
    return [task_cell(np.ones_like(fold), fold, distances=distances, protocol=STREAMING)]


def test_what_left_the_window_is_lost_and_what_did_not_is_not() -> None:
    found = only(streaming(40, 0), "C5 streaming", STREAMING, retrieval=0.08)
    assert found.status is SUPPORTED
    assert found.estimate == 0
    assert found.detail["step"] == 1
    assert found.detail["step_interval"][0] > 0.9
    assert "out of the window 0 %" in found.words
    assert "of 40, within it 100 %" in found.words


@pytest.mark.parametrize(("outside", "status"), [(0, UNDETERMINED), (3, UNDETERMINED), (20, REFUTED)])
def test_a_window_that_remembers_is_refuted(outside: int, status: Any) -> None:
    assert held(streaming(40, outside), "C5 streaming", STREAMING).status is status


def test_without_a_window_or_with_all_in_it_there_is_nothing_to_test() -> None:
    assert held([task_cell(hits(4, 4), hits(4, 4))], "C5 streaming").words == "this reading has no window."
    near = [task_cell(hits(4, 4), hits(4, 4), distances=[1] * 4, protocol=STREAMING)]
    row = held(near, "C5 streaming", STREAMING)
    assert row.status is NOT_TESTED
    assert "no fact had left the window" in row.words


def test_items_say_where_their_facts_are() -> None:
    cell = task_cell(hits(4, 4), hits(4, 4), distances=[1, 3, 4, 12], protocol=STREAMING)
    # 15 chunks of 64: the text is 960 tokens, a needle 12, the question 30; the window 256.
    assert tasks.items([cell])["where"].tolist() == [tasks.HELD, tasks.HELD, tasks.EDGE, tasks.LEFT]
    assert tasks.items([task_cell(hits(1, 1), hits(1, 1))])["where"].tolist() == [tasks.HELD]
    # A window that is as by default stands in no label: the cell says it elsewhere.
    bare = task_cell(hits(4, 4), hits(4, 4), distances=[1, 3, 4, 12], protocol="streaming(positions=cache)")
    assert set(tasks.items([bare])["where"]) == {tasks.HELD}
    told = bare.assign_attrs(protocol_json='{"options":{"window":256}}')
    assert tasks.items([told])["where"].tolist() == tasks.items([cell])["where"].tolist()


# ---------------------------------------------------------------------------------------------- C5 across chunks
def across(change: np.ndarray | float, documents: int = 8, **axes: Any) -> list[Any]:
    ones = np.ones((documents, 2), dtype=int)
    return [task_cell(ones, ones, change=change, facts=3, task="tracking(hops=2)", **axes)]


def test_answers_that_stay_as_likely_support_reasoning_across_chunks() -> None:
    draw = np.random.default_rng(3)
    change = 0.03 * draw.standard_normal((8, 2))
    found = only(across(change), "C5 across chunks")
    want = stats.ttest_1samp(change.mean(1), 0).confidence_interval(0.9)
    assert found.status is SUPPORTED
    assert found.interval == pytest.approx((want.low, want.high))
    assert found.margin == (-math.log(2), math.log(2))
    assert only(across(change - 3), "C5 across chunks").status is REFUTED
    assert only(across(change - 0.69), "C5 across chunks").status is UNDETERMINED
    assert only(across(-0.5, documents=1), "C5 across chunks").status is NOT_TESTED
    assert held([task_cell(hits(4, 4), hits(4, 4))], "C5 across chunks").status is NOT_TESTED


# ---------------------------------------------------------------------------------------------- controls
@pytest.mark.parametrize("spoilt", [{"without": 1}, {"again": 0}])
def test_no_verdict_where_a_control_of_the_task_failed(spoilt: dict[str, int]) -> None:
    cells = [task_cell(hits(152, 152), hits(152, 152), **spoilt)]
    for name in ("C5 retrieval", "C5 as full attention"):
        found = only(cells, name)
        assert found.status is WITHHELD
        assert "no verdict" in found.words
        assert found.interval[0] > 0.9 or name != "C5 retrieval", "the estimate is there all the same"
        assert held(cells, name).status is WITHHELD
    (failed,) = tasks.failed_controls(cells)
    assert (failed.without, failed.unsteady) == (spoilt.get("without", 0), spoilt.get("again") == 0)
    assert not list(tasks.failed_controls([task_cell(hits(1, 1), hits(1, 1))]))


# ---------------------------------------------------------------------------------------------- C6
def test_cost_is_told_and_the_published_size_is_predicted_not_tested() -> None:
    cells = [task_cell(hits(2, 2), hits(2, 2), tokens=n, seconds=0.5) for n in (1024, 2048)]
    found = only(cells, "C6 cost")
    assert found.status is NOT_TESTED
    assert found.estimate == 1.0
    assert "predicted, not measured" in found.words
    assert "one takes 0.50 s at first" in found.words
    two = [task_cell(hits(2, 2), hits(2, 2), model=model) for model in ("a", "b")]
    assert "predicted, not measured" in held(two, "C6 cost").words
    assert held(cells, "C6 cost").status is NOT_TESTED
    cache, weights = predicted()
    assert cache == 32 * 2 * 8 * 128 * 2 * 131072
    assert (cache + weights) / PUBLISHED_BYTES == pytest.approx(1, abs=0.1)


OWN = {"layers": 24, "heads": 14, "kv_heads": 2, "head_dim": 64, "parameters": 494_000_000}
PUBLISHED = {"layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128, "parameters": 8_030_261_248}


def reckoning(ds: Any, own: dict[str, int]) -> Any:
    taken = {"memory_bytes": 2.5e9, "fold_seconds": 7.0, "shape": own}
    there = {"tokens": 131_072, "chunk_size": 64, "dtype": "bf16", "device": "cuda", "shape": PUBLISHED}
    said = {"published": {**there, "memory_bytes": 65.4e9, "fold_seconds": 40.0}, "own": taken}
    return ds.assign_attrs(reckoned_json=json.dumps(said))


def test_the_published_size_is_predicted_by_the_sweep_and_by_the_line_over_the_steps() -> None:
    cell = reckoning(task_cell(hits(2, 2), hits(2, 2)), OWN)
    cell["fold_seconds"].values[...] = 0.2 + 0.01 * np.arange(cell.sizes["step"])
    words = only([cell], "C6 cost").words
    assert "drift's sweep reckons with 65.4 GB for asking it" in words
    assert "and with 40 s for the fold on cuda" in words
    assert "at a peak of 1.0 and 2.0 GB, of the process so far; reckoned by sweep/memory: 2.5 GB" in words
    # 2048 steps of 64 tokens: the first as the weights, each further as attention.
    want = sum(0.2 * 8_030_261_248 / 494e6 + 0.01 * (32 * 32 * 128) / (24 * 14 * 64) * k for k in range(2048))
    assert stretched((0.2, 0.01), cell) == pytest.approx(want)
    assert f"it would take {want / 3600:.0f} h on cpu" in words
    assert stretched((0.2, -0.01), cell) == stretched((0.2, 0.0), cell)
    assert math.isnan(stretched((0.2, 0.01), task_cell(hits(2, 2), hits(2, 2))))
    with pytest.raises(DatasetError, match=r"published\.memory_bytes"):
        validate(cell.assign_attrs(reckoned_json='{"published": {"memory_bytes": -1}}'))


def test_the_published_size_on_a_gpu_is_measured_and_nothing_is_predicted() -> None:
    there = {"tokens": 131_040, "chunk_size": 8192, "model": "large"}
    cell = reckoning(task_cell(hits(2, 2), hits(2, 2), device="cuda", **there), PUBLISHED)
    words = only([cell], "C6 cost").words
    assert "measured at the published size: 8.0 s and 1.0 GB at most (published: 171 s, 35.6 GB)" in words
    assert "predicted" not in words
    assert "not measured" not in held([cell], "C5 retrieval").words
    for smaller in (
        reckoning(task_cell(hits(2, 2), hits(2, 2), device="cpu", **there), PUBLISHED),
        reckoning(task_cell(hits(2, 2), hits(2, 2), device="cuda", **there), OWN),
    ):
        assert "predicted, not measured" in only([smaller], "C6 cost").words


def test_rows_say_what_was_published_and_not_measured() -> None:
    words = held(lengths([38] * 4, [38] * 4), "C5 retrieval").words
    assert "Measured up to 8,192 tokens; not measured: 131,072 tokens, and a model of 8.0B parameters" in words
    assert "not measured" not in held(lengths([38] * 4, [38] * 4), "C5 as full attention").words, "nobody published it"


def test_what_texts_took_is_listed_by_length() -> None:
    cells = [reckoning(task_cell(hits(2, 2), hits(2, 2), tokens=n), OWN) for n in (1024, 2048)]
    table = tasks.costs_table([*cells, task_cell(hits(2, 2), hits(2, 2), protocol="isolated")])
    assert table["tokens"].tolist() == [1024, 2048, 1024]
    assert table["seconds, fold"].tolist() == [7.5, 15.5, 7.5]
    assert table["peak, fold, GB"].tolist() == [1.0] * 3
    assert table["peak, full attention, GB"].tolist() == [2.0] * 3
    np.testing.assert_array_equal(table["peak, reckoned by drift's sweep, GB"], [2.5, 2.5, np.nan])
    assert not len(tasks.costs_table([]))


def test_growth_of_steps_is_a_line() -> None:
    cell = task_cell(hits(2, 2), hits(2, 2))
    steps = cell.sizes["step"]
    cell["fold_seconds"].values[...] = 0.2 + 0.01 * np.arange(steps)
    cell["fold_seconds"].values[:, -1] = 0.01  # what is left is shorter
    assert growth_of_steps(cell) == pytest.approx((0.2, 0.01))
    assert all(map(math.isnan, growth_of_steps(cell.isel(step=[0, 1]))))


# ---------------------------------------------------------------------------------------------- around
def test_tasks_and_drift_stand_in_one_table() -> None:
    drift = [synthetic.cell(tokens=2048, chunk_size=16, layers=2, documents=4)]
    cells = lengths([38] * 4, [38] * 4)
    both, alone = audit(Sweep(drift, tasks=cells)), audit(Sweep(drift))
    of_tasks = [s for s in both.summaries if s.claim.asked is not None]
    assert {s.claim.key for s in of_tasks} == {"C5", "C6"}
    of_drift = [
        [(s.claim.name, s.protocol, s.status, s.words) for s in found.summaries if s.claim.asked is None]
        for found in (both, alone)
    ]
    assert of_drift[0] == of_drift[1]
    with pytest.raises(DatasetError, match="nothing to hold"):
        audit(Sweep([]))


def test_margins_are_checked() -> None:
    for wrong in ({"retrieval": 1.0}, {"likelihood": 0.0}, {"likelihood": math.inf}):
        with pytest.raises(ConfigError):
            check_setting(Setting(**wrong))
    assert {c.key for c in CLAIMS if c.asked is not None} == {"C5", "C6"}


def test_shares_are_listed_by_length() -> None:
    table = shares(lengths([38, 38], [38, 19]), ["tokens"], Setting())
    assert table["exact"].tolist() == ["38 of 38", "19 of 38"]
    assert table["share"].tolist()[1].startswith("50 % (90 % interval")
    assert not len(shares([], ["tokens"], Setting()))


def test_the_first_page_has_their_rows_whoever_asked() -> None:
    drift = [synthetic.cell(tokens=2048, chunk_size=16, layers=2, documents=4)]
    asked = Exhibit(Sweep([], tasks=lengths([38] * 4, [38] * 4)), "retrieval-x.html", "x")
    said = answers([Exhibit(Sweep(drift)), asked])
    rows = {row.name: row.fields[said.readings.index("append")] for row in said.rows}
    assert rows["C5 retrieval"].word == "supported"
    assert rows["C5 retrieval"].link == "retrieval-x.html#C5"
    assert "predicted, not measured" in rows["C6 cost"].why
    assert not any(line.startswith("C5") for line in said.not_run)
    without = answers([Exhibit(Sweep(drift))])
    assert not any(row.name.startswith("C5") for row in without.rows)
    assert [line[:2] for line in without.not_run if line[:2] in ("C5", "C6")] == ["C5", "C6"]
    few = Exhibit(Sweep([], tasks=[task_cell(hits(2, 2), hits(2, 2))]), "retrieval-few.html", "few")
    for exhibits in ([Exhibit(Sweep(drift)), few, asked], [Exhibit(Sweep(drift)), asked, few]):
        both = {row.name: row.fields[said.readings.index("append")] for row in answers(exhibits).rows}
        # Whoever asked most answers, whatever stands first, of what is never tested, too.
        for name in ("C5 retrieval", "C5 as full attention", "C6 cost"):
            assert both[name].source == "x", name
    alone = answers([asked])
    assert [row.name for row in alone.rows][:2] == ["C5 retrieval", "C5 as full attention"]
    assert alone.readings == ["append"]


def test_kl_and_failure_are_correlated_by_ranks() -> None:
    kl, change = np.geomspace(1e-6, 1, 12)[:, None], -np.geomspace(1e-3, 9, 12)[::-1][:, None]
    frame = tasks.items([task_cell(hits(12, 12), hits(6, 12), kl=kl, change=change)])
    found = tasks.predicting(frame)
    assert found.correlation == pytest.approx(stats.spearmanr(kl.ravel(), np.abs(change.ravel())).statistic)
    assert (round(found.correlation), found.count, found.lost, found.kept) == (-1, 12, 6, 6)
    assert math.isnan(tasks.predicting(frame[:2]).correlation)
    assert tasks.predicting(frame, "excess").count == 0, "no floor was asked"


def test_a_lost_answer_has_the_larger_value_as_often_as_mann_and_whitney_count() -> None:
    kl = np.random.default_rng(3).choice([0.1, 0.2, 0.3, 0.4], size=30)[:, None]  # with ties
    fold = hits(11, 30)
    full = np.ones_like(fold)
    full[-1] = 0  # what full attention does not give cannot be lost
    found = tasks.predicting(tasks.items([task_cell(full, fold, kl=kl, change=-kl)]))
    lost, kept = kl[(fold == 0) & (full == 1)], kl[(fold == 1) & (full == 1)]
    assert found.larger == pytest.approx(stats.mannwhitneyu(lost, kept).statistic / (len(lost) * len(kept)))
    assert (found.lost, found.kept) == (18, 11)


# ---------------------------------------------------------------------------------------------- floors of answers
def test_excess_is_drift_over_the_floors_of_the_same_texts() -> None:
    kl = np.array([[1e-4], [4e-2]])
    floors = [
        task_cell(hits(2, 2), hits(2, 2), kl=k, protocol=f"full(noise=1,seed={s})") for s, k in ((1, 1e-6), (2, 1e-4))
    ]
    cell = task_cell(hits(2, 2), hits(2, 2), kl=kl, chunk_size=128, protocol="isolated")
    others = [
        task_cell(hits(2, 2), hits(2, 2), kl=1.0, protocol="full(noise=1,seed=1)", task="hops"),
        task_cell(hits(2, 2), hits(2, 2), kl=1.0, protocol="full(noise=3,seed=1)"),
        task_cell(hits(2, 2), hits(2, 2), kl=1.0, protocol="full(attention=eager)"),
    ]
    frame = tasks.items([cell, *floors, *others])
    assert set(frame["protocol"]) == {"isolated"}
    # The drift of the logits of these cells is the root of KL: floors .001 and .01, of which the geometric mean counts.
    np.testing.assert_allclose(frame["excess"], np.array([1e-2, 0.2]) / 10**-2.5)
    assert tasks.items([cell, *others])["excess"].isna().all()


def test_floors_are_no_reading_of_the_fold_and_cost_nothing() -> None:
    cells = lengths([38], [38]) + lengths([38], [38], protocol="full(noise=1,seed=1)", kl=1e-6)
    found = audit(Sweep([], tasks=cells))
    assert {s.protocol for s in found.summaries if s.claim.asked is not None} == {"append"}
    assert len(tasks.costs(cells)) == len(tasks.costs(cells[:1])) == 38

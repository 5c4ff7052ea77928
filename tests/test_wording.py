"""Words for windows, margins and levels, held against what they cut and decide."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic

from drift import dataset
from drift.dataset.sweep import Sweep
from drift.reading import cells, claims, ladder, summary
from drift.reading.claims import page, terminal, testing
from drift.reading.claims.model import Setting
from drift.reading.claims.published import CLAIMS
from drift.reading.plateau.deciding import plateaus
from drift.reading.statistics import intervals, windows
from drift.reading.statistics import levels as statistics_levels
from drift.reading.summary import levels, tables
from drift.reading.wording import numbers
from drift.reading.wording import tables as written
from drift.reading.wording import windows as words
from drift.reading.wording.verdicts import STORAGE_WORDS


def test_words_are_those_of_the_constants() -> None:
    assert words.late_words() == "past the first quarter"
    assert words.judged_words() == "the last three quarters of the chain"
    assert words.last_words(128) == "the last half"
    assert words.late_step_words() == "the last fifth of the judging window"


@pytest.mark.parametrize(
    ("share", "late", "judged"),
    [
        (1 / 2, "half", "half"),
        (1 / 3, "third", "two thirds"),
        (0.15, "15 %", "85 %"),
        (2 / 5, "two fifths", "three fifths"),
    ],
)
def test_another_constant_makes_other_words(
    monkeypatch: pytest.MonkeyPatch, share: float, late: str, judged: str
) -> None:
    monkeypatch.setattr(windows, "WINDOWS", (1 / 16, share))
    assert words.late_words() == f"past the first {late}"
    assert words.judged_words() == f"the last {judged} of the chain"
    steps = np.arange(600)
    assert len(windows.late_part(steps)) == pytest.approx(600 * (1 - share), abs=1)  # what the words are about


def test_the_last_part_of_a_short_chain_is_counted() -> None:
    for steps in range(windows.least_steps(), 64):
        kept = steps - windows.last_start(steps)
        said = words.last_words(steps)
        assert said == ("the last half" if kept == steps // 2 else f"the last {kept} steps")
    assert words.last_words(12) == "the last 8 steps"


def test_the_rule_holds_for_every_length() -> None:
    assert words.late_rule() == (
        "past the first quarter of the chain (at least 3 steps are left out, and never more than half of them)"
    )
    for steps in range(1, 200):
        left = windows.late_start(steps)
        assert left == min(max(-(-steps // 4), 3), steps // 2)


# ------------------------------------------------------------------------------------------ numbers of a setting
def text_of(setting: Setting) -> str:
    return " ".join([*(c.margin_text(setting) for c in CLAIMS), *(c.changes_text(setting) for c in CLAIMS)])


@pytest.mark.parametrize(
    ("name", "value", "said", "default"),
    [
        ("growth", 0.1, ["within 10 %", "at most a factor 2.36"], ["within 5 %: over the", "at most a factor 1.55"]),
        ("precision", 0.02, ["within 2 %, 0.71 times"], ["within 10 %, 3.6 times the published effect"]),
        ("chunk", 0.2, ["within 20 %: at most 110 %"], ["within 5 %: at most 22 %"]),
        ("family", 8.0, ["within a factor 8,", ": three bits, where"], ["within a factor 2,", ": one bit, where"]),
        ("proportional", 0.1, ["within 0.1 of 1"], ["within 0.2 of 1"]),
        ("rise", 3.0, ["at least 3 times"], ["at least 1.5 times"]),
        ("retrieval", 0.1, ["10 points"], ["5 points"]),
        ("likelihood", 2.5, ["2.5 nats"], ["0.69 nats"]),
        ("alpha", 0.001, ["fewer than eleven families"], ["fewer than six families"]),
    ],
)
def test_texts_of_claims_have_the_numbers_of_the_setting(
    name: str, value: float, said: list[str], default: list[str]
) -> None:
    usual, other = text_of(Setting()), text_of(replace(Setting(), **{name: value}))
    assert set(vars(Setting())) == {
        "growth", "precision", "chunk", "family", "proportional", "rise", "alpha", "retrieval", "likelihood",
    }  # fmt: skip
    for text in default:
        assert text in usual
        assert text not in other
    for text in said:
        assert text in other
    assert "{" not in usual + other


def test_what_follows_from_a_margin_is_right() -> None:
    # 511 transitions are 8.997 doublings, 64 to 1024 are four.
    assert f"{1.1 ** math.log2(511):.3g}" == "2.36"
    assert round(100 * (1.2**4 - 1), -1) == 110
    assert math.log2(512 / 1) == 9
    assert f"{100 * (math.log(511) / math.log(511 / 2) - 1):.0f} %" in text_of(Setting())


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return Sweep(
        synthetic.cells(["a", "b"], ["bf16", "fp32"], ["append"], [16, 32], layers=2, tokens=1024, documents=4)
    )


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.125])
def test_no_coverage_is_said_that_alpha_does_not_decide(sweep: Sweep, alpha: float) -> None:
    found = claims.audit(sweep, others=(), setting=Setting(alpha=alpha))
    table = claims.evidence(found)
    texts = [*table["finding"], *table.columns, terminal.terminal(found, True), claims.meaning(found)]
    covers = {said for text in texts for said in re.findall(r"([\d.]+ %) interval", text)}
    certified = f"{100 * (1 - 2 * alpha / 3):.3g} %"
    assert covers - {certified} == {f"{100 * (1 - 2 * alpha):g} %"}
    assert all(f"level {alpha:g}" in text for text in texts[-2:])
    low, high = found.findings[0].interval
    (ds, *_), (again, *_) = (
        cells.deepest(sweep),
        plateaus([dataset.curve(cells.deepest(sweep)[0], "hidden_rel_l2")], alpha=alpha),
    )
    assert (low, high) == again.growth_interval
    assert ds.drift.plateau(alpha=alpha).growth_words in str(again)


def test_the_coverage_of_tables_is_that_of_their_intervals(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    before = summary.table(sweep)
    for module in (intervals, levels, tables):
        monkeypatch.setattr(module, "ALPHA", 0.01)
    after = summary.table(sweep)
    assert (after["growth_high"] - after["growth_low"] > before["growth_high"] - before["growth_low"]).all()
    assert "98 % interval" in summary.shown(after).columns
    assert "(98 % interval" in summary.curve_sentences(sweep)[1]
    assert "slope's 98 % interval" in summary.thresholds()
    assert "90 %" not in " ".join(
        [summary.thresholds(), *summary.shown(after).columns, *summary.curve_sentences(sweep)]
    )


def test_windows_are_named_by_what_cuts_them(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOWS", (1 / 16, 1 / 2))
    texts = [*summary.curve_sentences(sweep), summary.thresholds(), ladder.method()]
    assert "quarter" not in " ".join(texts)
    assert all("past the first half" in text for text in texts[1::2])
    half = statistics_levels.level(dataset.curve(sweep.cells[0], "hidden_rel_l2"))
    assert half == pytest.approx(np.exp(np.log(dataset.curve(sweep.cells[0], "hidden_rel_l2")[:, 32:]).mean(axis=1)))


def test_the_late_share_of_the_limits_is_that_of_the_veto(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    found = claims.audit(sweep, others=())
    assert "begins in the last 15 % of a chain" in claims.limits(found)[2]
    monkeypatch.setattr(page, "LATE_STEP", 0.4)
    assert "begins in the last 30 % of a chain" in claims.limits(found)[2]
    assert f"fewer than {numbers.count(windows.DOCUMENTS)} documents" in testing.TOO_FEW_STEPS


@pytest.mark.parametrize(("value", "said"), [(4, "four"), (8.997, "nine"), (1.585, "1.58"), (16, "16"), (-1, "-1")])
def test_counts(value: float, said: str) -> None:
    assert numbers.count(value) == said


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1.5, "1.5"),
        (9999.0, "9,999"),
        (8.78e14, "more than 10,000"),
        (math.inf, "infinite"),
        (math.nan, "not measured"),
    ],
)
def test_a_rise_from_next_to_nothing_is_no_number(factor: float, said: str) -> None:
    assert numbers.rise_words(factor) == said


def test_words_of_a_page_are_explained_with_what_the_sweep_holds(sweep: Sweep) -> None:
    text = summary.words(sweep, "reading", "slope")
    assert "<i>reading</i>" in text
    assert "0.0039 in bf16, 6e-08 in fp32" in text
    assert "probe" not in text
    assert STORAGE_WORDS not in text
    others = Sweep([synthetic.cell(protocol=p, layers=2, tokens=64) for p in ("isolated(probe=1)", "quantized")])
    text = summary.words(others, "level")
    assert "<i>probe=1</i> measures each chunk as a question" in text
    assert STORAGE_WORDS in text


def test_long_tables_are_folded_and_narrow_ones_name_every_field() -> None:
    table = pd.DataFrame({"a": range(written.LONG + 1), "b < c": "x"})
    assert written.html(table.iloc[:-1]).startswith('<div class="scroll"><table')
    folded = written.html(table, name="levels")
    assert folded.startswith(f"<details><summary>levels, {written.LONG + 1} rows</summary>")
    narrow = written.html(table.iloc[:1], narrow=True)
    assert narrow.count('<td data-label="b &lt; c">x</td>') == 1

"""Why drift is flat, or is not: where it meets its floor, whose growth it is, what becomes of a disturbance."""

from __future__ import annotations

import re

import numpy as np
import pytest
from rounding import linear
from why_tools import FLAT, LATE, UNDER, cell, explained, local, noisy, one_step, response, said

from drift.reading import why
from drift.reading.floor import FACTOR
from drift.reading.why import Meeting, Position, Quantity, Responding
from drift.reading.why.wording import ROOT


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

"""Lanes of a probe, made from nothing with differences of known size, judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drift.dataset.probes import Answer, AskedLane, Kind, Probe, View
from drift.reading.logits.model import Verdict
from drift.reading.probing import Found, judge
from drift.reading.probing.model import KERNELS, Why

PROMPTS, TOKENS, RIVAL = 12, 32, 99


def lane(
    name: str,
    kind: Kind,
    size: float,
    seed: int = 0,
    *,
    anew: bool = True,
    cached: int | None = 0,
    only: slice = slice(None),
) -> AskedLane:
    """Answers whose log-probabilities are the true ones, moved by so much at some prompts."""
    true = np.random.default_rng(7).gamma(1.0, 1.0, (PROMPTS, TOKENS))
    # Positions are more or less sensitive, and texts too, as those of models are.
    share = np.exp(np.random.default_rng(8).normal(size=(PROMPTS, TOKENS)))
    moved = np.zeros_like(true)
    moved[only] = (size * share * np.random.default_rng(seed).normal(size=true.shape))[only]
    values = -20 - true - moved  # far below 0, whatever is added
    answers = tuple(
        Answer(
            tuple(range(TOKENS)), tuple(map(float, row)), tuple(range(TOKENS)),
            tuple({n: float(v), RIVAL: float(v) - 0.5} for n, v in enumerate(row)), None, 100, cached,
        )
        for row in values
    )  # fmt: skip
    return AskedLane(name, kind, View.GENERATED, answers, anew)


def judged(*lanes: AskedLane) -> Found:
    return judge(Probe("http://x", "fake", "m", "n", (lane("cold", Kind.COLD, 0.0), *lanes)))


def verdicts(found: Found) -> dict[str, Verdict]:
    return {pair.lane: pair.verdict for pair in found.pairs}


def warm(size: float, seed: int = 1) -> AskedLane:
    return lane("warm", Kind.CACHE, size, seed, anew=False, cached=99)


def batch(size: float, seed: int = 2, name: str = "batch") -> AskedLane:
    return lane(name, Kind.BATCH, size, seed)


def repeat(size: float, seed: int = 3, name: str = "repeat") -> AskedLane:
    return lane(name, Kind.REPEAT, size, seed)


def test_clean_lanes_are_never_accused_and_mostly_within() -> None:
    within = 0
    for draw in range(8):
        s = 10 * draw
        found = judged(
            warm(1e-3, s + 1),
            lane("shared", Kind.CACHE, 5e-4, s + 2, anew=False, cached=50),
            batch(2e-3, s + 3, "batch 12"),
            batch(2e-3, s + 4, "batch 6"),
            repeat(0.0),
        )
        assert not found.having(Verdict.BEYOND)
        within += found.verdict is Verdict.WITHIN
    assert within >= 6


@pytest.mark.parametrize("times", [4.0, 100.0])
def test_a_cache_that_moves_more_than_batches_do_is_beyond(times: float) -> None:
    found = judged(warm(times * 1e-3), batch(1e-3), repeat(0.0))
    assert verdicts(found) == {"warm": Verdict.BEYOND, "batch": Verdict.UNDETERMINED, "repeat": Verdict.SAME}
    assert found.exit_code == 1


def test_lanes_of_one_cache_do_not_excuse_each_other() -> None:
    other = lane("shared", Kind.CACHE, 0.1, 5, anew=False, cached=50)
    found = judged(warm(0.1), other, batch(1e-3), repeat(1e-3))
    assert verdicts(found)["warm"] is verdicts(found)["shared"] is Verdict.BEYOND
    assert verdicts(found)["batch"] is Verdict.WITHIN


def test_a_bug_of_batches_is_beyond_and_no_floor_for_the_cache() -> None:
    found = judged(warm(1e-3), batch(0.2, 2, "12"), batch(0.2, 3, "6"), repeat(1e-3, 4), repeat(1e-3, 5, "2nd"))
    assert verdicts(found) == {
        "warm": Verdict.WITHIN, "12": Verdict.BEYOND, "6": Verdict.BEYOND, "repeat": Verdict.WITHIN,
        "2nd": Verdict.WITHIN,
    }  # fmt: skip
    assert next(pair for pair in found.pairs if pair.lane == "warm").floor in ("repeat", "2nd", "repeat and 2nd")


def test_a_batch_may_be_some_times_as_far_as_a_cache() -> None:
    """It runs other kernels: between one and ten times nothing is said, unless batches of two sizes agree."""
    assert verdicts(judged(warm(1e-3), batch(4e-3)))["batch"] is Verdict.UNDETERMINED
    assert verdicts(judged(warm(1e-3), batch(4e-3, 2, "a"), batch(4e-3, 3, "b")))["a"] is Verdict.WITHIN
    assert verdicts(judged(warm(1e-3), batch(3 * KERNELS * 1e-3)))["batch"] is Verdict.BEYOND


def test_prompts_that_a_batch_did_not_change_do_not_lower_its_floor() -> None:
    """Of a server that takes most prompts one by one although they came together."""
    some = lane("batch", Kind.BATCH, 1e-3, 2, only=slice(0, 5))
    found = judged(warm(1e-3), some, repeat(0.0))
    assert verdicts(found)["warm"] is not Verdict.BEYOND
    assert verdicts(judged(warm(0.05), some, repeat(0.0)))["warm"] is Verdict.BEYOND


def test_one_wrong_prompt_of_twelve_is_seen() -> None:
    wrong = replace(warm(1e-3), answers=(lane("x", Kind.CACHE, 1.0, 9).answers[0], *warm(1e-3).answers[1:]))
    found = judged(wrong, batch(1e-3), repeat(0.0))
    assert verdicts(found)["warm"] is Verdict.BEYOND


def parted(of: AskedLane) -> AskedLane:
    """The first text goes on with the rival from token 10 on."""
    first = of.answers[0]
    tokens = (*first.tokens[:10], RIVAL, *range(200, 200 + TOKENS - 11))
    return replace(of, answers=(replace(first, tokens=tokens, names=tokens), *of.answers[1:]))


def with_margin(of: AskedLane, margin: float) -> AskedLane:
    """In the first text every token is preferred to the rival by so much."""
    tops = tuple({n: top[n], RIVAL: top[n] - margin} for n, top in enumerate(of.answers[0].tops))
    return replace(of, answers=(replace(of.answers[0], tops=tops), *of.answers[1:]))


@pytest.mark.parametrize(
    ("margin", "verdict", "why"),
    [(1e-3, Verdict.WITHIN, Why.FLOOR), (0.1, Verdict.UNDETERMINED, Why.PARTED), (3.0, Verdict.BEYOND, Why.PARTED)],
)
def test_texts_may_part_at_a_near_tie_only(margin: float, verdict: Verdict, why: Why) -> None:
    lanes = (lane("cold", Kind.COLD, 0.0), parted(warm(1e-3)), batch(1e-3), repeat(1e-3, 5))
    found = judge(Probe("", "", "", "", tuple(with_margin(one, margin) for one in lanes)))
    pair = found.pairs[0]
    assert (pair.verdict, pair.why) == (verdict, why)
    assert pair.partings[0].position == 10 and pair.partings[0].margin == pytest.approx(margin)
    assert 2 * pair.moved < 0.1 < 10 * pair.moved  # by how much the floors move the most sensitive of all tokens


def test_texts_of_a_server_without_numbers_may_part_at_once() -> None:
    def worded(of: AskedLane, *parting: int) -> AskedLane:
        answers = [replace(one, tokens=tuple(f"w{t}" for t in one.tokens)) for one in of.answers]
        for at in parting:
            answers[at] = replace(answers[at], tokens=("x", *answers[at].tokens[1:]))
        return replace(of, answers=tuple(answers))

    lanes = worded(lane("cold", Kind.COLD, 0.0)), worded(warm(1e-3), 0), worded(batch(1e-3), 1), worded(repeat(0.0))
    found = judge(Probe("", "", "", "", lanes))
    assert [len(pair.partings) for pair in found.pairs] == [1, 1, 0]
    assert found.pairs[0].positions == (PROMPTS - 1) * TOKENS


def test_what_may_come_from_the_cache_is_a_lane_of_the_cache() -> None:
    unsure = lane("repeat", Kind.REPEAT, 0.1, 3, anew=False, cached=None)
    found = judged(lane("warm", Kind.CACHE, 0.1, 1, anew=False, cached=None), unsure)
    assert [pair.kind for pair in found.pairs] == [Kind.CACHE, Kind.CACHE]
    assert {pair.why for pair in found.pairs} == {Why.NO_FLOOR}
    # What the server tells counts before what it was told to do.
    told = lane("repeat", Kind.REPEAT, 0.1, 3, anew=True, cached=99)
    assert judged(told).pairs[0].kind is Kind.CACHE
    assert judged(warm(1e-3), lane("repeat", Kind.REPEAT, 1e-3, 3, anew=False)).pairs[0].verdict is Verdict.WITHIN


def test_nothing_is_said_of_a_cache_that_was_not_used_or_of_a_cold_lane_that_was_not() -> None:
    unused = lane("warm", Kind.CACHE, 0.0, 1, anew=False, cached=0)
    assert judged(unused).pairs[0].why is Why.NOT_CACHED
    warm_cold = lane("cold", Kind.COLD, 0.0, cached=99)
    found = judge(Probe("", "", "", "", (warm_cold, batch(0.0))))
    assert (found.pairs[0].why, found.exit_code) == (Why.NOT_COLD, 3)


def test_nan_in_one_lane_is_beyond() -> None:
    broken = warm(1e-3)
    first = broken.answers[0]
    values = (*first.logprobs[:5], float("nan"), *first.logprobs[6:])
    found = judged(replace(broken, answers=(replace(first, logprobs=values), *broken.answers[1:])), batch(1e-3))
    assert (found.pairs[0].verdict, found.pairs[0].why) == (Verdict.BEYOND, Why.NONFINITE)


def test_the_model_decides_where_no_lane_does() -> None:
    """A deterministic server: repeats and batches are the same bits, and a warm cache differs."""
    model = lane("model in fp32", Kind.MODEL, 0.01, 5)
    still = (batch(0.0), repeat(0.0))
    assert verdicts(judged(warm(1e-3), *still))["warm"] is Verdict.UNDETERMINED
    found = judged(warm(1e-3), *still, model)
    assert (found.pairs[0].verdict, found.pairs[0].why) == (Verdict.WITHIN, Why.MODEL)
    assert verdicts(judged(warm(0.1), *still, model))["warm"] is Verdict.BEYOND


def test_texts_that_are_wholly_others_are_beyond_where_a_model_tells_how_far_rounding_moves() -> None:
    model = lane("model in fp32", Kind.MODEL, 1e-3, 5)
    tokens = (RIVAL, *range(200, 200 + TOKENS - 1))
    broken = warm(0.0)
    broken = replace(broken, answers=tuple(replace(one, tokens=tokens, names=tokens) for one in broken.answers))
    assert verdicts(judged(broken, repeat(0.0)))["warm"] is Verdict.UNDETERMINED
    pair = judged(broken, repeat(0.0), model).pairs[0]
    assert (pair.verdict, pair.why, pair.comparison) == (Verdict.BEYOND, Why.PARTED, None)


def test_the_server_is_held_against_the_model_by_another_precision_of_it() -> None:
    rounded = lane("model in bf16", Kind.MODEL, 0.01, 6)
    near, far = (lane("model in fp32", Kind.MODEL, size, 5) for size in (0.01, 0.3))
    assert judged(repeat(0.0), near, rounded).pairs[-1].verdict is Verdict.WITHIN
    alone = judged(repeat(0.0), near).pairs[-1]
    assert (alone.kind, alone.verdict, alone.why) == (Kind.MODEL, Verdict.UNDETERMINED, Why.NO_FLOOR)
    # A precision of the model that is near to it, and a server that is far from both.
    values = [tuple(v + 1e-4 * n for n, v in enumerate(one.logprobs)) for one in far.answers]  # type: ignore[operator]
    close = replace(
        far, name="b", answers=tuple(replace(a, logprobs=v) for a, v in zip(far.answers, values, strict=True))
    )
    assert judged(repeat(0.0), far, close).pairs[-1].verdict is Verdict.BEYOND

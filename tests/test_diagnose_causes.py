"""What names a cause: rotations of part of a head, what counts as beyond an envelope, caches of either lane."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diagnose_numbers import (
    CHUNK,
    TOKENS,
    Whole,
    changed,
    compared,
    cut,
    diagnosed,
    drawn,
    envelope_of,
    frequencies,
    numbers_of,
    sentences,
    turned,
    with_caches,
)
from diagnose_tools import rounded, save

from drift.reading.diagnose import causes
from drift.reading.diagnose.model import Cause, Verdict
from drift.reading.diagnose.naming import named, rotated
from drift.reading.diagnose.showing import as_dict, page
from drift.reading.diagnose.tensors import Place, open_dump

START = 2 * CHUNK
"""The first token at which a bug is planted."""
KEY = "block.1.key"


def with_turned_keys(whole: Whole, angles: torch.Tensor, **options: Any) -> Whole:
    """The same lane with the keys of block 1 rotated from step 2 on."""
    return changed(whole, KEY, slice(START, None), turned(whole[KEY][:, START:], angles, **options))


def positions() -> torch.Tensor:
    """Positions of the tokens from step 2 on, as a column."""
    return torch.arange(START, TOKENS, dtype=torch.float64)[:, None]


# ------------------------------------------------------------------------------------------------ rotations
@pytest.mark.parametrize("layout", ["half-split", "interleaved"])
@pytest.mark.parametrize("width", [16, 8, 4])
def test_a_shift_is_found_where_only_part_of_a_head_is_rotated(tmp_path: Path, layout: str, width: int) -> None:
    a = drawn()
    found = diagnosed(
        tmp_path, cut(a, TOKENS), cut(with_turned_keys(a, frequencies(width), layout=layout, width=width))
    )
    assert found.cause is Cause.POSITION_OFFSET
    numbers = numbers_of(found)
    assert (numbers["offset"], found.entry and found.entry.start) == (1, START)
    assert numbers["angle_fastest_pair"] == pytest.approx(1, abs=1e-6)
    if layout == "half-split" or width == 16:  # pairs of neighbours are the same pairs in part of a head
        assert numbers["misfit_radians"] < 1e-6
        assert f"{layout} pairs of {width} features" in sentences(found)[1]


def test_one_angle_that_no_number_of_positions_gives(tmp_path: Path) -> None:
    a = drawn()
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(with_turned_keys(a, torch.full((8,), 0.5))))
    assert (found.verdict, found.cause) == (Verdict.STRUCTURAL, Cause.ROTATION)
    assert found.cause_text == (
        "B's keys are A's, rotated by the same angles for all tokens (fastest pair +0.500 radians), which fits no "
        "whole number of positions"
    )
    assert "offset" not in numbers_of(found)


def test_angles_that_change_from_token_to_token(tmp_path: Path) -> None:
    a = drawn()
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(with_turned_keys(a, positions() * frequencies())))
    assert (found.verdict, found.cause) == (Verdict.STRUCTURAL, Cause.ROTATION)
    assert found.cause_text == (
        "B's keys are A's, rotated by angles that change from token to token: positions run differently, or the "
        "rotary frequencies differ"
    )


def test_a_shift_is_named_where_the_values_of_that_step_were_not_dumped(tmp_path: Path) -> None:
    a = drawn()
    b = cut(with_turned_keys(a, frequencies()))
    del b["step.2.block.1.value"]
    found = diagnosed(tmp_path, cut(a, TOKENS), b)
    assert found.cause is Cause.POSITION_OFFSET
    assert sentences(found)[0] == "The values of block 1 were not dumped."


def test_the_numbers_of_a_shift_are_those_of_its_sentences(tmp_path: Path) -> None:
    a = drawn()
    b = with_turned_keys(a, frequencies())
    b = changed(b, "block.1.value", slice(None), torch.nextafter(b["block.1.value"], torch.tensor(torch.inf)))
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(b))
    n = numbers_of(found)
    assert 0 < n["value_rel_l2"] < 1e-7
    assert sentences(found) == [
        f"Block 1 of step 2: the values agree to rounding (relative {n['value_rel_l2']:.2g}).",
        f"The keys do not (relative {n['key_rel_l2']:.2g}; {n['moved']:.2g} in the pairs of features that moved), but "
        f"the magnitudes of those pairs do (relative {n['magnitude']:.2g}; half-split pairs of 16 features): the keys "
        "were rotated.",
        f"One offset of +1 explains the angles of the pairs to {n['misfit_radians']:.2g} radians (the fastest pair "
        f"turned by {n['angle_fastest_pair']:+.4f}).",
    ]


@pytest.mark.parametrize(("share", "is_one"), [(0.53, True), (0.47, False)])
def test_how_far_a_token_moved_is_a_matter_of_the_norm_in_a(tmp_path: Path, share: float, is_one: bool) -> None:
    """Four tokens of 16 must be beyond the bound; the fourth is longer in B than in A."""
    a = torch.tensor([1.0, 0.0]).repeat(1, 16, 1)
    b = a.clone()
    b[0, :3] = torch.tensor([0.0, 1.0])
    length = 1.1
    angle = np.arccos((1 + length**2 - share**2) / (2 * length))
    b[0, 3] = length * torch.tensor([np.cos(angle), np.sin(angle)])
    found = compared(tmp_path, cut({KEY: a}, 16), cut({KEY: b}, 16))
    assert (causes.rotation(found, Place("key", 1), 0, 16, bound=0.5) is not None) is is_one


# ------------------------------------------------------------------------------------------------ what is beyond
def lanes(kind: str) -> tuple[Whole, Whole]:
    """A lane and another with a bug of some kind."""
    a = drawn()
    if kind == "offset":
        return a, with_turned_keys(a, frequencies())
    if kind == "frequencies":
        return a, with_turned_keys(a, positions() * frequencies())
    if kind == "values":
        return a, changed(a, "block.2.value", slice(START, None), 1.5 * a["block.2.value"][:, START:])
    dead = a["layer.1.hidden"].clone()
    dead[:, 3] = 0  # a feature of no size is measured by the others
    alive = dead.clone()
    alive[:, 3] = 1e-6
    return a | {"layer.1.hidden": dead}, a | {"layer.1.hidden": alive}


SCALED = {
    "offset": ("structural", "position_offset"),
    "frequencies": ("structural", "rotation"),
    "values": ("structural", "other"),
    "dead feature": ("undetermined", "none"),
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("power", [-40, 40])
def test_the_size_of_the_numbers_changes_nothing(tmp_path: Path, kind: str, power: int) -> None:
    """Powers of two scale floating-point numbers without rounding: a diagnosis is the same, to the last digit."""
    plain = as_dict(diagnosed(tmp_path / "plain", *(cut(x) for x in lanes(kind))))
    scaled = [{name: tensor * 2.0**power for name, tensor in lane.items()} for lane in lanes(kind)]
    assert as_dict(diagnosed(tmp_path / "scaled", *(cut(x) for x in scaled))) == plain
    assert (plain["verdict"], plain["cause"]) == SCALED[kind]


@pytest.mark.parametrize(("size", "stop"), [(0.5, 8), (0.5078125, 16)])
def test_a_difference_that_equals_its_envelope_is_within_it(tmp_path: Path, size: float, stop: int) -> None:
    """A rotation goes on for as long as a pair of features is beyond the envelope."""
    a = torch.tensor([1.0, 0.0]).repeat(1, 16, 1)
    b = a.clone()
    b[0, :8] = torch.tensor([0.0, 1.0])
    b[0, 8:] = torch.tensor([1.0, size])
    found = compared(tmp_path, cut({KEY: a}, 16), cut({KEY: b}, 8))
    finding = rotated(found, envelope_of(found, Place("key", 1), 0.5), 0)
    assert finding is not None
    assert finding.tokens == (0, stop)


@pytest.mark.parametrize(("ratio", "cause"), [(1.0, Cause.STALE_CACHE), (np.nextafter(1.0, 2.0), Cause.OTHER)])
def test_a_cache_is_stale_where_all_else_is_within_its_envelope(tmp_path: Path, ratio: float, cause: Cause) -> None:
    a = drawn()
    where = slice(START, START + CHUNK)
    found = compared(tmp_path, cut(a, TOKENS), cut(changed(a, KEY, where, drawn(seed=1)[KEY][:, where])))
    envelope = envelope_of(found, Place("key", 1), 1e-3)
    ratios = np.full(TOKENS, ratio)
    ratios[where] = 1e3
    finding = named(found, dataclasses.replace(envelope, ratio=ratios), 2, (START, START + CHUNK))
    assert finding.cause is cause


def test_a_stale_second_chunk_of_two(tmp_path: Path) -> None:
    """There is one other chunk, right before it, which shows that the lanes agree otherwise."""
    a, old = drawn(tokens=16), drawn(tokens=16, seed=1)
    found = diagnosed(tmp_path, cut(a), cut(changed(a, KEY, slice(8, 16), old[KEY][:, 8:])))
    assert found.cause is Cause.STALE_CACHE
    assert found.cause_text == (
        "stale cache: the keys alone of tokens 8 to 15 are unrelated to this text, although the states they are "
        "computed from agree"
    )


# ------------------------------------------------------------------------------------------------ caches
def spoilt(lane: dict[str, torch.Tensor], step: int, name: str) -> None:
    """Have a cache hold the rows of tokens 16 to 23 where those of 8 to 15 belong."""
    cache = lane[f"step.{step}.{name}"].clone()
    cache[..., 8:16, :] = cache[..., 16:24, :].clone()
    lane[f"step.{step}.{name}"] = cache


@pytest.mark.parametrize("lane", ["A", "B"])
def test_a_cache_of_either_lane_is_held_against_what_that_lane_appended(tmp_path: Path, lane: str) -> None:
    plain = cut(drawn())
    wrong = with_caches(plain)
    spoilt(wrong, 3, "block.2.cache_key")
    found = diagnosed(tmp_path, *((wrong, plain) if lane == "A" else (plain, wrong)))
    assert (found.verdict, found.cause) == (Verdict.STRUCTURAL, Cause.STALE_CACHE)
    assert found.entry is not None
    assert found.entry.place == Place("cache_key", 2)
    # The other lane's step is the one that those tokens belong to.
    assert (found.entry.step_a, found.entry.step_b) == ((3, 1) if lane == "A" else (1, 3))
    assert (found.entry.start, found.entry.stop) == (8, 16)
    assert found.cause_text == (
        f"stale cache: {lane}'s cached keys of block 2 after step 3 do not hold what was appended at step 1 (tokens 8 "
        "to 15); it holds those of step 2"
    )
    numbers = numbers_of(found)
    assert numbers["shift_tokens"] == 8
    assert sentences(found) == [
        f"{lane}'s cached keys of block 2 after step 3 differ from what {lane} itself appended for tokens 8 to 15 by "
        f"{numbers['relative']:.2g} of their norm. A cache only keeps: these must be the same bits.",
        "It holds there what was appended for tokens 16 to 23 (step 2).",
    ]


def test_of_several_wrong_caches_the_earliest_is_named(tmp_path: Path) -> None:
    plain = cut(drawn())
    wrong = with_caches(plain)
    for step, name in ((4, "block.1.cache_key"), (2, "block.3.cache_value"), (3, "block.2.cache_key")):
        spoilt(wrong, step, name)
    found = diagnosed(tmp_path, plain, wrong)
    assert found.entry is not None
    assert (found.entry.place, found.entry.step_b) == (Place("cache_value", 3), 2)


def test_a_cache_that_holds_more_than_was_appended(tmp_path: Path) -> None:
    plain = cut(drawn())
    wrong = with_caches(plain)
    name = "step.1.block.2.cache_value"
    wrong[name] = torch.cat([wrong[name], wrong[name][..., :4, :]], dim=-2)
    found = diagnosed(tmp_path, plain, wrong)
    text = (
        "B's cached values of block 2 after step 1 hold 20 tokens, but only 16 were appended: something was left in "
        "the cache from before"
    )
    assert (found.cause, found.cause_text) == (Cause.STALE_CACHE, text)
    assert sentences(found) == [f"{text}."]
    assert numbers_of(found) == {"cached": 20}
    assert f"  1. {text}"[:80] in page(found)


def test_rows_are_searched_in_single_precision(tmp_path: Path) -> None:
    """A pattern needs no more digits than that, and a dump of fp64 half the memory."""
    dump = open_dump(save(cut(drawn(dtype=torch.float64)), tmp_path))
    assert causes.rows_of(dump, Place("key", 1), 0, CHUNK).dtype == np.float32


# ------------------------------------------------------------------------------------------------ orders of features
def as_in_gguf(whole: Whole) -> Whole:
    """Keys in the order of llama.cpp's converter: of each head, [2, half] is read as [half, 2]."""
    heads = {n: x.reshape(*x.shape[:-1], 2, -1) for n, x in whole.items() if n.endswith("key")}
    return whole | {n: x.swapaxes(-1, -2).reshape(whole[n].shape) for n, x in heads.items()}


@pytest.mark.parametrize("lane", ["A", "B"])
def test_rotary_pairs_of_gguf_are_put_in_order(tmp_path: Path, lane: str) -> None:
    a = drawn()
    lanes = (as_in_gguf(a), a) if lane == "A" else (a, as_in_gguf(a))
    found = diagnosed(tmp_path, cut(lanes[0], TOKENS), rounded(cut(lanes[1])))
    assert found.verdict is Verdict.ROUNDING
    assert found.notes[0].startswith(f"{lane}'s keys have their rotary pairs side by side (features 0, 8, 1, 9, ...")
    assert "GGUF" in page(found)
    found = diagnosed(tmp_path / "same", *(with_caches(cut(x)) for x in lanes))
    assert found.verdict is Verdict.SAME
    assert "GGUF" in found.notes[0]


def test_a_shift_is_named_in_the_order_of_gguf_as_well(tmp_path: Path) -> None:
    a = drawn()
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(as_in_gguf(with_turned_keys(a, frequencies()))))
    assert found.cause is Cause.POSITION_OFFSET
    assert numbers_of(found)["offset"] == 1
    whole = diagnosed(tmp_path / "whole", cut(a), cut(as_in_gguf(changed(a, KEY, slice(None), -a[KEY]))))
    assert "GGUF" in whole.notes[0]


def test_other_keys_are_not_taken_for_another_order(tmp_path: Path) -> None:
    for seed in range(1, 8):
        a, other = drawn(), drawn(seed=seed)
        for b in (a, changed(a, KEY, slice(None), other[KEY]), changed(a, KEY, slice(None), a[KEY].flip(-1))):
            assert compared(tmp_path / str(seed), cut(a), cut(b)).reordered is None


@pytest.mark.parametrize(("angle", "is_one"), [(3e-6, False), (3e-4, True)])
def test_a_rotation_is_beyond_the_rounding_of_a_rotary_table(tmp_path: Path, angle: float, is_one: bool) -> None:
    """The same angles for all tokens, but no larger than what position x frequency rounds by in fp32."""
    a = {name: x.double() for name, x in drawn().items()}
    b = with_turned_keys(a, torch.full((8,), angle, dtype=torch.float64))
    found = compared(tmp_path, cut(a, TOKENS), cut(b))
    assert (causes.rotation(found, Place("key", 1), START, TOKENS, bound=1e-6) is not None) is is_one
    assert (diagnosed(tmp_path / "whole", cut(a, TOKENS), cut(b)).cause is Cause.ROTATION) is is_one

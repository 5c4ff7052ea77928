"""What decides beside the drift itself: floors, other precisions; and what parts of dumps still tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diagnose_tools
import numpy as np
import pytest
import torch
from diagnose_tools import CHUNK, TOKENS, Tensors, lane, pair, random_model, rounded, save, unaccused
from rounding import U16, U32

from drift.reading.diagnose.envelope import ALLOWANCE, ROUNDINGS
from drift.reading.diagnose.model import Cause, Diagnosis, Verdict
from drift.reading.diagnose.showing import as_dict
from drift.reading.diagnose.tensors import Place, open_dump

pytestmark = pytest.mark.numerical


judge = diagnose_tools.judge


# ------------------------------------------------------------------------------------------------ controls
def floor_of(a: Tensors, c: Tensors, place: Place) -> np.ndarray:
    """[token]: what a floor of one step allows at a place, from its definition."""
    name = f"layer.{place.block}.hidden" if place.kind == "hidden" else f"block.{place.block}.{place.kind}"
    name = f"step.0.{name if place.kind not in ('final', 'logits') else place.kind}"
    one, two = (np.atleast_3d(x[name].double().squeeze(0).numpy()) for x in (a, c))
    if place.kind in ("key", "value"):
        size, change = (np.sqrt(np.sum(x * x, axis=(0, 2))) for x in (one, two - one))
    else:
        size, change = (np.sqrt(np.sum(x * x, axis=(1, 2))) for x in (one, two - one))
    relative = change / np.maximum(size, np.median(size))
    usual = [np.quantile(relative[k : k + CHUNK], 0.95) for k in range(0, TOKENS, CHUNK)]
    return np.maximum(relative, np.repeat(usual, CHUNK))


def test_a_floor_measures_what_is_otherwise_assumed(judge: Callable[..., Diagnosis]) -> None:
    model, ids, full = pair("llama", "bf16")
    eager = random_model("llama", torch.bfloat16, "eager")
    floor = lane(eager, ids)
    clean = judge(full, lane(model, ids, CHUNK), floor=floor)
    assert unaccused(clean)
    plain = judge(full, lane(model, ids, CHUNK))
    for place, envelope in clean.envelopes.items():
        moved = floor_of(full, floor, place)
        if place.block <= 1:  # what deeper places read is wider where the floor is
            assert envelope.local == pytest.approx(np.maximum(plain.envelopes[place].local, moved))
    # A floor that is the same bits knows less of the arithmetic than the numbers' format does.
    same = judge(full, rounded(lane(eager, ids, CHUNK)), floor=full)
    assert unaccused(same)
    assert "measure nothing" in same.reason
    assert all(np.array_equal(same.envelopes[p].local, e.local) for p, e in plain.envelopes.items())
    shifted = judge(full, lane(model, ids, CHUNK, position=lambda k, s: s + (k > 2)), floor=floor)
    assert shifted.cause is Cause.POSITION_OFFSET


def small(tensors: Tensors, amount: float, u: float) -> Tensors:
    """Change a block's output from step 3 on, by the same share at every precision."""
    changed = dict(tensors)
    for k in range(3, TOKENS // CHUNK):
        name = f"step.{k}.layer.2.hidden"
        noise = torch.randn(changed[name].shape, generator=torch.Generator().manual_seed(k))
        changed[name] = (changed[name].float() * (1 + amount * noise)).to(changed[name].dtype)
    return changed


def test_another_precision_uncovers_what_this_one_hides(tmp_path: Path, judge: Callable[..., Diagnosis]) -> None:
    lanes = {}
    for dtype in ("bf16", "fp32"):
        model, ids, full = pair("llama", dtype)
        lanes[dtype] = full, small(lane(model, ids, CHUNK), 0.02, 0)
    # They say what they were computed in: under some kernels no rounding of theirs is there to be measured.
    other = tuple(open_dump(save(x, tmp_path / f"fine{i}", dtype="fp32")) for i, x in enumerate(lanes["fp32"]))
    assert judge(*lanes["bf16"]).verdict is not Verdict.ROUNDING
    found = judge(*lanes["bf16"], other=other)
    assert found.verdict is Verdict.STRUCTURAL
    assert found.entry is not None
    assert (found.entry.place, found.entry.step_b) == (Place("hidden", 2), 3)


def test_a_finer_precision_is_believed_without_a_slope_too(tmp_path: Path, judge: Callable[..., Diagnosis]) -> None:
    def saved(name: str, dtype: str, spoil: float) -> Any:
        model, ids, full = pair("llama", dtype)
        b = lane(model, ids, CHUNK)
        for k in range(3, TOKENS // CHUNK):
            b[f"step.{k}.block.2.value"] = b[f"step.{k}.block.2.value"] * (1 + spoil)
        return tuple(open_dump(save(x, tmp_path / f"{name}{i}")) for i, x in enumerate((full, b)))

    # fp32 and fp64 share a unit roundoff here, and lanes that are the same bits have no slope.
    model, ids, full = pair("llama", "fp32")
    clean = rounded(lane(model, ids, CHUNK))
    assert judge(full, clean, other=saved("spoilt", "fp64", 0.1)).verdict is Verdict.STRUCTURAL
    assert judge(full, clean, other=saved("clean", "fp64", 0.0)).verdict is Verdict.ROUNDING
    coarse = pair("llama", "bf16")[2]
    assert judge(coarse, coarse, other=saved("finer", "fp32", 0.1)).verdict is Verdict.STRUCTURAL
    # What is coarser overrules nothing.
    assert judge(full, full, other=saved("coarser", "bf16", 0.5)).verdict is Verdict.SAME


def test_rounding_has_slope_one(tmp_path: Path, judge: Callable[..., Diagnosis]) -> None:
    model, ids, _ = pair("llama", "fp32")
    fine = lane(random_model("llama", torch.float32, "eager"), ids), rounded(lane(model, ids, CHUNK))
    other = tuple(open_dump(save(x, tmp_path / f"fine{i}")) for i, x in enumerate(fine))
    coarse = random_model("llama", torch.bfloat16), random_model("llama", torch.bfloat16, "eager")
    found = judge(lane(coarse[1], ids), rounded(lane(coarse[0], ids, CHUNK)), other=other)
    assert found.verdict is Verdict.ROUNDING
    slope = next(e.numbers["slope"] for e in found.evidence if "slope" in e.numbers)
    # Both differences are of the order of sqrt(m + n) u, with n = 0 in bf16; how far they are from it, ALLOWANCE says.
    n, m = found.comparison.width, min(ROUNDINGS["key"], ROUNDINGS["value"])
    assert abs(slope - 1) < np.log(ALLOWANCE * (1 + n / m) ** 0.5) / np.log(U16 / U32)


def test_even_noise_of_tf32_size_is_undetermined_until_it_is_named(judge: Callable[..., Diagnosis]) -> None:
    _model, _ids, full = pair()
    generator = torch.Generator().manual_seed(0)
    noisy = {k: v * (1 + 2.0**-11 * torch.randn(v.shape, generator=generator)) for k, v in full.items()}
    noisy = {k: full[k] if ".layer.0." in k else v for k, v in noisy.items()}
    found = judge(full, noisy)
    assert found.verdict is Verdict.UNDETERMINED
    assert "--unit-roundoff" in found.reason
    assert judge(full, noisy, unit_roundoff=2.0**-11).verdict is Verdict.ROUNDING


# ------------------------------------------------------------------------------------------------ partial dumps
@pytest.mark.parametrize("kinds", [("key", "value"), ("hidden",), ("layer.1.hidden", "key"), ("key",)])
def test_partial_dumps_find_the_shift_and_spare_the_clean(
    judge: Callable[..., Diagnosis], kinds: tuple[str, ...]
) -> None:
    model, ids, full = pair()

    def part(tensors: Tensors) -> Tensors:
        return {k: v for k, v in tensors.items() if k.endswith(kinds)}

    assert judge(part(full), part(rounded(lane(model, ids, CHUNK)))).verdict is Verdict.ROUNDING
    row = as_dict(judge(part(full), part(lane(model, ids, CHUNK, position=lambda k, s: s + (k >= 2)))))
    assert row["verdict"] == "structural"
    # Positions shifted as a whole do not change a chunk by itself, but what it reads of the chunks before.
    assert row["step"] == 2
    assert row["block"] == 1


def test_logits_alone_never_prove_a_bug(judge: Callable[..., Diagnosis]) -> None:
    model, ids, full = pair()

    b = lane(model, ids, CHUNK, position=lambda k, s: s + (k >= 2))
    clean, shifted = rounded(lane(model, ids, CHUNK)), b
    for tensors in (clean, shifted, full):
        for name in [n for n in tensors if "logits" not in n and "layer.0" not in n]:
            del tensors[name]
    assert judge(full, clean).verdict is Verdict.ROUNDING
    found = judge(full, shifted)
    assert found.verdict is Verdict.UNDETERMINED
    assert "was not dumped" in found.reason


def test_cuts_of_any_size_are_lined_up(judge: Callable[..., Diagnosis]) -> None:
    model, ids, _ = pair()
    a, b = lane(model, ids, [20, 28]), lane(model, ids, [7, 13, 1, 27])
    found = judge(a, rounded(b))
    assert found.verdict is Verdict.ROUNDING
    assert found.comparison.segments == [(0, 7), (7, 20), (20, 21), (21, 48)]
    shifted = judge(a, lane(model, ids, [7, 13, 1, 27], position=lambda k, s: s + (k >= 3)))
    assert shifted.entry is not None
    assert (shifted.entry.step_a, shifted.entry.step_b, shifted.entry.start) == (1, 3, 21)


def test_same_bits_and_what_was_not_compared(judge: Callable[..., Diagnosis]) -> None:
    model, ids, full = pair()
    found = judge(full, {k: v for k, v in full.items() if "logits" not in k})
    assert found.verdict is Verdict.SAME
    assert found.exit_code == 0
    assert any("only A has them (1 places): the logits" in note for note in found.notes)
    shorter = rounded(lane(model, ids[:40], CHUNK))
    found = judge(full, shorter)
    assert found.verdict is Verdict.UNDETERMINED
    assert "agrees to rounding" in found.reason
    assert any("first 40 were compared" in note for note in found.notes)
    repeated = {k: v.repeat_interleave(2, 1) if "block" in k else v for k, v in full.items()}
    found = judge(full, repeated)
    assert any("repeated for grouped queries" in note for note in found.notes)


def test_a_cache_that_holds_too_much_or_less_bits(judge: Callable[..., Diagnosis]) -> None:
    model, ids, full = pair()
    b = lane(model, ids, CHUNK, cache=True)
    left = {k: torch.cat([v, v[..., :4, :]], -2) if "cache" in k else v for k, v in b.items()}
    row = as_dict(judge(full, left))
    assert (row["cause"], row["kind"], row["step"]) == ("stale_cache", "cache_key", 0)
    assert "hold 12 tokens" in row["cause_text"]
    narrow = {k: v.bfloat16() if "cache_value" in k else v for k, v in b.items()}
    row = as_dict(judge(full, narrow))
    assert (row["verdict"], row["kind"]) == ("narrower_storage", "cache_value")
    moved = {k: v.clone() for k, v in b.items()}
    moved["step.3.block.2.cache_value"][..., 8:16, :] = moved["step.3.block.2.cache_value"][..., 16:24, :].clone()
    row = as_dict(judge(full, moved))
    assert (row["kind"], row["block"], row["step"], row["tokens"]) == ("cache_value", 2, 3, [8, 16])
    assert "those of step 2" in row["cause_text"]

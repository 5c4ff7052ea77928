"""What a fold generates, against a plain generation, and against the softmax where tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rounding import U32
from test_readings import forward
from transformers import DynamicCache

import drift
from drift.running.protocols import parse

pytestmark = pytest.mark.numerical


def test_decode_against_a_plain_generation(tiny: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    """What full attention generates, and where a fold that generates by itself parts from it."""
    model, ids = tiny("qwen2", "bfloat16"), token_ids(1, 40)
    text = torch.from_numpy(ids[0])

    def generate(size: int, positions: Callable[[int], int]) -> list[int]:
        cache = DynamicCache(config=model.config)
        for start in range(0, 40, size):
            out = forward(model, text[start : start + size], cache, positions(start))
        tokens = [int(out.logits[0, -1].argmax())]
        while len(tokens) < 12:
            out = forward(
                model, torch.tensor(tokens[-1:]), cache, 39 + len(tokens) if size == 40 else positions(39 + len(tokens))
            )
            tokens.append(int(out.logits[0, -1].argmax()))
        return tokens

    with torch.inference_mode():
        full = generate(40, lambda start: start)
        folded = generate(8, lambda start: start + 3 * (start >= 16))
    cell = drift.trace(model, ids, 8, "decode(shifted(append,step=2,by=3),tokens=12)")
    assert cell.sizes["step"] == 12
    assert cell.token_start.values.tolist() == list(range(39, 51))
    agree = cell.token_agreement.values[0]
    np.testing.assert_array_equal(agree, cell.top1_agreement.values[0])
    parted = next((i for i, (a, b) in enumerate(zip(full, folded, strict=True)) if a != b), 12)
    assert int(np.argmin(agree)) == parted < 12
    logits = _logits(model, text)[-1].double()
    want = -torch.log_softmax(logits, -1)[full[0]].item()
    # float32: exponents of up to the range of the logits are rounded, and an exponential is within an ulp.
    bound = ((logits.max() - logits.min()).item() + 2) * U32
    assert cell.nll_full.isel(step=0).item() == pytest.approx(want, rel=0, abs=bound)
    same = drift.trace(model, ids, 40, "decode(append,tokens=12)")
    assert not same.hidden_rel_l2.values.any()
    assert (same.token_agreement == 1).all()


def _logits(model: Any, text: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(text[None]).logits[0]


def test_sampling_uses_the_same_random_numbers_in_both_lanes(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, ids = tiny("llama", "float32"), token_ids(1, 24)
    label = "decode(append,tokens=16,temperature=1,seed={})"
    first, second = (drift.trace(model, ids, 8, label.format(seed)) for seed in (1, 2))
    assert (first.token_agreement == 1).all(), "rounding at float32 flipped a sampled token"
    assert float(first.nll_full.mean()) != float(second.nll_full.mean()), "the seed does nothing"
    far = drift.trace(model, ids, 8, "decode(restart,tokens=16,temperature=1,seed=1)")
    assert (far.token_agreement == 0).any()
    assert np.array_equal(far.nll_full, first.nll_full, equal_nan=True), "the continuation depends on the fold"


def test_sampled_tokens_follow_the_softmax() -> None:
    protocol = parse("decode(append,temperature=0.5)")
    logits = torch.tensor([0.0, 0.5, 1.0, -1.0]).expand(4000, 4)
    chosen = protocol.choose(logits, torch.arange(4000))  # type: ignore[attr-defined]
    share = torch.bincount(chosen, minlength=4) / 4000
    want = torch.softmax(logits[0] / 0.5, -1)
    assert ((share - want).abs() < 4 * (want * (1 - want) / 4000).sqrt()).all()

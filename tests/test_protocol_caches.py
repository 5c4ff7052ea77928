"""What protocols do to a cache, worked out on tensors without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rounding import U64

from drift.running.protocols import Carried, Protocol, parse
from drift.running.protocols.decode import Decode


def cache_of(keys: torch.Tensor, values: torch.Tensor, new: int, **options: Any) -> Carried:
    """A cache of block 1."""
    given = {"step": 0, "block": 1, "new": new, "sliding": False, "attention": None, "rotate": lambda k, shift: k}
    given |= {"unit_roundoff": U64}
    return Carried(keys, values, **(given | options))


def test_every_text_of_a_batch_evicts_what_received_least_in_it() -> None:
    keys = torch.arange(2 * 6.0).reshape(2, 1, 6, 1).expand(2, 1, 6, 4).clone()
    attention = torch.full((2, 1, 1, 6), 0.01)
    attention[0, ..., 1] = attention[1, ..., 2] = 0.9
    cache = cache_of(keys, keys + 100, 6, attention=attention)
    parse("evict(budget=3,recent=2)").carry(cache)
    assert cache.keys[..., 0].tolist() == [[[1, 4, 5]], [[8, 10, 11]]]
    assert torch.equal(cache.values, cache.keys + 100)


@pytest.mark.parametrize("size", [0.5, 0.125, 2.0**-20])
def test_a_cache_is_multiplied_by_one_and_noise_in_proportion_to_the_size(size: float) -> None:
    keys, values = torch.randn((2, 1, 2, 64, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = []
    for relative in (1.0, size):
        cache = cache_of(keys, values, 64)
        parse(f"perturbed(append,step=0,size={relative})").carry(cache)
        noise.append(np.stack([(cache.keys / keys - 1) / relative, (cache.values / values - 1) / relative]))
    # Three operations before the size is taken out of what is left of 1 + size x noise, and three after.
    biggest = 1 + abs(noise[0]).max()
    assert abs(noise[1] - noise[0]).max() <= 6 * U64 * biggest / size
    # Noise of standard deviation 1, to four standard errors.
    assert noise[0].std() == pytest.approx(1, abs=4 / (2 * noise[0].size) ** 0.5)


@dataclass(frozen=True)
class Newest(Protocol):
    """Keeps nothing but what a step appended, and counts positions in the cache."""

    name: ClassVar[str] = "newest"

    def first_position(self, step: int, seen: int, slots: int) -> int:
        return slots

    def slots(self, step: int, held: int, new: int) -> int:
        return min(held, new)

    def carry(self, cache: Carried) -> None:
        cache.select(slice(-cache.new, None))


def test_generated_tokens_are_placed_behind_what_the_protocol_inside_left() -> None:
    chunks = Decode(Newest(), tokens=3).chunks(10, 4)
    assert [(c.start, c.stop, c.first_position) for c in chunks] == [(0, 4, 0), (4, 8, 4), (8, 9, 4), (9, 10, 1)]

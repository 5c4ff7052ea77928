"""One lane of a descent, and what its caches hold: what a fold of whole forward passes is held against."""

from __future__ import annotations

from typing import Any

import torch

from drift.running.descent.descending import descend
from drift.running.descent.lanes import Lane, Recorder
from drift.running.lanes import embedding_noise
from drift.running.model.numerics import numerics, rung_of
from drift.running.protocols import parse

BOS = 1


class Cached(Recorder):
    """What the cache of every block holds after the last step, and the bytes carried at every one."""

    def __init__(self) -> None:
        self.last: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.sizes: list[list[int]] = []

    def cached(self, lane: int, block: int, step: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.last[block] = keys.clone(), values.clone()

    def cache_bytes(self, block: int, sizes: Any) -> None:
        self.sizes.append(list(sizes[0]))


def lane_of(model: Any, text: torch.Tensor, label: str, size: int) -> Cached:
    protocol, recorder, computed = parse(label).bind(lambda: BOS), Cached(), rung_of(model.dtype)
    noise = embedding_noise(protocol, text, computed)
    lane = Lane(text, protocol.chunks(len(text), size), protocol, noise=noise, unit_roundoff=computed.unit_roundoff)
    with numerics(computed):
        descend(model, [lane], recorder)
    return recorder

"""`evict`: the cache keeps the heavy hitters and the most recent tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drift.running.protocols.base import Carried, Protocol


@dataclass(frozen=True)
class Evict(Protocol):
    """Heavy-hitter eviction to a budget (H2O, arXiv 2306.14048), between chunks.

    Every slot collects the attention probability that it receives, summed over queries and over the query heads that
    share its key. When a cache exceeds the budget, its most recent slots stay, and of the others those that collected
    most; which these are differs from head to head. Kept slots keep their order and their positions in the text. Blocks
    with a sliding window keep that window.

    Attention probabilities are only to be had from ``eager`` attention, so the fold runs with it. Until the first
    eviction it differs from `append` by that alone.

    Attributes
    ----------
    budget : int
        Slots that a block's cache keeps.
    recent : int
        How many of them are kept for the most recent tokens; 0 stands for half the budget, as in the paper.
    """

    name: ClassVar[str] = "evict"
    summary: ClassVar[str] = "between chunks the most recent slots stay, and those that received most attention"

    budget: int = 512
    recent: int = 0

    def __post_init__(self) -> None:
        self._require(self.budget >= 2, "budget must be at least 2")
        self._require(self.recent < self.budget, "recent must be below the budget")

    @property
    def wants_attention(self) -> bool:
        """Eviction goes by attention probabilities."""
        return True

    def slots(self, step: int, held: int, new: int) -> int:
        """The budget, once it is exceeded."""
        return min(held, self.budget)

    def carry(self, cache: Carried) -> None:
        """Add up what each slot received, then drop the slots that received least."""
        import torch

        assert cache.attention is not None
        if cache.sliding:
            return
        batch, heads, held, _ = cache.keys.shape
        # [batch, head, group, query, slot] -> [batch, head, slot]
        received = cache.attention.to(torch.float32).reshape(batch, heads, -1, *cache.attention.shape[-2:]).sum((2, 3))
        before = cache.notes.get("received")
        if before is not None:
            received[..., : before.shape[-1]] += before
        if held > self.budget:
            recent = self.recent or self.budget // 2
            heavy = received[..., : held - recent].topk(self.budget - recent, dim=-1).indices.sort(dim=-1).values
            latest = torch.arange(held - recent, held, device=heavy.device).expand(batch, heads, recent)
            kept = torch.cat([heavy, latest], dim=-1)
            received = received.gather(-1, kept)
            slots = kept[..., None].expand(-1, -1, -1, cache.keys.shape[-1])
            cache.keys = cache.keys.gather(-2, slots)
            cache.values = cache.values.gather(-2, kept[..., None].expand(-1, -1, -1, cache.values.shape[-1]))
        cache.notes["received"] = received

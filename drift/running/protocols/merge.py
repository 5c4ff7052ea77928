"""`merge`: the carried cache is compacted to a budget by averaging neighbours."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from drift.running.protocols.base import Carried, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Merge(Protocol):
    """After every step the cache is brought down to a fixed number of slots, each the mean of neighbours.

    One popular description of KV-Fold says that the accumulator is recompressed at each step; this is what that reading
    would do. Slot i of the new cache is the mean of the old slots from i n / b up to (i + 1) n / b, so a slot of the
    distant past is a mean of means. Positions run on as in the text. Blocks with a sliding window keep that window.

    Attributes
    ----------
    budget : int
        Slots that a block's cache is brought down to.
    """

    name: ClassVar[str] = "merge"
    summary: ClassVar[str] = "after every step the cache is brought down to few slots, each the mean of neighbours"

    budget: int = 512

    def __post_init__(self) -> None:
        self._require(self.budget >= 1, "budget must be at least 1")

    def slots(self, step: int, held: int, new: int) -> int:
        """The budget, once it is exceeded."""
        return min(held, self.budget)

    def carry(self, cache: Carried) -> None:
        """Average neighbours where there are more slots than the budget."""
        if not cache.sliding and cache.keys.shape[-2] > self.budget:
            cache.keys, cache.values = self._means(cache.keys), self._means(cache.values)

    def _means(self, x: Tensor) -> Tensor:
        import torch

        held = x.shape[-2]
        bounds = torch.arange(self.budget + 1, device=x.device) * held // self.budget
        # Means in float64: a cumulative sum of thousands of slots would lose digits in the difference.
        wide = x.to(torch.float64)
        if not bool(torch.isfinite(wide).all()):  # nor may what is not finite spread through a sum of everything
            pieces = [wide[..., i:j, :].mean(-2) for i, j in itertools.pairwise(bounds.tolist())]
            return torch.stack(pieces, -2).to(x.dtype)
        total = torch.nn.functional.pad(wide.cumsum(-2), (0, 0, 1, 0))
        sums = total[..., bounds[1:], :] - total[..., bounds[:-1], :]
        return (sums / (bounds[1:] - bounds[:-1])[:, None]).to(x.dtype)

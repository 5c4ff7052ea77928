"""`streaming`: attention sinks and a window of recent tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from drift.running.protocols.base import Carried, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Streaming(Protocol):
    """The cache keeps the first tokens and the most recent ones (StreamingLLM, arXiv 2309.17453).

    Eviction happens between chunks, so a chunk sees the sinks, the window before it, and itself. Blocks with a sliding
    window of their own keep that window. Until the first eviction it is `append`; after it, it is another function.

    Attributes
    ----------
    sinks : int
        First tokens that stay.
    window : int
        Most recent tokens that stay.
    positions : {"cache", "text"}
        ``cache``: positions count within the cache, as the paper does it: the window's keys move as it does. Keys are
        always rotated from their first position at once, so that roundings do not pile up.
        ``text``: every token keeps its position in the text, as where a window is put on a cache of rotated keys.
    """

    name: ClassVar[str] = "streaming"
    summary: ClassVar[str] = "between chunks the first tokens and the most recent ones stay in the cache"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"positions": ("cache", "text")}
    spelt: ClassVar[tuple[str, ...]] = ("positions",)

    sinks: int = 4
    window: int = 1024
    positions: str = "cache"

    def __post_init__(self) -> None:
        self._require(self.window >= 1, "window must be at least 1")

    def first_position(self, step: int, seen: int, slots: int) -> int:
        """The place in the text, or in the cache."""
        return slots if self.positions == "cache" else seen

    def slots(self, step: int, held: int, new: int) -> int:
        """Sinks and window, once there are so many."""
        return min(held, self.sinks + self.window)

    def carry(self, cache: Carried) -> None:
        """Drop what lies between sinks and window; where positions count in the cache, move the window's keys."""
        if self.positions == "cache":
            self._move(cache)
        elif not cache.sliding:
            cache.keys = self._kept(cache.keys, -2)
        if not cache.sliding:
            cache.values = self._kept(cache.values, -2)

    def _move(self, cache: Carried) -> None:
        """Rotate every key from the position that it was computed at to the one that it now has in the cache."""
        import torch

        held = cache.keys.shape[-2]
        new = cache.keys[..., held - min(cache.new, held) :, :]
        zeros = torch.zeros(new.shape[-2], dtype=torch.int64, device=new.device)
        keys, shift, slots = new, zeros, cache.new
        if cache.notes:
            keys = torch.cat([cache.notes["keys"], new], dim=-2)
            shift = torch.cat([cache.notes["shift"], zeros])
            slots += cache.notes["slots"]
        kept = self.slots(cache.step, slots, cache.new)
        shift = shift - (slots - kept)
        if cache.sliding:  # what its own window forgot is gone from the front
            keys, shift = keys[..., keys.shape[-2] - held :, :], shift[shift.shape[0] - held :]
        else:
            shift[: self.sinks] = 0
            keys, shift = self._kept(keys, -2), self._kept(shift, 0)
        cache.notes.update(keys=keys, shift=shift, slots=kept)
        cache.keys = cache.rotate(keys, shift) if bool(shift.any()) else keys

    def _kept(self, x: Tensor, dim: int) -> Tensor:
        """Sinks and window along an axis of slots."""
        import torch

        length = x.shape[dim]
        if length <= self.sinks + self.window:
            return x
        return torch.cat([x.narrow(dim, 0, self.sinks), x.narrow(dim, length - self.window, self.window)], dim=dim)

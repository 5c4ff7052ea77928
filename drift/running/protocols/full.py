"""`full`: full attention once more, to see what two accepted ways of computing the same thing differ by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from drift.running.protocols.base import Chunk, Protocol

__all__ = ["FLOOR_DRAWS", "FLOOR_SCALE", "Full", "floor_draw", "floor_record", "floor_seeds"]

#: How often the rounding floor is drawn where nobody says otherwise.
FLOOR_DRAWS = 2
#: Noise of the draws of the rounding floor, in unit roundoffs.
FLOOR_SCALE = 1.0
#: Texts computed at once.
_MOST_BATCH = 1024


@dataclass(frozen=True)
class Full(Protocol):
    """Full attention again, in one pass; only the comparison goes chunk by chunk.

    Nothing is folded. With no option it must give the same bits as the reference. With another attention
    implementation, or in a batch, it computes the same function in another order: how far it then is from the reference
    is the floor under every drift.

    Attributes
    ----------
    attention : {"model", "eager", "sdpa"}
        The attention implementation; ``model`` is the one that the model came with.
    batch : int
        Texts computed at once. The others are the same text begun at another token.
    noise : float
        Embeddings are multiplied by 1 + noise x unit roundoff x Gaussian noise, and rounded to the precision: another,
        equally right rounding of the same computation where it is 1.
    seed : int
        Which noise.
    """

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "full attention again, in one pass: nothing is folded"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"attention": ("model", "eager", "sdpa")}

    attention: str = "model"
    batch: int = 1
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._require(self.batch >= 1, "batch must be at least 1")
        self._require(self.batch <= _MOST_BATCH, f"batch must be at most {_MOST_BATCH}")
        self._require(bool(self.noise) or not self.seed, "a seed needs noise, such as noise=1")

    @property
    def embedding_noise(self) -> tuple[float, int] | None:
        """The noise that was asked for."""
        return (self.noise, self.seed) if self.noise else None

    @property
    def attn_implementation(self) -> str | None:
        """The implementation that was asked for."""
        return None if self.attention == "model" else self.attention

    @property
    def texts_at_once(self) -> int:
        """The batch."""
        return self.batch

    def chunks(self, tokens: int, chunk_size: int) -> tuple[Chunk, ...]:
        """One chunk, whatever the chunk size."""
        self._check_size(tokens, chunk_size)
        return (Chunk(0, tokens),)


def floor_draw(seed: int) -> Full:
    """The protocol of one draw of the rounding floor."""
    return Full(noise=FLOOR_SCALE, seed=seed)


def floor_seeds(draws: int) -> list[int]:
    """Seeds of that many draws. None is 0, the seed of ``full(noise=...)`` where none is named."""
    return list(range(1, draws + 1))


def floor_record(draws: int) -> dict[str, object]:
    """What is recorded of the floor, and is part of a cell's identity."""
    return {"seeds": floor_seeds(draws), "scale": FLOOR_SCALE}

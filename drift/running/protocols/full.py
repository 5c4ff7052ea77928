"""`full`: full attention once more, to see what two accepted ways of computing the same thing differ by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from drift.running.protocols.base import Chunk, Protocol


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
    """

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "full attention again, in one pass: nothing is folded"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"attention": ("model", "eager", "sdpa")}

    attention: str = "model"
    batch: int = 1

    def __post_init__(self) -> None:
        self._require(self.batch >= 1, "batch must be at least 1")

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

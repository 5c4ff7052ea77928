"""`isolated`: every chunk is prefilled alone, and the caches are concatenated afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from drift.running.protocols.base import Chunk, Protocol


@dataclass(frozen=True)
class Isolated(Protocol):
    """Each chunk is prefilled alone at its true positions, seeing nothing of what came before.

    Concatenating such caches is done where passages are cached once and used in many prompts, in block attention, and
    where agents hand each other their caches. It is another function: context is lost at every boundary.

    Attributes
    ----------
    probe : int
        0 measures the state of the isolated chunk itself, which is what goes into the cache. 1 measures, at every chain
        step, the chunk as a probe: it attends to the concatenation of the isolated caches before it, as a question put
        after cached passages does; its own keys and values are then dropped, and those of the isolated pass are kept.
    """

    name: ClassVar[str] = "isolated"
    summary: ClassVar[str] = "every chunk is prefilled alone, at its true positions, and the caches are put together"

    probe: int = 0

    def __post_init__(self) -> None:
        self._require(self.probe in (0, 1), "probe must be 0 or 1")

    @property
    def measures_what_it_carries(self) -> bool:
        """Not where a probe is measured."""
        return not self.probe

    def chunks(self, tokens: int, chunk_size: int) -> tuple[Chunk, ...]:
        """Cut the text as `append` does; a probe goes before each isolated pass."""
        chunks = super().chunks(tokens, chunk_size)
        if not self.probe:
            return tuple(replace(chunk, alone=True) for chunk in chunks)
        return tuple(
            each
            for chunk in chunks
            for each in (replace(chunk, kept=False), replace(chunk, alone=True, measured=False))
        )

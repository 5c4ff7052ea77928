"""`shifted`: a planted bug, positions that are off by one from some step on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from drift.running.protocols.base import Chunk, Variation


@dataclass(frozen=True)
class Shifted(Variation):
    """Another protocol whose positions are too large by some tokens from a chain step on.

    A control that must fire: it is another function of the text, so its drift does not shrink with the unit roundoff,
    and it begins at the step where the bug was planted.

    Attributes
    ----------
    step : int
        First chain step with wrong positions.
    by : int
        How many positions too far.
    """

    name: ClassVar[str] = "shifted"
    summary: ClassVar[str] = "from one chain step on, positions are too large"

    step: int
    by: int = 1

    @property
    def planted_at(self) -> int | None:
        """The first step with wrong positions."""
        return self.step

    def first_position(self, step: int, seen: int, slots: int) -> int:
        """Of the protocol inside, moved from the step on: what is generated after the text asks for it."""
        return super().first_position(step, seen, slots) + self.by * (step >= self.step)

    def chunks(self, tokens: int, chunk_size: int) -> tuple[Chunk, ...]:
        """Cut as the protocol inside does, and move the positions."""
        return tuple(
            replace(chunk, first_position=chunk.first_position + self.by) if chunk.step >= self.step else chunk
            for chunk in super().chunks(tokens, chunk_size)
        )

"""`restart`: positions begin at 0 in every chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drift.running.protocols.base import Protocol


@dataclass(frozen=True)
class Restart(Protocol):
    """Keys and values are appended to the cache, but every chunk is told that it begins at position 0.

    A loop that passes ``position_ids`` counted from the chunk's own start does this. The keys of all chunks then
    overlap in position, which is a different function from full attention: its drift does not shrink with the unit
    roundoff.
    """

    name: ClassVar[str] = "restart"
    summary: ClassVar[str] = "keys and values are appended to the cache, but every chunk begins at position 0"

    def first_position(self, step: int, seen: int, slots: int) -> int:
        """Every chunk begins at position 0, whatever is in the cache."""
        return 0

"""What a file holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from drift.reading.diagnose.stored import Stored

__all__ = ["Held"]


@dataclass(frozen=True)
class Held:
    """Tensors of a file by name, and what it says of itself."""

    tensors: dict[str, Stored] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

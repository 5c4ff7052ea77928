"""`append`: the literal fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drift.running.protocols.base import Protocol


@dataclass(frozen=True)
class Append(Protocol):
    """Keys and values are appended to the cache and positions run on.

    This is what serving engines call chunked prefill. It is the same function as full attention in exact arithmetic,
    so all of its drift is rounding: it must shrink with the unit roundoff.
    """

    name: ClassVar[str] = "append"
    summary: ClassVar[str] = "keys and values are appended to the cache, and positions run on"

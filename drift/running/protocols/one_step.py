"""`one_step`: every chunk is computed on full attention's own keys and values; nothing is inherited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drift.running.protocols.base import Variation


@dataclass(frozen=True)
class OneStep(Variation):
    """Another protocol whose every chunk continues from full attention instead of from the chunks before it.

    In the language of ordinary differential equations this is the local error of the protocol, and its drift the global
    one (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.3): what a chain accumulates is
    what the second has and the first has not.

    After each chain step the keys and values that the chunk appended are replaced by those that full attention computed
    for the same tokens, at the positions that the protocol gives them; then the protocol does to the cache what it
    does. Prefixes, which full attention does not have, keep their own. Where the protocol moves positions, the keys of
    full attention are rotated to them by the model's own tables, which rounds once more.
    """

    name: ClassVar[str] = "one_step"
    summary: ClassVar[str] = "every chunk is computed on full attention's own keys and values: the error of one step"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(not self.protocol.takes_full_cache, f"{self.protocol.label} takes full attention's cache already")
        self._require(
            self.protocol.texts_at_once == 1,
            f"{self.protocol.label} computes several texts at once, and full attention has the cache of one",
        )

    @property
    def takes_full_cache(self) -> bool:
        """Yes: that is what it is."""
        return True

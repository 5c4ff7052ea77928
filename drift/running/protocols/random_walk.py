"""`random_walk`: noise is put on the whole carried cache after every chain step, and kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drift.running.noise import disturbed
from drift.running.protocols.base import Carried, CarriedStates, Variation


@dataclass(frozen=True)
class RandomWalk(Variation):
    """Another protocol, whose whole cache is multiplied by 1 + noise x unit roundoff x Gaussian noise at every step.

    A control that must fire: what is added at one step is never taken back, so the cache goes on a random walk, and
    drift accumulates along the chain as the drift of no fold that only rounds does.

    Attributes
    ----------
    noise : float
        Standard deviation of the relative noise of one step, in unit roundoffs of the precision.
    seed : int
        Which noise.
    """

    name: ClassVar[str] = "random_walk"
    summary: ClassVar[str] = (
        "after every chain step the whole cache is multiplied by 1 + noise x unit roundoff x Gaussian"
    )

    noise: float = 1.0
    seed: int = 0

    @property
    def planted_at(self) -> int | None:
        """The second chunk: the first to attend to a cache with noise in it."""
        return 1

    def slots(self, step: int, held: int, new: int) -> int:
        """As the protocol inside: noise drops none."""
        return super().slots(step, held, new)

    def carry(self, cache: Carried) -> None:
        """Do as the protocol inside, then put in the noise."""
        super().carry(cache)
        self._require(
            "keys" not in cache.notes,
            f"{self.protocol.label} makes its keys anew at every step, so noise on them would not be kept",
        )
        generator = np.random.default_rng([self.seed, cache.block, cache.step])
        size = self.noise * cache.unit_roundoff
        cache.keys = disturbed(cache.keys, size, generator.standard_normal(cache.keys.shape))
        cache.values = disturbed(cache.values, size, generator.standard_normal(cache.values.shape))

    def carry_states(self, cache: CarriedStates) -> None:
        """Put the noise into states, too."""
        super().carry_states(cache)
        generator = np.random.default_rng([self.seed, cache.block, cache.step, 1])
        size = self.noise * cache.unit_roundoff
        cache.states = [disturbed(x, size, generator.standard_normal(x.shape)) for x in cache.states]

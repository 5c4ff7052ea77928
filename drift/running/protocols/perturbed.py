"""`perturbed`: noise is put into the carried cache once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from drift.running.noise import disturbed
from drift.running.protocols.base import Carried, CarriedStates, Variation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Perturbed(Variation):
    """Another protocol, whose cache is multiplied by 1 + size x Gaussian noise after one chain step.

    A control that must fire: later steps respond in proportion to the size, as long as it is above the unit roundoff
    and far below 1. Against the same fold without the noise (the reference ``unperturbed``) it measures whether the
    chain damps an error or amplifies it. The noise is the same for every size, precision and protocol inside.

    Attributes
    ----------
    step : int
        The chain step after which the noise is put in; the next one is the first to see it.
    size : float
        Standard deviation of the relative noise.
    block : int
        The block whose cache is hit, from 1; 0 hits all of them.
    seed : int
        Which noise.
    """

    name: ClassVar[str] = "perturbed"
    summary: ClassVar[str] = "after one chain step the cache is multiplied by 1 + size x Gaussian noise"
    references: ClassVar[tuple[str, ...]] = (*Variation.references, "unperturbed")

    step: int
    size: float
    block: int = 0
    seed: int = 0

    @property
    def planted_at(self) -> int | None:
        """The first step to see the noise."""
        return self.step + 1

    def slots(self, step: int, held: int, new: int) -> int:
        """As the protocol inside: noise drops none."""
        return super().slots(step, held, new)

    def carry(self, cache: Carried) -> None:
        """Do as the protocol inside, then put in the noise if this is the step and the block."""
        super().carry(cache)
        if cache.step != self.step or self.block not in (0, cache.block):
            return
        # On the CPU in float64, so that every device and precision gets the same noise.
        generator = np.random.default_rng([self.seed, cache.block])

        def hit(*copies: Tensor) -> list[Tensor]:
            noise = generator.standard_normal(copies[0].shape)
            return [disturbed(x, self.size, noise) for x in copies]

        own = cache.notes.get("keys")  # from which the protocol inside makes the keys anew at every step
        cache.keys, *noted = hit(cache.keys, *([] if own is None else [own]))
        if noted:
            cache.notes["keys"] = noted[0]
        (cache.values,) = hit(cache.values)

    def carry_states(self, cache: CarriedStates) -> None:
        """Put the noise into states, too: other noise than that in keys and values of the block."""
        super().carry_states(cache)
        if cache.step == self.step and self.block in (0, cache.block):
            generator = np.random.default_rng([self.seed, cache.block, 1])
            cache.states = [disturbed(x, self.size, generator.standard_normal(x.shape)) for x in cache.states]

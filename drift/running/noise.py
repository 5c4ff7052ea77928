"""Relative Gaussian noise on tensors, the same on every device and at every precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["EmbeddingNoise", "disturbed"]

_ROWS = 1024  # of noise made at once: a long text's would take eight bytes a number


def disturbed(x: Tensor, size: float, noise: NDArray[np.float64]) -> Tensor:
    """Multiply a tensor by 1 + `size` `noise`, rounded once to its dtype.

    The product is formed in float64 and added to the number: 1 + size noise itself would be rounded to a few values
    where `size` is the unit roundoff of float64.
    """
    import torch

    wide = x.to(torch.float64)
    return (wide + wide * torch.from_numpy(size * noise).to(x.device)).to(x.dtype)


@dataclass(frozen=True)
class EmbeddingNoise:
    """Noise on the embeddings of a text: Monte Carlo arithmetic at the input (Parker 1997, UCLA CSD-970002).

    Attributes
    ----------
    size : float
        Standard deviation of the relative noise.
    seed : tuple of int
        Which noise; see :func:`numpy.random.default_rng`.
    """

    size: float
    seed: tuple[int, ...]

    def stream(self) -> Callable[[Tensor], Tensor]:
        """A function that disturbs consecutive stretches [token, feature] of the text, first things first."""
        import torch

        generator = np.random.default_rng(self.seed)

        def disturb(stretch: Tensor) -> Tensor:
            parts = [disturbed(x, self.size, generator.standard_normal(x.shape)) for x in stretch.split(_ROWS)]
            return torch.cat(parts)

        return disturb

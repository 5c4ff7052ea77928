"""How rotary embeddings pair the features of a head: by halves, or neighbours.

The two are the same computation with the features in another order. GGUF files keep Llama's query and key weights so
that pairs are neighbours, and transformers keeps them by halves: either's keys are the other's, permuted in each head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from drift.reading.diagnose.tensors import Dump

__all__ = ["Reordered", "layouts", "pairs", "reordered"]

_TOKENS = 256
"""Tokens from which an order is inferred."""
_ENOUGH = 64
"""Pairs of features that it takes."""
_AGREE = 0.25
"""Magnitudes of pairs must be this close in the one order, and this much closer than in the other."""


@dataclass(frozen=True)
class Reordered:
    """A lane whose rotary pairs are neighbours where the other's are halves apart.

    Attributes
    ----------
    lane : str
        ``A`` or ``B``: that with the neighbours.
    width : int
        Features of each head that are rotated.
    """

    lane: str
    width: int


def layouts(features: int) -> Iterator[tuple[str, int]]:
    """Yield the ways in which rotary embeddings pair features: which layout, and over how many features."""
    width = features
    while width >= 2 and width >= features // 4:
        for name in ("half-split", "interleaved"):
            yield name, width - width % 2
        width //= 2


def pairs(layout: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of both members of each pair, fastest pair first."""
    i = np.arange(width // 2)
    return (i, i + width // 2) if layout == "half-split" else (2 * i, 2 * i + 1)


def _apart(a: np.ndarray, b: np.ndarray, layout_a: str, layout_b: str, width: int) -> float:
    """Relative difference of the magnitudes of pairs, each lane's in its own layout, and of what is not rotated."""
    sizes = []
    with np.errstate(over="ignore", invalid="ignore"):
        for keys, layout in ((a, layout_a), (b, layout_b)):
            one, two = pairs(layout, width)
            sizes.append(np.concatenate([np.hypot(keys[..., one], keys[..., two]), keys[..., width:]], axis=-1))
        norm = float(np.linalg.norm(sizes[0]))
        apart = float(np.linalg.norm(sizes[1] - sizes[0]))
    return apart / norm if 0 < norm < np.inf else float("inf")


def reordered(a: Dump, b: Dump) -> Reordered | None:
    """Tell whether one lane's rotary pairs are neighbours and the other's halves apart, from their first keys.

    Rotations leave the magnitudes of pairs alone, so keys at other positions are recognised as well.
    """
    place = min((p for p in a.places.keys() & b.places.keys() if p.kind == "key"), default=None)
    if place is None or a.shape(place) != b.shape(place):
        return None
    stop = min(_TOKENS, a.tokens, b.tokens)
    if any(dump.covered(place, 0, stop) != [(0, stop)] for dump in (a, b)):
        return None
    one, two = (np.nan_to_num(dump.read(place, 0, stop).astype(np.float64), posinf=0, neginf=0) for dump in (a, b))
    if one.size < 2 * _ENOUGH:
        return None
    for _, width in layouts(one.shape[-1]):
        if width < 4:
            break
        same = _apart(one, two, "half-split", "half-split", width)
        for lane, ways in (("B", ("half-split", "interleaved")), ("A", ("interleaved", "half-split"))):
            if _apart(one, two, *ways, width) < _AGREE * min(1.0, same):
                return Reordered(lane, width)
    return None

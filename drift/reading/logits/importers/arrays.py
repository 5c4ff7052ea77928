"""Logits in arrays, and the tokens beside them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from drift._bounds import MOST_DOCUMENTS, MOST_TOKENS, MOST_VOCABULARY
from drift.reading.logits.lanes import NO_TOKEN, ArrayRows, Sequence

__all__ = ["LOGITS", "TARGETS", "TOKENS", "sequences"]

#: Names of arrays in a file: logits; the tokens that went in (a position predicts the next one); or what each predicts.
LOGITS, TOKENS, TARGETS = "logits", "tokens", "targets"


def _targets(positions: int, count: int, tokens: NDArray | None, targets: NDArray | None) -> NDArray | None:
    """What each position predicts, [sequence, position]; `NO_TOKEN` where that is not known.

    Raises
    ------
    ValueError
        In words.
    """
    given, name = (targets, TARGETS) if targets is not None else (tokens, TOKENS)
    if given is None:
        return None
    if given.dtype.kind not in "iu":
        raise ValueError(f"its {name} are {given.dtype}, not whole numbers")
    lengths = (positions,) if targets is not None else (positions, positions + 1)
    if given.size % count or given.size // count not in lengths or given.ndim > 2:
        raise ValueError(
            f"its {name} have the shape {list(given.shape)}, for {count:,} sequences of {positions:,} positions"
        )
    known = given.reshape(count, -1).astype(np.int64)
    if targets is not None:
        return known
    end = np.full((count, max(0, positions + 1 - known.shape[1])), NO_TOKEN, dtype=np.int64)
    return np.concatenate([known[:, 1:], end], axis=1)


def sequences(
    logits: NDArray,
    tokens: NDArray | None = None,
    targets: NDArray | None = None,
    decode: Callable[[NDArray], NDArray] | None = None,
) -> list[Sequence]:
    """Make sequences of an array of logits.

    Parameters
    ----------
    logits : ndarray [position, token] or [sequence, position, token]
        Numbers, or what `decode` makes numbers of.
    tokens : ndarray of int [position] or [sequence, position], optional
        The tokens that went in: a position predicts the next one. One more than there are positions is fine.
    targets : ndarray of int, optional
        Instead: what each position predicts. Below 0: nothing.
    decode : callable, optional
        Makes numbers of what is stored, any shape.

    Raises
    ------
    ValueError
        If the shapes do not fit, in words.
    """
    if logits.ndim not in (2, 3) or 0 in logits.shape:
        raise ValueError(
            f"its logits have the shape {list(logits.shape)}; [position, token] or [sequence, position, token] is "
            "read, none of them 0. Log-probabilities of chosen tokens alone go into JSON lines"
        )
    stack = logits[None] if logits.ndim == 2 else logits
    count, positions, vocabulary = stack.shape
    if count > MOST_DOCUMENTS or positions > MOST_TOKENS or vocabulary > MOST_VOCABULARY:
        raise ValueError(f"its logits have the shape {list(logits.shape)}, which is more than is read")
    known = _targets(positions, count, tokens, targets)
    if known is not None and known.max() >= vocabulary:
        raise ValueError(f"token {int(known.max()):,} is beyond its vocabulary of {vocabulary:,}")
    return [Sequence(None if known is None else known[n], rows=ArrayRows(part, decode)) for n, part in enumerate(stack)]

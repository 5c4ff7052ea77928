"""Texts that begin alike are folded once, as far as they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from drift.running.folding.folded import Folded, fold
from drift.running.protocols.base import Protocol

__all__ = ["common", "prefills"]

_Tokens = NDArray[np.int64]


def common(a: _Tokens, b: _Tokens) -> int:
    """With how many tokens [token] two texts begin alike."""
    least = min(len(a), len(b))
    differs = np.flatnonzero(a[:least] != b[:least])
    return int(differs[0]) if differs.size else least


def prefills(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    chunk_size: int,
    protocol: Protocol,
    behind: int,
    **options: Any,
) -> Iterator[Folded]:
    """Fold several texts, each bit for bit as if it were the only one.

    The whole chunks that a text shares with the next one are folded once; it goes on in a branch. A protocol that takes
    the text in one pass, or does something at one chain step that must come, has each text by itself.

    Parameters
    ----------
    model : PreTrainedModel
    texts : sequence of sequence of int
        Best those that begin alike next to one another, and those that do so for longer behind.
    chunk_size : int
    protocol : Protocol
        Bound, see :meth:`drift.running.protocols.base.Protocol.bind`.
    behind : int
        Tokens that will be fed to each.
    **options
        Of :func:`drift.running.folding.folded.fold`.

    Yields
    ------
    Folded
        Let go of each before the next is asked for: then it was a view of the same memory, and nothing is copied.
    """
    held = [np.asarray(text, dtype=np.int64) for text in texts]
    shared = [common(a, b) // chunk_size * chunk_size for a, b in pairwise(held)] + [0]
    sharing = protocol.planted_at is None and len(protocol.chunks(2 * chunk_size, chunk_size)) > 1
    most = max(map(len, held)) + behind
    trunk: Folded | None = None

    def whole(text: _Tokens) -> Folded:
        return fold(model, text, chunk_size, protocol, spare_slots=most - len(text), **options)

    for text, next_shared in zip(held, shared, strict=True):
        if trunk is not None and common(np.asarray(trunk.tokens.cpu()), text) < len(trunk.tokens):
            trunk = None
        if sharing and next_shared and (trunk is None or next_shared > len(trunk.tokens)):
            trunk = _gone_on(trunk, text[:next_shared], whole)
        yield whole(text) if trunk is None else _gone_on(trunk.branch(), text, whole)


def _gone_on(folded: Folded | None, text: _Tokens, whole: Callable[[_Tokens], Folded]) -> Folded:
    """A fold that has come to the end of a text which it is the beginning of."""
    if folded is None:
        return whole(text)
    if len(folded.tokens) < len(text):
        folded.extend(text[len(folded.tokens) :])
    return folded

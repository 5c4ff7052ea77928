"""What descends: lanes, their limits, and the recorder that is told of every layer."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift.running.limits import LOGIT_ROWS
from drift.running.noise import EmbeddingNoise
from drift.running.protocols.base import Chunk, Protocol

__all__ = ["Lane", "Limits", "Recorder"]


@dataclass(frozen=True)
class Limits:
    """What a descent may keep in memory. The numbers are the same within any limits.

    Attributes
    ----------
    call_bytes : float
        Most bytes of arguments (masks above all) that are kept from the tap until the last block. Those of lanes that
        would go beyond are made again for every block, one chunk at a time.
    logit_rows : int
        Most rows of logits computed at once of chunks longer than `LOGIT_ROWS`; shorter chunks are never cut. Where a
        chunk is cut decides nothing but how its products with the output embedding round.
    """

    call_bytes: float = float("inf")
    logit_rows: int = LOGIT_ROWS


@dataclass(frozen=True)
class Lane:
    """One way of running one text through the model.

    Attributes
    ----------
    tokens : Tensor
        int64 [token]: the text, the same in all lanes that are compared.
    chunks : tuple of Chunk
        How the text is cut; a single chunk is full attention.
    protocol : Protocol, optional
        What becomes of the cache after each chain step; by default everything stays.
    model : PreTrainedModel, optional
        The same model at another precision; by default the one that the descent was given.
    scope : callable
        Makes the context that the lane computes in: the numerical switches of its precision.
    companions : tuple of Tensor
        Other texts of the same length, computed in one batch with this one and not looked at.
    noise : EmbeddingNoise, optional
        What is put on the embeddings of the text.
    source : int, optional
        Place of an earlier lane of the same model whose keys and values take the place of those that this lane's
        chunks append.
    unit_roundoff : float
        Of the precision that the lane computes in.
    marks : tuple of int
        Tokens of the text after which the states of recurrences are wanted. A lane of one chunk has none in the midst
        of it: there, a block with recurrences is given the text up to each mark again, in one pass.
    """

    tokens: Tensor
    chunks: tuple[Chunk, ...]
    protocol: Protocol | None = None
    model: PreTrainedModel | None = None
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    companions: tuple[Tensor, ...] = ()
    noise: EmbeddingNoise | None = None
    source: int | None = None
    unit_roundoff: float = 0.0
    marks: tuple[int, ...] = ()

    def token_ids(self, chunk: Chunk) -> Tensor:
        """int64 [text, token]: what the model is given for a chunk, prefix included."""
        texts = torch.stack([text[chunk.start : chunk.stop] for text in (self.tokens, *self.companions)])
        if chunk.prefix:
            texts = torch.cat([texts.new_tensor(chunk.prefix).expand(len(texts), -1), texts], dim=1)
        return texts


class Recorder(ABC):
    """Receives what the lanes hold, layer by layer; overrides what it wants to see.

    All tensors cover text tokens only: the prefixes of chunks are left out.
    """

    def hidden(self, layer: int, kind: str, states: Sequence[Tensor]) -> None:
        """Hidden states, one tensor [token, feature] per lane.

        ``layer`` 0 are the embeddings, k the output of block k; ``kind`` is ``embedding`` or ``block``.
        """

    def cache(self, block: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """What block ``block`` (1 is the first) cached, one tensor [head, token, feature] per lane.

        There are none of a block that keeps no keys and values.
        """

    def cached(self, lane: int, block: int, step: int, keys: Tensor, values: Tensor) -> None:
        """What the cache of block ``block`` holds after chain step ``step``: [head, token, feature], prefixes included.

        Layers with a sliding window hold their last tokens only.
        """

    def states(
        self, lane: int, block: int, tokens: int, convolved: Sequence[Tensor], recurrent: Sequence[Tensor]
    ) -> None:
        """The states [...] of convolutions and of recurrences that block ``block`` holds after ``tokens`` of the text.

        They are told after every chunk that is kept, as it left them, and at the lane's marks; the next chunk writes
        over them. Of a block that holds none nothing is told.
        """

    def cache_bytes(self, block: int, sizes: Sequence[Sequence[int]]) -> None:
        """Bytes that the block's cache carries on after each chain step, per lane and step."""

    def final(self, lane: int, rows: Tensor, states: Tensor) -> None:
        """States after the final norm [row, feature] of a lane's tokens ``rows`` [row].

        For every stretch of the text, the lanes that others are compared with come first, each with the whole stretch;
        the other lanes follow with pieces that lie within it.
        """

    def logits(self, lane: int, rows: Tensor, logits: Tensor) -> None:
        """Logits [row, vocabulary] of a lane's tokens ``rows`` [row]; the order of calls is that of :meth:`final`."""

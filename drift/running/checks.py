"""What tokens, chunks and planted faults must be before a descent begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel

from drift.errors import ArgumentError, ConfigError
from drift.running.descent.decoders import context_of, has_position_table, text_config
from drift.running.protocols.base import Chunk, Protocol

__all__ = ["check_chunks", "check_planted", "check_tokens"]


def check_tokens(model: PreTrainedModel, tokens: ArrayLike) -> NDArray[np.int64]:
    """Check token ids and return them as int64 [document, token]."""
    if isinstance(tokens, Tensor):
        tokens = tokens.detach().cpu().numpy()
    try:
        ids = np.asarray(tokens)
    except (ValueError, TypeError, OverflowError) as error:  # ragged, or nothing that an array can be made of
        raise ArgumentError(f"tokens cannot be made an array of integers [document, token]: {error}.") from error
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ArgumentError(
            "tokens must be integers [document, token] or [token], and not empty; "
            f"got shape {ids.shape}, dtype {ids.dtype}."
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ConfigError(
            f"tokens hold ids from {ids.min()} to {ids.max()}, but the model's vocabulary has {vocabulary} entries: "
            "they come from another tokenizer."
        )
    return np.ascontiguousarray(ids, dtype=np.int64)


def check_planted(protocol: Protocol, chunks: Sequence[Chunk]) -> None:
    """Refuse an error that is planted where no chain step can see it: it would read as none."""
    steps = max(chunk.step for chunk in chunks) + 1
    if protocol.planted_at is not None and protocol.planted_at >= steps:
        raise ConfigError(
            f"{protocol.label}: the chain has the steps 0 to {steps - 1}, so nothing could be seen of it. Use an "
            "earlier step, or more or smaller chunks."
        )


def check_chunks(model: PreTrainedModel, lanes: Sequence[Sequence[Chunk]], allow_beyond_context: bool) -> None:
    """Refuse prefix tokens that the model does not have and positions it was not made for."""
    vocabulary = text_config(model).vocab_size
    context = context_of(model)
    for chunks in lanes:
        for chunk in chunks:
            if any(not 0 <= token < vocabulary for token in chunk.prefix):
                token = chunk.prefix[0]
                raise ConfigError(f"The prefix token {token} is not in the model's vocabulary of {vocabulary}.")
        end = max(chunk.first_position + len(chunk) for chunk in chunks)
        if context is not None and end > context:
            reached = f"The fold reaches position {end}, beyond the model's context of {context} tokens. "
            if not allow_beyond_context:
                raise ConfigError(f"{reached}Use fewer tokens, or allow_beyond_context to measure there all the same.")
            if has_position_table(model):
                raise ConfigError(f"{reached}It looks positions up in a table that ends there: use fewer tokens.")

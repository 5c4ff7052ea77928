"""The base that llama.cpp's `llama-perplexity --kl-divergence-base FILE` saves.

Little-endian: ``_logits_``; int32 size of a chunk, of the vocabulary, number of chunks; int32 tokens of all chunks;
then per chunk and per position from its middle on (the last one left out) a row of 16-bit words: float32 `scale`,
float32 `least`, then a code per token. A log-probability is ``scale * code + least``; code 0 says "that or less", no
more than 16 nats below the likeliest. Rows are padded to an even number of codes. Position `i` of a chunk
predicts token `i + 1`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift._bounds import MOST_DOCUMENTS, MOST_TOKENS, MOST_VOCABULARY
from drift._outside import OutsideError, regular
from drift.reading.logits.importers.base import Importer, Source, refused
from drift.reading.logits.lanes import Sequence
from drift.reading.statistics.arrays import Float

__all__ = ["LLAMA_CPP", "MAGIC"]

MAGIC = b"_logits_"
_HEADER = struct.Struct("<8siii")
_WORDS = 4  # of a row, in front of its codes: two float32


@dataclass(frozen=True)
class CodedRows:
    """Distributions in 16-bit codes."""

    words: NDArray
    """uint16 [position, word]."""
    vocabulary: int
    partial: bool = True

    @property
    def positions(self) -> int:
        """Number of positions."""
        return len(self.words)

    def block(self, start: int, stop: int) -> Float:
        """Return log-probabilities of some positions; minus infinity where the code says "or less"."""
        words = self.words[start:stop]
        scale, least = _front(words)
        codes = words[:, _WORDS : _WORDS + self.vocabulary]
        # A row without spread has the scale 0, and all of its codes are 0.
        known = (codes > 0) | (scale == 0)[:, None]
        with np.errstate(invalid="ignore"):  # a spoilt scale is found as what is not finite
            return np.where(known, scale[:, None] * codes + least[:, None], -np.inf)

    def bounded(self, tokens: NDArray) -> tuple[Float, NDArray[np.bool_]]:
        """Return log-probabilities of one token per position, or their bounds, and which are bounds."""
        scale, least = _front(self.words)
        codes = self.words[np.arange(self.positions), _WORDS + tokens]
        with np.errstate(invalid="ignore"):
            return scale * codes + least, (codes == 0) & (scale != 0)


def _front(words: NDArray) -> tuple[Float, Float]:
    """Scale and smallest log-probability of rows."""
    with np.errstate(invalid="ignore"):  # NaN of the kind that signals
        scale, least = np.ascontiguousarray(words[:, :_WORDS]).view("<f4").astype(np.float64).T
    return scale, least


def _read(source: Source) -> tuple[list[Sequence], list[str]]:
    try:
        with regular(source.path) as (stream, size):
            start = stream.read(_HEADER.size)
            if len(start) < _HEADER.size:
                raise refused(source.path, "it was cut off within its header")
            _, context, vocabulary, chunks = _HEADER.unpack(start)
            if not (2 < context <= MOST_TOKENS and 0 < vocabulary <= MOST_VOCABULARY and 0 < chunks <= MOST_DOCUMENTS):
                raise refused(
                    source.path, f"its header names chunks of {context} tokens, a vocabulary of {vocabulary} and "
                    f"{chunks} chunks"
                )  # fmt: skip
            rows, width = context - 1 - context // 2, 2 * ((vocabulary + 1) // 2) + _WORDS
            due = _HEADER.size + 4 * context * chunks + 2 * rows * width * chunks
            if size < due:
                raise refused(source.path, f"it was cut off: {due:,} bytes are due, {size:,} are there")
            raw = stream.read(4 * context * chunks)
    except OutsideError as error:
        raise refused(source.path, error) from error
    tokens = np.frombuffer(raw, dtype="<i4").reshape(chunks, context)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise refused(source.path, f"a token is {int(tokens.max()):,} or below 0, of a vocabulary of {vocabulary:,}")
    place = _HEADER.size + 4 * context * chunks
    words = np.memmap(source.path, dtype="<u2", mode="r", offset=place, shape=(chunks, rows, width))
    return _sequences(words, tokens, context // 2, vocabulary)


def _sequences(words: NDArray, tokens: NDArray, first: int, vocabulary: int) -> tuple[list[Sequence], list[str]]:
    found, bounds, step = [], 0, 0.0
    for part, text in zip(words, tokens, strict=True):
        scales = _front(part)[0]
        finest = float(scales.max(initial=0.0)) if np.isfinite(scales).all() else 0.0
        rows = CodedRows(part, vocabulary)
        targets = text[first + 1 :].astype(np.int64)
        chosen, bounded = rows.bounded(targets)
        bounds, step = bounds + int(bounded.sum()), max(step, finest)
        found.append(Sequence(targets, chosen, np.ones(len(targets), dtype=bool), rows=rows))
    notes = [f"log-probabilities are stored in steps of up to {step:.2g}, and only the second half of each chunk"]
    if bounds:
        notes.append(f"{bounds:,} chosen tokens are less likely than it can hold; their bound stands for them")
    return found, notes


def _knows(source: Source) -> bool:
    return source.head.startswith(MAGIC)


LLAMA_CPP = Importer("llama.cpp's saved base", _knows, _read)

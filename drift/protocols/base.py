"""What a protocol is: a rule for cutting a text into chunks that share one growing KV cache.

A protocol says what differs from appending chunk after chunk; the descent does the rest. It is pure Python: token ids
and positions in, chunks out; no tensor and no model is touched here.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

from drift.errors import ConfigError

__all__ = ["Chunk", "Protocol"]


@dataclass(frozen=True)
class Chunk:
    """One chain step: a stretch of the text, and how it is presented to the model.

    Attributes
    ----------
    start, stop : int
        The chunk covers the tokens ``text[start:stop]``.
    prefix : tuple of int
        Token ids put in front of the chunk. They take positions and stay in the cache; what the model says about
        them is not compared.
    first_position : int
        Position id of the first token of the chunk, prefix included; the others follow without gaps.
    """

    start: int
    stop: int
    prefix: tuple[int, ...] = ()
    first_position: int = 0

    def __len__(self) -> int:
        """Number of tokens that the model sees: prefix and text."""
        return len(self.prefix) + self.stop - self.start


@dataclass(frozen=True)
class Protocol(ABC):
    """One reading of the fold.

    A subclass lives in a module of its own in this package, sets ``name``, and overrides what differs from appending:
    :meth:`prefix` or :meth:`first_position`. Its dataclass fields are its options, written in parentheses in a label:
    ``reprime(token=1)``.
    """

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """The protocol's canonical name, with the options that were set, as it is written in configurations."""
        options = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{self.name}({','.join(options)})" if options else self.name

    def prefix(self, step: int) -> tuple[int, ...]:
        """Token ids put in front of the chunk of chain step ``step``."""
        return ()

    def first_position(self, step: int, cached: int) -> int:
        """Position id of the first token of a chunk when ``cached`` tokens have gone through before it."""
        return cached

    def bind(self, bos_token_id: Callable[[], int | None]) -> Protocol:
        """Return the protocol with everything it needs from the tokenizer filled in.

        Parameters
        ----------
        bos_token_id : callable
            Asked for the tokenizer's beginning-of-sequence token only if the protocol needs one.

        Raises
        ------
        ConfigError
            If the protocol needs a token that the tokenizer does not have and that was not named.
        """
        return self

    def chunks(self, tokens: int, chunk_size: int) -> tuple[Chunk, ...]:
        """Cut a text of ``tokens`` tokens; the last chunk holds what is left.

        Raises
        ------
        ConfigError
            If the chunk size is not between 1 and the length of the text.
        """
        if not 1 <= chunk_size <= tokens:
            raise ConfigError(
                f"chunk_size is {chunk_size}, but a text of {tokens} tokens can only be cut into chunks "
                f"of 1 to {tokens} tokens."
            )
        chunks: list[Chunk] = []
        cached = 0
        for step, start in enumerate(range(0, tokens, chunk_size)):
            chunk = Chunk(start, min(start + chunk_size, tokens), self.prefix(step), self.first_position(step, cached))
            chunks.append(chunk)
            cached += len(chunk)
        return tuple(chunks)

"""`reprime`: every chunk after the first begins with a BOS token of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from drift.errors import ConfigError
from drift.running.protocols.base import Protocol


@dataclass(frozen=True)
class Reprime(Protocol):
    """Every chunk after the first is given a beginning-of-sequence token in front.

    A tokenizer that adds BOS to whatever it is given produces this by accident when a text is tokenized chunk by
    chunk. The token takes a position and stays in the cache; its own outputs are not compared. Each one offers the
    chunk a fresh attention sink, which is a different function from full attention.

    Attributes
    ----------
    token : int or None
        The token id to put in front. None takes the tokenizer's BOS token.
    """

    name: ClassVar[str] = "reprime"
    summary: ClassVar[str] = "every chunk after the first gets a beginning-of-sequence token in front"

    token: int | None = None

    def prefix(self, step: int) -> tuple[int, ...]:
        """Return the token, for every chain step but the first."""
        if self.token is None:
            raise ConfigError("reprime does not know which token to put in front: call bind() first.")
        return (self.token,) if step > 0 else ()

    def bind(self, bos_token_id: Callable[[], int | None]) -> Protocol:
        """Fill in the tokenizer's BOS token where no token was named."""
        if self.token is not None:
            return self
        token = bos_token_id()
        if token is None:
            raise ConfigError(
                "The protocol reprime puts a BOS token in front of every chunk, but this tokenizer has none. "
                "Name the token id to use: reprime(token=ID)."
            )
        return replace(self, token=int(token))

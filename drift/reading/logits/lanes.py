"""What a file of logits or log-probabilities holds: sequences of positions, each with what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drift.reading.statistics.arrays import Bool, Float

__all__ = ["NO_TOKEN", "ArrayRows", "Lane", "Rows", "Sequence", "Token", "Top"]

#: A token's number, or its text where an engine tells no number.
Token = int | str
#: Log-probabilities of the likeliest tokens of a position, and of the chosen one; empty where none are known.
Top = Mapping[Token, float]
#: In an array of tokens: the position predicts none that is known.
NO_TOKEN = -1


class Rows(Protocol):
    """Whole distributions of one sequence.

    Attributes
    ----------
    positions, vocabulary : int
    partial : bool
        Whether minus infinity says "less than the file can hold", and not "impossible".
    """

    @property
    def positions(self) -> int:
        """Number of positions."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens that there are."""

    @property
    def partial(self) -> bool:
        """Whether minus infinity is a bound."""

    def block(self, start: int, stop: int) -> Float:
        """Return logits or log-probabilities [position, token] of some positions."""


@dataclass(frozen=True)
class ArrayRows:
    """Logits in an array, perhaps mapped from a file."""

    array: NDArray
    """[position, token]."""
    decode: Callable[[NDArray], NDArray] | None = None
    """Makes numbers of what is stored, where NumPy has no such format."""
    partial: bool = False

    @property
    def positions(self) -> int:
        """Number of positions."""
        return len(self.array)

    @property
    def vocabulary(self) -> int:
        """Number of tokens that there are."""
        return self.array.shape[1]

    def block(self, start: int, stop: int) -> Float:
        """Return some positions as float64."""
        stored = np.asarray(self.array[start:stop])
        with np.errstate(invalid="ignore"):  # NaN of the kind that signals
            return (stored if self.decode is None else self.decode(stored)).astype(np.float64)


@dataclass(frozen=True)
class Sequence:
    """One text, as one lane saw it.

    Attributes
    ----------
    tokens : ndarray of int64 or of str [position], or None
        The token that each position predicts; `NO_TOKEN` where none is known. None: tokens are not told.
    chosen : ndarray of float64 [position], or None
        Its log-probability in nats, where the file gives it; None where it follows from `rows`.
    given : ndarray of bool [position], or None
        Where `chosen` was given: a first token has none.
    rows : Rows or None
        Whole distributions.
    tops : tuple of Top, or None
        The likeliest tokens.
    """

    tokens: NDArray | None
    chosen: Float | None = None
    given: Bool | None = None
    rows: Rows | None = None
    tops: tuple[Top, ...] | None = None

    @property
    def positions(self) -> int:
        """Number of positions."""
        if self.rows is not None:
            return self.rows.positions
        return 0 if self.chosen is None else len(self.chosen)


@dataclass(frozen=True)
class Lane:
    """All sequences of a file.

    Attributes
    ----------
    name : str
        Where they are from.
    form : str
        What the file is, in words.
    sequences : tuple of Sequence
    notes : tuple of str
        What to know of the file.
    """

    name: str
    form: str
    sequences: tuple[Sequence, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def whole(self) -> bool:
        """Whether it has whole distributions."""
        return all(one.rows is not None for one in self.sequences)

    @property
    def positions(self) -> int:
        """Positions of all sequences."""
        return sum(one.positions for one in self.sequences)

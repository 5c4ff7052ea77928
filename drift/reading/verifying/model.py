"""What is found when a cell is held against the same cell, computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from drift.errors import Obstacle

__all__ = ["Agreement", "Comparison", "Level", "Outcome", "Reason", "Verification", "Verified", "Worst"]


class Agreement(Enum):
    """How a recorded cell and the same cell, computed again, go together."""

    SAME_BITS = "same_bits"
    WITHIN_FLOOR = "within_floor"
    DIFFERENT = "different"
    UNDETERMINED = "undetermined"


class Reason(Enum):
    """What decided."""

    BITS = "bits"
    """Every value has the same bits."""
    FLOOR = "floor"
    """No value is further away than the floor allows, and the levels agree."""
    MEASURED = "measured"
    """The states have the same bits, and what is measured of them differs by the rounding of the measures."""
    SHAPE = "shape"
    """Other tokens, steps, layers or documents."""
    COUNT = "count"
    """A number that no rounding bears on."""
    ALTERED = "altered"
    """What was computed from the same states came out in the same bits, and this did not."""
    BEYOND = "beyond"
    """A value is further away than the floor allows."""
    LEVEL = "level"
    """The levels at the end of the network are further apart than another rounding explains."""
    NO_FLOOR = "no_floor"
    """Bits differ, and how far rounding could move them is not known."""
    GENERATED = "generated"
    """The text was generated, and another rounding may choose another token."""


@dataclass(frozen=True)
class Worst:
    """The value that is furthest away.

    Attributes
    ----------
    variable : str
    place : mapping of str to int or float
        ``document``, ``step`` and the other coordinates of the value.
    recorded, recomputed : float
    allowed : float
        How far apart they may be by the floor; 0 where the bits had to be the same.
    """

    variable: str
    place: Mapping[str, int | float]
    recorded: float
    recomputed: float
    allowed: float


@dataclass(frozen=True)
class Level:
    """How the levels of one measure at the end of the network compare.

    Attributes
    ----------
    measure : str
    ratio : float
        Recomputed by recorded, geometric mean over late steps and documents, of amplitudes.
    low, high : float
        Its confidence interval.
    margin : float
        Factor that another rounding explains.
    values : int
    """

    measure: str
    ratio: float
    low: float
    high: float
    margin: float
    values: int

    @property
    def agrees(self) -> bool:
        """Whether some ratio of the interval lies within the margin."""
        return self.low <= self.margin and self.high >= 1 / self.margin


@dataclass(frozen=True)
class Comparison:
    """What became of one cell.

    Attributes
    ----------
    agreement : Agreement
    reason : Reason
    values, other : int
        Values that were compared, and those of them with other bits.
    beyond : int
        Values that are further away than they may be.
    worst : Worst or None
    levels : tuple of Level
    floor : float
        Largest relative L2 of the hidden state that another rounding left; NaN where it was not needed.
    not_compared : tuple of str
        Variables that only one of the two holds.
    unjudged : tuple of str
        Variables with other bits that no bound is known for.
    circumstances : mapping of str to (str, str)
        What the two were computed with, where it differs: recorded, here.
    detail : str
        Which axis has another shape, where one has.
    """

    agreement: Agreement
    reason: Reason
    values: int = 0
    other: int = 0
    beyond: int = 0
    worst: Worst | None = None
    levels: tuple[Level, ...] = ()
    floor: float = float("nan")
    not_compared: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    circumstances: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The comparison as a JSON object; numbers that are not finite become None elsewhere."""
        return {
            **{k: v for k, v in asdict(self).items() if k not in ("agreement", "reason")},
            "agreement": self.agreement.value,
            "reason": self.reason.value,
            "circumstances": {name: list(pair) for name, pair in self.circumstances.items()},
        }


class Outcome(Enum):
    """What is said of a cell."""

    SAME_BITS = "same_bits"
    WITHIN_FLOOR = "within_floor"
    DIFFERENT = "different"
    UNDETERMINED = "undetermined"
    CANNOT = "cannot_be_verified"


@dataclass(frozen=True)
class Verified:
    """One cell of a folder.

    Attributes
    ----------
    file, subject : str
        Name of the file, and what the cell is in words.
    documents : tuple of int
        Documents that were computed again.
    documents_of : int
        How many the cell has.
    comparison : Comparison or None
        None where it could not be computed again.
    obstacle : Obstacle or None
    why : str
        What kept it from that.
    seconds : float
    """

    file: str
    subject: str
    documents: tuple[int, ...] = ()
    documents_of: int = 0
    comparison: Comparison | None = None
    obstacle: Obstacle | None = None
    why: str = ""
    seconds: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """What is said of it; a file that is not what it says itself is different."""
        if self.comparison is not None:
            return Outcome(self.comparison.agreement.value)
        return Outcome.DIFFERENT if self.obstacle is Obstacle.UNSOUND else Outcome.CANNOT


@dataclass(frozen=True)
class Verification:
    """What became of a folder.

    Attributes
    ----------
    folder : str
    cells : int
        How many there are.
    seed : int
        Of the sample.
    results : tuple of Verified
    """

    folder: str
    cells: int
    seed: int
    results: tuple[Verified, ...]

    @property
    def exit(self) -> int:
        """The exit code: 0 all verified, 1 some are different, 3 none is different but not all were verified."""
        outcomes = {result.outcome for result in self.results}
        if Outcome.DIFFERENT in outcomes:
            return 1
        return 3 if outcomes & {Outcome.UNDETERMINED, Outcome.CANNOT} else 0

    def as_dict(self) -> dict[str, Any]:
        """The verification as an object for JSON; numbers may be not finite."""
        counts = Counter(result.outcome for result in self.results)
        return {
            "folder": self.folder,
            "cells": self.cells,
            "seed": self.seed,
            "exit_code": self.exit,
            "counts": {outcome.value: counts[outcome] for outcome in Outcome if counts[outcome]},
            "results": [
                {
                    **{k: v for k, v in asdict(result).items() if k != "comparison"},
                    "outcome": result.outcome.value,
                    "comparison": None if result.comparison is None else result.comparison.as_dict(),
                }
                for result in self.results
            ],
        }

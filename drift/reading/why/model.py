"""What is found about why drift is flat, or is not: numbers and enumerations, no words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from drift.reading.controls.gating import Gate
from drift.reading.excess import Missing
from drift.reading.floor import NoiseResponse, Rounding
from drift.reading.plateau.model import Plateau
from drift.reading.statistics.arrays import Float

__all__ = [
    "Adding",
    "Answer",
    "Chain",
    "Depth",
    "Explained",
    "Level",
    "Meeting",
    "Parts",
    "Position",
    "Profile",
    "Quantity",
    "Responding",
    "Response",
]


class Quantity(Enum):
    """What is followed through the chain and through the network. The value is what legends and tables show."""

    DRIFT = "drift"
    FLOOR = "rounding floor"
    ONE_STEP = "error of one step"
    INHERITED = "inherited part"


class Answer(Enum):
    """Why drift is flat, or that it is not. The value is the name used in JSON."""

    AT_FLOOR = "at_floor"
    ABOVE = "above"
    GROWING = "growing"
    BELOW = "below"
    DIFFERENT = "different"
    UNDETERMINED = "undetermined"
    NO_FLOOR = "no_floor"
    NO_CHAIN = "no_chain"
    CONTROLS = "controls_failed"


class Adding(Enum):
    """What an error that a step makes adds to the one that it inherits.

    Drift in floors at values where a step errs is compared with that at values where it gives the same bits as full
    attention; independent errors would add in squares.
    """

    NOTHING = "nothing"
    PART = "part"
    SQUARES = "squares"
    MORE = "more"
    UNDETERMINED = "undetermined"
    NOT_TESTED = "not_tested"


class Position(Enum):
    """What of the growth of drift the rounding floor shares, over the same steps."""

    FLOOR_TOO = "floor_too"
    FLOOR_UNRESOLVED = "floor_unresolved"
    NONE = "none"
    FALLS = "falls"
    CHAIN = "chain"
    UNDETERMINED = "undetermined"


class Meeting(Enum):
    """Where in the network drift comes to the level of the floor."""

    LATER = "later"
    EVERYWHERE = "everywhere"
    ABOVE = "above"
    BELOW = "below"
    NOT_FINITE = "not_finite"


class Responding(Enum):
    """What becomes of disturbances below one unit roundoff."""

    SATURATED = "saturated"
    SHRINKS = "shrinks"
    NOT_TESTED = "not_tested"


@dataclass(frozen=True)
class Level:
    """A geometric mean over documents with its interval; NaN where it cannot be formed."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Parts:
    """Drift of a chain taken apart by the error that each step makes by itself.

    A *value* is one document at one step. Levels and shares are those past the first quarter of the chain, see
    :func:`drift.reading.statistics.windows.late_start`; counts are over the whole chain.

    Attributes
    ----------
    values, nonfinite : int
        All, and those at which drift or one-step error is NaN or Inf: left out of the rest.
    silent : int
        At which the one-step error is exactly zero and drift is not: all of it is inherited.
    same : int
        At which both are exactly zero.
    smaller : int
        At which drift is smaller than the one-step error: no inherited part adds to that in squares.
    steps, silent_steps, mixed_steps : int
        Steps of the chain; those silent in every document, and those silent in some.
    share : Level
        1 - sum(one-step error squared) / sum(drift squared): mean over documents. What is inherited, were both
        independent.
    inherited, erring, local : Level
        In floors: drift at silent values, drift where the step errs, and the one-step error there.
    ratio : Level
        `erring` / `inherited`, over documents that have both.
    expected : float
        The same, did independent errors add: sqrt(1 + (local / inherited)^2).
    adding : Adding
    """

    values: int
    nonfinite: int
    silent: int
    same: int
    smaller: int
    steps: int
    silent_steps: int
    mixed_steps: int
    share: Level
    inherited: Level
    erring: Level
    local: Level
    ratio: Level
    expected: float
    adding: Adding


@dataclass(frozen=True)
class Profile:
    """Root mean squares of what is followed, along the chain or through the network.

    Attributes
    ----------
    at : ndarray [place]
        Steps counted from 1, or layers (blocks, for what a block caches).
    lines : dict of Quantity to pandas.DataFrame
        ``value``, and ``low`` and ``high`` over documents, one row per place. NaN where nothing is finite, and for the
        inherited part where drift is the smaller one; exactly 0 where all is.
    negative : int
        Places of which the latter holds.
    nonfinite : int
        Values that are NaN or Inf, of all lines.
    """

    at: np.ndarray
    lines: dict[Quantity, pd.DataFrame]
    negative: int
    nonfinite: int

    def values(self, quantity: Quantity) -> Float:
        """Root mean square [place]; NaN where it was not measured."""
        line = self.lines.get(quantity)
        return np.full(len(self.at), math.nan) if line is None else line["value"].to_numpy(dtype=float)


@dataclass(frozen=True)
class Depth:
    """Drift and floor through the network.

    Attributes
    ----------
    meeting : Meeting
    first, reached : int
        The first place that drifts, and the first from which on drift stays within the factor of the floor; -1 where
        there is none.
    first_ratio, last_ratio : float
        Drift / floor at the first one that drifts, and at the last one.
    share_first, share_last : float
        Inherited share of the squares there, NaN without one-step error.
    handed : dict of str to ndarray [block]
        Drift / floor of what each block appends to the cache.
    """

    meeting: Meeting
    first: int
    reached: int
    first_ratio: float
    last_ratio: float
    share_first: float
    share_last: float
    handed: dict[str, Float]


@dataclass(frozen=True)
class Chain:
    """One fold at one precision, and what explains its drift.

    Attributes
    ----------
    ds, one_step : xarray.Dataset
        The cell, and the one of its one-step error; None where there is none.
    lacking : tuple of Missing
        What cannot be formed.
    rounding : Rounding or None
        Where drift stands to its floor.
    growth : dict of Quantity to Plateau
        Verdicts on the amplitudes over the same steps.
    position : Position
    parts : Parts or None
    along : Profile
        Through the chain.
    through : Profile or None
        Through the network; None for a measure without layers.
    depth : Depth or None
    """

    ds: xr.Dataset
    one_step: xr.Dataset | None
    lacking: tuple[Missing, ...]
    rounding: Rounding | None
    growth: dict[Quantity, Plateau]
    position: Position
    parts: Parts | None
    along: Profile
    through: Profile | None
    depth: Depth | None

    @property
    def labels(self) -> dict[str, Any]:
        """Model, precision, protocol, chunk size and size of the cell."""
        plain = {name: self.ds[name].item() for name in ("model", "family", "dtype", "protocol", "chunk_size")}
        return plain | {"documents": self.ds.sizes["document"], "steps": self.ds.sizes["step"]}

    @property
    def name(self) -> str:
        """What sentences call it."""
        return "{model}, {dtype}, chunk {chunk_size}".format(**self.labels)

    @property
    def finite(self) -> bool:
        """Whether every value of its drift is finite."""
        return not self.along.nonfinite


@dataclass(frozen=True)
class Response:
    """How far full attention ends from itself after disturbances of several sizes.

    Attributes
    ----------
    noise : NoiseResponse
        Sizes and levels.
    levels : tuple of float
        In units of the response to one unit roundoff, which is a draw of the floor; NaN where that was not measured,
        exactly 0 where no bit differs.
    verdict : Responding
    """

    noise: NoiseResponse
    levels: tuple[float, ...]
    verdict: Responding


@dataclass(frozen=True)
class Explained:
    """All that a sweep says on why the drift of one fold is flat, or is not.

    Attributes
    ----------
    protocol, measure, layer
        What was asked for.
    answer : Answer
    chains : sequence of Chain
        One per model and precision: that with most to explain it by, then the longest, then of most documents.
    others : int
        Further chains of the protocol.
    there : sequence of str
        Folds of the sweep.
    responses : sequence of Response
    walks : sequence of (dict, Rounding)
        Chains of the same fold that were made to accumulate, and where they stand to the floor.
    gate : Gate
    """

    protocol: str
    measure: str
    layer: int | str
    answer: Answer
    chains: Sequence[Chain]
    others: int
    there: Sequence[str]
    responses: Sequence[Response]
    walks: Sequence[tuple[dict[str, Any], Rounding]]
    gate: Gate = field(default_factory=Gate)

"""What a probe of a server comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from drift.dataset.probes import Kind, Probe, View
from drift.reading.logits.model import Decision, Verdict

__all__ = ["CACHED", "FLIP", "KERNELS", "SHARE", "Found", "Pair", "Parting", "Why"]

#: A batch runs other kernels than a single request, whose rounding neither repeats nor a cache show: so many times as
#: far as these it may be before it is called beyond.
KERNELS = 10.0
#: Floors must differ from the cold lane at so large a share of the positions that are judged, at least.
SHARE = 0.25
#: A lane was computed anew where at most so large a share of its prompts came from a cache.
CACHED = 0.5
#: Texts may part where the margin is at most so many times what the floor moves: both tokens move.
FLIP = 2.0


class Why(StrEnum):
    """Why a verdict on a pair is what it is; the value is the name used in JSON."""

    SAME = "same_bits"
    FLOOR = "floor"
    """Held against another lane."""
    MODEL = "model"
    """Held against how far the cold lane is from the model."""
    NONFINITE = "nonfinite"
    PARTED = "parted"
    """The texts part where nothing was near a tie."""
    NO_FLOOR = "no_floor"
    """No other lane tells how far rounding moves."""
    NOT_CACHED = "not_cached"
    """Nothing of its prompts came from a cache."""
    NOT_COLD = "not_cold"
    """The cold lane came from a cache."""


@dataclass(frozen=True)
class Parting:
    """Where the text of a lane goes on otherwise than that of the cold one.

    Attributes
    ----------
    prompt, position : int
    margin : float
        By how much the cold lane preferred its own token, nats; NaN where it does not tell.
    """

    prompt: int
    position: int
    margin: float


@dataclass(frozen=True)
class Pair:
    """The cold lane and another.

    Attributes
    ----------
    view : View
    lane : str
    kind : Kind
    verdict : Verdict
    why : Why
    floor : str
        Name of the lane that it was held against; empty where there was none.
    comparison : Decision or None
        Over the tokens that both have in common; None where there are none.
    partings : tuple of Parting
    moved : float
        The furthest that the floor moves a log-probability or a margin, nats; NaN without a floor.
    cached : float or None
        Share of its prompts that came from a cache, where the server tells.
    """

    view: View
    lane: str
    kind: Kind
    verdict: Verdict
    why: Why
    floor: str = ""
    comparison: Decision | None = None
    partings: tuple[Parting, ...] = ()
    moved: float = math.nan
    cached: float | None = None

    @property
    def positions(self) -> int:
        """Number of tokens that were compared."""
        return 0 if self.comparison is None else len(self.comparison.pairs)

    @property
    def differing(self) -> float:
        """Share of positions that are not the same bits; NaN where none was compared."""
        return math.nan if self.comparison is None else float((~self.comparison.pairs.same).mean())

    @property
    def sizes(self) -> np.ndarray:
        """Sizes of the changes of log-probabilities, nats; float64 [position], NaN left out."""
        if self.comparison is None:
            return np.array([])
        change = np.abs(self.comparison.pairs.change)
        return change[~np.isnan(change)]


@dataclass(frozen=True)
class Found:
    """A probe, judged.

    Attributes
    ----------
    probe : Probe
    pairs : tuple of Pair
    """

    probe: Probe
    pairs: tuple[Pair, ...]

    def having(self, verdict: Verdict) -> tuple[Pair, ...]:
        """Pairs of a verdict."""
        return tuple(pair for pair in self.pairs if pair.verdict is verdict)

    @property
    def verdict(self) -> Verdict:
        """Of all together: the worst."""
        for verdict in (Verdict.BEYOND, Verdict.UNDETERMINED, Verdict.WITHIN):
            if self.having(verdict):
                return verdict
        return Verdict.SAME if self.pairs else Verdict.UNDETERMINED

    @property
    def exit_code(self) -> int:
        """0 all are the same bits or within a floor, 1 some are beyond, 3 some are undetermined."""
        return {Verdict.SAME: 0, Verdict.WITHIN: 0, Verdict.BEYOND: 1, Verdict.UNDETERMINED: 3}[self.verdict]

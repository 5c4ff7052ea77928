"""What a verdict against the rounding floor is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from drift.dataset.rungs import RUNGS
from drift.reading.plateau.model import Plateau
from drift.reading.statistics.slope import Slope
from drift.reading.wording.numbers import plain

__all__ = ["FACTOR", "FOREIGN", "Compared", "Contradiction", "Rounding", "Standing", "StandingReason"]

#: A level within this factor of the floor, either way, is at the floor.
#:
#: Let full attention be off the exact result by an error of size e. The floor is the distance of two such results whose
#: errors are independent, sqrt(2) e. A fold that is off by r e, independently, is sqrt(1 + r^2) e from full attention:
#: sqrt((1 + r^2) / 2) floors. That is 1 for a fold as good as full attention (r = 1), 1 / sqrt(2) for one that makes no
#: error at all (r = 0), so that nothing independent lies lower, and sqrt(2) for r = sqrt(3). The factor is the range
#: from no error of the fold's own to as far above 1 as that is below. A second rounding that nobody calls wrong lies
#: well within: with another attention kernel, full attention is 0.90 to 1.21 times as far from itself as `append` is
#: (the floor controls of data/evidence/deep, three families, bf16 and fp32).
FACTOR = math.sqrt(2)
_BITS = sorted({rung.unit_roundoff for rung in RUNGS.values()}, reverse=True)
#: Nearer to the floor of the next finer precision than to its own, were there two neighbours as close as any are: a
#: floor that was not measured in the arithmetic of the drift.
FOREIGN = 1 / math.sqrt(min(a / b for a, b in itertools.pairwise(_BITS)))


class Standing(Enum):
    """How drift stands to the rounding floor. The value is the name used in JSON."""

    AT_FLOOR = "at_floor"
    ABOVE = "above"
    GROWING = "growing"
    BELOW = "below"
    UNDETERMINED = "undetermined"


class StandingReason(Enum):
    """Why it is undetermined. The value is what tables and JSON show."""

    NONFINITE = "NaN or Inf"
    ZEROS = "exactly zero too often: there is no level"
    TOO_SHORT = "too few steps"
    LEVEL = "the level is too near the edge of what is at the floor"
    GROWTH = "whether it grows against the floor is undetermined"
    DECAYING = "it falls against the floor"
    CONTROLS = "controls of the instrument failed"


@dataclass(frozen=True)
class Rounding:
    """The verdict on one fold at one precision.

    Attributes
    ----------
    verdict : Standing
        At the floor: the interval of the level lies within `factor` of 1 (two one-sided tests) and the excess is a
        plateau. Above: the interval lies above; its growth is told beside it. Growing: the excess grows beyond the
        margin. Below: the interval lies below.
    reason : StandingReason or None
        Why it is undetermined.
    explanation : str
        The verdict in a sentence, with its figures.
    factor : float
    growth : Plateau
        The verdict on the excess as a curve; its level and interval are in floors.
    """

    verdict: Standing
    reason: StandingReason | None
    explanation: str
    factor: float
    growth: Plateau

    def __str__(self) -> str:
        return self.explanation

    @property
    def is_rounding(self) -> bool:
        """Whether it was shown that drift is rounding; False says that it was not, for whatever reason."""
        return self.verdict is Standing.AT_FLOOR

    @property
    def level(self) -> float:
        """Drift in floors: geometric mean over documents and steps of the judging window."""
        return self.growth.level

    @property
    def level_interval(self) -> tuple[float, float]:
        """Its interval, of coverage 1 - 2 :data:`~drift.reading.statistics.intervals.LEVEL_ALPHA`."""
        return self.growth.level_interval

    @property
    def is_foreign(self) -> bool:
        """Whether the floor cannot be of the arithmetic that made the drift."""
        return self.verdict is Standing.BELOW and self.level < FOREIGN

    def without_verdict(self, failed: Sequence[str]) -> Rounding:
        """Return the estimates alone, controls of the instrument having failed."""
        growth = self.growth.without_verdict(failed)
        return replace(
            self,
            verdict=Standing.UNDETERMINED,
            reason=StandingReason.CONTROLS,
            explanation=growth.explanation,
            growth=growth,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        p = self.growth
        return plain(
            {
                "verdict": self.verdict,
                "reason": self.reason,
                "is_rounding": self.is_rounding,
                "level": self.level,
                "level_interval": self.level_interval,
                "factor": self.factor,
                "growth_verdict": p.verdict,
                "growth_reason": p.reason,
                "growth_per_doubling": p.growth_per_doubling,
                "growth_interval": p.growth_interval,
                "documents": p.documents,
                "steps": p.steps,
                "documents_needed": p.documents_needed,
                "steps_needed": p.steps_needed,
                "caveats": p.caveats,
                "explanation": self.explanation,
            }
        )


class Contradiction(Enum):
    """How the floor contradicts the ladder. The value is the name used in JSON."""

    MORE_THAN_ROUNDING = "more_than_rounding"
    NO_MORE_THAN_ROUNDING = "no_more_than_rounding"
    FOREIGN_FLOOR = "foreign_floor"


@dataclass(frozen=True)
class Compared:
    """Both verdicts on one fold.

    Attributes
    ----------
    labels : dict
        As of :class:`drift.reading.ladder.judging.Ladder`.
    ladder : Slope
        Over all precisions.
    floors : dict of str to Rounding
        By precision, coarse first; of those that have a floor.
    contradiction : Contradiction or None
    words : str
        Both in a sentence.
    """

    labels: dict[str, Any]
    ladder: Slope
    floors: dict[str, Rounding]
    contradiction: Contradiction | None
    words: str

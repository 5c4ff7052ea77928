"""What a diagnosis consists of: verdict, cause, entry point, evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from drift.reading.diagnose.compare import Comparison
from drift.reading.diagnose.envelope import Envelope, Roundoff
from drift.reading.diagnose.floors import Excess
from drift.reading.diagnose.tensors import Place

__all__ = ["Cause", "Diagnosis", "Entry", "Evidence", "Finding", "Verdict"]


class Verdict(StrEnum):
    """What two dumps turned out to be."""

    SAME = "same_bits"
    ROUNDING = "rounding"
    NARROWER = "narrower_storage"
    STRUCTURAL = "structural"
    UNDETERMINED = "undetermined"

    @property
    def sentence(self) -> str:
        """The verdict as a sentence."""
        return {
            Verdict.SAME: "The lanes hold the same bits.",
            Verdict.ROUNDING: "Rounding explains every difference that was found.",
            Verdict.NARROWER: "One lane stores numbers in fewer bits than the other, and that explains the difference.",
            Verdict.STRUCTURAL: "The lanes compute different things: rounding cannot explain the difference.",
            Verdict.UNDETERMINED: "Rounding or bug: these dumps cannot tell.",
        }[self]


class Cause(StrEnum):
    """What is behind a difference that is no rounding."""

    NONE = "none"
    POSITION_OFFSET = "position_offset"
    ROTATION = "rotation"
    STALE_CACHE = "stale_cache"
    SWAPPED_CHUNK = "swapped_chunk"
    OTHER_TOKENS = "other_tokens"
    NARROWER_STORAGE = "narrower_storage"
    NONFINITE = "nonfinite"
    OTHER = "other"


@dataclass(frozen=True)
class Evidence:
    """One finding: a sentence, and its numbers."""

    text: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """Where the difference enters.

    Attributes
    ----------
    place : Place
        Kind, and layer or block.
    step_a, step_b : int
        Chain step in each lane.
    start, stop : int
        Tokens.
    """

    place: Place
    step_a: int
    step_b: int
    start: int
    stop: int


@dataclass
class Diagnosis:
    """Verdict, cause, entry point and evidence.

    What is `missing` of one lane is said before all else. `could_hide` is the relative size of a bug that would read as
    rounding; None where that was not asked. `floors` are the measured ones, and `excess` is what the pair is against
    them.
    """

    verdict: Verdict
    cause: Cause
    reason: str
    entry: Entry | None
    evidence: list[Evidence]
    notes: list[str]
    comparison: Comparison
    roundoff: Roundoff
    envelopes: dict[Place, Envelope]
    cause_text: str = ""
    missing: list[str] = field(default_factory=list)
    could_hide: float | None = None
    floors: list[Comparison] = field(default_factory=list)
    excess: list[Excess] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 same bits or rounding, 1 structural or narrower storage, 3 undetermined."""
        if self.verdict in (Verdict.SAME, Verdict.ROUNDING):
            return 0
        return 3 if self.verdict is Verdict.UNDETERMINED else 1


@dataclass
class Finding:
    """A place beyond its envelope.

    Attributes
    ----------
    segment : int
        Segment of the finer cut.
    place : Place
        Where.
    level : str
        ``structural``, ``doubt`` or ``lone``.
    tokens : (int, int)
        First token beyond it, and the one after the last.
    ratio : float
        Difference over envelope.
    cause, evidence, cause_text
        As in :class:`Diagnosis`.
    """

    segment: int
    place: Place
    level: str
    tokens: tuple[int, int]
    ratio: float
    cause: Cause = Cause.OTHER
    evidence: list[Evidence] = field(default_factory=list)
    cause_text: str = ""

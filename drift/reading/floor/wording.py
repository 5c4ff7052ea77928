"""Verdicts against the rounding floor in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drift.reading.floor.model import FACTOR, FOREIGN, Contradiction, Rounding, Standing, StandingReason
from drift.reading.plateau.model import Plateau, Verdict
from drift.reading.statistics.intervals import LEVEL_ALPHA
from drift.reading.statistics.slope import Slope
from drift.reading.wording.numbers import coverage, number, range_words
from drift.reading.wording.verdicts import SCALING_WORDS

__all__ = ["STANDING_WORDS", "compared_words", "explain", "headline", "method", "standing_words"]

STANDING_WORDS = {
    Standing.AT_FLOOR: "at the floor: drift is rounding",
    Standing.ABOVE: "above the floor: drift is more than rounding",
    Standing.GROWING: "growing away from the floor",
    Standing.BELOW: "below its floor",
    Standing.UNDETERMINED: "undetermined: these data do not decide",
}
_GROWTH = {
    Verdict.GROWING: "growing against it",
    Verdict.DECAYING: "falling against it",
    Verdict.UNDETERMINED: "whether it grows against it is undetermined",
}
_WITHOUT_LEVEL = (StandingReason.NONFINITE, StandingReason.ZEROS, StandingReason.TOO_SHORT)
_BELOW_FOREIGN = "the floor is not of this arithmetic"
_BELOW = "the fold rounds less than the disturbance of the floor does, or shares its roundings with full attention"

_WHY = {
    Contradiction.MORE_THAN_ROUNDING: "drift that is rounding cannot be more than the floor",
    Contradiction.NO_MORE_THAN_ROUNDING: "drift that does not shrink with the unit roundoff cannot stay at the floor, "
    "which does",
    Contradiction.FOREIGN_FLOOR: "the floor was not measured in the arithmetic of the drift",
}


def explain(verdict: Standing, reason: StandingReason | None, level: float, growth: Plateau) -> str:
    """Sentence of one verdict."""
    low, high = (number(end, 3) for end in growth.level_interval)
    size = f"{number(level, 3)} floors ({coverage(LEVEL_ALPHA)} interval {low} to {high})"
    trend = f"{_GROWTH.get(growth.verdict, 'flat against it')}, {growth.growth_words}"
    if reason in _WITHOUT_LEVEL:
        return growth.explanation
    words = STANDING_WORDS[verdict]
    if verdict is Standing.BELOW:
        words += f": {_BELOW_FOREIGN if level < FOREIGN else _BELOW}"
    if reason is not None:
        words = f"{Standing.UNDETERMINED.value} ({reason.value})"
    text = f"{words}; drift is {size}, {trend}, {growth.steps - 1} transitions, {growth.documents} documents."
    if reason is StandingReason.GROWTH:
        text += f" Of its growth: {growth.explanation}"
    return text


def headline(fold: str, found: Sequence[Rounding]) -> str:
    """Say of the chains of one fold how they stand to the floor, and how many floors their drift is."""
    kinds = [one.verdict for one in found]
    said: list[str] = []
    for kind in sorted(dict.fromkeys(kinds), key=lambda kind: kind is Standing.UNDETERMINED):  # what is decided first
        count = kinds.count(kind)
        share = f"all {count} chains" if count == len(kinds) else f"{count} of {len(kinds)}{' chains' * (not said)}"
        said.append(f"{f'{share} ' if len(kinds) > 1 else ''}{STANDING_WORDS[kind]}")
    return f"{fold}: {'; '.join(said)} ({range_words(one.level for one in found)} floors)"


def standing_words(found: Rounding) -> str:
    """Say in short where drift stands to its floor, and by how much."""
    if found.reason in _WITHOUT_LEVEL:
        return "No level in floors"
    low, high = (number(end, 3) for end in found.level_interval)
    verdict = (
        STANDING_WORDS[found.verdict] if found.reason is None else f"undetermined against it: {found.reason.value}"
    )
    return f"In floors {number(found.level, 3)} ({coverage(LEVEL_ALPHA)} interval {low} to {high}): {verdict}"


def compared_words(
    labels: Mapping[str, Any], ladder: Slope, floors: Mapping[str, Rounding], contradiction: Contradiction | None
) -> str:
    """Say both verdicts on a fold, and what does not go together."""
    fold = "{protocol}, {model}, chunk {chunk_size}".format(**labels)
    by_dtype = [
        f"{dtype} {STANDING_WORDS[one.verdict]} ({number(one.level, 3)} floors)" for dtype, one in floors.items()
    ]
    text = f"{fold}: the ladder says {SCALING_WORDS[ladder.verdict]} (slope {ladder.interval.value:.3f})"
    text += f"; the floor says {'; '.join(by_dtype)}"
    why = _WHY[contradiction] if contradiction else ""
    return f"{text}{': ' * bool(why)}{why}."


def method() -> str:
    """Say in a paragraph how drift is held against its floor."""
    return (
        "The floor is how far full attention is from itself, over the same tokens, when its embeddings are multiplied "
        "by 1 + u g, u the unit roundoff of the precision and g standard normal, and rounded: another rounding of the "
        f"same computation. **At the floor**: the whole {coverage(LEVEL_ALPHA)} interval of drift / floor lies within "
        f"a factor {FACTOR:.3g} of 1 (two one-sided tests at level {LEVEL_ALPHA:g}), and drift / floor is a plateau. A "
        f"fold without any rounding error would be at {1 / FACTOR:.2g}, one as good as full attention at 1. **Above**: "
        "the interval lies above. **Growing**: drift / floor grows beyond the margin. **Below**: the interval lies "
        f"below; below {FOREIGN:.2g} the floor is not of this arithmetic."
    )

"""Words of captions, made of what was drawn and of the constants that cut it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from drift.reading.statistics import windows
from drift.reading.statistics.slope import ScalingReason, Slope
from drift.reading.wording.windows import judged_words, late_rule, late_words

__all__ = ["BAND", "chosen_size", "judged_of", "late_of", "several_rungs"]

BAND = "Lines: geometric mean over documents; bands: smallest to largest document."


def late_of(steps: Iterable[int]) -> str:
    """Say what is late of chains of these numbers of steps: ``past the first quarter of the chain``.

    The rule for short chains is told only where one of them is cut by it.
    """
    return f"{late_words()} of the chain" if all(map(_cut_by_share, steps)) else late_rule()


def judged_of(steps: Iterable[int]) -> str:
    """Name the judging window of chains of these numbers of steps: ``the last three quarters of the chain``."""
    return judged_words() if all(map(_cut_by_share, steps)) else late_rule()


def _cut_by_share(steps: int) -> bool:
    return windows.late_start(steps) == math.ceil(windows.WINDOWS[-1] * steps)


def chosen_size(chunk_size: int | None) -> str:
    """Say which chunk size is drawn, as :func:`drift.reading.figures.style.smallest_chunks` chooses it."""
    return "Smallest chunk size of each model and protocol." if chunk_size is None else f"Chunk size {chunk_size}."


def several_rungs(found: Sequence[Slope]) -> list[Slope]:
    """Keep the slopes that a title speaks of: what was run at one precision takes nothing from what was at several."""
    return [s for s in found if s.reason is not ScalingReason.ONE_RUNG] or list(found)

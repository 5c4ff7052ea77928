"""What could hide in a pair's rounding, and what would decide it."""

from __future__ import annotations

import numpy as np

from drift.reading.diagnose.contrasts import (
    FACTOR,
    RATE,
    STANDS_OUT,
    Boundary,
    Jump,
    Start,
    boundary,
    jump,
    start,
)
from drift.reading.diagnose.model import Cause, Diagnosis, Evidence, Verdict
from drift.reading.diagnose.naming import DOUBT, entry_of, step_words
from drift.reading.diagnose.tensors import Place

__all__ = ["HIDES", "hidden_size", "nothing_hides", "structural"]

HIDES = 0.05
"""A bug that changes the tokens of a place by this much of their norm must not pass for rounding."""


def hidden_size(diagnosis: Diagnosis) -> float:
    """The largest relative change of a place's tokens that would read as rounding, of places where the lanes differ."""
    sizes = [
        DOUBT * float(np.nanmedian(envelope.bound))
        for place, envelope in diagnosis.envelopes.items()
        if diagnosis.comparison.profiles[place].differing and np.isfinite(envelope.bound).any()
    ]
    return max(sizes, default=0.0)


def nothing_hides(diagnosis: Diagnosis) -> None:
    """Take back a verdict of rounding in which a bug of `HIDES` would fit, unless the lanes' own contrasts find one."""
    if diagnosis.verdict is not Verdict.ROUNDING:
        return
    diagnosis.could_hide = hidden_size(diagnosis)
    if diagnosis.could_hide <= HIDES:
        return
    found = diagnosis.comparison
    at_ends = boundary(found, diagnosis.roundoff.value)
    # Where a floor was measured it tells more than the pair itself: what a text does to rounding it does to both.
    entering = None if diagnosis.floors else jump(found, diagnosis.roundoff.value)
    if at_ends is not None:
        structural(diagnosis, at_ends.place, at_ends.token, _boundary_words(diagnosis, at_ends))
    elif entering is not None:
        structural(diagnosis, entering.entry, entering.token, _jump_words(diagnosis, entering))
    else:
        begun = start(found, {place: envelope.incoming for place, envelope in diagnosis.envelopes.items()})
        _undetermined(diagnosis, begun)


def structural(diagnosis: Diagnosis, place: Place, token: int, text: str) -> None:
    """Call a pair structural, from a token of a place on, for a reason that names no cause."""
    found = diagnosis.comparison
    stop = found.segments[found.segment_of(token)][1]
    diagnosis.verdict, diagnosis.cause, diagnosis.cause_text = Verdict.STRUCTURAL, Cause.OTHER, text
    diagnosis.entry = entry_of(found, place, (token, stop))


def _undetermined(diagnosis: Diagnosis, begun: Start | None) -> None:
    found = diagnosis.comparison
    # That some bits differ somewhere first says nothing of where a bug is.
    diagnosis.verdict, diagnosis.entry, suspect = Verdict.UNDETERMINED, None, ""
    if begun is not None:
        stop = found.segments[found.segment_of(begun.token)][1]
        diagnosis.entry = entry_of(found, begun.place, (begun.token, stop))
        text = (
            f"{_capital(str(begun.place))} is the same bits before step {step_words(found, begun.token)} and not from "
            "then on, although all that it reads is the same bits throughout"
        )
        levels = ", ".join(f"{value:.2g}" for value in begun.levels)
        diagnosis.evidence.insert(
            0,
            Evidence(
                f"{text} (relative L2, one per stretch of the text: {levels}). A bug that enters does that, and so "
                f"does "
                "a kernel that is chosen by length.",
                {"levels": list(begun.levels), "token": begun.token},
            ),
        )
        suspect = f". Look there first: {text[0].lower()}{text[1:]}"
    diagnosis.reason = (
        f"rounding explains every difference, but a bug that changes the tokens of a place by up to "
        f"{diagnosis.could_hide:.2g} of their norm would hide in it. To decide, dump both lanes in fp32 and compare "
        "those (or add them: --other-precision A2 B2), or measure the rounding: A run again in other, equally right "
        f"ways (--floor C1 C2){suspect}"
    )


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _jump_words(diagnosis: Diagnosis, found: Jump) -> str:
    step = step_words(diagnosis.comparison, found.token)
    low, high = found.here
    was = "was the same bits" if low == 0 else f"differed by {low:.2g}"
    diagnosis.evidence.insert(
        0,
        Evidence(
            f"From step {step} on {found.seen} differs by {found.after:.2g} and before by {found.before:.2g}: "
            f"{found.score:.3g} standard errors. Clean steps do that in fewer than 1 of {1 / RATE:.0f} pairs, and not "
            f"by "
            f"a factor of {FACTOR:g}.",
            {"before": found.before, "after": found.after, "standard_errors": found.score},
        ),
    )
    diagnosis.evidence.insert(
        1,
        Evidence(
            f"{_capital(str(found.entry))} is the first place that grows as well: before step {step} it {was}, then it "
            f"differs by {high:.2g}.",
            {"before_at_entry": low, "after_at_entry": high},
        ),
    )
    return (
        f"a difference that enters at step {step}: rounding is the same before and after. What a step reads of the "
        f"cache "
        "(a mask, a slot, a row that is missing or stale), or what changes with the length"
    )


def _boundary_words(diagnosis: Diagnosis, found: Boundary) -> str:
    which = "last" if found.last else "first"
    usual = f"{found.ratio:.3g} times as much as" if found.ratio < 1e6 else "and hardly any of"
    diagnosis.evidence.insert(
        0,
        Evidence(
            f"At {found.place} the {which} token of the median chunk differs {usual} the others (of {found.chunks} "
            f"chunks; {STANDS_OUT:g} times would be let pass). Were tokens alike, their ranks would be so in one of "
            f"{1 / max(found.chance, 1e-300):.2g} pairs.",
            {"ratio": found.ratio, "chunks": found.chunks, "chance": found.chance},
        ),
    )
    return (
        f"the {which} tokens of the chunks are computed otherwise: a mask, a position or a slot at the chunk's boundary"
    )

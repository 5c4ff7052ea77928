"""How far each lane reaches: a run that ended early agrees with all that it still computed."""

from __future__ import annotations

from dataclasses import dataclass

from drift.reading.diagnose.compare import Comparison
from drift.reading.diagnose.tensors import Dump, Place

__all__ = ["Shortfall", "absent", "shortfalls"]

_STACKED = ("hidden", "key", "value")
_LAST = ("final", "logits")


@dataclass(frozen=True)
class Shortfall:
    """Where a lane ends although the other goes on.

    A kind of tensor that a lane has none of was not asked for, and is no shortfall.

    Attributes
    ----------
    lane : str
        The lane that ends: ``A`` or ``B``.
    place : Place or None
        The first place that it lacks there; None where it lacks tokens altogether.
    start, stop : int
        Tokens that it lacks.
    step : int
        The step of the lane that is its last, or in which it ends.
    held : int
        Tokens that it has; of a place, the blocks that it has there.
    other : int
        The same of the other lane.
    """

    lane: str
    place: Place | None
    start: int
    stop: int
    step: int
    held: int
    other: int


def shortfalls(found: Comparison) -> list[Shortfall]:
    """List where one lane ends early: by tokens first, then per kind of tensor.

    Parameters
    ----------
    found : Comparison
        The lanes.
    """
    lanes = {"A": (found.a, found.b), "B": (found.b, found.a)}
    result = [
        Shortfall(lane, None, own.tokens, other.tokens, own.steps - 1, own.tokens, other.tokens)
        for lane, (own, other) in lanes.items()
        if own.tokens < other.tokens
    ]
    for lane, (own, other) in lanes.items():
        for kind in _STACKED:
            short = _stacked(found, lane, own, other, kind)
            if short is not None:
                result.append(short)
        for kind in _LAST:
            place = Place(kind, 0)
            ends = [dump.covered(place, 0, found.tokens) for dump in (own, other)]
            # Rows of the last tokens only are as good as any: what counts is how far they reach.
            if ends[0] and ends[1] and ends[0][-1][1] < ends[1][-1][1]:
                last = ends[0][-1][1]
                result.append(Shortfall(lane, place, last, ends[1][-1][1], own.step_of(last), 0, 0))
    return result


def absent(found: Comparison) -> dict[str, list[str]]:
    """List, per lane, the kinds of tensors that it has none of and the other has: not asked for, or never reached."""
    kinds = {lane: {place.kind for place in dump.places} for lane, dump in (("A", found.a), ("B", found.b))}
    lacks = {"A": kinds["B"] - kinds["A"], "B": kinds["A"] - kinds["B"]}
    return {lane: [kind for kind in (*_STACKED, *_LAST) if kind in some] for lane, some in lacks.items()}


def _stacked(found: Comparison, lane: str, own: Dump, other: Dump, kind: str) -> Shortfall | None:
    """The first tokens for which a lane's tensors of a kind reach fewer blocks than the other's."""
    if not all(any(place.kind == kind for place in dump.places) for dump in (own, other)):
        return None
    for start, stop in found.segments:
        held, theirs = (_deepest(dump, kind, start, stop) for dump in (own, other))
        if held < theirs:
            return Shortfall(lane, Place(kind, held + 1), start, found.tokens, own.step_of(start), held, theirs)
    return None


def _deepest(dump: Dump, kind: str, start: int, stop: int) -> int:
    """The highest block of which a kind was dumped for any of some tokens; -1 if none was."""
    return max((p.block for p in dump.places if p.kind == kind and dump.covered(p, start, stop)), default=-1)

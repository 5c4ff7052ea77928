"""Each lane's blocks, computed again from the lane's own inputs: is the difference still there?

A lane's local error at a block is the distance of what it dumped there from what the block makes, in float64, of the
state that the lane itself dumped before it. What was inherited is in both and cancels. Rounding has a size there that
can be measured: the distance of the model's own precision from float64, on A's state. A lane whose local error is
beyond `BEYOND` times that, and that of the other lane, over some stretch of the text, computes something else there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from drift.dataset.rungs import RUNGS, known_rung
from drift.errors import DatasetError
from drift.reading.diagnose.contrasts import stretches
from drift.reading.diagnose.hiding import HIDES, structural
from drift.reading.diagnose.model import Cause, Diagnosis, Evidence, Verdict
from drift.reading.diagnose.naming import step_words
from drift.reading.diagnose.tensors import FORMATS, Dump, Place

__all__ = ["BEYOND", "Local", "Recomputes", "computed_in", "confirm", "local_errors"]

BEYOND = 2.0
"""Local errors of equally right kernels are closer than that: scores that are rounded before the softmax make 1.5."""
_LEAST = 0.25
"""Unit roundoffs that a block's rounding is taken to be, at least."""
_ROWS = 64
"""Rows of logits that are computed again, at most: the last ones."""
_KINDS = ("key", "value", "hidden")


class Recomputes(Protocol):
    """What computes blocks again: :class:`drift.running.confirming.Recomputer`."""

    depth: int

    def block(self, block: int, states: np.ndarray, wide: bool) -> Mapping[str, np.ndarray]:
        """Keys, values and hidden states that a block makes of states, in float64 if `wide`."""

    def head(self, states: np.ndarray, rows: np.ndarray, wide: bool) -> tuple[np.ndarray, np.ndarray]:
        """The final norm of the last block's states, and the logits of some rows."""


@dataclass(frozen=True)
class Local:
    """Local errors at a place: relative L2 over a stretch of the text.

    Attributes
    ----------
    place : Place
    start, stop : int
        Tokens.
    a, b : float
        Of the lanes.
    own : float
        Of the model's own precision, on A's state.
    least : float
        What counts as rounding whatever was measured.
    """

    place: Place
    start: int
    stop: int
    a: float
    b: float
    own: float
    least: float

    @property
    def allowed(self) -> float:
        """What rounding is granted."""
        return BEYOND * max(self.own, self.least)

    @property
    def odd(self) -> str:
        """The lane that computes something else: ``A``, ``B``, ``both`` or none."""
        off = [lane for lane, one, other in (("A", self.a, self.b), ("B", self.b, self.a)) if one > self.allowed and
               one > BEYOND * other]  # fmt: skip
        both = min(self.a, self.b) > 2 * BEYOND * self.allowed
        return off[0] if off else "both" if both else ""


def computed_in(dump: Dump) -> str:
    """The rung that a lane computed on: as its metadata say, else that of its hidden states' format."""
    said = known_rung(dump.metadata.get("dtype", ""))
    formats = [FORMATS[d] for place in dump.places if place.kind == "hidden" for d in dump.dtypes(place)]
    name = min(formats, key=lambda form: form.bits).name if formats else "fp32"
    found = said if said is not None else RUNGS.get(name, RUNGS["bf16"])
    return "fp32" if found.needs_gpu else found.name


def _relative(got: np.ndarray, want: np.ndarray, low: int, high: int) -> float:
    """Relative L2 distance over tokens, which are the last axis but one."""
    x, y = got[..., low:high, :].astype(np.float64), want[..., low:high, :]
    with np.errstate(over="ignore", invalid="ignore"):
        size = float(np.sqrt(np.sum(y * y)))
        return float(np.sqrt(np.sum((x - y) ** 2))) / size if size > 0 else math.nan


def _whole(dump: Dump, place: Place, tokens: int) -> np.ndarray | None:
    """A place of all tokens; None where it was not dumped."""
    if place not in dump.places or dump.covered(place, 0, tokens) != [(0, tokens)]:
        return None
    return dump.read(place, 0, tokens)


def local_errors(found: Diagnosis, model: Recomputes, last: int | None = None) -> list[Local]:
    """The local errors of both lanes at every block whose input both dumped, and behind the last.

    Parameters
    ----------
    found : Diagnosis
        The lanes.
    model : Recomputes
    last : int, optional
        The last block that is looked at; all of them, and what follows, where it is None.
    """
    compared, tokens = found.comparison, found.comparison.tokens
    lanes = compared.a, compared.b
    least = _LEAST * found.roundoff.value
    result: list[Local] = []
    for block in range(1, (model.depth if last is None else last) + 1):
        states = [_whole(dump, Place("hidden", block - 1), tokens) for dump in lanes]
        dumped = {kind: [_whole(dump, Place(kind, block), tokens) for dump in lanes] for kind in _KINDS}
        missing = all(a is None or b is None for a, b in dumped.values())
        if states[0] is None or states[1] is None or missing:
            continue
        want = [model.block(block, x, True) for x in states if x is not None]
        own = model.block(block, states[0], False)
        for kind, pair in dumped.items():
            a, b = pair
            if a is None or b is None:
                continue
            for low, high in stretches(compared):
                errors = _relative(a, want[0][kind], low, high), _relative(b, want[1][kind], low, high)
                rounding = _relative(own[kind], want[0][kind], low, high)
                result.append(Local(Place(kind, block), low, high, *errors, rounding, least))
    if last is None:
        result += _head_errors(found, model, least)
    return result


def _head_errors(found: Diagnosis, model: Recomputes, least: float) -> list[Local]:
    """The local errors of what follows the last block."""
    compared, tokens = found.comparison, found.comparison.tokens
    lanes = compared.a, compared.b
    states = [_whole(dump, Place("hidden", model.depth), tokens) for dump in lanes]
    final, logits = Place("final", 0), Place("logits", 0)
    profile = compared.profiles.get(logits)
    there = np.flatnonzero(np.isfinite(profile.difference))[-_ROWS:] if profile is not None else np.zeros(0, dtype=int)
    if states[0] is None or states[1] is None:
        return []
    rows = there if there.size else np.array([tokens - 1])
    want = [model.head(x, rows, True) for x in states if x is not None]
    own = model.head(states[0], rows, False)
    result = []
    dumped = [_whole(dump, final, tokens) for dump in lanes]
    if dumped[0] is not None and dumped[1] is not None:
        for low, high in stretches(compared):
            one, two = _relative(dumped[0], want[0][0], low, high), _relative(dumped[1], want[1][0], low, high)
            result.append(Local(final, low, high, one, two, _relative(own[0], want[0][0], low, high), least))
    if there.size:
        got = [np.concatenate([dump.read(logits, int(row), int(row) + 1) for row in rows]) for dump in lanes]
        one, two = (_relative(x, y[1], 0, len(rows)) for x, y in zip(got, want, strict=True))
        rounding = _relative(own[1], want[0][1], 0, len(rows))
        result.append(Local(logits, int(rows[0]), int(rows[-1]) + 1, one, two, rounding, least))
    return result


def confirm(found: Diagnosis, model: Recomputes) -> None:
    """Say whether a difference is still there where the blocks are computed again from each lane's own inputs.

    A block that is off makes the pair structural. Where all that was dumped is as it should be, a pair that was
    undetermined because a bug could hide is rounding, and a block that was accused is undetermined.

    Raises
    ------
    DatasetError
        If no block can be computed again: hidden states of all tokens are missing, or no lane is this model's.
    """
    if found.verdict is Verdict.SAME:
        return
    entry = found.entry
    accused = entry is not None and found.verdict is Verdict.STRUCTURAL and entry.place.kind in _KINDS
    # A cause that has a name is looked for where it is; anything else may begin below or above what it was seen at.
    last = entry.place.block if entry is not None and accused and _named(found) and entry.place.block else None
    errors = local_errors(found, model, last)
    if not errors:
        raise DatasetError(
            "No block can be computed again: that takes the hidden states of all tokens before and after a block, in "
            "both lanes. Dump step.K.layer.L.hidden of every layer."
        )
    odd = next((one for one in errors if one.odd), None)
    if odd is not None and odd.odd == "both":
        raise DatasetError(
            f"At {odd.place} neither lane is what this model makes of the lane's own inputs (A is off by {odd.a:.2g}, "
            f"B "
            f"by {odd.b:.2g}, where rounding is {odd.own:.2g}): the dumps are another model's, or of other weights."
        )
    if odd is not None:
        _still_there(found, odd)
    else:
        _not_there(found, errors, accused)


def _named(found: Diagnosis) -> bool:
    return found.verdict is Verdict.STRUCTURAL and found.cause not in (Cause.OTHER, Cause.NONE)


def _still_there(found: Diagnosis, odd: Local) -> None:
    step = step_words(found.comparison, odd.start)
    text = (
        f"Computed again from each lane's own inputs, in float64, {odd.place} at step {step} is off by {odd.b:.2g} in "
        f"B and "
        f"{odd.a:.2g} in A, where rounding is {odd.own:.2g}: the difference is still there, and it is {odd.odd} that "
        "computes something else."
    )
    if not _named(found):
        words = f"{odd.odd} makes {odd.place} otherwise than the model does of the same inputs, from step {step} on"
        structural(found, odd.place, odd.start, words)
        found.reason, found.could_hide = "", None
    found.evidence.insert(0, Evidence(text, {"local_a": odd.a, "local_b": odd.b, "rounding": odd.own, "lane": odd.odd}))


def _not_there(found: Diagnosis, errors: list[Local], accused: bool) -> None:
    finite = [one for one in errors if math.isfinite(one.b)] or errors
    largest, seen = max(finite, key=lambda one: one.b / one.allowed), max(one.allowed for one in errors)
    count = len({one.place for one in errors})
    found.evidence.insert(
        0,
        Evidence(
            f"Computed again from each lane's own inputs, in float64, none of {count} places is off by more than "
            f"rounding: "
            f"at most {largest.b:.2g} in B, at {largest.place}, where {largest.allowed:.2g} is granted.",
            {"places": count, "largest": largest.b, "granted": largest.allowed},
        ),
    )
    if accused and found.cause is Cause.OTHER:
        found.verdict, found.cause, found.cause_text = Verdict.UNDETERMINED, Cause.NONE, ""
        found.reason = (
            "the difference is not there where the blocks are computed again from each lane's own inputs: both lanes "
            "round "
            "as they should, here. What was accused may be rounding that grows unusually, or lie between the dumped "
            "places"
        )
    elif found.verdict is Verdict.UNDETERMINED and found.could_hide is not None:
        whole = {one.place.block for one in errors if one.place.kind == "hidden"}
        every = whole == set(range(1, max(p.block for p in found.comparison.profiles) + 1))
        if every and seen <= HIDES:
            found.verdict, found.reason, found.could_hide = Verdict.ROUNDING, "", seen

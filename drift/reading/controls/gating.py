"""The gate that every verdict of a sweep goes through: where a control of the instrument failed, none is drawn.

What passes is the object that holds the verdict (of a curve, a slope, a rate, an audit). Each knows how it looks
without one, by its method ``without_verdict``; estimates remain, for people who look for what went wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from drift.dataset.sweep import Sweep
from drift.reading.controls.evaluating import evaluate

__all__ = ["NO_CONTROLS", "WITHHELD", "Gate", "Judged", "gate"]

#: What is said in place of a conclusion.
WITHHELD = "no conclusion is drawn, because controls of the instrument failed"


class Judged(Protocol):
    """Something with a verdict that can be taken back."""

    def without_verdict(self, failed: Sequence[str]) -> Self:
        """Return the same without a verdict.

        Parameters
        ----------
        failed : sequence of str
            The controls that failed, in words.
        """
        ...


_Judged = TypeVar("_Judged", bound=Judged)


@dataclass(frozen=True)
class Gate:
    """Whether verdicts may be drawn from a sweep.

    Attributes
    ----------
    failed : tuple of str
        The controls that failed, in words; the gate is open where there are none.
    """

    failed: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether no control failed."""
        return not self.failed

    def let(self, found: _Judged) -> _Judged:
        """Let a verdict through, or what remains of it."""
        return found if self.is_open else found.without_verdict(self.failed)


#: For what comes from no sweep and so has no controls: one cell by itself, a CSV file. Its verdict stands on the curve
#: alone, and whoever passes this says so.
NO_CONTROLS = Gate()


def gate(sweep: Sweep) -> Gate:
    """Return the gate of a sweep, shut where any of its controls failed; selections share it."""
    return Gate(tuple(evaluate(sweep).failed))

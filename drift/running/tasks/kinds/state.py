"""`state`: a quantity that changes again and again through the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from drift.running.tasks.base import Fact, Puzzle, Question, Task
from drift.running.tasks.words import GOODS, PLACES, Draw

_DIGITS = 4
_LEAST, _MOST = 10 ** (_DIGITS - 1), 10**_DIGITS - 1
_SMALLEST_CHANGE, _LARGEST_CHANGE = 10, 990


@dataclass(frozen=True)
class State(Task):
    """How many there are at the end.

    Attributes
    ----------
    changes : int
        Changes of every quantity.
    quantities : int
        Quantities that change. Each can be asked for.
    kind : str
        ``set``: every change says how many there are then, so that the last one answers; ``add``: it says how many
        came or went, and all of them answer.
    """

    name: ClassVar[str] = "state"
    summary: ClassVar[str] = "a quantity changes again and again, and what it is at the end is asked for"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"kind": ("set", "add")}

    changes: int = 4
    quantities: int = 1
    kind: str = "set"

    def __post_init__(self) -> None:
        self._between("changes", 1, 64)
        self._between("quantities", 1, 16)
        self._limit(self.quantities * (self.changes + 1))

    def puzzle(self, draw: Draw) -> Puzzle:
        """Draw quantities and what becomes of them."""
        facts, rows = list[Fact](), list[tuple[str, list[int], range]]()
        for strand in range(self.quantities):
            goods, place = draw.fresh(GOODS), draw.fresh(PLACES)
            what = f"{goods} in the {place}"
            levels = self._levels(draw)
            told = [f"The number of {what} is {levels[0]}."]
            for before, after in pairwise(levels):
                if self.kind == "set":
                    told.append(f"The number of {what} has changed and is now {after}.")
                elif after > before:
                    told.append(f"Then {after - before} more {goods} were brought to the {place}.")
                else:
                    told.append(f"Then {before - after} {goods} were taken away from the {place}.")
            rows.append((what, levels, range(len(facts), len(facts) + len(told))))
            facts += [Fact(text, strand) for text in told]
        return Puzzle(tuple(facts), tuple(self._question(*row) for row in rows))

    def _levels(self, draw: Draw) -> list[int]:
        """How many there are at first and after every change."""
        if self.kind == "set":
            return [int(draw.number(_DIGITS)) for _ in range(self.changes + 1)]
        levels = [draw.random.randrange(_LEAST + _LARGEST_CHANGE, _MOST - _LARGEST_CHANGE)]
        # No change twice: two sentences that are the same could be read as one. No level twice: it is no wrong answer.
        sizes = list(range(_SMALLEST_CHANGE, _LARGEST_CHANGE))
        draw.random.shuffle(sizes)
        while len(levels) <= self.changes:
            after = levels[-1] + draw.random.choice((-1, 1)) * sizes.pop()
            if _LEAST <= after <= _MOST and after not in levels:
                levels.append(after)
        return levels

    def _question(self, what: str, levels: list[int], facts: range) -> Question:
        return Question(
            f"Question: What is the number of {what} at the end, after all that the text tells?",
            f" Answer: At the end, the number of {what} is",
            (str(levels[-1]),),
            tuple(facts) if self.kind == "add" else (facts[-1],),
            tuple(str(level) for level in levels[:-1]),
            (what,),
        )

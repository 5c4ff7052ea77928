"""`cascade`: facts that are revised later, and others that depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from drift.running.tasks.base import Fact, Puzzle, Question, Task
from drift.running.tasks.words import NAMES, TOWNS, Draw


@dataclass(frozen=True)
class Cascade(Task):
    """Where somebody lives now who always lives where somebody else lives, who has moved.

    Attributes
    ----------
    revisions : int
        How often the first person moves.
    dependents : int
        People in a row, each of whom lives where the one before lives.
    others : int
        Other such groups in the text. Each can be asked for, too.
    """

    name: ClassVar[str] = "cascade"
    summary: ClassVar[str] = "a fact is revised later, and what depends on it is asked for"

    revisions: int = 1
    dependents: int = 1
    others: int = 1

    def __post_init__(self) -> None:
        self._between("revisions", 1, 8)
        self._between("dependents", 1, 8)
        self._between("others", 0, 5)
        groups = self.others + 1
        self._require(groups * (self.revisions + 1) <= len(TOWNS), f"there are only {len(TOWNS)} towns to move between")

    def puzzle(self, draw: Draw) -> Puzzle:
        """Draw groups of people. Of each, the last dependent is asked for, then the one who moved."""
        facts, ends = list[Fact](), list[tuple[list[str], list[str], int]]()
        for strand in range(self.others + 1):
            people = [draw.fresh(NAMES) for _ in range(self.dependents + 1)]
            towns = [draw.fresh(TOWNS) for _ in range(self.revisions + 1)]
            ends.append((people, towns, len(facts)))
            told = [f"{people[0]} lives in {towns[0]}."]
            told += [f"{b} always lives in the same town as {a}." for a, b in pairwise(people)]
            told += [f"{people[0]} has moved to {town}." for town in towns[1:]]
            facts += [Fact(text, strand) for text in told]
        questions = []
        for of in (-1, 0):
            for people, towns, first in ends:
                depends = range(first + 1, first + 1 + self.dependents) if of else range(0)
                last = first + self.dependents + self.revisions
                wrong = [*towns[:-1], *(other[-1] for _, other, _ in ends if other is not towns)]
                questions.append(_question(people[of], towns[-1], (*depends, last), tuple(wrong), tuple(people)))
        return Puzzle(tuple(facts), tuple(questions))


def _question(
    who: str, town: str, needed: tuple[int, ...], wrong: tuple[str, ...], people: tuple[str, ...]
) -> Question:
    return Question(
        f"Question: In which town does {who} live now, after all that the text tells?",
        f" Answer: {who} now lives in the town of",
        (town,),
        needed,
        wrong,
        people,
    )

"""`hops`: facts that only together answer a question."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from drift.running.tasks.base import Fact, Puzzle, Question, Task
from drift.running.tasks.words import ADJECTIVES, NAMES, NOUNS, TOWNS, Draw

_SPARE = 3  # towns that are in no text


@dataclass(frozen=True)
class Hops(Task):
    """Where somebody lives who is known by what was handed to him, or by whom he works for.

    Attributes
    ----------
    facts : int
        Facts that the answer takes: two or three.
    others : int
        Other such sets of facts in the text, without which the last fact would do. Each can be asked for, too.
    """

    name: ClassVar[str] = "hops"
    summary: ClassVar[str] = "two or three facts, far from one another, only together answer the question"
    apart: ClassVar[bool] = True

    facts: int = 2
    others: int = 1

    def __post_init__(self) -> None:
        self._between("facts", 2, 3)
        self._between("others", 0, 16)
        self._limit(self.facts * (self.others + 1))

    def puzzle(self, draw: Draw) -> Puzzle:
        """Draw sets of facts, each a strand of its own: nothing says that the first is read first."""
        facts, asked = list[Fact](), list[tuple[str, str, list[str]]]()
        for _ in range(self.others + 1):
            thing = f"{draw.fresh(ADJECTIVES)} {draw.fresh(NOUNS)}"
            people = [draw.fresh(NAMES) for _ in range(self.facts - 1)]
            town = draw.fresh(TOWNS)
            told = [f"The {thing} was handed to {people[0]}."]
            told += [f"{a} works for {b}." for a, b in pairwise(people)]
            told.append(f"{people[-1]} lives in {town}.")
            facts += [Fact(text, len(facts) + at) for at, text in enumerate(told)]
            asked.append((thing, town, people))
        towns = [town for _, town, _ in asked]
        spare = tuple(draw.fresh(TOWNS) for _ in range(_SPARE))
        questions = [
            self._question(thing, town, at, tuple(other for other in towns if other != town) or spare, people)
            for at, (thing, town, people) in enumerate(asked)
        ]
        return Puzzle(tuple(facts), tuple(questions))

    def _question(self, thing: str, town: str, at: int, others: tuple[str, ...], people: list[str]) -> Question:
        whom = f"the person to whom the {thing} was handed"
        if self.facts > 2:
            whom = f"the employer of {whom}"
        return Question(
            f"Question: In which town does {whom} live?",
            f" Answer: {whom[0].upper()}{whom[1:]} lives in the town of",
            (town,),
            tuple(range(at * self.facts, (at + 1) * self.facts)),
            others,
            (thing, *people),
        )

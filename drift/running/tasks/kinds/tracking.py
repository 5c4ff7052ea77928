"""`tracking`: variables that are assigned to one another, in RULER's wording."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from drift.running.tasks.base import Fact, Puzzle, Question, Task
from drift.running.tasks.haystacks import NOISE
from drift.running.tasks.words import Draw

_DIGITS, _LETTERS, _LETTERS_OF_EXAMPLES = 5, 5, 3
_LINES_OF_EXAMPLES = 2  # of noise, in front of an assignment


@dataclass(frozen=True)
class Tracking(Task):
    """All variables of a chain of assignments, which begins with a value.

    Attributes
    ----------
    chains : int
        Chains in the text; each can be asked for.
    hops : int
        Assignments of a variable to another one, in every chain.
    examples : int
        Solved examples in front of the text.
    """

    name: ClassVar[str] = "tracking"
    summary: ClassVar[str] = "variables are assigned to one another, and all that hold a value are asked for"

    chains: int = 1
    hops: int = 4
    examples: int = 1

    def __post_init__(self) -> None:
        self._between("chains", 1, 64)
        self._between("hops", 1, 64)
        self._between("examples", 0, 4)
        self._limit(self.chains * (self.hops + 1))

    def preamble(self, draw: Draw) -> str:
        """RULER's, after solved examples, which are shorter."""
        task = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n"
        said = ""
        for _ in range(self.examples):
            names = [draw.letters(_LETTERS_OF_EXAMPLES) for _ in range(self.hops + 1)]
            value = draw.number(_DIGITS)
            lines = [line for fact in _assigned(names, value) for line in (*[NOISE] * _LINES_OF_EXAMPLES, fact)]
            asked = _question(names, value, (), ())
            said += f"{task}\n{chr(10).join(lines)}\n{asked.text}{asked.begun}{asked.answer}\n\n"
        return said + task

    def puzzle(self, draw: Draw) -> Puzzle:
        """Draw chains; as many questions."""
        chains = [
            ([draw.letters(_LETTERS) for _ in range(self.hops + 1)], draw.number(_DIGITS)) for _ in range(self.chains)
        ]
        spare = tuple(draw.letters(_LETTERS) for _ in range(self.hops + 1))
        facts = [Fact(text, strand) for strand, chain in enumerate(chains) for text in _assigned(*chain)]
        questions = []
        for at, (names, value) in enumerate(chains):
            others = tuple(name for other, _ in chains for name in other if other is not names)
            needed = tuple(range(at * len(names), (at + 1) * len(names)))
            questions.append(_question(names, value, needed, others or spare))
        return Puzzle(tuple(facts), tuple(questions))


def _assigned(names: list[str], value: str) -> list[str]:
    first = f"VAR {names[0]} = {value}"
    return [first, *(f"VAR {name} = VAR {before}" for before, name in pairwise(names))]


def _question(names: list[str], value: str, needed: tuple[int, ...], others: tuple[str, ...]) -> Question:
    return Question(
        f"Question: Find all variables that are assigned the value {value} in the text above.",
        # With RULER's own slip of the pen: models are compared on what RULER asks them.
        f" Answer: According to the chain(s) of variable assignment in the text above, {len(names)} variables are "
        f"assgined the value {value}, they are:",
        tuple(names),
        needed,
        others,
        (value, *names),
        joint=" ",
    )

"""`needle`: magic numbers in a haystack, in RULER's wording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from drift.running.tasks.base import Fact, Puzzle, Question, Task
from drift.running.tasks.haystacks import needle, needle_value
from drift.running.tasks.words import Draw

_OTHERS = 3  # wrong answers that are in no text, for a needle that is alone


@dataclass(frozen=True)
class Needle(Task):
    """A value, or several, under a key; asked for by the key.

    Attributes
    ----------
    keys : int
        Keys with values in the text. At least as many as are asked for at once.
    values : int
        Values of every key; all are asked for.
    queries : int
        Keys that are asked for at once.
    kind : str
        ``number`` (seven digits), ``uuid`` or ``word``.
    """

    name: ClassVar[str] = "needle"
    summary: ClassVar[str] = "a value is hidden under a key, alone or among others, and asked for"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"kind": ("number", "uuid", "word")}

    keys: int = 1
    values: int = 1
    queries: int = 1
    kind: str = "number"

    def __post_init__(self) -> None:
        for option in ("keys", "values", "queries"):
            self._between(option, 1, 64)
        self._limit(self._keys * self.values)

    @property
    def _keys(self) -> int:
        return max(self.keys, self.queries)

    @property
    def _words(self) -> tuple[str, str, str, str]:
        """What RULER's template says of one value, and of several."""
        if self.queries * self.values == 1:
            return "A", "is", "is", self.kind
        return "Some", "are", "are all", f"{self.kind}s"

    def preamble(self, draw: Draw) -> str:
        """RULER's."""
        some, are, _, values = self._words
        return (
            f"{some} special magic {values} {are} hidden within the following text. Make sure to memorize it. I will "
            f"quiz you about the {values} afterwards."
        )

    def puzzle(self, draw: Draw) -> Puzzle:
        """Draw keys and their values; as many questions as there are keys for."""
        held = {draw.key(): [needle_value(draw, self.kind) for _ in range(self.values)] for _ in range(self._keys)}
        facts = [
            Fact(needle(key, value, self.kind), strand)
            for strand, (key, values) in enumerate(held.items())
            for value in values
        ]
        spare = tuple(needle_value(draw, self.kind) for _ in range(max(_OTHERS, self.queries * self.values)))
        keys = list(held)
        groups = [keys[at : at + self.queries] for at in range(0, len(keys) - self.queries + 1, self.queries)]
        return Puzzle(tuple(facts), tuple(self._question(held, group, spare) for group in groups))

    def _question(self, held: dict[str, list[str]], asked: list[str], spare: tuple[str, ...]) -> Question:
        _, are, are_all, values = self._words
        query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
        order = list(held)
        first = [order.index(key) * self.values for key in asked]
        return Question(
            f"What {are_all} the special magic {values} for {query} mentioned in the provided text?",
            f" The special magic {values} for {query} mentioned in the provided text {are}",
            tuple(value for key in asked for value in held[key]),
            tuple(at + place for at in first for place in range(self.values)),
            tuple(value for key in held if key not in asked for value in held[key]) or spare,
            tuple(asked),
        )

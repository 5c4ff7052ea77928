"""What a task is: facts to be hidden in a haystack, and questions that they answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from drift._bounds import MOST_FACTS
from drift.dataset.labels import Label
from drift.errors import ConfigError
from drift.running.options import written
from drift.running.tasks.words import Draw

__all__ = ["PREAMBLE", "Fact", "Puzzle", "Question", "Task"]

#: In front of the haystack, where a task has no wording of its own.
PREAMBLE = (
    "Some facts are hidden within the following text. Make sure to memorize them. I will quiz you about them "
    "afterwards."
)


@dataclass(frozen=True)
class Fact:
    """A sentence that is hidden in the haystack.

    Attributes
    ----------
    text : str
        One line.
    strand : int
        Facts of one strand stand in the text in the order in which they are listed; strands lie between one another
        by chance.
    """

    text: str
    strand: int


@dataclass(frozen=True)
class Question:
    """A question about the facts.

    Attributes
    ----------
    text : str
        What is asked.
    begun : str
        How the answer is begun for the model, as RULER does it.
    answers : tuple of str
        What must be found, all of it.
    needed : tuple of int
        The facts that the answer rests on, by their place in :attr:`Puzzle.facts`.
    others : tuple of str
        Wrong answers of the same kind, each as :attr:`answers` has them.
    subjects : tuple of str
        What it asks about: nothing else in the text may speak of that, or there would be two answers.
    joint : str
        What stands between several answers.
    """

    text: str
    begun: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    others: tuple[str, ...]
    subjects: tuple[str, ...]
    joint: str = ", "

    @property
    def answer(self) -> str:
        """The answer as it goes on where it was begun."""
        return " " + self.joint.join(self.answers)


@dataclass(frozen=True)
class Puzzle:
    """Facts, and what can be asked about them.

    Attributes
    ----------
    facts : tuple of Fact
    questions : tuple of Question
        At least one; all can be asked of one text.
    """

    facts: tuple[Fact, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Task(ABC):
    """A kind of question about a long text.

    A subclass lives in a module of its own in :mod:`drift.running.tasks.kinds` and sets ``name`` and ``summary``. Its
    dataclass fields are its options, written in parentheses in a label: ``needle(keys=4)``.

    Attributes
    ----------
    haystack : str
        What the facts are hidden in: ``noise``, ``needles`` or a corpus, see :mod:`drift.running.tasks.haystacks`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """What it asks for, in one line."""
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Options that take one of a few words."""
    apart: ClassVar[bool] = False
    """Whether the facts of an answer must lie in different chunks for the task to be what it claims to be."""

    haystack: str = "noise"

    @property
    def label(self) -> str:
        """The task's canonical name, with the options that were set."""
        return Label(self.name, options=written(self)).text

    def preamble(self, draw: Draw) -> str:
        """What is said in front of the haystack: one line, or several; the same for all texts of a seed."""
        return PREAMBLE

    @abstractmethod
    def puzzle(self, draw: Draw) -> Puzzle:
        """Draw facts and questions."""

    def _require(self, holds: bool, what: str) -> None:
        """Refuse an option, naming the task."""
        if not holds:
            raise ConfigError(f"Task {self.name}: {what}.")

    def _between(self, option: str, least: int, most: int) -> None:
        value = getattr(self, option)
        self._require(least <= value <= most, f"{option} must lie between {least} and {most}, and is {value}")

    def _limit(self, facts: int) -> None:
        self._require(facts <= MOST_FACTS, f"{facts} facts are more than the {MOST_FACTS} that a text may hold")

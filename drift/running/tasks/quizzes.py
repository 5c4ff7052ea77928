"""Texts of a given length, with the facts of a task in known places, and the questions that are put behind them."""

from __future__ import annotations

from bisect import bisect, bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Any

from drift import _arguments as arguments
from drift._bounds import MOST_DOCUMENTS, MOST_TOKENS
from drift.errors import ConfigError, CorpusError
from drift.running.folding.prompts import Prompt, template_of
from drift.running.tasks.base import Puzzle, Question, Task
from drift.running.tasks.haystacks import between, pieces
from drift.running.tasks.kinds import parse
from drift.running.tasks.words import Draw

__all__ = ["Asked", "Document", "Place", "Quiz", "chunks_between", "quiz"]

_ATTEMPTS = 200  # at words of which the haystack does not speak
_LINE = "\n"


@dataclass(frozen=True)
class Place:
    """Where a fact lies.

    Attributes
    ----------
    text : str
    start, stop : int
        Its tokens in :attr:`Document.tokens`, with the space or line break that sets it off.
    """

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class Asked:
    """A question about a document, in tokens.

    Attributes
    ----------
    question : Question
    tokens : tuple of int
        What is put behind the text: the question, the end of the chat template, the answer's beginning.
    answer : tuple of int
        The tokens of the answer.
    first : int
        Which of them is the first that is more than a space.
    """

    question: Question
    tokens: tuple[int, ...]
    answer: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Document:
    """A haystack with facts in it, and the questions that are asked about it.

    Attributes
    ----------
    tokens : tuple of int
        The text, from the first token of the prompt on.
    text : str
        The same in letters, without what the tokenizer or its chat template puts in front.
    places : tuple of Place
        Where the facts lie, in the order in which the task lists them; none in a text without facts.
    questions : tuple of Asked
    """

    tokens: tuple[int, ...]
    text: str
    places: tuple[Place, ...]
    questions: tuple[Asked, ...]

    def needed(self, question: int) -> tuple[Place, ...]:
        """Where the facts lie that the answer to a question rests on."""
        return tuple(self.places[at] for at in self.questions[question].question.needed)

    def distances(self, question: int, chunk_size: int) -> tuple[int, ...]:
        """Chunks between each of these facts and the question, see :func:`chunks_between`."""
        return tuple(chunks_between(place, len(self.tokens), chunk_size) for place in self.needed(question))


@dataclass(frozen=True)
class Quiz:
    """Documents of one task and length.

    Attributes
    ----------
    task : Task
    length : int
        Most tokens of a prompt: text, question, beginning of the answer, and what a chat template puts around them.
    seed : int
        Which words and which haystack: all documents of a seed have the same one.
    prompt : Prompt
        How text becomes tokens.
    documents : tuple of Document
    without : Document
        The haystack with no facts in it, as long as the others; its questions are those of all documents, one after
        the other.
    """

    task: Task
    length: int
    seed: int
    prompt: Prompt
    documents: tuple[Document, ...]
    without: Document


def chunks_between(place: Place, tokens: int, chunk_size: int) -> int:
    """How many chain steps after the chunk that holds the end of a fact the question is taken in; at least 1.

    Parameters
    ----------
    place : Place
    tokens : int
        Of the text, in front of the question, which is a chain step of its own.
    chunk_size : int
    """
    return -(-tokens // chunk_size) - (place.stop - 1) // chunk_size


def quiz(
    tokenizer: Any,
    task: str | Task,
    tokens: int,
    *,
    documents: int = 4,
    questions: int = 1,
    seed: int = 0,
    chat: bool | None = None,
) -> Quiz:
    """Make the texts and questions of a task.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that belongs to the model that will be asked.
    task : str or Task
        Its label, see :func:`drift.running.tasks.kinds.available`.
    tokens : int
        Most tokens of a prompt. It is filled up to within a piece of the haystack.
    documents : int
        How many texts. They share the haystack; the facts are others in each, and lie in places that spread evenly
        over it: a single fact in front of it in the first text and behind it in the last, several in as many equal
        parts.
    questions : int
        Most questions of a text; a task may have less.
    seed : int
        Which words and which haystack.
    chat : bool, optional
        Whether the tokenizer's chat template is put around text and question: by default where there is one.

    Returns
    -------
    Quiz

    Raises
    ------
    ConfigError
        If task, length or number will not do.
    CorpusError
        If the haystack is a corpus that does not exist, or is too short.

    Examples
    --------
    >>> made = drift.quiz(tokenizer, "needle(keys=4)", 1024)  # doctest: +SKIP
    >>> made.documents[0].needed(0), made.documents[0].distances(0, 256)  # doctest: +SKIP
    """
    asked = parse(task)
    tokens = arguments.whole("tokens", tokens, 1, MOST_TOKENS)
    documents = arguments.whole("documents", documents, 1, MOST_DOCUMENTS)
    questions = arguments.whole("questions", questions, 1, MOST_DOCUMENTS)
    seed = arguments.whole("seed", seed)
    prompt = Prompt.of(tokenizer, template_of(tokenizer) if chat is None else chat, separator="")
    maker = _Maker(asked, prompt, tokens, seed)
    made = [maker.document(at, documents, questions) for at in range(documents)]
    return Quiz(asked, tokens, seed, prompt, tuple(made), maker.without([q for one in made for q in one.questions]))


class _Tokens:
    """Tokens of pieces of text, each made once."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self._known: dict[str, list[int]] = {}

    def __call__(self, piece: str) -> list[int]:
        if piece not in self._known:
            self._known[piece] = self.prompt.written(piece)
        return self._known[piece]

    def count(self, fact: str) -> int:
        """Most tokens of a fact, whatever it lies behind."""
        return max(len(self(between(fact, before))) for before in ("", _LINE))

    def asked(self, question: Question) -> Asked:
        """A question in tokens."""
        answer = self.prompt.written(question.answer)
        blank = [not self.prompt.tokenizer.decode(answer[: at + 1]).strip() for at in range(len(answer))]
        return Asked(
            question,
            (*self.prompt.question(question.text), *self.prompt.written(question.begun)),
            tuple(answer),
            blank.index(False) if False in blank else 0,
        )


class _Maker:
    """Makes the documents of one task, length and seed."""

    def __init__(self, task: Task, prompt: Prompt, length: int, seed: int) -> None:
        self.task, self.length, self.seed = task, length, seed
        self.tokens = _Tokens(prompt)
        self.opening = prompt.opening()
        self.preamble = task.preamble(self._draw("preamble")) + _LINE
        self.room = length - len(self.opening) - len(self.tokens(self.preamble)) - len(self.tokens(_LINE))
        self.hay = list(self._hay())
        # Tokens of the first pieces: all, none, one, two, ...
        self.sizes = list(accumulate((len(self.tokens(piece)) for piece in self.hay), initial=0))
        self.spoken = (self.preamble + "".join(self.hay)).casefold()

    def document(self, at: int, of: int, questions: int) -> Document:
        """One of several texts."""
        puzzle, draw = self._puzzle(at)
        asked = [self.tokens.asked(question) for question in puzzle.questions[:questions]]
        room = self._room(asked, sum(self.tokens.count(fact.text) for fact in puzzle.facts))
        count, facts = bisect(self.sizes, room) - 1, len(puzzle.facts)
        if count < facts:
            least = self.length - room + ceil(facts * self.sizes[-1] / len(self.hay))
            raise ConfigError(
                f"Task {self.task.label}: {self.length} tokens are too few for its {facts} facts, as many pieces of "
                f"haystack, and the question: take {max(least, self.length + 1)} or more."
            )
        share = at / (of - 1) if of > 1 else 0.5
        spots = [self._spot((slot + share) / facts * self.sizes[count]) for slot in range(facts)]
        return self._assembled(puzzle, list(zip(_order(puzzle, draw), spots, strict=True)), count, asked)

    def without(self, asked: Sequence[Asked]) -> Document:
        """The haystack alone."""
        count = bisect(self.sizes, self._room(asked, 0)) - 1
        return self._assembled(Puzzle((), ()), [], count, asked)

    def _spot(self, tokens: float) -> int:
        """In front of which piece as near as can be to so many tokens of haystack lie."""
        after = min(bisect_left(self.sizes, tokens), len(self.sizes) - 1)
        before = max(after - 1, 0)
        return after if self.sizes[after] - tokens <= tokens - self.sizes[before] else before

    def _draw(self, what: object, *, twice: bool = False) -> Draw:
        return Draw(f"{self.task.label}/{self.seed}/{what}", twice=twice)

    def _hay(self) -> Iterator[str]:
        """Pieces of haystack, as many as there could be room for."""
        held, there = 0, False
        for piece in pieces(self.task.haystack, self._draw("haystack", twice=True)):
            size = len(self.tokens(piece))
            if there and held + size > self.room:
                return
            held, there = held + size, True
            yield piece
        raise CorpusError(
            f"corpus {self.task.haystack!r} is too short: it has {held} tokens for this tokenizer, and a text of "
            f"{self.length} was asked for. Ask for less, or name a longer corpus ('stdlib' is the longest built in)."
            if there
            else f"corpus {self.task.haystack!r} is empty; name a corpus with text in it."
        )

    def _room(self, asked: Iterable[Asked], facts: int) -> int:
        """Tokens that are left for the haystack."""
        return self.room - facts - max(len(question.tokens) for question in asked)

    def _puzzle(self, at: int) -> tuple[Puzzle, Draw]:
        """Facts and questions of which nothing else in the text speaks."""
        for attempt in range(_ATTEMPTS):
            draw = self._draw(f"{at}/{attempt}" if attempt else at)
            puzzle = self.task.puzzle(draw)
            if not any(self._leaks(puzzle, question) for question in puzzle.questions):
                return puzzle, draw
        raise ConfigError(
            f"Task {self.task.label}: the haystack speaks of whatever is asked for; name another one (haystack=noise)."
        )

    def _leaks(self, puzzle: Puzzle, question: Question) -> bool:
        """Whether a question can be answered, or is answered otherwise, without its facts."""
        elsewhere = [fact.text for at, fact in enumerate(puzzle.facts) if at not in question.needed]
        said = _LINE.join([*elsewhere, question.text, question.begun]).casefold()
        if any(answer.casefold() in self.spoken or answer.casefold() in said for answer in question.answers):
            return True
        return any(subject.casefold() in self.spoken for subject in question.subjects)

    def _assembled(
        self, puzzle: Puzzle, spots: Sequence[tuple[int, int]], count: int, asked: Sequence[Asked]
    ) -> Document:
        """The first `count` pieces of haystack with facts in front of some; `spots` are (fact, piece), in order."""
        tokens, text = [*self.opening, *self.tokens(self.preamble)], self.preamble
        places, coming = dict[int, Place](), list(spots)
        for at in range(count + 1):
            while coming and coming[0][1] == at:
                fact, _ = coming.pop(0)
                piece, start = between(puzzle.facts[fact].text, text), len(tokens)
                tokens += self.tokens(piece)
                text += piece
                places[fact] = Place(puzzle.facts[fact].text, start, len(tokens))
            if at < count:
                tokens += self.tokens(self.hay[at])
                text += self.hay[at]
        if not text.endswith(_LINE):
            tokens, text = [*tokens, *self.tokens(_LINE)], text + _LINE
        return Document(tuple(tokens), text, tuple(places[at] for at in range(len(places))), tuple(asked))


def _order(puzzle: Puzzle, draw: Draw) -> list[int]:
    """Facts in the order in which they stand in the text."""
    strands = [fact.strand for fact in puzzle.facts]
    rows = {strand: [at for at, of in enumerate(strands) if of == strand] for strand in strands}
    draw.random.shuffle(strands)
    return [rows[strand].pop(0) for strand in strands]

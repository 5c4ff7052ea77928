"""All questions of a quiz in all lanes: full attention, and every fold over the same tokens; and the controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from drift import _arguments as arguments
from drift._bounds import MOST_TOKENS
from drift.errors import ConfigError
from drift.running.descent.guard import admit
from drift.running.folding.folded import CHUNK_SIZE
from drift.running.protocols import parse
from drift.running.protocols.base import Protocol
from drift.running.tasks.answering import Answer
from drift.running.tasks.base import Task
from drift.running.tasks.examining import FULL, SPARE_TOKENS, Examiner
from drift.running.tasks.quizzes import Document, Place, Quiz, quiz
from drift.running.tasks.scoring import first_difference

__all__ = ["FULL", "SPARE_TOKENS", "Controls", "Row", "Taken", "take_quiz"]


def _number(value: float) -> float | None:
    """A number as JSON has it; None for what JSON has not."""
    return value if isfinite(value) else None


@dataclass(frozen=True)
class Row:
    """A question, a lane, and what came of it.

    Attributes
    ----------
    document, question : int
    protocol : str
        Label of the lane; ``full`` is full attention.
    text_tokens : int
        Tokens of the text in front of the question.
    places : tuple of Place
        Where the facts lie that the answer rests on.
    distances : tuple of int
        Chunks between each of them and the question, see
        :func:`drift.running.tasks.quizzes.chunks_between`: the same in all lanes.
    answer : Answer
    first_difference : int or None
        Which generated token is the first that is not full attention's; None where the text is the same.
    """

    document: int
    question: int
    protocol: str
    text_tokens: int
    places: tuple[Place, ...]
    distances: tuple[int, ...]
    answer: Answer
    first_difference: int | None

    @property
    def depths(self) -> tuple[float, ...]:
        """Where these facts begin, as shares of the text."""
        return tuple(place.start / self.text_tokens for place in self.places)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it; facts as the tokens that they begin with and end before, None for what is NaN."""
        answer = self.answer
        return {
            "document": self.document,
            "question": self.question,
            "protocol": self.protocol,
            "text_tokens": self.text_tokens,
            "facts": [[place.start, place.stop] for place in self.places],
            "distances": list(self.distances),
            "text": answer.text,
            "tokens": list(answer.tokens),
            "stopped": answer.stopped.value,
            "exact": answer.exact,
            "score": answer.score,
            "log_likelihood": _number(answer.log_likelihood),
            "log_likelihood_per_token": _number(answer.log_likelihood_per_token),
            "log_likelihoods": [_number(value) for value in answer.log_likelihoods],
            "rank": answer.rank,
            "margin": _number(answer.margin),
            "other_log_likelihood": _number(answer.other_log_likelihood),
            "first_difference": self.first_difference,
            "nonfinite": answer.nonfinite,
        }


@dataclass(frozen=True)
class Controls:
    """What must come out if the questions ask what they seem to.

    Attributes
    ----------
    without : tuple of Answer
        To every question, by full attention of the haystack with no facts in it: must be wrong.
    again : tuple of Answer
        To the questions of the first text, by full attention once more: must be the same bits.
    again_same : bool
        Whether they are.
    """

    without: tuple[Answer, ...]
    again: tuple[Answer, ...]
    again_same: bool

    @property
    def found_without(self) -> int:
        """Questions of which something was answered without the facts."""
        return sum(answer.score > 0 for answer in self.without)


@dataclass(frozen=True)
class Taken:
    """A quiz, and what all lanes made of it.

    Attributes
    ----------
    quiz : Quiz
    chunk_size : int
    rows : tuple of Row
        By lane, full attention first; by document; by question.
    controls : Controls or None
    switches : dict
        The numerical switches of the passes, as a cell records them.
    """

    quiz: Quiz
    chunk_size: int
    rows: tuple[Row, ...]
    controls: Controls | None
    switches: dict[str, Any]

    @property
    def protocols(self) -> tuple[str, ...]:
        """Labels of the lanes, full attention first."""
        return tuple(dict.fromkeys(row.protocol for row in self.rows))

    def of(self, protocol: str) -> tuple[Row, ...]:
        """Rows of a lane."""
        return tuple(row for row in self.rows if row.protocol == protocol)

    def summary(self, protocol: str) -> dict[str, float | int]:
        """A lane in numbers.

        Returns
        -------
        dict
            ``questions``; ``exact``, how many are the answer and nothing else; ``score``, mean share of the answers
            found; ``log_likelihood``, mean in nats; ``log_likelihood_change``, mean of its difference from full
            attention's for the same question; ``same_text``, in how many the text is full attention's;
            ``others_lower``, in how many the wrong answer is less likely than the right one.
        """
        rows, full = self.of(protocol), self.of(FULL)
        change = [a.answer.log_likelihood - b.answer.log_likelihood for a, b in zip(rows, full, strict=True)]
        return {
            "questions": len(rows),
            "exact": sum(row.answer.exact for row in rows),
            "score": fmean(row.answer.score for row in rows),
            "log_likelihood": fmean(row.answer.log_likelihood for row in rows),
            "log_likelihood_change": fmean(change),
            "same_text": sum(row.first_difference is None for row in rows),
            "others_lower": sum(row.answer.other_log_likelihood < row.answer.log_likelihood for row in rows),
        }

    def as_dict(self) -> dict[str, Any]:
        """All of it but texts and tokens of the documents, as JSON has it."""
        controls = self.controls
        return {
            "task": self.quiz.task.label,
            "length": self.quiz.length,
            "seed": self.quiz.seed,
            "chat": self.quiz.prompt.chat,
            "chunk_size": self.chunk_size,
            "numerics": self.switches,
            "rows": [row.as_dict() for row in self.rows],
            "summary": {
                protocol: {name: _number(value) for name, value in self.summary(protocol).items()}
                for protocol in self.protocols
            },
            "controls": None
            if controls is None
            else {
                "questions": len(controls.without),
                "found_without": controls.found_without,
                "again_same": controls.again_same,
            },
        }


def take_quiz(
    model: PreTrainedModel,
    tokenizer: Any,
    task: str | Task | Quiz,
    tokens: int | None = None,
    *,
    protocols: str | Protocol | Sequence[str | Protocol] = ("append",),
    chunk_size: int = CHUNK_SIZE,
    documents: int = 4,
    questions: int = 1,
    seed: int = 0,
    chat: bool | None = None,
    max_new_tokens: int | None = None,
    controls: bool = True,
    dtype: str | None = None,
    half_matmul: str = "native",
    allow_beyond_context: bool = False,
    on_row: Callable[[Row], None] | None = None,
) -> Taken:
    """Ask a model the questions of a task, with full attention and with every fold over the same tokens.

    Parameters
    ----------
    model : PreTrainedModel
        Any supported causal language model, at whatever dtype and device it is in. It is left as it was.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that belongs to it.
    task : str, Task or Quiz
        A task's label, or a quiz that was made before, which then says all that is said here of texts.
    tokens : int
        Most tokens of a prompt; see :func:`drift.running.tasks.quizzes.quiz`, for the next ones, too.
    protocols : str, Protocol or sequence of these
        Readings of the fold, besides full attention.
    chunk_size : int
        Tokens per chunk of the folds; of the question, too.
    documents, questions, seed, chat
        As for :func:`drift.running.tasks.quizzes.quiz`.
    max_new_tokens : int, optional
        Most tokens of an answer: by default :data:`SPARE_TOKENS` more than the longest right one.
    controls : bool
        Whether the controls are run, with full attention: one text more without facts, and the first text again.
    dtype, half_matmul, allow_beyond_context
        As for :func:`drift.running.folding.folded.fold`.
    on_row : callable, optional
        Called with every :class:`Row` as it comes.

    Returns
    -------
    Taken

    Raises
    ------
    ConfigError
        If task, tokens, chunk size and protocols do not fit together, or exceed the model's context.
    CorpusError, PrecisionError, UnsupportedModelError
        As for :func:`drift.running.tasks.quizzes.quiz` and :func:`drift.trace`.

    Examples
    --------
    >>> taken = drift.take_quiz(model, tokenizer, "needle", 1024, protocols=["append", "isolated"])  # doctest: +SKIP
    >>> taken.summary("isolated")["exact"], taken.controls.found_without  # doctest: +SKIP
    """
    admit(model)
    chunk_size = arguments.whole("chunk_size", chunk_size, 1, MOST_TOKENS)
    arguments.truth("controls", controls)
    if on_row is not None:
        arguments.function("on_row", on_row)
    if isinstance(task, Quiz) and tokens is not None:
        raise ConfigError("This quiz is made already; its length cannot be chosen any more. Leave tokens out.")
    made = task if isinstance(task, Quiz) else _made(tokenizer, task, tokens, documents, questions, seed, chat)
    bos = getattr(tokenizer, "bos_token_id", None)
    asked = [protocols] if isinstance(protocols, str | Protocol) else protocols
    bound = dict.fromkeys(parse(protocol).bind(lambda: bos) for protocol in asked)
    if max_new_tokens is not None:
        max_new_tokens = arguments.whole("max_new_tokens", max_new_tokens, 1, MOST_TOKENS)
    examiner = Examiner(
        model, tokenizer, made, max_new_tokens, dtype=dtype, half_matmul=half_matmul,
        allow_beyond_context=allow_beyond_context,
    )  # fmt: skip
    lanes = [protocol for protocol in bound if protocol.label != FULL]
    for protocol in [parse(FULL), *lanes]:
        examiner.check(protocol, chunk_size)
    return _taken(examiner, chunk_size, lanes, controls, on_row)


def _made(
    tokenizer: Any,
    task: str | Task,
    tokens: int | None,
    documents: int,
    questions: int,
    seed: int,
    chat: bool | None,
) -> Quiz:
    if tokens is None:
        raise ConfigError("How long are the texts to be? Give tokens, the most that a prompt may have.")
    return quiz(tokenizer, task, tokens, documents=documents, questions=questions, seed=seed, chat=chat)


def _taken(
    examiner: Examiner,
    chunk_size: int,
    lanes: Sequence[Protocol],
    controls: bool,
    on_row: Callable[[Row], None] | None,
) -> Taken:
    """Ask everything."""
    documents, rows = examiner.quiz.documents, list[Row]()
    full: list[tuple[Answer, ...]] = []
    switches: dict[str, Any] = {}
    for protocol in [parse(FULL), *lanes]:
        for at, examined in enumerate(examiner.lane(protocol, chunk_size, documents)):
            switches = examined.switches
            if protocol.label == FULL:
                full.append(examined.answers)
            for question, answer in enumerate(examined.answers):
                rows.append(_row(documents[at], at, question, protocol.label, answer, full[at][question], chunk_size))
                if on_row is not None:
                    on_row(rows[-1])
    found = None
    if controls:
        (without,) = examiner.lane(parse(FULL), chunk_size, [examiner.quiz.without])
        (again,) = examiner.lane(parse(FULL), chunk_size, documents[:1])
        found = Controls(without.answers, again.answers, again.answers == full[0])
    return Taken(examiner.quiz, chunk_size, tuple(rows), found, switches)


def _row(document: Document, at: int, question: int, label: str, answer: Answer, full: Answer, chunk_size: int) -> Row:
    return Row(
        at,
        question,
        label,
        len(document.tokens),
        document.needed(question),
        document.distances(question, chunk_size),
        answer,
        first_difference(answer.tokens, full.tokens),
    )

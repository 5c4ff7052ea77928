"""A quiz put to one lane after the other: full attention, and folds over the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift.errors import ConfigError
from drift.running.folding.folded import Folded, Reached, Step
from drift.running.folding.generating import check_reach, end_tokens
from drift.running.protocols.base import Protocol
from drift.running.protocols.runnable import check_runnable
from drift.running.tasks.answering import Answer, answer_to
from drift.running.tasks.prefills import prefills
from drift.running.tasks.quizzes import Asked, Document, Quiz

__all__ = ["FULL", "SPARE_TOKENS", "Examined", "Examiner"]

FULL = "full"
#: Tokens that an answer may be longer than the longest right one, where nobody says otherwise.
SPARE_TOKENS = 16


@dataclass(frozen=True)
class Examined:
    """One text in one lane.

    Attributes
    ----------
    answers : tuple of Answer
        To all of its questions.
    scores : Tensor
        [question, vocabulary]: those by which the right answer's first token that is more than a space is chosen.
    steps : tuple of Step
        What every chain step of the text took. Steps that it shares with another text were taken once.
    switches : dict
        The numerical switches of the passes, as a cell records them.
    """

    answers: tuple[Answer, ...]
    scores: Tensor
    steps: tuple[Step, ...]
    switches: dict[str, Any]


class Examiner:
    """A quiz, and a model that takes it.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    made : Quiz
    new : int, optional
        Most tokens of an answer: by default :data:`SPARE_TOKENS` more than the longest right one.
    allow_beyond_context : bool
        Whether positions may run past the context length that the model declares.
    **options
        What else :func:`drift.running.folding.folded.fold` takes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        made: Quiz,
        new: int | None = None,
        *,
        allow_beyond_context: bool = False,
        **options: Any,
    ) -> None:
        self.quiz = made
        self._model, self._tokenizer = model, tokenizer
        self._new = new or max(len(asked.answer) for asked in made.without.questions) + SPARE_TOKENS
        self._beyond = allow_beyond_context
        self._options = {"allow_beyond_context": allow_beyond_context, **options}
        self._ends = end_tokens(model, tokenizer)
        self._questions = max(len(asked.tokens) for asked in made.without.questions)
        self._others = _others(made)

    def check(self, protocol: Protocol, chunk_size: int) -> None:
        """Refuse what a lane cannot do, before anything is computed.

        Raises
        ------
        ConfigError
            If the protocol cannot be run or reaches beyond the model's context, or facts that must lie in different
            chunks do not.
        """
        check_runnable(protocol)
        longest = max(len(text.tokens) for text in (*self.quiz.documents, self.quiz.without))
        size = self._size(protocol, chunk_size)
        if not self._beyond:
            reached = Reached.through(protocol, longest, size)
            check_reach(self._model, protocol, reached, size, self._questions, self._new)
        if self.quiz.task.apart and protocol.name != FULL:
            for document in self.quiz.documents:
                for question in range(len(document.questions)):
                    self._check_apart(document.distances(question, chunk_size), chunk_size)

    def _check_apart(self, distances: Sequence[int], chunk_size: int) -> None:
        if len(set(distances)) < len(distances):
            raise ConfigError(
                f"Task {self.quiz.task.label}: chunks of {chunk_size} tokens hold several of the facts that must "
                f"lie in different ones, in texts of {self.quiz.length}. Take smaller chunks, or longer texts."
            )

    def _size(self, protocol: Protocol, chunk_size: int) -> int:
        """Tokens per chunk: full attention takes the question in one pass, too, whatever the chunks of the folds."""
        return self.quiz.length if protocol.name == FULL else chunk_size

    def lane(self, protocol: Protocol, chunk_size: int, documents: Sequence[Document]) -> Iterator[Examined]:
        """Ask all questions of some documents, text by text.

        Parameters
        ----------
        protocol : Protocol
            Bound, see :meth:`drift.running.protocols.base.Protocol.bind`.
        chunk_size : int
            Tokens per chunk; full attention takes text and question in a pass each.
        documents : sequence of Document
        """
        behind = self._questions + self._new + max(map(len, self._others.values()))
        texts = [document.tokens for document in documents]
        folds = prefills(self._model, texts, self._size(protocol, chunk_size), protocol, behind, **self._options)
        for document in documents:
            yield self._examined(document, next(folds))  # by no name here: the next text writes where this one was

    def _examined(self, document: Document, prefill: Folded) -> Examined:
        answers, scores = zip(
            *(
                answer_to(prefill, asked, self._others[asked], self._new, self._ends, self._tokenizer)
                for asked in document.questions
            ),
            strict=True,
        )
        return Examined(answers, torch.stack(scores), tuple(prefill.steps), prefill.switches)


def _others(made: Quiz) -> dict[Asked, tuple[int, ...]]:
    """A wrong answer to every question, in tokens: another text's; of the only text, another question's, or made up."""
    wrong, count = dict[Asked, tuple[int, ...]](), len(made.documents)
    for at, document in enumerate(made.documents):
        following = [made.documents[(at + step) % count] for step in range(1, count)]
        for asked in document.questions:
            question = asked.question
            made_up = " " + question.joint.join(islice(cycle(question.others), len(question.answers)))
            candidates = (other.answer for text in (*following, document) for other in text.questions)
            wrong[asked] = next(
                (answer for answer in candidates if answer != asked.answer), tuple(made.prompt.written(made_up))
            )
    return wrong

"""A group of task cells at work: full attention once, then one fold after the other over the same tokens.

Each cell is written when its fold is through; what texts gave is kept until then, and what full attention gave until
the group is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from drift import dataset
from drift.dataset.hashing import content_hash
from drift.dataset.rungs import rung
from drift.dataset.task_contract import LANES
from drift.running import protocols
from drift.running.keeping import KeptDocuments
from drift.running.model.numerics import computing_rung, numerics
from drift.running.model.weights import weights_of
from drift.running.protocols.base import Protocol
from drift.running.provenance import provenance
from drift.running.sweep.cells import Cell
from drift.running.sweep.outcome import Failure
from drift.running.sweep.published import reckoned
from drift.running.sweep.working import Work, free_memory
from drift.running.tasks.examining import FULL, Examiner
from drift.running.tasks.quizzes import Document, quiz
from drift.running.tasks.tabling import Recorded, recorded, same_bits, task_variables

__all__ = ["Asking"]

_PER_LANE = ("protocol", "chunk_size")  # what the cells of a group differ in


@dataclass(frozen=True)
class _Full:
    """What full attention made of a quiz: every text, the one without facts, and the first one once more."""

    texts: Sequence[Recorded]
    without: Recorded
    again_same: bool


class Asking(Work):
    """The same questions, put to full attention and to several folds."""

    _done = 0  # texts of all lanes
    _of = 1

    def attempt(self) -> bool:
        """Ask; whether there were texts."""
        first, loaded = self.cells[0], self.weights.loaded
        cells = self.with_their_tokens(loaded.tokenizer)
        if not cells:
            return False
        try:
            made = quiz(
                loaded.tokenizer, first.task, first.tokens,
                documents=first.documents, questions=first.questions, seed=first.seed,
            )  # fmt: skip
            examiner = Examiner(
                loaded.model, loaded.tokenizer, made,
                dtype=first.dtype, half_matmul=first.half_matmul,
                allow_beyond_context=any(cell.beyond_context for cell in cells),
            )  # fmt: skip
            examiner.check(protocols.parse(FULL), made.length)
        except Exception as error:
            self.fail(cells, Failure.of(error))
            return False
        self._of = len(made.documents) * (1 + len(cells)) + 2
        self._ask(cells, examiner)
        return True

    def _ask(self, cells: Sequence[Cell], examiner: Examiner) -> None:
        made = examiner.quiz
        texts = content_hash([[list(text.tokens), [q.tokens for q in text.questions]] for text in made.documents])
        alike = {name: value for name, value in self.cells[0].record.items() if name not in _PER_LANE}
        kept = self.kept([{**alike, "lane": FULL}], texts)
        try:
            full = self._full(examiner, kept)
        except Exception as error:
            failure = Failure.of(error)
            free_memory(self.cells[0].device)
            self.fail(cells, failure)
        else:
            for cell in cells:
                if not self.outcome.stopped:
                    self._fold(cell, examiner, full, texts)
        kept.forget()

    def _full(self, examiner: Examiner, kept: KeptDocuments) -> _Full:
        """Full attention of all texts, and the controls."""
        made, whole = examiner.quiz, protocols.parse(FULL)
        texts = list(self._lane(examiner, whole, made.length, made.documents, kept))
        others = [made.without, made.documents[0]]
        # The two begin alike: asked one by one, nothing of one is in the other.
        without, again = (
            next(self._lane(examiner, whole, made.length, [text], kept, len(texts) + place))
            for place, text in enumerate(others)
        )
        return _Full(texts, without, same_bits(again, texts[0]))

    def _fold(self, cell: Cell, examiner: Examiner, full: _Full, texts: str) -> None:
        """One fold, and its cell."""
        began, made, tokenizer = time.perf_counter(), examiner.quiz, self.weights.loaded.tokenizer
        kept = self.kept([cell.record], texts)
        try:
            bound = protocols.parse(cell.protocol).bind(lambda: tokenizer.bos_token_id)
            examiner.check(bound, cell.chunk_size)
            fold = list(self._lane(examiner, bound, cell.chunk_size, made.documents, kept, of=full.texts))
            lanes = dict(zip(LANES, (full.texts, fold), strict=True))
            variables = task_variables(made, cell.chunk_size, lanes, full.without, full.again_same, tokenizer)
            own = {"tokens_sha256": texts, "elapsed_s": round(time.perf_counter() - began, 3)}
            attrs = self._attributes(cell, bound, made.prompt.chat) | own
            ds = dataset.build_task(variables, scalars=_scalars(cell), attrs=attrs)
        except Exception as error:
            failure = Failure.of(error)
            free_memory(cell.device)
            self.fail([cell], failure)
        else:
            self.keep(cell, ds)
        kept.forget()

    def _lane(
        self,
        examiner: Examiner,
        protocol: Protocol,
        chunk_size: int,
        documents: Sequence[Document],
        kept: KeptDocuments,
        first: int = 0,
        of: Sequence[Recorded] = (),
    ) -> Iterator[Recorded]:
        """Texts in one lane; those that are kept, from the place `first` on, are read. `of` is full attention."""
        switches = self._switches()
        there = [kept.load(first + at, switches) for at in range(len(documents))]
        left = [text for text, found in zip(documents, there, strict=True) if not found]
        coming = examiner.lane(protocol, chunk_size, left)
        for at, found in enumerate(there):
            if not found:
                # By no name: the next text writes where this one was.
                found = [recorded(next(coming), of[at] if of else None)]
                kept.save(first + at, switches, found)
            self._done += 1
            self.progress(self._done / self._of)
            yield found[0]

    def _switches(self) -> dict[str, Any]:
        """The numerical switches of the passes."""
        cell, model = self.cells[0], self.weights.loaded.model
        with numerics(computing_rung(model, cell.dtype), str(weights_of(model).device), cell.half_matmul) as switches:
            return dict(switches)

    def _attributes(self, cell: Cell, bound: Protocol, chat: bool) -> dict[str, object]:
        """What a cell says of itself, and what it was made with."""
        loaded = self.weights.loaded
        bos = loaded.tokenizer.bos_token_id
        return {
            **provenance(weights_of(loaded.model).device),
            **self.shared_attributes(),
            "title": f"Asked of the fold: {cell}",
            "config_json": cell.record,
            "numerics_json": {**self._switches(), "attn_implementation": cell.attn_implementation},
            # A label leaves out what is as by default; who reads a cell knows no defaults.
            "protocol_json": {"name": bound.name, "label": bound.label, "options": _options(bound)},
            "protocol_summary": bound.in_words,
            "bos_token_id": -1 if bos is None else int(bos),
            "chat_template": int(chat),
            "reckoned_json": reckoned(cell),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _options(bound: Protocol) -> dict[str, int | float | str]:
    """Options of a protocol that are numbers or words, set or not."""
    values = {field.name: getattr(bound, field.name) for field in fields(bound)}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


def _scalars(cell: Cell) -> dict[str, str | int | float]:
    """The scalar coordinates of a task cell."""
    axes = {name: value for name, value in cell.axes.items() if name in dataset.TASK_SCALARS}
    return {**axes, "family": cell.family, "unit_roundoff": rung(cell.dtype).unit_roundoff}

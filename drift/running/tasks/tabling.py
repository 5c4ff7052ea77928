"""What came of a quiz as arrays: of one text in one lane, to be kept, and of all texts in two, as a cell has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drift.dataset.task_contract import LANES, NONE
from drift.running.measures import LogitReference, compare_logits
from drift.running.tasks.examining import Examined
from drift.running.tasks.quizzes import Document, Quiz
from drift.running.tasks.scoring import first_difference

__all__ = ["Recorded", "recorded", "same_bits", "task_variables"]

#: One text in one lane: arrays [question], [question, token], [question, vocabulary] or [step], by name.
Recorded = dict[str, NDArray[Any]]
_TIMED = ("seconds", "peak_bytes")
_LANE_ROWS = (
    "exact", "score", "log_likelihood", "rank", "margin", "other_log_likelihood", "generated_tokens", "nonfinite_count",
)  # fmt: skip


def _padded(rows: Sequence[Sequence[Any] | NDArray[Any]], fill: float, dtype: Any) -> NDArray[Any]:
    """Rows of several lengths as one array [row, place]."""
    array = np.full((len(rows), max(map(len, rows), default=0)), fill, dtype=dtype)
    for row, values in zip(array, rows, strict=True):
        row[: len(values)] = values
    return array


def recorded(examined: Examined, full: Recorded | None = None) -> Recorded:
    """Take what one text in one lane gave as arrays.

    Parameters
    ----------
    examined : Examined
    full : Recorded, optional
        The same text with full attention: what is compared with it is compared here. Without, the scores are kept, for
        others to be compared with.

    Returns
    -------
    Recorded
    """
    answers, steps = examined.answers, examined.steps
    values: dict[str, Any] = {
        "exact": [int(a.exact) for a in answers],
        "score": [a.score for a in answers],
        "log_likelihood": [a.log_likelihood for a in answers],
        "rank": [a.rank for a in answers],
        "margin": [a.margin for a in answers],
        "other_log_likelihood": [a.other_log_likelihood for a in answers],
        "generated_tokens": [len(a.tokens) for a in answers],
        "nonfinite_count": [a.nonfinite for a in answers],
        "tokens": _padded([a.tokens for a in answers], NONE, np.int64),
        "log_likelihoods": _padded([a.log_likelihoods for a in answers], np.nan, np.float64),
        "seconds": [step.seconds for step in steps],
        "carried_bytes": [step.carried_bytes for step in steps],
        "peak_bytes": [step.peak_bytes for step in steps],
    }
    found = {name: np.asarray(value) for name, value in values.items()}
    scores = examined.scores.cpu()
    scores = scores if scores.dtype is torch.float64 else scores.float()  # 16-bit scores widen exactly
    if full is None:
        return found | {"scores": scores.numpy()}
    targets = torch.full((len(answers),), -1, dtype=torch.int64)
    rows = compare_logits(LogitReference(torch.from_numpy(full["scores"]), targets), scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.sqrt(rows.difference2) / np.sqrt(rows.reference2)
    return found | {"answer_kl": rows.kl, "answer_logit_rel_l2": relative}


def same_bits(a: Recorded, b: Recorded) -> bool:
    """Whether two runs of a text in a lane gave the same bits, time and memory aside."""
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes() for name in a if name not in _TIMED
    )


def task_variables(
    quiz: Quiz,
    chunk_size: int,
    lanes: Mapping[str, Sequence[Recorded]],
    without: Recorded,
    again_same: bool,
    tokenizer: Any,
) -> dict[str, NDArray[Any]]:
    """Variables of a task cell, see :data:`drift.dataset.task_contract.TASK_VARIABLES`.

    Parameters
    ----------
    quiz : Quiz
    chunk_size : int
    lanes : mapping of str to sequence of Recorded
        ``full`` and ``fold``: every text.
    without : Recorded
        The text without facts, with full attention and the questions of all texts.
    again_same : bool
        Whether the first text gave the same bits when full attention was asked twice.
    tokenizer : PreTrainedTokenizerBase
    """
    documents = quiz.documents
    shape = (len(documents), len(documents[0].questions))
    full, fold = (lanes[lane] for lane in LANES)
    found: dict[str, NDArray[Any]] = {
        f"{name}_{lane}": np.stack([text[name] for text in texts])
        for lane, texts in zip(LANES, (full, fold), strict=True)
        for name in _LANE_ROWS
    }
    said = {lane: [[_said(row, tokenizer) for row in text["tokens"]] for text in lanes[lane]] for lane in LANES}
    asked = [document.questions for document in documents]
    differences = [
        [first_difference(_spoken(a), _spoken(b)) for a, b in zip(text["tokens"], whole["tokens"], strict=True)]
        for text, whole in zip(fold, full, strict=True)
    ]
    found |= {f"said_{lane}": np.array(texts, dtype=str) for lane, texts in said.items()}
    found |= {
        "expected": np.array([[q.question.answer.strip() for q in row] for row in asked], dtype=str),
        "text_tokens": np.array([len(document.tokens) for document in documents]),
        "question_tokens": np.array([[len(q.tokens) for q in row] for row in asked]),
        "answer_tokens": np.array([[len(q.answer) for q in row] for row in asked]),
        **_facts(documents, chunk_size),
        "first_difference": np.array([[NONE if at is None else at for at in row] for row in differences]),
        "answer_kl": np.stack([text["answer_kl"] for text in fold]),
        "answer_logit_rel_l2": np.stack([text["answer_logit_rel_l2"] for text in fold]),
        **{f"without_{name}": without[name].reshape(shape) for name in ("exact", "score", "log_likelihood")},
        "again_same": np.array([int(again_same), *[NONE] * (len(documents) - 1)]),
        "fold_seconds": _padded([text["seconds"] for text in fold], np.nan, np.float64),
        "fold_carried_bytes": _padded([text["carried_bytes"] for text in fold], NONE, np.int64),
        "fold_peak_bytes": _padded([text["peak_bytes"] for text in fold], NONE, np.int64),
        "full_seconds": np.array([text["seconds"].sum() for text in full]),
        "full_carried_bytes": np.array([text["carried_bytes"][-1] for text in full]),
        "full_peak_bytes": np.array([text["peak_bytes"].max() for text in full]),
    }
    return found


def _facts(documents: Sequence[Document], chunk_size: int) -> dict[str, NDArray[Any]]:
    """Where the facts lie that every answer rests on: [document, question, fact] each."""
    rows = [
        [
            [(p.start, p.stop, d) for p, d in zip(text.needed(q), text.distances(q, chunk_size), strict=True)]
            for q in range(len(text.questions))
        ]
        for text in documents
    ]
    most = max(len(facts) for row in rows for facts in row)
    array = np.full((len(rows), len(rows[0]), most, 3), NONE, dtype=np.int64)
    for at, row in enumerate(rows):
        for question, facts in enumerate(row):
            array[at, question, : len(facts)] = facts
    return {f"fact_{name}": array[..., place] for place, name in enumerate(("start", "stop", "distance"))}


def _spoken(tokens: NDArray[Any]) -> list[int]:
    """The tokens of an answer, without what fills the row up."""
    return [int(token) for token in tokens if token != NONE]


def _said(tokens: NDArray[Any], tokenizer: Any) -> str:
    """An answer in letters; a NUL would end a text in the file."""
    text = tokenizer.decode(_spoken(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).replace("\0", "\ufffd")

"""The data contract of task cells: one task, asked of full attention and of one fold over the same tokens.

A cell of a sweep is of one of two kinds. Most measure drift (:mod:`drift.dataset.contract`); those that have the
coordinate ``task`` hold what came of questions, and have these rows and a schema version of their own. Rows of both
lanes end in ``_full`` (full attention) and ``_fold``. Two controls stand beside them: the same questions to a text with
no facts in it (``without_``), and full attention of the first text once more (``again_same``). The third, the answer of
another item, is asked in both lanes (``other_log_likelihood_``).

Where a question rests on fewer facts than another of its cell, or a text has fewer steps, the places that are left hold
:data:`NONE`, or NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from drift.dataset.contract import COORDINATES, REQUIRED_ATTRS, Coordinate, Variable

__all__ = [
    "LANES",
    "NONE",
    "TASK_ATTRS",
    "TASK_COORDINATES",
    "TASK_SCALARS",
    "TASK_SCHEMA_VERSION",
    "TASK_VARIABLES",
    "is_task",
]

#: What a whole number is where there is none: no fact, no step, no difference, not asked.
NONE = -1
#: The lanes of a task cell, and how the names of their rows end.
LANES = ("full", "fold")
TASK_ATTRS = tuple(name for name in REQUIRED_ATTRS if name != "logit_stride")

# A logarithm of a sum that is 1 may come out this far above 0.
_ROUNDING = 1e-6
_DQ = ("document", "question")
_DQF = (*_DQ, "fact")
_DS = ("document", "step")
_D = ("document",)

_PER_LANE: dict[str, Variable] = {
    "said": Variable(_DQ, "1", "greedy answer", "U", lower=None),
    "exact": Variable(_DQ, "1", "answer is the right one and nothing else", "int64", upper=1),
    "score": Variable(_DQ, "1", "share of the right answers that occur in the answer", upper=1),
    "log_likelihood": Variable(
        _DQ, "nat", "log-likelihood of the right answer by teacher forcing", lower=None, upper=_ROUNDING
    ),
    "rank": Variable(_DQ, "1", "rank of the right answer's first token", "int64", lower=1),
    "margin": Variable(_DQ, "nat", "log-odds of the right answer's first token against the best other", lower=None),
    "other_log_likelihood": Variable(
        _DQ, "nat", "log-likelihood of another item's answer by teacher forcing", lower=None, upper=_ROUNDING
    ),
    "generated_tokens": Variable(_DQ, "token", "tokens of the greedy answer", "int64", lower=1),
    "nonfinite_count": Variable(_DQ, "1", "scores that are NaN or Inf", "int64"),
}
_WORDS = {"full": "full attention", "fold": "fold"}
_OWN: dict[str, Variable] = {
    "expected": Variable(_DQ, "1", "right answer", "U", lower=None),
    "text_tokens": Variable(_D, "token", "tokens of the text in front of the question", "int64", lower=1),
    "question_tokens": Variable(_DQ, "token", "tokens of the question", "int64"),
    "answer_tokens": Variable(_DQ, "token", "tokens of the right answer", "int64", lower=1),
    "fact_start": Variable(_DQF, "token", "first token of a fact that the answer rests on", "int64", lower=NONE),
    "fact_stop": Variable(_DQF, "token", "one past the last token of that fact", "int64", lower=NONE),
    "fact_distance": Variable(_DQF, "1", "chunks between that fact and the question", "int64", lower=NONE),
    "first_difference": Variable(
        _DQ, "token", "first token of the fold's answer that is not full attention's", "int64", lower=NONE
    ),
    "answer_kl": Variable(_DQ, "nat", "KL(full || fold) where the answer's first token is chosen", lower=-_ROUNDING),
    "answer_logit_rel_l2": Variable(_DQ, "1", "relative L2 drift of the logits where that token is chosen"),
    "without_exact": Variable(_DQ, "1", "answered without the facts, full attention", "int64", upper=1),
    "without_score": Variable(_DQ, "1", "share of the answers found without the facts, full attention", upper=1),
    "without_log_likelihood": Variable(
        _DQ, "nat", "log-likelihood of the right answer without the facts", lower=None, upper=_ROUNDING
    ),
    "again_same": Variable(
        _D, "1", "full attention asked twice gives the same bits (-1: not asked)", "int64", lower=NONE, upper=1
    ),
    "fold_seconds": Variable(_DS, "s", "time of the chain step", volatile=True),
    "fold_carried_bytes": Variable(_DS, "byte", "carried KV cache after the step", "int64", lower=NONE),
    "fold_peak_bytes": Variable(_DS, "byte", "peak memory of the step", "int64", lower=NONE, volatile=True),
    "full_seconds": Variable(_D, "s", "time of full attention over the text", volatile=True),
    "full_carried_bytes": Variable(_D, "byte", "KV cache of full attention over the text", "int64"),
    "full_peak_bytes": Variable(_D, "byte", "peak memory of full attention over the text", "int64", volatile=True),
}
#: The table of variables of task cells; none of them is a curve.
TASK_VARIABLES: dict[str, Variable] = {
    name: replace(row, distance=False)
    for name, row in (
        *(
            (f"{name}_{lane}", replace(row, long_name=f"{row.long_name}, {_WORDS[lane]}"))
            for name, row in _PER_LANE.items()
            for lane in LANES
        ),
        *_OWN.items(),
    )
}
#: Version of this table: a part of every task cell's hash, as the schema version is of other cells'.
TASK_SCHEMA_VERSION = "1"

_SHARED = (
    "model", "family", "dtype", "unit_roundoff", "chunk_size", "protocol", "reference", "attn_implementation", "device",
)  # fmt: skip
TASK_COORDINATES: dict[str, Coordinate] = {
    **{name: COORDINATES[name] for name in _SHARED},
    "task": Coordinate((), "U", None, "task"),
    "tokens": Coordinate((), "i", "token", "most tokens of a prompt"),
    "document": COORDINATES["document"],
    "question": Coordinate(("question",), "i", "1", "question about a document"),
    "fact": Coordinate(("fact",), "i", "1", "fact that an answer rests on"),
    "step": COORDINATES["step"],
}
#: Scalar coordinates: the axes by which task cells are told apart.
TASK_SCALARS = tuple(name for name, c in TASK_COORDINATES.items() if not c.dims)


def is_task(names: Iterable[object]) -> bool:
    """Whether a cell with these variables and coordinates (``ds.variables``) is a task cell."""
    return "task" in {str(name) for name in names}

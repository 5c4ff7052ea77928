"""Why is drift flat, or why is it not? Drift, its floor, the error of one step and what is inherited, in words."""

from drift.reading.why.computing import explain
from drift.reading.why.concluding import (
    RESPONSE_COMMAND,
    explanation,
    growth_table,
    limits,
    response_sentences,
    response_table,
    table,
    table_legend,
)
from drift.reading.why.model import Adding, Answer, Chain, Explained, Meeting, Position, Quantity, Responding
from drift.reading.why.wording import answer, depth_sentences, formula, parts_sentences, position_sentences

__all__ = [
    "RESPONSE_COMMAND",
    "Adding",
    "Answer",
    "Chain",
    "Explained",
    "Meeting",
    "Position",
    "Quantity",
    "Responding",
    "answer",
    "depth_sentences",
    "explain",
    "explanation",
    "formula",
    "growth_table",
    "limits",
    "parts_sentences",
    "position_sentences",
    "response_sentences",
    "response_table",
    "table",
    "table_legend",
]

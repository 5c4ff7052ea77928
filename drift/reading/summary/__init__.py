"""What a sweep holds and shows, in tables and sentences."""

from drift.reading.summary.describing import (
    chunk_sentences,
    curve_sentences,
    depth_answer,
    depth_sentences,
    headline,
    logit_sentences,
    thresholds,
    token_sentences,
)
from drift.reading.summary.explaining import words
from drift.reading.summary.inventory import contents, failures, nonfinite, problems, provenance
from drift.reading.summary.levels import Figures, curves, depth, figures, slopes, table, tokens
from drift.reading.summary.reproducing import reproduce
from drift.reading.summary.scaling import scaling_table
from drift.reading.summary.tables import depth_table, shown

__all__ = [
    "Figures",
    "chunk_sentences",
    "contents",
    "curve_sentences",
    "curves",
    "depth",
    "depth_answer",
    "depth_sentences",
    "depth_table",
    "failures",
    "figures",
    "headline",
    "logit_sentences",
    "nonfinite",
    "problems",
    "provenance",
    "reproduce",
    "scaling_table",
    "shown",
    "slopes",
    "table",
    "thresholds",
    "token_sentences",
    "tokens",
    "words",
]

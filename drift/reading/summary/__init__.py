"""What a sweep holds and shows, in tables and sentences."""

from drift.reading.summary.describing import (
    chunk_sentences,
    curve_sentences,
    depth_sentences,
    headline,
    logit_sentences,
    thresholds,
    token_sentences,
)
from drift.reading.summary.inventory import contents, failures, nonfinite, problems, provenance
from drift.reading.summary.levels import Figures, curves, depth, figures, slopes, table, tokens
from drift.reading.summary.reproducing import reproduce
from drift.reading.summary.tables import shown, shown_slopes

__all__ = [
    "Figures",
    "chunk_sentences",
    "contents",
    "curve_sentences",
    "curves",
    "depth",
    "depth_sentences",
    "failures",
    "figures",
    "headline",
    "logit_sentences",
    "nonfinite",
    "problems",
    "provenance",
    "reproduce",
    "shown",
    "shown_slopes",
    "slopes",
    "table",
    "thresholds",
    "token_sentences",
    "tokens",
]

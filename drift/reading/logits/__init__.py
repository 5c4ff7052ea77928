"""Logits and log-probabilities of two lanes, compared: how far apart, and whether that is within the floor.

``python -m drift.logits A B`` opens files of any engine; :func:`compare_logits` and :func:`compare_logprobs` take
arrays. docs/logits.md has the formats, the numbers, and what the verdicts mean.
"""

from __future__ import annotations

from drift.reading.logits.comparing import compare_lanes, compare_logits, compare_logprobs
from drift.reading.logits.importers import open_lane
from drift.reading.logits.model import LogitComparison, Number, Quantity, Reason, Units, Verdict
from drift.reading.logits.showing import as_dict, page

__all__ = [
    "LogitComparison",
    "Number",
    "Quantity",
    "Reason",
    "Units",
    "Verdict",
    "as_dict",
    "compare_lanes",
    "compare_logits",
    "compare_logprobs",
    "open_lane",
    "page",
]

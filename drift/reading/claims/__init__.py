"""The published claims as data, the audit that holds a sweep against them, and its page.

:mod:`drift.reading.claims.auditing` decides, :mod:`drift.reading.claims.page` shows;
``python -m drift.claims`` is the command line.
"""

from __future__ import annotations

from drift.reading.amplitudes import AMPLITUDE_POWERS, BOUNDED, SHORT, UNRELATED, amplitude, amplitude_power
from drift.reading.cells import deepest
from drift.reading.claims.auditing import audit
from drift.reading.claims.missing import undecided
from drift.reading.claims.model import (
    PUBLISHED_DEPTH,
    SIGNS,
    Audit,
    Claim,
    ClaimSummary,
    Finding,
    Setting,
    Status,
    parse_margins,
    settings,
)
from drift.reading.claims.page import (
    by_protocol,
    changes,
    commands,
    differing,
    estimate,
    evidence,
    files,
    html,
    limits,
    markdown,
    matrix,
    meaning,
    method,
    task_meaning,
    verdict_sentences,
)
from drift.reading.claims.published import CLAIMS
from drift.reading.claims.retrieval import shares
from drift.reading.claims.saturation import verdicts
from drift.reading.claims.showing import (
    answer,
    by_chunk,
    by_measure,
    chain_answer,
    chain_table,
    findings,
    measures_legend,
    verdict_table,
)
from drift.reading.claims.wording import span, writer
from drift.reading.statistics.intervals import holm

__all__ = [
    "AMPLITUDE_POWERS",
    "BOUNDED",
    "CLAIMS",
    "PUBLISHED_DEPTH",
    "SHORT",
    "SIGNS",
    "UNRELATED",
    "Audit",
    "Claim",
    "ClaimSummary",
    "Finding",
    "Setting",
    "Status",
    "amplitude",
    "amplitude_power",
    "answer",
    "audit",
    "by_chunk",
    "by_measure",
    "by_protocol",
    "chain_answer",
    "chain_table",
    "changes",
    "commands",
    "deepest",
    "differing",
    "estimate",
    "evidence",
    "files",
    "findings",
    "holm",
    "html",
    "limits",
    "markdown",
    "matrix",
    "meaning",
    "measures_legend",
    "method",
    "parse_margins",
    "settings",
    "shares",
    "span",
    "task_meaning",
    "undecided",
    "verdict_sentences",
    "verdict_table",
    "verdicts",
    "writer",
]

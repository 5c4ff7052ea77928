"""How drift goes with the precision: log-log slopes on the unit roundoff, and where an error comes from.

Rounding makes drift proportional to the unit roundoff (slope 1); another computation makes it the same at every
precision (slope 0). The slope is estimated per document, over the same text and the same steps at every rung, so that
what documents have in common cancels; its interval is one of Student's t over the documents. Rungs differ in more than
their unit roundoff (bf16 and fp16 round what they store and accumulate in fp32), hence adjacent pairs are judged, too.

Cells against full attention in float64 (reference ``gold``) also carry the error as a sum of three parts:
:func:`attributions` summarises them. The attribution needs no second rung: it takes one error apart; the ladder needs
no float64: it compares errors. They are independent evidence.

``python -m drift.ladder`` is the command line.
"""

from drift.reading.amplitudes import LADDER_MEASURES
from drift.reading.ladder.attribution import PARTS, PARTS_COMMAND, Attribution, attributions, check_shares
from drift.reading.ladder.judging import Ladder, Pair, as_dict, ladders
from drift.reading.ladder.wording import (
    attribution_frame,
    attribution_sentences,
    by_measure,
    departure,
    headlines,
    ladder_frame,
    method,
    shown,
    slope_words,
)

__all__ = [
    "LADDER_MEASURES",
    "PARTS",
    "PARTS_COMMAND",
    "Attribution",
    "Ladder",
    "Pair",
    "as_dict",
    "attribution_frame",
    "attribution_sentences",
    "attributions",
    "by_measure",
    "check_shares",
    "departure",
    "headlines",
    "ladder_frame",
    "ladders",
    "method",
    "shown",
    "slope_words",
]

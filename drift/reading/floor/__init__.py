"""Is drift rounding? The answer of one precision: its level and growth in units of its own rounding floor.

The precision ladder answers the same question by comparing precisions (:mod:`drift.reading.ladder`); the floor needs
one. They are independent evidence: :func:`contradictions` lists where they disagree.
"""

from drift.reading.floor.comparing import both_verdicts, contradictions
from drift.reading.floor.judging import from_curve, from_sweep, rounding, rounding_frame
from drift.reading.floor.model import FACTOR, Compared, Contradiction, Rounding, Standing, StandingReason
from drift.reading.floor.responding import RESPONSE_TOLERANCE, NoiseResponse, noise_responses
from drift.reading.floor.response_wording import response_headline
from drift.reading.floor.wording import headline, method, standing_words

__all__ = [
    "FACTOR",
    "RESPONSE_TOLERANCE",
    "Compared",
    "Contradiction",
    "NoiseResponse",
    "Rounding",
    "Standing",
    "StandingReason",
    "both_verdicts",
    "contradictions",
    "from_curve",
    "from_sweep",
    "headline",
    "method",
    "noise_responses",
    "response_headline",
    "rounding",
    "rounding_frame",
    "standing_words",
]

"""Verdicts of the statistics as sentences."""

from __future__ import annotations

from drift.dataset.labels import parse_label
from drift.reading.statistics.rate import Trend
from drift.reading.statistics.slope import Scaling

__all__ = ["SCALING_WORDS", "STORAGE_WORDS", "TREND_WORDS", "is_stored_coarsely"]

SCALING_WORDS = {
    Scaling.ROUNDING: "rounding: drift is proportional to the unit roundoff",
    Scaling.STRUCTURAL: "structural: drift does not depend on the precision",
    Scaling.BOTH: "both: drift shrinks with the unit roundoff, but less than in proportion",
    Scaling.UNDETERMINED: "undetermined: these data do not decide",
}

TREND_WORDS = {
    Trend.CONTRACTION: "contraction: a disturbance decays along the chain",
    Trend.NEUTRAL: "neutral: a disturbance is carried along, neither amplified nor forgotten",
    Trend.GROWTH: "growth: a disturbance is amplified along the chain",
    Trend.UNDETERMINED: "undetermined: these data do not decide",
}

#: Of a fold whose cache is stored in fewer bits: why rounding of the storage is called structural.
STORAGE_WORDS = (
    "Rounding of the storage has the slope of a structure: the step that the cache is stored in does not change with "
    "the precision of the pass, which is all that the ladder varies, so the ladder calls it structural."
)


def is_stored_coarsely(protocol: str) -> bool:
    """Whether :data:`STORAGE_WORDS` are about this reading of the fold."""
    return parse_label(protocol).name == "quantized"

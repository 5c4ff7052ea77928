"""Verdicts of the statistics as sentences."""

from __future__ import annotations

from drift.reading.statistics.rate import Trend
from drift.reading.statistics.slope import Scaling

__all__ = ["SCALING_WORDS", "TREND_WORDS"]

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

"""A pair of lanes, weighed by what the same pair does at another precision."""

from __future__ import annotations

import math

import numpy as np

from drift.reading.diagnose.model import Cause, Diagnosis, Evidence, Verdict
from drift.reading.diagnose.tensors import FORMATS, Place

__all__ = ["with_other_precision"]


def _stored(diagnosis: Diagnosis) -> float:
    """Unit roundoff of what the coarser lane of a pair is stored in."""
    pair = diagnosis.comparison.a, diagnosis.comparison.b
    return max(min(FORMATS[d].unit_roundoff for place in dump.places for d in dump.dtypes(place)) for dump in pair)


#: What the verdict at a finer precision may overrule.
_OVERRULED = {
    Verdict.STRUCTURAL: (Verdict.SAME, Verdict.ROUNDING, Verdict.UNDETERMINED),
    Verdict.NARROWER: (Verdict.SAME, Verdict.ROUNDING, Verdict.UNDETERMINED),
    Verdict.UNDETERMINED: (Verdict.SAME, Verdict.ROUNDING),
}


def with_other_precision(found: Diagnosis, second: Diagnosis) -> Diagnosis:
    """Weigh a pair by what the same pair does at another precision."""
    u, v = found.roundoff.value, second.roundoff.value
    finer = v < u or (v == u and _stored(second) < _stored(found))
    before = found.verdict
    if finer and before in _OVERRULED.get(second.verdict, ()):
        found.verdict, found.cause, found.entry = second.verdict, second.cause, second.entry
        found.cause_text, found.reason = second.cause_text, second.reason
        found.evidence += [Evidence(f"At the other precision: {e.text}", e.numbers) for e in second.evidence]
    slopes: dict[Place, float] = {}
    if u != v:
        for place in found.envelopes.keys() & second.envelopes.keys():
            one = found.comparison.profiles[place].rel_l2(0, found.comparison.tokens)
            two = second.comparison.profiles[place].rel_l2(0, second.comparison.tokens)
            if 0 < one < math.inf and 0 < two < math.inf:
                slopes[place] = math.log(one / two) / math.log(u / v)
    if finer and before is Verdict.UNDETERMINED and found.could_hide is not None and second.verdict is Verdict.SAME:
        found.verdict, found.cause, found.reason = Verdict.ROUNDING, Cause.NONE, ""
        found.evidence.append(Evidence("At the finer precision the lanes hold the same bits."))
    if not slopes:
        found.notes.append(
            "The other precision gives no slope: its unit roundoff is the same, or a pair does not differ."
        )
        return found
    middle = float(np.median(list(slopes.values())))
    entry = found.entry.place if found.entry is not None else None
    at = slopes.get(entry) if entry is not None else None
    words = f", {at:.2f} at {entry}" if at is not None else ""
    found.evidence.append(
        Evidence(
            f"At the other precision (unit roundoff {v:.3g} instead of {u:.3g}) the log-log slope of the difference is "
            f"{middle:.2f} over all places{words}: near 1 is rounding, near 0 is not.",
            {"slope": middle, "slope_at_entry": at, "unit_roundoff_other": v},
        )
    )
    if finer and second.verdict in (Verdict.SAME, Verdict.ROUNDING):
        if before is Verdict.UNDETERMINED and (at if at is not None else middle) > 0.5:
            found.verdict, found.cause, found.reason = Verdict.ROUNDING, Cause.NONE, ""
        elif before is Verdict.STRUCTURAL and found.cause is Cause.OTHER and 0.5 < (at or 0.0) < 1.5:
            found.verdict = Verdict.UNDETERMINED
            found.reason = (
                "the difference exceeds its envelope here, but falls with the unit roundoff as rounding does, and is "
                "rounding at the finer precision. Either this model magnifies rounding unusually, or the bug is in the "
                "coarser precision's code alone"
            )
    return found

"""Rounding of which size? What a pair of lanes itself tells about the arithmetic that it was computed with."""

from __future__ import annotations

import math

import numpy as np

from drift.reading.diagnose.compare import Comparison
from drift.reading.diagnose.envelope import COARSEST, Envelope, Roundoff, Source, derive
from drift.reading.diagnose.model import Diagnosis, Finding
from drift.reading.diagnose.naming import DOUBT, FEWEST
from drift.reading.diagnose.tensors import Place

__all__ = ["like_narrow_arithmetic", "of_unknown_size"]

_TRIED = 2.0**-11
"""Unit roundoff of TF32 and fp16, which multiply where numbers of fp32 are handed out."""


def like_narrow_arithmetic(diagnosis: Diagnosis, finding: Finding) -> bool:
    """Whether a wider unit roundoff would explain everything, and all tokens differ alike from the first on."""
    if diagnosis.roundoff.value >= _TRIED / 4 or diagnosis.roundoff.source is not Source.FORMAT:
        return False
    size = diagnosis.comparison.profiles[finding.place].relative
    size = size[np.isfinite(size)]
    if np.mean(size > 0.1 * np.median(size)) < 0.9 or np.median(size) == 0:
        return False
    envelopes = derive(diagnosis.comparison, Roundoff(_TRIED, "tried"))
    return all(float(np.nanmedian(np.nan_to_num(e.ratio))) < 1 for e in envelopes.values())


def of_unknown_size(diagnosis: Diagnosis, finding: Finding) -> bool:
    """Whether a place beyond its envelope is so for a unit roundoff that nothing measured bears out.

    Three things do: a floor that measured a difference; places of the same kind that were computed before this one,
    whose lanes differ, and by no more than that unit roundoff explains; and a difference that is beyond the envelope
    of the coarsest arithmetic there is.

    Parameters
    ----------
    diagnosis : Diagnosis
        The lanes, with their envelopes.
    finding : Finding
        The place.
    """
    if diagnosis.roundoff.known:
        return False
    measured = (floor.profiles.items() for floor in diagnosis.floors)
    if any(profile.differing for each in measured for place, profile in each if place != Place("hidden", 0)):
        return False
    found, (start, stop) = diagnosis.comparison, finding.tokens
    coarse = derive(found, Roundoff(COARSEST, "tried"))[finding.place]
    with np.errstate(invalid="ignore"):
        ratio = coarse.ratio[start:stop]
    ratio = ratio[np.isfinite(ratio)]
    if ratio.size and float(np.median(ratio)) > DOUBT:
        return False
    return not _measured_before(found, diagnosis.envelopes, finding)


def _measured_before(found: Comparison, envelopes: dict[Place, Envelope], finding: Finding) -> bool:
    """Whether places of the same kind, computed before, differ within their envelopes for a quarter of a step's tokens.

    The same bits are no evidence: kernels that round coarsely may do so alike in both lanes.
    """
    order = list(envelopes)
    here = order.index(finding.place)
    for place, envelope in envelopes.items():
        if place.kind != finding.place.kind or place == Place("hidden", 0):
            continue
        for segment, (start, stop) in enumerate(found.segments):
            before = segment < finding.segment or (segment == finding.segment and order.index(place) < here)
            if not before:
                break
            ratio = envelope.ratio[start:stop]
            seen = np.isfinite(ratio)
            within = np.count_nonzero((ratio[seen] > 0) & (ratio[seen] <= 1))
            needed = max(min(FEWEST, stop - start), math.ceil(int(seen.sum()) / 4))
            if within >= needed:
                return True
    return False

"""What would decide the findings that are undetermined."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from drift import dataset
from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import amplitude
from drift.reading.cells import judged_chains
from drift.reading.claims.against import chains_with_floor
from drift.reading.claims.model import SIGNS, Audit, Finding, Setting, Status
from drift.reading.claims.page import share_words
from drift.reading.excess import excess_values
from drift.reading.plateau.deciding import plateaus
from drift.reading.statistics.arrays import Float

__all__ = ["undecided"]


def _flat_at(values: np.ndarray, setting: Setting) -> float:
    """Smallest margin at which a curve would be certified as flat, to within 2 %; NaN if there is none below 1."""

    def flat(margin: float) -> bool:
        return plateaus([values], margin=margin, alpha=setting.alpha, rise_min=setting.rise)[0].verdict.is_plateau

    low, high = setting.growth, 0.99
    if low >= high or not flat(high):
        return math.nan
    while high > 1.02 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if flat(middle) else (middle, high)
    return high


def _enough(finding: Finding) -> str:
    """Smallest margin at which the interval of a finding would lie within it; of C1 see :func:`_flat_at`."""
    low, high = (math.inf if math.isnan(x) else x for x in finding.interval)
    name = f"{finding.claim} {finding.part}"
    if name == "C3 chunk size" and low > -1 and math.isfinite(high):
        return f"{share_words(math.expm1(max(-math.log1p(low), math.log1p(high))))} per doubling of the chunk size"
    if name == "C4 level" and low > 0 and math.isfinite(high):
        return f"a factor {max(1 / low, high):.3g}"
    if name == "C2 precision" and math.isfinite(low) and math.isfinite(high):
        change = max(abs(low), abs(high)) * math.log(finding.detail["ratio"])
        return f"{share_words(math.expm1(change))} over the range" if change < 1 else f"a factor {math.exp(change):.3g}"
    return "–"


def undecided(found: Audit, sweep: Sweep) -> pd.DataFrame:
    """Findings by the headline measure that do not support their claim: what more data or which margin would."""
    columns = ["claim", "protocol", "cells", "verdict", "supported from a margin of", "or with"]
    rows = []
    sweep = dataset.folds(sweep)
    for s in found.summaries:
        chains: Sequence[Float] = ()  # in the order of the findings
        if s.claim.name == "C1 plateau":
            chains = [amplitude(ds, found.measure, found.layer) for ds in judged_chains(sweep.sel(protocol=s.protocol))]
        if s.claim.name == "C1 excess" and s.protocol:
            with_floor = chains_with_floor(sweep.sel(protocol=s.protocol), found.measure)
            chains = [excess_values(ds, found.measure, found.layer) for ds in with_floor]
        for place, f in enumerate(s.findings):
            if f.status in (Status.SUPPORTED, Status.NOT_TESTED):
                continue
            margin = _enough(f)
            if f.status is Status.WITHHELD:
                margin = "none, as controls failed"
            elif chains:
                reach = _flat_at(chains[place], found.setting)
                margin = "none" if math.isnan(reach) else f"{share_words(reach)} per doubling of depth"
            verdict = f"{SIGNS[f.status]} {f.status.value}"
            rows.append((s.claim.name, s.protocol, f.scope, verdict, margin, f.needed or "–"))
    return pd.DataFrame(rows, columns=columns)

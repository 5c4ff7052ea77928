"""What the tests of claims share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from drift.reading.cells import file_name
from drift.reading.claims.model import Finding, Status
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.noise import Estimate
from drift.reading.statistics.windows import DOCUMENTS, ZEROS, late_part
from drift.reading.wording.numbers import count

__all__ = [
    "NO_LEVEL",
    "TOO_FEW_STEPS",
    "decide_status",
    "documents_words",
    "log_levels",
    "margin_tests",
    "nothing_found",
    "zeros_words",
]


def log_levels(values: Float) -> Float | None:
    """Log of [document, step]; None where zeros or non-finite values leave none."""
    if not np.isfinite(values).all() or (late_part(values) == 0).mean() > ZEROS:
        return None
    positive = values[values > 0]
    return np.log(np.maximum(values, positive.min() / 2)) if positive.size else None


def zeros_words(*values: Float, said: str = "taken as half the smallest") -> str:
    """Say how many values are exactly zero, which have no logarithm, and what was done with them."""
    n = sum(int((v == 0).sum()) for v in values)
    return f"; {n} value{'s' * (n != 1)} exactly zero, {said}" if n else ""


def decide_status(support: float, refute: float, alpha: float) -> Status:
    """Decide from two p-values; what refutes comes first."""
    if refute < alpha:
        return Status.REFUTED
    return Status.SUPPORTED if support < alpha else Status.UNDETERMINED


def margin_tests(found: Estimate, low: float, high: float) -> tuple[float, float]:
    """P-values of the test that supports (the truth lies between the margins) and of the one that refutes (outside).

    Beyond either margin refutes, so that test has two sides and its p-value is doubled; equivalence needs both of its
    one-sided tests, each at the full level.
    """
    support = max(found.p_below(high).item(), found.p_above(low).item())
    refute = min(1.0, 2 * min(found.p_above(high).item(), found.p_below(low).item()))
    return support, refute


def documents_words(n: int) -> str:
    """Say how many documents there are, and where they are too few to speak for others."""
    within = "" if n >= DOCUMENTS else ", within these documents only"
    return f"{n} document{'s' * (n != 1)}{within}"


# ---------------------------------------------------------------------------------------------- C2
def nothing_found(
    claim: tuple[str, str], cells: Sequence[xr.Dataset], measure: str, scope: str, effect: str, why: str
) -> Finding:
    """A finding that says why nothing could be estimated."""
    nan = math.nan
    return Finding(
        *claim, cells[0]["protocol"].item(), measure, scope, Status.UNDETERMINED, effect, nan, (nan, nan), (nan, nan),
        nan, nan, why, "", tuple(file_name(ds) for ds in cells),
    )  # fmt: skip


TOO_FEW_STEPS = f"too few steps for a noise model, and fewer than {count(DOCUMENTS)} documents"
NO_LEVEL = "drift is exactly zero, NaN or Inf too often to have a level"

"""What the statistics of a plateau find, as arrays over curves."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from drift.reading.statistics.arrays import Float

__all__ = ["Analysis", "Code"]


class Code(IntEnum):
    """What was found, in the order in which it is decided; everything from `NONFINITE` on is undetermined."""

    GROWING = 0
    DECAYING = 1
    SATURATED = 2
    FLAT = 3
    RISE_UNRESOLVED = 4
    NONFINITE = 5
    TOO_SHORT = 6
    ZEROS = 7
    LATE_CHANGE = 8
    MODEL = 9
    TOO_FEW = 10
    BORDERLINE = 11
    TOO_NOISY = 12


@dataclass(frozen=True)
class Analysis:
    """What :func:`drift.reading.statistics.plateau.analyse` found; every field is [curve].

    Slopes are in log units per doubling of depth.

    Attributes
    ----------
    code : int64
        A :class:`Code`.
    slope, slope_low, slope_high : float64
        On the judging window; the interval has coverage 1 - 2 alpha.
    certified_window : int64
        Index into the distinct windows of the one with the smallest equivalence p-value.
    certified_slope, certified_low, certified_high : float64
        The same on that window, but with coverage 1 - 2 alpha / windows: it lies within the margin just where
        `p_equivalence` is below alpha.
    p_equivalence : float64
        Of "the growth is beyond the margin, one way or the other", all windows taken into account.
    p_growth, p_decay : float64
        Of "the growth is at most the margin" and "the decay is at most the margin", on the judging window.
    level, level_low, level_high : float64
        Log of the geometric mean over documents and steps of the judging window; interval with coverage
        1 - 2 `LEVEL_ALPHA`.
    rise, rise_low, rise_high : float64
        Level less the first step, log; interval with coverage 1 - 2 alpha. Infinite where the first step is exactly 0.
    p_rise, p_no_rise : float64
        Of "the rise is less than `rise_min`" and of "it is more".
    rho : float64
        Lag-1 autocorrelation of the noise, its upper confidence limit, as the standard errors use it.
    design_effect : float64
        1 where documents are independent, their number where they share all of their noise.
    sd : float64
        Standard deviation of the log noise of one document.
    effective_points : float64
        Independent points that would give the standard error of the slope.
    lead : float64
        AICc lead of the best model that changes at the end of the chain over the best that does not.
    model : int64
        Index of the best model in :func:`model_names`.
    late_slope, late_step : float64
        Slope from :func:`~drift.reading.statistics.windows.last_start` on; mean of the last share
        :data:`~drift.reading.statistics.windows.LATE_STEP` of the judging window less that of the rest.
    onset, onset_low, onset_high : float64
        First step (counted from 1) at which a document has come within the margin of its level: median over documents
        and the smallest and largest.
    documents_needed, steps_needed : float64
        For a decision with probability 0.9, all else being equal; NaN where more of the same would not decide.
    zeros, nonfinite : int64
        Values that are exactly 0, and that are NaN or Inf.
    """

    code: NDArray[np.int64]
    slope: Float
    slope_low: Float
    slope_high: Float
    certified_window: NDArray[np.int64]
    certified_slope: Float
    certified_low: Float
    certified_high: Float
    p_equivalence: Float
    p_growth: Float
    p_decay: Float
    level: Float
    level_low: Float
    level_high: Float
    rise: Float
    rise_low: Float
    rise_high: Float
    p_rise: Float
    p_no_rise: Float
    rho: Float
    design_effect: Float
    sd: Float
    effective_points: Float
    lead: Float
    model: NDArray[np.int64]
    late_slope: Float
    late_step: Float
    onset: Float
    onset_low: Float
    onset_high: Float
    documents_needed: Float
    steps_needed: Float
    zeros: NDArray[np.int64]
    nonfinite: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of curves."""
        return len(self.code)

    @classmethod
    def concatenate(cls, parts: list[Analysis]) -> Analysis:
        """Join analyses of several stacks."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

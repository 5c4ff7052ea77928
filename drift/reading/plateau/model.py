"""What a verdict on a curve is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from drift.reading.quantities import Of
from drift.reading.wording.numbers import coverage, percent, plain
from drift.reading.wording.tables import first_few

__all__ = ["Plateau", "Reason", "Verdict", "exp_or_inf", "expm1_or_inf"]


class Verdict(Enum):
    """What a curve does with chain depth. The value is the name used in JSON; ``str()`` is a sentence."""

    SATURATED_PLATEAU = "saturated_plateau"
    FLAT = "flat"
    PLATEAU_RISE_UNRESOLVED = "plateau_rise_unresolved"
    GROWING = "growing"
    DECAYING = "decaying"
    UNDETERMINED = "undetermined"

    def __str__(self) -> str:
        return self.said_of(Of.DRIFT)

    def said_of(self, of: Of) -> str:
        """The verdict on a quantity in a sentence."""
        return _SENTENCES[self].format(of.words)

    @property
    def is_plateau(self) -> bool:
        """Whether the curve is certified to be flat at depth, whatever it did before."""
        return self in (Verdict.SATURATED_PLATEAU, Verdict.FLAT, Verdict.PLATEAU_RISE_UNRESOLVED)


_SENTENCES = {
    Verdict.SATURATED_PLATEAU: "saturated plateau: {} rose, then stayed flat",
    Verdict.FLAT: "flat from the start: {} never rose",
    Verdict.PLATEAU_RISE_UNRESOLVED: "plateau: flat at depth; whether it rose first is not resolved",
    Verdict.GROWING: "growing: {} increases with chain depth, beyond the margin",
    Verdict.DECAYING: "decaying: {} decreases with chain depth, beyond the margin",
    Verdict.UNDETERMINED: "undetermined: these data do not decide",
}


class Reason(Enum):
    """Why a curve is undetermined. The value is what tables and JSON show."""

    NONFINITE = "NaN or Inf"
    TOO_SHORT = "too few steps"
    ZEROS = "zeros"
    LATE_CHANGE = "late change"
    MODEL = "a model that keeps changing fits better"
    TOO_FEW = "too few documents"
    BORDERLINE = "growth too near the margin"
    TOO_NOISY = "too noisy"
    CONTROLS = "controls of the instrument failed"
    INHERITED = "the one-step error is exactly zero: drift there is inherited"


@dataclass(frozen=True)
class Plateau:
    """The verdict on one curve and the figures behind it.

    Growth is per doubling of chain depth, as a fraction: 0.05 is 5 %. A figure that could not be formed is NaN, and
    ``None`` in JSON.

    Attributes
    ----------
    verdict : Verdict
    reason : Reason or None
        Why it is undetermined.
    explanation : str
        The verdict in a sentence or two, with its figures.
    documents, steps : int
        Size of the curve. A chain of ``steps`` steps has ``steps - 1`` transitions.
    growth_per_doubling : float
        On the judging window: see :func:`drift.reading.statistics.windows.late_start`.
    growth_interval : tuple of float
        Its interval, of coverage 1 - 2 alpha.
    certified_growth, certified_interval : float, tuple of float
        The same on the window with the smallest equivalence p-value, of coverage 1 - 2 alpha / windows: a
        plateau has this interval within the margin.
    certified_from : int
        First step, counted from 1, of that window.
    p_equivalence : float
        Two one-sided tests: of "growth or decay beyond the margin". A plateau needs it below alpha.
    p_growth, p_decay : float
        Of "does not grow beyond the margin", "does not decay beyond the margin".
    level, level_interval : float, tuple of float
        Geometric mean over documents and steps of the judging window; coverage 1 - 2
        :data:`~drift.reading.statistics.intervals.LEVEL_ALPHA`.
    onset_step, onset_range : float, tuple of float
        Step, counted from 1, by which drift has come to its level: median, smallest and largest document.
    rise_factor, rise_interval : float, tuple of float
        Level / first step; infinite where the first step is exactly zero; coverage 1 - 2 alpha.
    p_rise, p_no_rise : float
        Of "rose by less than `rise_min`", and of "rose by more".
    autocorrelation : float
        Lag-1 autocorrelation of log drift around its trend: the upper limit that the standard errors use.
    design_effect : float
        1 where documents are independent, up to their number where they share their noise.
    noise_sd : float
        Standard deviation of log drift around its trend, one document.
    effective_points : float
        Independent points that would determine the growth as well.
    best_model : str
        The model with the smallest AICc.
    model_lead : float
        AICc by which the best model that changes at the end leads the best one that does not.
    documents_needed, steps_needed : float
        Where undetermined: documents at this depth, or steps with these documents, for a decision with probability 0.9.
    zeros, nonfinite : int
        Values that are exactly zero, and that are NaN or Inf.
    margin, alpha : float
        What was asked.
    caveats : tuple of str
        What a reader must know before repeating the verdict.
    """

    verdict: Verdict
    reason: Reason | None
    explanation: str
    documents: int
    steps: int
    growth_per_doubling: float
    growth_interval: tuple[float, float]
    certified_growth: float
    certified_interval: tuple[float, float]
    certified_from: int
    p_equivalence: float
    p_growth: float
    p_decay: float
    level: float
    level_interval: tuple[float, float]
    onset_step: float
    onset_range: tuple[float, float]
    rise_factor: float
    rise_interval: tuple[float, float]
    p_rise: float
    p_no_rise: float
    autocorrelation: float
    design_effect: float
    noise_sd: float
    effective_points: float
    best_model: str
    model_lead: float
    documents_needed: float
    steps_needed: float
    zeros: int
    nonfinite: int
    margin: float
    alpha: float
    caveats: tuple[str, ...]

    def __str__(self) -> str:
        return self.explanation

    @property
    def growth_words(self) -> str:
        """The growth with its interval, in words."""
        low, high = self.growth_interval
        return (
            f"growth per doubling of depth {percent(self.growth_per_doubling)} "
            f"({coverage(self.alpha)} interval {percent(low)} to {percent(high)})"
        )

    def without_verdict(self, failed: Sequence[str]) -> Plateau:
        """Return the estimates alone, controls of the instrument having failed.

        Parameters
        ----------
        failed : sequence of str
            The controls that failed, in words.
        """
        undetermined, reason = Verdict.UNDETERMINED, Reason.CONTROLS
        return replace(
            self,
            verdict=undetermined,
            reason=reason,
            explanation=f"{undetermined.value} ({reason.value}): {first_few(failed)}; estimated all the same: "
            f"{self.growth_words}.",
            documents_needed=math.nan,  # no amount of data decides with an instrument that reads wrong
            steps_needed=math.nan,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: names for enumerations, ``None`` for what is not a number or not finite."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


def exp_or_inf(x: float) -> float:
    """exp(x), or Inf where a float64 cannot hold it."""
    return math.inf if x >= 700 else math.exp(x)


def expm1_or_inf(x: float) -> float:
    """exp(x) - 1, or Inf where a float64 cannot hold it."""
    return math.inf if x >= 700 else math.expm1(x)

"""Verdicts in words: the enumeration, one curve's result, and the sentences that belong to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.plateau.kernel import (
    AICC_LEAD,
    DOCUMENTS,
    FEW_STEPS,
    ZEROS,
    Analysis,
    Code,
    analyse,
    as_stack,
    least_steps,
    model_names,
    windows,
)

__all__ = ["Plateau", "Reason", "Verdict", "certificate", "percent", "plain", "plateau", "plateaus"]


class Verdict(Enum):
    """What a curve does with chain depth. The value is the name used in JSON; ``str()`` is a sentence."""

    SATURATED_PLATEAU = "saturated_plateau"
    FLAT = "flat"
    PLATEAU_RISE_UNRESOLVED = "plateau_rise_unresolved"
    GROWING = "growing"
    DECAYING = "decaying"
    UNDETERMINED = "undetermined"

    def __str__(self) -> str:
        return _SENTENCES[self]

    @property
    def is_plateau(self) -> bool:
        """Whether the curve is certified to be flat at depth, whatever it did before."""
        return self in (Verdict.SATURATED_PLATEAU, Verdict.FLAT, Verdict.PLATEAU_RISE_UNRESOLVED)


_SENTENCES = {
    Verdict.SATURATED_PLATEAU: "saturated plateau: drift rose, then stayed flat",
    Verdict.FLAT: "flat from the start: drift never rose",
    Verdict.PLATEAU_RISE_UNRESOLVED: "plateau: flat at depth; whether it rose first is not resolved",
    Verdict.GROWING: "growing: drift increases with chain depth, beyond the margin",
    Verdict.DECAYING: "decaying: drift decreases with chain depth, beyond the margin",
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


_VERDICTS = {
    Code.GROWING: Verdict.GROWING,
    Code.DECAYING: Verdict.DECAYING,
    Code.SATURATED: Verdict.SATURATED_PLATEAU,
    Code.FLAT: Verdict.FLAT,
    Code.RISE_UNRESOLVED: Verdict.PLATEAU_RISE_UNRESOLVED,
}


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
        On the judging window, the last three quarters of the chain.
    growth_interval : tuple of float
        Its interval, of coverage 1 - 2 alpha (90 %).
    certified_growth, certified_interval : float, tuple of float
        The same on the window with the smallest equivalence p-value, of coverage 1 - 2 alpha / windows (96.7 %): a
        plateau has this interval within the margin.
    certified_from : int
        First step, counted from 1, of that window.
    p_equivalence : float
        Two one-sided tests: of "growth or decay beyond the margin". A plateau needs it below alpha.
    p_growth, p_decay : float
        Of "does not grow beyond the margin", "does not decay beyond the margin".
    level, level_interval : float, tuple of float
        Geometric mean over documents and steps of the judging window; coverage 95 %.
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

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: names for enumerations, ``None`` for what is not a number or not finite."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


def plain(value: Any) -> Any:
    """Make a value fit for JSON: names for enumerations, ``None`` for what is not a number or not finite.

    Parameters
    ----------
    value : Any
        Numbers, words, enumerations, and dicts, lists and tuples of them.

    Returns
    -------
    Any
        The same with lists for tuples; ``json.dumps(..., allow_nan=False)`` takes it.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def plateau(
    values: ArrayLike, *, margin: float = 0.05, alpha: float = 0.05, floor: float | None = None, rise_min: float = 1.5
) -> Plateau:
    """Decide whether one drift curve is a plateau.

    Parameters
    ----------
    values : array_like
        Drift [document, step] or [step]: any measure that is at least 0. Documents are replicates, steps consecutive.
    margin : float
        Growth per doubling of chain depth below which a curve counts as flat. 0.05 is 5 %; linear growth is 100 %,
        a square root 41 %.
    alpha : float
        Level of the tests.
    floor : float, optional
        Drift below this counts as this; half the smallest positive value by default.
    rise_min : float
        Factor from the first step to the level from which on a curve is said to have risen.

    Returns
    -------
    Plateau

    Raises
    ------
    ValueError
        If `values` has another shape or holds negative numbers.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(0, 0.05, (4, 127))
    >>> print(plateau((1 - 0.9 * np.exp(-np.arange(127) / 2)) * np.exp(noise)).verdict)
    saturated plateau: drift rose, then stayed flat
    """
    if np.ndim(values) > 2:
        raise ValueError(f"one curve is [document, step] or [step], not {np.shape(values)}; `plateaus` takes several")
    return plateaus([values], margin=margin, alpha=alpha, floor=floor, rise_min=rise_min)[0]


def plateaus(
    curves: Sequence[ArrayLike] | NDArray[np.float64],
    *,
    margin: float = 0.05,
    alpha: float = 0.05,
    floor: float | None = None,
    rise_min: float = 1.5,
) -> list[Plateau]:
    """Decide for many curves at once, of any shapes; those of one shape are computed together.

    Parameters
    ----------
    curves : sequence of array_like
        Each [document, step] or [step]; an array [curve, document, step] will do as well.
    margin, alpha, floor, rise_min
        As for :func:`plateau`.

    Returns
    -------
    list of Plateau
        In the order of `curves`.

    Raises
    ------
    ValueError
        See :func:`plateau`.
    """
    stacks = [as_stack(curve) for curve in curves]
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, stack in enumerate(stacks):
        if len(stack) != 1:
            raise ValueError(f"curve {place} is [document, step] or [step], not {np.shape(curves[place])}")
        shapes.setdefault(stack.shape[1:], []).append(place)
    found: dict[int, Plateau] = {}
    for (documents, steps), places in shapes.items():
        stack = np.concatenate([stacks[place] for place in places])
        analysis = analyse(stack, margin=margin, alpha=alpha, floor=floor, rise_min=rise_min)
        for row, place in enumerate(places):
            found[place] = _result(analysis, row, documents, steps, margin, alpha)
    return [found[place] for place in range(len(stacks))]


def _result(analysis: Analysis, row: int, documents: int, steps: int, margin: float, alpha: float) -> Plateau:
    a = {f.name: getattr(analysis, f.name)[row].item() for f in fields(Analysis)}
    code = Code(a["code"])
    verdict = _VERDICTS.get(code, Verdict.UNDETERMINED)
    reason = Reason[code.name] if verdict is Verdict.UNDETERMINED else None
    growth = {name: _expm1(a[name]) for name in ("slope", "slope_low", "slope_high")}
    certified = {name: _expm1(a[name]) for name in ("certified_slope", "certified_low", "certified_high")}
    result = Plateau(
        verdict=verdict,
        reason=reason,
        explanation="",
        documents=documents,
        steps=steps,
        growth_per_doubling=growth["slope"],
        growth_interval=(growth["slope_low"], growth["slope_high"]),
        certified_growth=certified["certified_slope"],
        certified_interval=(certified["certified_low"], certified["certified_high"]),
        certified_from=windows(steps)[a["certified_window"]] + 1,
        p_equivalence=a["p_equivalence"],
        p_growth=a["p_growth"],
        p_decay=a["p_decay"],
        level=_exp(a["level"]),
        level_interval=(_exp(a["level_low"]), _exp(a["level_high"])),
        onset_step=a["onset"],
        onset_range=(a["onset_low"], a["onset_high"]),
        rise_factor=_exp(a["rise"]),
        rise_interval=(_exp(a["rise_low"]), _exp(a["rise_high"])),
        p_rise=a["p_rise"],
        p_no_rise=a["p_no_rise"],
        autocorrelation=a["rho"],
        design_effect=a["design_effect"],
        noise_sd=a["sd"],
        effective_points=a["effective_points"],
        best_model=model_names()[a["model"]] if a["model"] >= 0 else "",
        model_lead=a["lead"],
        documents_needed=a["documents_needed"],
        steps_needed=a["steps_needed"],
        zeros=a["zeros"],
        nonfinite=a["nonfinite"],
        margin=margin,
        alpha=alpha,
        caveats=tuple(_caveats(a, documents, steps)),
    )
    return replace(result, explanation=_explain(result, code, a))


def _exp(x: float) -> float:
    return math.inf if x >= 700 else math.exp(x)


def _expm1(x: float) -> float:
    return math.inf if x >= 700 else math.expm1(x)


def _caveats(a: dict[str, Any], documents: int, steps: int) -> Iterator[str]:
    if documents < DOCUMENTS:
        yield f"within these documents only: {documents} support no claim about others ({DOCUMENTS} or more do)"
    if a["design_effect"] > 1.5 and documents > 1:
        yield f"documents share part of their noise (design effect {a['design_effect']:.1f} of {documents})"
    if a["zeros"]:
        yield f"{a['zeros']} values are exactly zero"
    if a["nonfinite"]:
        yield f"{a['nonfinite']} values are NaN or Inf"


def percent(x: float) -> str:
    """Write a fraction as a signed percentage."""
    if math.isnan(x):
        return "n/a"
    return f"{round(100 * x, 1) + 0.0:+.1f} %" if abs(x) < 10 else f"{100 * x:+.2g} %"


def _growth(result: Plateau) -> str:
    low, high = result.growth_interval
    return (
        f"growth per doubling of depth {percent(result.growth_per_doubling)} "
        f"({100 * (1 - 2 * result.alpha):g} % interval {percent(low)} to {percent(high)})"
    )


def certificate(result: Plateau) -> str:
    """Say what certifies a plateau whose growth on the judging window does not; empty for any other curve."""
    low, high = result.growth_interval
    if not result.verdict.is_plateau or (low >= 1 / (1 + result.margin) - 1 and high <= result.margin):
        return ""
    coverage = 100 * (1 - 2 * result.alpha / len(windows(result.steps)))
    low, high = result.certified_interval
    return (
        f"certified from step {result.certified_from} on: {percent(result.certified_growth)} "
        f"({coverage:.3g} % interval {percent(low)} to {percent(high)})"
    )


def _explain(result: Plateau, code: Code, a: dict[str, Any]) -> str:
    """Sentence of one result."""
    margin = f"margin {100 * result.margin:g} %"
    depth = f"{result.steps - 1} transitions, {result.documents} document{'s' * (result.documents != 1)}"
    within = " (within these documents only)" if result.documents < DOCUMENTS else ""
    if result.verdict is not Verdict.UNDETERMINED:
        certified = certificate(result)
        return f"{result.verdict}; {_growth(result)}{'; ' * bool(certified)}{certified}, {margin}, {depth}{within}."
    growth = _growth(result) if math.isfinite(result.growth_per_doubling) else ""
    late = f"{percent(_expm1(a['late_slope']))} per doubling over the last half"
    late += f"; {percent(_expm1(a['late_step']))} in the last fifth" if math.isfinite(a["late_step"]) else ""
    if result.model_lead > AICC_LEAD:
        late += f"; the model '{result.best_model}' beats every flat one by {result.model_lead:.0f} in AICc"
    few = "by the noise model" if result.steps < least_steps() else f"for fewer than {DOCUMENTS} documents"
    least = least_steps() if result.steps < least_steps() else FEW_STEPS
    words = {
        Code.NONFINITE: f"{result.nonfinite} of {result.documents * result.steps} values are NaN or Inf, "
        "which no average may hide",
        Code.TOO_SHORT: f"at least {least} steps are needed {few}",
        Code.ZEROS: (
            "every value is exactly zero: the same bits at every step, and nothing to test"
            if result.zeros == result.documents * result.steps
            else f"more than {100 * ZEROS:g} % of the judging window is exactly zero "
            f"({result.zeros} of {result.documents * result.steps} values)"
        ),
        Code.LATE_CHANGE: f"drift changes late in the chain ({late}); {growth}, {margin}",
        Code.MODEL: f"the model '{result.best_model}' beats every flat one by {result.model_lead:.0f} in AICc "
        f"(more than {AICC_LEAD:g}); {growth}, {margin}",
        Code.TOO_FEW: f"{growth}, wider than the {margin}",
        Code.BORDERLINE: f"{growth}, too near the {margin}",
        Code.TOO_NOISY: f"{growth}, wider than the {margin}",
    }[code]
    assert result.reason is not None
    return f"undetermined ({result.reason.value}): {words}, {depth}{within}.{_needed(result)}"


def _needed(result: Plateau) -> str:
    options = []
    if math.isfinite(result.documents_needed) and result.documents_needed > result.documents:
        options.append(f"about {result.documents_needed:.0f} documents of this depth")
    if math.isfinite(result.steps_needed) and result.steps_needed > result.steps:
        options.append(f"a chain of about {result.steps_needed:.0f} steps with these documents")
    return f" It would take {' or '.join(options)} to decide." if options else ""

"""A verdict on a curve in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from drift.reading.plateau.model import Plateau, Reason, Verdict, expm1_or_inf
from drift.reading.quantities import Of
from drift.reading.statistics.analysis import Code
from drift.reading.statistics.models import AICC_LEAD
from drift.reading.statistics.noise import DESIGN_EFFECT
from drift.reading.statistics.windows import DOCUMENTS, FEW_STEPS, ZEROS, least_steps, windows
from drift.reading.wording.numbers import percent
from drift.reading.wording.windows import last_words, late_step_words

__all__ = ["caveats", "certificate", "explain", "inherited"]


def caveats(a: dict[str, Any], documents: int, steps: int) -> Iterator[str]:
    """Yield what to know about the verdict on a curve."""
    if documents < DOCUMENTS:
        yield f"within these documents only: {documents} support no claim about others ({DOCUMENTS} or more do)"
    if a["design_effect"] > DESIGN_EFFECT and documents > 1:
        yield f"documents share part of their noise (design effect {a['design_effect']:.1f} of {documents})"
    if a["zeros"]:
        yield f"{a['zeros']} values are exactly zero"
    if a["nonfinite"]:
        yield f"{a['nonfinite']} values are NaN or Inf"


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


def explain(result: Plateau, code: Code, a: dict[str, Any], of: Of = Of.DRIFT) -> str:
    """Sentence of one result."""
    margin = f"margin {100 * result.margin:g} %"
    depth = f"{result.steps - 1} transitions, {result.documents} document{'s' * (result.documents != 1)}"
    within = " (within these documents only)" if result.documents < DOCUMENTS else ""
    if result.verdict is not Verdict.UNDETERMINED:
        certified = f"; {said}" if (said := certificate(result)) else ""
        return f"{result.verdict.said_of(of)}; {result.growth_words}{certified}, {margin}, {depth}{within}."
    growth = result.growth_words if math.isfinite(result.growth_per_doubling) else ""
    late = f"{percent(expm1_or_inf(a['late_slope']))} per doubling over {last_words(result.steps)}"
    late += f"; {percent(expm1_or_inf(a['late_step']))} in {late_step_words()}" if math.isfinite(a["late_step"]) else ""
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
        Code.LATE_CHANGE: f"{of.words} changes late in the chain ({late}); {growth}, {margin}",
        Code.MODEL: f"the model '{result.best_model}' beats every flat one by {result.model_lead:.0f} in AICc "
        f"(more than {AICC_LEAD:g}); {growth}, {margin}",
        Code.TOO_FEW: f"{growth}, wider than the {margin}",
        Code.BORDERLINE: f"{growth}, too near the {margin}",
        Code.TOO_NOISY: f"{growth}, wider than the {margin}",
    }[code]
    assert result.reason is not None
    return f"undetermined ({result.reason.value}): {words}, {depth}{within}.{_needed(result)}"


def inherited(result: Plateau, places: int) -> str:
    """Sentence of a curve that has no ratio, because no step makes an error at some of its places."""
    values = result.documents * result.steps
    return (
        f"{Verdict.UNDETERMINED.value} ({Reason.INHERITED.value}): at {places} of {values} values no step makes an "
        f"error of its own, so that there is no ratio and all drift is inherited, {result.steps - 1} transitions, "
        f"{result.documents} document{'s' * (result.documents != 1)}."
    )


def _needed(result: Plateau) -> str:
    options = []
    if math.isfinite(result.documents_needed) and result.documents_needed > result.documents:
        options.append(f"about {result.documents_needed:.0f} documents of this depth")
    if math.isfinite(result.steps_needed) and result.steps_needed > result.steps:
        options.append(f"a chain of about {result.steps_needed:.0f} steps with these documents")
    return f" It would take {' or '.join(options)} to decide." if options else ""

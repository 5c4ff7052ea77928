"""Verdicts in words: the enumeration, one curve's result, and the sentences that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.errors import ArgumentError
from drift.reading.plateau.model import Plateau, Reason, Verdict, exp_or_inf, expm1_or_inf
from drift.reading.plateau.wording import caveats, explain
from drift.reading.quantities import Of
from drift.reading.statistics.analysis import Analysis, Code
from drift.reading.statistics.models import model_names
from drift.reading.statistics.plateau import analyse, as_array, as_stack
from drift.reading.statistics.windows import windows

__all__ = ["plateau", "plateaus"]

_VERDICTS = {
    Code.GROWING: Verdict.GROWING,
    Code.DECAYING: Verdict.DECAYING,
    Code.SATURATED: Verdict.SATURATED_PLATEAU,
    Code.FLAT: Verdict.FLAT,
    Code.RISE_UNRESOLVED: Verdict.PLATEAU_RISE_UNRESOLVED,
}


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
    ArgumentError
        Which is a ValueError, too: if `values` has another shape or holds negative numbers.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(0, 0.05, (4, 127))
    >>> print(plateau((1 - 0.9 * np.exp(-np.arange(127) / 2)) * np.exp(noise)).verdict)
    saturated plateau: drift rose, then stayed flat
    """
    if np.ndim(stack := as_array(values)) > 2:
        raise ArgumentError(f"one curve is [document, step] or [step], not {stack.shape}; `plateaus` takes several")
    return plateaus([values], margin=margin, alpha=alpha, floor=floor, rise_min=rise_min)[0]


def plateaus(
    curves: Sequence[ArrayLike] | NDArray[np.float64],
    *,
    margin: float = 0.05,
    alpha: float = 0.05,
    floor: float | None = None,
    rise_min: float = 1.5,
    of: Of = Of.DRIFT,
) -> list[Plateau]:
    """Decide for many curves at once, of any shapes; those of one shape are computed together.

    Parameters
    ----------
    curves : sequence of array_like
        Each [document, step] or [step]; an array [curve, document, step] will do as well.
    margin, alpha, floor, rise_min
        As for :func:`plateau`.
    of : Of
        What the curves are, for the words of the verdicts.

    Returns
    -------
    list of Plateau
        In the order of `curves`.

    Raises
    ------
    ArgumentError
        See :func:`plateau`.
    """
    stacks = [as_stack(curve) for curve in curves]
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, stack in enumerate(stacks):
        if len(stack) != 1:
            raise ArgumentError(f"curve {place} is [document, step] or [step], not {np.shape(curves[place])}")
        shapes.setdefault(stack.shape[1:], []).append(place)
    found: dict[int, Plateau] = {}
    for (documents, steps), places in shapes.items():
        stack = np.concatenate([stacks[place] for place in places])
        analysis = analyse(stack, margin=margin, alpha=alpha, floor=floor, rise_min=rise_min)
        for row, place in enumerate(places):
            found[place] = _result(analysis, row, (documents, steps), (margin, alpha), of)
    return [found[place] for place in range(len(stacks))]


def _result(analysis: Analysis, row: int, shape: tuple[int, int], asked: tuple[float, float], of: Of) -> Plateau:
    (documents, steps), (margin, alpha) = shape, asked
    a = {f.name: getattr(analysis, f.name)[row].item() for f in fields(Analysis)}
    code = Code(a["code"])
    verdict = _VERDICTS.get(code, Verdict.UNDETERMINED)
    reason = Reason[code.name] if verdict is Verdict.UNDETERMINED else None
    growth = {name: expm1_or_inf(a[name]) for name in ("slope", "slope_low", "slope_high")}
    certified = {name: expm1_or_inf(a[name]) for name in ("certified_slope", "certified_low", "certified_high")}
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
        level=exp_or_inf(a["level"]),
        level_interval=(exp_or_inf(a["level_low"]), exp_or_inf(a["level_high"])),
        onset_step=a["onset"],
        onset_range=(a["onset_low"], a["onset_high"]),
        rise_factor=exp_or_inf(a["rise"]),
        rise_interval=(exp_or_inf(a["rise_low"]), exp_or_inf(a["rise_high"])),
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
        caveats=tuple(caveats(a, documents, steps)),
    )
    return replace(result, explanation=explain(result, code, a, of))

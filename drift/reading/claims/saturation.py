"""C1: the rise and the plateau."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import xarray as xr

from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import BOUNDED, NEAR, UNRELATED, amplitude
from drift.reading.cells import deepest, file_name, judged_chains
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.claims.testing import decide_status, documents_words, zeros_words
from drift.reading.controls.gating import gate
from drift.reading.plateau.deciding import plateaus
from drift.reading.plateau.model import Plateau
from drift.reading.plateau.wording import certificate
from drift.reading.statistics.arrays import Float
from drift.reading.wording.numbers import coverage, rise_words

__all__ = ["c1_plateau", "c1_rise", "chain_name", "growth_finding", "verdicts"]


# ---------------------------------------------------------------------------------------------- C1
def verdicts(
    sweep: Sweep,
    measure: str,
    layer: int | str,
    setting: Setting,
    choose: Callable[[Sweep], list[xr.Dataset]] = deepest,
) -> Iterator[tuple[xr.Dataset, str, Plateau]]:
    """Yield chains with their names and the verdicts on them, which the controls of the sweep may withhold.

    By default the deepest chain of every model and precision; C1 judges :func:`~drift.reading.cells.judged_chains`.
    """
    cells, asked = choose(sweep), gate(sweep)
    found = plateaus(
        [amplitude(ds, measure, layer) for ds in cells],
        margin=setting.growth,
        alpha=setting.alpha,
        rise_min=setting.rise,
    )
    for ds, plateau in zip(cells, found, strict=True):
        yield ds, chain_name(ds), asked.let(plateau)


def chain_name(ds: xr.Dataset) -> str:
    """Name a chain among those of one protocol."""
    return f"{ds['model'].item()} {ds['dtype'].item()}, chunk {ds['chunk_size'].item()}"


def c1_plateau(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Yield, per cell, whether drift is a plateau by two one-sided tests."""
    for ds, scope, p in verdicts(sweep, measure, layer, setting, judged_chains):
        extra = zeros_words(amplitude(ds, measure, layer)) if p.zeros and math.isfinite(p.growth_per_doubling) else ""
        found = growth_finding("plateau", ds, measure, scope, p, setting, extra)
        if measure in BOUNDED and p.level > NEAR * UNRELATED:
            near = f" The level {p.level:.2g} is near that of unrelated states ({UNRELATED:.2g}): flat means little."
            found = replace(found, words=found.words + near)
        yield found


def growth_finding(
    part: str, ds: xr.Dataset, measure: str, scope: str, p: Plateau, setting: Setting, extra: str = ""
) -> Finding:
    """Make a finding on C1 of the verdict on a curve.

    Parameters
    ----------
    part : str
        Of C1.
    ds : xarray.Dataset
        The cell.
    measure, scope : str
    p : Plateau
    setting : Setting
    extra : str
        What to say before the last full stop of the verdict.
    """
    support = p.p_equivalence if p.reason is None or p.verdict.is_plateau else max(p.p_equivalence, setting.alpha)
    refute = min(1.0, 2 * min(p.p_growth, p.p_decay))  # growth refutes, and so does decay
    status = Status.UNDETERMINED
    if p.verdict.is_plateau:
        status = Status.SUPPORTED
    elif p.reason is None and refute < setting.alpha:
        status = Status.REFUTED
    words = str(p)
    if p.reason is None and status is Status.UNDETERMINED:
        words += f" As growth and decay both refute the claim, p is {refute:.2g}: not refuted."
    if extra:
        words = words.rstrip(".") + f"{extra}."
    return Finding(
        "C1", part, ds["protocol"].item(), measure, scope, status, "growth per doubling of depth",
        p.growth_per_doubling, p.growth_interval, (1 / (1 + setting.growth) - 1, setting.growth), support, refute,
        words, _needed(p), (file_name(ds),),
        {"verdict": p.verdict.value, "transitions": p.steps - 1, "documents": p.documents, "level": p.level,
         "level_interval": p.level_interval, "unit_roundoff": ds["unit_roundoff"].item(),
         "documents_needed": p.documents_needed, "steps_needed": p.steps_needed,
         **({"certified": {"from_step": p.certified_from, "growth": p.certified_growth,
                           "interval": p.certified_interval}} if certificate(p) else {})},
    )  # fmt: skip


def _needed(p: Plateau) -> str:
    options = []
    if p.reason is not None and math.isfinite(p.documents_needed) and p.documents_needed > p.documents:
        options.append(f"{p.documents_needed:.0f} documents")
    if p.reason is not None and math.isfinite(p.steps_needed) and p.steps_needed > p.steps:
        options.append(f"{p.steps_needed:.0f} steps")
    return " or ".join(options)


def c1_rise(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Yield, per cell, whether drift rose before its late level, from the first step at which the passes differ.

    Steps of the same bits before it say how far kernels handle a row alike in a chunk and in the whole (and the first
    chunk of a fold has nothing before it): any drift after them would be a rise.
    """
    asked = gate(sweep)
    for ds in judged_chains(sweep):
        values = amplitude(ds, measure, layer)
        same = _same_at_first(values)
        (p,) = plateaus([values[:, same:]], margin=setting.growth, alpha=setting.alpha, rise_min=setting.rise)
        p = asked.let(p)
        low, high = p.rise_interval
        status = decide_status(p.p_rise, p.p_no_rise, setting.alpha)
        first = f"step {same + 1}, the first that is not the same bits" if same else "the first step"
        words = f"the level is {rise_words(p.rise_factor)} times {first}"
        if math.isinf(p.rise_factor):
            words = f"{first} is exactly zero in some documents, and the level is not"
        elif math.isnan(p.rise_factor):
            words = f"there is no level to compare with {first}"
        if math.isfinite(low):
            words += f" ({coverage(setting.alpha)} interval {rise_words(low)} to {rise_words(high)})"
        if not math.isnan(p.onset_step):
            words += f"; within the margin of it by step {same + p.onset_step:.0f} of {same + p.steps}"
        if math.isfinite(p.rise_factor):
            words += zeros_words(values)
        yield Finding(
            "C1", "rise", ds["protocol"].item(), measure, chain_name(ds), status, "level over first step that differs",
            p.rise_factor, p.rise_interval, (setting.rise, math.inf), p.p_rise, p.p_no_rise,
            f"{words}; {documents_words(p.documents)}.", "", (file_name(ds),),
            {"onset_step": same + p.onset_step, "steps": same + p.steps, "same_at_first": same},
        )  # fmt: skip


def _same_at_first(values: Float) -> int:
    """Count the steps before the first at which any document is not exactly 0; none where all are."""
    differs = (values != 0).any(axis=0)
    return int(differs.argmax()) if differs.any() else 0

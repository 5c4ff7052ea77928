"""C1 against what one computation makes anyway: drift over its rounding floor, and over the error of one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import xarray as xr

from drift.dataset.choosing import keep
from drift.dataset.sweep import Sweep
from drift.reading import floor
from drift.reading.cells import file_name, judged_chains
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.claims.saturation import chain_name, growth_finding
from drift.reading.controls.gating import gate
from drift.reading.excess import accumulations, missing
from drift.reading.plateau import curves
from drift.reading.plateau.curves import Curve
from drift.reading.plateau.model import Reason
from drift.reading.quantities import Of

__all__ = ["c1_accumulation", "c1_excess", "chains_with_floor"]


def chains_with_floor(sweep: Sweep, measure: str) -> list[xr.Dataset]:
    """The judged chains among those that have a floor."""
    return judged_chains(keep(sweep, lambda ds: missing(ds, measure, Of.EXCESS) is None))


def _asked(setting: Setting) -> dict[str, float]:
    return {"margin": setting.growth, "alpha": setting.alpha, "rise_min": setting.rise}


def c1_excess(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Yield, per cell that has a floor, whether drift over its floor is a plateau, and where it stands to the floor."""
    asked = gate(sweep)
    for ds in chains_with_floor(sweep, measure):
        (curve,) = curves.from_cell(ds, [measure], layer, Of.EXCESS)
        one = floor.from_curve(curve, asked, **_asked(setting))
        found = growth_finding("excess", ds, measure, chain_name(ds), one.growth, setting)
        standing = {"standing": one.verdict.value, "standing_reason": one.reason.value if one.reason else None}
        yield replace(found, words=f"{found.words} {floor.standing_words(one)}.", detail={**found.detail, **standing})


def c1_accumulation(sweep: Sweep, measure: str, layer: int | str, setting: Setting) -> Iterator[Finding]:
    """Yield, per cell whose one-step error was measured, whether drift over it is a plateau.

    Where that error is exactly zero there is no ratio to test, and all drift is inherited: that is said in its place.
    """
    pairs = {id(found.ds): found for found in accumulations(sweep, measure, layer)}
    for ds in judged_chains(sweep.derive(found.ds for found in pairs.values())):
        found, scope = pairs[id(ds)], chain_name(ds)
        curve = Curve(scope, {}, found.values, (), Of.ACCUMULATION, found.inherited)
        (p,) = curves.judge([curve], gate(sweep), **_asked(setting))
        one = growth_finding("accumulation", ds, measure, scope, p, setting)
        one = replace(one, cells=(*one.cells, file_name(found.one_step)))
        one.detail["inherited"] = found.inherited
        yield replace(one, status=Status.NOT_TESTED) if p.reason is Reason.INHERITED else one

"""The floor beside the precision ladder: two independent answers to one question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.dataset.choosing import is_fold, keep
from drift.dataset.sweep import Sweep
from drift.reading import ladder
from drift.reading.amplitudes import has_measure
from drift.reading.cells import grouped_cells
from drift.reading.controls.gating import gate
from drift.reading.excess import missing
from drift.reading.floor.judging import from_curve
from drift.reading.floor.model import Compared, Contradiction, Rounding, Standing
from drift.reading.floor.wording import compared_words
from drift.reading.plateau import curves
from drift.reading.quantities import Of
from drift.reading.statistics.slope import Scaling, Slope

__all__ = ["both_verdicts", "contradictions"]


def _contradiction(slope: Slope, floors: Mapping[str, Rounding]) -> Contradiction | None:
    """Decide whether two verdicts exclude each other; an undetermined one excludes nothing.

    A fold of another computation may hide below the rounding of a coarse precision, so that "at the floor" contradicts
    a ladder that is not rounding only at the finest.
    """
    if slope.verdict is Scaling.UNDETERMINED:
        return None
    kinds = [one.verdict for one in floors.values()]
    if any(one.is_foreign for one in floors.values()):
        return Contradiction.FOREIGN_FLOOR
    if slope.verdict is Scaling.ROUNDING:
        more = Standing.ABOVE in kinds or Standing.GROWING in kinds
        return Contradiction.MORE_THAN_ROUNDING if more else None
    return Contradiction.NO_MORE_THAN_ROUNDING if kinds[-1] is Standing.AT_FLOOR else None


def both_verdicts(
    sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last", **options: Any
) -> list[Compared]:
    """Say of every fold that was run at two precisions or more, and has a floor, what the ladder and the floor say.

    Parameters
    ----------
    sweep : Sweep
        Where its controls failed, nothing is said by either, and nothing contradicts.
    measure : str
        A key of :data:`drift.dataset.contract.FLOORS`; by any other there is nothing to compare.
    layer : int or "last"
    **options
        As for :func:`drift.reading.floor.judging.from_curve`.
    """
    with_floor = keep(sweep, lambda ds: is_fold(ds) and missing(ds, measure, Of.EXCESS) is None)
    if not len(with_floor):
        return []
    asked, floors = gate(sweep), {}
    for axes, cells in grouped_cells(with_floor, "protocol", "model", "chunk_size"):
        mine = {ds["dtype"].item(): ds for ds in sorted(cells, key=lambda ds: -ds["unit_roundoff"].item())}
        floors[tuple(axes.items())] = {
            str(dtype): from_curve(curve, asked, **options)
            for dtype, ds in mine.items()
            for curve in curves.from_cell(ds, [measure], layer, Of.EXCESS)
        }
    found = []
    for one in ladder.ladders(keep(sweep, lambda ds: has_measure(ds, measure)), measure, layer):
        here = floors.get(tuple((k, v) for k, v in one.labels.items() if k not in ("measure", "layer")))
        if here and len(one.dtypes) > 1:
            contradiction = _contradiction(one.slope, here)
            words = compared_words(one.labels, one.slope, here, contradiction)
            found.append(Compared(one.labels, one.slope, here, contradiction, words))
    return found


def contradictions(
    sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last", **options: Any
) -> list[Compared]:
    """List the folds on which the ladder and the floor contradict each other; arguments as :func:`both_verdicts`."""
    return [one for one in both_verdicts(sweep, measure, layer, **options) if one.contradiction is not None]

"""Ladders of a sweep, judged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from drift import dataset
from drift.reading import controls
from drift.reading.amplitudes import BOUNDED, NEAR, UNRELATED, amplitude, holding
from drift.reading.cells import grouped_cells
from drift.reading.statistics import levels
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.slope import Slope, slope, slope_of_levels
from drift.reading.statistics.windows import DOCUMENTS
from drift.reading.wording.numbers import plain

if TYPE_CHECKING:
    from drift.dataset.sweep import Sweep

__all__ = ["Ladder", "Pair", "as_dict", "ladders"]

#: Measures of the ladder; divergences enter as their square roots, see :mod:`drift.claims`.


# ---------------------------------------------------------------------------------------------- from sweeps
@dataclass(frozen=True)
class Pair:
    """The slope between two neighbouring rungs."""

    coarse: str
    fine: str
    slope: Slope

    @property
    def mixed(self) -> bool:
        """Whether only one of the two stores less than it accumulates in."""
        return (self.coarse in _HALF) != (self.fine in _HALF)


_HALF = ("bf16", "fp16")


@dataclass(frozen=True)
class Ladder:
    """One fold at several precisions, over the same text.

    Attributes
    ----------
    labels : dict
        Model, protocol, chunk size and what else the cells share; ``measure`` and ``layer``.
    dtypes : tuple of str
        Coarse first.
    unit_roundoff : tuple of float
    level : ndarray [rung, document]
        Geometric mean past the first quarter of the chain; 0 where all of that is exactly zero.
    slope : Slope
        Over all rungs.
    pairs : tuple of Pair
    caveats : tuple of str
    """

    labels: dict[str, Any]
    dtypes: tuple[str, ...]
    unit_roundoff: tuple[float, ...]
    level: Float
    slope: Slope
    pairs: tuple[Pair, ...]
    caveats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        return "{protocol}, {model}, chunk {chunk_size}".format(**self.labels)


def ladders(
    sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last", reference: str = "full"
) -> list[Ladder]:
    """Judge how every fold's drift goes with the precision.

    Parameters
    ----------
    sweep : Sweep
    measure : str
        See :func:`drift.reading.amplitudes.amplitude`: divergences are quadratic in the error and
        enter as their square roots.
    layer : int or "last"
    reference : str
        What the folds are compared with.

    Returns
    -------
    list of Ladder
        One per model, protocol and chunk size (and attention implementation, device, text) with a cell; verdicts are
        withheld where the sweep's controls failed.
    """
    part = dataset.keep(sweep, lambda ds: dataset.is_fold(ds, reference, generating=True))
    found = _ladders(holding(part, measure), measure, layer, controls.gate(sweep))
    return sorted(found, key=lambda one: tuple(one.labels[n] for n in ("protocol", "model", "chunk_size")))


def _ladders(sweep: Sweep, measure: str, layer: int | str, gate: controls.Gate) -> Iterator[Ladder]:
    for axes, cells in grouped_cells(sweep, "protocol", "model", "chunk_size"):
        kept = sorted(
            {ds["dtype"].item(): ds for ds in cells}.values(), key=lambda ds: (-ds["unit_roundoff"].item(), _dtype(ds))
        )
        u = [ds["unit_roundoff"].item() for ds in kept]
        values = np.stack([amplitude(ds, measure, layer) for ds in kept])
        if kept[0]["reference"].item() == "previous":
            values = values[:, :, 1:]  # the first step has no previous one
        if measure.startswith("logit") and np.isnan(values).all():
            continue
        found, used = slope_of_levels(u, values)
        overall = gate.let(found)
        lost = [_dtype(ds) for place, ds in enumerate(kept) if place not in used]
        pairs = [
            Pair(_dtype(kept[i]), _dtype(kept[j]), gate.let(slope([u[i], u[j]], values[[i, j]])))
            for i, j in itertools.combinations(range(len(u)), 2)
            if u[j] < u[i] and not any(u[j] < other < u[i] for other in u)
        ]
        level = np.stack([levels.level(v) for v in values])
        yield Ladder(
            {**axes, "measure": measure, "layer": layer},
            tuple(_dtype(ds) for ds in kept),
            tuple(u),
            level,
            overall,
            tuple(pairs),
            (*_lost(lost), *_caveats(overall, axes["documents"], level if measure in BOUNDED else None, UNRELATED)),
        )


def _dtype(ds: xr.Dataset) -> str:
    return str(ds["dtype"].item())


def _lost(dtypes: Sequence[str]) -> Iterator[str]:
    if dtypes:
        yield f"{', '.join(dtypes)} left out: exactly zero too often, or NaN or Inf"


def _caveats(found: Slope, documents: int, level: Float | None, unrelated: float) -> Iterator[str]:
    if documents == 1:
        yield "one document: the interval is over the steps of its chain and says nothing of other documents"
    elif documents < DOCUMENTS:
        yield f"{documents} documents: Student's t with {documents - 1} degree{'s' * (documents > 2)} of freedom"
    if found.zeros:
        yield f"{found.zeros} of {found.points} late steps left out: exactly zero at some precision"
    if found.misfit > 2:
        yield f"one precision lies {found.misfit:.2g}-fold off the line: see the pairs"
    if level is not None and level.size and level.max() > NEAR * unrelated:
        yield f"near the distance of unrelated states ({unrelated:.2g}): a slope near 0 means little there"


# ---------------------------------------------------------------------------------------------- command line
def as_dict(one: Ladder) -> dict[str, Any]:
    """Return plain values for JSON."""

    def of(s: Slope) -> dict[str, Any]:
        return {**vars(s), "interval": vars(s.interval)}

    return plain(
        {
            **one.labels,
            "dtypes": one.dtypes,
            "unit_roundoff": one.unit_roundoff,
            "level": one.level.tolist(),
            "slope": of(one.slope),
            "pairs": [{"coarse": p.coarse, "fine": p.fine, "mixed": p.mixed, **of(p.slope)} for p in one.pairs],
            "caveats": one.caveats,
        }
    )

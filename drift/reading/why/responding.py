"""How far full attention ends from itself, against the size of what disturbed its embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from drift.dataset.choosing import keep
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import amplitude, amplitude_power, has_measure
from drift.reading.cells import grouped_cells
from drift.reading.excess import floor_values, missing
from drift.reading.floor.model import FACTOR
from drift.reading.quantities import Of
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.levels import geometric_mean, level
from drift.reading.why.model import Responding, Response

__all__ = ["responses"]

#: Disturbances of the floor itself, in unit roundoffs.
_UNIT = 1.0


def _size(ds: xr.Dataset) -> float:
    """Size of what disturbs full attention in a cell, in unit roundoffs; 0 where nothing does."""
    label = parse_label(str(ds["protocol"].item()))
    disturbed = label.name == "full" and "noise" in label.options and ds["reference"].item() == "full"
    return label.number("noise") if disturbed else 0.0


def responses(sweep: Sweep, measure: str, layer: int | str) -> list[Response]:
    """Take the response of every model and precision of which full attention was disturbed.

    Where the cells carry no floor, levels are over the response to one unit roundoff; where that is absent too, NaN.
    """
    disturbed = keep(sweep, lambda ds: _size(ds) > 0 and has_measure(ds, measure))
    found = []
    for axes, cells in grouped_cells(disturbed, "model", "dtype", "chunk_size"):
        by_size: dict[float, list[xr.Dataset]] = {}
        for ds in cells:
            by_size.setdefault(_size(ds), []).append(ds)
        sizes = sorted(by_size)
        absolute = [geometric_mean(np.concatenate([level(amplitude(ds, measure, layer)) for ds in by_size[s]]))
                    for s in sizes]  # fmt: skip
        unit = _unit(cells, measure, layer, dict(zip(sizes, absolute, strict=True)))
        levels = [value / unit if unit > 0 else float("nan") for value in absolute]
        found.append(Response(axes, tuple(sizes), tuple(levels), tuple(absolute), _verdict(sizes, levels)))
    return found


def _unit(cells: Sequence[xr.Dataset], measure: str, layer: int | str, absolute: dict[float, float]) -> float:
    """Level of the floor."""
    floors: list[Float] = [
        level(floor_values(ds, measure, layer) ** amplitude_power(measure))
        for ds in cells
        if missing(ds, measure, Of.EXCESS) is None
    ]
    return geometric_mean(np.concatenate(floors)) if floors else absolute.get(_UNIT, float("nan"))


def _verdict(sizes: Sequence[float], levels: Sequence[float]) -> Responding:
    """Decide from the smallest disturbance that changes anything, if it is smaller than the floor's."""
    felt = [(size, value) for size, value in zip(sizes, levels, strict=True) if value > 0]
    if not felt or felt[0][0] >= _UNIT or not np.isfinite(felt[0][1]):
        return Responding.NOT_TESTED
    return Responding.SATURATED if felt[0][1] >= 1 / FACTOR else Responding.SHRINKS

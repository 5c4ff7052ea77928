"""Where disturbances of other sizes than one unit roundoff end, held against where one ends: the floor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from drift.dataset.choosing import keep
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import has_measure
from drift.reading.floor import FACTOR, NoiseResponse, noise_responses
from drift.reading.why.model import Responding, Response

__all__ = ["responses"]

#: The disturbance that draws the floor, in unit roundoffs.
_UNIT = 1.0


def _is_disturbed(ds: xr.Dataset) -> bool:
    """Whether a cell is full attention against itself, disturbed and nothing else."""
    label = parse_label(str(ds["protocol"].item()))
    plain = label.name == "full" and "noise" in label.options and not set(label.options) - {"noise", "seed"}
    return bool(plain and ds["reference"].item() == "full")


def responses(sweep: Sweep, measure: str, layer: int | str) -> list[Response]:
    """Hold the responses of a sweep against that to one unit roundoff; empty where full attention was not disturbed."""
    disturbed = keep(sweep, lambda ds: _is_disturbed(ds) and has_measure(ds, measure))
    return [_against_unit(one) for one in noise_responses(disturbed, measure, layer)] if len(disturbed) else []


def _against_unit(noise: NoiseResponse) -> Response:
    absolute = noise.level
    unit = absolute[noise.sizes == _UNIT]
    floors = absolute / unit[0] if unit.size and unit[0] > 0 else np.full(len(absolute), math.nan)
    levels = tuple(float(x) for x in floors)
    return Response(noise, levels, _verdict(noise.sizes.tolist(), levels))


def _verdict(sizes: Sequence[float], levels: Sequence[float]) -> Responding:
    """Decide from the smallest disturbance that changes anything, if it is smaller than the floor's."""
    felt = [(size, value) for size, value in zip(sizes, levels, strict=True) if value > 0]
    if not felt or felt[0][0] >= _UNIT:
        return Responding.NOT_TESTED
    return Responding.SATURATED if felt[0][1] >= 1 / FACTOR else Responding.SHRINKS

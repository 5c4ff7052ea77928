"""How far full attention moves when its embeddings are disturbed by so many unit roundoffs.

The cells are those of protocols ``full(noise=K)`` (and ``full(noise=K,seed=S)``: the same disturbance drawn again),
measured against full attention. One unit roundoff is the rounding floor; smaller and larger disturbances say whether
the floor is a property of the disturbance or of the computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from drift.dataset.choosing import keep
from drift.dataset.labels import Label, parse_label
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading.amplitudes import amplitude, has_measure
from drift.reading.cells import grouped_cells
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.levels import geometric_mean, level

__all__ = ["COMMAND", "RESPONSE_TOLERANCE", "NoiseResponse", "noise_responses"]

#: What would measure it.
COMMAND = "python -m drift.sweep SWEEP.yaml --set protocol='full(noise=0.1),full(noise=1),full(noise=10)'"
#: How far from 1 the log-log slope between neighbouring sizes may be where the response is in proportion, and from 0
#: where it is called flat: between sizes ten apart the response is then within a quarter of what either would make it.
RESPONSE_TOLERANCE = 0.1


@dataclass(frozen=True)
class NoiseResponse:
    """The answer of one model in one precision.

    Attributes
    ----------
    labels : dict
        ``model``, ``dtype``, ``chunk_size``, ``tokens`` and what else the cells have in common.
    unit_roundoff : float
    sizes : ndarray [size]
        Of the disturbance, in unit roundoffs, ascending.
    values : ndarray [size, document]
        Late level of the response as an amplitude: geometric mean over steps and seeds; 0 where all of it is exactly
        zero, NaN where nothing is finite.
    steps : int
        Into which the response is cut.
    """

    labels: dict[str, Any]
    unit_roundoff: float
    sizes: Float
    values: Float
    steps: int

    @property
    def level(self) -> Float:
        """Geometric mean over documents [size]; 0 where every document is exactly zero."""
        return np.array([geometric_mean(row) for row in self.values])

    @property
    def silent(self) -> Float:
        """Sizes that nothing answers to: the response is exactly zero in every document."""
        return np.asarray(self.sizes[(self.values == 0).all(axis=1)])

    @property
    def slopes(self) -> Float:
        """Log-log slope between neighbouring sizes, per document [size - 1, document]; NaN where it has none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.diff(np.log(self.values), axis=0) / np.diff(np.log(self.sizes))[:, None]
        return np.where(np.isfinite(steps), steps, math.nan)

    @property
    def proportional(self) -> tuple[float, float] | None:
        """Ends of the longest stretch of sizes over which every document answers in proportion; None without one."""
        runs = self._runs(1.0)
        if not runs:
            return None
        first, last = max(runs, key=lambda run: math.log(self.sizes[run[1]] / self.sizes[run[0]]))
        return float(self.sizes[first]), float(self.sizes[last])

    @property
    def saturated(self) -> float | None:
        """Size from which on, up to the largest, no document answers more; None if the largest still is answered to."""
        runs = self._runs(0.0)
        return float(self.sizes[runs[-1][0]]) if runs and runs[-1][1] == len(self.sizes) - 1 else None

    def above_proportion(self, size: float) -> float:
        """How many times as much a size is answered to as in proportion to the stretch that is.

        Parameters
        ----------
        size : float
            One of `sizes`.

        Returns
        -------
        float
            NaN where nothing is in proportion.
        """
        ends = self.proportional
        if ends is None:
            return math.nan
        inside = (self.sizes >= ends[0]) & (self.sizes <= ends[1])
        per_unit = geometric_mean(self.level[inside] / self.sizes[inside])
        return float(self.level[self.sizes == size][0] / (size * per_unit))

    def _runs(self, wanted: float) -> list[tuple[int, int]]:
        """Stretches of neighbouring sizes whose slopes are `wanted` within the tolerance: first and last place."""
        with np.errstate(invalid="ignore"):
            good = (np.abs(self.slopes - wanted) <= RESPONSE_TOLERANCE).all(axis=1)
        runs: list[tuple[int, int]] = []
        for place in map(int, np.flatnonzero(good)):
            if runs and runs[-1][1] == place:
                runs[-1] = runs[-1][0], place + 1
            else:
                runs.append((place, place + 1))
        return runs


def noise_responses(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> list[NoiseResponse]:
    """Put together the cells ``full(noise=K)`` of every model and precision.

    Parameters
    ----------
    sweep : Sweep
        Other cells are left out, and so are those with another attention implementation or in a batch.
    measure : str
        A key of :data:`drift.reading.amplitudes.DISTANCES`.
    layer : int or "last"

    Returns
    -------
    list of NoiseResponse
        One per model and precision, coarse first: of chunk sizes and texts the one with most sizes of the noise, and of
        these with most tokens.

    Raises
    ------
    DatasetError
        If there is no such cell.
    """
    cells = keep(sweep, lambda ds: _noise(ds) is not None and has_measure(ds, measure))
    if not len(cells):
        raise DatasetError(
            f"no cell says how {measure} of full attention answers to disturbed embeddings; to measure it: {COMMAND}"
        )
    best: dict[tuple[str, str], NoiseResponse] = {}
    for one in _responses(cells, measure, layer):
        key = one.labels["model"], one.labels["dtype"]
        if key not in best or _rank(one) > _rank(best[key]):
            best[key] = one
    return sorted(best.values(), key=lambda one: (one.labels["model"], -one.unit_roundoff))


def _rank(one: NoiseResponse) -> tuple[int, int, int]:
    return len(one.sizes), one.labels["tokens"], one.labels["documents"]


def _noise(ds: xr.Dataset) -> Label | None:
    """The label of a cell that is full attention against itself, disturbed and nothing else."""
    label = parse_label(str(ds["protocol"].item()))
    plain = label.name == "full" and "noise" in label.options and not set(label.options) - {"noise", "seed"}
    return label if plain and ds["reference"].item() == "full" else None


def _responses(cells: Sweep, measure: str, layer: int | str) -> Iterator[NoiseResponse]:
    for labels, group in grouped_cells(cells, "model", "dtype", "chunk_size"):
        by_size: dict[float, list[Float]] = {}
        for ds in group:
            size = parse_label(str(ds["protocol"].item())).number("noise")
            by_size.setdefault(size, []).append(level(amplitude(ds, measure, layer)))
        sizes = sorted(size for size in by_size if size > 0)
        if sizes:
            values = np.array([_over_seeds(by_size[size]) for size in sizes])
            u, steps = float(group[0]["unit_roundoff"].item()), group[0].sizes["step"]
            yield NoiseResponse(labels, u, np.array(sizes), values, steps)


def _over_seeds(levels: Sequence[Float]) -> Float:
    """Geometric mean over seeds [document]: 0 where one of them is, as of the draws of a rounding floor."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(np.array(levels)).mean(axis=0)))

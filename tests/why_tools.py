"""What the tests of the explanation share: cells whose drift, floor and error of one step are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import synthetic
import xarray as xr

from drift.dataset.contract import FLOORS
from drift.dataset.sweep import Sweep
from drift.reading import why
from drift.reading.statistics.windows import late_start
from drift.reading.why import Explained

STEPS, DOCUMENTS, LAYERS = 64, 4, 3
LATE = late_start(STEPS)
SILENT = np.arange(STEPS) % 2 == 1  # steps that make no error of their own


def noisy(level: float, power: float = 0.0, sigma: float = 0.02, seed: int = 0) -> np.ndarray:
    """A curve [document, step] that grows as a power of the step."""
    rng = np.random.default_rng(seed)
    steps = np.arange(1, STEPS + 1) ** power
    values: np.ndarray = level * steps * np.exp(sigma * rng.standard_normal((DOCUMENTS, STEPS)))
    return values


def put(ds: xr.Dataset, measure: str, values: np.ndarray, depth: list[float] | None = None) -> None:
    """Write values [document, step] into a measure at every layer, or so many times at each."""
    if measure in FLOORS.values():
        values = values[..., None]
    name = ds[measure]
    if {"layer", "block"} & set(name.dims):
        values = np.stack([values * d for d in depth or [1.0] * name.shape[1]], axis=1)
    name.values[...] = values


def cell(
    drift: np.ndarray, floor: np.ndarray | None = None, depth: list[float] | None = None, **options: Any
) -> xr.Dataset:
    """A cell with this drift and floor of its hidden state, and a tenth of the floor in its keys and values."""
    known: dict[str, Any] = {"model": "tiny", "layers": LAYERS, "documents": DOCUMENTS, "chunk_size": 8}
    ds = synthetic.cell(
        **(known | options), tokens=8 * STEPS, floor=None if floor is None else lambda step: 1e-2 + 0 * step
    )
    put(ds, "hidden_rel_l2", drift, depth)
    if floor is not None:
        for name in ("hidden_rel_l2", "key_rel_l2", "value_rel_l2"):
            put(ds, FLOORS[name], floor)
        for name in ("key_rel_l2", "value_rel_l2"):
            put(ds, name, floor * 0.9)
    return ds


def one_step(local: np.ndarray, **options: Any) -> xr.Dataset:
    return cell(local, protocol=f"one_step({options.pop('of', 'append')})", **options)


def local(level: float = 8e-3) -> np.ndarray:
    return np.where(SILENT, 0.0, noisy(level, seed=3))


def explained(*cells: xr.Dataset, **options: Any) -> Explained:
    return why.explain(Sweep(cells), **options)


def said(found: Explained, of: str) -> str:
    """The sentence of the explanation that begins so."""
    (sentence,) = [line for line in why.explanation(found) if line.startswith(of)]
    return sentence


FLAT, UNDER = noisy(9.5e-3), noisy(1e-2, seed=1)


def response(size: float, level: float) -> xr.Dataset:
    return cell(np.full((DOCUMENTS, STEPS), level), protocol=f"full(noise={size:g})")

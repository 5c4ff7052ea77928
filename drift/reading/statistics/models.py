"""Growth models of a chain, compared by AICc."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from drift.reading.statistics.arrays import Float

__all__ = ["LATE_MODEL", "compare_models", "model_names"]

#: A model that changes at the end of the chain must lead the best model that does not by this much (AICc) to veto.
AICC_LEAD = 10.0
#: Chains of at most so many steps have their models kept for the next ones.
_REMEMBERED = 1 << 13
_MODEL_RHO = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)


# ---------------------------------------------------------------------------------------------- models
@dataclass(frozen=True)
class _Models:
    """Bases of the models of a mean curve, whitened for a grid of autocorrelations."""

    names: tuple[str, ...]
    owner: NDArray[np.int64]  # basis -> model
    parameters: Float  # per basis: mean and noise parameters
    first: NDArray[np.int64]  # column of a basis in the stacked orthonormal bases
    stacks: list[Float]  # per rho: [step, column]
    ends: list[Float]  # per rho: [column]: change over the last doubling, as a function of the projections


_PLATEAU_MODELS = ("constant", "saturating exponential")
_CHANGE_MODELS = ("power law", "exponential", "quadratic in log depth", "late change")
LATE_MODEL = 5


def model_names() -> tuple[str, ...]:
    """Names of the models that are compared: those that end flat first."""
    return (*_PLATEAU_MODELS, *_CHANGE_MODELS)


@lru_cache(maxsize=64)
def _models(first: int, steps: int) -> _Models:
    t = np.arange(first + 1, steps + 1, dtype=np.float64)
    n = len(t)
    points = np.concatenate([t, [steps / 2, steps]])  # the model is evaluated at both ends of the last doubling
    x = np.log2(points)
    bases: list[tuple[int, Float, int]] = [(0, np.ones((n + 2, 1)), 0)]
    for tau in np.geomspace(1.0, max(2.0, steps / 8), 8):
        bases.append((1, np.stack([np.ones(n + 2), np.exp(-(points - first) / tau)], axis=1), 1))
    bases.append((2, np.stack([np.ones(n + 2), x], axis=1), 0))
    bases.append((3, np.stack([np.ones(n + 2), points / steps], axis=1), 0))
    bases.append((4, np.stack([np.ones(n + 2), x, x**2], axis=1), 0))
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
        ramp = np.maximum(0.0, points - share * steps)
        if 3 <= np.count_nonzero(ramp[:n]) <= n - 3:
            bases.append((5, np.stack([np.ones(n + 2), ramp / steps], axis=1), 1))
            bases.append((5, np.stack([np.ones(n + 2), (points > share * steps) * 1.0], axis=1), 1))
    owner = np.array([b[0] for b in bases])
    parameters = np.array([b[1].shape[1] + b[2] + 2.0 for b in bases])
    widths = [b[1].shape[1] for b in bases]
    stacks, ends = [], []
    for rho in _MODEL_RHO:
        columns, end = [], []
        for _, basis, _ in bases:
            q, r = np.linalg.qr(_whiten(basis[:n].T, rho).T)
            change = basis[n + 1] - basis[n]
            columns.append(q)
            end.append(np.linalg.solve(r.T, change))
        stacks.append(np.concatenate(columns, axis=1))
        ends.append(np.concatenate(end))
    return _Models(model_names(), owner, parameters, np.cumsum([0, *widths[:-1]]), stacks, ends)


def _whiten(z: Float, rho: float) -> Float:
    """Turn AR(1) noise along the last axis into white noise."""
    return np.concatenate([z[..., :1] * np.sqrt(1 - rho**2), z[..., 1:] - rho * z[..., :-1]], axis=-1)


def compare_models(z: Float, first: int, steps: int, delta: float) -> tuple[Float, NDArray[np.int64]]:
    """AICc lead of the models that change at the end over those that do not, and the best of all.

    A model of change only counts if its change over the last doubling of depth is beyond `delta`: a growth that the
    data resolve and that is within the margin is what equivalence is about.

    Parameters
    ----------
    z : ndarray [curve, step]
        Document mean of log drift in the window after `first`.
    """
    # What is kept of a long chain would take hundreds of megabytes.
    models = _models(first, steps) if steps <= _REMEMBERED else _models.__wrapped__(first, steps)
    n = z.shape[1]
    centred = z - z.mean(axis=1, keepdims=True)  # every model has a constant; this one only costs digits
    scale = np.maximum((centred**2).sum(axis=1), 1e-300)
    best = np.full((len(z), len(models.owner)), np.inf)
    counts = models.parameters
    with np.errstate(divide="ignore", invalid="ignore"):
        penalty = np.where(n - counts - 1 > 0, 2 * counts + 2 * counts * (counts + 1) / (n - counts - 1), np.inf)
    for rho, stack, end in zip(_MODEL_RHO, models.stacks, models.ends, strict=True):
        whitened = _whiten(centred, rho)
        projections = whitened @ stack
        explained = np.add.reduceat(projections**2, models.first, axis=1)
        change = np.add.reduceat(projections * end, models.first, axis=1)
        rss = np.maximum((whitened**2).sum(axis=1, keepdims=True) - explained, 1e-14 * scale[:, None])
        aicc = n * np.log(rss / n) - np.log(1 - rho**2) + penalty
        flat = models.owner < len(_PLATEAU_MODELS)
        aicc = np.where(flat | (np.abs(change) > delta), aicc, np.inf)
        best = np.minimum(best, aicc)
    flat = models.owner < len(_PLATEAU_MODELS)
    lead = best[:, flat].min(axis=1) - best[:, ~flat].min(axis=1)
    return np.where(np.isfinite(lead), lead, -np.inf), models.owner[best.argmin(axis=1)]

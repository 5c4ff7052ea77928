"""Sums over a vocabulary in float64, and the terms of which the divergences of two distributions are sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["SERIES_RADIUS", "dot64", "mean_of_js", "mean_of_kl", "reaches", "sum64"]

# Taylor coefficients, from the second order on, of the two f-divergences in v = log(q / p):
#   KL(p || q) = sum p (e^v - 1 - v)        JS(p, q) = sum p (v e^v - (1 + e^v) log((1 + e^v) / 2)) / 2
_KL_SERIES = tuple(1 / float(np.prod(np.arange(1, n + 1, dtype=np.float64))) for n in range(2, 10))
_JS_SERIES = (1 / 8, 1 / 16, 1 / 64, 1 / 384, 1 / 2304, 1 / 11520, 1 / 92160, -1 / 3870720)
SERIES_RADIUS = 0.5
"""Magnitude of v up to which the series are summed; beyond it the closed formulas lose no digits."""


def sum64(x: Tensor) -> Tensor:
    """Sum [...] of an array [..., term] in float64.

    NumPy's buffered conversion is three times as fast as torch's on a CPU.
    """
    if x.device.type == "cpu":
        with np.errstate(all="ignore"):
            return torch.from_numpy(np.atleast_1d(np.add.reduce(x.numpy(), axis=-1, dtype=np.float64)))
    return x.sum(-1, dtype=torch.float64)


def reaches(x: Tensor, bound: float) -> bool:
    """Whether the magnitude of any element is at least ``bound``; NaN does not count, but does not hide others."""
    least, most = (float(value) for value in torch.aminmax(x))
    if np.isnan(least):
        return bool((x.abs() >= bound).any())
    return most >= bound or least <= -bound


def dot64(x: Tensor, y: Tensor) -> Tensor:
    """Sum [...] in float64 of the products of two arrays [..., term]."""
    return sum64(x * y)


def mean_of_kl(p: Tensor, v: Tensor, log_p: Tensor | None) -> Tensor:
    """Sum of p (e^v - 1 - v) over the vocabulary.

    Parameters
    ----------
    p, v : Tensor
        float32 or float64 [row, vocabulary]: probabilities, and log(q / p) up to a constant.
    log_p : Tensor, optional
        Logarithm of ``p`` [row, vocabulary]; may be missing where no ``v`` reaches :data:`SERIES_RADIUS`.

    Returns
    -------
    Tensor
        float64 [row], in nats.
    """
    return _expect(_KL_SERIES, _kl_far, p, v, log_p)


def mean_of_js(p: Tensor, v: Tensor, log_p: Tensor | None) -> Tensor:
    """Sum of p (v e^v - (1 + e^v) log((1 + e^v) / 2)) / 2 over the vocabulary; as :func:`mean_of_kl`."""
    return _expect(_JS_SERIES, _js_far, p, v, log_p)


def _expect(
    series: Sequence[float],
    far_terms: Callable[[Tensor, Tensor, Tensor], Tensor],
    p: Tensor,
    v: Tensor,
    log_p: Tensor | None,
) -> Tensor:
    """Sum of p f(v) over the vocabulary [row]: by the series where v is small, by the formula elsewhere."""
    if log_p is None:
        return sum64(_horner(series, v).mul_(v).mul_(v).mul_(p))
    small = v.abs() < SERIES_RADIUS
    near = torch.where(small, v, torch.zeros((), dtype=v.dtype, device=v.device))
    terms = _horner(series, near).mul_(near).mul_(near).mul_(p)
    far = _indices(~small)
    of_far = [_taken(x, far) for x in (p, v, log_p)]
    _put(terms, far, far_terms(of_far[0], of_far[1], torch.exp(of_far[2].add_(of_far[1]))))
    return sum64(terms)


def _indices(mask: Tensor) -> Tensor:
    """Where a mask is set, as indices [number] of its flat form (NumPy is three times as fast as torch on a CPU)."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def _taken(x: Tensor, indices: Tensor) -> Tensor:
    """A copy of the elements at flat indices [number]."""
    if x.device.type == "cpu":
        return torch.from_numpy(x.numpy().take(indices.numpy()))
    return x.take(indices)


def _put(x: Tensor, indices: Tensor, values: Tensor) -> None:
    """Write to the elements at flat indices [number]."""
    if x.device.type == "cpu":
        x.numpy().reshape(-1)[indices.numpy()] = values.numpy()
    else:
        x.put_(indices, values)


def _kl_far(p: Tensor, v: Tensor, q: Tensor) -> Tensor:
    return q - p - p * v


def _js_far(p: Tensor, v: Tensor, q: Tensor) -> Tensor:
    return (q * v - (p + q) * (torch.nn.functional.softplus(v) - float(np.log(2.0)))) / 2


def _horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    out = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        out.mul_(x).add_(c)
    return out

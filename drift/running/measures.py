"""Two tensors in, per-token and per-step numbers out.

Knows no model and no xarray. All sums are in float64. Differences are formed before anything is summed, so that a drift
far below the size of the values it sits on keeps its leading digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift.running.divergences import SERIES_RADIUS, dot64, mean_of_js, mean_of_kl, reaches, sum64
from drift.running.limits import COMPARED_AT_ONCE

__all__ = [
    "LogitReference",
    "LogitRows",
    "PartRows",
    "StateRows",
    "compare_logits",
    "compare_parts",
    "compare_states",
    "relative_l2",
    "sampled_steps",
    "step_mean",
    "step_quantiles",
]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class StateRows:
    """Comparison of two lanes' states, token by token; every field is [token].

    Attributes
    ----------
    difference2, reference2, other2 : float64
        Squared Euclidean norms of the difference, of the reference and of the other lane's state.
    radial : float64
        Inner product of the difference with the sum of the two states: ``other2 - reference2`` without cancellation.
    max_abs : float64
        Largest absolute difference.
    nonfinite : int64
        Elements that are NaN or infinite in either lane.
    """

    difference2: Float
    reference2: Float
    other2: Float
    radial: Float
    max_abs: Float
    nonfinite: NDArray[np.int64]

    @classmethod
    def concatenate(cls, parts: Sequence[StateRows]) -> StateRows:
        """Join consecutive stretches of tokens."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    def rows(self, start: int, stop: int | None = None) -> StateRows:
        """The tokens ``start:stop``."""
        return StateRows(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})

    def rel_l2_token(self) -> Float:
        """Relative L2 distance of each token: [token]."""
        return _ratio(np.sqrt(self.difference2), np.sqrt(self.reference2))

    def rel_l2(self, starts: Sequence[int]) -> Float:
        """Frobenius norm of the difference over a step's tokens divided by that of the reference: [step]."""
        return _ratio(np.sqrt(_step_sum(self.difference2, starts)), np.sqrt(_step_sum(self.reference2, starts)))

    def norm(self, starts: Sequence[int]) -> Float:
        """Frobenius norm of the reference over a step's tokens: [step]."""
        return np.sqrt(_step_sum(self.reference2, starts))

    def cosine_distance(self, starts: Sequence[int]) -> Float:
        """One minus the cosine similarity, mean over a step's tokens: [step].

        Computed as (|b - a|^2 - (|b| - |a|)^2) / (2 |a| |b|), which keeps its digits where 1 - cos would cancel.
        """
        with np.errstate(all="ignore"):
            reference, other = np.sqrt(self.reference2), np.sqrt(self.other2)
            shrink = self.radial / (reference + other)
            distance = (self.difference2 - shrink**2) / (2 * reference * other)
            # Rounding may leave a hair less than zero where the difference is purely radial.
            distance = np.where(distance < 0, 0.0, distance)
            distance = np.where((self.difference2 == 0) & (self.nonfinite == 0), 0.0, distance)
        return step_mean(distance, starts)

    def step_max_abs(self, starts: Sequence[int]) -> Float:
        """Largest absolute difference among a step's tokens: [step]."""
        return np.asarray(np.maximum.reduceat(self.max_abs, list(starts)), dtype=np.float64)

    def step_nonfinite(self, starts: Sequence[int]) -> NDArray[np.int64]:
        """Non-finite elements among a step's tokens: [step]."""
        return np.asarray(np.add.reduceat(self.nonfinite, list(starts)), dtype=np.int64)


def compare_states(reference: Tensor, *others: Tensor) -> list[StateRows]:
    """Compare lanes' states with a reference's, token by token.

    Parameters
    ----------
    reference, *others : Tensor
        [token, feature], any floating dtype.

    Returns
    -------
    list of StateRows
        One per other lane; what they need of the reference is computed once.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    for other in others:
        if reference.shape != other.shape or reference.ndim != 2:
            shapes = f"{tuple(reference.shape)} and {tuple(other.shape)}"
            raise ValueError(f"states must be [token, feature] and alike, not {shapes}")
    out: list[dict[str, list[Tensor]]] = [{f.name: [] for f in fields(StateRows)} for _ in others]
    rows = max(1, COMPARED_AT_ONCE // max(1, reference.shape[1]))
    for start in range(0, max(1, len(reference)), rows):
        a = reference[start : start + rows].to(torch.float64)
        reference2 = torch.linalg.vecdot(a, a)
        for columns, other in zip(out, others, strict=True):
            b = other[start : start + rows].to(torch.float64)
            difference = b - a
            columns["reference2"].append(reference2)
            columns["other2"].append(torch.linalg.vecdot(b, b))
            columns["radial"].append(torch.linalg.vecdot(difference, a + b))
            columns["difference2"].append(torch.linalg.vecdot(difference, difference))
            columns["max_abs"].append(difference.abs().amax(-1))
            # A sum is finite only if all its terms are; overflow of a square is told apart where it matters, below.
            suspicious = ~torch.isfinite(reference2 + columns["other2"][-1])
            count = torch.zeros(len(a), dtype=torch.int64, device=a.device)
            if bool(suspicious.any()):
                count[suspicious] = (~(torch.isfinite(a[suspicious]) & torch.isfinite(b[suspicious]))).sum(-1)
            columns["nonfinite"].append(count)
    return [StateRows(**{n: torch.cat(parts).cpu().numpy() for n, parts in columns.items()}) for columns in out]


def relative_l2(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Frobenius norm of the difference of some tensors, all of them together, divided by that of the reference.

    Parameters
    ----------
    reference, other : sequence of Tensor
        Of the same shapes, any floating dtypes.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if [x.shape for x in reference] != [x.shape for x in other]:
        raise ValueError(f"tensors must be alike, not {[*map(tuple, (x.shape for x in reference))]} and others")
    pairs = [(a.to(torch.float64), b.to(torch.float64)) for a, b in zip(reference, other, strict=True)]
    difference2 = sum(float(((b - a) ** 2).sum()) for a, b in pairs)
    reference2 = sum(float((a**2).sum()) for a, _ in pairs)
    return float(_ratio(np.sqrt(np.array([difference2])), np.sqrt(np.array([reference2])))[0])


@dataclass(frozen=True)
class PartRows:
    """The error of a fold as a sum of three vectors, token by token.

    With F and C the states of full attention and of the fold, and F64 and C64 the same in float64, the total error
    C - F64 is exactly the sum of ``structural`` = C64 - F64, ``full_rounding`` = F - F64 and ``fold_rounding`` =
    (C - C64) - (F - F64), the rounding that folding adds.

    Attributes
    ----------
    squared : float64 [part, token]
        Squared norms of the three parts, in that order.
    along : float64 [part, token]
        Inner products of the three parts with the total error; they add up to its squared norm.
    reference2 : float64 [token]
        Squared norm of F64.
    """

    squared: Float
    along: Float
    reference2: Float

    names: ClassVar[tuple[str, ...]] = ("structural", "full_rounding", "fold_rounding")

    @classmethod
    def concatenate(cls, parts: Sequence[PartRows]) -> PartRows:
        """Join consecutive stretches of tokens."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts], axis=-1) for f in fields(cls)})

    def per_step(self, starts: Sequence[int]) -> dict[str, Float]:
        """Relative L2 of each part, and its share of the squared total error: [step] each.

        The shares add up to 1 where there is any error; one is negative where its part works against the others.
        """
        reference = np.sqrt(_step_sum(self.reference2, starts))
        along = np.stack([_step_sum(row, starts) for row in self.along])
        total = along.sum(0)
        out = {}
        for name, squared, part in zip(self.names, self.squared, along, strict=True):
            out[f"hidden_rel_l2_{name}"] = _ratio(np.sqrt(_step_sum(squared, starts)), reference)
            with np.errstate(invalid="ignore", divide="ignore"):
                out[f"hidden_share_{name}"] = np.where(total > 0, part / total, np.nan)
        return out


def compare_parts(gold: Tensor, full: Tensor, fold64: Tensor, fold: Tensor) -> PartRows:
    """Take the error of a fold apart.

    Parameters
    ----------
    gold, full, fold64, fold : Tensor
        States [token, feature] of full attention in float64, of full attention, of the fold in float64, of the fold.
    """
    squared: list[Tensor] = []
    along: list[Tensor] = []
    reference2: list[Tensor] = []
    rows = max(1, COMPARED_AT_ONCE // max(1, gold.shape[1]))
    for g, f, c64, c in zip(*(x.split(rows) for x in (gold, full, fold64, fold)), strict=True):
        g, f, c64, c = (x.to(torch.float64) for x in (g, f, c64, c))
        parts = torch.stack([c64 - g, f - g, (c - c64) - (f - g)])
        squared.append(torch.linalg.vecdot(parts, parts))
        along.append(torch.linalg.vecdot(parts, parts.sum(0)))
        reference2.append(torch.linalg.vecdot(g, g))
    return PartRows(*(torch.cat(x, dim=-1).cpu().numpy() for x in (squared, along, reference2)))


@dataclass(frozen=True)
class LogitRows:
    """Comparison of two lanes' logits, token by token; every field is [row].

    Attributes
    ----------
    kl, js : float64
        KL(reference || other) and the Jensen-Shannon divergence of the predicted distributions, in nats.
    difference2, reference2 : float64
        Squared Euclidean norms of the difference of the logits and of the reference's logits.
    max_abs : float64
        Largest absolute difference of a logit.
    top1 : float64
        1.0 where both lanes' most likely token is the same, else 0.0.
    nll_full, nll_fold : float64
        Negative log-likelihood of the next token in nats; NaN where there is none.
    delta_p : float64
        Change in the next token's probability; NaN where there is none.
    nonfinite : int64
        Logits that are NaN or infinite in either lane.
    """

    kl: Float
    js: Float
    difference2: Float
    reference2: Float
    max_abs: Float
    top1: Float
    nll_full: Float
    nll_fold: Float
    delta_p: Float
    nonfinite: NDArray[np.int64]

    @classmethod
    def concatenate(cls, parts: Sequence[LogitRows]) -> LogitRows:
        """Join consecutive stretches of rows."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    def rows(self, start: int, stop: int | None = None) -> LogitRows:
        """The rows ``start:stop``."""
        return LogitRows(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})

    def rel_l2(self, starts: Sequence[int]) -> Float:
        """Frobenius norm of the difference over a step's rows divided by that of the reference: [step]."""
        return _ratio(np.sqrt(_step_sum(self.difference2, starts)), np.sqrt(_step_sum(self.reference2, starts)))


class LogitReference:
    """The reference lane's logits for a stretch of the text, and what every fold needs of them.

    Parameters
    ----------
    logits : Tensor
        [row, vocabulary].
    targets : Tensor
        int64 [row]: the next token, -1 where there is none.
    """

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        # 16-bit logits widen exactly; log-probabilities are formed at fp32 or better.
        self.dtype = torch.float64 if logits.dtype is torch.float64 else torch.float32
        self.logits = logits
        self.targets = targets.to(logits.device)

    def rows(self, start: int, stop: int) -> LogitReference:
        """A view of the rows ``start:stop``."""
        return LogitReference(self.logits[start:stop], self.targets[start:stop])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.logits)


def compare_logits(reference: LogitReference, other: Tensor) -> LogitRows:
    """Compare two lanes' logits token by token.

    Both divergences are sums of non-negative terms in v = log(q / p), each accurate to a few roundings for small v
    (see the series of :mod:`drift.running.divergences`), so they stay accurate down to the square of the unit roundoff
    instead of drowning at the rounding error of a log-probability.

    Parameters
    ----------
    reference : LogitReference
        Logits [row, vocabulary] of the reference lane, with targets.
    other : Tensor
        Logits [row, vocabulary] of the fold, for the same tokens.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if reference.logits.shape != other.shape:
        raise ValueError(f"logits must be alike, not {tuple(reference.logits.shape)} and {tuple(other.shape)}")
    size = max(1, COMPARED_AT_ONCE // max(1, other.shape[-1]))
    parts = []
    for i in range(0, len(reference), size):
        a, b, targets = reference.logits[i : i + size], other[i : i + size], reference.targets[i : i + size]
        part = _compare_block(a.to(reference.dtype), b.to(reference.dtype), targets)
        far = ~np.isfinite(part.kl) & (part.nonfinite == 0)
        if far.any():
            # Distributions so far apart that e^v overflows in float32.
            rows = torch.from_numpy(far).to(a.device)
            again = _compare_block(a[rows].to(torch.float64), b[rows].to(torch.float64), targets[rows])
            for f in fields(LogitRows):
                getattr(part, f.name)[far] = getattr(again, f.name)
        parts.append(part)
    return LogitRows.concatenate(parts)


def _compare_block(a: Tensor, b: Tensor, targets: Tensor) -> LogitRows:
    d = b - a
    top = a.amax(-1, keepdim=True)
    p = (a - top).exp_()
    total = sum64(p)
    p.div_(total.to(p.dtype)[:, None])
    log_total = torch.log(total)
    # With v = d - sum p d, the mean of v under p is zero, and log(sum p e^v) = log1p(sum p (e^v - 1 - v)) is the
    # divergence itself; taking it off v leaves log(q / p).
    mean = dot64(p, d)
    v = d.sub_(mean.to(d.dtype)[:, None])
    log_p = a - (top + log_total.to(a.dtype)[:, None]) if reaches(v, SERIES_RADIUS) else None
    kl = torch.log1p(mean_of_kl(p, v, log_p))
    v.sub_(kl.to(v.dtype)[:, None])
    js = mean_of_js(p, v, log_p)
    d = b - a
    finite = torch.isfinite(a) & torch.isfinite(b) if not bool(torch.isfinite(mean).all()) else None
    nonfinite = torch.zeros(len(a), dtype=torch.int64, device=a.device) if finite is None else (~finite).sum(-1)
    has_target = targets >= 0
    target = targets.clamp(min=0)[:, None]
    a_target = a.gather(-1, target)[:, 0].to(torch.float64)
    v_target = d.gather(-1, target)[:, 0].to(torch.float64) - mean - kl
    nll_full = log_total + top[:, 0].to(torch.float64) - a_target
    nan = torch.tensor(float("nan"), dtype=torch.float64, device=a.device)
    out = {
        "kl": kl,
        "js": js,
        "difference2": dot64(d, d),
        "reference2": dot64(a, a),
        "max_abs": d.abs().amax(-1).to(torch.float64),
        "top1": (_argmax(a) == _argmax(b)).to(torch.float64),
        "nll_full": torch.where(has_target, nll_full, nan),
        "nll_fold": torch.where(has_target, nll_full - v_target, nan),
        "delta_p": torch.where(has_target, torch.exp(-nll_full) * torch.expm1(v_target), nan),
        "nonfinite": nonfinite,
    }
    return LogitRows(**{name: value.cpu().numpy() for name, value in out.items()})


def _argmax(x: Tensor) -> Tensor:
    """Index of each row's largest element, the first of several (NumPy vectorises this on a CPU, torch does not)."""
    return torch.from_numpy(x.numpy().argmax(-1)) if x.device.type == "cpu" else x.argmax(-1)


def step_mean(values: Float, starts: Sequence[int]) -> Float:
    """Mean over each step's rows: [row] -> [step]; NaN where a row is NaN."""
    counts = np.diff([*starts, len(values)])
    return np.asarray(_step_sum(values, starts) / counts, dtype=np.float64)


def sampled_steps(rows: NDArray[np.int64], starts: Sequence[int]) -> tuple[NDArray[np.int64], list[int]]:
    """Find the steps that have sampled rows.

    Parameters
    ----------
    rows : ndarray
        int64 [row]: the sampled tokens, ascending.
    starts : sequence of int
        First token of each step.

    Returns
    -------
    steps : ndarray
        int64: the steps that have at least one row.
    first : list of int
        For each of them, the index of its first row.
    """
    steps, first = np.unique(np.searchsorted(np.asarray(starts), rows, side="right") - 1, return_index=True)
    return steps, [int(i) for i in first]


def step_quantiles(values: Float, starts: Sequence[int], quantiles: Sequence[float]) -> Float:
    """Quantiles over each step's rows (linear interpolation): [row] -> [step, quantile]; NaN where a row is NaN."""
    bounds = [*starts, len(values)]
    width = bounds[1] - bounds[0]
    equal = next((i for i in range(len(starts)) if bounds[i + 1] - bounds[i] != width), len(starts))
    with np.errstate(invalid="ignore"):
        out = [np.quantile(values[: equal * width].reshape(equal, width), quantiles, axis=1).T]
        out += [np.quantile(values[bounds[i] : bounds[i + 1]], quantiles)[None] for i in range(equal, len(starts))]
    return np.concatenate(out)


def _step_sum(values: Float, starts: Sequence[int]) -> Float:
    with np.errstate(all="ignore"):
        return np.asarray(np.add.reduceat(values, list(starts)), dtype=np.float64)


def _ratio(numerator: Float, denominator: Float) -> Float:
    """Quotient that reads 0 / 0 as 0: two lanes that are both zero are alike."""
    with np.errstate(all="ignore"):
        return np.where((numerator == 0) & (denominator == 0), 0.0, numerator / denominator)

"""How far another rounding of the same computation can move the numbers of a cell.

Other kernels (another processor, another torch) round otherwise, and neither rounding is wrong. Let F and C be the
states of full attention and of the fold as recorded, F' and C' as computed here. Every distance d that a cell holds is
one between the two passes, and distances obey the triangle inequality: by whatever norm,

    | d(F', C') - d(F, C) |  <=  d(F, F') + d(C, C').

How far F' can be from F, and C' from C, is measured here, and not taken from the recorded cell, which would let a
changed cell choose its own tolerance: two equally right roundings of the same pass are compared on this machine (noise
of two unit roundoffs, which ends where any disturbance ends: at the rounding floor), and g is :data:`SAFETY` times the
largest such distance over the steps and layers of a document: the largest of some dozens of draws is not the largest
there can be. What is normed by |F| moves with |F| too, so that

    relative distances        | d' - d |  <=  2 g (1 + d) / (1 - g)
    other distances           | d' - d |  <=  2 g
    the norm n of F           | n' - n |  <=  g n / (1 - g)
    log-likelihoods           | l' - l |  <=  2 g,  g of the largest difference of a logit

Divergences are squares of distances: their roots are compared. (The root of the Jensen-Shannon divergence is a metric;
that of KL is one to leading order.) Shares of tokens are counted as disagreements, which is a metric, too. Quantiles
over tokens obey the bound with the g of the worst token.

The bound holds step by step, and is sharp where drift is far above the floor: a structural drift of .67 in float32 may
move by some 1e-6. Where drift is itself the rounding floor, it lets every value from 0 to some floors pass; there the
level says more, see :mod:`drift.reading.verifying.judging`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from drift.dataset.contract import FLOORS, VARIABLES
from drift.reading.amplitudes import amplitude_power

__all__ = ["SAFETY", "Rule", "allowed", "amplitudes", "floor_of", "in_own_units", "measuring", "rule_of"]

Float = NDArray[np.float64]

#: How many times the largest distance that was seen another may be. Of two norms of 64 independent roundings one
#: exceeds the other 1.9-fold by a chance of 1e-6 (the F distribution).
SAFETY = 2.0


class Rule(Enum):
    """How a variable may move."""

    EXACT = auto()
    RELATIVE = auto()
    METRIC = auto()
    NORM = auto()
    LIKELIHOOD = auto()
    NONE = auto()


_RELATIVE = (
    "hidden_rel_l2", "hidden_rel_l2_token", "key_rel_l2", "value_rel_l2", "state_rel_l2", "logit_rel_l2",
    "hidden_rel_l2_structural", "hidden_rel_l2_full_rounding", "hidden_rel_l2_fold_rounding",
)  # fmt: skip
_OF_LOGITS = (
    "logit_kl", "logit_js", "logit_kl_token", "logit_rel_l2", "logit_max_abs", "delta_p_rms", "nll_full", "nll_fold",
)  # fmt: skip
# Relative errors of measures: logits are compared elementwise in float32, where an exponential of x in -60 to 0 is off
# by |x| unit roundoffs; states are compared in float64, where the cosine distance cancels most.
_IN_FLOAT32, _IN_FLOAT64 = 2.0**-18, 2.0**-30
_AGREEMENTS = ("top1_agreement", "token_agreement")
_LIKELIHOODS = ("nll_full", "nll_fold")
#: The variable whose floor bounds another one, where it is not its own.
_BASES = {
    "hidden_norm": "hidden_rel_l2",
    "nll_full": "logit_max_abs",
    "nll_fold": "logit_max_abs",
    "hidden_rel_l2_structural": "hidden_rel_l2",
    "hidden_rel_l2_full_rounding": "hidden_rel_l2",
    "hidden_rel_l2_fold_rounding": "hidden_rel_l2",
    **{floor: name for name, floor in FLOORS.items()},
}


def _measure(variable: str) -> str:
    """The measure that a variable is of: a floor is one of the measure that it is the floor of."""
    return _BASES[variable] if variable in FLOORS.values() else variable


def rule_of(variable: str) -> Rule:
    """How a variable of the contract may move."""
    measure = _measure(variable)
    row = VARIABLES[measure]
    if row.dtype != "float64":
        return Rule.EXACT
    if measure in _RELATIVE:
        return Rule.RELATIVE
    if measure == "hidden_norm":
        return Rule.NORM
    if measure in _LIKELIHOODS:
        return Rule.LIKELIHOOD
    return Rule.METRIC if row.distance or measure in _AGREEMENTS else Rule.NONE


def amplitudes(variable: str, values: Float) -> Float:
    """Distances of a variable's values, which obey the triangle inequality."""
    measure = _measure(variable)
    if measure in _AGREEMENTS:
        return 1.0 - values
    power = amplitude_power(measure)
    return values if power == 1 else np.clip(values, 0.0, None) ** power


def floor_of(variable: str, floors: Sequence[xr.Dataset], own: xr.Dataset) -> Float | None:
    """How far two roundings of one pass were apart at most.

    Parameters
    ----------
    variable : str
    floors : sequence of xarray.Dataset
        Cells of the same documents that compare two roundings of one pass.
    own : xarray.Dataset
        The cell itself, computed here, which may hold floors as well.

    Returns
    -------
    ndarray [document] or None
        The largest distance over steps, layers, blocks, quantiles and draws; None where nothing measured it.
    """
    base = _BASES.get(variable, variable)
    found = [_largest(ds[base], base) for ds in floors if base in ds.data_vars]
    if FLOORS.get(base, "") in own.data_vars:
        found.append(_largest(own[FLOORS[base]], base))
    return np.max(found, axis=0) if found else None


def _largest(array: xr.DataArray, measure: str) -> Float:
    values = array.transpose("document", ...).values
    return np.asarray(amplitudes(measure, values).reshape(len(values), -1).max(axis=1))


def allowed(variable: str, here: Float, there: Float, floor: Float) -> Float:
    """How far apart two amplitudes may be.

    Parameters
    ----------
    variable : str
    here, there : ndarray [document, ...]
        Amplitudes, see :func:`amplitudes`.
    floor : ndarray [document]
        See :func:`floor_of`.

    Returns
    -------
    ndarray [document, ...]
        Infinite where the floor is so high (or not finite) that there is no bound.
    """
    g = SAFETY * floor.reshape(-1, *[1] * (here.ndim - 1))
    rule = rule_of(variable)
    size = np.fmax(np.abs(here), np.abs(there))
    with np.errstate(all="ignore"):
        if rule is Rule.RELATIVE:
            bound = 2 * g * (1 + size) / (1 - g)
        elif rule is Rule.NORM:
            bound = g * size / (1 - g)
        else:
            bound = np.broadcast_to(2 * g, here.shape)
        endless = ~np.isfinite(g) | ((g >= 1) & (rule in (Rule.RELATIVE, Rule.NORM)))
    return np.where(endless, np.inf, bound)


def in_own_units(variable: str, amplitude: float, bound: float) -> float:
    """How far above a value another may lie, in the variable's own units, where its amplitude may lie `bound` above."""
    power = 1.0 if _measure(variable) in _AGREEMENTS else amplitude_power(_measure(variable))
    return bound if power == 1 else (amplitude + bound) ** (1 / power) - amplitude ** (1 / power)


def measuring(variable: str, bits: int) -> float:
    """Relative difference that two ways of measuring the very same states may leave.

    Parameters
    ----------
    variable : str
    bits : int
        Significant bits that are kept of it: what lies at a border may be rounded to either side.
    """
    if rule_of(variable) is Rule.EXACT:
        return 0.0
    return (_IN_FLOAT32 if _measure(variable) in _OF_LOGITS else _IN_FLOAT64) + 2.0 ** (1 - bits)

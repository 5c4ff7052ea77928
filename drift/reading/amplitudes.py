"""What is judged: measures as curves, and the power that makes an amplitude of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift import dataset
from drift.dataset.contract import VARIABLES
from drift.errors import DatasetError
from drift.reading.statistics.arrays import Float

if TYPE_CHECKING:
    import xarray as xr

    from drift.dataset.sweep import Sweep

__all__ = [
    "AMPLITUDE_POWERS",
    "BOUNDED",
    "DISTANCES",
    "LADDER_MEASURES",
    "NEAR",
    "SHORT",
    "UNRELATED",
    "amplitude",
    "amplitude_power",
    "check_distance",
    "has_measure",
    "holding",
    "measure_name",
    "measure_values",
]


def measure_name(measure: str, layer: int | str = "last") -> str:
    """Name a measure in a sentence."""
    if measure in _DERIVED:
        return _DERIVED[measure].words
    row = VARIABLES[measure]
    name = row.long_name
    if "layer" in row.dims:
        place = (
            "after the final norm" if layer == "last" else "of the embeddings" if layer == 0 else f"after block {layer}"
        )
        name = name.replace("hidden state", f"hidden state {place}")
        if measure == "hidden_rel_l2" and layer == "last":
            name = "relative drift of the final hidden state"
    if "block" in row.dims:
        name += " in the last block" if layer == "last" else f" in block {layer}"
    return name


#: Measures that are held against the claims, the headline first, and the power that makes an amplitude of each.
AMPLITUDE_POWERS: dict[str, float] = {
    "hidden_rel_l2": 1.0,
    "key_rel_l2": 1.0,
    "value_rel_l2": 1.0,
    "logit_kl": 0.5,
    "delta_p_rms": 1.0,
    "nll_gap": 1.0,
}
SHORT = {
    "hidden_rel_l2": "hidden state",
    "key_rel_l2": "keys",
    "value_rel_l2": "values",
    "logit_kl": "logits (KL)",
    "delta_p_rms": "probability of the right token",
    "nll_gap": "NLL",
}
UNRELATED = math.sqrt(2)  # relative L2 distance of unrelated states of equal norm
NEAR = 0.5  # the share of that number from which on a level is near to it
BOUNDED = ("hidden_rel_l2", "key_rel_l2", "value_rel_l2")  # which that number is a bound of
# ---------------------------------------------------------------------------------------------- cells
_QUADRATIC = ("logit_js", "logit_kl_token", "hidden_cosine_distance")  # beside those of AMPLITUDE_POWERS


def amplitude_power(measure: str) -> float:
    """Power that makes an amplitude of a measure: divergences are quadratic in a small disturbance."""
    return AMPLITUDE_POWERS.get(measure, 0.5 if measure in _QUADRATIC else 1.0)


def amplitude(ds: xr.Dataset, measure: str, layer: int | str) -> Float:
    """Values of a measure as amplitudes: [document, step]."""
    return measure_values(ds, measure, layer) ** amplitude_power(measure)


@dataclass(frozen=True)
class _Derived:
    words: str
    of: tuple[str, ...]  # variables of the contract
    distance: Callable[..., Float]


#: Variables that are no distances by themselves, and the distance from "no drift" that is made of them.
_DERIVED: dict[str, _Derived] = {
    "nll_gap": _Derived(
        "absolute difference of the negative log-likelihood per token, fold against full attention",
        ("nll_fold", "nll_full"),
        lambda fold, full: np.abs(fold - full),
    ),
    "top1_disagreement": _Derived(
        "share of tokens with another most likely next token", ("top1_agreement",), lambda agreement: 1 - agreement
    ),
    "token_disagreement": _Derived(
        "share of tokens that the lanes would have generated differently, given the same random numbers",
        ("token_agreement",),
        lambda agreement: 1 - agreement,
    ),
}
#: What the precision ladder judges where all measures are asked for.
LADDER_MEASURES = ("hidden_rel_l2", "key_rel_l2", "value_rel_l2", "logit_kl")
#: Measures that can be judged, and what they are called: every float row of the contract that is a distance between
#: the two passes, those included that only some cells have, and what is derived.
DISTANCES: dict[str, str] = {
    name: row.long_name for name, row in VARIABLES.items() if row.dtype == "float64" and row.distance
} | {name: derived.words for name, derived in _DERIVED.items()}


def has_measure(ds: xr.Dataset, measure: str) -> bool:
    """Whether a cell holds what a measure is taken from: some have it by their reference, protocol or age only."""
    needed = _DERIVED[measure].of if measure in _DERIVED else (measure,)
    return all(name in ds.data_vars for name in needed)


def holding(sweep: Sweep, measure: str) -> Sweep:
    """Keep the cells that hold a measure.

    Raises
    ------
    DatasetError
        If the sweep has cells, and none holds it.
    """
    found = sweep.derive(ds for ds in sweep if has_measure(ds, measure))
    if len(sweep) and not len(found):
        known = measure in VARIABLES or measure in _DERIVED
        if not known:
            raise DatasetError(f"there is no measure {measure!r}; known are {', '.join([*VARIABLES, *_DERIVED])}")
        names = _DERIVED[measure].of if measure in _DERIVED else (measure,)
        since = max(VARIABLES[name].since for name in names)
        raise DatasetError(
            f"no cell has {measure}: only some references or protocols do, and only cells of schema version {since} or "
            "later"
        )
    return found


def check_distance(measure: str) -> None:
    """Refuse what is no measure of drift that can be judged.

    Raises
    ------
    DatasetError
        With the measures that there are.
    """
    if measure not in DISTANCES:
        raise DatasetError(
            f"{measure!r} is not a measure of drift that can be judged; there are {', '.join(DISTANCES)}"
        )


def measure_values(ds: xr.Dataset, measure: str, layer: int | str = "last") -> NDArray[np.float64]:
    """Take a curve that can be judged out of a cell: [document, step], at least 0.

    Raises
    ------
    DatasetError
        If there is no such measure or layer, or the cell has it not.
    """
    check_distance(measure)
    if measure in _DERIVED:
        derived = _DERIVED[measure]
        return derived.distance(*(dataset.curve(ds, name) for name in derived.of))
    # The contract lets divergences and cosine distances of equal states round to a hair below zero.
    values = dataset.curve(ds, measure, layer)
    return np.where(values < 0, 0.0, values)
